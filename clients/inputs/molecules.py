"""From a molecule written as SMILES to the fingerprint that a model of molecules takes, and to a drawing of it.

The fingerprint is RDKit's Morgan fingerprint (Rogers and Hahn, "Extended-Connectivity Fingerprints", 2010), by default
that of deepchem's `CircularFingerprint(size=1024)`. RDKit's parser is native code that a hostile text can keep busy:
`check_text` costs nothing and goes first, and a server runs the rest in a process that it can kill.
"""

import re
from typing import Any

import numpy as np
import numpy.typing as npt

BITS = 1024
RADIUS = 2
MAX_CHARACTERS = 1000
MAX_ATOMS = 500
EXAMPLE = "CCO"

_TEXT = re.compile(r"[!-~]+")  # printable ASCII without blanks
_DRAWING = (360, 260)  # width and height in pixels


class MoleculeError(ValueError):
    """A text that is no molecule; the message says why and what would do."""


class MoleculeTooLarge(MoleculeError):
    """More characters or atoms than allowed."""


def check_text(smiles: str) -> None:
    """What can be told of a SMILES without parsing it. MoleculeError or MoleculeTooLarge when it is of no use."""
    if not smiles:
        raise MoleculeError(f"the text is empty: give a molecule as SMILES, such as {EXAMPLE}")
    if len(smiles) > MAX_CHARACTERS:
        raise MoleculeTooLarge(f"a SMILES may have {MAX_CHARACTERS} characters, this one has {len(smiles)}")
    if not _TEXT.fullmatch(smiles):
        raise MoleculeError("a SMILES has no blanks, control characters or letters beyond ASCII")


def fingerprint(smiles: str, radius: int = RADIUS, bits: int = BITS) -> npt.NDArray[np.uint8]:
    """The Morgan fingerprint of a molecule: uint8 [bits], each 0 or 1.

    MoleculeError when it is no SMILES or no possible molecule, MoleculeTooLarge beyond 1,000 characters or 500 atoms.
    """
    molecule = _parse(smiles)
    from rdkit.Chem import rdFingerprintGenerator

    generator = rdFingerprintGenerator.GetMorganGenerator(radius=radius, fpSize=bits)
    found: npt.NDArray[np.uint8] = generator.GetFingerprintAsNumPy(molecule)
    return found


def drawing(smiles: str) -> str:
    """The molecule's structure as an SVG document; nothing of the text itself gets into it. Raises as `fingerprint`."""
    molecule = _parse(smiles)
    from rdkit.Chem.Draw import rdMolDraw2D

    canvas = rdMolDraw2D.MolDraw2DSVG(*_DRAWING)
    options: Any = canvas.drawOptions()
    options.includeMetadata = False
    options.padding = 0.08
    options.fixedBondLength = 42.0
    options.bondLineWidth = 2
    rdMolDraw2D.PrepareAndDrawMolecule(canvas, molecule)
    canvas.FinishDrawing()
    svg: str = canvas.GetDrawingText()
    return svg


def _parse(smiles: str) -> Any:
    check_text(smiles)
    # RDKit takes half a second and 60 MiB to import, which only those should pay who have a molecule.
    from rdkit import Chem, RDLogger

    RDLogger.DisableLog("rdApp.*")  # type: ignore[attr-defined]
    molecule = Chem.MolFromSmiles(smiles)
    if molecule is None:
        raise MoleculeError(_reason(smiles))
    atoms = molecule.GetNumAtoms()
    if not atoms:
        raise MoleculeError(f"the molecule has no atoms: give one such as {EXAMPLE}")
    if atoms > MAX_ATOMS:
        raise MoleculeTooLarge(f"a molecule may have {MAX_ATOMS} atoms, this one has {atoms}")
    return molecule


def _reason(smiles: str) -> str:
    """Why RDKit takes a text for no molecule."""
    from rdkit import Chem

    molecule: Any = Chem.MolFromSmiles(smiles, sanitize=False)
    if molecule is None:
        return f"this is no SMILES: brackets, rings or symbols do not match; {EXAMPLE} would be one"
    problems = Chem.DetectChemistryProblems(molecule)
    return f"no such molecule can be: {problems[0].Message()}" if problems else "RDKit cannot make sense of it"
