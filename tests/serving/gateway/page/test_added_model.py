"""A model that `bookserve models add` made, on the page of a real gateway and model server: nothing was written for it.

The programs that its page prints are run as they are printed.
"""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import onnx
import pytest
from onnx import TensorProto, helper
from playwright.sync_api import Browser, Page, expect

import photos
from bookserve.export.store import ModelStore
from gateway_pages import gateway, open_page
from model_servers import server_starter, write_echo_model, write_scale_model
from picture_models import write_colours

BIN = Path(sys.executable).parent


def publish(folder: Path, factor: float) -> None:
    """Adds "score", which gives x times the factor."""
    source = write_scale_model(folder / f"source-{factor}", 1, factor) / "model.onnx"
    command = [BIN / "bookserve", "models", "add", "score", source, "--models-dir", folder / "models"]
    subprocess.run(command, check=True, capture_output=True)


def publish_columns(folder: Path) -> None:
    """Adds "flat", which gives the age plus 100 in Bern, plus 1000 in Zürich."""
    city, age = (
        helper.make_tensor_value_info(name, kind, ["rows", 1])
        for name, kind in (("city", TensorProto.STRING), ("age", TensorProto.FLOAT))
    )
    known = {"keys_strings": ["Bern", "Zürich"], "values_floats": [100.0, 1000.0], "default_float": 0.0}
    nodes = [
        helper.make_node("LabelEncoder", ["city"], ["more"], domain="ai.onnx.ml", **known),
        helper.make_node("Add", ["age", "more"], ["y"]),
    ]
    made = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", 1])
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("ai.onnx.ml", 2)]
    graph = helper.make_graph(nodes, "flat", [city, age], [made])
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), folder / "flat.onnx")
    command = [BIN / "bookserve", "models", "add", "flat", folder / "flat.onnx", "--models-dir", folder / "models"]
    subprocess.run(command, check=True, capture_output=True)


