"""`bookserve predict NAME INPUT...`: predictions, through the gateway or straight from the model server.

The contract in the version's manifest says what INPUT is: the gateway tells it, or it is read in the model store.
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click

from bookserve.clients import ask_gateway, ask_server, forms, gateway_client, grpc_client, predict_inputs, rest_client
from bookserve.clients.ask_server import Choice
from bookserve.clients.completion import model_names
from bookserve.clients.errors import InvalidArgument, PredictError, ResourceExhausted, Unavailable
from bookserve.clients.gateway_client import GatewayClient
from bookserve.clients.grpc_client import GrpcClient
from bookserve.clients.inputs import boards, molecules, pictures, points, words
from bookserve.clients.outputs import UNLIKE_TRAINING
from bookserve.clients.predict_inputs import Item, Tensors, Value
from bookserve.clients.predict_output import PRINTERS, Prediction
from bookserve.clients.rest_client import RestClient
from bookserve.export.contracts import SIMILARITY, Contract
from bookserve.export.errors import ExportError

_OPTION = re.compile("--?[A-Za-z]")
_BAR = 40  # characters
_MANY, _FEW = 30, 10  # of more than so many labels, the first so many are shown
# Values of a request, within the gateway's default limits.
_MOST = dict.fromkeys((forms.PICTURES, forms.MOLECULES, forms.TEXT, forms.BOARD, forms.TENSORS), 32)
_MOST |= dict.fromkeys(forms.NUMBERS, 1024)
_INPUT_ERRORS = (
    boards.BoardError,
    molecules.MoleculeError,
    pictures.PictureError,
    points.NumberError,
    words.TextError,
    words.VocabularyError,
)


# An INPUT such as -0.2,0.8 is no option.
@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("name", shell_complete=model_names)
@click.argument("sources", metavar="INPUT...", nargs=-1, required=True, type=click.Path())
@click.option("--gateway", metavar="URL", help=f"Ask this gateway.  [default: {gateway_client.DEFAULT_URL}]")
@click.option(
    "--grpc",
    "grpc_target",
    metavar="HOST:PORT",
    is_flag=False,
    flag_value=grpc_client.DEFAULT_TARGET,
    help=f"Ask the model server over gRPC.  [without a value: {grpc_client.DEFAULT_TARGET}]",
)
@click.option(
    "--rest",
    "rest_url",
    metavar="URL",
    is_flag=False,
    flag_value=rest_client.DEFAULT_URL,
    help=f"Ask the model server over REST.  [without a value: {rest_client.DEFAULT_URL}]",
)
@click.option("--api-key", envvar="BOOKSERVE_API_KEY", help="For a gateway that has keys.  [env: BOOKSERVE_API_KEY]")
@click.option("--version", type=click.IntRange(1), help="Ask this version instead of the newest.")
@click.option("--label", help="Ask the version that has this label.")
@click.option(
    "--models-dir",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="The model store, where --grpc and --rest read what a model takes.  [default: models, if it is there]",
)
@click.option(
    "--output",
    type=click.Choice(["table", "csv", "json"]),
    help="How to print: a line an input, or JSON.  [default: a chart of one input, a table of many]",
)
@click.option("--json", "as_json", is_flag=True, help="The same as --output json.")
def main(
    name: str,
    sources: tuple[str, ...],
    gateway: str | None,
    grpc_target: str | None,
    rest_url: str | None,
    api_key: str | None,
    version: int | None,
    label: str | None,
    models_dir: Path | None,
    output: str | None,
    as_json: bool,
) -> None:
    """Ask the model NAME for predictions.

    INPUT is what a person has, by the task of the model (bookserve models show NAME):

    \b
    regression, tabular   numbers                     1.5    -0.2,0.8
    image-classification  a picture                   seven.png
    molecules             a molecule as SMILES        CCO
    text                  the beginning of a text     "the stock"
    board                 three rows, a dot is free   X.O/.X./...

    Of any task, it may be tensors: a file (.json in the REST form, .npz, .csv) or JSON such as '[[1.0, 2.0]]'.

    There may be many INPUTs, and one may be a folder (of pictures, or of the files below), a .csv file (of numbers; or
    with a column smiles, text or board), a .txt file with an input a line, or - for standard input (a picture, JSON, or
    an input a line).

    To give INPUT after a bare --grpc or --rest, put it first: bookserve predict NAME seven.png --grpc

    The status is 0 where every input got a prediction, 1 where one did not, 2 where the command is wrong.
    """
    for source in sources:  # which click takes for an INPUT, as it takes -0.2,0.8
        if _OPTION.match(source):
            raise click.NoSuchOption(source)
    if sum(way is not None for way in (gateway, grpc_target, rest_url)) > 1:
        raise click.UsageError("give one of --gateway, --grpc and --rest")
    if version is not None and label is not None:
        raise click.UsageError("give one of --version and --label")
    if as_json and output not in (None, "json"):
        raise click.UsageError(f"--json and --output {output} exclude each other")
    if models_dir is None and Path("models").is_dir():
        models_dir = Path("models")
    choice = Choice(version, label, models_dir)
    with ExitStack() as stack, _explained():
        if rest_url is not None:
            way = _to_server(RestClient(rest_url), name, sources, choice)
        elif grpc_target is not None:
            way = _to_server(stack.enter_context(GrpcClient(grpc_target)), name, sources, choice)
        else:
            way = _to_gateway(GatewayClient(gateway or gateway_client.DEFAULT_URL, key=api_key or ""), name, choice)
        found, many = predict_inputs.first_of(predict_inputs.items(sources, way.contract))
        if not many and output in (None, "json"):
            answer = way.ask([item.value for item in found])
            click.echo(json.dumps(answer) if as_json or output else _chart(answer, way.contract))
            return
        printed = PRINTERS["json" if as_json else output or "table"](name)
        failed = 0
        for prediction in _predictions(way, found):
            failed += prediction.error != ""
            printed.add(prediction)
        printed.end()
    if failed:
        raise SystemExit(1)


@dataclass
class _Way:
    """A server, and the contract of the version that it asks; `most` is how many values a request may have."""

    contract: Contract
    most: int
    ask: Callable[[list[Value]], dict[str, Any]]


def _to_server(server: ask_server.Server, name: str, sources: Sequence[str], choice: Choice) -> _Way:
    asked = ask_server.find(server, name, choice)
    if asked.doubt and predict_inputs.have_picture(sources):
        asked = replace(asked, reads_pictures=ask_server.reads_pictures(server, asked))
        if not asked.reads_pictures:
            note = f"note: the picture is only scaled to the model's size, as {asked.doubt} (--models-dir)"
            click.echo(note, err=True)
    for source in sources:
        ask_server.check_tensors(source, asked)
    form = forms.form(asked.contract)
    if form == forms.MOLECULES:
        _tell_of_another_rdkit(asked.contract)
    return _Way(asked.contract, _MOST[form], lambda values: ask_server.ask(server, asked, values, choice.models_dir))


def _to_gateway(client: GatewayClient, name: str, choice: Choice) -> _Way:
    contract = ask_gateway.find(client, name, choice)
    pinned = [choice]

    def ask(values: list[Value]) -> dict[str, Any]:
        answer = ask_gateway.ask(client, contract, values, pinned[0])
        # A version that is published meanwhile gives none of the answers.
        pinned[0] = Choice(answer["version"], None, choice.models_dir)
        return answer

    return _Way(contract, _MOST[forms.form(contract)], ask)


def _predictions(way: _Way, items: Iterator[Item]) -> Iterator[Prediction]:
    """The predictions of all items in turn, asked by the request; an item that is refused has its error."""
    batch: list[Item] = []
    for item in items:
        alone = isinstance(item.value, Tensors)
        if batch and (alone or len(batch) >= way.most):
            yield from _of_request(way, batch)
            batch = []
        batch.append(item)
        if alone:
            yield from _of_request(way, batch)
            batch = []
    if batch:
        yield from _of_request(way, batch)


def _of_request(way: _Way, items: Sequence[Item]) -> Iterator[Prediction]:
    """The predictions of one request; where it is refused, those of its items one by one."""
    try:
        answer = way.ask([item.value for item in items])
    except (InvalidArgument, ResourceExhausted, ExportError, OSError, *_INPUT_ERRORS) as error:
        if len(items) == 1:
            yield Prediction(items[0].name, 0, {}, _reason(error))
        else:
            for item in items:
                yield from _of_request(way, [item])
        return
    predictions, version = answer["predictions"], answer["version"]
    if len(items) == len(predictions):
        names = [item.name for item in items]
    else:  # rows of tensors
        names = [f"{items[0].name} row {number}" for number in range(1, len(predictions) + 1)]
    for name, prediction in zip(names, predictions, strict=True):
        yield Prediction(name, version, prediction, "")


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return f"cannot be read: {error.strerror or error}"
    return str(error)


@contextmanager
def _explained() -> Iterator[None]:
    """Tells what went wrong as a line, and what to do."""
    try:
        yield
    except Unavailable as error:
        elsewhere = ": start it with 'make serve', or say where it is (--gateway, --grpc or --rest)"
        mend = elsewhere if "nothing answers" in str(error) else ""
        raise click.ClickException(f"{error}{mend}") from error
    except (PredictError, ExportError, *_INPUT_ERRORS) as error:
        raise click.ClickException(str(error)) from error
    except OSError as error:
        raise click.ClickException(f"cannot read {error.filename or 'INPUT'}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise click.ClickException(f"an INPUT is not UTF-8 text: {error.reason}") from error
    except ValueError as error:
        raise click.UsageError(str(error)) from error


def _tell_of_another_rdkit(contract: Contract) -> None:
    means = contract.preprocessing
    if means is not None and means.descriptors is not None:
        told = molecules.difference(means.descriptors, molecules.version(), molecules.digest(means.descriptors.names))
        if told:
            click.echo(f"note: {told}", err=True)


def _chart(answer: dict[str, Any], contract: Contract) -> str:
    """The answer for a terminal: single values a line each, probabilities as bars."""
    lines = [f"{answer['model']} version {answer['version']}"]
    similarities = {tensor.name for tensor in contract.outputs if tensor.unit == SIMILARITY}
    for prediction in answer["predictions"]:
        for name, value in prediction.items():
            if name in similarities:
                lines.append(_nearness(value, prediction.get(UNLIKE_TRAINING)))
                continue
            if name == UNLIKE_TRAINING:
                continue
            match value:
                case dict():  # of labels
                    lines += _bars(list(value.items()))
                case [{"word": _}, *_]:
                    lines += _bars([(entry["word"], entry["probability"]) for entry in value])
                case [float() | int(), *_] if len(value) == boards.SQUARES and name == "probabilities":
                    lines += ["  " + "  ".join(f"{share:7.2%}" for share in value[row : row + 3]) for row in (0, 3, 6)]
                case []:
                    continue
                case [*items]:
                    lines.append(f"{name} {', '.join(_short(item) for item in items)}")
                case _:
                    lines.append(f"{name} {value}")
    return "\n".join(lines)


def _nearness(similarity: float, unlike: bool | None) -> str:
    told = f"nearest training molecule: similarity {similarity:.2f} of 1"
    return f"{told}, unlike the training molecules: these answers are less certain" if unlike else told


def _short(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _bars(rows: list[tuple[str, float]]) -> list[str]:
    if len(rows) > _MANY:
        rows = sorted(rows, key=lambda row: -row[1])[:_FEW]
    width = max(len(label) for label, _ in rows)
    if not all(0 <= share <= 1 for _, share in rows):
        return [f"  {label:>{width}}  {score:.6g}" for label, score in rows]
    return [f"  {label:>{width}}  {share:7.2%}  {'█' * round(_BAR * share)}".rstrip() for label, share in rows]
