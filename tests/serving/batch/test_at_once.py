"""Blocks that are read at once give the bytes that their rows give one by one, whatever stands in them."""

import dataclasses
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from bookserve.clients.answers import Array
from bookserve.export.contracts import Contract, Tensor
from bookserve.serving.batch import csv_table, input_file, parquet_table, pieces, records, results
from bookserve.serving.batch.model import Pace
from bookserve.serving.batch.parts import Parts
from bookserve.serving.batch.questions import Columns, Questions
from bookserve.serving.batch.records import Place, Source
from bookserve.serving.batch.run import Run

COLUMNS = ("a", "b")
OUTPUTS = (Tensor("y", "float32", (None, 1)), Tensor("p", "float32", (None, 2), unit="probability"))
TABLE = Contract("table", 1, (Tensor("x", "float32", (None, 2)),), OUTPUTS, task="regression", columns=COLUMNS)
CONTRACTS = {
    "numbers": TABLE,
    "tensors": dataclasses.replace(TABLE, task=""),
    "labels": dataclasses.replace(TABLE, labels=("no", "yes"), task="tabular"),
    "doubles": dataclasses.replace(TABLE, inputs=(Tensor("x", "float64", (None, 2)),), task=""),
    "halves": dataclasses.replace(TABLE, inputs=(Tensor("x", "float16", (None, 2)),), task=""),
    "counts": dataclasses.replace(TABLE, inputs=(Tensor("x", "int64", (None, 2)),), task=""),
    "bytes": dataclasses.replace(TABLE, inputs=(Tensor("x", "uint8", (None, 2)),), task=""),
    "flags": dataclasses.replace(TABLE, inputs=(Tensor("x", "bool", (None, 2)),), task=""),
    "square": dataclasses.replace(TABLE, inputs=(Tensor("x", "float32", (None, 2, 1)),), task=""),
}
PLAIN = ("0", "1", "2.5", "-3.25", "1e3", "0.1", "123456789", "-0", "7", "255")
HOSTILE = (
    *("", " ", "  4 ", "\t5", '"6"', '"7,5"', '"8""9"', '"1\n2"', '"1\r\n2"', 'a"b', '"c"d', '"', '""', '"3" ', ' "3"'),
    *("1e400", "-1e400", "1e-400", "nan", "NaN", "-nan", "nan(1)", "inf", "Infinity", "0x10", "0x1p3", "1_000", "+1"),
    *(
        ".5",
        "5.",
        "1.",
        "--1",
        "1e",
        "1e5.5",
        "1,5",
        "٣",
        "１２",
        "𝟙",
        "\u00a01",
        "\u20031",
        "1\u2028",
        "\ufeff1",
        "−1",
    ),
    *("NULL", "NA", "None", "true", "#N/A", "1\0", "\0", "1\r2", "1\r", "\\N", "\\", "'1'", "1;2", "1d5", "1f", "3.0"),
    *("9007199254740993", "9223372036854775807", "9223372036854775808", "18446744073709551616", "1e22", "65520", "256"),
    *("4.9e-324", "2.2250738585072011e-308", "0.1000000000000000055511151231257827", "1" * 400, "0." + "1" * 400),
)


class Model:
    """Outputs that depend on each row alone. Refuses rows that hold 7."""

    version = 1
    identity = "model"

    def __init__(self, contract: Contract, rows: int) -> None:
        self.contract = contract
        self.pace = Pace(rows, 2)

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        x = inputs["x"].reshape(len(inputs["x"]), -1).astype(np.float64)
        with np.errstate(all="ignore"):
            y = (x.sum(axis=1, keepdims=True) / 3).astype(np.float32)
            return {"y": y, "p": (1 / (1 + np.exp(-x[:, :2]))).astype(np.float32)}

    def close(self) -> None:
        pass


def outcome(source: Source, contract: Contract, output: Path, rows: int) -> tuple[bytes, bytes, int]:
    """OUTPUT, the file of errors, and how many blocks were read at once."""
    questions = Questions(contract, 1, source, Columns(), None, 1)
    form: Any = {".csv": results.Csv, ".ndjson": results.Ndjson}.get(output.suffix)
    form = form(questions.has_names) if form else results.Parquet(questions.has_names, contract)
    blocks, at_once = 0, questions.at_once

    def counted(block: Any) -> Any:
        nonlocal blocks
        found = at_once(block)
        blocks += found is not None
        return found

    questions.at_once = counted  # type: ignore[method-assign]
    with Parts(output) as parts:
        done = Run(source, questions, Model(contract, rows), form, parts, None, lambda _: None).go_on(parts.begin({}))
        with parts.whole_file(output) as stream:
            form.write(stream, parts.answers(done.parts), done.columns)
        errors = b"".join(parts.errors(done.parts))
        parts.drop()
    return output.read_bytes(), errors, blocks


