"""Models that the book does not have: their route, their preprocessing and their answers come from the manifest."""

import io
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from structlog.testing import capture_logs

from book_contracts import CONTRACTS, write_manifest
from bookserve.clients import errors
from bookserve.clients.answers import ModelMetadata, Prediction, VersionStatus
from bookserve.clients.inputs import molecules
from bookserve.export.contracts import Contract, Fingerprint, Preprocessing, Tensor
from bookserve.serving.gateway.app import create_app
from bookserve.serving.gateway.config import GatewayConfig
from http_calls import problem_of
from stand_in_models import WORDS, answer_of, signature_of


@dataclass
class Backend:
    """Has the models in `contracts`: answers of the book's model that `like` names, or prepared `outputs`."""

    contracts: dict[tuple[str, int], Contract]
    version: int = 3
    labels: dict[str, int] = field(default_factory=dict)
    like: dict[str, str] = field(default_factory=dict)
    outputs: dict[str, np.ndarray] = field(default_factory=dict)
    asked: list[dict[str, np.ndarray]] = field(default_factory=list)
    signatures: list[str | None] = field(default_factory=list)
    metadata_calls: int = 0

    def predict(self, model, inputs, *, version=None, label=None, signature=None, timeout=0.0) -> Prediction:
        number = version or self.labels.get(label, self.version)
        self.asked.append(inputs)
        self.signatures.append(signature)
        contract = self._contract(model, number)
        for tensor in contract.inputs:
            array = inputs.get(tensor.name)
            if array is None or array.dtype.name != tensor.dtype or array.ndim != len(tensor.shape):
                raise errors.InvalidArgument(f"'{tensor.name}' has another form")
        return Prediction(model, number, self.outputs or answer_of(self.like[model], inputs))

    def metadata(self, model, *, version=None, label=None, timeout=0.0) -> ModelMetadata:
        self.metadata_calls += 1
        number = version or self.labels.get(label, self.version)
        contract = self._contract(model, number)
        return ModelMetadata(model, number, {contract.signature: signature_of(contract)})

    def status(self, model, *, timeout=0.0) -> list[VersionStatus]:
        self._contract(model, self.version)
        return [VersionStatus(self.version, "AVAILABLE", "")]

    def _contract(self, model: str, version: int) -> Contract:
        if (model, version) not in self.contracts:
            raise errors.NotFound(f"Servable not found for request: Specific({model}, {version})")
        return self.contracts[model, version]


@pytest.fixture
def serve(tmp_path, molecule_pool):
    """Makes a back end of some contracts, a store with their manifests, and a client of the gateway over both."""

    def make(*contracts: Contract, stored: bool = True, **options: Any):
        versions = {(contract.model, 3): contract for contract in contracts}
        backend = Backend(versions, **options)
        for (_, version), contract in versions.items() if stored else ():
            write_manifest(tmp_path, contract, version)
        app = create_app(GatewayConfig(models_dir=tmp_path if stored else None), backend, molecule_pool)
        return app.test_client(), backend

    return make


def renamed(name: str) -> Contract:
    """The contract of a model of the book, for a model of another name."""
    return replace(CONTRACTS[name], model=f"own-{name}.v2")


def png(shape: tuple[int, ...]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(3).integers(0, 256, shape, np.uint8)).save(file, "PNG")
    return file.getvalue()


BODIES = {
    "linear": {"x": [1.5, -2]},
    "logistic": {"x": [[0.2, 0.8], [-3, 1]]},
    "tox21": {"smiles": ["CCO", "c1ccccc1O"]},
    "mnist": {"pixels": [[7] * 28] * 28},
    "ptb": {"text": ["The stock", "mr. foo"], "top_k": 3},
    "cifar10": {"pixels": [[[7, 8, 9]] * 32] * 32},
    "tictactoe": {"board": ["X", "", "O", "", "X", "", "", "", ""]},
}


