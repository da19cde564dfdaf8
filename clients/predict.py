"""`bookserve predict NAME INPUT`: one prediction, through the gateway or straight from the model server.

Straight from the model server, the input is turned into tensors here, by the same code that the gateway runs.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np

from bookserve.clients import gateway_client, grpc_client, outputs, own_model, rest_client
from bookserve.clients.answers import Array, Prediction
from bookserve.clients.errors import BadAnswer, PredictError, Unavailable
from bookserve.clients.gateway_client import GatewayClient
from bookserve.clients.grpc_client import GrpcClient
from bookserve.clients.inputs import boards, molecules, pictures, points, words
from bookserve.clients.rest_client import RestClient
from bookserve.export.book_contracts import CIFAR10, LINEAR, LOGISTIC, MNIST, PTB, TICTACTOE, TOX21
from bookserve.export.contracts import Contract
from bookserve.export.errors import ExportError

_BAR = 40  # characters
_INPUT_ERRORS = (
    boards.BoardError,
    molecules.MoleculeError,
    pictures.PictureError,
    points.NumberError,
    words.TextError,
    words.VocabularyError,
)


_TOP_K = 5

_Server = GrpcClient | RestClient


@dataclass(frozen=True)
class _Wanted:
    """What was asked for beside INPUT: a version or a label, and where the model store is."""

    version: int | None
    label: str | None
    models_dir: Path | None


@dataclass(frozen=True)
class _Question:
    """How one model is asked from the command line.

    `gateway` gives INPUT to the gateway; `direct` turns it into tensors, gives these to the model server and answers
    what the gateway would.
    """

    gateway: Callable[[GatewayClient, str, _Wanted], dict[str, Any]]
    direct: Callable[[_Server, str, _Wanted], dict[str, Any]]


def _predict(server: _Server, contract: Contract, tensor: Array, wanted: _Wanted) -> Prediction:
    inputs = {contract.inputs[0].name: tensor}
    return server.predict(contract.model, inputs, version=wanted.version, label=wanted.label)


def _ask_linear(client: GatewayClient, source: str, wanted: _Wanted) -> dict[str, Any]:
    return client.linear(points.row(source, 1).tolist(), version=wanted.version, label=wanted.label)


def _linear(server: _Server, source: str, wanted: _Wanted) -> dict[str, Any]:
    return outputs.linear(_predict(server, LINEAR, points.row(source, 1)[None], wanted))


def _ask_logistic(client: GatewayClient, source: str, wanted: _Wanted) -> dict[str, Any]:
    return client.logistic([points.row(source, 2).tolist()], version=wanted.version, label=wanted.label)


def _logistic(server: _Server, source: str, wanted: _Wanted) -> dict[str, Any]:
    return outputs.logistic(_predict(server, LOGISTIC, points.row(source, 2)[None], wanted))


def _ask_tox21(client: GatewayClient, source: str, wanted: _Wanted) -> dict[str, Any]:
    return client.tox21([source], version=wanted.version, label=wanted.label)


def _tox21(server: _Server, source: str, wanted: _Wanted) -> dict[str, Any]:
    return outputs.tox21(_predict(server, TOX21, molecules.fingerprint(source)[None], wanted), [source])


def _ask_mnist(client: GatewayClient, source: str, wanted: _Wanted) -> dict[str, Any]:
    return client.mnist([Path(source)], version=wanted.version, label=wanted.label)


def _mnist(server: _Server, source: str, wanted: _Wanted) -> dict[str, Any]:
    return outputs.classification(MNIST, _predict(server, MNIST, pictures.digit(Path(source))[None], wanted))


def _ask_ptb(client: GatewayClient, source: str, wanted: _Wanted) -> dict[str, Any]:
    return client.ptb([source], top_k=_TOP_K, version=wanted.version, label=wanted.label)


def _ptb(server: _Server, source: str, wanted: _Wanted) -> dict[str, Any]:
    if wanted.models_dir is None:
        raise click.UsageError("with --grpc or --rest, ptb needs its vocabulary: give --models-dir models")
    version = wanted.version or server.metadata(PTB.model, label=wanted.label).version
    vocabulary = words.read_vocabulary(wanted.models_dir / PTB.model / str(version) / "assets" / "vocabulary.txt")
    tokens = words.tokens(source, vocabulary)
    inputs = np.array([tokens.ids], np.int32)
    probabilities = _predict(server, PTB, inputs, replace(wanted, version=version, label=None)).outputs["probabilities"]
    if probabilities.shape != (1, len(vocabulary.words)):
        raise BadAnswer(f"version {version} of ptb has another vocabulary than {wanted.models_dir}")
    return outputs.next_words(version, vocabulary, [(source, tokens, probabilities[0])], _TOP_K)


def _ask_cifar10(client: GatewayClient, source: str, wanted: _Wanted) -> dict[str, Any]:
    return client.cifar10([Path(source)], version=wanted.version, label=wanted.label)


def _cifar10(server: _Server, source: str, wanted: _Wanted) -> dict[str, Any]:
    return outputs.classification(CIFAR10, _predict(server, CIFAR10, pictures.photo(Path(source))[None], wanted))


def _ask_tictactoe(client: GatewayClient, source: str, wanted: _Wanted) -> dict[str, Any]:
    return client.tictactoe([boards.parse(source)], version=wanted.version, label=wanted.label)


def _tictactoe(server: _Server, source: str, wanted: _Wanted) -> dict[str, Any]:
    board = boards.parse(source)
    return outputs.tictactoe(_predict(server, TICTACTOE, boards.planes(board)[None], wanted), [board])


def _own(name: str) -> _Question:
    """The question to a model that has no form of its own here."""

    def through_gateway(client: GatewayClient, source: str, wanted: _Wanted) -> dict[str, Any]:
        raise click.UsageError(
            f"the gateway has no form for '{name}' (it has: {', '.join(QUESTIONS)}): ask the model server, --grpc or "
            "--rest after INPUT"
        )

    def direct(server: _Server, source: str, wanted: _Wanted) -> dict[str, Any]:
        choice = own_model.Choice(wanted.version, wanted.label, wanted.models_dir)
        return own_model.ask(server, name, source, choice)

    return _Question(through_gateway, direct)


QUESTIONS = {
    "linear": _Question(_ask_linear, _linear),
    "logistic": _Question(_ask_logistic, _logistic),
    "tox21": _Question(_ask_tox21, _tox21),
    "mnist": _Question(_ask_mnist, _mnist),
    "ptb": _Question(_ask_ptb, _ptb),
    "cifar10": _Question(_ask_cifar10, _cifar10),
    "tictactoe": _Question(_ask_tictactoe, _tictactoe),
}


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
    help="The model store: vocabularies and labels, with --grpc and --rest.",
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

    INPUT of a model of your own, with --grpc or --rest, is a file (.json in the REST form, .npz, .csv, a picture) or
    JSON such as '[[1.0, 2.0]]'. INPUT of the book's models:

    \b
    linear     a number                          1.5
    logistic   two numbers                       -0.2,0.8
    tox21      a molecule as SMILES              CCO
    mnist      a picture of one digit            seven.png
    ptb        the beginning of a sentence       "the stock"
    cifar10    a picture                         ship.png
    tictactoe  three rows, a dot is free         X.O/.X./...

    To give INPUT after a bare --grpc or --rest, put it first: bookserve predict mnist seven.png --grpc
    """
    if sum(way is not None for way in (gateway, grpc_target, rest_url)) > 1:
        raise click.UsageError("give one of --gateway, --grpc and --rest")
    if version is not None and label is not None:
        raise click.UsageError("give one of --version and --label")
    wanted = _Wanted(version, label, models_dir)
    try:
        answer = _ask(QUESTIONS.get(name) or _own(name), source, wanted, gateway, grpc_target, rest_url)
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
    question: _Question,
    source: str,
    wanted: _Wanted,
    gateway: str | None,
    grpc_target: str | None,
    rest_url: str | None,
) -> dict[str, Any]:
    if rest_url is not None:
        return question.direct(RestClient(rest_url), source, wanted)
    if grpc_target is not None:
        with GrpcClient(grpc_target) as client:
            return question.direct(client, source, wanted)
    return question.gateway(GatewayClient(gateway or gateway_client.DEFAULT_URL), source, wanted)


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
    width = max(len(label) for label, _ in rows)
    return [f"  {label:>{width}}  {share:7.2%}  {'█' * round(_BAR * share)}".rstrip() for label, share in rows]
