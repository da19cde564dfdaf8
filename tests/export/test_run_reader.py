import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from bookserve.export import run_reader
from bookserve.export.errors import ExportError
from bookserve.training.models import contract


@pytest.fixture
def copy(runs_dir: Path, tmp_path: Path) -> Path:
    """A run folder of its own, to be damaged."""
    return Path(shutil.copytree(run_reader.latest(runs_dir, "mnist"), tmp_path / "mnist" / "20260101-000000"))


def change(folder: Path, **fields: object) -> None:
    content = json.loads((folder / "config.json").read_text()) | fields
    (folder / "config.json").write_text(json.dumps(content))


def test_a_complete_run_is_read(copy: Path) -> None:
    run = run_reader.read(copy, "mnist")
    assert (run.contract.id, run.configuration, run.profile, run.seed) == ("mnist/1", "standard", "smoke", 0)
    assert run.made_with["devices"]
    assert run.examples()["images"].shape == (60, 28, 28)


def test_the_newest_complete_run_is_the_latest(copy: Path) -> None:
    for name in ("20260102-000000", "20260103-000000.unfinished"):
        shutil.copytree(copy, copy.with_name(name))
    copy.with_name("20260104-000000").mkdir()
    assert run_reader.latest(copy.parent.parent, "mnist").name == "20260102-000000"


def test_no_run_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="bookserve train mnist"):
        run_reader.latest(tmp_path, "mnist")


def test_an_unfinished_run_is_refused(copy: Path) -> None:
    unfinished = copy.rename(copy.with_name("20260101-000000.unfinished"))
    with pytest.raises(ExportError, match="is not complete"):
        run_reader.read(unfinished, "mnist")
    with pytest.raises(ExportError, match="is not a run folder"):
        run_reader.read(copy, "mnist")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model": "cifar10"}, "a run of cifar10, not of mnist"),
        ({"contract": "mnist/1"}, "from before runs had their whole contract: train again"),
        ({"data": {"source": "real"}}, "is damaged"),
    ],
)
def test_a_run_of_something_else_is_refused(copy: Path, fields: dict[str, object], message: str) -> None:
    change(copy, **fields)
    with pytest.raises(ExportError, match=message):
        run_reader.read(copy, "mnist")


def test_a_run_with_only_the_name_of_its_contract_gets_that_of_its_training(copy: Path) -> None:
    whole = run_reader.read(copy, "mnist")
    change(copy, contract="mnist/1")
    assert run_reader.read(copy, "mnist", contract) == whole
    change(copy, contract="mnist/2")
    with pytest.raises(ExportError, match="keeps the contract mnist/2; today's is mnist/1: train again"):
        run_reader.read(copy, "mnist", contract)
    change(copy, contract="flowers/1", model="flowers")
    with pytest.raises(ExportError, match="train again"):
        run_reader.read(copy, "flowers", contract)


@pytest.mark.parametrize("name", ["config.json", "metrics.json"])
def test_damaged_json_is_named(copy: Path, name: str) -> None:
    (copy / name).write_text("{")
    with pytest.raises(ExportError, match="is damaged"):
        run_reader.read(copy, "mnist")


def test_damaged_examples_are_named(copy: Path) -> None:
    run = run_reader.read(copy, "mnist")
    np.savez(copy / "examples.npz", images=np.zeros((3, 28, 28), np.float32))
    with pytest.raises(ExportError, match=r"'images' is float32, the contract mnist/1 has uint8"):
        run.examples()
    np.savez(copy / "examples.npz", pictures=np.zeros(3))
    with pytest.raises(ExportError, match="images"):
        run.examples()
    (copy / "examples.npz").write_bytes(b"PK")
    with pytest.raises(ExportError, match=r"examples\.npz cannot be read"):
        run.examples()
