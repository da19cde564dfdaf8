"""Made-up molecules and a made-up rule of activity: Tox21's stand-in on a closed network.

A molecule is a ring or chain with substituents, written as SMILES. Each assay has a few substructures of its own that
make a molecule active more often than not, some are not measured, and a few results are wrong. The figures reached on
it say nothing about Tox21.
"""

import numpy as np
import numpy.typing as npt

CORES = (  # "*" takes a substituent
    "c1cc(*)ccc1*",
    "c1cc(*)cc(*)c1",
    "c1cc(*)ncc1*",
    "C1CC(*)CCC1*",
    "C1CN(*)CCC1*",
    "C1CN(*)CCN1*",
    "c1ccc2c(c1)c(*)cc(*)n2",
    "c1ccc2c(c1)c(*)cc(*)c2",
    "C(*)CC(*)C",
    "C(*)(C)C(*)(C)C",
    "c1c(*)oc(*)c1",
    "c1c(*)sc(*)c1",
    "C1C(*)OC(*)C1",
    "O=C1CC(*)C(*)C1",
)
LINKS = ("", "C", "CC", "CCC", "O", "N", "C(=O)", "C(=O)N", "C(=O)O", "S", "OCC", "NC(=O)", "C=C")
ENDS = (
    *("C", "CC", "C(C)C", "C(C)(C)C", "CCCC", "O", "OC", "N", "N(C)C", "F", "Cl", "Br", "C#N", "C(=O)O", "C(F)(F)F"),
    *("[N+](=O)[O-]", "S(=O)(=O)N", "S(=O)(=O)C", "c1ccccc1", "c1ccc(Cl)cc1", "c1ccc(O)cc1", "c1ccncc1", "C1CCCCC1"),
)
FRACTION_MEASURED = 0.83  # of all results, as in Tox21
FRACTION_WRONG = 0.02
CAUSES = 3  # substructures that make a molecule active in an assay
ACTIVE = 0.8  # chance of activity for a molecule that has one of them


def draw(rows: int, assays: int, seed: int) -> tuple[list[str], npt.NDArray[np.float32]]:
    """`rows` different SMILES and their results float32 [rows, assays]: 1 active, 0 not, NaN not measured."""
    random = np.random.default_rng(seed)
    molecules: dict[str, tuple[int, ...]] = {}  # SMILES -> the parts it is made of
    while len(molecules) < rows:
        core = int(random.integers(len(CORES)))
        links = random.integers(len(LINKS), size=2)
        ends = random.integers(len(ENDS), size=2)
        smiles = CORES[core]
        for link, end in zip(links, ends, strict=True):
            smiles = smiles.replace("*", LINKS[link] + _renumbered(ENDS[end]), 1)
        molecules.setdefault(smiles, (core, *(len(CORES) + ends)))
    parts = np.zeros((rows, len(CORES) + len(ENDS)), bool)
    for row, numbers in enumerate(molecules.values()):
        parts[row, list(numbers)] = True
    causes = np.stack([random.permutation(parts.shape[1])[:CAUSES] for _ in range(assays)])  # (assays, causes)
    caused = parts[:, causes].any(axis=2)  # (rows, assays)
    active = caused & (random.random(caused.shape) < ACTIVE)
    active ^= random.random(caused.shape) < FRACTION_WRONG
    measured = random.random(caused.shape) < FRACTION_MEASURED
    return list(molecules), np.where(measured, active, np.nan).astype(np.float32)


def _renumbered(end: str) -> str:
    """A substituent whose ring is closed with the number 9, which no core uses."""
    return end.replace("1", "9")
