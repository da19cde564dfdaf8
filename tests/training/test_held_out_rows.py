from dataclasses import replace

import numpy as np

from book_contracts import CONTRACTS
from bookserve.export.figures import Figure, Measurement
from bookserve.training import held_out_rows


def test_a_version_of_an_older_contract_is_asked_what_it_takes() -> None:
    rows = {"fingerprint": np.eye(3), "counts": np.ones((3, 2)), "descriptors": np.zeros((3, 4))}
    figure = Figure("auc", rows, lambda outputs, places: float(len(places)))
    older = CONTRACTS["tox21"].inputs[:1]
    for inputs in (older, CONTRACTS["tox21"].inputs):
        contract = replace(CONTRACTS["tox21"], inputs=inputs)
        found = held_out_rows._of_inputs(Measurement(rows, figure), contract)
        names = [tensor.name for tensor in inputs]
        assert list(found.figure.rows) == list(found.calibration) == names
        assert found.figure.count == 3
