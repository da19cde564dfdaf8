"""The trial of a model in the child: convert it, run the source and every graph on the same inputs, compare them.

What is left in the version folder is complete but for the manifest and the card.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bookserve.export import contracts, example_inputs, golden, parity, warmup
from bookserve.export.contracts import Contract, Preprocessing, Tensor
from bookserve.export.converters import choose, hugging_face_folder
from bookserve.export.converters.source import ONNX, SAVED_MODEL, Converted, Rows, Run, Wishes
from bookserve.export.errors import ExportError
from bookserve.serving.wire import missing_package, pictures

_ROW = 2  # axes
_MISSING = 0.3  # share of the numbers that are taken away where rows with missing ones are compared
EXAMPLE = "assets.extra/example.json"  # inside the version folder: the body of a REST request


def run(job: dict[str, Any]) -> dict[str, Any]:
    """Make the version of `job` in its folder; returns what the manifest needs.

    `job` has "path", "folder", "model", "task", "labels", "example", "trust".

    Raises:
        ExportError: the model cannot be converted, a library is missing, or a graph does not compute what the source
            computes.
    """
    path, folder = Path(job["path"]), Path(job["folder"])
    example = Path(job["example"]) if job["example"] else None
    converter = choose.converter(path)
    (folder / "assets.extra").mkdir(exist_ok=True)
    try:
        converted = converter.convert(path, folder, Wishes(job["model"], job["trust"], example))
    except ModuleNotFoundError as error:
        raise ExportError(
            f"models of {converter.FORMAT} need {missing_package.told(error, converter.EXTRA)}"
        ) from error
    if example is not None and example.suffix.lower() in pictures.SUFFIXES:
        means = _means(converted.contract, job["task"], job.get("preprocessor"))
        converted = replace(converted, contract=replace(converted.contract, preprocessing=means))
    rows, expected = _ask_source(converted, example)
    contract = _with_probabilities(_observed(converted.contract, expected), folder)
    contract = _meaning(contract, job["task"], job["labels"], job.get("preprocessor"))
    try:
        differences = _compare(contract, converted, rows, expected)
    except ExportError as error:
        converted = _without_onnx(converted, folder, error)
        differences = _compare(contract, converted, rows, expected)
    if (example or converted.example) and converted.columns:  # few rows take few of the ways through trees
        differences |= _compare_drawn(contract, converted, differences)
    if converted.missing:
        _compare_missing(contract, converted, rows)
    one = golden.first_row(contract, rows)
    answer = _run(next(iter(converted.graphs.values())), one, "the version's graph")
    contract = replace(contract, example=golden.example(contract, one, answer))
    body = {
        "signature_name": contract.signature,
        "inputs": {name: example_inputs.to_rest(v) for name, v in one.items()},
    }
    (folder / EXAMPLE).write_text(json.dumps(body) + "\n", encoding="utf-8")
    few = {name: array[: example_inputs.ROWS] for name, array in rows.items()} if converted.columns else rows
    warmup.write(folder / warmup.LOCATION, contract, few)
    return {
        "format": converter.FORMAT,
        "contract": contracts.to_json(contract),
        "parity": differences,
        "notes": list(converted.notes),
        "graphs": list(converted.graphs),
        "rows": "the example's" if example or converted.example else "random",
        "made_with": _versions(("bookserve", "numpy", *converted.made_with)),
    }


def _ask_source(converted: Converted, example: Path | None) -> tuple[Rows, dict[str, npt.NDArray[Any]]]:
    """The inputs, and what the source answers to them: an example's, or the first random ones that it takes, if there
    are any without NaN in the answer.
    """
    contract = converted.contract
    if example is not None:
        rows: Rows = example_inputs.read(example, contract)
        return rows, _run(converted.reference, rows, "the source")
    if converted.example is not None:
        rows = example_inputs.fit(converted.example, contract, "the model's own example")
        return rows, _run(converted.reference, rows, "the source")
    first: ExportError | None = None
    unusable = None
    for rows in example_inputs.draw(contract, converted.tables, converted.columns):
        try:
            answer = _run(converted.reference, rows, "the source")
        except ExportError as error:
            first = first or error
            continue
        if not _holds_nan(answer):
            return rows, answer
        unusable = unusable or (rows, answer)
    if unusable:
        return unusable
    raise ExportError(f"{first}; random inputs do not do for this model: give --example FILE (.npz, .json, .csv)")


def _run(run: Run, rows: Rows, what: str) -> dict[str, npt.NDArray[Any]]:
    try:
        return run(rows)
    except Exception as error:  # whatever the engine raises on inputs that it does not take
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ExportError(f"{what} refuses the inputs: {lines[0][:300]}") from error


def _observed(contract: Contract, answers: dict[str, npt.NDArray[Any]]) -> Contract:
    """The contract with the types, ranks and sizes that the source's outputs have, where it says others or no type."""
    outputs = []
    for tensor in contract.outputs:
        array = np.asarray(answers[tensor.name])
        shape: tuple[int | None, ...] = tensor.shape
        if len(shape) != array.ndim:
            shape = (None,) * array.ndim
        inner = zip(shape[1:], array.shape[1:], strict=True)
        shape = (*shape[:1], *(None if size is None else found for size, found in inner))
        outputs.append(replace(tensor, shape=shape, dtype="object" if array.dtype.kind in "SUO" else array.dtype.name))
    return replace(contract, outputs=tuple(outputs))


