"""A graph that was written for one row, as exporters do by default: it takes pictures, many at once, one by one."""

import csv
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from bookserve.clients.answers import columns
from bookserve.clients.command_line import main
from bookserve.clients.gateway_client import GatewayClient
from gateway_servers import Servers, start_gateway
from model_servers import server_starter

COLOURS = {"red": (250, 10, 10), "green": (10, 250, 10), "blue": (10, 10, 250)}


def write_colours(path: Path) -> None:
    """Which colour a picture has most of: float32 [1, 3, 8, 8] to [1, 3]."""
    nodes = [
        helper.make_node("ReduceMean", ["image", "axes"], ["means"], keepdims=0),
        helper.make_node("Reshape", ["means", "shape"], ["row"]),  # of one row, whatever comes
        helper.make_node("Softmax", ["row"], ["scores"], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "colours",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [1, 3])],
        [
            numpy_helper.from_array(np.array([2, 3]), "axes"),
            numpy_helper.from_array(np.array([1, 3]), "shape"),
        ],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    folder = tmp_path_factory.mktemp("one-row")
    write_colours(folder / "colours.onnx")
    (folder / "labels.txt").write_text("\n".join(COLOURS))
    store = folder / "models"
    options = ["--task=image-classification", f"--labels={folder / 'labels.txt'}", f"--models-dir={store}"]
    done = CliRunner().invoke(main, ["models", "add", "colours", str(folder / "colours.onnx"), *options])
    assert done.exit_code == 0, done.output
    with server_starter(folder) as start:
        server = start(f"--model_root={store}")
        given = [f"--models-dir={store}", f"--model-server={server.target}"]
        gateway = start_gateway(folder / "log", *given, host="127.0.0.1")
        yield Servers(server, gateway.url, store)
        gateway.process.kill()
        gateway.process.wait()
        assert gateway.process.stdout is not None
        gateway.process.stdout.close()


@pytest.fixture
def photographs(tmp_path: Path) -> list[Path]:
    """Of another size than the model's, and not square."""
    paths = []
    for name, colour in COLOURS.items():
        paths.append(tmp_path / f"{name}.jpg")
        Image.new("RGB", (64, 48), colour).save(paths[-1])
    return paths


def test_the_gateway_takes_its_pictures(servers: Servers, photographs: list[Path]) -> None:
    client = GatewayClient(servers.gateway_url)
    assert client.model("colours")["form"] == "image-classification"
    assert columns(client.pictures("colours", photographs))["class"].tolist() == list(COLOURS)
    assert columns(client.pictures("colours", photographs[2:]))["class"].tolist() == ["blue"]


def test_the_command_line_takes_them_on_every_way(servers: Servers, photographs: list[Path]) -> None:
    ways = [
        ("--grpc", servers.model_server.target),
        ("--rest", servers.model_server.url),
        ("--gateway", servers.gateway_url),
    ]
    for option, address in ways:
        words = ["predict", "colours", *map(str, photographs), option, address, "--output=csv"]
        done = CliRunner().invoke(main, [*words, f"--models-dir={servers.models_dir}"])
        assert done.exit_code == 0, done.output
        told = csv.DictReader(io.StringIO(done.stdout, newline=""))
        assert [row["class"] for row in told] == list(COLOURS), option
