import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from google.protobuf import text_format
from tensorflow_serving.config import model_server_config_pb2

from bookserve.export.errors import ConfigError, StoreError
from bookserve.export.manifest import Manifest
from bookserve.export.store import ModelStore
from bookserve.serving.server.models import config as model_config
from bookserve.serving.server.models import version_policy


def publish(store: ModelStore, manifest: Manifest, model: str = "mnist", content: str = "graph") -> Manifest:
    with store.staging(model) as folder:
        (folder / "assets.extra").mkdir()
        (folder / "saved_model.pb").write_text(content)
        return store.publish(model, folder, lambda version: replace(manifest, model=model, version=version))


def test_versions_count_up_and_carry_their_number(tmp_path: Path, manifest: Manifest) -> None:
    store = ModelStore(tmp_path / "models")
    assert [publish(store, manifest, content=text).version for text in "abc"] == [1, 2, 3]
    assert store.versions("mnist") == [1, 2, 3]
    assert store.manifest("mnist").version == 3
    assert store.manifest("mnist", 2).version == 2
    assert (store.path("mnist", 1) / "saved_model.pb").read_text() == "a"
    assert sorted(path.name for path in (tmp_path / "models" / "mnist").iterdir()) == ["1", "2", "3"]


def test_versions_are_ordered_by_number_and_other_names_are_none(tmp_path: Path, manifest: Manifest) -> None:
    store = ModelStore(tmp_path)
    for name in ("2", "10", "007", "0", "-3", "1.5", "notes", ".publishing-x"):
        (tmp_path / "mnist" / name).mkdir(parents=True)
    (tmp_path / "mnist" / "11").write_text("a file is no version")
    assert store.versions("mnist") == [2, 10]
    assert store.path("mnist").name == "10"


def test_a_number_taken_by_something_else_is_passed_over(tmp_path: Path, manifest: Manifest) -> None:
    (tmp_path / "mnist").mkdir()
    (tmp_path / "mnist" / "1").write_text("a file in the way")
    assert publish(ModelStore(tmp_path), manifest).version == 2


def test_what_is_not_there_is_named_with_what_is(tmp_path: Path, manifest: Manifest) -> None:
    store = ModelStore(tmp_path)
    with pytest.raises(StoreError, match=r"no model 'mnist' \(models: none\)"):
        store.path("mnist")
    publish(store, manifest)
    with pytest.raises(StoreError, match=r"no model 'cifar' \(models: mnist\)"):
        store.path("cifar")
    with pytest.raises(StoreError, match=r"mnist has no version 4 \(versions: 1\)"):
        store.path("mnist", 4)


@pytest.mark.parametrize("name", ["../mnist", "a/b", "a:b", "", ".hidden", "a b", "-x"])
def test_a_name_that_is_no_folder_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(StoreError, match="cannot be the name of a model"), ModelStore(tmp_path).staging(name):
        pass
    assert list(tmp_path.iterdir()) == []


def test_the_name_that_the_gateway_needs_for_its_list_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot be called 'models'"), ModelStore(tmp_path).staging("models"):
        pass
    assert list(tmp_path.iterdir()) == []
    for name in ("model", "models2", "Models"):
        with ModelStore(tmp_path).staging(name):
            pass


def test_a_failed_publisher_leaves_nothing(tmp_path: Path) -> None:
    store = ModelStore(tmp_path)

    def fail() -> None:
        with store.staging("mnist") as folder:
            (folder / "half").write_text("x")
            raise RuntimeError("the conversion failed")

    with pytest.raises(RuntimeError, match="conversion failed"):
        fail()
    assert store.models() == []
    assert not (tmp_path / "mnist").exists()


def test_the_config_is_what_tensorflow_serving_reads(tmp_path: Path, manifest: Manifest) -> None:
    root = tmp_path / 'mod"els\\é'
    store = ModelStore(root)
    publish(store, manifest)
    publish(store, manifest, "cifar10")
    config = text_format.Parse((root / "models.config").read_text("ascii"), model_server_config_pb2.ModelServerConfig())
    entries = config.model_config_list.config
    assert [(entry.name, entry.base_path, entry.model_platform) for entry in entries] == [
        ("cifar10", str(root / "cifar10"), "tensorflow"),
        ("mnist", str(root / "mnist"), "tensorflow"),
    ]
    assert sorted(path.name for path in root.iterdir()) == [".models.config.lock", "cifar10", "mnist", "models.config"]
    assert (root / "models.config").stat().st_mode & 0o777 == 0o644


