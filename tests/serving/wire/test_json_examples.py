"""tf.Example from JSON, as TensorFlow Serving's own tests have it, and results to JSON."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tensorflow.core.example import example_pb2

from bookserve.serving.wire import tensorflow_serving_pb2 as messages
from bookserve.serving.wire.json_examples import read_examples, write_classifications, write_regressions
from bookserve.serving.wire.json_text import JsonError, parse_object


def features(example: object) -> dict[str, list[object]]:
    """What TensorFlow reads from the bytes of one of our examples."""
    parsed = example_pb2.Example.FromString(example.SerializeToString())  # type: ignore[attr-defined]
    return {
        name: list(getattr(feature, feature.WhichOneof("kind")).value) if feature.WhichOneof("kind") else []
        for name, feature in parsed.features.feature.items()
    }


def test_every_kind_of_feature() -> None:
    source = read_examples(
        {
            "examples": [
                {"text": "a", "bytes": {"b64": "AP8="}, "mixed": ["b", {"b64": "Yw=="}]},
                {"whole": 1, "wholes": [-(2**63), 2**63 - 1], "booleans": [True, False]},
                {"number": 1.5, "numbers": [1.0, float("-inf")], "none": []},
                {},
            ]
        }
    )
    assert source.WhichOneof("kind") == "example_list"
    assert [features(example) for example in source.example_list.examples] == [
        {"text": [b"a"], "bytes": [b"\x00\xff"], "mixed": [b"b", b"c"]},
        {"whole": [1], "wholes": [-(2**63), 2**63 - 1], "booleans": [1, 0]},
        {"number": [1.5], "numbers": [1.0, float("-inf")], "none": []},
        {},
    ]


def test_a_context() -> None:
    source = read_examples({"context": {"a": 1}, "examples": [{"b": 2}]}).example_list_with_context
    assert features(source.context) == {"a": [1]}
    assert [features(example) for example in source.examples] == [{"b": [2]}]
    assert read_examples({"context": {}, "examples": [{}]}).WhichOneof("kind") == "example_list_with_context"


@given(
    st.dictionaries(
        st.text(max_size=5),
        st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1)
        | st.lists(st.floats(width=32, allow_nan=False), min_size=1)
        | st.lists(st.text(max_size=5), min_size=1),
    )
)
def test_features_come_through(values: dict[str, list[object]]) -> None:
    (example,) = read_examples({"examples": [values]}).example_list.examples
    assert features(example) == {
        name: [item.encode() if isinstance(item, str) else item for item in items] for name, items in values.items()
    }


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "JSON Value: {} When method is classify, key 'examples' is expected and was not found"),
        ({"examples": 1}, "Expecting 'examples' value to be an list/array"),
        ({"examples": []}, "'examples' value is an empty array"),
        ({"examples": ["a"]}, "Example must be JSON object but got JSON String"),
        ({"examples": [True]}, "Example must be JSON object but got JSON True"),
        ({"context": [], "examples": []}, "Example must be JSON object but got JSON Array"),
        ({"examples": [{"f": [1, 2.5]}]}, "Unexpected element type in feature: f expecting type: int64"),
        ({"examples": [{"f": [1.5, 2]}]}, "Unexpected element type in feature: f expecting type: float"),
        ({"examples": [{"f": ["a", True]}]}, "Unexpected element type in feature: f expecting type: bytes"),
        ({"examples": [{"f": None}]}, "Feature: f has element with unexpected JSON type: Null"),
        ({"examples": [{"f": [[1]]}]}, "Feature: f has element with unexpected JSON type: Array"),
        ({"examples": [{"f": {"a": 1}}]}, "Feature: f has element with unexpected JSON type: Object"),
        ({"examples": [{"f": {"b64": 1}}]}, "Feature: f has element with unexpected JSON type: Object"),
        ({"examples": [{"f": {"b64": "?"}}]}, "Unable to base64 decode"),
        ({"examples": [{"f": 2**63}]}, "Feature: f has uint64_t element. Only int64_t is supported."),
        ({"examples": [{"f": 1e39}]}, "Feature: f has element too large for float: 1e+39"),
        ({"examples": [{"\ud800": 1}]}, "Feature: '\\ud800' is not named in UTF-8"),
    ],
)
def test_what_is_no_example(body: dict[str, object], message: str) -> None:
    with pytest.raises(JsonError) as caught:
        read_examples(body)
    assert str(caught.value).endswith(message)


def test_results() -> None:
    result = messages.ClassificationResult()
    first = result.classifications.add()
    first.classes.add(label="a", score=0.1)
    first.classes.add(label="b", score=0.9)
    result.classifications.add()
    assert write_classifications(result) == b'{\n    "results": [[["a", 0.1], ["b", 0.9]], []\n    ]\n}'
    regressions = messages.RegressionResult()
    for value in np.float32([0.1, 2]):
        regressions.regressions.add(value=value)
    assert write_regressions(regressions) == b'{\n    "results": [0.1, 2.0]\n}'
    regressions.regressions.add(value=float("nan"))
    assert b"[0.1, 2.0, NaN]" in write_regressions(regressions)
    assert len(json.loads(write_regressions(regressions))["results"]) == 3


def test_a_whole_number_beyond_64_bits_is_a_float_whoever_parses_the_body() -> None:
    for more in (b"", b', "x": NaN'):  # which orjson refuses
        source = read_examples(parse_object(b'{"examples": [{"f": -99999999999999999999}]%b}' % more))
        assert source.example_list.examples[0].features.feature["f"].float_list.value == [np.float32(-1e20)]