@pytest.mark.parametrize("name", BODIES)
def test_a_model_of_another_name_is_served_as_the_books(client, all_models, store, serve, tmp_path, name) -> None:
    expected = client.post(f"/api/v1/{name}", json=BODIES[name]).get_json()
    own = renamed(name)
    others, _ = serve(own, like={own.model: name})
    if name == "ptb":
        (store / name / "3" / "assets").rename(store / own.model / "3" / "assets")
    answer = others.post(f"/api/v1/{own.model}", json=BODIES[name]).get_json()
    assert answer == {**expected, "model": own.model}
    assert own.model in others.get("/readyz").get_json()["models"]
    assert f"/api/v1/{own.model}" in others.get("/openapi.json").get_json()["paths"]


def test_text_goes_on_and_molecules_are_drawn_under_any_name(serve, tmp_path) -> None:
    text, toxic = renamed("ptb"), renamed("tox21")
    client, _ = serve(text, toxic, like={text.model: "ptb", toxic.model: "tox21"})
    folder = tmp_path / text.model / "3" / "assets"
    folder.mkdir()
    (folder / "vocabulary.txt").write_text("".join(f"{word}\n" for word in WORDS))
    body = {"text": "the", "words": 2, "temperature": 0}
    answer = client.post(f"/api/v1/{text.model}/generate", json=body).get_json()
    assert answer["predictions"][0]["words"] == ["stock", "market"]
    assert client.get(f"/api/v1/{toxic.model}/drawing?smiles=CCO").content_type.startswith("image/svg+xml")
    assert "draws nothing" in problem_of(client.get(f"/api/v1/{text.model}/drawing?smiles=CCO"), 404)["detail"]
    assert "generates no text" in problem_of(client.post(f"/api/v1/{toxic.model}/generate", json=body), 404)["detail"]


@pytest.mark.parametrize("beside", [True, False])
def test_molecules_of_contract_1_are_asked_by_their_fingerprint(serve, beside: bool) -> None:
    own = renamed("tox21")
    if not beside:
        means = replace(own.preprocessing, descriptors=None)
        own = replace(own, version=1, inputs=own.inputs[:1], preprocessing=means)
    client, backend = serve(own, like={own.model: "tox21"})
    answer = client.post(f"/api/v1/{own.model}", json={"smiles": ["CCO", "C"]}).get_json()
    assert len(answer["predictions"]) == 2
    (asked,) = backend.asked
    assert list(asked) == ["fingerprint", *(("counts", "descriptors") if beside else ())]
    np.testing.assert_array_equal(asked["fingerprint"], [molecules.fingerprint("CCO"), molecules.fingerprint("C")])


def test_another_rdkit_than_that_of_the_training_is_in_the_log(serve) -> None:
    own = renamed("tox21")
    means = replace(own.preprocessing, descriptors=replace(own.preprocessing.descriptors, rdkit="1.2.3", digest="0"))
    own = replace(own, preprocessing=means)
    client, _ = serve(own, like={own.model: "tox21"})
    with capture_logs() as logs:
        assert client.post(f"/api/v1/{own.model}", json={"smiles": "CCO"}).status_code == 200
    assert any("than 1.2.3, with which the model was trained" in line.get("detail", "") for line in logs)


FLOWERS = Contract(
    model="flowers",
    version=4,
    task="image-classification",
    inputs=(Tensor("pixel_values", "float32", (None, 3, 20, 30)),),
    outputs=(Tensor("logits", "float32", (None, 3)),),
    labels=("daisy", "rose", "tulip"),
    signature="classify",
    preprocessing=Preprocessing(
        "pixel_values",
        size=(20, 30),
        colour="rgb",
        resize="stretch",
        layout="channels-first",
        scale=1 / 255,
        mean=(0.5, 0.4, 0.3),
        deviation=(0.2, 0.25, 0.5),
    ),
)


