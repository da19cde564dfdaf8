"""From the records of an INPUT to the tensors of a contract, and from its outputs to the rows of OUTPUT.

What a person has of the contract's task (a picture, a molecule, a text, a board, numbers) becomes tensors by the code
that `bookserve predict` and the gateway run, and answers are theirs too. Rows of NDJSON and tables may also be tensors.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

from bookserve.clients import ask_server, forms, outputs
from bookserve.clients.answers import Array, Prediction
from bookserve.clients.inputs import boards, compounds, pictures, points, words
from bookserve.clients.inputs.words import Vocabulary
from bookserve.clients.outputs import Column
from bookserve.export import contracts, example_inputs
from bookserve.export.contracts import Contract, Tensor
from bookserve.export.errors import ExportError
from bookserve.serving.batch import results
from bookserve.serving.batch.records import BadRow, Block, InputError, Record, Records, Source, Table
from bookserve.serving.batch.text_lines import JsonLines

# What a column, or a field of an NDJSON object, is called that holds what a person has.
FIELDS = {forms.MOLECULES: "smiles", forms.TEXT: "text", forms.BOARD: "board", forms.PICTURES: "image"}
NAME_COLUMN = "id"
_LARGEST_EXACT = 2**53  # of the whole numbers that a float64 tells apart
_SHOWN = 8  # names in a message
_ROW = "the row"
# What the code of `clients/inputs` and of the contract raises over a value that it does not take.
_ROW_ERRORS = (ExportError, ValueError, TypeError, KeyError, OverflowError, RuntimeError)


@dataclass(frozen=True, slots=True)
class Row:
    """A record as tensors: input -> array whose first dimension is 1, or the whole input of a model of fixed size.

    `told` is what the answer repeats: the SMILES, the board, or the text with its tokens.
    """

    line: int
    name: str | None
    tensors: Mapping[str, Array]
    told: Any = None


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of a block as tensors: input -> array [rows, …]. `names` is None where the INPUT has none."""

    lines: Sequence[int]
    names: Sequence[str | None] | None
    tensors: Mapping[str, Array]

    def part(self, begin: int, end: int) -> "Rows":
        """Some of them."""
        names = None if self.names is None else self.names[begin:end]
        tensors = {name: array[begin:end] for name, array in self.tensors.items()}
        return Rows(self.lines[begin:end], names, tensors)


@dataclass(frozen=True)
class Columns:
    """Which columns, or fields of objects, are read: `input` holds what a person has, `name` what a row is called.

    None stands for the names in FIELDS and NAME_COLUMN.
    """

    input: str | None = None
    name: str | None = None


