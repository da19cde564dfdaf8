"""Pictures in requests to a real model server: as files over REST and gRPC, with the answer that the gateway gives."""

import base64
import io
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from PIL import Image
from tritonclient.utils import InferenceServerException

import photos
from bookserve.clients import errors
from bookserve.clients.grpc_client import GrpcClient
from bookserve.clients.inputs import pictures
from bookserve.export.contracts import Contract
from bookserve.serving.gateway.app import create_app
from bookserve.serving.gateway.config import GatewayConfig
from bookserve.serving.gateway.molecule_pool import MoleculePool
from http_calls import post
from model_servers import Server, server_starter
from picture_models import DIGITS, PHOTOS, write

EXAMPLES = Path(__file__).resolve().parents[3] / "clients" / "examples"
FILES = {"digits": (EXAMPLES / "seven.png").read_bytes(), "photos": (EXAMPLES / "ship.png").read_bytes()}
MODELS = {"digits": DIGITS, "photos": PHOTOS}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for contract in MODELS.values():
        write(folder / "models", contract)
    write(folder / "models", replace(DIGITS, model="silent"), silent=True)
    return folder


@pytest.fixture(scope="module")
def server(store: Path) -> Iterator[Server]:
    with server_starter(store) as start:
        yield start(f"--model_root={store / 'models'}", "--max_pictures=40")


def _jpeg(name: str) -> bytes:
    content = io.BytesIO()
    Image.open(io.BytesIO(FILES[name])).convert("RGB").resize((300, 200)).save(content, "JPEG")
    return content.getvalue()


def _in_numbers(server: Server, contract: Contract, files: list[bytes]) -> Any:
    """What the model says of the tensor that a client makes of the pictures."""
    means = contract.preprocessing
    assert means is not None
    levels = np.stack([pictures.levels(file, means) for file in files])
    (given,), (output,) = contract.inputs, contract.outputs
    with GrpcClient(server.target) as client:
        inputs = {given.name: pictures.tensor(levels, means, given)}
        return client.predict(contract.model, inputs).outputs[output.name]


def _rest(server: Server, model: str, body: Any) -> Any:
    return post(server.rest_port, f"/v1/models/{model}:predict", json.dumps(body)).json()


def _b64(file: bytes) -> dict[str, str]:
    return {"b64": base64.b64encode(file).decode()}


@pytest.mark.parametrize("name", MODELS)
def test_a_picture_has_one_answer_over_rest_grpc_and_in_numbers(server: Server, name: str) -> None:
    contract = MODELS[name]
    given, output = contract.inputs[0].name, contract.outputs[0].name
    files = [FILES[name], _jpeg(name)]
    expected = _in_numbers(server, contract, files)
    assert expected.shape == (2, 10)
    assert not np.allclose(expected[0], expected[1], atol=1e-7)
    bodies: list[dict[str, Any]] = [
        {"instances": [_b64(file) for file in files]},
        {"instances": [{given: _b64(file)} for file in files]},
        {"inputs": [_b64(file) for file in files]},
        {"inputs": {given: [_b64(file) for file in files]}},
    ]
    for body in bodies:
        answer = _rest(server, name, body)
        np.testing.assert_allclose(answer["predictions" if "instances" in body else "outputs"], expected, rtol=1e-5)
    with GrpcClient(server.target) as client:
        prediction = client.predict(name, {given: np.array(files, dtype=object)})
        np.testing.assert_allclose(prediction.outputs[output], expected, rtol=1e-6)
        one = client.predict(name, {given: np.array(files[0], dtype=object)})
        np.testing.assert_allclose(one.outputs[output], expected[:1], rtol=1e-6)


def test_a_photograph_of_a_phone_is_taken_in_every_format(server: Server) -> None:
    files = [photos.file_of(name) for name in photos.FORMATS]
    expected = _in_numbers(server, PHOTOS, files)
    answer = _rest(server, "photos", {"instances": [_b64(file) for file in files]})
    np.testing.assert_allclose(answer["predictions"], expected, rtol=1e-5)
    for broken in (photos.file_of("HEIC")[:3000], photos.bomb("AVIF")):
        assert "picture 0: the " in _rest(server, "photos", {"instances": [_b64(broken)]})["error"]


