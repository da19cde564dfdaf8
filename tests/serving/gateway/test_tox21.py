import time
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from rdkit import Chem
from rdkit.Chem.Draw import SimilarityMaps

from book_contracts import CONTRACTS, without_nearest, write_manifest
from bookserve.clients.inputs import molecules
from http_calls import problem_of

PATH = "/api/v1/tox21"


@pytest.fixture(autouse=True)
def _served(all_models) -> None:
    """Every test has all seven models."""


def test_a_molecule_gets_its_twelve_assays_by_name(client, backend) -> None:
    answer = client.post(PATH, json={"smiles": "CCO"}).get_json()
    assert (answer["model"], answer["version"]) == ("tox21", 3)
    (prediction,) = answer["predictions"]
    assert prediction["smiles"] == "CCO"
    assert tuple(prediction["probabilities"]) == CONTRACTS["tox21"].labels
    means = CONTRACTS["tox21"].preprocessing
    arrays = backend.asked[0][1:2] + backend.asked[0][6:]
    sent = dict(zip(("fingerprint", "counts", "descriptors"), arrays, strict=True))
    for name, expected in molecules.features("CCO", means).items():
        np.testing.assert_array_equal(sent[name], [expected])


def test_a_common_compound_may_be_given_by_its_name(client, backend) -> None:
    answer = client.post(PATH, json={"smiles": ["Bisphenol A", "CCO"]}).get_json()
    smiles = "CC(C)(c1ccc(O)cc1)c1ccc(O)cc1"
    assert [prediction["smiles"] for prediction in answer["predictions"]] == [smiles, "CCO"]
    np.testing.assert_array_equal(backend.asked[0][1][0], molecules.fingerprint(smiles))
    assert client.get(f"{PATH}/drawing", query_string={"smiles": "aspirin"}).status_code == 200


@pytest.mark.parametrize(("unlike", "told"), [(0.2, [True, False]), (0.1, [False, False]), (None, [None, None])])
def test_a_molecule_unlike_the_training_ones_is_told(client, models_dir, unlike, told) -> None:
    write_manifest(
        models_dir, CONTRACTS["tox21"], 3, {"served": {"auc": 0.8, **({"unlike": unlike} if unlike else {})}}
    )
    found = client.post(PATH, json={"smiles": ["CCO", "aspirin"]}).get_json()["predictions"]
    assert [one["nearest"] for one in found] == [0.1875, 0.75]
    assert [one.get("unlike_training") for one in found] == told
    whole = client.post(f"{PATH}/explain", json={"smiles": "CCO"}).get_json()
    assert [one.get("unlike_training") for one in whole["predictions"]] == told[:1]
    assert not any("unlike_training" in row for row in whole["without"])


def test_a_version_from_before_the_similarity_is_served_beside_one_with_it(client, backend, models_dir) -> None:
    write_manifest(models_dir, CONTRACTS["tox21"], 3, {"served": {"unlike": 0.2}})
    write_manifest(models_dir, without_nearest(), 2)
    assert client.post(PATH, json={"smiles": "CCO"}).get_json()["predictions"][0]["unlike_training"] is True
    backend.outputs = {"probabilities": np.zeros((1, 12), np.float32)}
    answer = client.post(f"{PATH}?version=2", json={"smiles": "CCO"}).get_json()
    assert (answer["version"], list(answer["predictions"][0])) == (2, ["smiles", "probabilities"])
    assert problem_of(client.post(PATH, json={"smiles": "CCO"}), 502)["detail"].endswith("answered no output 'nearest'")


@pytest.mark.parametrize(
    ("smiles", "position"),
    [("CCX", 2), ("CC(C", 2), ("CC)C", 2), ("C1CC", 1), ("C C", 1), ("CO(C)(C)C", 1), ("", None)],
)
def test_a_problem_tells_the_character_at_which_a_molecule_is_wrong(client, smiles, position) -> None:
    document = problem_of(client.post(PATH, json={"smiles": smiles}), 400)
    assert document.get("position") == position
    assert problem_of(client.get(f"{PATH}/drawing", query_string={"smiles": smiles}), 400).get("position") == position
    many = problem_of(client.post(PATH, json={"smiles": ["CCO", smiles]}), 400)
    assert (many["field"], many.get("position")) == ("smiles[1]", position)


def test_several_molecules_keep_their_order(client, backend) -> None:
    answer = client.post(PATH, json={"smiles": ["CCO", "c1ccccc1"]}).get_json()
    assert [prediction["smiles"] for prediction in answer["predictions"]] == ["CCO", "c1ccccc1"]
    sent = backend.asked[0][1]
    assert (sent.dtype, sent.shape) == (np.uint8, (2, 1024))
    np.testing.assert_array_equal(sent[1], molecules.fingerprint("c1ccccc1"))