def release(folder: Path) -> None:
    """Makes what is in version 1 version 2 as well."""
    model = folder / "models" / "score"
    shutil.copytree(model / "1", model / "2.tmp").rename(model / "2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds the folder "models", a store with "score" version 1."""
    folder = tmp_path_factory.mktemp("added")
    publish(folder, 2.0)
    publish_columns(folder)
    return folder


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    """A gateway in front of a model server, over the store."""
    with server_starter(folder) as start:
        server = start(f"--model_root={folder / 'models'}", "--enable_metrics", "--file_system_poll_wait_seconds=0.2")
        with gateway(server.target, folder, f"--model-server-rest={server.url}") as url:
            yield url


@pytest.fixture
def page(browser: Browser, url: str) -> Iterator[Page]:
    """The model's page, which has asked the contract's example."""
    with open_page(browser, url, permissions=["clipboard-read", "clipboard-write"]) as page:
        page.goto("/models/score")
        expect(page.locator("#score-version")).to_contain_text("Answered by score version")
        yield page


def test_the_page_asks_the_example_of_the_contract_and_then_what_is_typed(page) -> None:
    body = json.loads(page.locator("#score-body").input_value())
    assert len(body["inputs"]["x"][0]) == 3
    (row, *_) = json.loads(page.locator("#score-answer").text_content())
    assert row["y"] == pytest.approx([2 * value for value in body["inputs"]["x"][0]], rel=1e-5)
    page.locator("#score-body").fill('{"inputs": [[1, 2, 4]]}')
    page.get_by_role("button", name="Ask", exact=True).click()
    expect(page.locator("#score-answer")).to_contain_text("8")
    page.locator("#score-body").fill('{"inputs": [[1, 2]]}')
    expect(page.locator("#score-answer")).to_have_text("")
    page.get_by_role("button", name="Ask", exact=True).click()
    expect(page.locator("#score-body")).to_have_attribute("aria-invalid", "true")
    expect(page.locator("#score-message")).to_contain_text("Please give the model's inputs, x: float32 [n,3].")


def test_inputs_of_one_value_a_row_have_fields(page) -> None:
    page.goto("/models/flat")
    expect(page.locator("#flat-version")).to_contain_text("Answered by flat version 1")
    city, age = page.get_by_label("city", exact=True), page.get_by_label("age", exact=True)
    example = json.loads(page.locator("#flat-body").input_value())["inputs"]
    assert city.input_value() == example["city"][0][0]
    assert city.input_value() in ("Bern", "Zürich")
    city.fill("Zürich")
    age.fill("41.5")
    expect(page.locator("#flat-answer")).to_contain_text("1041.5")
    assert json.loads(page.locator("#flat-body").input_value()) == {"inputs": {"city": [["Zürich"]], "age": [[41.5]]}}
    age.fill("")
    expect(page.locator("#flat-message")).to_have_text("Please give a number for age.")
    expect(age).to_have_attribute("aria-invalid", "true")
    expect(page.locator("#flat-answer")).to_have_text("")
    age.fill("2")
    expect(page.locator("#flat-answer")).to_contain_text("1002")
    page.locator("#flat-body").fill('{"inputs": {"city": [["Bern"]], "age": [[7]]}}')
    page.get_by_role("button", name="Ask", exact=True).click()
    expect(page.locator("#flat-answer")).to_contain_text("107")
    expect(city).to_have_value("Bern")
    expect(age).to_have_value("7")


def test_a_model_of_one_tensor_has_no_fields(page) -> None:
    expect(page.locator("#score-row")).to_be_hidden()


def test_what_the_manifest_and_the_contract_say_is_shown(page) -> None:
    expect(page.locator("#tensors table").first.locator("tbody tr")).to_have_text(
        ["xinfloat32[rows, 3]", "youtfloat32[rows, 3]"]
    )
    expect(page.locator("#versions")).to_contain_text("model.onnx (ONNX)")
    expect(page.locator("#figures")).to_contain_text("The version has no figures.")


@pytest.mark.slow
def test_each_program_runs_as_it_is_printed(page, tmp_path: Path) -> None:
    check_programs(page, tmp_path, "curl", "python", "grpc", "rest", *(["javascript"] if shutil.which("node") else []))


@pytest.mark.slow
def test_the_programs_for_other_servers_clients_run_as_they_are_printed(page, tmp_path: Path) -> None:
    check_programs(page, tmp_path, "triton", "tfserving")


def check_programs(page: Page, folder: Path, *programs: str) -> None:
    """Copies each program from the page and runs it in a folder."""
    page.locator("#score-body").fill('{"inputs": {"x": [[1.25, -2, 1000]]}}')
    page.get_by_role("button", name="Ask", exact=True).click()
    expect(page.locator("#score-answer")).to_contain_text("2000")
    for program in programs:
        page.locator(f"#code-tab-{program}").click()
        page.locator("#code-panels .copy:visible").click()
        expect(page.locator("#code-panels .copy:visible")).to_have_text("Copied")
        text = page.evaluate("navigator.clipboard.readText()")
        assert text == page.locator(f"#code-{program}").text_content()
        commands = {"curl": ["sh", "-c", text], "rest": ["sh", "-c", text], "javascript": ["node", "ask.mjs"]}
        (folder / "ask.mjs").write_text(text)
        command = commands.get(program, [sys.executable, "-c", text])
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        found = {float(number.rstrip(".")) for number in re.findall(r"-?[0-9][0-9.e+]*", done.stdout)}
        assert {2.5, -4.0, 2000.0} <= found, done.stdout


def test_the_last_minutes_are_those_of_the_model_server(page) -> None:
    expect(page.locator("#live-facts")).to_be_visible()
    facts = page.locator("#live-facts div")
    expect(facts.filter(has_text="Latency, 99 % below").locator("dd")).to_have_text(re.compile(r"[0-9.]+ ms"))
    assert int(facts.filter(has=page.get_by_text("Requests", exact=True)).locator("dd").text_content()) > 0


def test_a_published_version_is_told_and_asked_on_demand(page, folder: Path) -> None:
    page.locator("#score-body").fill('{"inputs": [[1, 2, 4]]}')
    page.get_by_role("button", name="Ask", exact=True).click()
    expect(page.locator("#score-version")).to_contain_text("score version 1")
    release(folder)
    expect(page.locator("#health")).to_have_text("Version 2 answers")
    expect(page.locator("#changed")).to_contain_text("The answer below is of version 1.")
    expect(page.locator("#versions thead th")).to_have_text(["fact", "version 2", "version 1"])
    page.get_by_role("button", name="Ask again").click()
    expect(page.locator("#score-version")).to_contain_text("score version 2")
    expect(page.locator("#changed")).to_be_hidden()


@pytest.mark.slow
def test_inputs_of_every_type_have_a_page_and_programs(browser: Browser, tmp_path: Path) -> None:
    types = {
        "f": TensorProto.FLOAT,
        "h": TensorProto.FLOAT16,
        "i": TensorProto.INT64,
        "u": TensorProto.UINT8,
        "b": TensorProto.BOOL,
        "s": TensorProto.STRING,
    }
    source = write_echo_model(tmp_path / "source", 1, types) / "model.onnx"
    command = [BIN / "bookserve", "models", "add", "echo", source, "--models-dir", tmp_path / "models"]
    subprocess.run(command, check=True, capture_output=True)
    given = {"in_f": [[1.5]], "in_h": [[0.5]], "in_i": [[-7]], "in_u": [[255]], "in_b": [[True]]}
    given["in_s"] = [['it\'s "naïve"', {"b64": "bmHDr3Zl"}]]
    with server_starter(tmp_path) as start:
        server = start(f"--model_root={tmp_path / 'models'}")
        rest = f"--model-server-rest={server.url}"
        with gateway(server.target, tmp_path, rest) as url, open_page(browser, url) as page:
            page.goto("/models/echo")
            expect(page.locator("#echo-version")).to_contain_text("echo version 1")  # of the example
            page.locator("#echo-body").fill(json.dumps({"inputs": given}))
            page.get_by_role("button", name="Ask", exact=True).click()
            expect(page.locator("#echo-answer")).to_contain_text("255")
            assert "base64.b64decode" in (page.locator("#code-grpc").text_content() or "")
            for program in ("curl", "python", "rest", "grpc", "triton", "tfserving"):
                text = page.locator(f"#code-{program}").text_content()
                shell = program in ("curl", "rest")
                command = ["sh", "-c", text] if shell else [sys.executable, "-c", text]
                done = subprocess.run(command, capture_output=True, text=True, timeout=120)
                assert done.returncode == 0, f"{text}\n{done.stderr}"
                assert "255" in done.stdout, done.stdout
                assert re.search(r"na(ï|\\xc3|\\303)", done.stdout), done.stdout
            page.locator("#echo-body").fill(json.dumps({"inputs": {**given, "in_s": [[{"b64": "/w=="}]]}}))
            page.get_by_role("button", name="Ask", exact=True).click()
            expect(page.locator("#echo-message")).to_contain_text("The model refuses this input: input 'in_s'")
            expect(page.locator("#echo-body")).to_have_attribute("aria-invalid", "true")


@pytest.mark.slow
def test_two_versions_are_asked_the_same_and_stand_side_by_side(browser: Browser, tmp_path: Path) -> None:
    publish(tmp_path, 2.0)
    publish(tmp_path, 3.0)
    ModelStore(tmp_path / "models").label("score", "stable", 1)
    with server_starter(tmp_path) as start:
        server = start(f"--model_root={tmp_path / 'models'}")
        with gateway(server.target, tmp_path) as url, open_page(browser, url) as page:
            page.goto(f"/models/score#try={quote(json.dumps({'inputs': [[1, 2, 4]]}))}")
            expect(page.locator("#score-version")).to_contain_text("score version 2")
            options = page.get_by_label("Compare with").locator("option")
            expect(options).to_have_text(["no other version", "version 1 (stable)"])
            page.get_by_label("Compare with").select_option(label="version 1 (stable)")
            table = page.locator("#compare-content table")
            expect(table.locator("thead th")).to_have_text(["value", "version 2", "version 1", "difference"])
            expect(table.locator("tbody tr")).to_have_text(["y 132-1", "y 264-2", "y 3128-4"])
            page.locator("#score-body").fill('{"inputs": [[10, 2, 4]]}')
            page.get_by_role("button", name="Ask", exact=True).click()
            expect(table.locator("tbody tr").first).to_have_text("y 13020-10")
            page.get_by_label("Compare with").select_option(label="no other version")
            expect(table).to_have_count(0)


@pytest.mark.slow
def test_each_program_asks_the_photograph_that_was_chosen(browser: Browser, tmp_path: Path) -> None:
    source = write_colours(tmp_path)
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps({"size": [64, 64], "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}))
    (tmp_path / "labels.txt").write_text("red\ngreen\nblue\n")
    (tmp_path / "IMG_1.avif").write_bytes(photos.file_of("AVIF"))
    options = ["--models-dir", tmp_path / "models", "--labels", tmp_path / "labels.txt", "--preprocessor", file]
    subprocess.run([BIN / "bookserve", "models", "add", "colours", source, *options], check=True, capture_output=True)
    with server_starter(tmp_path) as start:
        server = start(f"--model_root={tmp_path / 'models'}")
        rest = f"--model-server-rest={server.url}"
        with gateway(server.target, tmp_path, rest) as url, open_page(browser, url) as page:
            page.goto("/models/colours")
            page.locator("#colours-file").set_input_files(tmp_path / "IMG_1.avif")
            expect(page.locator("#colours-class")).to_have_text("blue")
            wanted = json.loads(page.locator("#code-json").text_content().partition("\n\n")[2])["predictions"][0]
            for program in ("curl", "python", "rest", "grpc", "triton"):
                text = page.locator(f"#code-{program}").text_content()
                command = ["sh", "-c", text] if program in ("curl", "rest") else [sys.executable, "-c", text]
                done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
                assert done.returncode == 0, f"{text}\n{done.stderr}"
                found = [float(number) for number in re.findall(r"-?[0-9]+\.[0-9]+", done.stdout)]
                assert found == pytest.approx(list(wanted["means"].values()), abs=1e-5), f"{text}\n{done.stdout}"