def check(
    path: Path, contract: Contract, monkeypatch: pytest.MonkeyPatch, form: str = ".csv", most: int = 4000
) -> tuple[int, bytes, bytes]:
    """The bytes by blocks of several sizes are those of one by one: how many of 3 were read at once, and they."""
    output = path.with_name(f"out{form}")
    with monkeypatch.context() as patch:
        patch.setattr(Questions, "at_once", lambda questions, block: None)
        wanted = outcome(input_file.open_source(path, None, most), contract, output, 3)
    counts = []
    for module in (csv_table, parquet_table, pieces, records):  # so that files of some dozen rows are halved
        monkeypatch.setattr(module, "FEW", 2)
    for rows in (3, 1000):
        found = outcome(input_file.open_source(path, None, most), contract, output, rows)
        assert found[:2] == wanted[:2]
        counts.append(found[2])
    return counts[0], wanted[0], wanted[1]


@pytest.mark.parametrize("name", CONTRACTS)
def test_every_hostile_cell_alone_among_plain_ones(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ["id,a,b,c"]
    for place, cell in enumerate(HOSTILE):
        lines += [f"h{place},{cell},1,x", f"m{place},2,{cell},y", f"o{place},3,4,{cell}", *[f"k{place},5,6,z"] * 3]
    path = tmp_path / "in.csv"
    path.write_bytes("\n".join(lines).encode())
    blocks, _, errors = check(path, CONTRACTS[name], monkeypatch, ".ndjson")
    assert blocks > len(HOSTILE) / 3
    assert errors.count(b"\n") > 40


@pytest.mark.parametrize("form", [".csv", ".ndjson", ".parquet"])
@pytest.mark.parametrize("head", ["id,a,b\n", "b,id,a,a\n", "\ufeffa,b\n", "", "\ufeff", '"a","b"\r\n'])
def test_tables_of_chance(tmp_path: Path, head: str, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    chance = random.Random(f"{head}{form}")
    width = head.count(",") + 1 if head.strip("\ufeff") else 2
    for spoiled in (0.0, 0.02, 0.3):
        lines = []
        for _ in range(60):
            cells = [chance.choice(HOSTILE if chance.random() < spoiled else PLAIN) for _ in range(width)]
            if chance.random() < spoiled / 3:
                cells = cells[1:] if chance.random() < 0.5 else [*cells, "1"]
            lines.append(",".join(cells) + chance.choice(["\n"] * 5 + ["\r\n"] + ["\n\n", "\r"] * (spoiled > 0)))
        path = tmp_path / "in.csv"
        lines[0] = ",".join(chance.sample(PLAIN, width)) + "\n"
        path.write_bytes((head + "".join(lines)).encode() + (b"" if spoiled < 0.3 else b"\n1,\xff\n2,3"))
        name = chance.choice(list(CONTRACTS)) if spoiled else "numbers"
        blocks, answers, _ = check(path, CONTRACTS[name], monkeypatch, form)
        assert answers
        assert blocks > 15 or spoiled > 0.0


def test_thousands_of_columns_and_quoted_cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    width = 3000
    contract = dataclasses.replace(TABLE, inputs=(Tensor("x", "float32", (None, width)),), columns=())
    rows = [[f'"{place}.5"' if number == 7 else f"{number}" for number in range(width)] for place in range(9)]
    rows[5][9] = f'"{"0" * 9000}1"'
    path = tmp_path / "in.csv"
    path.write_text("\n".join(map(",".join, rows)))
    with monkeypatch.context() as patch:
        patch.setattr("bookserve.serving.batch.run._BLOCK_BYTES", 100_000)
        blocks, answers, errors = check(path, contract, monkeypatch, most=20_000)
    assert blocks > 1
    assert answers.count(b"\n") == 1 + 8
    assert b"--max-row-bytes" in errors


JSON_ROWS = (
    *("[1, 2]", '{"x": [1, 2.5], "id": "n"}', '{"a": 1, "b": 2}', '{"x": [[1, 2]]}', "[1, null]", "[true, 1]", "[]"),
    *("[1", "2]", "", "  ", "null", '"a"', "[1e400, 1]", "[1, 2] x", '["1", 2]', "[9007199254740993, 1]", "[1, 2]\r"),
    *(
        '{"x": [1, 2], "x": [3, 4]}',
        "[1,\u00a02]",
        "[18446744073709551615, 1]",
        "[-1, 300]",
        "[1.0, 2]",
        "\ufeff[1, 2]",
    ),
)


@pytest.mark.parametrize("name", ["numbers", "tensors", "bytes", "square"])
def test_lines_of_json(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "in.ndjson"
    path.write_text("\ufeff" + "".join(f"[{place}, 1]\n[1, 2]\n[3, 4]\n{row}\n" for place, row in enumerate(JSON_ROWS)))
    _, _, errors = check(path, CONTRACTS[name], monkeypatch, ".ndjson")
    assert errors


@pytest.mark.parametrize(
    "table",
    [
        {"a": pa.array([1.5, 2.5, 3.5, 4.5]), "b": pa.array([1, 2, 3, 4], pa.int8()), "id": ["p", None, "r", "s"]},
        {"a": pa.array([1, 2, 3, 4], pa.uint8()), "b": pa.array([1, 2, 2**53 + 1, 4], pa.int64()), "id": [1, 2, 3, 4]},
        {"a": pa.array([1.5, 2, 3, 2.0**60]), "b": pa.array([2**53 + 1, 2, 2**62 + 1, 4], pa.int64())},
        {"a": pa.array([1, 2, 3, 2**64 - 1], pa.uint64()), "b": pa.array([1.0, np.nan, np.inf, 1e300])},
        {"a": pa.array([True, False, True, None]), "b": pa.array([1.5, 2, None, 4], pa.float32())},
        {"a": ["1", "2", "x", ""], "b": pa.array([1, 2, 3, 4])},
        {"x": [[1, 2], [3, 4], [5, 6], [7, 8]]},
        {"x": [[1.5, 2], [3, 4], None, [7, 8]], "id": ["x" * 3990] * 4},
        {"x": [[1.5, 2], [3], [5, 6, 7], [7, 8]]},
        {"x": [[[1.5], [2]], [[3], [4]], [[5], [6]], [[7], [8]]]},
        {"x": pa.array([[1, 2], [3, 4], [5, 6], [7, 8]], pa.list_(pa.float16(), 2)), "id": ["x" * 4001, "", "a", "b"]},
    ],
)
@pytest.mark.parametrize("name", ["numbers", "tensors", "counts"])
def test_rows_of_parquet(tmp_path: Path, name: str, table: Mapping[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "in.parquet"
    whole = pa.table({"a": table["a"], "b": table["b"]} | dict(table) if "a" in table else dict(table))
    pyarrow.parquet.write_table(pa.concat_tables([whole] * 3), path, row_group_size=5)
    check(path, CONTRACTS[name], monkeypatch, ".ndjson")


def test_plain_rows_of_parquet_are_read_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "in.parquet"
    whole = pa.table({"b": np.arange(30.0), "id": [f"n{place}" for place in range(30)], "a": np.arange(30)})
    pyarrow.parquet.write_table(whole, path)
    blocks, answers, errors = check(path, TABLE, monkeypatch, ".parquet")
    assert blocks == 10
    assert not errors
    found = pyarrow.parquet.read_table(path.with_name("out.parquet")).to_pydict()
    assert found["id"] == [f"n{place}" for place in range(30)]
    assert found["y"] == [float(np.float32(2 * place / 3)) for place in range(30)]
    assert answers


@pytest.mark.parametrize("suffix", [".csv", ".ndjson", ".parquet"])
def test_blocks_hold_the_rows_behind_every_place(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"in{suffix}"
    if suffix == ".parquet":
        pyarrow.parquet.write_table(pa.table({"a": range(40), "b": range(40)}), path, row_group_size=7)
    elif suffix == ".csv":
        path.write_bytes(
            b'a,b\n1,2\n\n3,4\r\n"5\n5",6\n7,8\n"9",10\n11,\xff\n"' + b"w" * 150 + b'",1\n' + b"1,2\n" * 20
        )
    else:
        path.write_bytes(b"[1]\n\n[2]\r\n" + b"[3" + b" " * 150 + b"]\n" + b"[4]\n" * 20 + b"[5]")
    source = input_file.open_source(path, None, 100)
    everything = list(source.read(Place()))
    for rows in (1, 2, 3, 5, 100):
        for number, (_, start) in enumerate([(None, Place()), *everything]):
            blocks = list(source.blocks(start, rows, 120))
            assert [one for block in blocks for one in block.records()] == [one for one, _ in everything[number:]]
            assert max((len(block.records()) for block in blocks), default=0) <= rows
