import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from bookserve.clients.inputs import molecules

# The bits that deepchem.feat.CircularFingerprint(size=1024) sets.
REFERENCE = {
    "CCO": [33, 80, 222, 294, 386, 807],
    "c1ccccc1": [64, 389, 849],
}


@pytest.mark.parametrize("smiles", list(REFERENCE))
def test_fingerprints_are_deepchems(smiles) -> None:
    bits = molecules.fingerprint(smiles)
    assert (bits.dtype, bits.shape) == (np.uint8, (1024,))
    assert np.flatnonzero(bits).tolist() == REFERENCE[smiles]


def test_the_way_a_molecule_is_written_does_not_matter() -> None:
    np.testing.assert_array_equal(molecules.fingerprint("OCC"), molecules.fingerprint("C(C)O"))


@pytest.mark.parametrize(
    ("smiles", "reason"),
    [
        ("", "empty"),
        ("C C", "blanks"),
        ("C\nC", "control characters"),
        ("C\0", "control characters"),
        ("Ⅽ", "ASCII"),
        ("C1CC", "no SMILES"),
        ("Xx", "no SMILES"),
        ("C(C)(C)(C)(C)C", "valence"),
        ("c1ccc1c", "no such molecule"),
    ],
)
def test_what_is_no_molecule_is_refused_with_the_reason(smiles, reason) -> None:
    with pytest.raises(molecules.MoleculeError, match=reason):
        molecules.fingerprint(smiles)


@pytest.mark.parametrize("smiles", ["C" * 1001, "C" * 501])
def test_molecules_beyond_the_limits_are_too_large(smiles) -> None:
    with pytest.raises(molecules.MoleculeTooLarge):
        molecules.fingerprint(smiles)


def test_the_largest_molecule_passes() -> None:
    assert molecules.fingerprint("C" * 500).sum() > 0


def test_the_drawing_holds_only_shapes() -> None:
    svg = molecules.drawing("CC(=O)[O-].[Na+]")
    names = {element.tag.rpartition("}")[2] for element in ElementTree.fromstring(svg.encode("iso-8859-1")).iter()}
    assert {"svg", "path"} <= names <= {"svg", "rect", "path", "ellipse"}
    assert "CC(=O)" not in svg


def test_rdkit_is_imported_only_for_a_molecule() -> None:
    code = (
        "import sys; from bookserve.clients import predict; from bookserve.serving.gateway import main;"
        " from bookserve.clients.inputs import molecules; molecules.check_text('C'); print('rdkit' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"
