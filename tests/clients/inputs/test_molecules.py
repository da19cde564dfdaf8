import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import numpy as np
import pytest

from book_contracts import CONTRACTS
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


def test_descriptors_are_finite_and_of_known_value() -> None:
    said = molecules.describe("CCO", 2, 1024, ("MolWt", "MaxPartialCharge"))
    assert said.values == pytest.approx([46.069, 0.04], abs=0.01)
    metal = molecules.describe("C[Hg]Cl", 2, 1024, ("MolWt", "MaxPartialCharge", "HeavyAtomCount"))
    assert metal.values == pytest.approx([251.08, 0.0, 3.0], abs=0.01)  # a partial charge of it is no number
    assert molecules.finite([np.nan, np.inf, -np.inf, 1e40, -1e40]).tolist() == [0, 0, 0, 1e6, -1e6]


def test_counts_tell_how_often_and_the_fingerprint_whether() -> None:
    one, more = (molecules.describe(text, 2, 1024, ("MolWt",)) for text in ("CCCCO", "CCCCCCCCO"))
    np.testing.assert_array_equal(one.counts[:1024] > 0, one.fingerprint > 0)
    assert one.counts[1024:2048].sum() == 2  # paths of four atoms
    assert more.counts[1024:2048].sum() == 6
    assert one.counts.shape == (2 * 1024 + 167,)
    assert molecules.counted([np.array([300, 4])]).tolist() == [255, 4]
    means = CONTRACTS["tox21"].preprocessing
    named, said = molecules.features("CCCCO", means), molecules.describe("CCCCO", 2, 1024, means.descriptors.names)
    np.testing.assert_array_equal(named["counts"], one.counts)
    np.testing.assert_array_equal(named["fingerprint"], one.fingerprint)
    np.testing.assert_array_equal(named["descriptors"], said.values)
    assert said.values[means.descriptors.names.index("HeavyAtomCount")] == 5


def test_an_order_of_atoms_changes_no_descriptor() -> None:
    means = CONTRACTS["tox21"].preprocessing
    first, second = (molecules.features(text, means) for text in ("OCCN", "NCCO"))
    for name, array in first.items():
        np.testing.assert_allclose(array, second[name], rtol=1e-4, atol=1e-4)


def test_another_rdkit_is_noticed_and_a_descriptor_that_it_lacks() -> None:
    descriptors = CONTRACTS["tox21"].preprocessing.descriptors
    here = molecules.digest(descriptors.names)
    assert molecules.difference(descriptors, "2020.1", here) == ""
    told = molecules.difference(descriptors, "2020.1", molecules.digest(descriptors.names[:-1]))
    assert f"RDKit 2020.1 describes molecules otherwise than {descriptors.rdkit}" in told
    with pytest.raises(molecules.MoleculeError, match="has no descriptor 'Nonsense'"):
        molecules.describe("CCO", 2, 1024, ("MolWt", "Nonsense"))


def test_contract_1_has_the_fingerprint_alone() -> None:
    means = replace(CONTRACTS["tox21"].preprocessing, descriptors=None)
    assert list(molecules.features("CCO", means)) == ["fingerprint"]
