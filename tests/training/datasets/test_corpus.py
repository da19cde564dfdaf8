from pathlib import Path

import numpy as np
import pytest

from bookserve.clients.inputs import words
from bookserve.training.datasets import corpus
from bookserve.training.datasets.files import DataError
from bookserve.training.datasets.own_data import Corpus

PROSE = (
    "The farmer's wife didn't sell 1,200 apples! Über die Brücke – zum well-known inn, they said.\n\n"
    "Chapter two\n\nIn 1989 it cost 3.5 dollars (or less). “Really?” he asked; nobody knew."
)
WORDS = (
    *("the", "a", "old", "young", "farmer", "captain", "doctor", "sister", "paints", "sells", "repairs", "carries"),
    *("fence", "boat", "apples", "eggs", "clock", "engine", "boxes", "letters", "slowly", "today", "gladly", "alone"),
)


def write(path: Path, count: int, seed: int = 0) -> Path:
    random = np.random.default_rng(seed)
    sentences = [" ".join(random.choice(WORDS, random.integers(3, 9))).capitalize() + "." for _ in range(count)]
    path.write_text(" ".join(sentences))
    return path


def test_prose_becomes_sentences_of_words() -> None:
    assert [" ".join(sentence) for sentence in corpus.tokenize(PROSE)] == [
        "the farmer's wife didn't sell N apples <eos>",
        "über die brücke zum well-known inn they said <eos>",
        "chapter two <eos>",
        "in N it cost N dollars or less <eos>",
        "really <eos>",
        "he asked nobody knew <eos>",
    ]


@pytest.mark.parametrize(
    "sentence", ["The farmer's wife didn't sell 1,200 apples", "zum well-known inn they said", "it cost 3.5 dollars"]
)
def test_a_served_model_reads_the_same_words(sentence: str) -> None:
    trained = [word for each in corpus.tokenize(PROSE) for word in each]
    vocabulary = words.Vocabulary(corpus.count(trained, 100))
    read = words.tokens(sentence, vocabulary)
    assert read.unknown == ()
    assert [vocabulary.words[number] for number in read.ids[1:]] == corpus.tokenize(sentence)[0][:-1]


@pytest.mark.parametrize(("asked", "known"), [(20, 20), (25, 25), (26, 26), (27, 26), (10_000, 26)])
def test_the_vocabulary_has_the_size_that_was_asked_for(tmp_path: Path, asked: int, known: int) -> None:
    text = corpus.read(Corpus(write(tmp_path / "village.txt", 600), None, None, asked), 0, None)
    assert len(text.vocabulary) == known
    assert text.vocabulary[:2] == ("<unk>", "<eos>")
    card = text.card(())
    assert (card.classes["train"]["<unk>"] > 0) == (known < 26)
    assert text.assets["vocabulary.txt"].splitlines() == list(text.vocabulary)


def test_the_seed_draws_which_sentences_validate_and_test(tmp_path: Path) -> None:
    own = Corpus(write(tmp_path / "village.txt", 600), None, None, 100)
    text, again, other = (corpus.read(own, seed, None) for seed in (0, 0, 1))
    assert np.array_equal(text.test, again.test)
    assert not np.array_equal(text.test, other.test)
    parts = {name: rows / sum(text.card(()).rows.values()) for name, rows in text.card(()).rows.items()}
    assert parts == {
        "train": pytest.approx(0.8, abs=0.02),
        "valid": pytest.approx(0.1, abs=0.02),
        "test": pytest.approx(0.1, abs=0.02),
    }
    assert text.card(()).classes["train"]["sentences"] + text.card(()).classes["test"]["sentences"] < 600
    assert text.division == "of 20 parts of the text two validate and two test, drawn by seed 0"


def test_three_files_are_the_three_splits(tmp_path: Path) -> None:
    train, valid, test = (
        write(tmp_path / f"{name}.txt", 100, seed) for seed, name in enumerate(("train", "valid", "test"))
    )
    text = corpus.read(Corpus(train, valid, test, 100), 0, None)
    assert text.card(()).classes["train"]["sentences"] == 100
    assert text.division == "the user's own: a file each"
    same = corpus.read(Corpus(train, train, test, 100), 0, None)
    assert same.card(()).duplicates["valid in train"] == 100
    assert same.origin.sha256 != text.origin.sha256


def test_a_text_in_the_treebanks_form_is_taken_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "ptb.txt"
    lines = [
        "the <unk> of mr. N million u.s. banks & shares rose 's",
        "no it was n't black monday traders said on friday",
    ]
    path.write_text("".join(f" {line} \n" for line in lines * 300))
    text = corpus.read(Corpus(path, None, None, 100), 0, None)
    assert set(text.vocabulary) == {"<eos>", *" ".join(lines).split()}
    assert (text.train == 0).sum() == (text.train == text.vocabulary.index("mr.")).sum() > 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty: give a text of at least some thousand words"),
        (b"The farmer sells apples. " * 50, "words are there to validate, and 100 are needed at least"),
        (b"The farmer sells apples. " * 1_000, "has 6 different words, and 20 are needed at least"),
        ("Der Müller".encode("latin-1") * 100, "line 1: the byte 0xfc is no UTF-8"),
        (b"\x89PNG\x00" * 100, "is no text: byte 4 is zero"),
    ],
)
def test_a_text_that_cannot_be_learnt_says_why(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(content)
    with pytest.raises(DataError) as error:
        corpus.read(Corpus(path, None, None, 100), 0, None)
    assert message in str(error.value)
    assert str(path) in str(error.value)
