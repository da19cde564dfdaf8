"""A user's own text, from UTF-8 prose to streams of word numbers.

Prose becomes words as a served model reads them (`clients/inputs/words.py`; a test compares the two): lower case,
numbers as `N`, no punctuation, `<eos>` where a sentence ends. A text that has the word `<unk>` is in the form of
Mikolov's treebank already: words with blanks between them, a sentence a line.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bookserve.training.datasets import text_file
from bookserve.training.datasets.files import DataError, Origin, sha256_of
from bookserve.training.datasets.own_data import Corpus
from bookserve.training.datasets.ptb import END, UNKNOWN, Text, encode

MAX_BYTES = 128 << 20  # of a file: it is read into memory
LEAST_WORDS = 100  # of each split
LEAST_VOCABULARY = 20  # words; ten of them are named in each answer
BLOCKS = 20  # that a text is cut into; two of them validate, two test
NUMBER = "N"

_QUOTES = str.maketrans({"‘": "'", "’": "'", "–": "-"})
_PARTS = re.compile(
    r"(?P<number>\d+(?:[.,/]\d+)*(?![^\W_]))|(?P<word>[^\W_]+(?:['-][^\W_]+)*)|(?P<end>[.!?]+(?=[\s\"')\]”]|$)|\n\s*\n)"
)


def read(own: Corpus, seed: int, train_words: int | None) -> Text:
    """The three streams and their vocabulary: the most frequent words of the training text, at most as many as asked.

    Without texts to validate and test, the one text is cut into 20 parts at ends of sentences; the seed draws two that
    validate and two that test. With `train_words` only that many words train, and a quarter as many are the others.

    Raises:
        DataError: a file cannot be read or is no UTF-8, a split has less than 100 words, or the text less than 20
            different ones.
    """
    if own.valid is None or own.test is None:
        texts = _drawn(_sentences(own.train), seed)
        origin = Origin("own", own.train.name, sha256_of(own.train))
        division = f"of {BLOCKS} parts of the text two validate and two test, drawn by seed {seed}"
    else:
        paths = (own.train, own.valid, own.test)
        texts = tuple([word for sentence in _sentences(path) for word in sentence] for path in paths)
        lines = "".join(f"{sha256_of(path)}  {path.name}\n" for path in paths)
        digest = hashlib.sha256(lines.encode("utf-8", "surrogateescape")).hexdigest()
        origin = Origin("own", own.train.name, digest)
        division = "the user's own: a file each"
    for kind, words in zip(("train", "validate", "test"), texts, strict=True):
        if len(words) < LEAST_WORDS:
            raise DataError(
                f"{own.train}: {len(words)} words are there to {kind}, and {LEAST_WORDS} are needed at least: give a "
                f"text of {BLOCKS * LEAST_WORDS} words or more"
            )
    vocabulary = count(texts[0], own.vocabulary)
    if len(vocabulary) < LEAST_VOCABULARY:
        raise DataError(
            f"{own.train} has {len(vocabulary)} different words, and {LEAST_VOCABULARY} are needed at least; "
            "prose in UTF-8 is expected"
        )
    train, valid, test = (encode(words, vocabulary) for words in texts)
    others = None if train_words is None else train_words // 4
    return Text(train[:train_words], valid[:others], test[:others], vocabulary, origin, division)


def count(words: Sequence[str], size: int) -> tuple[str, ...]:
    """`<unk>` and `<eos>`, then the most frequent other words, ties in alphabetical order: `size` words at most."""
    counts = Counter(words)
    del counts[UNKNOWN], counts[END]
    return (UNKNOWN, END, *sorted(counts, key=lambda word: (-counts[word], word))[: size - 2])


def tokenize(prose: str) -> list[list[str]]:
    """Prose to sentences of words, each closed by `<eos>`."""
    sentences: list[list[str]] = [[]]
    for part in _PARTS.finditer(prose.translate(_QUOTES).lower()):
        if part.lastgroup == "end":
            sentences.append([])
        else:
            sentences[-1].append(NUMBER if part.lastgroup == "number" else part.group())
    return [[*sentence, END] for sentence in sentences if sentence]


def _sentences(path: Path) -> list[list[str]]:
    text = text_file.read(path, "a text of at least some thousand words", MAX_BYTES)
    if UNKNOWN in text:
        return [[*line.split(), END] for line in text.splitlines() if line.strip()]
    return tokenize(text)


def _drawn(sentences: Sequence[list[str]], seed: int) -> tuple[list[str], ...]:
    """Training, validation and test words."""
    ends = np.cumsum([len(sentence) for sentence in sentences])
    block = (ends - 1) * BLOCKS // max(1, int(ends[-1]) if len(ends) else 1)  # of each sentence
    order = np.random.default_rng(seed).permutation(BLOCKS)
    split_of = {int(number): 1 + place // 2 for place, number in enumerate(order[:4])}
    texts: tuple[list[str], ...] = ([], [], [])
    for sentence, number in zip(sentences, block, strict=True):
        texts[split_of.get(int(number), 0)].extend(sentence)
    return texts
