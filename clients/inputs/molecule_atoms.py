"""A molecule without the share of one atom, for each atom in turn: which part of a molecule mattered to a model.

What an atom adds to a fingerprint are the environments that it is part of. Without the atom their bits are 0, and all
other bits stay, as Riniker and Landrum do it ("Similarity maps - a visualization strategy for molecular fingerprints
and machine-learning methods", 2013; in RDKit `SimilarityMaps.GetMorganFingerprint`). Counts of Morgan environments and
of topological torsions lose the occurrences with the atom, as theirs do, and MACCS keys are those that match elsewhere
in the molecule. No atom is taken out of the molecule, since what is left is another one: with other ends, and often
with a broken ring. So descriptors, which are of the whole molecule, stay as they are.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bookserve.clients.inputs import molecules
from bookserve.clients.inputs.molecules import Description, MoleculeTooLarge

MAX_ATOMS = 100  # each is one more row for the model

_AROMATIC_RINGS, _PIECES = 125, 166  # MACCS keys that are counted: more than one ring, more than one piece
_MOST_MATCHES = 10_000  # of a key, more than 100 atoms have


def without_each(smiles: str, radius: int, bits: int, names: Sequence[str]) -> list[tuple[str, Description]]:
    """The whole molecule, under "", then the symbol of each atom with the molecule without its share.

    The atoms come in the order of the SMILES; the descriptions are those of `molecules.describe`. Raises as it does,
    and MoleculeTooLarge beyond 100 atoms.
    """
    molecule = molecules.parse(smiles)
    atoms = molecule.GetNumAtoms()
    if atoms > MAX_ATOMS:
        raise MoleculeTooLarge(f"a molecule of at most {MAX_ATOMS} atoms can be explained, this one has {atoms}")
    whole = molecules.describe(smiles, radius, bits, names)
    from rdkit.Chem import rdFingerprintGenerator

    morgan = rdFingerprintGenerator.GetMorganGenerator(radius=radius, fpSize=bits)
    environments = _environments(molecule, morgan)
    counts = _counts(molecule, environments, bits) if names else None
    found = [("", whole)]
    for atom in range(atoms):
        fingerprint = whole.fingerprint.copy()
        fingerprint[[bit for bit, places in environments.items() if any(atom in place for place in places)]] = 0
        fewer = whole.counts if counts is None else _without(whole.counts, counts, atom)
        symbol = str(molecule.GetAtomWithIdx(atom).GetSymbol())
        found.append((symbol, Description(fingerprint, fewer, whole.values)))
    return found


@dataclass(frozen=True)
class _Counts:
    """Where a molecule's counts come from, by their place in the array: the atoms of each occurrence.

    A key has with them how many may be there before it is set.
    """

    occurrences: dict[int, list[frozenset[int]]]
    keys: dict[int, tuple[list[frozenset[int]], int]]


def _without(whole: npt.NDArray[np.uint8], counts: _Counts, atom: int) -> npt.NDArray[np.uint8]:
    fewer = whole.copy()
    for place, occurrences in counts.occurrences.items():
        left = sum(atom not in atoms for atoms in occurrences)
        fewer[place] = min(left, molecules.MAX_COUNT)
    for place, (matches, least) in counts.keys.items():
        if sum(atom not in atoms for atoms in matches) <= least:
            fewer[place] = 0
    return fewer


def _counts(molecule: Any, environments: Mapping[int, list[frozenset[int]]], bits: int) -> _Counts:
    """The parts of `molecules.describe`'s counts: Morgan environments, torsions, MACCS keys, one behind the other."""
    from rdkit.Chem import rdFingerprintGenerator

    generator = rdFingerprintGenerator.GetTopologicalTorsionGenerator(fpSize=bits, countSimulation=False)
    told = rdFingerprintGenerator.AdditionalOutput()
    told.AllocateBitPaths()
    generator.GetCountFingerprint(molecule, additionalOutput=told)
    torsions = {bits + bit: [frozenset(path) for path in paths] for bit, paths in told.GetBitPaths().items()}
    keys = {2 * bits + key: matches for key, matches in _keys(molecule)}
    return _Counts({**environments, **torsions}, keys)


def _environments(molecule: Any, morgan: Any) -> dict[int, list[frozenset[int]]]:
    """The atoms of each environment by the bit that it sets."""
    from rdkit.Chem import rdFingerprintGenerator, rdmolops

    told = rdFingerprintGenerator.AdditionalOutput()
    told.AllocateBitInfoMap()
    morgan.GetFingerprint(molecule, additionalOutput=told)
    found: dict[int, list[frozenset[int]]] = {}
    for bit, places in told.GetBitInfoMap().items():
        for centre, radius in places:
            bonds = rdmolops.FindAtomEnvironmentOfRadiusN(molecule, radius, centre) if radius else ()
            ends = (molecule.GetBondWithIdx(bond) for bond in bonds)
            atoms = {centre, *(atom for bond in ends for atom in (bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()))}
            found.setdefault(bit, []).append(frozenset(atoms))
    return found


def _keys(molecule: Any) -> Iterator[tuple[int, tuple[list[frozenset[int]], int]]]:
    """Each MACCS key with its matches in the molecule, and how many it may have and is yet not set."""
    from rdkit.Chem import MACCSkeys, rdmolfiles, rdmolops

    for key, (pattern, least) in MACCSkeys.smartsPatts.items():
        if pattern != "?":
            query = rdmolfiles.MolFromSmarts(pattern)
            matches = molecule.GetSubstructMatches(query, maxMatches=_MOST_MATCHES)
            yield key, ([frozenset(match) for match in matches], least)
    rings = molecule.GetRingInfo()
    aromatic = [
        frozenset(atoms)
        for atoms, bonds in zip(rings.AtomRings(), rings.BondRings(), strict=True)
        if all(molecule.GetBondWithIdx(bond).GetIsAromatic() for bond in bonds)
    ]
    yield _AROMATIC_RINGS, (aromatic, 1)
    # A piece is there as long as one of its atoms is.
    pieces = [frozenset(atoms) if len(atoms) == 1 else frozenset() for atoms in rdmolops.GetMolFrags(molecule)]
    yield _PIECES, (pieces, 1)