def _with_probabilities(contract: Contract, folder: Path) -> Contract:
    """The contract with the unit of outputs that the ONNX graph shows to be probabilities, a row of them at most."""
    if not (folder / ONNX).is_file():
        return contract
    import onnx

    from bookserve.export import onnx_contract

    found = onnx_contract.probabilities(onnx.load(folder / ONNX, load_external_data=False))
    outputs = (
        replace(tensor, unit="probability")
        if not tensor.unit and tensor.name in found and tensor.dtype.startswith("float") and len(tensor.shape) <= _ROW
        else tensor
        for tensor in contract.outputs
    )
    return replace(contract, outputs=tuple(outputs))


def _meaning(contract: Contract, task: str | None, labels: list[str] | None, preprocessor: str | None) -> Contract:
    """The contract with the user's task, labels and preprocessing of pictures, checked against its tensors."""
    if labels:
        if not any(_last(tensor) in (None, len(labels)) for tensor in contract.outputs if tensor.shape):
            sizes = ", ".join(contracts.shape_text(tensor) for tensor in contract.outputs)
            raise ExportError(f"--labels has {len(labels)} labels, which no output fits: {sizes}")
        contract = replace(contract, labels=tuple(labels))
    means = _means(contract, task, preprocessor)
    known = task or ("image-classification" if preprocessor is not None else contract.task)
    return replace(contract, task=known, preprocessing=means)


def _means(contract: Contract, task: str | None, preprocessor: str | None) -> Preprocessing | None:
    """How pictures become numbers: as the user's file says, as the source says, or, where the task is theirs, plainly.

    Raises:
        ExportError: the file has no size, or the model takes no pictures.
    """
    if preprocessor is not None:
        means = hugging_face_folder.pixels(Path(preprocessor), contract) if len(contract.inputs) == 1 else None
        if means is None:
            shapes = ", ".join(contracts.shape_text(tensor) for tensor in contract.inputs)
            raise ExportError(
                f'{preprocessor} has no size ({{"size": {{"height": 224, "width": 224}}}}), or the model takes no '
                f"pictures: {shapes}"
            )
        return means
    if task == "image-classification" and contract.preprocessing is None:
        return _pixels(contract.inputs)
    return contract.preprocessing


def _last(tensor: Tensor) -> int | None:
    """The last dimension behind the rows that is not 1, as networks have some of 1 that end in a pooling."""
    return next((size for size in reversed(tensor.shape[1:]) if size != 1), tensor.shape[-1])


def _pixels(inputs: tuple[Tensor, ...]) -> Preprocessing:
    if len(inputs) == 1:
        sizes = inputs[0].shape[1:]
        layout = ""
        if len(sizes) == 3 and sizes[0] in (1, 3) and None not in sizes:
            layout, sizes = "channels-first", (*sizes[1:], sizes[0])
        channels = sizes[2] if len(sizes) == 3 else 1
        height, width = (*sizes, None, None)[:2]
        if len(sizes) in (2, 3) and height and width and channels in (1, 3):
            scale = 1 / 255 if np.dtype(inputs[0].dtype).kind == "f" else 1.0
            colour = "rgb" if channels == 3 else "grey"
            return Preprocessing(inputs[0].name, (height, width), colour, "crop", layout=layout, scale=scale)
    shapes = ", ".join(contracts.shape_text(tensor) for tensor in inputs)
    raise ExportError(
        f"--task image-classification needs one input of a fixed height and width; the model has {shapes}: give the "
        'size of its pictures with --preprocessor FILE, such as {"size": {"height": 224, "width": 224}}'
    )


