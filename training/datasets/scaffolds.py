"""Molecules by their scaffold: rings and what links them (Bemis and Murcko, 1996), as MoleculeNet splits them.

A random split puts molecules of one series of drugs on both sides; a scaffold split does not, and so asks for more.
This is deepchem's `ScaffoldSplitter`, to which MoleculeNet's figures belong, without deepchem's ten seconds of import.
"""

from collections.abc import Sequence

from rdkit import Chem, rdBase
from rdkit.Chem.Scaffolds import MurckoScaffold


def scaffold_split(
    smiles: Sequence[str], valid_fraction: float, test_fraction: float
) -> tuple[list[int], list[int], list[int]]:
    """The rows of the training, validation and test split: the largest families train, the smallest test.

    Families are taken from the largest to the smallest, of equal ones first the one whose first molecule comes later;
    each goes whole into the first split that has room for it. Nothing is random. `smiles` must all be readable.
    """
    families: dict[str, list[int]] = {}
    with rdBase.BlockLogs():
        for row, text in enumerate(smiles):
            scaffold: str = MurckoScaffold.MurckoScaffoldSmiles(mol=Chem.MolFromSmiles(text))  # type: ignore[no-untyped-call]
            families.setdefault(scaffold, []).append(row)
    train_room = (1 - valid_fraction - test_fraction) * len(smiles)
    valid_room = (1 - test_fraction) * len(smiles)
    train: list[int] = []
    valid: list[int] = []
    test: list[int] = []
    for family in sorted(families.values(), key=lambda rows: (len(rows), rows[0]), reverse=True):
        if len(train) + len(family) <= train_room:
            train += family
        elif len(train) + len(valid) + len(family) <= valid_room:
            valid += family
        else:
            test += family
    return train, valid, test
