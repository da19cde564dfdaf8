import errno
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from bookserve.clients.command_line import main
from bookserve.export import manifest as manifests
from bookserve.export.manifest import Manifest
from bookserve.export.store import ModelStore


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def store(tmp_path: Path, manifest: Manifest) -> ModelStore:
    """Two versions whose only file is their graph."""
    store = ModelStore(tmp_path / "models")
    for _ in range(2):
        with store.staging("mnist") as folder:
            (folder / "assets.extra").mkdir()
            (folder / "saved_model.pb").write_text("graph")
            whole = replace(manifest, files=manifests.digests(folder))
            store.publish("mnist", folder, lambda version, whole=whole: replace(whole, version=version))
    return store


def test_list_has_a_line_a_version(store: ModelStore) -> None:
    lines = invoke("models", "list", "--models-dir", store.root).output.splitlines()
    row = ["float32", "standard", "smoke", "sample", "accuracy", "0.5", "2026-01-02T03:04:05+00:00"]
    assert [line.split() for line in lines[1:]] == [["mnist", "1", *row], ["mnist", "2", *row, "default"]]


def test_labels_and_a_rollback_are_set_shown_and_taken_back(store: ModelStore) -> None:
    folder = ("--models-dir", store.root)

    def served() -> list[str]:
        lines = invoke("models", "list", *folder).output.splitlines()
        return [line[lines[0].index("SERVED AS") :] for line in lines[1:]]

    assert invoke("models", "label", "mnist", "stable", "1", *folder).output == (
        "mnist: 'stable' is version 1\n"
        "no server was asked: it takes effect when one starts, or reads models.config again (see --server, --wait)\n"
    )
    invoke("models", "label", "mnist", "canary", "2", *folder)
    assert served() == ["stable", "default, canary"]
    assert "served as default, canary\n" in invoke("models", "show", "mnist", *folder).output
    back = invoke("models", "rollback", "mnist", *folder)
    assert back.output.splitlines()[:2] == [
        "mnist: 'canary' is version 1",
        "mnist: version 1 is the default, until the next one is published",
    ]
    assert served() == ["default, canary, stable", ""]
    assert "served as nothing" in invoke("models", "show", "mnist", "2", *folder).output
    assert "is the default\n" in invoke("models", "rollback", "mnist", "--to", "2", *folder).output
    assert "is no label any more" in invoke("models", "unlabel", "mnist", "canary", *folder).output
    assert served() == ["stable", "default"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["label", "mnist", "stable", "9"], "(versions: 1, 2)"),
        (["label", "mnist", "9", "1"], "'9' is no label"),
        (["label", "cifar", "stable", "1"], "(models: mnist)"),
        (["unlabel", "mnist", "stable"], "(labels: none)"),
        (["rollback", "mnist", "--to", "9"], "(versions: 1, 2)"),
        (["rollback", "cifar"], "(models: mnist)"),
    ],
)
def test_a_label_or_rollback_that_cannot_be_says_why(store: ModelStore, arguments: list[str], message: str) -> None:
    before = (store.root / "models.config").read_text()
    result = invoke("models", *arguments, "--models-dir", store.root)
    assert result.exit_code == 1
    assert message in result.output
    assert (store.root / "models.config").read_text() == before


@pytest.mark.parametrize(
    "arguments",
    [["label", "mnist", "stable", "1"], ["unlabel", "mnist", "old"], ["rollback", "mnist"], ["config"]],
)
def test_a_store_that_cannot_be_written_to_says_so(
    store: ModelStore, arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store.label("mnist", "old", 1)
    before = {path: path.read_bytes() for path in store.root.rglob("*.*") if path.is_file()}

    def refuse(*_: object, **__: object) -> tuple[int, str]:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))  # as root may write to any other folder

    monkeypatch.setattr(tempfile, "mkstemp", refuse)
    result = invoke("models", *arguments, "--models-dir", store.root)
    assert result.exit_code == 1
    assert result.output == f"Error: cannot write to {store.root}: Read-only file system\n"
    assert {path: path.read_bytes() for path in before} == before


def test_the_address_of_a_remote_store_is_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for command in (["models", "list"], ["export", "mnist"], ["doctor"], ["train-all"]):
        result = invoke(*command, "--models-dir", "s3://bucket/models")
        assert result.exit_code == 2
        assert "is the address of a remote store: give a local folder, or mount it" in " ".join(result.output.split())
    assert list(tmp_path.iterdir()) == []


def test_a_copied_store_is_told_of_and_mended(store: ModelStore, tmp_path: Path) -> None:
    assert "warning" not in invoke("models", "list", "--models-dir", store.root).output
    copy = tmp_path / "copy"
    shutil.copytree(store.root, copy)
    listed = invoke("models", "list", "--models-dir", copy).output
    assert f"models.config has mnist in {store.root / 'mnist'}, not in this store: 'bookserve models config'" in listed
    assert invoke("models", "config", "--models-dir", copy).output == f"{copy / 'models.config'} names mnist\n"
    assert "warning" not in invoke("models", "list", "--models-dir", copy).output