class Questions:
    """How one INPUT asks one version."""

    def __init__(
        self,
        contract: Contract,
        version: int,
        source: Source,
        columns: Columns,
        vocabulary: Vocabulary | None,
        top_k: int,
    ) -> None:
        """Raises InputError where the contract cannot be asked with such an INPUT."""
        self.contract = contract
        self.version = version
        # Whether a record is one row; otherwise the model has a fixed number of rows, and a record is all of them.
        self.one_row = all(tensor.shape[:1] in ((None,), (1,)) for tensor in contract.inputs)
        self._form = forms.form(contract)
        self._kind = source.kind
        self._vocabulary = vocabulary
        self._top_k = top_k
        self._columns = source.columns
        self._source_names = source.has_names
        self._field = columns.input or FIELDS.get(self._form, "")
        known = {tensor.name for tensor in contract.inputs} | set(contract.columns) | {self._field}
        self._name_field = columns.name or (NAME_COLUMN if NAME_COLUMN not in known else "")
        self._check(columns)
        self._places = self._inputs_of_a_table() if source.kind in ("csv", "parquet") else {}
        self._numbers_of_places = {name: self._numbered(places) for name, places in self._places.items()}
        self._place_of_name = self._columns.index(self._name_field) if self._name_field in self._columns else None

    @property
    def has_names(self) -> bool:
        """Whether rows of OUTPUT say what the user calls them."""
        return self._source_names or self._kind == "ndjson" or self._name_field in self._columns

    @property
    def reads_at_once(self) -> bool:
        """Whether blocks may be read at once: rows that are tensors of one input."""
        if len(self.contract.inputs) != 1 or not self.one_row:
            return False
        if self._kind == "ndjson":
            return not self._is_persons or self._form == forms.PICTURES
        return self._kind in ("csv", "parquet") and "" not in self._places

    def rows(self, records: Sequence[Record]) -> list[Row | BadRow]:
        """The records as tensors, in their order; where a record is of no use, why."""
        with np.errstate(over="ignore"):  # a number too large for float32 becomes infinite, which is looked for
            return [self._row(record) for record in records]

    def at_once(self, block: Block) -> Rows | None:
        """All rows of a block in one array, where they are tensors of one input and nothing is wrong with any of them.

        None otherwise. `rows` has the same tensors for the same rows.
        """
        if not self.reads_at_once:
            return None
        tensor = self.contract.inputs[0]
        try:
            with np.errstate(over="ignore"):
                if self._kind == "ndjson":
                    found = self._of_json(block, tensor) if isinstance(block, JsonLines) else None
                elif isinstance(block, Records):
                    found = self._of_records(block, tensor)
                else:
                    found = self._of_table(block, tensor)
        except _ROW_ERRORS:
            return None
        if found is None or not len(found.lines):
            return None
        array = found.tensors[tensor.name]
        return found if _fits(array.shape, tensor.shape) and self._is_finite(array) else None

    def columns(self, found: Mapping[str, Array]) -> Mapping[str, Column]:
        """The answers for `at_once` as columns, from the outputs for all of its rows; `answers` has the same by rows.

        Raises ExportError.
        """
        if self._form in (forms.PICTURES, forms.MOLECULES, *forms.NUMBERS):
            return outputs.columns(self.contract, found, results.exact)
        return outputs.tensor_columns(self.contract, found, results.exact)

    def answers(self, rows: Sequence[Row], found: Mapping[str, Array]) -> list[dict[str, Any]]:
        """The answer of each row, from the outputs for all of them."""
        contract = self.contract
        if len(rows) == 1 and any(array.shape[:1] != (1,) for array in found.values()):
            return [{name: example_inputs.to_rest(np.asarray(array)) for name, array in found.items()}]
        prediction = Prediction(contract.model, self.version, dict(found))
        told = [row.told for row in rows]
        match self._form:
            case forms.MOLECULES if told[0] is not None:
                answer = outputs.molecules(contract, prediction, told, exact=results.exact)
            case forms.BOARD if told[0] is not None:
                answer = outputs.board(contract, prediction, told, results.exact)
            case forms.TEXT if told[0] is not None:
                answer = self._of_texts(told, found)
            case forms.PICTURES | forms.MOLECULES | "regression" | "tabular":
                answer = outputs.rows(contract, prediction, results.exact)
            case _:
                answer = outputs.tensors(contract, prediction, results.exact)
        predictions: list[dict[str, Any]] = answer["predictions"]
        return predictions

    def _of_texts(self, told: Sequence[tuple[str, words.Tokens]], found: Mapping[str, Array]) -> dict[str, Any]:
        scores = forms.scores(self.contract)
        assert scores is not None
        assert self._vocabulary is not None
        values = found[scores.name]
        texts = [(text, tokens, values[place]) for place, (text, tokens) in enumerate(told)]
        if self.contract.labels:
            return outputs.text_classes(self.contract, self.version, texts, results.exact)
        if values.shape[1] != len(self._vocabulary.words):
            raise ExportError(f"the model has {values.shape[1]} words, its vocabulary {len(self._vocabulary.words)}")
        return outputs.next_words(self.contract, self.version, self._vocabulary, texts, self._top_k, results.exact)

    def _check(self, columns: Columns) -> None:
        takes = ", ".join(f"{tensor.name}: {contracts.shape_text(tensor)}" for tensor in self.contract.inputs)
        if self._kind == "pictures" and self._form != forms.PICTURES:
            raise InputError(f"INPUT is pictures, and {self.contract.model} takes {takes}: give NDJSON, CSV or Parquet")
        if self._kind == "lines" and self._form in (forms.PICTURES, forms.TENSORS) and self._text_input() is None:
            raise InputError(f"INPUT is lines of text, and {self.contract.model} takes {takes}: give another --format")
        for option, name in (("--column", columns.input), ("--id-column", columns.name)):
            if name is not None and self._kind in ("csv", "parquet") and name not in self._columns:
                raise InputError(f"INPUT has no column '{name}' ({option}); {self._has()}")
        if columns.input is not None and self._form not in FIELDS:
            raise InputError(f"--column names where a picture, molecule, text or board is, and the model takes {takes}")

    def _inputs_of_a_table(self) -> dict[str, list[str | int]]:
        """Input -> the columns that fill it: names, or places where the table has no names."""
        if self._is_persons and self._field in self._columns:
            return {"": [self._field]}
        contract = self.contract
        names = [tensor.name for tensor in contract.inputs]
        if set(names) <= set(self._columns):
            return {name: [name] for name in names}
        wanted = contract.columns if len(names) == 1 else tuple(names)
        if self._is_persons and self._form != forms.PICTURES:
            wanted = (self._field,)
        if self._columns and wanted:
            missing = [name for name in wanted if name not in self._columns]
            if missing:
                raise InputError(f"INPUT has no column '{missing[0]}', which the model needs; {self._has()}")
            return {names[0]: list(wanted)}
        if self._is_persons and self._form != forms.PICTURES:
            return {"": [0]}
        if len(names) > 1:
            raise InputError(f"INPUT needs a first line with the columns {', '.join(names)}")
        return {names[0]: [name for name in self._columns if name != self._name_field]}

    @property
    def _is_persons(self) -> bool:
        return self._form in FIELDS

    def _has(self) -> str:
        if not self._columns:
            return "it has no line with names"
        more = ", …" if len(self._columns) > _SHOWN else ""
        return f"it has {', '.join(self._columns[:_SHOWN])}{more}"

    def _text_input(self) -> Tensor | None:
        """The only input, where it takes one text a row."""
        inputs = self.contract.inputs
        is_text = len(inputs) == 1 and inputs[0].dtype == "object" and set(inputs[0].shape[1:]) <= {None, 1}
        return inputs[0] if is_text else None

    def _of_table(self, block: Block, tensor: Tensor) -> Rows | None:
        """The numbers of a table. Raises one of _ROW_ERRORS."""
        width = len(self._columns) or math.prod(size or 0 for size in tensor.shape[1:])
        if not width or tensor.dtype == "object":
            return None
        table: Table = block  # type: ignore[assignment]
        places = self._numbers_of_places[tensor.name] or list(range(width))
        found = table.numbers(width, places, self._place_of_name, tensor.dtype)
        if found is None:
            return None
        if self._kind == "csv":
            array = _typed(found.cells, tensor)
        else:
            cells = found.cells
            fits = cells.dtype == tensor.dtype
            array = _shaped_rows(cells if fits else example_inputs.as_array(cells, tensor.dtype), tensor)
        return Rows(found.lines, found.names, {tensor.name: array})

    def _of_records(self, block: Records, tensor: Tensor) -> Rows:
        """Rows of CSV that were read one by one. Raises one of _ROW_ERRORS."""
        found = [record for record in block.found if isinstance(record, Record)]
        if len(found) != len(block.found):
            raise ValueError
        cells = [self._cells(record.value, tensor.name) for record in found]
        names = [self._name_of(record.value) for record in found]
        return Rows([record.line for record in found], names, {tensor.name: self._numbers(cells, tensor)})

    def _of_json(self, block: JsonLines, tensor: Tensor) -> Rows | None:
        """Lines of NDJSON. Raises one of _ROW_ERRORS."""
        lines = block.lines()
        if lines is None:
            return None
        names, arrays = [], []
        for line in lines:  # one by one: thousands of lists that live on keep Python's collector busy
            value = orjson.loads(line)
            names.append(self._name_of(value))
            arrays.append(example_inputs.as_array(self._named(value)[tensor.name], tensor.dtype))
        return Rows(block.piece.lines, names, {tensor.name: np.stack(arrays)})

    def _row(self, record: Record) -> Row | BadRow:
        name = record.name
        try:
            value = orjson.loads(record.value) if self._kind == "ndjson" else record.value
            name = name or self._name_of(value)
            tensors, told = self._tensors(value)
            counts = {array.shape[0] for array in tensors.values() if array.ndim} or {1}
            if self.one_row and counts != {1}:
                raise ValueError(f"it holds {max(counts)} rows: give one a line")
            if not all(self._is_finite(array) for array in tensors.values()):
                raise points.NumberError(f"a number of it is missing, not finite, or beyond {points.LARGEST:.2g}")
        except orjson.JSONDecodeError as error:
            return BadRow(record.line, name, f"the line is no JSON: {error}")
        except _ROW_ERRORS as error:
            return BadRow(record.line, name, _reason(error))
        return Row(record.line, name, tensors, told)

    def _tensors(self, value: Any) -> tuple[Mapping[str, Array], Any]:
        """The tensors of a value, and what the answer repeats of it."""
        if self._is_persons:
            given = self._persons(value)
            if given is not None:
                return self._of_person(given)
        if self._kind == "lines":
            return self._of_line(value), None
        if self._kind == "csv":
            cells = {name: self._cells(value, name) for name in self._places}
            by_name = {tensor.name: tensor for tensor in self.contract.inputs}
            return example_inputs.fit(
                {name: self._numbers([some], by_name[name]) for name, some in cells.items()}, self.contract, _ROW
            ), None
        given_tensors = self._named(value)
        if self._kind == "parquet" and len(given_tensors) == 1:
            ((name, cells_of_row),) = given_tensors.items()
            given_tensors = {name: _shaped(cells_of_row, self.contract.inputs[0])}
        return example_inputs.fit(given_tensors, self.contract, _ROW), None

    def _persons(self, value: Any) -> Any:
        """What a person has, in a value of the source; None where the value is tensors."""
        if self._kind in ("lines", "pictures"):
            return value
        if self._kind == "csv":
            return self._cells(value, "")[0] if "" in self._places else None
        if isinstance(value, dict):
            return value.get(self._field)
        return value if isinstance(value, str) else None

    def _of_person(self, given: Any) -> tuple[Mapping[str, Array], Any]:
        contract, tensor = self.contract, self.contract.inputs[0]
        if self._form == forms.PICTURES:
            content = given.get("bytes") if isinstance(given, dict) else given  # as Hugging Face's data sets have it
            if not isinstance(content, bytes):
                raise ValueError(f"'{self._field}' holds no bytes of a picture's file")
            means = contract.preprocessing
            assert means is not None
            return {tensor.name: pictures.tensor(pictures.levels(content, means)[None], means, tensor)}, None
        if self._form == forms.BOARD:
            position = boards.parse(given) if isinstance(given, str) else [str(square) for square in given]
            if len(position) != boards.SQUARES or set(position) - {"X", "O", ""}:
                raise ValueError(f"a board has nine squares, each X, O or empty; this is {given!r:.80}")
            return {tensor.name: boards.planes(position)[None].astype(tensor.dtype)}, position
        if not isinstance(given, str):
            raise ValueError(f"'{self._field}' is no text: {given!r:.80}")
        if self._form == forms.MOLECULES:
            smiles = compounds.smiles_of(given)
            return ask_server.molecule(smiles, contract), smiles
        assert self._vocabulary is not None
        tokens = words.tokens(given, self._vocabulary)
        return {tensor.name: np.array([tokens.ids], tensor.dtype)}, (given, tokens)

    def _of_line(self, text: str) -> Mapping[str, Array]:
        tensor = self.contract.inputs[0]
        if self._text_input() is not None:
            return {tensor.name: np.array([text.encode()], object).reshape([1] * len(tensor.shape))}
        return {tensor.name: points.row(text, tensor.shape[1] or 1)[None].astype(tensor.dtype)}

    def _named(self, value: Any) -> dict[str, Any]:
        """Input -> value, of a value of NDJSON or a row of Parquet."""
        names = [tensor.name for tensor in self.contract.inputs]
        columns = self.contract.columns
        if isinstance(value, dict) and "b64" not in value:
            if set(names) <= value.keys():
                return {tensor.name: _in_a_row(value[tensor.name], tensor) for tensor in self.contract.inputs}
            if self._kind == "parquet":
                return {name: [value[column] for column in some] for name, some in self._places.items()}
            if len(names) == 1 and columns and set(columns) <= value.keys():
                return {names[0]: [value[name] for name in columns]}
            fields = ", ".join(list(value)[:_SHOWN]) or "nothing"
            raise ValueError(f"the row has the fields {fields}; the model takes {', '.join(columns or names)}")
        if len(names) != 1:
            raise ValueError(f"the row is no object with the fields {', '.join(names)}")
        return {names[0]: _in_a_row(value, self.contract.inputs[0])}

    def _is_finite(self, array: Array) -> bool:
        """Whether an array is what a model of numbers takes; others take what there is."""
        return self._form not in forms.NUMBERS or bool(np.isfinite(array).all())

    def _name_of(self, value: Any) -> str | None:
        if not self._name_field:
            return None
        if self._kind == "csv":
            place = self._place_of_name
            return value[place] if place is not None and place < len(value) else None
        found = value.get(self._name_field) if isinstance(value, dict) else None
        return None if found is None else str(found)

    def _numbered(self, places: Sequence[str | int]) -> list[int]:
        """Columns by their places in a line; none where all of them are meant."""
        found = [self._columns.index(place) if isinstance(place, str) else place for place in places]
        return [] if found == list(range(len(self._columns))) else found

    def _cells(self, cells: list[str], name: str) -> list[str]:
        """The cells of a line that fill an input."""
        if self._columns and len(cells) != len(self._columns):
            raise ValueError(f"the row has {len(cells)} cells, the first line {len(self._columns)}")
        places = self._numbers_of_places[name]
        return [cells[place] for place in places] if places else cells

    def _numbers(self, rows: Sequence[Sequence[str]], tensor: Tensor) -> Array:
        """Cells [rows][cells] as an array of the input: [rows, …]."""
        if tensor.dtype == "object":
            return _shaped_rows(example_inputs.as_array([list(row) for row in rows], "object"), tensor)
        kind = np.dtype(tensor.dtype)
        texts = np.array(rows, dtype=str)
        try:
            found = texts.astype(np.int64) if kind.kind in "iu" else texts.astype(np.float64)
        except ValueError:
            found = _floats(rows)
        return _typed(found, tensor)


