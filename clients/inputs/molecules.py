"""From a molecule written as SMILES to the numbers that a model of molecules takes, and to a drawing of it.

The fingerprint is RDKit's Morgan fingerprint (Rogers and Hahn, "Extended-Connectivity Fingerprints", 2010), by default
that of deepchem's `CircularFingerprint(size=1024)`. Beside it stand counts (topological torsions: Nilakantan et al.,
1987; MACCS keys: Durant et al., 2002) and descriptors, where a contract asks for them. Gateway, clients and training
all have them from here; the training has deepchem make what deepchem can, and compares. RDKit's parser is native code
that a hostile text can keep busy: `check_text` costs nothing and goes first, and a server runs the rest in a process
that it can kill.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from bookserve.clients.inputs import smiles_fault
from bookserve.export.contracts import Descriptors, Preprocessing

BITS = 1024
RADIUS = 2
MAX_CHARACTERS = 1000
MAX_ATOMS = 500
EXAMPLE = smiles_fault.EXAMPLE
KEYS = 167  # MACCS keys, the first of which is never set
MAX_COUNT = 255
MAX_VALUE = 1e6  # of a descriptor

# What tells two featurisers apart: drugs, a metal (its partial charges are no numbers), a stereo centre, a radical.
_REFERENCES = (
    *("CCO", "CC(=O)OC1=CC=CC=C1C(=O)O", "CN1C=NC2=C1C(=O)N(C(=O)N2C)C", "C[Hg]Cl", "C[C@H](N)C(=O)O"),
    *("O=[N+]([O-])c1ccccc1S(=O)(=O)N", "FC(F)(F)c1ccc(Cl)cc1P(=O)(O)O", "[CH2]C", "C1CC2(CC1)OCCO2"),
)
_OTHER = re.compile(r"[^!-~]")  # than printable ASCII without blanks
_DRAWING = (360, 260)  # width and height in pixels
_RAISES, _LOWERS = (0.95, 0.55, 0.2), (0.3, 0.6, 0.95)  # red, green, blue of an atom's mark


class MoleculeError(ValueError):
    """A text that is no molecule; the message says why and what would do, `position` at which character, from 0."""

    def __init__(self, message: str, position: int | None = None) -> None:
        super().__init__(message)
        self.position = position


class MoleculeTooLarge(MoleculeError):
    """More characters or atoms than allowed."""


def check_text(smiles: str) -> None:
    """What can be told of a SMILES without parsing it. MoleculeError or MoleculeTooLarge when it is of no use."""
    if not smiles:
        raise MoleculeError(f"the text is empty: give a molecule as SMILES, such as {EXAMPLE}")
    if len(smiles) > MAX_CHARACTERS:
        raise MoleculeTooLarge(f"a SMILES may have {MAX_CHARACTERS} characters, this one has {len(smiles)}")
    other = _OTHER.search(smiles)
    if other:
        message = "a SMILES has no blanks, control characters or letters beyond ASCII"
        raise MoleculeError(f"{message}: see character {other.start() + 1}", other.start())


def fingerprint(smiles: str, radius: int = RADIUS, bits: int = BITS) -> npt.NDArray[np.uint8]:
    """The Morgan fingerprint of a molecule: uint8 [bits], each 0 or 1.

    MoleculeError when it is no SMILES or no possible molecule, MoleculeTooLarge beyond 1,000 characters or 500 atoms.
    """
    molecule = parse(smiles)
    from rdkit.Chem import rdFingerprintGenerator

    generator = rdFingerprintGenerator.GetMorganGenerator(radius=radius, fpSize=bits)
    found: npt.NDArray[np.uint8] = generator.GetFingerprintAsNumPy(molecule)
    return found


@dataclass(frozen=True)
class Description:
    """A molecule in numbers: `fingerprint` uint8 [bits], `counts` uint8 [2 * bits + 167], `values` float32 [names]."""

    fingerprint: npt.NDArray[np.uint8]
    counts: npt.NDArray[np.uint8]
    values: npt.NDArray[np.float32]


def describe(smiles: str, radius: int, bits: int, names: Sequence[str]) -> Description:
    """A molecule's fingerprint and, with `names` of descriptors, counts and descriptors; without they are empty.

    Raises as `fingerprint`, and MoleculeError where this RDKit has no such descriptor.
    """
    made = fingerprint(smiles, radius, bits)
    if not names:
        return Description(made, np.zeros(0, np.uint8), np.zeros(0, np.float32))
    molecule = parse(smiles)
    from rdkit.Chem import MACCSkeys, rdBase, rdFingerprintGenerator, rdmolfiles, rdmolops

    # Which rings are found in a cage depends on the order of the atoms; deepchem makes it this one.
    molecule = rdmolops.RenumberAtoms(molecule, list(rdmolfiles.CanonicalRankAtoms(molecule)))
    generator = rdFingerprintGenerator.GetMorganGenerator(radius=radius, fpSize=bits)
    parts = (
        generator.GetCountFingerprintAsNumPy(molecule),
        torsions(molecule, bits),
        np.array(list(MACCSkeys.GenMACCSKeys(molecule))),  # type: ignore[attr-defined]
    )
    known = _descriptors()
    missing = [name for name in names if name not in known]
    if missing:
        raise MoleculeError(f"RDKit {rdBase.rdkitVersion} has no descriptor '{missing[0]}': install another version")
    return Description(made, counted(parts), finite([_value(known[name], molecule) for name in names]))


def torsions(molecule: Any, bits: int = BITS) -> npt.NDArray[np.uint32]:
    """How often each topological torsion, four atoms in a row, occurs in a molecule of RDKit: [bits]."""
    from rdkit.Chem import rdFingerprintGenerator

    generator = rdFingerprintGenerator.GetTopologicalTorsionGenerator(fpSize=bits, countSimulation=False)
    found: npt.NDArray[np.uint32] = generator.GetCountFingerprintAsNumPy(molecule)
    return found


def counted(parts: Sequence[npt.NDArray[Any]]) -> npt.NDArray[np.uint8]:
    """Counts in a row, along the last axis, each at most 255."""
    return np.asarray(np.minimum(np.concatenate(parts, axis=-1), MAX_COUNT), np.uint8)


def finite(values: Any) -> npt.NDArray[np.float32]:
    """Descriptors as a contract has them: 0 for what is no finite number, and nothing beyond a million."""
    array = np.asarray(values, np.float64)
    return np.clip(np.where(np.isfinite(array), array, 0.0), -MAX_VALUE, MAX_VALUE).astype(np.float32)


def features(smiles: str, means: Preprocessing) -> dict[str, npt.NDArray[Any]]:
    """The tensors that a contract's preprocessing names, without the batch. Raises as `describe`."""
    assert means.fingerprint is not None
    names = () if means.descriptors is None else means.descriptors.names
    return tensors(describe(smiles, means.fingerprint.radius, means.fingerprint.bits, names), means)


