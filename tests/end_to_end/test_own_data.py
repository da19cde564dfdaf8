"""Each kind of a user's own data, from the files to right answers over REST and the gateway."""

import contextlib
import json
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from own_pictures import picture, write_folder

from bookserve.clients.command_line import main
from bookserve.export import manifest
from bookserve.export.manifest import Manifest
from bookserve.training.datasets import molecule_sample
from model_servers import answers, free_port, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ROOT = Path(__file__).resolve().parents[2]
SUBJECTS = ("the farmer", "a young doctor", "her neighbour", "the old captain", "my sister")
THINGS = {"paints": ("fence", "boat"), "sells": ("apples", "eggs"), "repairs": ("clock", "engine")}
WHEN = ("in the morning", "before the storm", "every sunday", "near the harbour")


@dataclass(frozen=True)
class Served:
    """A store with a model of each kind, and where it is served."""

    store: Path
    data: Path
    rest: str
    gateway: str

    def manifest(self, name: str) -> Manifest:
        return manifest.read(self.store / name / "1")

    def ask(self, name: str, question: str | Path) -> list[Mapping[str, Any]]:
        """What the gateway and the model server's REST answer."""
        found = []
        for option in (["--gateway", self.gateway], ["--rest", self.rest, "--models-dir", str(self.store)]):
            asked = CliRunner().invoke(main, ["predict", name, str(question), "--json", *option])
            assert asked.exit_code == 0, asked.output
            (answer,) = json.loads(asked.output)["predictions"]
            found.append(answer)
        return found


def readme_training(name: str) -> list[str]:
    """The words after `bookserve train` of the line of training/README.md that makes the model `name`."""
    section = (ROOT / "training/README.md").read_text().split("## Train on your own data")[1].split("\n## ")[0]
    lines = [shlex.split(line)[2:] for line in section.splitlines() if line.startswith("bookserve train ")]
    (words,) = [words for words in lines if name in words or any(word.startswith(f"{name}.") for word in words)]
    return words


def train(*words: str) -> str:
    """Train in this folder, publish the run in `models`, and return its name."""
    done = CliRunner().invoke(main, ["train", *words, "--profile=smoke"])
    assert done.exit_code == 0, done.output
    name = done.output.splitlines()[-1].removeprefix("publish it with: bookserve export ")
    done = CliRunner().invoke(main, ["export", name])
    assert done.exit_code == 0, done.output
    return name


def write_flats(path: Path) -> None:
    random = np.random.default_rng(0)
    area, age = random.uniform(20, 200, 300), random.uniform(0, 90, 300)
    price = 1_900 * area - 700 * age + 40_000 + random.normal(0, 5_000, 300)
    rows = [
        f"{a:.1f};{b:.0f};{c:.0f};{'cheap' if c < 200_000 else 'dear'}"
        for a, b, c in zip(area, age, price, strict=True)
    ]
    path.write_text("\n".join(["area m2;age;price;class", *rows]) + "\n")


def write_molecules(path: Path) -> None:
    """Nitro compounds are positive in "nitro"; every third result of the other label is missing."""
    smiles, _ = molecule_sample.draw(400, 1, seed=5)
    rows = [f"{text},{int('[N+]' in text)},{('1', '0', '')[number % 3]}" for number, text in enumerate(smiles)]
    path.write_text("\n".join(["structure,nitro,noise", *rows, "C1CC,1,0", f"{smiles[0]},0,0"]) + "\n")


def write_text(path: Path) -> None:
    random = np.random.default_rng(1)
    sentences = []
    for _ in range(1_500):
        verb = str(random.choice(list(THINGS)))
        words = (random.choice(SUBJECTS), verb, "the", random.choice(THINGS[verb]), random.choice(WHEN))
        sentences.append(" ".join(words).capitalize() + ".")
    path.write_text(" ".join(sentences))


