"""Kills writers of a model store at every step that they take on the file system, and looks at what is left.

A program of its own, so that it may fork: `python killed_writers.py kill|full|at-once FOLDER EVERY` writes a JSON
object with the number of steps of each writer and with what was wrong. Steps are the calls that Python's audit hooks
tell of (open to write, mkdir, rename, remove and so on) and fsync. A child is killed by SIGKILL right before each of
them in turn, or before every EVERYth; with `full` they fail as on a full disk instead.
"""

import errno
import json
import os
import random
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from book_contracts import CONTRACTS
from bookserve.export import manifest, models_config
from bookserve.export.errors import StoreError
from bookserve.export.life import archive
from bookserve.export.manifest import Manifest
from bookserve.export.store import CONFIG, ModelStore

_STEPS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod", "os.truncate", "os.link", "os.symlink")
_FULL = ("open", "os.mkdir", "os.rename")
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
FIRST = "publish the first of a model"
_SERVERS = ", as the servers read it"
Action = Callable[[ModelStore], object]


class Interruption:
    """What happens at a step: nothing while it is not armed."""

    def __init__(self) -> None:
        self.left = -1  # steps until it happens
        self.taken = 0
        self.root = ""
        self.full = False
        os.fsync = lambda _: self._step("os.fsync", ())  # no more: it is not the machine that stops
        sys.addaudithook(self._step)

    def _step(self, event: str, arguments: tuple[object, ...]) -> None:
        if not self.root or (event not in _STEPS and event != "os.fsync"):
            return
        if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & _WRITING):
            return
        if self.full and event not in _FULL:
            return
        self.taken += 1
        if self.taken == self.left:
            if self.full:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.kill(os.getpid(), signal.SIGKILL)


def publish(store: ModelStore, model: str = "m", text: str = "graph") -> Manifest:
    with store.staging(model) as folder:
        (folder / "assets.extra").mkdir()
        (folder / "assets.extra" / "model.onnx").write_text(text * 50)
        (folder / "saved_model.pb").write_text(text)
        made = Manifest(
            model=model,
            version=1,
            created="2026-11-28T15:04:05+00:00",
            contract=replace(CONTRACTS["mnist"], model=model),
            parity={"probabilities": 1e-7},
            files=manifest.digests(folder),
            made_with={"tensorflow": "2.21.0"},
        )
        return store.publish(model, folder, lambda version: replace(made, version=version))


def actions(archived: Path) -> dict[str, Action]:
    return {
        "publish": publish,
        FIRST: lambda store: publish(store, "new"),
        "label": lambda store: store.label("m", "canary", 4),
        "move a label in two steps": lambda store: store.label("m", "stable", 3, lambda _: None),
        "unlabel": lambda store: store.unlabel("m", "stable"),
        "roll back": lambda store: store.roll_back("m", 2, lambda _: None),
        "end a rollback": lambda store: store.roll_back("back", 3, lambda _: None),
        "publish after a rollback": lambda store: publish(store, "back"),
        "remove": lambda store: store.remove("m", 1),
        "config": lambda store: store.write_config(),
        "unpack": lambda store: archive.unpack(store, archived),
        "take over the labels of an older store": lambda store: store.label("old", "canary", 2),
    }


def make(root: Path) -> ModelStore:
    store = ModelStore(root)
    for number in range(4):
        publish(store, text=f"graph {number}")
    store.label("m", "stable", 2)
    for _ in range(3):
        publish(store, "back")
        publish(store, "old")
    store.roll_back("back", 2)
    store.label("old", "stable", 1)
    (root / "old" / "labels.json").write_text('{"labels": {"stable": 1}, "rolled_back_to": null}')
    return store


def seen(store: ModelStore) -> dict[str, object]:
    """What the users of a store see: versions with their content, and what each model is served by."""
    told: dict[str, object] = {}
    for model in store.models():
        release, versions = store.release(model), store.versions(model)
        for version in versions:
            folder = store.path(model, version)
            if manifest.changed_files(folder, manifest.read(folder)):
                raise AssertionError(f"{model} version {version} is not whole")
        told[model] = [versions, dict(release.labels), store.default_version(model)]
    for model, entry in models_config.read(store.root / CONFIG).items():
        told[f"{model}{_SERVERS}"] = [dict(entry.release.labels), max(entry.loaded(store.versions(model)), default=0)]
    return told


