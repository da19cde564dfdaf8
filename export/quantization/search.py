"""The int8 graph that is worth publishing: within the allowed loss, and faster than the float graph.

Calibration rows decide between the calibrations, and which nodes stay in float; the held-out rows only say whether a
graph is good enough, and how good it is. So the figures of few graphs are looked at, and the first that will do is
taken.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bookserve.export import figures
from bookserve.export.engines import Run, onnx_graph
from bookserve.export.errors import ExportError, NoGainError
from bookserve.export.figures import Comparison, Figure, Rows
from bookserve.export.quantization import rates
from bookserve.export.quantization.demands import Demands
from bookserve.export.quantization.int8_graph import DYNAMIC, Quantizer, Recipe, batches, in_float, static_recipes
from bookserve.export.quantization.rates import Rate

Array = npt.NDArray[Any]
_ROWS_AT_ONCE = 64
_JUDGED_NODES = 40  # at most, half of them from the beginning of the graph and half from its end
_FLOAT_NODES = (1, 2, 4, 8, 16)  # tried in turn, the most harmful first


@dataclass(frozen=True)
class Found:
    """The int8 graph in `path`, how it was made, and what it is worth.

    `differences` has each output's largest difference from the float graph, of whole numbers the fraction that differs.
    """

    path: Path
    recipe: Recipe
    comparison: Comparison
    rates: dict[int, Rate]
    differences: dict[str, float]


@dataclass(frozen=True)
class Source:
    """The float graph; `fixed_batch` is the size of its batch where that is not free."""

    path: Path
    fixed_batch: int | None = None


class Search:
    """The first int8 graph that keeps the demands.

    With the method "auto" the dynamic graph comes last: it may not share runs between clients.
    """

    def __init__(
        self,
        source: Source,
        calibration: Rows,
        held_out: Rows,
        figure: Callable[[Rows], Figure],
        demands: Demands,
        scratch: Path,
        say: Callable[[str], None],
    ) -> None:
        """`figure` gives the figure for the float graph's outputs for `held_out`; `say` takes a line a graph.

        Raises:
            ExportError: the graph cannot be prepared, or refuses the rows.
        """
        self._source, self._demands, self._scratch, self._say = source, demands, scratch, say
        self._calibration, self._held_out = calibration, held_out
        run = onnx_graph(source.path)
        self._expected = outputs(run, calibration, self._rows_at_once())
        self._float_outputs = outputs(run, held_out, self._rows_at_once())
        self._figure = figure(self._float_outputs)
        self._quantizer = Quantizer(source.path, calibration, scratch, source.fixed_batch)
        self._rates: dict[Recipe, dict[int, Rate]] = {}
        self._lost = False  # whether a static graph was refused for its loss
        self._made = 0

    def found(self) -> Found:
        """The graph.

        Raises:
            NoGainError: there is none.
            ExportError: the graph cannot be quantised.
        """
        demands, figure = self._demands, self._figure
        allowed = f"--max-loss {demands.max_loss:.2%}, --min-speed-up {demands.min_speed_up:g}"
        value = figure.score(self._float_outputs, np.arange(figure.count))
        self._say(f"float: {figure.name} {value:.6g}; allowed: {allowed}")
        refused = set[Recipe]()
        for recipe in self._recipes():
            if recipe in refused:
                continue
            found = self._judged(recipe, self._make(recipe))
            if found is not None:
                return found
            refused.add(recipe)
        if not refused:
            raise NoGainError("the graph has no operation that this method quantises")
        raise NoGainError(f"none of {len(refused)} int8 graphs is worth publishing ({allowed})")

    def _recipes(self) -> Iterator[Recipe]:
        """The recipes to judge, the most promising first."""
        if self._demands.method != "dynamic" and self._quantizer.products():
            ranked, nearest = self._ranked()
            yield from ranked
            if self._lost:
                for nodes in self._float_nodes(nearest):
                    yield in_float(nearest, nodes)
        if self._demands.method != "static" and self._quantizer.has_dynamic_operations():
            yield Recipe("", DYNAMIC)

    def _ranked(self) -> tuple[list[Recipe], Recipe]:
        """Of each choice of operations the calibration that diverges least, with the first products in int8 and in
        float, the fastest first; and of these the one that diverges least.
        """
        best: dict[tuple[str, ...], tuple[float, Recipe, Path]] = {}
        for recipe in static_recipes():
            path = self._make(recipe)
            divergence = self._divergence(path)
            self._say(f"{recipe}: outputs of calibration rows differ by {divergence:.2%}")
            if divergence < best.get(recipe.operations, (np.inf,))[0]:
                best[recipe.operations] = (divergence, recipe, path)
        made = {recipe: path for _, recipe, path in best.values()}
        first = self._quantizer.first_products()
        if len(first) < len(self._quantizer.products()):
            made |= {recipe: self._make(recipe) for recipe in [in_float(one, first) for one in made]}
        speeds = {recipe: rates.speed_up(self._measured(recipe, path)) for recipe, path in made.items()}
        _, nearest, _ = min(best.values(), key=lambda entry: entry[0])
        return sorted(speeds, key=lambda recipe: -speeds[recipe]), nearest

    def _float_nodes(self, recipe: Recipe) -> Iterator[tuple[str, ...]]:
        """Nodes to leave in float: those without which the outputs of calibration rows differ least."""
        products = self._quantizer.products()
        if len(products) > _JUDGED_NODES:
            products = products[: _JUDGED_NODES // 2] + products[-_JUDGED_NODES // 2 :]
        harm = {name: self._divergence(self._make(in_float(recipe, (name,)))) for name in products}
        harmful = sorted(products, key=lambda name: harm[name])
        for count in _FLOAT_NODES:
            if count < len(products):
                yield tuple(harmful[:count])

    def _judged(self, recipe: Recipe, path: Path) -> Found | None:
        """The graph with its figures, or None where it does not keep the demands; why not is noted."""
        # A dynamic graph takes its scale from all rows of a run: a row alone is what a client gets.
        at_once = self._rows_at_once() if recipe.calibration else self._source.fixed_batch or 1
        answers = outputs(onnx_graph(path), self._held_out, at_once)
        comparison = figures.compare(self._figure, self._float_outputs, answers)
        text = f"{recipe}: {comparison.figure} {comparison.int8:.6g}"
        if comparison.loss > self._demands.max_loss:
            self._lost = True
            worse = f"{comparison.loss:.2%} worse" if np.isfinite(comparison.loss) else "worse than 0"
            self._say(f"{text}, refused: {worse}")
            return None
        measured = self._measured(recipe, path)
        faster = rates.speed_up(measured)
        if faster < self._demands.min_speed_up:
            self._say(f"{text}, refused: {faster:.2f}x as fast")
            return None
        self._say(f"{text}, taken: {faster:.2f}x as fast")
        differences = {name: _difference(array, answers[name]) for name, array in self._float_outputs.items()}
        return Found(path, recipe, comparison, measured, differences)

    def _make(self, recipe: Recipe) -> Path:
        self._made += 1
        path = self._scratch / f"{self._made}.onnx"
        self._quantizer.make(recipe, path)
        return path

    def _divergence(self, path: Path) -> float:
        return figures.divergence(self._expected, outputs(onnx_graph(path), self._calibration, self._rows_at_once()))

    def _measured(self, recipe: Recipe, path: Path) -> dict[int, Rate]:
        if recipe not in self._rates:
            found = rates.compare(self._source.path, path, self._held_out, self._source.fixed_batch)
            self._rates[recipe] = found
        return self._rates[recipe]

    def _rows_at_once(self) -> int:
        return self._source.fixed_batch or _ROWS_AT_ONCE


def outputs(run: Run, rows: Rows, at_once: int) -> dict[str, Array]:
    """The outputs for all rows, asked in parts.

    Raises:
        ExportError: the graph does not take the rows, or does not answer row by row.
    """
    parts: dict[str, list[Array]] = {}
    count = len(next(iter(rows.values())))
    try:
        for batch in batches(rows, at_once):
            for name, array in run(batch).items():
                parts.setdefault(name, []).append(array)
        whole = {name: np.concatenate(arrays) for name, arrays in parts.items()}
    except Exception as error:  # whatever the engine raises on inputs that it does not take
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ExportError(f"the graph refuses the rows: {lines[0][:300]}") from error
    for name, array in whole.items():
        if len(array) != count:
            raise ExportError(f"'{name}' has {len(array)} rows for {count} of the inputs: it cannot be compared")
    return whole


def _difference(expected: Array, found: Array) -> float:
    if expected.dtype.kind != "f":
        return float((expected != found).mean())
    return float(np.abs(expected - found).max(initial=0.0))
