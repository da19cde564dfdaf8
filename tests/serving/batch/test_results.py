"""OUTPUT in every form, read by the readers that people use, whether its rows were answered at once or one by one."""

import csv
import dataclasses
import io
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest

from bookserve.export.contracts import Contract, Tensor
from bookserve.serving.batch import results
from bookserve.serving.batch.results import Answered, ColumnsDiffer, Csv, Form, Ndjson, Parquet

CONTRACT = Contract(
    "mixed",
    1,
    (Tensor("x", "float32", (None, 1)),),
    (Tensor("y", "float64", (None, 1)), Tensor("text", "object", (None,)), Tensor("many", "object", (None, 2))),
)
FLOATS = dataclasses.replace(CONTRACT, outputs=(Tensor("y", "float32", (None,)),))
NAMES = ["plain", 'a "quoted", one', "two\nlines", "\r", "", None, "ünï 🙂", "'", "=1+1"]
TEXTS = ["plain", "a,b", {"b64": "/w=="}, '"', "", "x\r\ny", {"b64": "AP8="}, "1", "null"]
NUMBERS = [1.0, -0.0, 1e-7, 1e22, 0.1, 123456.7, math.pi, 5e-324, 1.7976931348623157e308]
ANSWERS = {"y": NUMBERS, "text": TEXTS, "many": [[text, "b"] for text in TEXTS], "count": list(range(9))}


def file_of(form: Form, some: Sequence[Answered]) -> bytes:
    tables = [form.table(answered) for answered in some]
    columns = form.columns(tables[0])
    pieces = [form.rows(table) for table in results.joined([results.fitting(table, columns) for table in tables])]
    stream = io.BytesIO()
    form.write(stream, iter([b"".join(pieces[:1]), b"".join(pieces[1:])]), columns)
    return stream.getvalue()


def at_once(answers: Mapping[str, Sequence[Any]]) -> Answered:
    columns = {
        name: np.array(values, np.float64) if set(map(type, values)) == {float} else values
        for name, values in answers.items()
    }
    return Answered(range(1, 10), NAMES, columns)


def one_by_one(answers: Mapping[str, Sequence[Any]]) -> list[Answered]:
    return [
        Answered([place + 1], [NAMES[place]], {name: [values[place]] for name, values in answers.items()})
        for place in range(9)
    ]


@pytest.mark.parametrize("form", [Ndjson(True), Csv(True), Parquet(True, CONTRACT)])
@pytest.mark.parametrize("numbers", [NUMBERS, [math.nan, math.inf, -math.inf, *NUMBERS[3:]]])
def test_rows_at_once_and_one_by_one_are_the_same_bytes(form: Form, numbers: list[float]) -> None:
    answers = {**ANSWERS, "y": numbers}
    whole, rows = at_once(answers), one_by_one(answers)
    wanted = file_of(form, rows)
    assert file_of(form, [whole]) == wanted
    last = {name: values[4:] for name, values in whole.answers.items()}
    assert file_of(form, [*rows[:4], Answered(range(5, 10), NAMES[4:], last)]) == wanted


def test_the_csv_module_reads_what_was_written() -> None:
    content = file_of(Csv(True), [at_once(ANSWERS)])
    rows = list(csv.DictReader(io.StringIO(content.decode(), newline="")))
    assert [row["line"] for row in rows] == [str(number) for number in range(1, 10)]
    assert [row["id"] for row in rows] == [name or "" for name in NAMES]
    assert [float(row["y"]) for row in rows] == NUMBERS
    as_text = [text if isinstance(text, str) else json.dumps(text, separators=(",", ":")) for text in TEXTS]
    assert [row["text"] for row in rows] == as_text
    assert [json.loads(row["many"]) for row in rows] == ANSWERS["many"]


def test_json_reads_what_was_written() -> None:
    lines = file_of(Ndjson(True), [at_once(ANSWERS)]).splitlines()
    found = [json.loads(line) for line in lines]
    assert {name: [row[name] for row in found] for name in ANSWERS} == ANSWERS
    assert [row["id"] for row in found] == NAMES


