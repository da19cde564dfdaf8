"""The documents keep up with the project: the reference is what the code says, and every path that is named exists."""

import json
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("training", "export", "serving", "clients", "docker", "tests", "docs", ".github")
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.md"))])
# A path from the project's root, wherever it stands in a text: "serving/wire/", "tests/**/test_*.py".
_FROM_ROOT = re.compile(rf"(?<![\w/.<>-])(?:{'|'.join(map(re.escape, FOLDERS))})/[\w./*-]*")
# The name of a source file in backticks, such as `precision.py`.
_FILE_NAME = re.compile(r"`(\w[\w.-]*\.(?:py|md|yaml|yml|toml|lock|sh|js|html|css|proto))`")
_LINK = re.compile(r"(?:\]\(|(?:src|href)=\")([^)\"#\s]+)")


@cache
def pages() -> dict[str, str]:
    """The reference as the code makes it, in a process of its own: other tests leave their traces in this one."""
    program = "import json, runpy; pages = runpy.run_path('docs/reference/generate.py', run_name='pages')['PAGES']"
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "DATA_DIR")}
    done = subprocess.run(
        [sys.executable, "-c", f"{program}; print(json.dumps({{name: make() for name, make in pages.items()}}))"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    made: dict[str, str] = json.loads(done.stdout)
    return made


@pytest.mark.parametrize("page", ["flags.md", "commands.md", "metrics.md"])
def test_the_reference_is_what_the_code_says(page: str) -> None:
    assert set(pages()) == {path.name for path in (ROOT / "docs/reference").glob("*.md")}
    written = (ROOT / "docs/reference" / page).read_text(encoding="utf-8")
    assert written == pages()[page], "run `make reference`"


@cache
def file_names() -> set[str]:
    inside = {path.name for folder in FOLDERS for path in (ROOT / folder).rglob("*")}
    return inside | {path.name for path in ROOT.iterdir()}


def named_in(text: str) -> set[str]:
    """The paths from the project's root that a text names."""
    return {found.rstrip(".") for found in _FROM_ROOT.findall(text)}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_path_that_a_document_names_exists(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    missing = {path for path in named_in(text) if not any(ROOT.glob(path.rstrip("/")))}
    missing |= set(_FILE_NAME.findall(text)) - file_names()
    for link in _LINK.findall(text):
        if not link.startswith(("http://", "https://", "mailto:")) and not (document.parent / link).exists():
            missing.add(link)
    assert not missing


def test_paths_are_found_wherever_they_stand() -> None:
    text = (
        "See `serving/wire/`, (tests/test_project.py) and docs/reference/*.md. Not tensorflow/serving/ or runs/mnist/."
    )
    assert named_in(text) == {"serving/wire/", "tests/test_project.py", "docs/reference/*.md"}
