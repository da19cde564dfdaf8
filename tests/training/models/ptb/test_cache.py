import math

import numpy as np
import pytest

from bookserve.training.models.ptb import cache
from bookserve.training.models.ptb.cache import Cache, Reading


@pytest.fixture
def reading() -> Reading:
    """450 words of 30, of which few are in use at a time, as a network would read them that knows little."""
    rng = np.random.default_rng(1)
    nexts = (rng.integers(0, 6, 450) + np.arange(450) // 90 * 5).astype(np.int32)
    outputs = rng.normal(size=(450, 6)).astype(np.float32) + np.eye(30, 6, dtype=np.float32)[nexts]
    return Reading(outputs, nexts, rng.uniform(0.01, 0.1, 450).astype(np.float32))


def word_for_word(reading: Reading, place: Cache) -> list[float]:
    """Equations 2 to 4 of the paper, as they stand there."""
    likely = []
    for now, (output, word) in enumerate(zip(reading.outputs, reading.nexts, strict=True)):
        before = range(max(0, now - place.size), now)
        if not before:
            likely.append(float(reading.likely[now]))
            continue
        weights = [math.exp(place.sharpness * float(output @ reading.outputs[each])) for each in before]
        same = [weight for weight, each in zip(weights, before, strict=True) if reading.nexts[each] == word]
        likely.append((1 - place.share) * float(reading.likely[now]) + place.share * sum(same) / sum(weights))
    return likely


@pytest.mark.parametrize("size", [1, 40, 300, 5_000])
def test_the_cache_gives_what_the_paper_s_equations_give(reading: Reading, size: int) -> None:
    place = Cache(size, sharpness=0.7, share=0.3)
    np.testing.assert_allclose(place.likely(reading), word_for_word(reading, place), rtol=2e-5, atol=1e-7)


def test_no_word_is_predicted_from_itself_or_from_what_follows(reading: Reading) -> None:
    """Whatever comes after a word changes nothing of its probability."""
    place = Cache(200, 0.5, 0.4)
    changed = Reading(reading.outputs.copy(), reading.nexts.copy(), reading.likely)
    changed.outputs[300:] *= -3
    changed.nexts[300:] = 29
    np.testing.assert_array_equal(place.likely(reading)[:300], place.likely(changed)[:300])
    assert not np.array_equal(place.likely(reading)[300:], place.likely(changed)[300:])


def test_the_probabilities_of_all_words_still_sum_to_one() -> None:
    rng = np.random.default_rng(0)
    outputs, nexts = rng.normal(size=(60, 4)).astype(np.float32), rng.integers(0, 5, 60).astype(np.int32)
    network = rng.dirichlet(np.ones(5), 60).astype(np.float32)
    total = 0.0
    for word in range(5):  # what the last place gives to each word
        asked = np.append(nexts[:-1], np.int32(word))
        total += float(Cache(50, 0.5, 0.25).likely(Reading(outputs, asked, network[np.arange(60), asked]))[-1])
    assert total == pytest.approx(1, abs=1e-5)


def test_the_search_finds_the_best_of_the_grid_on_the_text_that_it_is_given(reading: Reading) -> None:
    found = cache.search(reading)
    best = cache.perplexity(found.likely(reading))
    for size, sharpness, share in [(100, 0.3, 0.1), (500, 0.05, 0.3), (5_000, 0.6, 0.02), (2_000, 0.2, 0.5)]:
        assert best <= cache.perplexity(Cache(size, sharpness, share).likely(reading)) + 1e-5
    assert (found.size in cache.SIZES, found.sharpness in cache.SHARPNESSES, found.share in cache.SHARES) == (True,) * 3


def test_figures_have_the_interval_and_the_gain(reading: Reading) -> None:
    long = Reading(*(np.concatenate([array] * 9) for array in (reading.outputs, reading.nexts, reading.likely)))
    told = cache.figures(Cache(100, 0.5, 0.2), long)
    assert told["cache_perplexity_low"] < told["cache_perplexity"] < told["cache_perplexity_high"]
    assert told["cache_ratio_low"] < told["cache_ratio"] < told["cache_ratio_high"] < 1
    assert told["cache_ratio"] == pytest.approx(told["cache_perplexity"] / cache.perplexity(long.likely))
