"""What is not installed is told by its package and an extra that brings it."""

import ast
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from bookserve.serving.wire import missing_package

ROOT = Path(__file__).resolve().parents[3]
ROOMS = ("training", "export", "serving", "clients")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# What comes with packages that are named in pyproject.toml.
COMES_ALONG = {"flatbuffers", "h5py", "joblib", "opentelemetry-sdk", "requests", "urllib3", "werkzeug"}
LISTED = {
    canonicalize_name(Requirement(line).name)
    for lines in (PROJECT["dependencies"], *PROJECT["optional-dependencies"].values())
    for line in lines
}


def imported() -> set[str]:
    """The names of other people's modules that the project imports, up to the first dot."""
    names: set[str] = set()
    for path in (path for room in ROOMS for path in (ROOT / room).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                names.update(alias.name.partition(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
                names.add(node.module.partition(".")[0])
    return names - sys.stdlib_module_names - {"bookserve"}


def test_every_module_that_is_imported_is_told_by_a_package_that_an_extra_brings() -> None:
    told = {name: missing_package.package(name) for name in imported()}
    assert len(told) > 30
    assert {name: package for name, package in told.items() if package not in LISTED | COMES_ALONG} == {}
    assert set(told.values()) >= COMES_ALONG


@pytest.mark.parametrize(
    ("module", "extra", "expected"),
    [
        ("google", "clients", "the package 'protobuf': pip install 'bookserve[clients]'"),
        ("google.protobuf", "serving", "the package 'protobuf': pip install 'bookserve[serving]'"),
        ("PIL", "clients", "the package 'pillow': pip install 'bookserve[clients]'"),
        ("rich", "serving,batch", "the package 'rich': pip install 'bookserve[serving,batch]'"),
        ("pyarrow", "serving,batch", "the package 'pyarrow': pip install 'bookserve[serving,batch]'"),
        ("lightgbm", "clients", "the package 'lightgbm': pip install 'bookserve[clients,convert]'"),
        ("keras", "convert", "the package 'keras': pip install 'bookserve[convert,training]'"),
        ("unheard_of", "convert", "the package 'unheard-of': pip install 'bookserve[convert]'"),
    ],
)
def test_the_extra_brings_the_package_or_another_is_named_besides(module: str, extra: str, expected: str) -> None:
    assert missing_package.told(ModuleNotFoundError(name=module), extra) == expected


COMMANDS = {
    "train": ["train", "linear"],
    "export": ["export", "linear"],
    "evaluate": ["evaluate", "score"],
    "models": ["models", "list"],
    "model-server": ["model-server", "--model_root=."],
    "gateway": ["gateway"],
    "batch": ["batch", "score", "rows.csv"],
    "predict": ["predict", "score"],
    "load": ["load", "score"],
}
BARE = """
import sys
from importlib.abc import MetaPathFinder

class Bare(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top not in sys.stdlib_module_names | {"bookserve", "click", "numpy", "packaging", "sitecustomize"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Bare())
from bookserve.clients.command_line import main
main(sys.argv[1:], prog_name="bookserve")
"""


@pytest.mark.parametrize("command", COMMANDS)
def test_without_extras_a_command_says_what_to_install(command: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", BARE, *COMMANDS[command]], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    line = done.stderr.strip()
    start, _, rest = line.partition(f"Error: 'bookserve {command}' needs the package '")
    assert start == "", line
    package, _, install = rest.partition("': pip install 'bookserve[")
    extras = install.removesuffix("]'").split(",")
    requirements = [Requirement(text) for text in metadata.requires("bookserve") or ()]
    brought = {
        canonicalize_name(one.name)
        for one in requirements
        for extra in extras
        if one.marker is not None and one.marker.evaluate({"extra": extra})
    }
    assert package in brought, line
