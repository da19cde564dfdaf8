"""Predictions through the gateway, for `bookserve predict`: it tells the contract, and takes what a person has."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bookserve.clients import ask_server, forms
from bookserve.clients.ask_server import Choice
from bookserve.clients.errors import NotFound
from bookserve.clients.gateway_client import GatewayClient
from bookserve.clients.inputs import boards
from bookserve.clients.predict_inputs import Tensors, Value
from bookserve.export import example_inputs
from bookserve.export.contracts import Contract, ContractError, from_json


def find(client: GatewayClient, model: str, choice: Choice) -> Contract:
    """The contract of the version chosen, by default of the one that answers; only its tensors where its manifest is
    unknown.

    Raises:
        PredictError: as the client's methods; NotFound names the versions that there are.
    """
    details = client.model(model)
    wanted = choice.version or details.get("version")
    known = [entry.get("version") for entry in details.get("versions", ())]
    if choice.version is not None and known and choice.version not in known:
        raise NotFound(f"{model} has no version {choice.version}; its versions: {', '.join(map(str, known))}")
    for entry in details.get("versions", ()):
        if entry.get("version") == wanted:
            try:
                told = from_json((entry.get("manifest") or {}).get("contract"))
            except ContractError:
                break
            if told.whole:
                return told
    tensors = {"inputs": details.get("inputs", []), "outputs": details.get("outputs", [])}
    return from_json({"model": model, "version": 0, "task": forms.TENSORS, **tensors})


def ask(client: GatewayClient, contract: Contract, values: Sequence[Value], choice: Choice) -> dict[str, Any]:
    """The gateway's answer; `values` are as with `ask_server.ask`.

    Raises:
        ValueError: tensors for a model that the gateway asks otherwise.
        PredictError: as the client's methods; or an error of `clients.inputs`.
    """
    model = contract.model
    wanted: dict[str, Any] = {"version": choice.version, "label": choice.label}
    form = forms.form(contract)
    match values[0]:
        case Tensors(rows):
            if form != forms.TENSORS:
                raise ValueError(
                    f"the gateway takes no tensors for {model}, whose task is {form}: ask the model server, --grpc or "
                    "--rest after INPUT"
                )
            inputs = {name: example_inputs.to_rest(array) for name, array in rows.items()}
            return client.tensors(model, inputs, **wanted)
    match form:
        case forms.PICTURES:
            return client.pictures(model, [value for value in values if isinstance(value, Path | bytes)], **wanted)
        case forms.MOLECULES:
            return client.molecules(model, [str(value) for value in values], **wanted)
        case forms.BOARD:
            return client.boards(model, [boards.parse(str(value)) for value in values], **wanted)
        case forms.TEXT:
            top_k = None if contract.labels else ask_server.TOP_K
            return client.next_words(model, [str(value) for value in values], top_k=top_k, **wanted)
        case _:
            table = [ask_server.numbers(value, contract).tolist() for value in values]
            return client.numbers(model, [row[0] if len(row) == 1 else row for row in table], **wanted)