def test_a_picture_is_prepared_as_the_manifest_says(serve) -> None:
    client, backend = serve(FLOWERS, outputs={"logits": np.array([[-1.5, 2.25, 0.5]], np.float32)})
    content = png((57, 91, 3))
    response = client.post("/api/v1/flowers", data=content, content_type="image/png")
    assert response.get_json() == {
        "model": "flowers",
        "version": 3,
        "predictions": [{"class": "rose", "logits": {"daisy": -1.5, "rose": 2.25, "tulip": 0.5}}],
    }
    small = np.asarray(Image.open(io.BytesIO(content)).resize((30, 20), Image.Resampling.LANCZOS), np.float64)
    wanted = ((small / 255 - [0.5, 0.4, 0.3]) / [0.2, 0.25, 0.5]).transpose(2, 0, 1)
    np.testing.assert_allclose(backend.asked[0]["pixel_values"], wanted[None], atol=1e-5)
    assert backend.signatures == ["classify"]
    assert client.post("/api/v1/flowers", json={"pixels": [[[1, 2, 3]] * 30] * 20}).status_code == 200
    document = problem_of(client.post("/api/v1/flowers", json={"pixels": [[[1, 2, 3]] * 20] * 30}), 400)
    assert document["expected"] == "a list of 20 rows"


def test_grey_pictures_with_a_channel_and_other_sizes(serve) -> None:
    means = Preprocessing("x", size=(40, 40), colour="grey", resize="centred", scale=1 / 255)
    scans = Contract("scans", 1, (Tensor("x", "float32", (None, 40, 40, 1)),), (Tensor("p", "float32", (None, 2)),))
    scans = replace(scans, task="image-classification", labels=("a", "b"), preprocessing=means)
    client, backend = serve(scans, outputs={"p": np.array([[0.25, 0.75]], np.float32)})
    pixels = np.full((120, 90), 250, np.uint8)
    pixels[20:100, 40:48] = 10
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    answer = client.post("/api/v1/scans", data=file.getvalue(), content_type="image/png").get_json()
    assert answer["predictions"] == [{"class": "b", "p": {"a": 0.25, "b": 0.75}}]
    (field,) = backend.asked[0]["x"]
    rows, columns = np.nonzero(field[:, :, 0] > 0.5)
    assert field.shape == (40, 40, 1)
    assert (rows.max() - rows.min() + 1, round(rows.mean()), round(columns.mean())) == (29, 20, 20)


def test_the_fingerprint_is_the_manifests(serve) -> None:
    contract = Contract(
        "solubility",
        1,
        (Tensor("bits", "float32", (None, 500)),),
        (Tensor("log_s", "float32", (None, 1)),),
        task="molecules",
        preprocessing=Preprocessing("bits", fingerprint=Fingerprint("morgan", radius=3, bits=500)),
    )
    client, backend = serve(contract, outputs={"log_s": np.array([[-0.77]], np.float32)})
    answer = client.post("/api/v1/solubility", json={"smiles": "CCOC(=O)c1ccccc1"}).get_json()
    assert answer["predictions"] == [{"smiles": "CCOC(=O)c1ccccc1", "log_s": -0.77}]
    np.testing.assert_array_equal(backend.asked[0]["bits"], [molecules.fingerprint("CCOC(=O)c1ccccc1", 3, 500)])


def test_rows_of_a_table_get_the_class_and_every_output(serve) -> None:
    wine = Contract(
        "wine",
        1,
        (Tensor("x", "float64", (None, 3)),),
        (Tensor("label", "int64", (None,)), Tensor("scores", "float32", (None, 2), unit="probability")),
        labels=("3", "7"),  # which are the numbers that the model answers
        columns=("acid", "sugar", "age"),
        task="tabular",
    )
    outputs = {"label": np.array([7, 3]), "scores": np.array([[0.1, 0.9], [0.8, 0.2]], np.float32)}
    client, backend = serve(wine, outputs=outputs)
    answer = client.post("/api/v1/wine", json={"x": [[7.4, 0.7, 3], [6.3, 1.2, 11]]}).get_json()
    assert answer["predictions"] == [
        {"class": "7", "scores": {"3": 0.1, "7": 0.9}},
        {"class": "3", "scores": {"3": 0.8, "7": 0.2}},
    ]
    assert backend.asked[0]["x"].dtype == np.float64
    assert "3 numbers" in problem_of(client.post("/api/v1/wine", json={"x": [[1, 2]]}), 400)["expected"]


