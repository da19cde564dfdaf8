"""The command `bookserve models quantize`. It only parses, calls and prints."""

from pathlib import Path

import click

from bookserve.export.confined import Limits
from bookserve.export.errors import ExportError
from bookserve.export.options import max_memory_option, models_dir_option
from bookserve.export.quantization import half
from bookserve.export.quantization import quantize as quantizing
from bookserve.export.quantization.demands import METHODS, Demands
from bookserve.export.store import ModelStore

PRECISIONS = ("int8", *half.PRECISIONS)
method_option = click.option(
    "--method",
    type=click.Choice(METHODS),
    default="auto",
    show_default=True,
    help="auto: static, and dynamic where static will not do.",
)
max_loss_option = click.option(
    "--max-loss",
    type=click.FloatRange(min=0),
    default=Demands.max_loss,
    show_default=True,
    help="How much worse the figure may get, as a fraction of it.",
)
min_speed_up_option = click.option(
    "--min-speed-up",
    type=click.FloatRange(min=0),
    default=Demands.min_speed_up,
    show_default=True,
    help="How much faster it must be: the mean of batches of 1 and 16.",
)
calibration_rows_option = click.option(
    "--calibration-rows",
    type=click.IntRange(min=1),
    default=1_000,
    show_default=True,
    help="Rows from which the ranges of the activations are taken.",
)


@click.command()
@click.argument("name")
@click.argument("version", type=click.IntRange(min=1), required=False)
@click.option(
    "--precision",
    type=click.Choice(PRECISIONS),
    default=PRECISIONS[0],
    show_default=True,
    help="int8: for CPUs, with a figure. float16, bfloat16: for GPUs, half the size; the other options are for int8.",
)
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    default=None,
    help="Rows: .npz with an array for each input, .npy for one, or a table in .csv. Those that do not calibrate are "
    "for the figure. The others are compared on them, or else on random rows.",
)
@click.option(
    "--targets",
    metavar="ARRAY",
    default=None,
    help="The array or column with the right answers: classes, labels or numbers; by default 'targets' or 'labels', if "
    "any. Without targets the figure is how far int8 agrees with float.",
)
@method_option
@max_loss_option
@min_speed_up_option
@calibration_rows_option
@click.option(
    "--max-seconds", type=click.FloatRange(min=1), default=1800.0, show_default=True, help="The whole may take."
)
@max_memory_option
@models_dir_option
def quantize(
    name: str,
    version: int | None,
    precision: str,
    data: Path | None,
    targets: str | None,
    method: str,
    max_loss: float,
    min_speed_up: float,
    calibration_rows: int,
    max_seconds: float,
    max_memory: int,
    models_dir: Path,
) -> None:
    """Make the next version of NAME with an int8 graph, smaller and faster than the float graph of VERSION.

    VERSION is by default the newest one that is float32. Only ONNX graphs are quantised. Figure, size and speed of
    both graphs are measured, and stand in the manifest and the model card. A graph that loses more than --max-loss, or
    is not faster, is not published: the command ends with status 1 then.

    With --precision float16 or bfloat16 the graph is that, but for inputs and outputs. It is published if its answers
    are near enough to the float32 graph's, on the CPU; figure and speed are not measured. A server without a GPU does
    not load a bfloat16 graph.
    """
    if precision == "int8" and data is None:
        raise click.UsageError("--precision int8 needs --data: rows that calibrate and rows for the figure")
    if precision != "int8" and targets is not None:
        raise click.UsageError("--targets is for --precision int8")
    wishes = quantizing.Wishes(targets, calibration_rows, Demands(method, max_loss, min_speed_up))
    limits = Limits(max_seconds, max_memory << 20)
    try:
        if data is None or precision != "int8":
            half.halve(ModelStore(models_dir), name, version, precision, data, limits, click.echo)
        else:
            quantizing.quantize(ModelStore(models_dir), name, version, data, wishes, limits, click.echo)
    except ExportError as error:
        raise click.ClickException(str(error)) from error