def entry(store: ModelStore, model: str = "mnist") -> model_server_config_pb2.ModelConfig:
    """The model's part of `models.config`, as TensorFlow Serving's own messages parse it."""
    text = (store.root / "models.config").read_text("ascii")
    config = text_format.Parse(text, model_server_config_pb2.ModelServerConfig())
    return next(item for item in config.model_config_list.config if item.name == model)


def loaded(store: ModelStore) -> set[int]:
    """The versions that our own model server loads from the store; the highest is its default."""
    (setting,) = model_config.discover(store.root)
    return version_policy.wanted(setting.policy, version_policy.versions_on_disk(setting.base_path))


def test_without_labels_the_servers_find_the_newest_by_themselves(tmp_path: Path, manifest: Manifest) -> None:
    store = ModelStore(tmp_path)
    publish(store, manifest)
    publish(store, manifest)
    assert not entry(store).HasField("model_version_policy")
    assert store.default_version("mnist") == 2
    assert loaded(store) == {2}


def test_labelled_versions_stay_loaded_and_labels_survive_a_publish(tmp_path: Path, manifest: Manifest) -> None:
    store = ModelStore(tmp_path)
    for _ in range(4):
        publish(store, manifest)
    store.label("mnist", "stable", 1)
    store.label("mnist", "canary", 4)
    assert dict(entry(store).version_labels) == {"canary": 4, "stable": 1}
    assert loaded(store) == {1, 3, 4}
    publish(store, manifest)
    assert dict(entry(store).version_labels) == {"canary": 4, "stable": 1}
    assert loaded(store) == {1, 4, 5}
    (setting,) = model_config.discover(store.root)
    assert setting.labels == {"canary": 4, "stable": 1}
    store.label("mnist", "stable", 4)
    assert dict(entry(store).version_labels) == {"canary": 4, "stable": 4}
    store.unlabel("mnist", "stable")
    store.unlabel("mnist", "canary")
    assert not entry(store).version_labels
    assert not entry(store).HasField("model_version_policy")


@pytest.mark.parametrize("label", ["", "1", "a b", "é", "a/b", '"', "-x", "x" * 64, "a\n", "a:predict"])
def test_a_name_that_no_url_could_carry_is_no_label(tmp_path: Path, manifest: Manifest, label: str) -> None:
    store = ModelStore(tmp_path)
    publish(store, manifest)
    with pytest.raises(StoreError, match="is no label: a letter, then"):
        store.label("mnist", label, 1)
    assert not entry(store).version_labels


def test_what_cannot_be_labelled_is_named_with_what_can(tmp_path: Path, manifest: Manifest) -> None:
    store = ModelStore(tmp_path)
    publish(store, manifest)
    with pytest.raises(StoreError, match=r"mnist has no version 7 \(versions: 1\)"):
        store.label("mnist", "stable", 7)
    with pytest.raises(StoreError, match=r"no model 'cifar' \(models: mnist\)"):
        store.label("cifar", "stable", 1)
    with pytest.raises(StoreError, match=r"mnist has no label 'stable' \(labels: none\)"):
        store.unlabel("mnist", "stable")


def test_a_rollback_holds_until_the_next_publish(tmp_path: Path, manifest: Manifest) -> None:
    store = ModelStore(tmp_path)
    for _ in range(4):
        publish(store, manifest)
    assert store.roll_back("mnist") == (3, [])
    assert loaded(store) == {3}
    assert list(entry(store).model_version_policy.specific.versions) == [3]
    assert store.roll_back("mnist") == (2, [])
    assert (store.default_version("mnist"), loaded(store)) == (2, {2})
    assert publish(store, manifest).version == 5
    assert (store.default_version("mnist"), loaded(store)) == (5, {5})


def test_a_rollback_to_the_newest_ends_it(tmp_path: Path, manifest: Manifest) -> None:
    store = ModelStore(tmp_path)
    for _ in range(3):
        publish(store, manifest)
    store.roll_back("mnist", 1)
    assert loaded(store) == {1}
    store.roll_back("mnist", 3)
    assert loaded(store) == {3}
    assert not entry(store).HasField("model_version_policy")


