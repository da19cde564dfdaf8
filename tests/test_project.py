"""The project's own rules: every package is listed, every room imports only what it may, a wheel carries everything."""

import ast
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from itertools import chain
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("training", "export", "serving", "clients")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

# The floors of the model server, from the roof down: a room imports only from the floors below its own, and the wire.
SERVER = "bookserve.serving.server"
SERVER_FLOORS = (
    ("main", "worker_main"),
    ("model_server", "supervisor"),
    ("assembly",),
    ("workers",),
    ("api",),
    ("observability",),
    ("inference",),
    ("models",),
    ("batching",),
    ("engines", "transport"),
    ("settings",),
    ("types",),
)

CONTRACTS = "bookserve.export.contracts"
# Package -> what of bookserve it may import, itself aside. A longer name goes before a shorter one.
MAY_IMPORT = {
    "bookserve.training.errors": set[str](),
    "bookserve.training.plots": set[str](),
    "bookserve.training.datasets.molecule_features": {
        "bookserve.clients.inputs.molecules",
        "bookserve.training.datasets",
    },
    "bookserve.training.datasets.picture_folder": {
        "bookserve.clients.inputs.pictures",
        "bookserve.training.datasets",
    },
    "bookserve.training.datasets": set[str](),
    "bookserve.training.devices": {"bookserve.training.errors"},
    "bookserve.training.loop": {"bookserve.training.devices", "bookserve.training.errors"},
    "bookserve.training.tuning.search_space": set[str](),
    "bookserve.training.models": {
        CONTRACTS,
        "bookserve.export.evaluation",
        "bookserve.export.figures",
        "bookserve.training.datasets",
        "bookserve.training.devices",
        "bookserve.training.errors",
        "bookserve.training.loop",
        "bookserve.training.plots",
        "bookserve.training.tuning.search_space",
    },
    "bookserve.training.run_writer": {"bookserve.export"},
    "bookserve.training.run": {
        "bookserve.export",
        "bookserve.training.datasets",
        "bookserve.training.devices",
        "bookserve.training.errors",
        "bookserve.training.loop",
        "bookserve.training.models",
        "bookserve.training.plots",
        "bookserve.training.run_writer",
    },
    "bookserve.training.tuning": {
        "bookserve.export.silence_tensorflow",
        "bookserve.training.datasets",
        "bookserve.training.errors",
        "bookserve.training.models",
        "bookserve.training.plots",
        "bookserve.training.run",
    },
    "bookserve.training.held_out_rows": {
        "bookserve.export",
        "bookserve.training.datasets",
        "bookserve.training.errors",
        "bookserve.training.models",
        "bookserve.training.run",
        "bookserve.training.tuning",
    },
    "bookserve.training": {"bookserve.export"},  # the commands, on top
    "bookserve.export": {"bookserve.serving.wire"},
    "bookserve.serving.wire": set[str](),
    **{
        f"{SERVER}.{room}": {
            "bookserve.serving.wire",
            *(f"{SERVER}.{below}" for below in chain(*SERVER_FLOORS[floor:])),
        }
        for floor, rooms in enumerate(SERVER_FLOORS, 1)
        for room in rooms
    },
    SERVER: set[str](),
    "bookserve.serving.gateway": {
        CONTRACTS,
        "bookserve.export.errors",
        "bookserve.export.example_inputs",
        "bookserve.serving.wire",
        "bookserve.clients",
    },
    # In this process it runs the engine that serves.
    "bookserve.serving.batch": {
        "bookserve.clients",
        "bookserve.export",
        f"{SERVER}.batching",
        f"{SERVER}.engines",
        f"{SERVER}.models",
        f"{SERVER}.types",
        "bookserve.serving.wire",
    },
    "bookserve.serving": {CONTRACTS, "bookserve.clients", "bookserve.export.options", "bookserve.serving.wire"},
    "bookserve.clients.doctor": {"bookserve.export", "bookserve.training.datasets", "bookserve.training.models"},
    "bookserve.clients.evaluate": {
        "bookserve.clients",
        "bookserve.export",
        "bookserve.training.datasets",
        "bookserve.training.errors",
        "bookserve.training.held_out_rows",
    },
    "bookserve.clients": {
        CONTRACTS,
        "bookserve.export.errors",
        "bookserve.export.example_inputs",
        "bookserve.serving.wire",
    },
}
# These load TensorFlow when they are asked to, never when they are imported.
WITHOUT_TENSORFLOW = ("serving", "clients")


@cache
def modules() -> dict[str, Path]:
    return dict(_modules())


