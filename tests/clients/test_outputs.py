from dataclasses import replace

import numpy as np
import pytest

from book_contracts import CONTRACTS
from bookserve.clients import forms, outputs
from bookserve.clients.answers import Prediction
from bookserve.clients.inputs.words import Vocabulary, tokens
from bookserve.export.contracts import Contract, Preprocessing, Tensor

VOCABULARY = Vocabulary(("<unk>", "<eos>", "the", "stock", "<unused 4>", "<unused 5>"))


@pytest.mark.parametrize(
    ("top_k", "expected"), [(1, ["stock"]), (2, ["stock", "the"]), (50, ["stock", "the", "<eos>"])]
)
def test_only_words_are_suggested_the_likeliest_first(top_k, expected) -> None:
    probabilities = np.array([0.4, 0.05, 0.1, 0.15, 0.2, 0.1], np.float32)
    before = probabilities.copy()
    answer = outputs.next_words(
        CONTRACTS["ptb"], 7, VOCABULARY, [("The", tokens("The", VOCABULARY), probabilities)], top_k
    )
    assert (answer["model"], answer["version"]) == ("ptb", 7)
    assert [entry["word"] for entry in answer["predictions"][0]["words"]] == expected
    np.testing.assert_array_equal(probabilities, before)


def test_a_float32_is_shown_with_the_digits_it_has() -> None:
    prediction = Prediction("linear", 1, {"y": np.array([0.1, 1234567.0, -2e-9], np.float32)})
    assert [entry["y"] for entry in outputs.rows(CONTRACTS["linear"], prediction)["predictions"]] == [
        0.1,
        1234567.0,
        -2e-9,
    ]


def test_a_network_that_ends_in_a_pooling_names_what_a_picture_shows() -> None:
    means = Preprocessing("data", size=(4, 4), colour="rgb", resize="crop", layout="channels-first")
    contract = Contract(
        *("squeeze", 1, (Tensor("data", "float32", (1, 3, 4, 4)),), (Tensor("softmax", "float32", (1, 3, 1, 1)),)),
        labels=("cat", "dog", "owl"),
        task="image-classification",
        preprocessing=means,
    )
    assert forms.form(contract) == "image-classification"
    scores = np.array([0.1, 0.7, 0.2], np.float32).reshape(1, 3, 1, 1)
    (row,) = outputs.rows(contract, Prediction("squeeze", 1, {"softmax": scores}))["predictions"]
    assert row == {"class": "dog", "softmax": {"cat": 0.1, "dog": 0.7, "owl": 0.2}}
    maps = replace(contract, outputs=(Tensor("softmax", "float32", (1, 3, 2, 1)),))
    assert forms.form(maps) == "tensors"
