"""The contracts are public: whoever changes one gives it the next number, here too."""

import pytest

from book_contracts import CONTRACTS
from bookserve.training.models import MODELS, contract


@pytest.mark.parametrize("model", MODELS)
def test_a_contract_is_the_published_one(model: str) -> None:
    assert contract(model) == CONTRACTS[model]


def test_no_contract_is_forgotten() -> None:
    assert list(CONTRACTS) == list(MODELS)
