"""The contract of a model: what a version takes and gives, and what it means.

It stands in the manifest of every version (`manifest.schema.json`). Whoever needs a model's tensors, labels, task or
preprocessing reads them there: gateway, page, clients, evaluation. Imports nothing heavy.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

SIGNATURE = "serving_default"
TASKS = ("tensors", "image-classification", "text", "tabular", "molecules", "board", "regression")
BATCH = "batch"
SIMILARITY = "similarity"  # the unit of an output that tells how like a row is to a training row: 0 to 1, the same


class ContractError(ValueError):
    """A contract that contradicts itself or is not written as the schema says; the message names the field."""


@dataclass(frozen=True)
class Tensor:
    """One named input or output.

    `dtype` is numpy's name of the type ("uint8", "float32", "int64"; "object" for strings). `shape` is the full shape
    with None for the free dimensions, and `free` says what each of these means, in their order: "batch" for the first
    dimension and "any" for others, unless said otherwise. `unit` is what the numbers count ("probability", "USD"),
    where that is known; "similarity" is that of a row to the training row which is most like it. `ranks` is
    set on an output of class numbers: it names the float output whose last axis the numbers point into, so that two
    engines may differ on them where that output is tied.
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...]
    ranks: str = ""
    free: tuple[str, ...] = ()
    unit: str = ""

    def __post_init__(self) -> None:
        places = [place for place, size in enumerate(self.shape) if size is None]
        named = (*self.free, *[""] * len(places))
        free = tuple(name or (BATCH if place == 0 else "any") for place, name in zip(places, named, strict=False))
        object.__setattr__(self, "free", free)


@dataclass(frozen=True)
class Fingerprint:
    """How a molecule becomes bits: "morgan" of a radius (in bonds), hashed to a number of bits."""

    kind: str
    radius: int
    bits: int


@dataclass(frozen=True)
class Descriptors:
    """What RDKit tells of a molecule beside its Morgan fingerprint.

    `counts` is the uint8 tensor of how often things occur, at most 255 times: Morgan's environments and topological
    torsions, hashed to as many numbers as the fingerprint has bits, then the 167 MACCS keys. `values` is the float32
    tensor of the descriptors called `names`: 0 for what is no finite number, and nothing beyond a million. `rdkit` is
    the version that described the training molecules, `digest` the SHA-256 of what it says of a few molecules.
    """

    counts: str
    values: str
    names: tuple[str, ...]
    rdkit: str
    digest: str


@dataclass(frozen=True)
class Preprocessing:
    """What is done to a person's input before the graph, which takes tensors.

    `input` is the tensor that it fills. For an image: `size` is (height, width) in pixels, `colour` is "grey" or "rgb",
    `resize` is "crop" (the central square, scaled), "stretch" (the whole picture, scaled) or "centred" (dark or light
    ink, centred by its mass); then (pixel * `scale` - `mean`) / `deviation`, with `mean` and `deviation` a number for
    each colour, and the colours before height and width where `layout` is "channels-first". For text: `vocabulary` is
    the asset with one word a line. For molecules: `fingerprint`, and `descriptors` where other tensors stand beside it.
    """

    input: str
    size: tuple[int, int] | None = None
    colour: str = ""
    resize: str = ""
    vocabulary: str = ""
    fingerprint: Fingerprint | None = None
    layout: str = ""
    scale: float = 1.0
    mean: tuple[float, ...] = ()
    deviation: tuple[float, ...] = ()
    descriptors: Descriptors | None = None


@dataclass(frozen=True)
class Example:
    """One request in the REST form: `inputs` and the `outputs` that the version gave when it was made."""

    inputs: Mapping[str, Any]
    outputs: Mapping[str, Any]


@dataclass(frozen=True)
class Contract:
    """The tensors of one model under the signature `signature`, and what they mean.

    `version` is the contract's own number: it grows when a tensor's name, type or meaning changes, and never otherwise.
    `task` is one of TASKS. `labels` names the classes of the outputs in order, or is empty where the outputs are no
    classes. `assets` are the files that a version carries in its folder `assets/`. A contract without inputs and
    outputs is that of a manifest from before contracts were written into them: only its name is known.
    """

    model: str
    version: int
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    labels: tuple[str, ...] = ()
    assets: tuple[str, ...] = ()
    task: str = "tensors"
    preprocessing: Preprocessing | None = None
    example: Example | None = None
    signature: str = SIGNATURE
    columns: tuple[str, ...] = field(default=())  # names of the columns of a table's one input, in order

    @property
    def id(self) -> str:
        """The name of the contract, such as "digits/1"."""
        return f"{self.model}/{self.version}"

    @property
    def whole(self) -> bool:
        """Whether more than the name is known."""
        return bool(self.outputs)


