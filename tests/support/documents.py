"""The code blocks of the documents, and the commands in them."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_BLOCK = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_HEREDOC = re.compile(r"<<'?(\w+)'?([^\n]*)\n.*?^\1$", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"(?<!`)`((?:bookserve|make) [^`]+)`(?!`)")
_VARIABLE = re.compile(r"[A-Z_]+=")


@dataclass(frozen=True)
class Block:
    """A fenced block: `document` from the project's root, the word after the fence, and what stands between."""

    document: str
    language: str
    text: str

    @property
    def first_line(self) -> str:
        return self.text.partition("\n")[0]

    @property
    def is_shell(self) -> bool:
        return self.language in ("sh", "bash")


def documents() -> list[Path]:
    """Every Markdown file of the project that a reader meets, without the changelog and the made reference."""
    folders = ("training", "export", "serving", "clients", "docker", "docs")
    found = [*ROOT.glob("*.md"), *(path for folder in folders for path in (ROOT / folder).rglob("*.md"))]
    return sorted(path for path in found if path.parent.name != "reference" and path.name != "CHANGELOG.md")


def blocks(document: str) -> list[Block]:
    text = (ROOT / document).read_text(encoding="utf-8")
    return [Block(document, language, body) for language, body in _BLOCK.findall(text)]


def all_blocks() -> list[Block]:
    return [block for path in documents() for block in blocks(str(path.relative_to(ROOT)))]


def commands(text: str) -> Iterator[list[str]]:
    """The words of each command in a shell text, without variables before it and what follows `|`, `>`, `<` or `&`."""
    begun = ""
    for line in _HEREDOC.sub(r"\2", text).replace("\\\n", " ").splitlines():
        begun += line
        try:
            words = shlex.split(begun, comments=True)
        except ValueError:  # a quote goes on in the next line
            begun += " "
            continue
        begun = ""
        while words and _VARIABLE.match(words[0]):
            words.pop(0)
        end = next((place for place, word in enumerate(words) if word in ("|", ">", "&", "<", "-")), len(words))
        if words[:end] and words[0] != "export":
            yield words[:end]
    assert not begun, f"a quote without end: {begun}"


def inline_commands(document: Path) -> list[str]:
    """The commands in backticks within the text: of `bookserve` and `make`."""
    text = _BLOCK.sub("", document.read_text(encoding="utf-8"))
    return [" ".join(command.split()) for command in _INLINE.findall(text)]