def test_labels_above_the_target_of_a_rollback_move_to_it(tmp_path: Path, manifest: Manifest) -> None:
    store = ModelStore(tmp_path)
    for _ in range(4):
        publish(store, manifest)
    store.label("mnist", "old", 1)
    store.label("mnist", "canary", 4)
    assert store.roll_back("mnist") == (3, ["canary"])
    assert dict(entry(store).version_labels) == {"canary": 3, "old": 1}
    assert loaded(store) == {1, 3}
    with pytest.raises(StoreError, match=r"rolled back to version 3: .* 'bookserve models rollback mnist --to 4'"):
        store.label("mnist", "canary", 4)
    publish(store, manifest)
    assert dict(entry(store).version_labels) == {"canary": 3, "old": 1}
    assert loaded(store) == {1, 3, 4, 5}


def test_there_must_be_something_to_roll_back_to(tmp_path: Path, manifest: Manifest) -> None:
    store = ModelStore(tmp_path)
    publish(store, manifest)
    with pytest.raises(StoreError, match="mnist has no version before 1"):
        store.roll_back("mnist")
    with pytest.raises(StoreError, match="mnist has no version 2"):
        store.roll_back("mnist", 2)


def test_a_label_of_a_deleted_version_is_forgotten(tmp_path: Path, manifest: Manifest) -> None:
    store = ModelStore(tmp_path)
    for _ in range(3):
        publish(store, manifest)
    store.label("mnist", "stable", 1)
    store.roll_back("mnist", 2)
    for version in ("1", "2"):
        shutil.rmtree(tmp_path / "mnist" / version)
    assert store.release("mnist").labels == {}
    assert store.default_version("mnist") == 3


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"labels": {"a": "1"}, "rolled_back_to": null}', "\0"])
def test_damaged_labels_of_an_older_store_stop_a_publish_before_it_begins(
    tmp_path: Path, manifest: Manifest, text: str
) -> None:
    store = ModelStore(tmp_path)
    publish(store, manifest)
    (tmp_path / "mnist" / "labels.json").write_text(text)
    with pytest.raises(StoreError, match=r"mnist/labels\.json cannot be read \(.*\): fix it, or delete it"):
        publish(store, manifest, "cifar10")
    assert store.models() == ["mnist"]


def test_labels_and_rollback_of_an_older_store_are_taken_over(tmp_path: Path, manifest: Manifest) -> None:
    store = ModelStore(tmp_path)
    for _ in range(3):
        publish(store, manifest)
    old = tmp_path / "mnist" / "labels.json"
    old.write_text('{"labels": {"stable": 1}, "rolled_back_to": 2}')
    assert (store.default_version("mnist"), dict(store.release("mnist").labels)) == (2, {"stable": 1})
    assert not store.is_told()
    store.label("mnist", "canary", 2)
    assert not old.exists()
    assert (store.default_version("mnist"), dict(entry(store).version_labels)) == (2, {"canary": 2, "stable": 1})
    assert loaded(store) == {1, 2}
    assert store.is_told()


@pytest.mark.parametrize("text", ["{", "[]", "model_config_list {", "\0"])
def test_damaged_labels_stop_a_publish_before_it_begins(tmp_path: Path, manifest: Manifest, text: str) -> None:
    store = ModelStore(tmp_path)
    publish(store, manifest)
    (tmp_path / "models.config").write_text(text)
    with pytest.raises(StoreError, match=r"models\.config cannot be read \((.|\n)*\): fix it, or delete it"):
        publish(store, manifest, "cifar10")
    assert store.models() == ["mnist"]


def test_labels_set_and_versions_published_at_once_are_all_kept(tmp_path: Path, manifest: Manifest) -> None:
    publish(ModelStore(tmp_path), manifest)

    def work(number: int) -> None:
        for turn in range(5):
            ModelStore(tmp_path).label("mnist", f"label{number}-{turn}", 1)
            publish(ModelStore(tmp_path), manifest)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    store = ModelStore(tmp_path)
    assert set(entry(store).version_labels) == {f"label{number}-{turn}" for number in range(4) for turn in range(5)}
    assert loaded(store) == {1, 20, 21}
    assert (tmp_path / "models.config").read_text() == store.config_text()
    assert not [path.name for path in tmp_path.rglob(".*") if path.name != ".models.config.lock"]