def _compare(
    contract: Contract, converted: Converted, rows: Rows, expected: dict[str, npt.NDArray[Any]]
) -> dict[str, float]:
    """Output -> the largest difference over all graphs and engines, on all rows and on the first alone.

    Checks that compute in fewer bits have to be within their tolerance, and are left out of the figure.
    """
    differences = dict.fromkeys((tensor.name for tensor in contract.outputs), 0.0)
    batches = [(rows, expected)]
    if all(tensor.shape[:1] == (None,) for tensor in contract.inputs):
        one = golden.first_row(contract, rows)
        batches.append((one, _run(converted.reference, one, "the source")))
    sizes = parity.largest(expected)
    for name, run in {**converted.graphs, **converted.checks}.items():
        tolerance = converted.rounded.get(name, converted.tolerance)
        for batch, wanted in batches:
            found = _run(run, batch, name)
            for tensor in contract.outputs:
                difference = parity.difference(
                    tensor, wanted, found, ("the source", name), tolerance, _holds_nan(batch), sizes
                )
                if name in converted.graphs or name not in converted.rounded:
                    differences[tensor.name] = max(differences[tensor.name], difference)
    return differences


def _without_onnx(converted: Converted, folder: Path, error: ExportError) -> Converted:
    """The version with its SavedModel alone, where the ONNX graph made of it answers otherwise.

    Raises:
        ExportError: `error`, where there is no SavedModel besides.
    """
    if not {ONNX, SAVED_MODEL} <= converted.graphs.keys():
        raise error
    (folder / ONNX).unlink()
    graphs = {name: run for name, run in converted.graphs.items() if name != ONNX}
    why = f"kept as a SavedModel alone, which TensorFlow serves ('bookserve[tensorflow]'): {error}"
    return replace(converted, graphs=graphs, notes=(*converted.notes, why))


def _compare_drawn(contract: Contract, converted: Converted, known: Mapping[str, float]) -> dict[str, float]:
    """The larger of the known differences and those on the first inputs drawn from columns that the source takes."""
    for rows in islice(example_inputs.draw(contract, converted.tables, converted.columns), 2):
        try:
            expected = _run(converted.reference, rows, "the source")
        except ExportError:
            continue
        found = _compare(contract, converted, rows, expected)
        return {name: max(difference, known[name]) for name, difference in found.items()}
    return dict(known)


def _compare_missing(contract: Contract, converted: Converted, rows: Rows) -> None:
    """Compare the answers to rows in which numbers are missing (NaN), where the source answers such rows.

    Raises:
        ExportError: a graph answers otherwise.
    """
    chance = np.random.default_rng(1)
    drawn = islice(example_inputs.draw(contract, converted.tables, converted.columns), 2)
    for whole in drawn if converted.columns else [rows]:  # an example may have a single row
        gaps = {name: array.copy() for name, array in whole.items()}
        for array in gaps.values():
            if array.dtype.kind == "f":
                array[chance.random(array.shape) < _MISSING] = np.nan
        if not _holds_nan(gaps):
            continue
        try:
            expected = _run(converted.reference, gaps, "the source")
        except ExportError:
            continue
        _compare_gaps(contract, converted, gaps, expected)


def _compare_gaps(contract: Contract, converted: Converted, gaps: Rows, expected: dict[str, npt.NDArray[Any]]) -> None:
    for name, run in converted.graphs.items():
        try:
            found = _run(run, gaps, name)
            for tensor in contract.outputs:
                parity.difference(tensor, expected, found, ("the source", name), converted.tolerance, nan_expected=True)
        except ExportError as error:
            raise ExportError(
                f"of rows with missing numbers (NaN), which the model answers, {error}: train it with a step that ONNX"
                " has (SimpleImputer without an indicator)"
            ) from error


def _holds_nan(rows: Mapping[str, npt.NDArray[Any]]) -> bool:
    return any(array.dtype.kind in "fc" and bool(np.isnan(array).any()) for array in rows.values())


def _versions(libraries: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for name in libraries:
        try:
            found[name] = installed_version(name)
        except PackageNotFoundError:
            continue
    return found
