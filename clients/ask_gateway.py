"""One prediction through the gateway, for `bookserve predict`: the gateway tells the contract, INPUT goes as it is."""

from pathlib import Path
from typing import Any

from bookserve.clients import ask_server, forms
from bookserve.clients.ask_server import Choice
from bookserve.clients.gateway_client import GatewayClient
from bookserve.clients.inputs import boards, points
from bookserve.export import example_inputs
from bookserve.export.contracts import Contract, ContractError, from_json


def ask(client: GatewayClient, model: str, source: str, choice: Choice) -> dict[str, Any]:
    """The gateway's answer; `source` and what is raised are as with `ask_server.ask`."""
    contract = _contract(model, client.model(model), choice.version)
    wanted: dict[str, Any] = {"version": choice.version, "label": choice.label}
    form = forms.form(contract)
    if form != forms.TENSORS and ask_server.is_tensors(source, form):
        raise ValueError(
            f"the gateway takes no tensors for {model}, whose task is {form}: ask the model server, --grpc or --rest "
            "after INPUT"
        )
    if form == forms.TENSORS:
        rows = ask_server.rows(source, contract)
        inputs = {name: example_inputs.to_rest(array) for name, array in rows.items()}
        return client.tensors(model, inputs, **wanted)
    match form:
        case forms.PICTURES:
            return client.pictures(model, [Path(source)], **wanted)
        case forms.MOLECULES:
            return client.molecules(model, [source], **wanted)
        case forms.BOARD:
            return client.boards(model, [boards.parse(source)], **wanted)
        case forms.TEXT:
            return client.next_words(model, [source], top_k=None if contract.labels else ask_server.TOP_K, **wanted)
        case _:
            row = points.row(source, contract.inputs[0].shape[1] or 1).tolist()
            return client.numbers(model, row if len(row) == 1 else [row], **wanted)


def _contract(model: str, details: dict[str, Any], version: int | None) -> Contract:
    """The contract of a version, by default of the one that answers; only its tensors where its manifest is unknown."""
    wanted = version or details.get("version")
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
