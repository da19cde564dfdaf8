"""Builds the website of the documents: `make site` runs `build.py FOLDER` in a virtual environment of its own.

The documents stay where they are. They and what they link to are copied with their paths into a folder for
MkDocs, which fails on a link that leads nowhere; diagrams in Mermaid are drawn there, since Mermaid's own script would
come from elsewhere. Then the pages are searched for what a browser would load from elsewhere.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("clients", "docker", "docs", "export", "serving", "training")
_FILE = re.compile(r"""(?:\]\(|src=")([^)"#:\s]+)""")
_DIAGRAM = re.compile(r"^```mermaid\n(.*?)^```$", re.DOTALL | re.MULTILINE)
# What a page or a style sheet loads by itself; links that a reader may follow are not.
_LOADS = re.compile(
    r"""<(?:script|img|iframe|source|video|audio|embed)\b[^>]*\bsrc=["']?((?:https?:)?//[^"'\s>]+)"""
    r"""|<link\b(?=[^>]*\brel=["']?(?:stylesheet|icon|preload|preconnect|modulepreload|manifest))[^>]*\bhref=["']?((?:https?:)?//[^"'\s>]+)"""
    r"""|url\(["']?((?:https?:)?//[^"')\s]+)"""
    r"""|@import\s+["']((?:https?:)?//[^"']+)""",
    re.IGNORECASE,
)


def documents() -> list[Path]:
    """The pages: every Markdown file of the project but those of its tests."""
    found = [*ROOT.glob("*.md"), *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.md"))]
    return [path for path in found if "node_modules" not in path.parts]


def with_files(pages: list[Path]) -> set[Path]:
    """The pages, and the files of the project that they show or link to."""
    named = {
        (page.parent / link).resolve() for page in pages for link in _FILE.findall(page.read_text(encoding="utf-8"))
    }
    return {*pages, *(path for path in named if path.is_file() and path.is_relative_to(ROOT))}


def draw_diagrams(page: Path) -> None:
    """Puts a picture in the place of each diagram of a copied page, and its text below."""
    import merm  # in the virtual environment of the site alone

    def drawn(found: re.Match[str]) -> str:
        svg = " ".join(merm.render_diagram(found[1]).split())
        return (
            f'<figure role="img" aria-label="Diagram; its text is below">{svg}</figure>\n\n'
            f"<details markdown><summary>The diagram as text</summary>\n\n```text\n{found[1]}```\n\n</details>"
        )

    text = page.read_text(encoding="utf-8")
    changed = _DIAGRAM.sub(drawn, text)
    if changed != text:
        page.write_text(changed, encoding="utf-8")


def foreign_loads(site: Path) -> list[str]:
    """What pages and style sheets of the site would load from other hosts, each with its file."""
    found = []
    for path in sorted([*site.rglob("*.html"), *site.rglob("*.css")]):
        for groups in _LOADS.findall(path.read_text(encoding="utf-8")):
            found.append(f"{path.relative_to(site)} loads {next(filter(None, groups))}")
    return found


def build(site: Path) -> None:
    """Writes the site into a folder. SystemExit names what is wrong."""
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        for source in with_files(documents()):
            target = work / "pages" / source.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
            if target.suffix == ".md":
                draw_diagrams(target)
        shutil.copyfile(Path(__file__).with_name("mkdocs.yml"), work / "mkdocs.yml")
        # Not --quiet, with which MkDocs counts no warnings.
        command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site.resolve())]
        done = subprocess.run(
            command, cwd=work, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        if done.returncode:
            faults = [line for line in done.stdout.splitlines() if not line.startswith("INFO")]
            raise SystemExit("\n".join([*faults, "mend these in the documents, or in docs/site/mkdocs.yml"]))
    if found := foreign_loads(site):
        raise SystemExit("\n".join(["the site would load from elsewhere:", *found]))
    sys.stdout.write(f"{site}/index.html: open it, or with its search: python3 -m http.server --directory {site}\n")


if __name__ == "__main__":
    build(Path(sys.argv[1]))