def test_a_full_disk_after_the_publish_is_told_as_what_it_is(
    tmp_path: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ModelStore(tmp_path)
    publish(store, manifest)

    def full(path: Path, text: str) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("bookserve.export.store.replace_file", full)
        with pytest.raises(ConfigError) as caught:
            publish(store, manifest, "cifar10")
    assert str(caught.value).startswith(f"cifar10 version 1 is published in {tmp_path / 'cifar10' / '1'}, but ")
    assert "No space left on device" in str(caught.value)
    assert store.versions("cifar10") == [1]
    assert "cifar10" not in (tmp_path / "models.config").read_text()
    store.write_config()
    assert entry(store, "cifar10").base_path == str(tmp_path / "cifar10")


def test_a_full_disk_before_the_publish_changes_nothing(
    tmp_path: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ModelStore(tmp_path)
    publish(store, manifest)
    store.label("mnist", "stable", 1)
    before = (tmp_path / "models.config").read_text()

    def full(path: Path, text: str) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("bookserve.export.store.replace_file", full)
        with pytest.raises(StoreError, match="No space left on device"):
            publish(store, manifest)
    assert store.versions("mnist") == [1]
    assert (tmp_path / "models.config").read_text() == before


def test_a_labelled_model_is_served_by_its_new_version_from_the_rename_on(
    tmp_path: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ModelStore(tmp_path)
    for _ in range(3):
        publish(store, manifest)
    store.label("mnist", "stable", 1)
    store.roll_back("mnist", 2)
    seen = []
    real = Path.rename

    def rename(self: Path, target: Path) -> Path:
        seen.append((store.default_version("mnist"), loaded(store)))
        renamed = real(self, target)
        seen.append((store.default_version("mnist"), loaded(store)))
        return renamed

    monkeypatch.setattr(Path, "rename", rename)
    publish(store, manifest)
    assert seen == [(2, {1, 2}), (4, {1, 2, 4})]
    assert (store.default_version("mnist"), loaded(store)) == (4, {1, 3, 4})


def test_a_label_moves_in_two_steps(tmp_path: Path, manifest: Manifest) -> None:
    """As TensorFlow Serving refuses a config that loads a version and moves a label to it."""
    store = ModelStore(tmp_path)
    for _ in range(4):
        publish(store, manifest)
    store.label("mnist", "stable", 4)
    seen = []

    def look(versions: list[int]) -> None:
        seen.append((versions, loaded(store), dict(entry(store).version_labels)))

    store.label("mnist", "stable", 2, look)  # 3 and 4 are loaded, too
    assert seen.pop() == ([2, 3, 4], {2, 3, 4}, {"stable": 4})
    assert (loaded(store), dict(entry(store).version_labels)) == ({2, 3, 4}, {"stable": 2})
    store.label("mnist", "stable", 3, look)
    assert seen.pop() == ([3, 4], {2, 3, 4}, {"stable": 2})
    assert store.roll_back("mnist", 1, look) == (1, ["stable"])
    assert seen.pop() == ([1], {1, 3, 4}, {"stable": 3})
    assert (loaded(store), dict(entry(store).version_labels)) == ({1}, {"stable": 1})


def test_where_a_version_is_not_loaded_nothing_changes(tmp_path: Path, manifest: Manifest) -> None:
    store = ModelStore(tmp_path)
    for _ in range(3):
        publish(store, manifest)
    store.label("mnist", "stable", 3)
    before = (tmp_path / "models.config").read_text()

    def fail(versions: list[int]) -> None:
        raise StoreError("version 1 is END (it is broken)")

    with pytest.raises(StoreError, match="it is broken"):
        store.roll_back("mnist", 1, fail)
    with pytest.raises(StoreError, match="it is broken"):
        store.label("mnist", "other", 1, fail)
    assert before == (tmp_path / "models.config").read_text()


def test_base_paths_are_absolute(tmp_path: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    publish(ModelStore(Path("models")), manifest)
    assert f'base_path: "{tmp_path}/models/mnist"' in (tmp_path / "models" / "models.config").read_text()


def test_writers_with_nothing_to_publish_do_not_take_the_folder_from_others(tmp_path: Path) -> None:
    failed: list[BaseException] = []

    def work() -> None:
        for _ in range(200):
            try:
                with suppress(RuntimeError), ModelStore(tmp_path).staging("mnist") as folder:
                    (folder / "saved_model.pb").write_text("half")
                    raise RuntimeError("nothing to publish")
            except Exception as error:
                failed.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # threads change often, and so meet at every line
    try:
        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert failed == []
    assert not (tmp_path / "mnist").exists()


def test_a_file_in_place_of_a_models_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "mnist").write_text("no folder")
    with pytest.raises(StoreError, match=r"mnist is a file, .*: move it"), ModelStore(tmp_path).staging("mnist"):
        pass
    assert (tmp_path / "mnist").read_text() == "no folder"


def test_publishers_at_once_never_overwrite_one_another(tmp_path: Path, manifest: Manifest) -> None:
    store = ModelStore(tmp_path)
    published: list[tuple[int, str]] = []

    def work(number: int) -> None:
        for turn in range(4):
            with suppress(RuntimeError), ModelStore(tmp_path).staging(f"m{number % 2}"):
                raise RuntimeError("nothing to publish")
            text = f"{number}.{turn}"
            published.append((publish(ModelStore(tmp_path), manifest, f"m{number % 2}", text).version, text))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(published) == 24
    for model in ("m0", "m1"):
        assert store.versions(model) == list(range(1, 13))
    for version, text in published:
        folder = store.path(f"m{int(text[0]) % 2}", version)
        assert (folder / "saved_model.pb").read_text() == text
        assert store.manifest(folder.parent.name, version).version == version
    assert (tmp_path / "models.config").read_text() == store.config_text()


def test_a_taken_number_at_the_rename_leads_to_the_next(
    tmp_path: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ModelStore(tmp_path)
    publish(store, manifest, content="first")
    numbers = iter([1, 2])
    monkeypatch.setattr(ModelStore, "_next_version", lambda *_: next(numbers))
    assert publish(store, manifest, content="second").version == 2
    assert (tmp_path / "mnist" / "1" / "saved_model.pb").read_text() == "first"


PUBLISHER = """
import sys, time
from pathlib import Path
from bookserve.export.store import ModelStore
with ModelStore(Path(sys.argv[1])).staging("mnist") as folder:
    (folder / "saved_model.pb").write_text("half")
    print(folder, flush=True)
    time.sleep(120)
"""


def test_a_killed_publisher_is_ignored_and_its_leftovers_are_removed(tmp_path: Path, manifest: Manifest) -> None:
    store = ModelStore(tmp_path)
    process = subprocess.Popen([sys.executable, "-c", PUBLISHER, tmp_path], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout:
        left = Path(process.stdout.readline().strip())
        assert publish(store, manifest).version == 1
        assert left.is_dir(), "a living publisher's folder must stay"
        process.send_signal(signal.SIGKILL)
        process.wait(10)
    assert left.is_dir()
    assert store.versions("mnist") == [1]
    assert publish(store, manifest).version == 2
    assert sorted(path.name for path in (tmp_path / "mnist").iterdir()) == ["1", "2"]


def test_readers_never_see_half_a_version(tmp_path: Path, manifest: Manifest) -> None:
    store = ModelStore(tmp_path)
    stop = threading.Event()
    torn: list[str] = []

    def read() -> None:
        while not stop.is_set():
            for version in store.versions("mnist"):
                if not (store.path("mnist", version) / "saved_model.pb").exists():
                    torn.append(f"version {version}")
                store.manifest("mnist", version)
            if (tmp_path / "models.config").exists():
                text = (tmp_path / "models.config").read_text()
                if not text.endswith("}\n"):
                    torn.append(text)

    reader = threading.Thread(target=read)
    reader.start()
    deadline = time.monotonic() + 1.5
    while time.monotonic() < deadline:
        publish(store, manifest)
    stop.set()
    reader.join()
    assert torn == []
    assert len(store.versions("mnist")) > 3


def test_everything_is_on_disk_before_the_version_appears(
    tmp_path: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    real_fsync, real_rename = os.fsync, Path.rename

    def fsync(descriptor: int) -> None:
        synced.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        real_fsync(descriptor)

    def rename(self: Path, target: Path) -> Path:
        written = {str(path) for path in self.rglob("*")} | {str(self)}
        assert written <= set(synced)
        return real_rename(self, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "rename", rename)
    publish(ModelStore(tmp_path), manifest)
    assert str(tmp_path / "mnist") in synced
