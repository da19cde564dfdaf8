"""docker/slim.py: what it removes from the servers' images is used by none of their code."""

import importlib.util
import json
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = Path(sysconfig.get_path("platlib"))
# Everything that the servers ask of RDKit; then the files that are open as libraries, and those of the modules.
USE = """
import json, sys
import bookserve.serving.gateway.main
import bookserve.serving.server.model_server, bookserve.serving.server.worker_main
import obstore.store, onnxruntime, pi_heif, simdjson, uvloop, h2corn
from bookserve.clients.inputs import molecule_atoms, molecules
from rdkit.Chem import Descriptors
names = [name for name, _ in Descriptors.descList]
molecules.digest(names)
assert molecules.drawing("CCO", [0.5, 0.0, -0.5]).count("<path")
assert len(molecule_atoms.without_each("CCO", 2, 1024, names)) == 4
for wrong in ("C1CC", "C(C)(C)(C)(C)C", "xx"):
    try:
        molecules.fingerprint(wrong)
    except molecules.MoleculeError:
        continue
    raise AssertionError(wrong)
used = {line.split(maxsplit=5)[5].strip() for line in open("/proc/self/maps") if line.count("/") > 0}
used |= {path for module in list(sys.modules.values()) if isinstance(path := getattr(module, "__file__", None), str)}
print(json.dumps(sorted(used)))
"""


@pytest.fixture
def slim() -> ModuleType:
    """docker/slim.py, which is in no package."""
    spec = importlib.util.spec_from_file_location("slim", ROOT / "docker" / "slim.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="what a process has open stands in /proc")
def test_the_servers_use_nothing_that_their_images_leave_out(slim: ModuleType) -> None:
    done = subprocess.run([sys.executable, "-c", USE], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    used = {Path(path).resolve() for path in json.loads(done.stdout)}
    assert any(path.name == "rdMolDraw2D.so" for path in used), "libraries are seen"
    gone = {path.resolve() for path in slim.unused(PACKAGES)}
    assert len(gone) > 100, "the list is of these packages"
    assert [path for path in used if gone & {path, *path.parents}] == []


def test_every_pattern_is_of_something_that_is_installed(slim: ModuleType) -> None:
    stale = [pattern for pattern in slim.UNUSED if not any(PACKAGES.glob(pattern))]
    # numpy has this one only with Python 3.11, as the images.
    assert set(stale) <= {"numpy/distutils"}, "shorten UNUSED in docker/slim.py"
    assert [pattern for pattern in slim.STRIPPED if not any(PACKAGES.glob(pattern))] == []


@pytest.mark.skipif(shutil.which("readelf") is None, reason="binutils is not installed")
def test_libraries_that_nothing_needs_are_orphans(slim: ModuleType, tmp_path: Path) -> None:
    shutil.copytree(PACKAGES / "pi_heif.libs", tmp_path / "pi_heif.libs")
    (module,) = PACKAGES.glob("_pi_heif.*.so")
    shutil.copy(module, tmp_path)
    assert slim.orphans(tmp_path) == []
    (tmp_path / module.name).unlink()
    assert [library.name.partition("-")[0] for library in slim.orphans(tmp_path)] == ["libheif"]