def test_a_text_gets_its_class(serve, tmp_path) -> None:
    mood = replace(
        renamed("ptb"), model="mood", labels=("bad", "good"), outputs=(Tensor("score", "float32", (None, 2)),)
    )
    client, backend = serve(mood, outputs={"score": np.array([[-0.5, 0.25]], np.float32)})
    (tmp_path / "mood" / "3" / "assets").mkdir()
    (tmp_path / "mood" / "3" / "assets" / "vocabulary.txt").write_text("".join(f"{word}\n" for word in WORDS))
    answer = client.post("/api/v1/mood", json={"text": "the stock fell"}).get_json()
    prediction = {"text": "the stock fell", "unknown": ["fell"], "class": "good", "score": {"bad": -0.5, "good": 0.25}}
    assert answer["predictions"] == [prediction]
    assert backend.asked[0]["tokens"].tolist() == [[1, 4, 5, 0]]
    assert problem_of(client.post("/api/v1/mood", json={"text": "the", "top_k": 3}), 400)["field"] == "top_k"
    assert "generates none" in problem_of(client.post("/api/v1/mood/generate", json={"text": "the"}), 404)["detail"]


TWO = Contract(
    "pair",
    1,
    (Tensor("a", "float32", (None, 2)), Tensor("b", "object", (None, 1))),
    (Tensor("sum", "float32", (None,)), Tensor("text", "object", (None, 1))),
)
SUM = {"sum": np.array([3.5, np.inf], np.float32), "text": np.array([[b"x"], [b"\xff"]], dtype=object)}


def test_any_other_model_takes_tensors(serve) -> None:
    client, backend = serve(TWO, outputs=SUM)
    rows = [{"a": [1, 2], "b": ["x"]}, {"a": [3, 4.5], "b": [{"b64": "/w=="}]}]
    answer = client.post("/api/v1/pair", json={"instances": rows}).get_json()
    assert answer["predictions"] == [{"sum": 3.5, "text": ["x"]}, {"sum": None, "text": [{"b64": "/w=="}]}]
    columns = {"a": [[1, 2], [3, 4.5]], "b": [["x"], [{"b64": "/w=="}]]}
    assert client.post("/api/v1/pair", json={"inputs": columns}).get_json() == answer
    for asked in backend.asked:
        assert (asked["a"].dtype, asked["a"].tolist(), asked["b"].tolist()) == (
            np.float32,
            [[1.0, 2.0], [3.0, 4.5]],
            [[b"x"], [b"\xff"]],
        )


