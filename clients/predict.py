"""`bookserve predict NAME INPUT`: one prediction, through the gateway or straight from the model server.

The contract in the version's manifest says what INPUT is: the gateway tells it, or it is read in the model store.
"""

import json
from pathlib import Path
from typing import Any

import click

from bookserve.clients import ask_gateway, ask_server, forms, gateway_client, grpc_client, rest_client
from bookserve.clients.ask_server import Choice
from bookserve.clients.errors import PredictError, Unavailable
from bookserve.clients.gateway_client import GatewayClient
from bookserve.clients.grpc_client import GrpcClient
from bookserve.clients.inputs import boards, molecules, pictures, points, words
from bookserve.clients.rest_client import RestClient
from bookserve.export.contracts import Contract
from bookserve.export.errors import ExportError

_BAR = 40  # characters
_MANY, _FEW = 30, 10  # of more than so many labels, the first so many are shown
_PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
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
@click.argument("name")
@click.argument("source", metavar="INPUT")
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
@click.option("--version", type=click.IntRange(1), help="Ask this version instead of the newest.")
@click.option("--label", help="Ask the version that has this label.")
@click.option(
    "--models-dir",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="The model store, where --grpc and --rest read what a model takes.  [default: models, if it is there]",
)
@click.option("--json", "as_json", is_flag=True, help="Print the answer as JSON.")
def main(
    name: str,
    source: str,
    gateway: str | None,
    grpc_target: str | None,
    rest_url: str | None,
    version: int | None,
    label: str | None,
    models_dir: Path | None,
    as_json: bool,
) -> None:
    """Ask the model NAME for one prediction.

    INPUT is what a person has, by the task of the model (bookserve models show NAME):

    \b
    regression, tabular   numbers                     1.5    -0.2,0.8
    image-classification  a picture                   seven.png
    molecules             a molecule as SMILES        CCO
    text                  the beginning of a text     "the stock"
    board                 three rows, a dot is free   X.O/.X./...

    Of any task, it may be tensors: a file (.json in the REST form, .npz, .csv) or JSON such as '[[1.0, 2.0]]'.

    To give INPUT after a bare --grpc or --rest, put it first: bookserve predict NAME seven.png --grpc
    """
    if sum(way is not None for way in (gateway, grpc_target, rest_url)) > 1:
        raise click.UsageError("give one of --gateway, --grpc and --rest")
    if version is not None and label is not None:
        raise click.UsageError("give one of --version and --label")
    if models_dir is None and Path("models").is_dir():
        models_dir = Path("models")
    choice = Choice(version, label, models_dir)
    try:
        answer = _ask(name, source, choice, gateway, grpc_target, rest_url)
    except Unavailable as error:
        elsewhere = ": start it with 'make serve', or say where it is (--gateway, --grpc or --rest)"
        mend = elsewhere if "nothing answers" in str(error) else ""
        raise click.ClickException(f"{error}{mend}") from error
    except (PredictError, ExportError, *_INPUT_ERRORS) as error:
        raise click.ClickException(str(error)) from error
    except OSError as error:
        raise click.ClickException(f"cannot read {source}: {error.strerror or error}") from error
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    click.echo(json.dumps(answer) if as_json else _chart(answer))


def _ask(
    name: str, source: str, choice: Choice, gateway: str | None, grpc_target: str | None, rest_url: str | None
) -> dict[str, Any]:
    if rest_url is not None:
        return _direct(RestClient(rest_url), name, source, choice)
    if grpc_target is not None:
        with GrpcClient(grpc_target) as client:
            return _direct(client, name, source, choice)
    return ask_gateway.ask(GatewayClient(gateway or gateway_client.DEFAULT_URL), name, source, choice)


def _direct(server: ask_server.Server, name: str, source: str, choice: Choice) -> dict[str, Any]:
    asked = ask_server.find(server, name, choice)
    if asked.doubt and Path(source).suffix.lower() in _PICTURES:
        click.echo(f"note: the picture is only scaled to the model's size, as {asked.doubt} (--models-dir)", err=True)
    answer = ask_server.ask(server, asked, source, choice.models_dir)
    if forms.form(asked.contract) == forms.MOLECULES:
        _tell_of_another_rdkit(asked.contract)
    return answer


def _tell_of_another_rdkit(contract: Contract) -> None:
    means = contract.preprocessing
    if means is not None and means.descriptors is not None:
        told = molecules.difference(means.descriptors, molecules.version(), molecules.digest(means.descriptors.names))
        if told:
            click.echo(f"note: {told}", err=True)


def _chart(answer: dict[str, Any]) -> str:
    """The answer for a terminal: single values a line each, probabilities as bars."""
    lines = [f"{answer['model']} version {answer['version']}"]
    for prediction in answer["predictions"]:
        for name, value in prediction.items():
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


def _short(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _bars(rows: list[tuple[str, float]]) -> list[str]:
    if len(rows) > _MANY:
        rows = sorted(rows, key=lambda row: -row[1])[:_FEW]
    width = max(len(label) for label, _ in rows)
    if not all(0 <= share <= 1 for _, share in rows):
        return [f"  {label:>{width}}  {score:.6g}" for label, score in rows]
    return [f"  {label:>{width}}  {share:7.2%}  {'█' * round(_BAR * share)}".rstrip() for label, share in rows]
