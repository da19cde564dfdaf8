"""Many inputs at once on a model's page: files in, progress, stop, results as a sorted table and as CSV."""

import csv
import io
import struct
import zipfile
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from gateway_pages import SEVEN


def choose(page: Page, model: str, name: str, content: str) -> None:
    page.goto(f"/models/{model}")
    expect(page.locator("#batch")).to_be_visible()
    page.locator("#batch-files").set_input_files({"name": name, "mimeType": "text/plain", "buffer": content.encode()})


def saved(page: Page) -> list[list[str]]:
    with page.expect_download() as download:
        page.get_by_role("button", name="Save as CSV").click()
    return list(csv.reader(io.StringIO(Path(download.value.path()).read_text(encoding="utf-8"))))


def test_the_rows_of_a_table_are_asked_shown_sorted_and_saved(page) -> None:
    rows = [f"{number},{number % 7 - 3},0.5" for number in range(300)]  # two requests
    choose(page, "wine", "wine.csv", "\r\n".join(["age,acid,sugar", *rows, ""]))
    expect(page.locator("#batch-count")).to_have_text("300 of 300")
    expect(page.locator("#batch-more")).to_have_text("The file has 100 rows more.")
    lines = saved(page)
    assert lines[0] == ["input", "version", "class", "scores bad", "scores good"]
    assert len(lines) == 301
    assert lines[1][:3] == ["-3, 0.5, 0", "3", "bad"]  # acid, sugar, age
    first = page.locator("#batch-table tbody tr").first
    page.get_by_role("button", name="scores good").click()
    expect(first.locator("td").nth(2)).to_have_text("bad")
    page.get_by_role("button", name="scores good").click()
    expect(first.locator("td").nth(2)).to_have_text("good")
    expect(page.locator("#batch-table th").last).to_have_attribute("aria-sort", "descending")


@pytest.mark.slow
def test_what_is_refused_stands_in_its_row_and_the_others_are_answered(page) -> None:
    choose(page, "tox21", "molecules.txt", "CCO\nC(C\n\nc1ccccc1\n")
    expect(page.locator("#batch-count")).to_have_text("3 of 3, 1 of them refused")
    cells = page.locator("#batch-table tbody tr").nth(1).locator("td")
    expect(cells.first).to_have_text("C(C")
    expect(cells.last).to_contain_text("Please give a molecule as SMILES.")
    assert [line[0] for line in saved(page)] == ["input", "CCO", "C(C", "c1ccccc1"]


def test_a_line_that_is_no_row_is_named_and_nothing_is_asked(page) -> None:
    choose(page, "wine", "wine.csv", "1,2,3\n1,,3\n")
    expect(page.locator("#batch-message")).to_contain_text("Line 2 is not a row of 3 numbers")
    expect(page.locator("#batch-results")).to_be_hidden()
    choose(page, "wine", "wine.csv", "\n")
    expect(page.locator("#batch-message")).to_have_text("The file holds no inputs.")
    choose(page, "wine", "wine.csv", 'age;acid;"a; b"\n50;-3,5;0.5\n')
    expect(page.locator("#batch-message")).to_contain_text("Line 2 is not a row of 3 numbers: 50, -3,5, 0.5")
    for mark in (";", "\t"):  # as spreadsheets write them
        choose(page, "wine", "wine.csv", f"age{mark}acid{mark}sugar\r\n50{mark}-3{mark}0.5\r\n")
        expect(page.locator("#batch-table tbody tr").first).to_contain_text("-3, 0.5, 50")
    choose(page, "linear", "x.csv", "x\n1\n-2.5\n")
    expect(page.locator("#batch-table tbody tr").nth(1)).to_have_text("-2.53-10.5")


@pytest.mark.slow
def test_pictures_are_asked_together(page) -> None:
    page.goto("/models/letters")
    expect(page.locator("#batch")).to_be_visible()
    page.locator("#batch-files").set_input_files([SEVEN, SEVEN])
    expect(page.locator("#batch-count")).to_have_text("2 of 2")
    expect(page.locator("#batch-table tbody tr td:first-child")).to_have_text(["seven.png", "seven.png"])


