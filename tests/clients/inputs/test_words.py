import contextlib

import pytest

from bookserve.clients.inputs import words

VOCABULARY = words.Vocabulary(
    (
        *("<unk>", "<eos>", "N", "$", "the", "stock", "market", "do", "n't", "'s", "'"),
        *("mr.", "corp.", "rose", "to", "a", "third-quarter", "u.s."),
    )
)


def _words(text):
    return [VOCABULARY.words[number] for number in words.tokens(text, VOCABULARY).ids]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The STOCK market", "the stock market"),
        ("Don't", "do n't"),
        ("don’t", "do n't"),
        ("the market's stock", "the market 's stock"),
        ("the stocks' market", "the <unk> ' market"),
        ("Mr. Corp.", "mr. corp."),
        ("the stock.", "the stock <eos>"),
        ("the stock. The market!", "the stock <eos> the market <eos>"),
        ("rose 5.5% to $12,000", "rose N N to $ N"),
        ('"the" (stock), market;', "the stock market"),
        ("third-quarter U.S. stock", "third-quarter u.s. stock"),
        ("N <unk> <eos> the", "N <unk> <eos> the"),
        ("the -- stock", "the stock"),
        ("the\n\tstock", "the stock"),
    ],
)
def test_texts_take_the_form_of_the_penn_treebank(text, expected) -> None:
    assert _words(text) == ["<eos>", *expected.split()]


def test_punctuation_that_the_vocabulary_has_is_kept() -> None:
    vocabulary = words.Vocabulary(("<unk>", "<eos>", "the", ",", ".", "3"))
    assert words.tokens("the, 3.", vocabulary).ids == (1, 2, 3, 5, 1)
    assert words.tokens("the , 3 .", vocabulary).ids == (1, 2, 3, 5, 4)


def test_unknown_words_are_named_in_order() -> None:
    tokens = words.tokens("Foo the BAR foo <unk>", VOCABULARY)
    assert tokens.unknown == ("foo", "bar", "foo")
    assert tokens.ids == (1, 0, 4, 0, 0, 0)


@pytest.mark.parametrize("text", ["", " ", "\n", ".", "?!", "()", "--"])
def test_a_text_without_words_is_refused(text) -> None:
    with pytest.raises(words.TextError, match="no words"):
        words.tokens(text, VOCABULARY)


@pytest.mark.parametrize("text", ["x" * 4001, "the " * 201])
def test_long_texts_are_refused(text) -> None:
    with pytest.raises(words.TextTooLong):
        words.tokens(text, VOCABULARY)
    assert len(words.tokens("the " * 200, VOCABULARY).ids) == 201


@pytest.mark.parametrize(
    "text", ["'" * 4000, "$-" * 2000, "%" * 190, "n't" * 1000, "<" * 4000, "the" + "." * 3000, "\0\x1b"]
)
def test_odd_texts_are_no_trouble(text) -> None:
    with contextlib.suppress(words.TextError):
        words.tokens(text, VOCABULARY)


def test_a_vocabulary_is_read(tmp_path) -> None:
    path = tmp_path / "vocabulary.txt"
    path.write_text("<unk>\n<eos>\nthe\ncafé\n")
    vocabulary = words.read_vocabulary(path)
    assert vocabulary.words == ("<unk>", "<eos>", "the", "café")
    assert (vocabulary.unknown, vocabulary.silent) == (0, (0,))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "cannot be read"),
        (b"\xff", "cannot be read"),
        (b"<eos>\n", "lacks <unk>"),
        (b"<unk>\n<eos>\na\na\n", "twice"),
    ],
)
def test_a_broken_vocabulary_is_refused_with_the_reason(tmp_path, content, reason) -> None:
    path = tmp_path / "vocabulary.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(words.VocabularyError, match=reason):
        words.read_vocabulary(path)
