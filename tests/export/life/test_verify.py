"""`bookserve models verify` names what is wrong with a version, and starts nothing in this process."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import Result

from bookserve.export import confined
from bookserve.export import manifest as manifests
from bookserve.export.life import verify
from bookserve.export.life.engine_trial import ENGINES
from bookserve.export.store import ModelStore
from bookserve.serving.server.engines import choose

Invoke = Callable[..., Result]


def test_every_version_of_a_store_is_verified(store: ModelStore, invoke: Invoke) -> None:
    result = invoke("models", "verify", "--all", "--models-dir", store.root)
    assert result.exit_code == 0, result.output
    assert result.output.splitlines() == [
        "score version 1",
        "  files: 2, all as published",
        "  assets.extra/model.onnx: ONNX Runtime answers the example as in the manifest, within 0",
        "score version 2",
        "  files: 2, all as published",
        "  assets.extra/model.onnx: ONNX Runtime answers the example as in the manifest, within 0",
        "2 verified",
    ]


def test_files_that_are_missing_changed_or_foreign_are_named(store: ModelStore) -> None:
    folder = store.path("score", 1)
    (folder / "assets.extra/report/card.md").unlink()
    graph = folder / "assets.extra/model.onnx"
    graph.write_bytes(graph.read_bytes().replace(b"scores", b"scorez"))
    (folder / "weights.bin").write_bytes(b"\0")
    (folder / "batching_params.pbtxt").write_text("max_batch_size { value: 8 }")
    (folder / "assets").symlink_to("/etc")
    found = list(verify.verify(folder, confined.Limits(60)))
    assert [(finding.what, finding.told) for finding in found if not finding.good] == [
        ("files", "links, which no version has: assets"),
        ("files", "missing: assets.extra/report/card.md"),
        ("files", "changed: assets.extra/model.onnx"),
        ("files", "not in the manifest: weights.bin"),
        ("assets.extra/model.onnx", "ONNX Runtime: it gives no 'scores' but scorez"),
    ]
    assert found[-2].told == "put there by hand, unchecked: batching_params.pbtxt"


def test_another_answer_than_in_the_manifest_fails_with_the_worst_value(store: ModelStore, invoke: Invoke) -> None:
    shutil.copy(store.path("score", 2) / "assets.extra/model.onnx", store.path("score", 1) / "assets.extra/model.onnx")
    folder = store.path("score", 1)
    described = replace(store.manifest("score", 1), files=manifests.digests(folder))
    (folder / manifests.LOCATION).write_text(described.to_json())
    result = invoke("models", "verify", "score", "1", "--json", "--models-dir", store.root)
    assert result.exit_code == 1
    (told,) = json.loads(result.stdout)
    assert (told["model"], told["version"], told["good"]) == ("score", 1, False)
    assert told["findings"][0] == {"what": "files", "told": "2, all as published", "good": True}
    assert "differ in 'scores' by 0.0250001, more than 0.00038" in told["findings"][1]["told"]
    assert "1 of 1 versions failed: score version 1" in result.stderr


def test_a_graph_that_is_damaged_is_a_line(store: ModelStore, invoke: Invoke) -> None:
    (store.path("score", 2) / "model.tflite").write_bytes(b"\x1c\0\0\0TFL3" + b"\xff" * 64)
    result = invoke("models", "verify", "score", "--models-dir", store.root)
    assert result.exit_code == 1
    assert "  WRONG  model.tflite: LiteRT: " in result.output


def test_a_version_without_a_manifest_says_so(store: ModelStore, invoke: Invoke) -> None:
    (store.root / "by_hand").mkdir()
    shutil.copytree(store.path("score", 1), store.root / "by_hand/4")
    shutil.rmtree(store.root / "by_hand/4/assets.extra/report")
    (store.root / "by_hand/4" / manifests.LOCATION).unlink()
    result = invoke("models", "verify", "by_hand", "--models-dir", store.root)
    assert result.exit_code == 0, result.output
    assert "manifest: there is none, as for a version made by hand: its files are not checked" in result.output
    assert "ONNX Runtime loads it; the manifest has no example" in result.output
    (store.path("score", 1) / manifests.LOCATION).unlink()
    (lost, *_) = verify.verify(store.path("score", 1), confined.Limits(60))
    assert (lost.good, lost.told) == (False, "it is gone: other versions have one (2)")


def test_a_version_that_was_renamed_by_hand_is_found(store: ModelStore) -> None:
    store.path("score", 2).rename(store.root / "score/7")
    (first, *_) = verify.verify(store.root / "score/7", confined.Limits(60))
    assert first.told == "it is that of score version 2: the folder was copied or renamed by hand"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give NAME, or --all"),
        (["score", "1", "--all"], "--all takes no VERSION"),
        (["none"], "(models: score)"),
        (["score", "9"], "(versions: 1, 2)"),
    ],
)
def test_what_cannot_be_verified_is_named(
    store: ModelStore, invoke: Invoke, arguments: list[str], message: str
) -> None:
    result = invoke("models", "verify", *arguments, "--models-dir", store.root)
    assert result.exit_code
    assert message in result.output


def test_the_graphs_are_those_that_the_server_looks_for() -> None:
    text = Path(choose.__file__).read_text()
    for name in ENGINES:
        assert Path(name).name in text


def test_verifying_loads_no_engine_into_the_command(store: ModelStore) -> None:
    code = (
        "import sys; from bookserve.clients.command_line import main\n"
        f"try: main(['models', 'verify', 'score', '--models-dir', {str(store.root)!r}])\n"
        "except SystemExit as end: print(end.code, [m for m in ('onnxruntime', 'tensorflow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.stdout.splitlines()[-1] == "0 []"