@pytest.mark.parametrize(
    ("smiles", "field", "text"),
    [
        ("", "smiles", "empty"),
        ("C C", "smiles", "no blanks"),
        ("C\nC", "smiles", "control characters"),
        ("C\0", "smiles", "control characters"),
        ("C\x1b[2J", "smiles", "control characters"),
        ("é", "smiles", "ASCII"),
        ("C1CC", "smiles", "no SMILES"),
        (["CCO", "F(C)(C)C"], "smiles[1]", "valence"),
        (["CCO", 7], "smiles[1]", "the number 7"),
        ([], "smiles", "a list of 0"),
        (None, "smiles", "null"),
        ("<img/src=x/onerror=alert(1)>", "smiles", "no SMILES"),
        ("C(" * 400, "smiles", "no SMILES"),
        ("[" * 1000, "smiles", "no SMILES"),
    ],
)
def test_what_is_no_molecule_is_400(client, backend, smiles, field, text) -> None:
    document = problem_of(client.post(PATH, json={"smiles": smiles}), 400)
    assert document["field"] == field
    assert text in document["detail"]
    assert document["example"] == {"smiles": "CCO"}
    assert not backend.asked


@pytest.mark.parametrize(
    "smiles", ["C" * 100_000, "C(" * 100_000, "[" * 1_000_000, "C" * 501, ".".join("C" * 500) + "C"]
)
def test_molecules_beyond_the_limits_are_413_at_once(client, smiles) -> None:
    client.post(PATH, json={"smiles": "C"})
    started = time.monotonic()
    response = client.post(PATH, json={"smiles": smiles})
    assert problem_of(response, 413)
    assert time.monotonic() - started < 2


def test_too_many_molecules_are_413(client) -> None:
    assert problem_of(client.post(PATH, json={"smiles": ["C"] * 33}), 413)["field"] == "smiles"


def test_a_drawing_is_an_svg_without_script_or_text(client) -> None:
    response = client.get(f"{PATH}/drawing", query_string={"smiles": "CC(=O)[O-].[Na+]"})
    assert response.status_code == 200
    assert response.content_type.startswith("image/svg+xml")
    assert "sandbox" in response.headers["Content-Security-Policy"]
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    tags = {element.tag.rpartition("}")[2] for element in ElementTree.fromstring(response.data).iter()}
    assert tags <= {"svg", "rect", "path", "ellipse"}


def test_atoms_are_marked_by_their_weights(client) -> None:
    def marks(**query: str) -> list[str]:
        response = client.get(f"{PATH}/drawing", query_string={"smiles": "CCO", **query})
        assert response.status_code == 200
        ellipses = ElementTree.fromstring(response.data).iter("{http://www.w3.org/2000/svg}ellipse")
        return [f"{one.get('class')} {one.get('style')[5:14]}".split(";")[0] for one in ellipses]

    assert marks() == []
    assert marks(weights="100,0,-50") == ["atom-0 #F28C33", "atom-2 #4C99F27F"]  # half as strong: half transparent
    for weights in ("100,0", "101,0,0", "a,b,c", "1,,2", "1;2;3", "0," * 4000):
        problem_of(client.get(f"{PATH}/drawing", query_string={"smiles": "CCO", "weights": weights}), 400)


def test_each_atom_is_left_out_once(client, backend) -> None:
    smiles = "CC(=O)Oc1ccccc1C(=O)O"
    answer = client.post(f"{PATH}/explain", json={"smiles": smiles}).get_json()
    assert answer["predictions"] == client.post(PATH, json={"smiles": smiles}).get_json()["predictions"]
    assert answer["kept"] == ["descriptors"]
    assert [row["symbol"] for row in answer["without"]] == [*"CCOOCCCCCCCOO"]
    assert [row["atom"] for row in answer["without"]] == list(range(13))
    molecule = Chem.MolFromSmiles(smiles)
    label = CONTRACTS["tox21"].labels[0]
    for row in answer["without"]:
        bits = SimilarityMaps.GetMorganFingerprint(molecule, row["atom"], radius=2, fpType="bv", nBits=1024)
        assert row["probabilities"][label] == pytest.approx(bits.GetNumOnBits() / 1024, abs=1e-6)
    assert len(backend.asked) == 2  # all atoms in one question
    _, fingerprint, *_, counts, descriptors = backend.asked[0]
    assert [len(array) for array in (fingerprint, counts, descriptors)] == [14] * 3


def test_what_cannot_be_explained_is_a_problem(client, backend) -> None:
    assert problem_of(client.post(f"{PATH}/explain", json={"smiles": ["CCO"]}), 400)["field"] == "smiles"
    assert problem_of(client.post(f"{PATH}/explain", json={"smiles": "CC1C"}), 400)["position"] == 2
    assert (
        "at most 100 atoms" in problem_of(client.post(f"{PATH}/explain", json={"smiles": "C" * 101}), 413)["expected"]
    )
    other = problem_of(client.post("/api/v1/mnist/explain", json={"smiles": "CCO"}), 404)
    assert other["detail"] == "mnist explains nothing: its task is image-classification. Ask it without a part"
    assert not backend.asked


def test_the_drawing_of_no_molecule_is_a_problem(client) -> None:
    assert problem_of(client.get(f"{PATH}/drawing?smiles=C1"), 400)["field"] == "?smiles"
    assert problem_of(client.get(f"{PATH}/drawing"), 400)["given"] == "null"
    assert problem_of(client.get(f"{PATH}/drawing?smile=C"), 400)["field"] == "?smile"
    assert problem_of(client.get(f"{PATH}/drawing?smiles={'C' * 501}"), 413)["field"] == "?smiles"
