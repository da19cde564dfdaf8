"""From output tensors to the answer that a person reads; the gateway and `bookserve predict` give the same."""

from typing import Any

from bookserve.clients.answers import Prediction
from bookserve.export.contracts import Contract


def classification(contract: Contract, prediction: Prediction) -> dict[str, Any]:
    """The answer of a classifier: the class and all probabilities of each row.

    Reads the outputs `probabilities` float32 [n,len(contract.labels)] and `classes` int64 [n]; gives
    {"model", "version", "predictions": [{"class", "probabilities": {label: probability}}]}.
    """
    rows = zip(prediction.outputs["probabilities"], prediction.outputs["classes"], strict=True)
    return {
        "model": contract.model,
        "version": prediction.version,
        "predictions": [
            {
                "class": contract.labels[int(number)],
                "probabilities": {
                    label: round(float(value), 6) for label, value in zip(contract.labels, probabilities, strict=True)
                },
            }
            for probabilities, number in rows
        ],
    }
