"""What a model of a table reads from a request: "x", a number or a row of numbers, or a list of them."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from flask import Request

from bookserve.clients import outputs
from bookserve.clients.inputs import points
from bookserve.export.contracts import Contract
from bookserve.serving.gateway import openapi, request_parsing
from bookserve.serving.gateway.config import Limits
from bookserve.serving.gateway.dependencies import Dependencies
from bookserve.serving.gateway.problems import bad_value, shown
from bookserve.serving.gateway.request_parsing import Choice


def predict(request: Request, contract: Contract, choice: Choice, dependencies: Dependencies) -> dict[str, Any]:
    """The answer to one request, of either task whose rows are numbers."""
    rows = NumberBody.of(contract).rows(request, dependencies.limits)
    inputs = {contract.inputs[0].name: rows.astype(contract.inputs[0].dtype)}
    return outputs.rows(contract, dependencies.models.predict(contract, inputs, choice))


@dataclass(frozen=True)
class NumberBody:
    """How one model takes numbers: `width` of them a row. A row of one is written as the number itself."""

    width: int

    @classmethod
    def of(cls, contract: Contract) -> "NumberBody":
        """The body of a model whose one input is float [n,width]."""
        return cls(contract.inputs[0].shape[1] or 1)

    @property
    def example(self) -> dict[str, Any]:
        """A JSON body that works."""
        if self.width == 1:
            return {"x": [0.5, 1.5]}
        return {"x": [[pair[place % 2] for place in range(self.width)] for pair in ((0.2, 0.8), (-1.0, -1.5))]}

    def rows(self, request: Request, limits: Limits) -> npt.NDArray[np.float32]:
        """The request's rows as float32 [n,width]; Problem names the number that is none."""
        value = request_parsing.only_field(
            request_parsing.read_json_only(request, limits, self.example), "x", self.example
        )
        many = isinstance(value, list)
        if self.width > 1:
            many = many and (not value or isinstance(value[0], list))
        items = request_parsing.one_or_many(value, "x", many, limits.points, self.example)
        return np.array([self._row(item, name) for name, item in items], np.float32)

    def openapi(self, limits: Limits) -> dict[str, Any]:
        """The request body's schema."""
        number = {"type": "number", "minimum": -points.LARGEST, "maximum": points.LARGEST}
        row = number if self.width == 1 else openapi.list_of(number, self.width)
        what = "a number" if self.width == 1 else f"{self.width} numbers"
        rows = openapi.one_or_many(row, limits.points, f"{what}, or a list of such")
        return openapi.json_body({"x": rows}, self.example)

    def _row(self, value: Any, name: str) -> list[float]:
        if self.width == 1:
            return [self._number(value, name)]
        if not isinstance(value, list) or len(value) != self.width:
            raise bad_value(name, f"a list of {self.width} numbers", shown(value), self.example)
        return [self._number(number, f"{name}[{index}]") for index, number in enumerate(value)]

    def _number(self, value: object, name: str) -> float:
        try:
            return points.number(value)
        except points.NumberError as error:
            raise bad_value(name, str(error).removeprefix("expected "), shown(value), self.example) from error
