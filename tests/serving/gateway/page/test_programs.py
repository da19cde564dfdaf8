"""The programs on a model's page ask what was asked last, for each way in which models are asked."""

import subprocess
import sys
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from gateway_pages import SEVEN


def run(page: Page, program: str, folder: Path) -> str:
    """What a program prints in a folder."""
    text = page.locator(f"#code-{program}").text_content() or ""
    command = ["sh", "-c", text] if program == "curl" else [sys.executable, "-c", text]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, f"{text}\n{done.stderr}"
    return done.stdout


@pytest.mark.slow
def test_a_picture_is_asked_where_it_lies(page) -> None:
    page.goto("/models/letters")
    page.locator("#letters-file").set_input_files(SEVEN)
    expect(page.locator("#letters-class")).to_have_text("i")
    for program in ("curl", "python"):
        assert "'class': 'i'" in run(page, program, SEVEN.parent).replace('"', "'").replace(":'", ": '")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "field", "value", "printed"),
    [
        ("linear", "#linear-x", "1.5", "9.5"),
        ("wine", "#wine-row input >> nth=0", "-3", "0.95257"),
    ],
)
def test_a_row_of_numbers_is_asked_over_grpc_as_tensors(page, tmp_path, model, field, value, printed) -> None:
    page.goto(f"/models/{model}")
    expect(page.locator(f"#{model}-version")).to_contain_text("version 3")
    page.locator(field).fill(value)
    page.locator(field).press("Enter")
    expect(page.locator("#code-json")).to_contain_text(value)
    assert printed in run(page, "grpc", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["tox21", "ptb", "cifar10", "mood", "tictactoe", "logistic"])
def test_what_a_page_asks_by_itself_can_be_asked_from_the_shell(page, tmp_path: Path, model: str) -> None:
    page.goto(f"/models/{model}")
    if model == "mood":
        page.locator("#mood-text").fill("it's the rose")
    expect(page.locator(f"#{model}-version")).to_contain_text("version 3")
    if model == "cifar10":
        (tmp_path / "picture.png").write_bytes(SEVEN.read_bytes())
    for program in ("curl", "python"):
        assert "predictions" in run(page, program, tmp_path)
