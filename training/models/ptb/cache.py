"""A continuous cache beside the network: what followed a similar state a short while ago is likelier to follow now.

Source: Grave, Joulin, Usunier, "Improving Neural Language Models with a Continuous Cache" (2017). The cache keeps the
network's outputs at the last words, each with the word that came next, and gives that word a part of the probability,
the larger the more alike the outputs are. It reads the text that it is judged by: each word is predicted first and
kept afterwards. So its perplexity is one of dynamic evaluation, and stands beside the network's own, not in its place.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view

SIZES = (100, 500, 1_000, 2_000, 5_000)  # of the search
SHARPNESSES = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6)
SHARES = tuple(round(0.02 * number, 2) for number in range(1, 26))
BLOCK = 1_000  # words that are drawn together for an interval
RESAMPLES = 2_000
_ROWS = 256  # words that are looked up at a time
_SEED = 0
_LEAST = 1e-30  # a probability below it counts as this

Floats = npt.NDArray[np.float32]
Words = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Reading:
    """A text as the network read it, as one stream.

    `outputs` float32 [n, units] are those of the last layer after each word, `nexts` int32 [n] the words that followed,
    `likely` float32 [n] the probabilities that the network gave these.
    """

    outputs: Floats
    nexts: Words
    likely: Floats


@dataclass(frozen=True)
class Cache:
    """What `search` finds: how many words back it looks, how sharply it tells outputs apart, and its share."""

    size: int  # words (the paper: up to 2,000)
    sharpness: float  # what inner products of outputs are multiplied by (theta)
    share: float  # of the probability (lambda); none where nothing is kept yet

    def likely(self, reading: Reading) -> Floats:
        """The probabilities of the words that followed, with the cache; float32 [n]."""
        (cached,) = _cached(reading, (self.size,), (self.sharpness,))
        return mixed(reading.likely, cached, self.share)

    @property
    def numbers(self) -> dict[str, float]:
        """What a run's metrics keep of it."""
        return {"cache_size": float(self.size), "cache_sharpness": self.sharpness, "cache_share": self.share}


def search(reading: Reading) -> Cache:
    """The cache of the grid with the lowest perplexity of a text, which must be one to validate with."""
    settings = [(size, sharpness) for sharpness in SHARPNESSES for size in SIZES]
    found: list[tuple[float, Cache]] = []
    for (size, sharpness), cached in zip(settings, _cached(reading, SIZES, SHARPNESSES), strict=True):
        for share in SHARES:
            found.append((perplexity(mixed(reading.likely, cached, share)), Cache(size, sharpness, share)))
    return min(found, key=lambda each: each[0])[1]


def figures(cache: Cache, reading: Reading) -> dict[str, float]:
    """The perplexity of a text with a cache that was found on another one, its 95 % interval, and what it gains.

    `cache_ratio` is that perplexity divided by the one without the cache, of the same words in one stream.
    """
    likely = cache.likely(reading)
    low, high = interval(likely)
    least, most = ratio_interval(likely, reading.likely)
    return {
        "cache_perplexity": perplexity(likely),
        "cache_perplexity_low": low,
        "cache_perplexity_high": high,
        "cache_ratio": perplexity(likely) / perplexity(reading.likely),
        "cache_ratio_low": least,
        "cache_ratio_high": most,
    }


def mixed(likely: Floats, cached: Floats, share: float) -> Floats:
    """Probabilities of network and cache together; the first word, before which nothing is kept, has the network's."""
    both = (1 - share) * likely + share * cached
    both[:1] = likely[:1]
    return both


def perplexity(likely: Floats) -> float:
    """Of words that had these probabilities."""
    return float(np.exp(-_logarithms(likely).mean()))


def interval(likely: Floats) -> tuple[float, float]:
    """The 95 % interval of the perplexity: blocks of 1,000 words are drawn anew, as words near each other are alike.

    Source: Künsch, "The Jackknife and the Bootstrap for General Stationary Observations" (1989).
    """
    return _drawn_anew(_logarithms(likely))


def ratio_interval(likely: Floats, other: Floats) -> tuple[float, float]:
    """The 95 % interval of the first perplexity divided by the second, of the same words, drawn in pairs."""
    return _drawn_anew(_logarithms(likely) - _logarithms(other))


def _logarithms(likely: Floats) -> npt.NDArray[np.float64]:
    return np.log(np.maximum(likely.astype(np.float64), _LEAST))


def _drawn_anew(logarithms: npt.NDArray[np.float64]) -> tuple[float, float]:
    starts = np.arange(0, len(logarithms), BLOCK)
    sums, counts = np.add.reduceat(logarithms, starts), np.diff([*starts, len(logarithms)])
    drawn = np.random.default_rng(_SEED).integers(0, len(starts), (RESAMPLES, len(starts)))
    low, high = np.quantile(np.exp(-sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)), (0.025, 0.975))
    return float(low), float(high)


def _cached(reading: Reading, sizes: Sequence[int], sharpnesses: Sequence[float]) -> Iterator[Floats]:
    """What the cache alone gives the words that followed, float32 [n]: of each sharpness, each size; sizes rise."""
    count, reach = len(reading.nexts), max(sizes)
    nothing = np.zeros((reach, reading.outputs.shape[1]), np.float32)
    kept = np.concatenate([nothing, reading.outputs])  # kept[i + reach] is that of word i
    words = np.concatenate([np.full(reach, -1, np.int32), reading.nexts])
    given = np.zeros((len(sharpnesses), len(sizes), count), np.float32)
    for first in range(0, count, _ROWS):
        rows = min(_ROWS, count - first)
        part = slice(first, first + rows + reach)
        alike = reading.outputs[first : first + rows] @ kept[part].T  # (rows, rows + reach)
        # row r looks at the `reach` words before it: columns r to r + reach
        step = alike.strides[1]
        alike = np.lib.stride_tricks.as_strided(alike, (rows, reach), (alike.strides[0] + step, step), writeable=False)
        before = sliding_window_view(words[part], reach)[:rows]
        empty, same = before < 0, before == reading.nexts[first : first + rows, None]
        for place, sharpness in enumerate(sharpnesses):
            scores = sharpness * alike
            scores[empty] = -np.inf
            largest = scores.max(axis=1, keepdims=True)
            weights = np.exp(scores - np.where(np.isfinite(largest), largest, 0.0))
            right = weights * same
            for number, size in enumerate(sizes):
                total = weights[:, reach - size :].sum(axis=1)
                found = right[:, reach - size :].sum(axis=1)
                given[place, number, first : first + rows] = np.divide(
                    found, total, np.zeros_like(found), where=total > 0
                )
    return (given[place, number] for place in range(len(sharpnesses)) for number in range(len(sizes)))


def _of_last(weights: Floats, sizes: Sequence[int]) -> Floats:
    """The sums [rows, sizes] of the last columns, as many as the sizes say, which rise; the largest is all of them."""
    starts = [weights.shape[1] - size for size in reversed(sizes)]
    return np.add.reduceat(weights, starts, axis=1)[:, ::-1].cumsum(axis=1)