def interrupt(interruption: Interruption, root: Path, action: Action, step: int, full: bool) -> tuple[str, bool]:
    """How a child with the action ended that is interrupted at that step, and whether it got so far."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        try:
            interruption.root, interruption.left, interruption.full = str(root), step, full
            action(ModelStore(root))
            told = ""
        except (StoreError, OSError) as error:
            told = str(error)
        except BaseException as error:
            told = f"WRONG {error!r}"
        interruption.root = ""
        os.write(writing, f"{told}\n{interruption.taken}".encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        answer = pipe.read()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return "killed", True
    told, _, taken = answer.rpartition("\n")
    return told, int(taken) >= step


def try_all(folder: Path, every: int, *, full: bool) -> dict[str, object]:
    whole = make(folder / "whole")
    archived = folder / "m.tar.gz"
    elsewhere = ModelStore(folder / "elsewhere")
    publish(elsewhere, text="another")
    for _ in range(8):
        publish(elsewhere)
    archive.pack(elsewhere, "m", 9, archived)
    interruption = Interruption()
    wrong: list[str] = []
    steps: dict[str, int] = {}
    for name, action in actions(archived).items():
        root = folder / "store"

        def restore(root: Path = root) -> ModelStore:
            shutil.rmtree(root, ignore_errors=True)
            shutil.copytree(whole.root, root, copy_function=os.link)  # no file is written to again
            return ModelStore(root)

        store = restore()
        before = seen(store)
        action(store)
        after = seen(store)
        states = [before, after]
        if name == FIRST:  # which models.config names after it is there
            states.append({model: what for model, what in after.items() if model != f"new{_SERVERS}"})
        step = 1 + len(steps) % every
        while True:
            store = restore()
            told, reached = interrupt(interruption, root, action, step, full)
            if not reached:
                break
            where = f"{name}, step {step}"
            try:
                found = seen(store)
                if found not in states:
                    wrong.append(f"{where}: {found} is neither {before} nor {after}")
                if full and (told.startswith("WRONG") or (told and "No space left" not in told)):
                    wrong.append(f"{where}: {told}")
                if full and not told and found != after:
                    wrong.append(f"{where}: it told of no error")
                for model in {"m", *(path.parent.name for path in root.glob("*/.*"))}:
                    publish(store, model)  # the next writer: it removes what is left
                seen(store)
                left = [
                    path.relative_to(root).as_posix() for path in root.rglob(".*") if path.name != ".models.config.lock"
                ]
                if left:
                    wrong.append(f"{where}: {left} is left")
                if not store.is_told():
                    wrong.append(f"{where}: models.config does not tell of all")
            except (AssertionError, StoreError, OSError) as error:
                wrong.append(f"{where}: {error!r}")
            step += every
        steps[name] = step - every
    return {"steps": steps, "wrong": wrong}


def at_once(folder: Path, seed: int = 7) -> dict[str, object]:
    """Six processes write to one store at the same time, none of which is killed; then six that are, at any time."""
    chance = random.Random(seed)
    store = make(folder / "whole")
    archived = folder / "m.tar.gz"
    archive.pack(store, "m", 4, archived)
    wrong: list[str] = []
    work: list[Action] = [
        publish,
        lambda store: publish(store, "back"),
        lambda store: store.label("m", f"l{os.getpid()}", 4),
        lambda store: archive.unpack(store, archived, "moved"),
        lambda store: store.roll_back("back", 2),
        lambda store: [store.remove("m", version) for version in store.versions("m")[:-2]],
    ]
    interruption = Interruption()
    for turn in range(8):
        children = []
        for action in work:
            child = os.fork()
            if child == 0:
                if turn % 2:
                    interruption.root, interruption.left = str(store.root), chance.randrange(1, 40) + turn
                try:
                    action(ModelStore(store.root))
                except StoreError as error:
                    os._exit(0 if "has no version" in str(error) or "is rolled back" in str(error) else 1)
                except BaseException as error:
                    sys.stderr.write(f"{error!r}\n")
                    os._exit(2)
                os._exit(0)
            children.append(child)
        for number, child in enumerate(children):
            _, status = os.waitpid(child, 0)
            if os.WIFEXITED(status) and os.WEXITSTATUS(status):
                wrong.append(f"turn {turn}: writer {number} failed")
        try:
            seen(store)
        except (AssertionError, StoreError) as error:
            wrong.append(f"turn {turn}: {error!r}")
    for model in store.models():
        publish(store, model)
    seen(store)
    left = [path.name for path in store.root.rglob(".*") if path.name != ".models.config.lock"]
    return {"wrong": wrong, "left": left, "told": store.is_told(), "versions": store.versions("m")}


if __name__ == "__main__":
    what, place, every = sys.argv[1:]
    result = at_once(Path(place)) if what == "at-once" else try_all(Path(place), int(every), full=what == "full")
    sys.stdout.write(json.dumps(result))