def test_null_is_a_missing_number(serve) -> None:
    client, backend = serve(TWO, outputs=SUM)
    answer = client.post("/api/v1/pair", json={"inputs": {"a": [[1, None], [None, 4.5]], "b": [["x"], [""]]}})
    assert answer.status_code == 200
    np.testing.assert_array_equal(backend.asked[0]["a"], np.float32([[1, np.nan], [np.nan, 4.5]]))


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({}, "none"),
        ({"inputs": {}, "instances": []}, "the fields inputs, instances"),
        ({"instances": [{"a": [1, 2], "b": ["x"]}, {"a": [1, 2]}]}, "a list of 2"),
        ({"instances": [{"a": [1, 2], "b": ["x"]}, 7]}, "a list of 2"),
        ({"instances": []}, "the model takes a, b"),
        ({"inputs": {"a": [[1, 2]]}}, "has a; the model takes a, b"),
        ({"inputs": {"a": [[1, 2], [3]], "b": [["x"], ["y"]]}}, "'a' is no float32"),
        ({"inputs": {"a": [["1", 2]], "b": [["x"]]}}, "'a' is no float32: it holds text"),
        ({"inputs": {"a": [[1, 2]], "b": [[{"b64": "x"}]]}}, "'b' is no object"),
        ({"inputs": {"a": [[1, 2]], "b": [[{"x": 1}]]}}, "an object of 2"),
        ({"inputs": {"a": [1, 2, 3], "b": ["x"]}}, "'a' is [3]; the model takes [any, 2]"),
        ({"inputs": {"a": [[1, 2]], "b": [[None]]}}, "'b' is no object: null is no text"),
        ({"inputs": {"a": [["1", None]], "b": [["x"]]}}, "'a' is no float32"),
        ({"inputs": {"a": [[True, None]], "b": [["x"]]}}, "'a' is no float32"),
    ],
)
def test_tensors_that_do_not_fit_are_400_and_the_right_ones_shown(serve, body, text) -> None:
    client, backend = serve(TWO, outputs=SUM)
    document = problem_of(client.post("/api/v1/pair", json=body), 400)
    assert text in document["given"]
    assert not backend.asked
    backend.outputs = {name: array[:1] for name, array in SUM.items()}
    assert client.post("/api/v1/pair", json=document["example"]).status_code == 200


def test_without_a_store_every_model_takes_tensors(serve) -> None:
    client, backend = serve(TWO, renamed("mnist"), stored=False, outputs=SUM)
    body = {"inputs": {"a": [[1, 2], [3, 4]], "b": [["x"], ["y"]]}}
    assert client.post("/api/v1/pair", json=body).get_json()["predictions"][0]["sum"] == 3.5
    refused = problem_of(client.post("/api/v1/own-mnist.v2", data=png((28, 28)), content_type="image/png"), 503)
    assert "knows no contract of own-mnist.v2" in refused["detail"]
    assert "--models-dir" in refused["detail"]
    assert "no version of nope" in problem_of(client.post("/api/v1/nope", json=body), 404)["detail"]
    assert client.get("/readyz").get_json() == {"status": "ready", "models": {}}
    backend.status = unavailable
    assert "make serve" in problem_of(client.get("/readyz"), 503)["detail"]
    shown = client.get("/api/v1/models/pair")
    assert shown.status_code == 503  # the versions are the model server's to tell
    problem_of(client.get("/api/v1/models/nope"), 404)


def test_a_signature_is_asked_for_once_a_version(serve) -> None:
    client, backend = serve(TWO, stored=False, outputs=SUM)
    body = {"inputs": {"a": [[1, 2], [3, 4]], "b": [["x"], ["y"]]}}
    for _ in range(3):
        assert list(client.post("/api/v1/pair", json=body).get_json()["predictions"][0]) == ["sum", "text"]
    assert (backend.metadata_calls, len(backend.asked)) == (2, 3)  # for the tensors, and for whether they are kept
    # The next version tells more, the one after it takes other tensors; version 3 can be asked all the while.
    more = replace(TWO, outputs=(*TWO.outputs, Tensor("count", "float32", (None,))))
    backend.contracts["pair", 4], backend.version = more, 4
    backend.outputs = {**SUM, "count": np.zeros(2, np.float32)}
    for _ in range(2):
        answer = client.post("/api/v1/pair", json=body).get_json()
        assert (answer["version"], list(answer["predictions"][0])) == (4, ["sum", "text", "count"])
    other = replace(more, inputs=(Tensor("a", "int64", (None, 3)),))
    backend.contracts["pair", 5], backend.version = other, 5
    for _ in range(2):
        assert client.post("/api/v1/pair", json={"inputs": [[1, 2, 3]] * 2}).get_json()["version"] == 5
        assert client.post("/api/v1/pair?version=3", json=body).get_json()["version"] == 3
    assert problem_of(client.post("/api/v1/pair", json=body), 400)["given"]
    calls = backend.metadata_calls
    for _ in range(3):
        client.post("/api/v1/pair", json={"inputs": [[1, 2, 3]] * 2})
    assert backend.metadata_calls == calls
    del backend.contracts["pair", 5]
    assert "no version of pair" in problem_of(client.post("/api/v1/pair", json={"inputs": [[1, 2, 3]]}), 404)["detail"]


