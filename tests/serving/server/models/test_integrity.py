import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from bookserve.serving.server.engines import choose
from bookserve.serving.server.engines.engine import EngineOptions
from bookserve.serving.server.models import integrity, loader
from bookserve.serving.server.models.loader import LoadOptions
from bookserve.serving.server.observability.metrics import Metrics
from bookserve.serving.server.types.errors import ServingError
from model_servers import write_scale_model


@pytest.fixture
def version(tmp_path: Path) -> Path:
    """A version as the store publishes it: files, and a manifest that tells of them."""
    path = tmp_path / "store" / "m" / "1"
    write_scale_model(path.parent, 1, 2.0)
    (path / "assets.extra" / "report").mkdir(parents=True)
    (path / "model.onnx").rename(path / "assets.extra" / "model.onnx")
    (path / "saved_model.pb").write_bytes(b"saved")
    (path / "variables").mkdir()
    (path / "variables" / "variables.index").write_bytes(b"index")
    (path / "assets.extra" / "report" / "card.md").write_text("card")
    write_manifest(path)
    return path


@pytest.mark.parametrize("card", [True, False])
def test_a_manifest_that_was_deleted_is_missed(version: Path, card: bool, caplog: pytest.LogCaptureFixture) -> None:
    integrity.check(write_scale_model(version.parent.parent / "foreign", 1, 2.0))
    assert caplog.text == ""
    if card:
        (version / "assets.extra" / "manifest.json").unlink()
        integrity.check(version)
    else:
        version = write_scale_model(version.parent, 2, 2.0)  # beside one that has a manifest
        integrity.check(version)
    assert (
        f"{version} has lost its manifest (assets.extra/manifest.json): its files are loaded unchecked" in caplog.text
    )


def write_manifest(path: Path) -> None:
    manifest = path / "assets.extra" / "manifest.json"
    manifest.unlink(missing_ok=True)
    files = {
        file.relative_to(path).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in path.rglob("*")
        if file.is_file()
    }
    manifest.write_text(json.dumps({"files": files}))


def test_an_intact_version_passes(version: Path) -> None:
    integrity.check(version)


def test_a_version_without_manifest_or_with_one_of_another_kind_passes(version: Path) -> None:
    (version / "assets.extra" / "manifest.json").write_text('{"name": "something else"}')
    integrity.check(version)
    (version / "assets.extra" / "manifest.json").unlink()
    integrity.check(version)


def rewrite_alike(path: Path) -> None:
    """Other bytes, of the same number and with the same time."""
    file = path / "assets.extra" / "model.onnx"
    before = file.stat()
    file.write_bytes(bytes(before.st_size))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def change_places(path: Path) -> None:
    """Another version stands there for a moment."""
    path.rename(path.with_name("aside"))
    path.mkdir()
    path.rmdir()
    path.with_name("aside").rename(path)


def replace_by_link(path: Path) -> None:
    path.rename(path.with_name("2"))
    path.symlink_to("2")


@pytest.mark.parametrize(
    "disturb",
    [
        rewrite_alike,
        change_places,
        replace_by_link,
        lambda path: (path / "variables" / "new").write_bytes(b""),
        lambda path: (path / "variables" / "variables.index").unlink(),
        lambda path: shutil.rmtree(path),
    ],
)
def test_what_changes_while_it_is_loaded_is_refused(
    version: Path, monkeypatch: pytest.MonkeyPatch, disturb: Callable[[Path], object]
) -> None:
    (version / "saved_model.pb").unlink()  # which is none
    write_manifest(version)
    loader._load(version, LoadOptions(), Metrics())[0].close()
    load = choose.load

    def load_and_disturb(path: Path, options: EngineOptions) -> Any:
        loaded = load(path, options)
        disturb(path)
        return loaded

    monkeypatch.setattr(choose, "load", load_and_disturb)
    with pytest.raises(ServingError, match=r"has changed while it was loaded|cannot be read any more"):
        loader._load(version, LoadOptions(), Metrics())


def change(name: str) -> Callable[[Path], object]:
    return lambda path: (path / name).write_bytes(b"other")


def remove(name: str) -> Callable[[Path], object]:
    return lambda path: (path / name).unlink()