def archive(**files: bytes) -> bytes:
    """A ZIP archive of these files, deflated; "__" in a name stands for "/", "_" for "."."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, content in files.items():
            opened.writestr(name.replace("__", "/").replace("_", "."), content)
    return packed.getvalue()


def choose_zip(page: Page, content: bytes) -> None:
    page.goto("/models/letters")
    expect(page.locator("#batch")).to_be_visible()
    page.locator("#batch-files").set_input_files({"name": "a.zip", "mimeType": "application/zip", "buffer": content})


def test_the_pictures_of_an_archive_are_asked_and_what_is_none_or_too_much_stands_in_its_row(page) -> None:
    seven = SEVEN.read_bytes()
    content = bytearray(
        archive(z__seven_png=seven, MACOS_txt=b"no picture", bomb_bmp=bytes(9 << 20), large_png=bytes(range(256)) * 99)
    )
    size = struct.pack("<I", 256 * 99)  # in the archive's directory: one byte less than there is
    place = content.rindex(size)
    content[place : place + 4] = struct.pack("<I", 256 * 99 - 1)
    choose_zip(page, bytes(content))
    expect(page.locator("#batch-count")).to_have_text("4 of 4, 3 of them refused")
    answers = {line[0]: line for line in saved(page)}
    assert list(answers) == ["input", "MACOS.txt", "bomb.bmp", "large.png", "z/seven.png"]
    assert "more than 100 times its size" in answers["bomb.bmp"][-1]
    assert "more than" in answers["large.png"][-1]
    assert "Please give" in answers["MACOS.txt"][-1]
    assert answers["z/seven.png"][1] == "3"
    assert answers["z/seven.png"][-1] == ""


@pytest.mark.slow
def test_hidden_files_are_passed_over_and_a_broken_or_long_archive_is_refused_whole(page) -> None:
    seven = SEVEN.read_bytes()
    choose_zip(page, archive(seven_png=seven, _hidden=b"x", MACOSX=b"x", a___hidden=b"x"))
    expect(page.locator("#batch-count")).to_have_text("2 of 2, 1 of them refused")
    whole = archive(seven_png=seven)
    message = page.locator("#batch-message")
    choose_zip(page, whole[:-30])
    expect(message).to_contain_text("no whole ZIP archive")
    choose_zip(page, archive(**{f"f{number}": b"" for number in range(5_001)}))
    expect(message).to_contain_text("The archive has 5001 files; a page takes 5000.")
    damaged = bytearray(whole)
    damaged[damaged.index(b"PK\x01\x02")] = 0
    choose_zip(page, bytes(damaged))
    expect(message).to_contain_text("directory is damaged")
    expect(page.locator("#batch-results")).to_be_hidden()


@pytest.mark.slow
def test_a_batch_is_stopped_and_keeps_what_was_answered(page) -> None:
    page.goto("/models/wine")
    expect(page.locator("#wine-version")).to_contain_text("version 3")
    asked = []
    page.on(
        "request",
        lambda request: asked.append(request) if request.url.endswith("/api/v1/models/wine:predict") else None,
    )
    page.route("**/api/v1/models/wine:predict", lambda route: route.continue_() if len(asked) == 1 else None)
    content = "\n".join(["1,2,3"] * 600).encode()
    page.locator("#batch-files").set_input_files({"name": "wine.csv", "mimeType": "text/csv", "buffer": content})
    expect(page.locator("#batch-count")).to_have_text("256 of 600")
    page.get_by_role("button", name="Stop").click()
    expect(page.locator("#batch-message")).to_have_text("Stopped after 256 of 600.")
    expect(page.get_by_role("button", name="Stop")).to_be_hidden()
    assert len(saved(page)) == 257


@pytest.mark.slow
def test_models_of_boards_and_tensors_take_one_at_a_time(page) -> None:
    page.goto("/models/double")
    expect(page.locator("#double-body")).to_be_visible()
    expect(page.locator("#batch")).to_be_hidden()