def unavailable(model, *, timeout=0.0) -> list[VersionStatus]:
    raise errors.Unavailable("x")


def test_a_manifest_of_before_takes_tensors_and_says_why(serve, tmp_path) -> None:
    own = renamed("mnist")
    client, _ = serve(own, like={own.model: "mnist"})
    path = tmp_path / own.model / "3" / "assets.extra" / "manifest.json"
    path.write_text('{"contract": "own-mnist.v2/1"}')
    assert client.post(f"/api/v1/{own.model}", json={"inputs": [[[7] * 28] * 28]}).get_json()["predictions"][0] == {
        "probabilities": np.eye(10)[7].tolist(),
        "classes": 7,
    }
    refused = problem_of(client.post(f"/api/v1/{own.model}", json=BODIES["mnist"]), 503)
    assert "knows no contract" in refused["detail"]


def test_each_version_is_read_with_its_own_contract(serve, tmp_path) -> None:
    """A roll-back, a label and a new version whose contracts differ, while the gateway goes on."""
    small = replace(renamed("mnist"), model="scan")
    means = Preprocessing("images", size=(14, 14), colour="grey", resize="centred")
    tiny = replace(small, version=2, inputs=(Tensor("images", "uint8", (None, 14, 14)),), preprocessing=means)
    client, backend = serve(small, like={"scan": "mnist"})
    write_manifest(tmp_path, tiny, 4)
    backend.contracts["scan", 4] = tiny
    backend.labels["canary"] = 4

    def ask(side: int, query: str = "") -> tuple[int, int | None]:
        response = client.post(f"/api/v1/scan{query}", json={"pixels": [[7] * side] * side})
        return response.status_code, response.get_json().get("version")

    # The store's newest is 4, and the model server answers with 3.
    assert ask(28) == (200, 3)
    assert ask(14) == (400, None)
    assert ask(14, "?label=canary") == (200, 4)
    assert ask(14, "?version=4") == (200, 4)
    assert ask(28, "?version=3") == (200, 3)
    assert ask(14, "?version=3") == (400, None)
    picture = client.post("/api/v1/scan", data=png((28, 28)), content_type="image/png")
    assert picture.status_code == 400  # noise is no digit
    backend.version = 4  # the roll-back has ended
    assert ask(14) == (200, 4)
    assert ask(28) == (400, None)
    calls = backend.metadata_calls
    for _ in range(3):
        assert ask(14) == (200, 4)
    assert backend.metadata_calls == calls


def test_labels_are_those_of_the_version_that_answers(serve, tmp_path) -> None:
    old = replace(renamed("cifar10"), model="things")
    new = replace(old, version=2, labels=tuple(reversed(old.labels)))
    client, backend = serve(old, like={"things": "cifar10"})
    write_manifest(tmp_path, new, 4)
    backend.contracts["things", 4] = new

    def ask(query: str = "") -> str:
        answer = client.post(f"/api/v1/things{query}", json={"pixels": [[[7] * 3] * 32] * 32})
        return answer.get_json()["predictions"][0]["class"]

    assert ask() == old.labels[7]  # the store's newest is 4, and the model server answers with 3
    assert ask("?version=4") == new.labels[7]
    calls = len(backend.asked)
    assert ask() == old.labels[7]
    assert len(backend.asked) == calls + 1
    backend.version = 4
    assert ask() == new.labels[7]