def _fits(shape: tuple[int, ...], wanted: tuple[int | None, ...]) -> bool:
    return len(shape) == len(wanted) and all(
        size in (None, has) for size, has in zip(wanted[1:], shape[1:], strict=True)
    )


def _floats(rows: Sequence[Sequence[str]]) -> Array:
    for cell in (cell for row in rows for cell in row):
        try:
            float(cell)
        except ValueError:
            raise ValueError(f"'{cell[:40]}' is no number") from None
    lengths = {len(row) for row in rows}
    if len(lengths) != 1:
        raise ValueError("its rows are of different lengths")
    return np.array([[float(cell) for cell in row] for row in rows], np.float64)


def _typed(found: Array, tensor: Tensor) -> Array:
    """Numbers [rows, cells] of texts, int64 or float64, as an array of the input: [rows, …]. Raises ValueError."""
    kind = np.dtype(tensor.dtype)
    if kind.kind in "iub" and found.dtype.kind == "f":
        if not np.all((found == np.floor(found)) & (np.abs(found) < _LARGEST_EXACT)):
            raise ValueError(f"a number of it is no whole one, and the model takes {tensor.dtype}")
        found = found.astype(np.int64)
    if kind.kind == "b":
        found = found.astype(bool)
    if kind.kind == "f":
        return _shaped_rows(found.astype(kind, copy=False), tensor)
    return _shaped_rows(example_inputs.as_array(found, tensor.dtype), tensor)


def _shaped_rows(array: Array, tensor: Tensor) -> Array:
    """Cells [rows, cells] in the form of the input, where that is fixed and has as many values."""
    inner = tensor.shape[1:]
    sizes = [size for size in inner if size is not None]
    if len(sizes) == len(inner) and array.ndim == 2 and array.shape[1] == math.prod(sizes):
        return array.reshape(len(array), *sizes)
    return array


def _shaped(value: Any, tensor: Tensor) -> Any:
    """The same for the values of one row, which may have the form already."""
    if isinstance(value, list) and not any(isinstance(item, list) for item in value):
        sizes = [size for size in tensor.shape[1:] if size is not None]
        if len(sizes) == len(tensor.shape) - 1 and len(sizes) != 1 and len(value) == math.prod(sizes):
            return example_inputs.as_array(value, tensor.dtype).reshape(sizes)
    return value


def _in_a_row(value: Any, tensor: Tensor) -> Any:
    """A single number as the row of one that the input takes."""
    return [value] if isinstance(value, int | float) and tensor.shape[1:] == (1,) else value


def _reason(error: Exception) -> str:
    if isinstance(error, RuntimeError):
        return f"the library that reads it gave up on it: {type(error).__name__}"
    return str(error) or type(error).__name__
