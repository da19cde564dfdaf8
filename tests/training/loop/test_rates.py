import pytest

from bookserve.training.loop.rates import warm_cosine


def test_the_rate_rises_in_a_line_and_falls_as_a_cosine() -> None:
    rate = warm_cosine(2.0, 100, 0.2, start=0.25)
    expected = {0: 0.5, 10: 1.25, 20: 2.0, 60: 1.0, 100: 0.0}
    assert {step: float(rate(step)) for step in expected} == pytest.approx(expected, abs=1e-6)