def tensors(description: Description, means: Preprocessing) -> dict[str, npt.NDArray[Any]]:
    """A description under the names of a contract's tensors."""
    named: dict[str, npt.NDArray[Any]] = {means.input: description.fingerprint}
    if means.descriptors is not None:
        named |= {means.descriptors.counts: description.counts, means.descriptors.values: description.values}
    return named


def digest(names: Sequence[str]) -> str:
    """The SHA-256 of what this RDKit says of a few molecules, descriptors to four digits; where it has them all."""
    said = hashlib.sha256()
    for smiles in _REFERENCES:
        found = describe(smiles, RADIUS, BITS, names)
        said.update(found.counts.tobytes())
        said.update(" ".join(f"{value:.4g}" for value in found.values + 0.0).encode())
    return said.hexdigest()


def version() -> str:
    """RDKit's."""
    from rdkit import rdBase

    return str(rdBase.rdkitVersion)


def difference(descriptors: Descriptors, here: str, said: str) -> str:
    """What to tell where RDKit `here`, whose digest is `said`, does not say what that of the training did; else ""."""
    if said == descriptors.digest:
        return ""
    return (
        f"RDKit {here} describes molecules otherwise than {descriptors.rdkit}, with which the model was trained: its "
        f"answers may be wrong; install rdkit=={descriptors.rdkit}, or train again"
    )


def drawing(smiles: str, weights: Sequence[float] = ()) -> str:
    """The molecule's structure as an SVG document; nothing of the text itself gets into it. Raises as `fingerprint`.

    `weights` has a number from -1 to 1 for each atom, in the order of the SMILES: orange behind it where it is above 0,
    blue where it is below, the stronger the farther from 0. MoleculeError where there are not as many as atoms.
    """
    molecule = parse(smiles)
    atoms = molecule.GetNumAtoms()
    if weights and len(weights) != atoms:
        raise MoleculeError(f"there are {len(weights)} weights, but the molecule has {atoms} atoms: give one for each")
    from rdkit.Chem.Draw import rdMolDraw2D

    canvas = rdMolDraw2D.MolDraw2DSVG(*_DRAWING)
    options: Any = canvas.drawOptions()
    options.includeMetadata = False
    options.padding = 0.08
    options.fixedBondLength = 42.0
    options.bondLineWidth = 2
    options.fillHighlights = True
    options.highlightRadius = 0.4
    marked = {atom: weight for atom, weight in enumerate(weights) if weight}
    rdMolDraw2D.PrepareAndDrawMolecule(
        canvas,
        molecule,
        highlightAtoms=list(marked),
        highlightAtomColors={
            atom: (*(_RAISES if weight > 0 else _LOWERS), min(abs(weight), 1.0)) for atom, weight in marked.items()
        },
        highlightBonds=[],
    )
    canvas.FinishDrawing()
    svg: str = canvas.GetDrawingText()
    return svg


@cache
def _descriptors() -> dict[str, Any]:
    """RDKit's descriptors by their names."""
    from rdkit.Chem import Descriptors as Known

    return dict(Known.descList)


def _value(descriptor: Any, molecule: Any) -> float:
    """One descriptor; NaN where RDKit has none for the molecule."""
    try:
        return float(descriptor(molecule))
    except (ValueError, RuntimeError, ZeroDivisionError, OverflowError):
        return float("nan")


def parse(smiles: str) -> Any:
    """A molecule of RDKit. Raises as `fingerprint`."""
    check_text(smiles)
    # RDKit takes half a second and 60 MiB to import, which only those should pay who have a molecule.
    from rdkit import Chem, RDLogger

    RDLogger.DisableLog("rdApp.*")  # type: ignore[attr-defined]
    molecule = Chem.MolFromSmiles(smiles)
    if molecule is None:
        raise MoleculeError(*smiles_fault.fault(smiles))
    atoms = molecule.GetNumAtoms()
    if not atoms:
        raise MoleculeError(f"the molecule has no atoms: give one such as {EXAMPLE}")
    if atoms > MAX_ATOMS:
        raise MoleculeTooLarge(f"a molecule may have {MAX_ATOMS} atoms, this one has {atoms}")
    return molecule