def to_json(contract: Contract) -> dict[str, Any]:
    """The contract as the manifest has it; what is empty is left out, but for inputs, outputs and their shapes."""
    content: dict[str, Any] = {
        "id": contract.id,
        "model": contract.model,
        "version": contract.version,
        "task": contract.task,
        "signature": contract.signature,
        "inputs": [_tensor_to_json(tensor) for tensor in contract.inputs],
        "outputs": [_tensor_to_json(tensor) for tensor in contract.outputs],
    }
    for name in ("labels", "assets", "columns"):
        if getattr(contract, name):
            content[name] = list(getattr(contract, name))
    if contract.preprocessing is not None:
        content["preprocessing"] = _without_empty(dataclasses.asdict(contract.preprocessing))
    if contract.example is not None:
        content["example"] = {"inputs": dict(contract.example.inputs), "outputs": dict(contract.example.outputs)}
    return content


def from_json(content: Any) -> Contract:
    """The contract of a manifest: an object as `to_json` gives, or only its name ("digits/1") in an older manifest.

    Raises:
        ContractError: it is neither; the message names the field.
    """
    if isinstance(content, str):
        model, _, number = content.rpartition("/")
        if not model or not number.isdigit():
            raise ContractError(f"the contract '{content[:60]}' is no name such as 'digits/1'")
        return Contract(model, int(number), (), ())
    try:
        preprocessing, example = content.get("preprocessing"), content.get("example")
        contract = Contract(
            model=_text(content["model"]),
            version=int(content["version"]),
            inputs=tuple(_tensor_from_json(tensor) for tensor in content["inputs"]),
            outputs=tuple(_tensor_from_json(tensor) for tensor in content["outputs"]),
            labels=tuple(_text(label) for label in content.get("labels", ())),
            assets=tuple(_text(name) for name in content.get("assets", ())),
            task=_text(content["task"]),
            preprocessing=None if preprocessing is None else _preprocessing_from_json(preprocessing),
            example=None if example is None else Example(dict(example["inputs"]), dict(example["outputs"])),
            signature=_text(content.get("signature", SIGNATURE)),
            columns=tuple(_text(name) for name in content.get("columns", ())),
        )
    except KeyError as error:
        raise ContractError(f"the contract has no field {error}") from error
    except (TypeError, ValueError, AttributeError) as error:
        raise ContractError(f"the contract is malformed: {error}") from error
    if contract.task not in TASKS:
        raise ContractError(f"the contract's task '{contract.task}' is none of {', '.join(TASKS)}")
    return contract


def shape_text(tensor: Tensor) -> str:
    """A text such as "uint8 [batch, 28, 28]" or "string [batch]"."""
    free = iter(tensor.free)
    sizes = ", ".join(next(free) if size is None else str(size) for size in tensor.shape)
    return f"{'string' if tensor.dtype == 'object' else tensor.dtype} [{sizes}]"


def _tensor_to_json(tensor: Tensor) -> dict[str, Any]:
    content: dict[str, Any] = {"name": tensor.name, "dtype": tensor.dtype, "shape": list(tensor.shape)}
    if tensor.free:
        content["free"] = list(tensor.free)
    if tensor.unit:
        content["unit"] = tensor.unit
    if tensor.ranks:
        content["ranks"] = tensor.ranks
    return content


def _tensor_from_json(content: Any) -> Tensor:
    shape = tuple(content["shape"])
    if not all(size is None or (type(size) is int and size >= 0) for size in shape):
        raise ContractError(f"the shape {list(shape)} of '{content['name']}' has a size that is no whole number")
    return Tensor(
        name=_text(content["name"]),
        dtype=_text(content["dtype"]),
        shape=shape,
        ranks=_text(content.get("ranks", "")),
        free=tuple(_text(name) for name in content.get("free", ())),
        unit=_text(content.get("unit", "")),
    )


def _preprocessing_from_json(content: Any) -> Preprocessing:
    size, fingerprint, descriptors = content.get("size"), content.get("fingerprint"), content.get("descriptors")
    if size is not None:
        height, width = size
        size = (int(height), int(width))
    return Preprocessing(
        input=_text(content["input"]),
        size=size,
        colour=_text(content.get("colour", "")),
        resize=_text(content.get("resize", "")),
        vocabulary=_text(content.get("vocabulary", "")),
        fingerprint=None
        if fingerprint is None
        else Fingerprint(_text(fingerprint["kind"]), int(fingerprint["radius"]), int(fingerprint["bits"])),
        layout=_text(content.get("layout", "")),
        scale=float(content.get("scale", 1.0)),
        mean=tuple(float(value) for value in content.get("mean", ())),
        deviation=tuple(float(value) for value in content.get("deviation", ())),
        descriptors=None
        if descriptors is None
        else Descriptors(
            counts=_text(descriptors["counts"]),
            values=_text(descriptors["values"]),
            names=tuple(_text(name) for name in descriptors["names"]),
            rdkit=_text(descriptors["rdkit"]),
            digest=_text(descriptors["digest"]),
        ),
    )


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ContractError(f"{value!r} is no text")
    return value


def _without_empty(content: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in content.items() if value not in ("", None, (), 1.0)}
