"""tf.Example of the REST API <- JSON, and the results of Classify and Regress -> JSON (util/json_tensor.cc)."""

import math
from typing import Any

import numpy as np

from bookserve.serving.wire import json_decimals, tensorflow_pb2
from bookserve.serving.wire import tensorflow_serving_pb2 as messages
from bookserve.serving.wire.json_tensors import end_of_list
from bookserve.serving.wire.json_text import JsonError, is_base64, kind_of, quoted, to_bytes, to_json

_MAX_FLOAT = float(np.finfo(np.float32).max)


def read_examples(body: dict[str, Any]) -> messages.Input:
    """The `examples` of a request, an object of features each, and the `context` that they share where there is one.

    A feature is a value or a flat list of values of one type: whole numbers and booleans (int64), other numbers
    (float), or strings and `{"b64": "…"}` (bytes).
    Raises JsonError.
    """
    source = messages.Input()
    examples = source.example_list.examples
    if "context" in body:
        source.example_list_with_context.SetInParent()
        _fill(source.example_list_with_context.context, body["context"])
        examples = source.example_list_with_context.examples
    if "examples" not in body:
        raise JsonError(f"{quoted(body)} When method is classify, key 'examples' is expected and was not found")
    if not isinstance(body["examples"], list):
        raise JsonError(f"{quoted(body)} Expecting 'examples' value to be an list/array")
    if not body["examples"]:
        raise JsonError(f"{quoted(body)} 'examples' value is an empty array")
    for value in body["examples"]:
        _fill(examples.add(), value)
    return source


def _fill(example: tensorflow_pb2.Example, value: Any) -> None:
    if not isinstance(value, dict):
        raise JsonError(f"Example must be JSON object but got JSON {kind_of(value)}")
    for name, content in value.items():
        try:
            feature = example.features.feature[name]
        except UnicodeEncodeError:
            raise JsonError(f"Feature: {name!a} is not named in UTF-8") from None
        _fill_feature(feature, name, content if isinstance(content, list) else [content])


def _fill_feature(feature: tensorflow_pb2.Feature, name: str, elements: list[Any]) -> None:
    expected = ""  # the first element's type
    for element in elements:
        found = _feature_type(name, element)
        expected = expected or found
        if found != expected:
            raise JsonError(f"Unexpected element type in feature: {name} expecting type: {expected}")
        match found:
            case "bytes":
                feature.bytes_list.value.append(to_bytes(element))
            case "float":
                if abs(element) > _MAX_FLOAT and not math.isinf(element):
                    raise JsonError(f"Feature: {name} has element too large for float: {element}")
                feature.float_list.value.append(element)
            case _:
                if element >= 2**63:
                    raise JsonError(f"Feature: {name} has uint64_t element. Only int64_t is supported.")
                feature.int64_list.value.append(int(element))


def _feature_type(name: str, element: Any) -> str:
    if isinstance(element, int):
        return "int64"
    if isinstance(element, float):
        return "float"
    if isinstance(element, str) or is_base64(element):
        return "bytes"
    raise JsonError(f"Feature: {name} has element with unexpected JSON type: {kind_of(element)}")


def write_classifications(result: messages.ClassificationResult) -> bytes:
    """`{"results": [[["label", score], …], …]}`: a list of pairs for every example."""
    rows = []
    for row in result.classifications:
        scores = json_decimals.rows(np.array([entry.score for entry in row.classes], np.float32))
        pairs = [f"[{to_json(entry.label)}, {score}]" for entry, score in zip(row.classes, scores, strict=True)]
        rows.append("[" + ", ".join(pairs) + "]")
    return f'{{\n    "results": [{", ".join(rows)}{end_of_list(len(rows))}\n}}'.encode()


def write_regressions(result: messages.RegressionResult) -> bytes:
    """`{"results": [value, …]}`: a number for every example."""
    values = json_decimals.rows(np.array([regression.value for regression in result.regressions], np.float32))
    return f'{{\n    "results": [{", ".join(values)}]\n}}'.encode()