@contextlib.contextmanager
def serving(folder: Path, *trainings: list[str]) -> Iterator[Served]:
    """Trains in the folder, publishes, and serves."""
    store = folder / "models"
    with contextlib.chdir(folder):
        for words in trainings:
            train(*words)
    ports = {name: free_port() for name in ("grpc", "rest", "gateway")}
    options = [f"--models-dir={store}", *(f"--{name}-port={port}" for name, port in ports.items())]
    command = [sys.executable, "-m", "bookserve.clients.command_line", "serve", *options]
    with (folder / "serve.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    rest, gateway = (f"http://127.0.0.1:{ports[name]}" for name in ("rest", "gateway"))
    try:
        wait_until(lambda: answers(f"{rest}/readyz") and answers(f"{gateway}/"), "all is served", seconds=120)
        yield Served(store, folder, rest, gateway)
    finally:
        process.terminate()
        process.wait(timeout=60)


def check_card(served: Served, name: str) -> Manifest:
    """The data card and the checksum are in the manifest, in the model card, and in what the command shows."""
    found = served.manifest(name)
    assert found.data is not None
    assert found.data.source == "own"
    assert found.data_card is not None
    assert found.data_card.splits == ["train", "valid", "test"]
    assert "drawn by seed 0" in found.data_card.division
    card = (served.store / name / "1" / "assets.extra" / "report" / "card.md").read_text()
    assert found.data.sha256 in card
    assert found.data_card.division in card
    shown = CliRunner().invoke(main, ["models", "show", name, "--models-dir", str(served.store)])
    assert f"data      own: {found.data.name}" in shown.output
    assert f"rows      train {found.data_card.rows['train']:,}, valid" in shown.output
    return found


def test_pictures(tmp_path: Path) -> None:
    write_folder(tmp_path / "pictures", each=60)
    with serving(tmp_path, [*readme_training("squares"), "--set=epochs=20"]) as served:
        assert right_answers(served, "squares") >= 10
        assert check_card(served, "squares").config["epochs"] == 20
    options = ["--precision=int8", "--max-loss=1", "--min-speed-up=0", f"--runs-dir={tmp_path}/runs"]
    done = CliRunner().invoke(main, ["export", "squares", *options, f"--models-dir={tmp_path}/int8"])
    assert done.exit_code == 0, done.output
    assert manifest.read(tmp_path / "int8" / "squares" / "2").precision == "int8"


def test_pictures_in_grey(tmp_path: Path) -> None:
    write_folder(tmp_path / "pictures", each=60)
    with serving(tmp_path, ["mnist", "--data-dir=pictures", "--name=grey-squares", "--set=epochs=20"]) as served:
        assert right_answers(served, "grey-squares") >= 10
        check_card(served, "grey-squares")


def right_answers(served: Served, name: str) -> int:
    """Of twelve new pictures."""
    assert served.manifest(name).contract.labels == ("cross", "ring", "square")
    random = np.random.default_rng(77)
    right = 0
    for shape in served.manifest(name).contract.labels * 4:
        path = served.data / "new.jpg"
        picture(shape, random).save(path)
        first, second = served.ask(name, path)
        assert first["class"] == second["class"]
        right += first["class"] == shape
    return right


def test_points(tmp_path: Path) -> None:
    write_flats(tmp_path / "flats.csv")
    with serving(tmp_path, readme_training("prices"), readme_training("classes")) as served:
        assert check_card(served, "prices").contract.columns == ("area m2", "age")
        for answer in served.ask("prices", "100,20"):
            assert answer["y"] == pytest.approx(1_900 * 100 - 700 * 20 + 40_000, rel=0.03)
        assert check_card(served, "classes").contract.labels == ("cheap", "dear")
        assert {answer["class"] for answer in served.ask("classes", "40,60")} == {"cheap"}
        assert {answer["class"] for answer in served.ask("classes", "180,5")} == {"dear"}


def test_molecules(tmp_path: Path) -> None:
    write_molecules(tmp_path / "assays.csv")
    with serving(tmp_path, readme_training("assays")) as served:
        found = check_card(served, "assays")
        assert found.contract.labels == ("nitro", "noise")
        assert found.data_card is not None
        assert found.data_card.left_out == 2
        missing = sum(missing["noise"] for missing in found.data_card.missing.values())
        assert missing == 133 + 1  # in which the two rows of one molecule differ
        nitro = served.ask("assays", "CCc1ccc([N+](=O)[O-])cc1")
        plain = served.ask("assays", "CCc1ccc(CC)cc1")
        for positive, negative in zip(nitro, plain, strict=True):
            assert positive["probabilities"]["nitro"] > 0.5 > negative["probabilities"]["nitro"]


def test_text(tmp_path: Path) -> None:
    write_text(tmp_path / "village.txt")
    with serving(tmp_path, readme_training("village")) as served:
        check_card(served, "village")
        for answer in served.ask("village", "My sister sells the"):
            assert {word["word"] for word in answer["words"][:2]} == {"apples", "eggs"}
