"""Decision trees of any library as one operation of ONNX, TreeEnsembleRegressor, which sums their leaves.

(https://onnx.ai/onnx/operators/onnx_aionnxml_TreeEnsembleRegressor.html)

Each library has its own tests of a column: below or not above a number, in a set of categories, zero or not. Along the
numbers of float32 each of them is a row of intervals that go left and right by turns, and is written as its borders.
What is between two categories, negative or zero then goes where the library sends it, and not where a comparison of
ONNX would.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import onnx


class Split(NamedTuple):
    """A node with two others below it, which are places in the tree.

    `first` is for values below the first of the `borders`, which ascend; at each border `first` and `second` take
    turns. `missing` is the one for NaN.
    """

    column: int
    borders: tuple[float, ...]
    first: int
    second: int
    missing: int


class Leaf(NamedTuple):
    """The end of a tree: output -> what it adds to it."""

    values: tuple[tuple[int, float], ...]


Tree = Sequence[Split | Leaf]  # the root is the first


def at_least(value: float) -> float:
    """The smallest number of float32 that is not below a number of float64; infinity where there is none."""
    with np.errstate(over="ignore"):
        near = np.float32(value)
    return float(near) if float(near) >= value else float(np.nextafter(near, np.float32(np.inf)))


def above(value: float) -> float:
    """The smallest number of float32 that is above a number of float64; infinity where there is none."""
    near = at_least(value)
    return near if near > value else float(np.nextafter(np.float32(near), np.float32(np.inf)))


def split(
    column: int, cuts: Iterable[float], goes_left: Callable[[float], bool], left: int, right: int, missing: int
) -> Split:
    """The node of a test.

    `cuts` are numbers of float32 at which the answer may change: `goes_left` is asked at each, and at negative infinity
    for all that is below. `left`, `right` and `missing` are places in the tree.
    """
    ordered = sorted(set(cuts))
    sides = [goes_left(value) for value in (-math.inf, *ordered)]
    borders = [cut for cut, before, after in zip(ordered, sides, sides[1:], strict=False) if before != after]
    first, second = (left, right) if sides[0] else (right, left)
    if not borders:  # nothing is below negative infinity, so all numbers go to the second
        borders, first, second = [-math.inf], second, first
    return Split(column, tuple(borders), first, second, missing)


def node(trees: Iterable[Tree], base: Sequence[float], source: str, target: str) -> "onnx.NodeProto":
    """The operation: source (rows, columns) float32 -> target (rows, outputs) float32.

    An output is the sum of its number in `base` and of the leaves that the row comes to.
    """
    from onnx import helper

    nodes: list[tuple[Any, ...]] = []
    leaves: list[tuple[int, int, int, float]] = []
    for number, tree in enumerate(trees):
        spare = len(tree)
        for place, entry in enumerate(tree):
            if isinstance(entry, Leaf):
                nodes.append((number, place, 0, "LEAF", 0.0, 0, 0, 0))
                leaves += [(number, place, output, value) for output, value in entry.values]
            else:
                chain = [place, *range(spare, spare + len(entry.borders) - 1)]
                spare += len(chain) - 1
                nodes += [(number, *comparison) for comparison in _comparisons(entry, chain)]
    trees_of, places, columns, modes, values, lower, upper, missing = (list(part) for part in zip(*nodes, strict=True))
    leaf_trees, leaf_places, outputs, weights = (list(part) for part in zip(*leaves, strict=True))
    return helper.make_node(
        "TreeEnsembleRegressor",
        [source],
        [target],
        domain="ai.onnx.ml",
        n_targets=len(base),
        base_values=list(base),
        nodes_treeids=trees_of,
        nodes_nodeids=places,
        nodes_featureids=columns,
        nodes_modes=modes,
        nodes_values=values,
        nodes_truenodeids=lower,
        nodes_falsenodeids=upper,
        nodes_missing_value_tracks_true=missing,
        target_treeids=leaf_trees,
        target_nodeids=leaf_places,
        target_ids=outputs,
        target_weights=weights,
    )


def _comparisons(entry: Split, chain: Sequence[int]) -> Iterable[tuple[Any, ...]]:
    """A comparison a border; what is not below it goes on to the next.

    ONNX Runtime takes a node below several others, as this makes them, only where all but one come to it by their true
    branch.
    """
    sides = (entry.first, entry.second)
    for turn, (place, border) in enumerate(zip(chain, entry.borders, strict=True)):
        below = sides[turn % 2]
        beyond = chain[turn + 1] if turn + 1 < len(chain) else sides[(turn + 1) % 2]
        yield place, entry.column, "BRANCH_LT", border, below, beyond, int(entry.missing == below)