@pytest.mark.parametrize("module", [tritonclient.http, tritonclient.grpc], ids=["http", "grpc"])
@pytest.mark.parametrize("name", MODELS)
def test_triton_s_clients_send_pictures_as_bytes(server: Server, module: ModuleType, name: str) -> None:
    contract = MODELS[name]
    given, output = contract.inputs[0].name, contract.outputs[0].name
    files = [FILES[name], _jpeg(name), photos.file_of("HEIC") if name == "photos" else FILES[name]]
    port = server.rest_port if module is tritonclient.http else server.grpc_port

    def ask(*contents: bytes, shape: tuple[int, ...] | None = None, tensor: str = given) -> Any:
        made = module.InferInput(tensor, shape or (len(contents),), "BYTES")
        made.set_data_from_numpy(np.array(contents, object).reshape(shape or (len(contents),)))
        return client.infer(name, [made]).as_numpy(output)

    with module.InferenceServerClient(f"127.0.0.1:{port}") as client:
        np.testing.assert_allclose(ask(*files), _in_numbers(server, contract, files), rtol=1e-5)
        assert ask(*files[:1]).shape == (1, 10)
        with pytest.raises(InferenceServerException, match="picture 1: this is no readable picture"):
            ask(files[0], b"none")
        with pytest.raises(InferenceServerException, match="give one a row"):
            ask(files[0], shape=(1, 1))
        with pytest.raises(InferenceServerException, match="--max_pictures"):
            ask(*[files[0]] * 41)
        with pytest.raises(InferenceServerException, match="no input 'other'"):
            ask(files[0], tensor="other")
        numbers = module.InferInput(given, (1, *contract.inputs[0].shape[1:]), "FP32" if name == "photos" else "UINT8")
        numbers.set_data_from_numpy(np.zeros((1, *contract.inputs[0].shape[1:]), contract.inputs[0].dtype))
        assert client.infer(name, [numbers]).as_numpy(output).shape == (1, 10)  # as before
        silent = module.InferInput("images", (1,), "BYTES")
        silent.set_data_from_numpy(np.array([files[0]], object))
        with pytest.raises(InferenceServerException, match="expects datatype UINT8, the request has BYTES"):
            client.infer("silent", [silent])


def test_open_inference_takes_pictures_in_json(server: Server) -> None:
    tensor = {
        "name": "images",
        "datatype": "BYTES",
        "shape": [2],
        "data": [_b64(FILES["digits"]), _b64(_jpeg("digits"))],
    }
    answer = post(server.rest_port, "/v2/models/digits/infer", json.dumps({"inputs": [tensor]})).json()
    (output,) = answer["outputs"]
    expected = _in_numbers(server, DIGITS, [FILES["digits"], _jpeg("digits")])
    np.testing.assert_allclose(np.reshape(output["data"], output["shape"]), expected, rtol=1e-5)


def test_the_gateway_gives_the_same_answer(server: Server, store: Path) -> None:
    config = GatewayConfig(models_dir=store / "models")
    pool = MoleculePool()
    try:
        with GrpcClient(server.target) as backend:
            client = create_app(config, backend, pool).test_client()
            told = client.post("/api/v1/digits", data=FILES["digits"], content_type="image/png").get_json()
    finally:
        pool.close()
    (row,) = _rest(server, "digits", {"instances": [_b64(FILES["digits"])]})["predictions"]
    assert list(told["predictions"][0]["probabilities"].values()) == pytest.approx(row, abs=1e-6)


def test_numbers_are_taken_as_before(server: Server) -> None:
    zeros = np.zeros((1, 28, 28), np.uint8)
    (row,) = _rest(server, "digits", {"instances": zeros.tolist()})["predictions"]
    assert row == pytest.approx([0.1] * 10, abs=1e-6)


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({"instances": [_b64(b"no picture")]}, "picture 0: this is no readable picture: give one of PNG, JPEG"),
        ({"instances": [_b64(FILES["digits"]), _b64(FILES["digits"][:60])]}, "picture 1: "),
        ({"instances": [[_b64(FILES["digits"])]]}, "has pictures of shape [1, 1]: give one a row"),
        ({"instances": ["text", _b64(FILES["digits"])]}, "picture 0: this is no readable picture"),
        ({"instances": [_b64(FILES["digits"])] * 41}, "the server holds 40 at once (--max_pictures)"),
    ],
)
def test_what_is_no_picture_is_refused_with_its_place(server: Server, body: Any, text: str) -> None:
    assert text in _rest(server, "digits", body)["error"]


def test_a_bomb_is_refused_from_its_header(server: Server) -> None:
    content = io.BytesIO()
    Image.new("L", (9000, 9000)).save(content, "PNG")
    assert "million" in _rest(server, "digits", {"instances": [_b64(content.getvalue())]})["error"]


def test_a_model_without_such_a_contract_takes_none(server: Server) -> None:
    assert "error" in _rest(server, "silent", {"instances": [_b64(FILES["digits"])]})
    with GrpcClient(server.target) as client, pytest.raises(errors.InvalidArgument, match="uint8"):
        client.predict("silent", {"images": np.array([FILES["digits"]], dtype=object)})


def test_many_at_once_are_all_answered_or_refused_and_the_server_goes_on(server: Server) -> None:
    body = {"instances": [_b64(_jpeg("photos"))] * 10}

    def ask(_: int) -> str:
        answer = _rest(server, "photos", body)
        return "answered" if "predictions" in answer else answer["error"]

    with ThreadPoolExecutor(16) as pool:
        told = list(pool.map(ask, range(64)))
    assert told.count("answered") >= 4
    assert all(text == "answered" or "--max_pictures" in text for text in told)
    assert len(_rest(server, "photos", body)["predictions"]) == 10  # nothing is held any more


@pytest.mark.slow
def test_0_takes_no_pictures(store: Path, tmp_path: Path) -> None:
    with server_starter(tmp_path) as start:
        server = start(f"--model_root={store / 'models'}", "--max_pictures=0")
        assert "error" in _rest(server, "digits", {"instances": [_b64(FILES["digits"])]})