def _modules() -> Iterator[tuple[str, Path]]:
    for room in ROOMS:
        for path in sorted((ROOT / room).rglob("*.py")):
            if path.parts[len(ROOT.parts) : len(ROOT.parts) + 2] == ("clients", "examples"):
                continue
            parts = path.relative_to(ROOT).with_suffix("").parts
            yield ".".join(("bookserve", *(part for part in parts if part != "__init__"))), path


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


@pytest.mark.parametrize("module", modules())
def test_every_room_imports_only_what_it_may(module: str) -> None:
    path = modules()[module]
    own = next(package for package in MAY_IMPORT if within(module, package))
    for name in imported(parsed(path)):
        if within(name, "bookserve") and not within(name, own):
            assert any(within(name, allowed) for allowed in MAY_IMPORT[own]), f"{module} may not import {name}"


def test_every_room_of_the_server_stands_on_a_floor() -> None:
    rooms = {name.removeprefix(f"{SERVER}.").split(".")[0] for name in modules() if name.startswith(f"{SERVER}.")}
    assert rooms == set(chain(*SERVER_FLOORS))


def test_no_modules_import_each_other_in_a_circle() -> None:
    known = modules()
    imports: dict[str, set[str]] = {}
    for module, path in known.items():
        names = {name if name in known else name.rpartition(".")[0] for name in imported(parsed(path))}
        imports[module] = {name for name in names if name in known and name != module}
    TopologicalSorter(imports).prepare()  # raises CycleError, which names the circle


@pytest.mark.parametrize("room", WITHOUT_TENSORFLOW)
def test_tensorflow_is_never_imported_at_import_time(room: str) -> None:
    for module, path in modules().items():
        if within(module, f"bookserve.{room}"):
            for node in parsed(path).body:
                if isinstance(node, ast.Import | ast.ImportFrom):
                    assert not any(name.split(".")[0] in ("tensorflow", "keras") for name in imported(node)), module


# The only files outside `training/models/` and the data sets in which a model of the book may be named, and why.
NAMES_BOOK_MODELS = {
    "clients/gateway_methods.py": "methods by the models' names are public; each is one line over the task's method",
    "serving/wire/pictures.py": "the address of the page that describes the rule",
    "export/converters/lightgbm_model.py": "LightGBM calls trees with a regression in each leaf so",
    "export/converters/xgboost_model.py": "XGBoost calls its objectives so",
}
BOOK_MODEL = re.compile(r"tox21|mnist|cifar-?10|tictactoe|\b(ptb|linear|logistic)(_[a-z]+)?\b", re.IGNORECASE)
TEXT = {".py", ".pyi", ".html", ".js", ".css", ".json", ".proto", ".txt"}


def test_no_other_file_names_a_model_of_the_book() -> None:
    found = set()
    for path in chain.from_iterable((ROOT / room).rglob("*") for room in ROOMS):
        name = path.relative_to(ROOT).as_posix()
        if path.suffix in TEXT and not name.startswith(("training/models/", "training/datasets/")):
            found |= {name} if BOOK_MODEL.search(path.read_text(encoding="utf-8")) else set()
    assert found == NAMES_BOOK_MODELS.keys()


def test_every_package_folder_is_listed() -> None:
    folders = {
        ".".join(("bookserve", *path.parent.relative_to(ROOT).parts))
        for room in ROOMS
        for path in (ROOT / room).rglob("__init__.py")
    }
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == folders


def test_every_command_is_documented_by_help() -> None:
    from click.testing import CliRunner

    from bookserve.clients.command_line import COMMANDS, main

    listed = CliRunner().invoke(main, ["--help"]).output
    for command in COMMANDS:
        assert command in listed
        shown = CliRunner().invoke(main, [command, "--help"])
        assert shown.exit_code == 0, shown.output


def test_the_wheel_carries_every_module_and_data_file(tmp_path: Path) -> None:
    shutil.rmtree(ROOT / "build", ignore_errors=True)  # what it holds would go into the wheel
    done = subprocess.run(
        [Path(sys.executable).parent / "uv", "build", "--quiet", "--wheel", "--out-dir", tmp_path, ROOT],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    for module, path in modules().items():
        relative = path.relative_to(ROOT)
        assert f"bookserve/{relative}" in names, module
    for folder in ("page", "templates"):
        for path in (ROOT / "serving/gateway" / folder).rglob("*.*"):
            assert f"bookserve/{path.relative_to(ROOT)}" in names
    for room in ROOMS:
        assert f"bookserve/{room}/py.typed" in names
    assert "bookserve/clients/javascript/bookserve.js" in names  # which the page of the gateway loads
