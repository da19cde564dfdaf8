"""`make install`: a clone that was moved or copied makes its virtual environment again."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def make(folder: Path, *arguments: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "MAKEFLAGS")}
    done = subprocess.run(
        ["make", *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def installed(clone: Path, made_in: str) -> Path:
    """A clone whose .venv `make install` has finished in the folder `made_in`."""
    (clone / ".venv").mkdir(parents=True)
    for name in ("Makefile", "pyproject.toml", "requirements.lock"):
        shutil.copy2(ROOT / name, clone)
    (clone / ".venv" / "pyvenv.cfg").write_text(
        f"home = /usr/bin\ncommand = /usr/bin/python3 -m venv {made_in}/.venv\n"
    )
    (clone / ".venv" / ".installed").touch()
    return clone


def test_an_installed_clone_has_nothing_to_do(tmp_path: Path) -> None:
    clone = installed(tmp_path / "my clone", f"{tmp_path}/my clone")
    assert "Nothing to be done" in make(clone, "-n", "install")


@pytest.mark.parametrize("made_in", ["/home/me/bookserve", "/home/me/clone", "{parent}/clone-2", "/old{parent}/clone"])
def test_a_moved_clone_makes_its_environment_again(tmp_path: Path, made_in: str) -> None:
    planned = make(installed(tmp_path / "clone", made_in.format(parent=tmp_path)), "-n", "install")
    assert "rm -rf .venv" in planned
    assert "-m venv .venv" in planned


def test_an_environment_that_make_did_not_make_is_left_alone(tmp_path: Path) -> None:
    clone = installed(tmp_path / "clone", "/elsewhere")
    (clone / ".venv" / "pyvenv.cfg").write_text("home = /usr/bin\nuv = 0.9.0\n")
    assert "Nothing to be done" in make(clone, "-n", "install")


@pytest.mark.parametrize("target", ["train-all", "serve"])
def test_runs_and_models_go_where_make_is_told(tmp_path: Path, target: str) -> None:
    clone = installed(tmp_path / "clone", f"{tmp_path}/clone")
    planned = make(clone, "-n", target, "RUNS_DIR=/my/runs", "MODELS_DIR=/my/models")
    assert "--runs-dir=/my/runs" in planned
    assert "--models-dir=/my/models" in planned
    assert "--runs-dir=runs" in make(clone, "-n", target)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_clone_is_installed_moved_and_installed_again(tmp_path: Path) -> None:
    before, after = tmp_path / "before", tmp_path / "after"
    subprocess.run(["git", "clone", "--quiet", ROOT, before], check=True)
    make(before, "install")
    before.rename(after)
    assert "was moved" in make(after, "install")
    version = subprocess.run([after / ".venv/bin/bookserve", "--version"], capture_output=True, text=True)
    assert version.returncode == 0, version.stderr
    assert "Nothing to be done" in make(after, "install")