def test_a_store_for_a_container_has_base_paths_of_its_mount_there(store: ModelStore, tmp_path: Path) -> None:
    host = tmp_path / "host"
    shutil.copytree(store.root, host)
    told = invoke("models", "config", "--models-dir", host, "--root", "/models/").output
    assert told == f"{host / 'models.config'} names mnist below /models\n"
    assert 'base_path: "/models/mnist"' in (host / "models.config").read_text()
    assert "warning" not in invoke("models", "list", "--models-dir", host).output
    # What changes the store later keeps that place, and one command takes it back.
    invoke("models", "label", "mnist", "canary", "1", "--models-dir", host)
    shutil.copytree(host / "mnist", host / "another")
    listed = invoke("models", "list", "--models-dir", host).output
    assert "'bookserve models config --root /models' mends that" in listed
    ModelStore(host).label("mnist", "stable", 1)
    text = (host / "models.config").read_text()
    assert 'base_path: "/models/mnist"' in text
    assert 'base_path: "/models/another"' in text
    assert str(host) not in text
    for back in ((), ("--root", host)):
        invoke("models", "config", "--models-dir", host, "--root", "s3://bucket/models")
        assert 'base_path: "s3://bucket/models/mnist"' in (host / "models.config").read_text()
        told = invoke("models", "config", "--models-dir", host, *back).output
        assert told == f"{host / 'models.config'} names another, mnist\n"
        assert "# root" not in (host / "models.config").read_text()
    assert "stable" in (host / "models.config").read_text()


@pytest.mark.parametrize("root", ["models", "./models", "", "~/models"])
def test_a_root_that_a_server_would_not_find_is_refused(store: ModelStore, root: str) -> None:
    before = (store.root / "models.config").read_bytes()
    result = invoke("models", "config", "--models-dir", store.root, "--root", root)
    assert result.exit_code == 1
    assert "the root must be an absolute path, such as /models" in result.output
    assert (store.root / "models.config").read_bytes() == before


def test_list_warns_of_damaged_labels(store: ModelStore) -> None:
    (store.root / "models.config").write_text("{")
    result = invoke("models", "list", "--models-dir", store.root)
    assert result.exit_code == 0
    assert "fix it, or delete it" in result.output


def test_list_warns_where_a_publisher_was_killed_before_it_told_of_a_first_version(store: ModelStore) -> None:
    shutil.copytree(store.root / "mnist", store.root / "cifar10")
    listed = invoke("models", "list", "--models-dir", store.root).output
    assert "warning: models.config does not tell of all that is here: 'bookserve models config' mends that" in listed
    invoke("models", "config", "--models-dir", store.root)
    assert "warning" not in invoke("models", "list", "--models-dir", store.root).output


def test_an_empty_store_says_how_to_fill_it(tmp_path: Path) -> None:
    result = invoke("models", "list", "--models-dir", tmp_path / "none")
    assert result.exit_code == 1
    assert "bookserve train-all" in result.output


def test_list_shows_a_version_whose_manifest_is_damaged(store: ModelStore) -> None:
    (store.path("mnist", 1) / manifests.LOCATION).write_text("{")
    result = invoke("models", "list", "--models-dir", store.root)
    assert result.exit_code == 0
    assert "mnist  1        ?" in result.output
    assert "warning:" in result.output


def test_show_gives_the_newest_version_or_the_one_asked_for(store: ModelStore) -> None:
    newest = invoke("models", "show", "mnist", "--models-dir", store.root)
    assert newest.exit_code == 0
    assert "mnist version 2, contract mnist/1" in newest.output
    assert "files     1, all as published" in newest.output
    assert "mnist version 1," in invoke("models", "show", "mnist", "1", "--models-dir", store.root).output


def test_show_fails_for_a_changed_file(store: ModelStore) -> None:
    (store.path("mnist") / "saved_model.pb").write_text("another")
    result = invoke("models", "show", "mnist", "--models-dir", store.root)
    assert result.exit_code == 1
    assert "1 files are missing or changed: saved_model.pb" in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", "cifar"], "(models: mnist)"),
        (["show", "mnist", "9"], "(versions: 1, 2)"),
        (["show", "mnist", "0"], "x>=1"),
    ],
)
def test_show_of_something_else_lists_what_there_is(store: ModelStore, arguments: list[str], message: str) -> None:
    result = invoke("models", *arguments, "--models-dir", store.root)
    assert result.exit_code != 0
    assert message in result.output


def test_export_of_an_unknown_model_lists_the_known() -> None:
    result = invoke("export", "mnits")
    assert result.exit_code == 1
    assert "bookserve train mnits" in result.output


def test_export_without_a_run_says_how_to_make_one(tmp_path: Path) -> None:
    result = invoke("export", "mnist", "--runs-dir", tmp_path, "--models-dir", tmp_path / "models")
    assert result.exit_code == 1
    assert "bookserve train mnist" in result.output
    assert not (tmp_path / "models").exists()


def test_export_of_a_broken_off_run_is_refused(tmp_path: Path) -> None:
    run = tmp_path / "mnist" / "20260101-000000.unfinished"
    run.mkdir(parents=True)
    (run / "metrics.json").write_text(json.dumps({}))
    result = invoke("export", "mnist", "--run", run, "--models-dir", tmp_path / "models")
    assert result.exit_code == 1
    assert "is not complete" in result.output


def test_listing_imports_no_tensorflow(store: ModelStore) -> None:
    code = (
        "import sys; from bookserve.clients.command_line import main\n"
        f"try: main(['models', 'list', '--models-dir', {str(store.root)!r}])\n"
        "except SystemExit: sys.exit(any(name in sys.modules for name in ('tensorflow', 'keras', 'onnx')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0
    assert "mnist" in done.stdout
