import io
import json
import pickle
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bookserve.export.contracts import from_json
from bookserve.export.converters import choose, torch_program, trial
from bookserve.export.errors import ExportError
from bookserve.serving.server.engines.onnx_rows import walk
from bookserve.serving.wire.onnx_graph_pb2 import ModelProto
from documents import blocks

GRAPH = "assets.extra/model.onnx"


def add(path: Path, *, trust: bool = True) -> dict[str, Any]:
    """The trial of a file into a folder beside it."""
    job = {"path": str(path), "folder": str(path.parent), "model": "score", "task": None, "labels": None}
    return trial.run({**job, "example": None, "trust": trust})


def archive(path: Path, *members: str) -> Path:
    with zipfile.ZipFile(path, "w") as out:
        for member in members:
            out.writestr(f"{path.stem}/{member}", b"{}")
    return path


# What torch writes -> the members of its archive, and what is said of it.
OTHERS = {
    "state_dict.pth": (("data.pkl", "data/0"), "is a pickle that torch.save wrote"),
    "pytorch_model.bin": (("data.pkl", "data/0"), "is a pickle that torch.save wrote"),
    "last.ckpt": (("data.pkl", "data/0"), "is a pickle that torch.save wrote"),
    "script.pt": (("data.pkl", "code/__torch__.py"), "is TorchScript"),
    "compiled.pt2": (("archive_format", "data/aotinductor/model/a.so"), "holds machine code that AOTInductor compiled"),
    "other.pt2": (("archive_format",), "is no program of torch.export"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_files_of_torch_are_told_apart_and_the_message_has_the_way(name: str, tmp_path: Path) -> None:
    members, said = OTHERS[name]
    with pytest.raises(ExportError, match=rf"{name} {said}.*torch\.export\.save"):
        add(archive(tmp_path / name, *members))


@pytest.mark.parametrize("name", ["cut.pt2", "before_1_6.pth", "weights.safetensors"])
def test_a_file_of_its_name_that_is_no_archive_is_no_program(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.")
    with pytest.raises(
        ExportError, match=r"is no program of torch\.export, or it is damaged|is a pickle|holds weights alone"
    ):
        add(path)


def test_a_zip_of_something_else_is_not_taken_for_torch(tmp_path: Path) -> None:
    assert not torch_program.recognises(archive(tmp_path / "model.zip", "config.json"))


def test_a_program_is_not_read_without_trust(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_program, "_load", lambda path: pytest.fail("the file was loaded"))
    path = archive(tmp_path / "model.pt2", "models/model.json", "archive_format")
    with pytest.raises(ExportError, match=r"can run whatever code its maker put into it.*--trust"):
        add(path, trust=False)


@pytest.fixture(scope="module")
def torch() -> Any:
    pytest.importorskip("onnxscript", reason="part of the extra 'torch'")
    return pytest.importorskip("torch", reason="torch is an extra of its own, see pyproject.toml")


def test_the_readmes_lines_write_a_file_that_is_added(
    torch: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (block,) = (block for block in blocks("export/README.md") if block.language == "python")
    exec(compile(block.text, "export/README.md", "exec"), {})
    contract = from_json(add(tmp_path / "model.pt2")["contract"])
    assert [tensor.shape for tensor in (*contract.inputs, *contract.outputs)] == [(None, 4), (None, 3)]


Saved = Callable[..., Path]


@pytest.fixture
def saved(torch: Any, tmp_path: Path) -> Saved:
    """Saves forward(module, ...) of a module with layers as users do, with free rows."""

    def save(forward: Callable[..., Any], *inputs: Any, named: Any = None, rows: bool = True, **layers: Any) -> Path:
        torch.manual_seed(0)
        module = type("Net", (torch.nn.Module,), {"forward": forward})()
        for name, layer in layers.items():
            setattr(module, name, layer)
        free = {0: torch.export.Dim.DYNAMIC}
        shapes = torch.utils._pytree.tree_map(
            lambda value: free if isinstance(value, torch.Tensor) and rows else None, (inputs, named or {})
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of its own recurrent layers
            program = torch.export.export(
                module.eval(), inputs, named, dynamic_shapes=(*shapes[0], *shapes[1].values())
            )
        torch.export.save(program, tmp_path / "net.pt2")
        return tmp_path / "net.pt2"

    return save


def proof(path: Path) -> str:
    """Why rows are not proved to be independent in the graph beside the file; "" where they are."""
    return walk.refusal(ModelProto.FromString((path.parent / GRAPH).read_bytes()))


def test_inputs_by_name_and_answers_in_a_dictionary_keep_their_names(torch: Any, saved: Saved) -> None:
    def forward(self, numbers, pair, *, weight, power: int):
        hidden = torch.relu(self.a(numbers) + self.b(pair["category"])) * weight**power
        return {"classes": torch.softmax(hidden, -1), "more": [hidden.sum(1), hidden.argmax(-1)]}

    path = saved(
        forward,
        torch.randn(4, 3),
        {"category": torch.randint(0, 50, (4,))},
        named={"weight": torch.rand(4, 1), "power": 2},
        a=torch.nn.Linear(3, 5),
        b=torch.nn.Embedding(50, 5),
    )
    made = add(path)
    contract = from_json(made["contract"])
    inputs = [(tensor.name, tensor.dtype, tensor.shape) for tensor in contract.inputs]
    assert inputs == [
        ("numbers", "float32", (None, 3)),
        ("pair_category", "int64", (None,)),
        ("weight", "float32", (None, 1)),
    ]
    outputs = [(tensor.name, tensor.dtype) for tensor in contract.outputs]
    assert outputs == [("classes", "float32"), ("more_0", "float32"), ("more_1", "int64")]
    assert max(made["parity"].values()) < 1e-5
    assert proof(path) == ""


def test_rows_of_a_network_of_pictures_are_proved_and_no_path_is_in_its_graph(torch: Any, saved: Saved) -> None:
    nn = torch.nn
    body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())

    def forward(self, image):
        return self.head(self.body(image.permute(0, 3, 1, 2).float() / 255))

    path = saved(forward, torch.zeros(2, 12, 12, 3, dtype=torch.uint8), body=body, head=nn.Linear(4, 2))
    made = add(path)
    assert [tensor.name for tensor in from_json(made["contract"]).outputs] == ["output"]
    assert proof(path) == ""
    graph = (path.parent / GRAPH).read_bytes()
    assert b"stack_trace" not in graph
    assert Path(__file__).name.encode() not in graph


def test_steps_of_a_recurrent_network_over_words_are_drawn_below_its_table(torch: Any, saved: Saved) -> None:
    def forward(self, tokens):
        return self.head(self.cells(self.words(tokens))[0][:, -1])

    layers = {"words": torch.nn.Embedding(30, 6), "cells": torch.nn.GRU(6, 5, batch_first=True)}
    path = saved(forward, torch.randint(0, 30, (4, 9)), **layers, head=torch.nn.Linear(5, 2))
    made = add(path)
    assert max(made["parity"].values()) < 1e-5
    assert np.max(made["contract"]["example"]["inputs"]["tokens"]) < 30
    assert proof(path) == ""


def test_a_fixed_number_of_rows_is_told(torch: Any, saved: Saved) -> None:
    made = add(saved(lambda self, x: x * 2, torch.zeros(4, 3), rows=False))
    assert from_json(made["contract"]).inputs[0].shape == (4, 3)
    assert "takes 4 rows at a time" in made["notes"][0]


@pytest.mark.parametrize(
    ("case", "said"),
    [
        ("dropout", "was exported in training mode, where aten::dropout"),
        ("state", "changes its buffers count at each call"),
        ("nothing", "returns None as 'extra', which is no tensor"),
        ("operation", "has no ONNX form: torch's exporter knows none for the operation aten._linalg_svd"),
        ("bfloat16", r"computes in bfloat16.*model\.float\(\)"),
        ("bfloat16 inside", r"computes in bfloat16.*model\.float\(\)"),
    ],
)
def test_what_cannot_be_a_version_says_why(case: str, said: str, torch: Any, saved: Saved) -> None:
    def state(self, x):
        self.count.add_(1)
        return x + self.count

    x, half = torch.randn(4, 3), torch.nn.Linear(3, 2).bfloat16()
    forms = {
        "dropout": lambda self, x: torch.nn.functional.dropout(x),
        "state": state,
        "nothing": lambda self, x: {"y": x * 2, "extra": None},
        "operation": lambda self, x: torch.linalg.svdvals(x.reshape(-1, 3, 1)),
        "bfloat16": lambda self, x: self.low(x),
        "bfloat16 inside": lambda self, x: self.low(x.bfloat16()).float(),
    }
    layers = {"state": {"count": torch.nn.Buffer(torch.zeros(1))}, "bfloat16": {"low": half}}
    layers["bfloat16 inside"] = layers["bfloat16"]
    if case == "bfloat16":
        x = x.bfloat16()
    with pytest.raises(ExportError, match=said):
        add(saved(forms[case], x, **layers.get(case, {})))


def changed(path: Path, end: str, change: Callable[[bytes], bytes]) -> Path:
    """The archive with another content of the member whose name has that end."""
    out = io.BytesIO()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(out, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            new.writestr(name, change(content) if name.endswith(end) else content)
    path.write_bytes(out.getvalue())
    return path


def test_a_damaged_file_and_one_of_a_newer_torch_are_one_clear_line(torch: Any, saved: Saved) -> None:
    def newer(content: bytes) -> bytes:
        program = json.loads(content)
        program["schema_version"]["major"] += 1
        program["torch_version"] = "99.1"
        return json.dumps(program).encode()

    path = saved(lambda self, x: x * 2, torch.zeros(4, 3))
    with pytest.raises(ExportError, match=r"which torch 99\.1 wrote, does not load in torch .*schema version"):
        add(changed(path, "models/model.json", newer))
    path = saved(lambda self, x: x * 2, torch.zeros(4, 3))
    with pytest.raises(ExportError, match="does not load in torch"):
        add(changed(path, "models/model.json", lambda content: content[:200]))


class Touch:
    """What a pickle of it does: it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_code_in_a_program_runs_with_trust_alone(torch: Any, saved: Saved, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    path = saved(lambda self, x: x * 2, torch.zeros(4, 3))
    changed(path, "data/sample_inputs/model.pt", lambda content: pickle.dumps(Touch(ran)))
    with pytest.raises(ExportError, match="--trust"):
        add(path, trust=False)
    assert not ran.exists()
    with pytest.raises(ExportError, match="does not load"):
        add(path)
    assert ran.exists()  # which is why it has to be trusted


def test_every_name_of_a_file_finds_this_converter(tmp_path: Path) -> None:
    for name in ("model.pt2", "model.PT", "model.pth"):
        (tmp_path / name).touch()
        assert choose.converter(tmp_path / name) is torch_program
    assert choose.converter(archive(tmp_path / "unnamed", "archive_format", "models/model.json")) is torch_program