def test_pyarrow_reads_what_was_written() -> None:
    content = file_of(Parquet(True, CONTRACT), [at_once(ANSWERS)])
    found = pyarrow.parquet.read_table(io.BytesIO(content)).to_pydict()
    assert found["y"] == NUMBERS
    assert found["id"] == NAMES
    assert found["count"] == list(range(9))
    as_text = [text if isinstance(text, str) else json.dumps(text, separators=(",", ":")) for text in TEXTS]
    assert found["text"] == as_text
    assert found["many"] == [[text, "b"] for text in as_text]


@pytest.mark.parametrize("form", [Csv(False), Parquet(False, CONTRACT)])
def test_objects_of_single_values_are_columns(form: Form) -> None:
    shares = [{"no": place / 10, "yes": 1 - place / 10} for place in range(9)]
    some = Answered(range(1, 10), None, {"y": shares, "words": [[{"word": "a", "probability": 0.5}]] * 9})
    content = file_of(form, [some])
    if isinstance(form, Csv):
        rows: list[dict[str, Any]] = list(csv.DictReader(io.StringIO(content.decode())))
        assert json.loads(rows[3]["words"]) == [{"word": "a", "probability": 0.5}]
    else:
        rows = pyarrow.parquet.read_table(io.BytesIO(content)).to_pylist()
        assert rows[3]["words"] == [{"word": "a", "probability": 0.5}]
    assert [float(row["y.yes"]) for row in rows] == [share["yes"] for share in shares]


def test_a_row_with_other_columns_is_refused() -> None:
    form = Csv(False)
    first, other = (form.table(Answered([1], None, {"y": [value]})) for value in (1.0, {"a": 1.0}))
    columns = form.columns(first)
    assert results.fitting(first, columns) is first
    with pytest.raises(ColumnsDiffer, match=r"differs from the first row's in y, y\.a: write NDJSON"):
        results.fitting(other, columns)


def test_a_column_of_nothing_has_the_type_of_its_output() -> None:
    nothing = Answered(range(1, 4), None, {"y": [None] * 3, "text": ["a"] * 3})
    content = file_of(Parquet(False, CONTRACT), [nothing])
    assert str(pyarrow.parquet.read_schema(io.BytesIO(content)).field("y").type) == "double"


@pytest.mark.parametrize("form", [Ndjson(True), Csv(True), Parquet(True, FLOATS)])
def test_a_float32_is_the_same_number_in_every_form_and_whether_at_once_or_one_by_one(form: Form) -> None:
    bits = np.random.default_rng(3).integers(0, 2**32, 4000, np.uint32).view(np.float32)
    limits = np.array([0, -0.0, 1e15, 1e16, 1e22, 3e-45, 3.4028235e38, 1 / 3, 16777217, 0.1], np.float32)
    wanted = np.concatenate([bits[np.isfinite(bits)], limits])
    lines = range(1, len(wanted) + 1)
    content = file_of(form, [Answered(lines, None, {"y": wanted})])
    few = Answered(lines[:100], None, {"y": wanted[:100]})
    others = [Answered([line], None, {"y": results.exact(wanted[line - 1 : line])}) for line in lines[100:]]
    assert file_of(form, [few, *others]) == content
    match form:
        case Csv():
            found = [float(row["y"]) for row in csv.DictReader(io.StringIO(content.decode()))]
        case Ndjson():
            found = [json.loads(line)["y"] for line in content.splitlines()]
        case _:
            table = pyarrow.parquet.read_table(io.BytesIO(content))
            assert [str(table.field(name).type) for name in ("line", "y")] == ["int64", "float"]
            found = table["y"].to_pylist()
    np.testing.assert_array_equal(np.array(found).astype(np.float32).view(np.uint32), wanted.view(np.uint32))


def test_lists_and_labelled_numbers_of_a_float32_output_are_float32_in_parquet() -> None:
    contract = dataclasses.replace(FLOATS, outputs=(*FLOATS.outputs, Tensor("p", "float32", (None, 2))))
    some = Answered(range(1, 3), None, {"y": [{"no": 0.1, "yes": 0.9}] * 2, "p": [[0.1, 0.3], [0.5, 0.7]]})
    schema = pyarrow.parquet.read_schema(io.BytesIO(file_of(Parquet(False, contract), [some])))
    assert [str(kind) for kind in schema.types] == ["int64", "float", "float", "list<element: float>"]
