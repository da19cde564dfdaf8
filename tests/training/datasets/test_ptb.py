import hashlib
from pathlib import Path

import numpy as np
import pytest

from bookserve.training.datasets import ptb
from bookserve.training.datasets.files import DataError, DataFile, DataRequest

TRAIN = " the cat sat on the <unk> \n a cat ran \n"
VALID = " the dog sat \n"


@pytest.fixture
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small text under the official names."""
    files = []
    for file, text in zip(ptb.FILES, (TRAIN, VALID, VALID * 10), strict=True):
        (tmp_path / file.name).write_text(text)
        files.append(DataFile(file.name, file.url, len(text), hashlib.sha256(text.encode()).hexdigest()))
    monkeypatch.setattr(ptb, "FILES", tuple(files))
    return tmp_path


def test_the_text_becomes_numbers_and_unknown_words_are_kept_as_unk(data_dir: Path) -> None:
    data = ptb.load(DataRequest("real", data_dir))
    assert data.origin.source == "real"
    assert data.vocabulary[:5] == ("<unk>", "<eos>", "cat", "the", "a")
    assert [data.vocabulary[number] for number in data.valid] == ["the", "<unk>", "sat", "<eos>"]
    assert [data.vocabulary[number] for number in data.train[-4:]] == ["a", "cat", "ran", "<eos>"]
    assert data.train.dtype == np.int32
    assert len(data.vocabulary) == len(set(data.vocabulary)) == 10_000


def test_the_vocabulary_asset_has_a_line_for_each_word(data_dir: Path) -> None:
    data = ptb.load(DataRequest("real", data_dir))
    lines = data.assets["vocabulary.txt"].splitlines()
    assert tuple(lines) == data.vocabulary


def test_examples_are_rows_of_the_test_text(data_dir: Path) -> None:
    data = ptb.load(DataRequest("real", data_dir))
    assert data.examples["tokens"].shape == (2, 20)
    np.testing.assert_array_equal(data.examples["tokens"].ravel(), data.test[:40])


def test_train_words_cuts_the_text_but_not_the_vocabulary(data_dir: Path) -> None:
    whole, cut = (ptb.load(DataRequest("real", data_dir), words) for words in (None, 8))
    assert cut.vocabulary == whole.vocabulary
    np.testing.assert_array_equal(cut.train, whole.train[:8])
    assert (len(cut.valid), len(cut.test)) == (2, 2)


@pytest.mark.parametrize(
    "words",
    [["the", "<eos>"], ["the", "<unk>"], ["<unk>", "<eos>", *(f"word{number}" for number in range(9_999))]],
    ids=["no unk", "no eos", "too many"],
)
def test_a_text_of_another_form_is_refused(words: list[str]) -> None:
    with pytest.raises(DataError, match=f"has {len(words)} different words, .*Mikolov"):
        ptb.count_vocabulary(words)


def test_a_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "ptb.train.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"ptb\.train\.txt is damaged: it is not UTF-8"):
        ptb.read_words(tmp_path / "ptb.train.txt")


def test_prose_is_cut_like_the_treebank() -> None:
    words = ptb.tokenize("It doesn't work on 32 bits. See below! Return the first item, or None.\n\nThat is it.")
    assert " ".join(words) == (
        "it doesn't work on N bits <eos> return the first item or none <eos> that is it <eos>"
    )  # two words are no sentence


def test_the_sample_is_python_s_documentation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ptb, "SAMPLE_MODULES", ("textwrap", "no_such_module"))
    monkeypatch.setattr(ptb, "SAMPLE_VOCABULARY", 500)
    data, again = (ptb.load(DataRequest("sample")) for _ in range(2))
    assert data.origin.source == "sample"
    assert data.origin == again.origin
    assert len(data.train) > 5 * len(data.valid) > 0
    assert "python" in data.vocabulary[:500]
    assert data.vocabulary[500] == "<unused 500>"
    assert max(data.train.max(), data.valid.max(), data.test.max()) < 500
    assert 0 < (data.train == ptb.UNKNOWN_ID).mean() < 0.3
