"""A version in words, for `bookserve models show`."""

from collections.abc import Iterator, Mapping

from bookserve.export.contracts import Contract, Tensor, shape_text
from bookserve.export.manifest import DataCard, HalfPrecision, Manifest, Quantization

_LABELS = 12  # that are shown


def lines(contract: Contract) -> Iterator[str]:
    """What the version takes and gives: a line a tensor, then the task, the labels and the preprocessing."""
    yield f"task      {contract.task}, signature {contract.signature}"
    for direction, tensors in (("in", contract.inputs), ("out", contract.outputs)):
        for tensor in tensors:
            yield f"{direction:<9} {tensor.name}: {_tensor(tensor)}"
    if contract.columns:
        yield f"columns   {', '.join(contract.columns)}"
    if contract.labels:
        more = f" and {len(contract.labels) - _LABELS} more" if len(contract.labels) > _LABELS else ""
        yield f"labels    {', '.join(contract.labels[:_LABELS])}{more}"
    if contract.assets:
        yield f"assets    {', '.join(contract.assets)}"
    if contract.preprocessing is not None:
        parts = contract.preprocessing
        told = [f"{parts.size[0]} x {parts.size[1]} pixels"] if parts.size else []
        told += [text for text in (parts.colour, parts.resize, parts.vocabulary, parts.layout) if text]
        if parts.fingerprint is not None:
            told.append(f"{parts.fingerprint.kind} of radius {parts.fingerprint.radius}, {parts.fingerprint.bits} bits")
        if parts.descriptors is not None:
            beside = parts.descriptors
            told.append(f"and {beside.counts}, and {len(beside.names)} {beside.values} of RDKit {beside.rdkit}")
        yield f"before    {parts.input}: {', '.join(told)}"
    if contract.example is not None:
        yield "example   in the manifest, with its outputs"


def origin(found: Manifest) -> Iterator[str]:
    """Where the version came from and how good it is."""
    numbers = f", configuration {found.configuration}, profile {found.profile}, seed {found.seed}"
    yield f"created   {found.created}{numbers if found.profile else ''}"
    if found.data is not None:
        yield f"data      {found.data.source}: {found.data.name}, SHA-256 {found.data.sha256}"
    if found.data_card is not None:
        yield from (f"rows      {line}" for line in data_card(found.data_card))
    if found.source is not None:
        yield f"source    {found.source.format}: {found.source.name}, SHA-256 {found.source.sha256}"
    for split, figures in found.metrics.items():
        yield f"{split:<9} " + "  ".join(f"{figure} {value:.6g}" for figure, value in figures.items())
    if found.parity:
        yield "parity    " + "  ".join(f"{output} {value:.2g}" for output, value in found.parity.items())
    if found.quantization is not None:
        yield from (f"int8      {line}" for line in quantization(found.quantization))
    for precision, half in (("float16", found.float16), ("bfloat16", found.bfloat16)):
        if half is not None:
            yield from (f"{precision:9} {line}" for line in half_precision(precision, half, found.parity))
    if found.rows_independent is not None:
        yield f"rows      declared {'independent' if found.rows_independent else 'dependent'}"
    yield "made with " + "  ".join(f"{library} {number}" for library, number in found.made_with.items())


def data_card(found: DataCard) -> list[str]:
    """The rows of a training."""
    told = [", ".join(f"{split} {found.rows[split]:,}" for split in found.splits)]
    if found.duplicates:
        told[0] += "; in two splits: " + ", ".join(f"{name} {count:,}" for name, count in found.duplicates.items())
    if found.left_out:
        told[0] += f"; left out: {found.left_out:,}"
    return told


def quantization(found: Quantization) -> list[str]:
    """How an int8 graph was made, and what it is worth."""
    interval = f", 95 % interval {found.interval[0]:+.3g} to {found.interval[1]:+.3g}" if found.interval else ""
    how = f"{found.method}, {found.calibration}" if found.calibration else found.method
    kept = f", in float: {', '.join(found.float_nodes)}" if found.float_nodes else ""
    smaller = found.bytes["int8"] / found.bytes["float32"]
    change = f"{found.difference:+.3g}{interval}"
    told = [
        f"int8 ({how}) of version {found.version}{kept}",
        f"{found.figure} {found.int8:.6g}, float {found.float32:.6g}: {change}, on {found.rows} rows",
        f"graph {found.bytes['int8']:,} bytes, {smaller:.0%} of {found.bytes['float32']:,}",
    ]
    for batch, rate in found.rates.items():
        told.append(
            f"batch {batch}: {rate['int8']:,.0f} rows a second of one core, float {rate['float32']:,.0f}: "
            f"{rate['speed_up']:.2f}x"
        )
    return told


def half_precision(precision: str, found: HalfPrecision, parity: Mapping[str, float]) -> list[str]:
    """How a float16 or bfloat16 graph was made, and how near its answers are."""
    smaller = found.bytes[precision] / found.bytes["float32"]
    worst = ", ".join(f"{name} {value:.2g}" for name, value in parity.items())
    return [
        f"{precision} of version {found.version}; inputs and outputs have their types of before",
        f"largest differences on {found.rows} {'random ' if found.drawn else ''}rows: {worst}",
        f"allowed: {found.tolerance:g} of an output's largest value, on the CPU; GPUs may be further off",
        f"compared on {found.processor}",
        f"graph {found.bytes[precision]:,} bytes, {smaller:.0%} of {found.bytes['float32']:,}",
        *(["on CPUs it is computed in float32"] if precision == "bfloat16" else []),
    ]


def _tensor(tensor: Tensor) -> str:
    return shape_text(tensor) + (f", {tensor.unit}" if tensor.unit else "")