def link(name: str, target: str) -> Callable[[Path], object]:
    return lambda path: (path / name).symlink_to(target)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (change("assets.extra/model.onnx"), "assets.extra/model.onnx is not the file that its manifest tells of"),
        (change("saved_model.pb"), "saved_model.pb is not the file that its manifest tells of"),
        (remove("assets.extra/model.onnx"), "assets.extra/model.onnx is in its manifest but not in the folder"),
        (remove("variables/variables.index"), "variables/variables.index is in its manifest but not in the folder"),
        (change("assets.extra/weights.bin"), "assets.extra/weights.bin is not in its manifest"),
        (change("assets.extra/manifest.json"), "its manifest cannot be read"),
        (link("assets.extra/passwd", "/etc/passwd"), "assets.extra/passwd is a link to /etc/passwd, outside"),
        (link("elsewhere", "../.."), "outside of the version"),
        (link("assets.extra/circle", "circle"), "it cannot be read"),
        (lambda path: os.mkfifo(path / "assets.extra" / "pipe"), "assets.extra/pipe is neither a file nor a folder"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_damaged_version_is_refused_with_the_reason(
    version: Path, damage: Callable[[Path], object], reason: str
) -> None:
    damage(version)
    with pytest.raises(ServingError) as caught:
        integrity.check(version)
    assert reason in caught.value.message
    assert str(caught.value).startswith("FAILED_PRECONDITION: ")


def test_what_is_not_read_is_not_hashed_unless_tensorflow_reads_it(version: Path) -> None:
    (version / "variables" / "variables.index").write_bytes(b"other")
    integrity.check(version)
    (version / "assets.extra" / "model.onnx").unlink()
    with pytest.raises(ServingError, match=r"model.onnx is in its manifest"):
        integrity.check(version)


def test_settings_may_be_put_beside_the_files_of_a_manifest(version: Path) -> None:
    (version / "batching_params.pbtxt").write_text("max_batch_size { value: 4 }")
    (version / "assets.extra" / "tf_serving_warmup_requests").write_bytes(b"")
    (version / ".DS_Store").write_bytes(b"")
    integrity.check(version)


def test_links_inside_of_a_version_pass(version: Path) -> None:
    (version / "assets.extra" / "manifest.json").unlink()
    (version / "again").symlink_to("assets.extra")
    (version / "graph").symlink_to("assets.extra/model.onnx")
    integrity.check(version)


def test_a_version_that_is_a_link(version: Path, tmp_path: Path) -> None:
    (version.parent / "2").symlink_to("1")  # of the same model
    integrity.check(version.parent / "2")
    (version.parent / "3").symlink_to(tmp_path)
    with pytest.raises(ServingError, match="it is a link to"):
        integrity.check(version.parent / "3")
    (version.parent / "4").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ServingError, match="it cannot be read"):
        integrity.check(version.parent / "4")


# Weights that an ONNX graph takes from elsewhere. The secret is four float32.


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    path.write_bytes(np.arange(4, dtype=np.float32).tobytes())
    return path


def graph_with_external_weights(location: str, *, sparse: bool) -> bytes:
    values = numpy_helper.from_array(np.zeros(4, np.float32), "w")
    values.ClearField("raw_data")
    values.data_location = TensorProto.EXTERNAL
    values.external_data.add(key="location", value=location)
    values.external_data.add(key="length", value="16")
    initializers, sparse_initializers = [values], []
    if sparse:
        indices = numpy_helper.from_array(np.arange(4, dtype=np.int64), "w_indices")
        initializers, sparse_initializers = [], [helper.make_sparse_tensor(values, indices, [4])]
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"])],
        "outside",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
        initializers,
        sparse_initializer=sparse_initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return bytes(model.SerializeToString())


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
@pytest.mark.parametrize("way", ["parent", "absolute", "symlink", "hard link", "linked folder"])
def test_weights_from_outside_never_load(tmp_path: Path, secret: Path, way: str, sparse: bool) -> None:
    path = tmp_path / "m" / "1"
    path.mkdir(parents=True)
    location = {"parent": "../../secret", "absolute": str(secret), "linked folder": "weights/secret"}.get(
        way, "weights"
    )
    if way == "symlink":
        (path / "weights").symlink_to(secret)
    elif way == "hard link":
        os.link(secret, path / "weights")
    elif way == "linked folder":
        (path / "weights").symlink_to(tmp_path)
    (path / "model.onnx").write_bytes(graph_with_external_weights(location, sparse=sparse))

    def load() -> None:
        integrity.check(path)
        choose.load(path, EngineOptions())

    with pytest.raises(ServingError, match="FAILED_PRECONDITION"):
        load()


def test_weights_beside_the_graph_load(tmp_path: Path) -> None:
    path = tmp_path / "m" / "1"
    path.mkdir(parents=True)
    (path / "weights").write_bytes(np.arange(4, dtype=np.float32).tobytes())
    (path / "model.onnx").write_bytes(graph_with_external_weights("weights", sparse=False))
    integrity.check(path)
    loaded = choose.load(path, EngineOptions())
    (y,) = loaded.run(loaded.signatures["serving_default"], {"x": np.zeros((1, 4), np.float32)}, ["y"])
    np.testing.assert_array_equal(y, [[0, 1, 2, 3]])


def test_a_hard_link_whose_content_the_manifest_confirms_passes(version: Path, tmp_path: Path) -> None:
    os.link(version / "assets.extra" / "model.onnx", tmp_path / "same")
    os.link(version / "saved_model.pb", tmp_path / "same-too")
    integrity.check(version)
    assert onnx.load(tmp_path / "same")
