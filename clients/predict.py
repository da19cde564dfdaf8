"""`bookserve predict NAME INPUT`: one prediction, through the gateway or straight from the model server.

Straight from the model server, the input is turned into tensors here, by the same code that the gateway runs.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from bookserve.clients import gateway_client, grpc_client, outputs, rest_client
from bookserve.clients.answers import Array, Prediction
from bookserve.clients.errors import PredictError, Unavailable
from bookserve.clients.gateway_client import GatewayClient
from bookserve.clients.grpc_client import GrpcClient
from bookserve.clients.inputs import pictures
from bookserve.clients.rest_client import RestClient
from bookserve.export.contracts import MNIST, Contract

_BAR = 40  # characters


@dataclass(frozen=True)
class _Question:
    """How one model is asked from the command line.

    `tensors` turns INPUT into the contract's inputs; `ask` gives INPUT to the gateway, with a version and a label;
    `answer` turns the outputs into what the gateway would answer.
    """

    contract: Contract
    tensors: Callable[[str], dict[str, Array]]
    ask: Callable[[GatewayClient, str, int | None, str | None], dict[str, Any]]
    answer: Callable[[Contract, Prediction], dict[str, Any]]


def _mnist_tensors(source: str) -> dict[str, Array]:
    return {"images": pictures.digit(Path(source))[None]}


def _ask_mnist(client: GatewayClient, source: str, version: int | None, label: str | None) -> dict[str, Any]:
    return client.mnist([Path(source)], version=version, label=label)


QUESTIONS = {"mnist": _Question(MNIST, _mnist_tensors, _ask_mnist, outputs.classification)}


@click.command()
@click.argument("name", type=click.Choice(list(QUESTIONS)))
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
@click.option("--json", "as_json", is_flag=True, help="Print the answer as JSON.")
def main(
    name: str,
    source: str,
    gateway: str | None,
    grpc_target: str | None,
    rest_url: str | None,
    version: int | None,
    label: str | None,
    as_json: bool,
) -> None:
    """Ask the model NAME for one prediction. For mnist, INPUT is a picture of one digit.

    To give INPUT after a bare --grpc or --rest, put it first: bookserve predict mnist seven.png --grpc
    """
    if sum(way is not None for way in (gateway, grpc_target, rest_url)) > 1:
        raise click.UsageError("give one of --gateway, --grpc and --rest")
    if version is not None and label is not None:
        raise click.UsageError("give one of --version and --label")
    question = QUESTIONS[name]
    try:
        if grpc_target is not None or rest_url is not None:
            answer = _ask_model_server(question, source, grpc_target, rest_url, version, label)
        else:
            client = GatewayClient(gateway or gateway_client.DEFAULT_URL)
            answer = question.ask(client, source, version, label)
    except Unavailable as error:
        mend = "" if "make serve" in str(error) else ": start it with 'make serve'"
        raise click.ClickException(f"{error}{mend}") from error
    except (PredictError, pictures.PictureError) as error:
        raise click.ClickException(str(error)) from error
    except OSError as error:
        raise click.ClickException(f"cannot read {source}: {error.strerror or error}") from error
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    click.echo(json.dumps(answer) if as_json else _chart(answer))


def _ask_model_server(
    question: _Question,
    source: str,
    grpc_target: str | None,
    rest_url: str | None,
    version: int | None,
    label: str | None,
) -> dict[str, Any]:
    tensors = question.tensors(source)
    model = question.contract.model
    if rest_url is not None:
        prediction = RestClient(rest_url).predict(model, tensors, version=version, label=label)
    else:
        with GrpcClient(grpc_target or grpc_client.DEFAULT_TARGET) as client:
            prediction = client.predict(model, tensors, version=version, label=label)
    return question.answer(question.contract, prediction)


def _chart(answer: dict[str, Any]) -> str:
    lines = [f"{answer['model']} version {answer['version']}"]
    for prediction in answer["predictions"]:
        lines.append(f"class {prediction['class']}")
        width = max(len(label) for label in prediction["probabilities"])
        for label, probability in prediction["probabilities"].items():
            bar = "█" * round(_BAR * probability)
            lines.append(f"  {label:>{width}}  {probability:7.2%}  {bar}".rstrip())
    return "\n".join(lines)
