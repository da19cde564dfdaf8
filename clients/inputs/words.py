"""From a text that a person types to the word numbers that the language model takes, by the version's own vocabulary.

The Penn Treebank as Mikolov prepared it is lower-case, without most punctuation, with numbers as "N", with "do n't" and
"company 's" as two words each and a sentence a line. `tokens` brings a text into that form as far as the vocabulary
goes: what the vocabulary has is left alone, so it does for others too.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

UNKNOWN = "<unk>"
END = "<eos>"  # the end of a sentence
NUMBER = "N"

MAX_CHARACTERS = 4000
MAX_WORDS = 200
MAX_VOCABULARY_BYTES = 16 << 20
_LONGEST_WORD = 60  # characters; longer ones are not taken apart

_QUOTES = str.maketrans({"‘": "'", "’": "'", "“": '"', "”": '"', "–": "-", "—": " ", "…": " "})
_PARTS = re.compile(r"<unk>|<eos>|[^\s\"(),;:!?\[\]{}]+|[\"(),;:!?\[\]{}]")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d)")
_CLITIC = re.compile(r"(?<=[^'])(n't|'s|'re|'ve|'m|'ll|'d|')$")
_NUMBER = re.compile(r"[+-]?\d[\d.,/]*|[+-]?\.\d+")


class TextError(ValueError):
    """A text that cannot be used; the message says why."""


class TextTooLong(TextError):
    """More characters or words than allowed."""


class VocabularyError(ValueError):
    """A vocabulary file that is missing or is none; the message says which."""


@dataclass(frozen=True)
class Vocabulary:
    """The words of one version of the language model; a word's number is its place."""

    words: tuple[str, ...]

    @cached_property
    def numbers(self) -> dict[str, int]:
        """Each word's number."""
        return {word: number for number, word in enumerate(self.words)}

    @property
    def unknown(self) -> int:
        """The number of "<unk>"."""
        return self.numbers[UNKNOWN]

    @cached_property
    def silent(self) -> tuple[int, ...]:
        """The numbers that stand for no word: that of "<unk>", and fillers such as "<unused 7>", known by the blank."""
        return tuple(number for number, word in enumerate(self.words) if word == UNKNOWN or " " in word)


@dataclass(frozen=True)
class Tokens:
    """A text as the model takes it.

    `ids` are word numbers, beginning with the end of the sentence before. `unknown` are the words of the text that the
    vocabulary does not have, in lower case and in order.
    """

    ids: tuple[int, ...]
    unknown: tuple[str, ...]


def read_vocabulary(path: Path) -> Vocabulary:
    """Reads the asset `vocabulary.txt`: a word a line. VocabularyError when it is missing or is none."""
    try:
        if path.is_symlink() or path.stat().st_size > MAX_VOCABULARY_BYTES:
            raise VocabularyError(f"{path.name} is a link or larger than {MAX_VOCABULARY_BYTES >> 20} MiB")
        words = tuple(path.read_text("utf-8").removesuffix("\n").split("\n"))
    except (OSError, UnicodeDecodeError) as error:
        raise VocabularyError(f"{path.name} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    missing = [word for word in (UNKNOWN, END) if word not in words]
    if missing or len(set(words)) != len(words):
        fault = f"it lacks {missing[0]}" if missing else "it has a word twice"
        raise VocabularyError(f"{path.name} is no vocabulary: {fault}")
    return Vocabulary(words)


def tokens(text: str, vocabulary: Vocabulary) -> Tokens:
    """Brings a text into the vocabulary's words; unknown ones become "<unk>".

    TextError when the text is empty or has no word, TextTooLong beyond 4,000 characters or 200 words.
    """
    if len(text) > MAX_CHARACTERS:
        raise TextTooLong(f"a text may have {MAX_CHARACTERS} characters, this one has {len(text)}")
    numbers = vocabulary.numbers
    ids, unknown = [numbers[END]], []
    for word in _words(text, numbers):
        ids.append(numbers.get(word, vocabulary.unknown))
        if word not in numbers:
            unknown.append(word)
    if set(ids) == {numbers[END]}:
        raise TextError("the text has no words: give some to go on from, such as 'the stock'")
    if len(ids) > MAX_WORDS + 1:
        raise TextTooLong(f"a text may have {MAX_WORDS} words, this one has {len(ids) - 1}")
    return Tokens(tuple(ids), tuple(unknown))


def _words(text: str, known: dict[str, int]) -> Iterator[str]:
    for part in _PARTS.findall(_THOUSANDS.sub("", text.translate(_QUOTES))):
        if part in (NUMBER, UNKNOWN, END) or part.lower() in known:
            yield part if part in (NUMBER, UNKNOWN, END) else part.lower()
        elif set(part) <= set(".!?"):
            yield END
        elif re.search(r"\w|\$|%|&|#", part):
            yield from _split(part.lower(), known)


def _split(part: str, known: dict[str, int]) -> Iterator[str]:
    """A part that is no word of the vocabulary as it stands: takes off what the treebank writes apart."""
    if part in known or len(part) > _LONGEST_WORD:
        yield part
    elif part.endswith("."):
        yield from _split(part.rstrip("."), known)
        yield END
    elif part.startswith(("'", "-", "*")):
        yield from _split(part[1:], known)
    elif part.startswith(("$", "#", "&")) and len(part) > 1:
        yield part[0]
        yield from _split(part[1:], known)
    elif part.endswith("%"):  # the treebank has a percent sign as another N
        if part != "%":
            yield from _split(part[:-1], known)
        yield NUMBER
    elif _NUMBER.fullmatch(part):
        yield NUMBER
    elif clitic := _CLITIC.search(part):
        if part[: clitic.start()]:
            yield from _split(part[: clitic.start()], known)
        if clitic[1] in known or clitic[1] != "'":
            yield clitic[1]
    elif part:
        yield part
