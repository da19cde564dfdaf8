"""The gateway's OpenAPI document before the tools of others: a validator, schemathesis, generators of clients."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import openapi_spec_validator
import pytest

from book_contracts import CONTRACTS, write_manifest, write_manifests
from gateway_pages import write_vocabulary
from gateway_servers import Gateway, start_gateway
from http_calls import get
from stand_in_models import OTHERS, FakeServer, serve

BIN = Path(sys.executable).parent
HERE = Path(__file__).parent
LARGE = "mnist|cifar10|letters"  # models that take pictures of 784 numbers and more


# Pictures so small that a tool which varies a body's numbers one by one comes to an end.
SMALL = {
    model: replace(
        CONTRACTS[like],
        model=model,
        inputs=(replace(CONTRACTS[like].inputs[0], shape=shape),),
        preprocessing=replace(CONTRACTS[like].preprocessing, size=(2, 2), resize="stretch"),
    )
    for model, like, shape in (("spots", "mnist", (None, 2, 2)), ("dots", "cifar10", (None, 2, 2, 3)))
}


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A real gateway with every kind of model."""
    folder = tmp_path_factory.mktemp("openapi")
    store = write_manifests(folder / "models")
    for contract in (*OTHERS.values(), *SMALL.values()):
        write_manifest(store, contract, 3)
    write_vocabulary(store / "ptb")
    write_vocabulary(store / "mood")
    contracts = {**CONTRACTS, **OTHERS, **SMALL}
    fake = FakeServer(models=tuple(contracts), contracts=contracts)
    server = serve(fake)
    options = [f"--models-dir={store}", f"--model-server={fake.target}"]
    running = start_gateway(folder / "log", *options, host="127.0.0.1")
    yield running
    running.process.kill()
    running.process.wait()
    assert running.process.stdout is not None
    running.process.stdout.close()
    server.stop(None).wait()


@pytest.fixture(scope="module")
def document(gateway: Gateway, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The document in a file."""
    path = tmp_path_factory.mktemp("document") / "openapi.json"
    path.write_bytes(get(gateway.port, "/openapi.json").body)
    return path


def _run(*command: str | Path, folder: Path, seconds: float = 280, **environment: str) -> str:
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", **environment},
        capture_output=True,
        text=True,
        timeout=seconds,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def test_it_is_a_valid_document_of_openapi_3_1(client) -> None:
    content = client.get("/openapi.json").get_json()
    assert content["openapi"] == "3.1.0"
    openapi_spec_validator.validate(content)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("phase", "paths", "examples", "tested"),
    [
        ("examples,fuzzing", ("--exclude-path-regex", LARGE), 25, 40),
        ("examples,fuzzing", ("--include-path-regex", LARGE), 5, 9),
        # This phase varies a body's numbers one by one: thousands of these pictures', which spots and dots stand for.
        ("coverage", ("--exclude-path-regex", LARGE), 25, 40),
    ],
)
def test_schemathesis_finds_nothing(
    gateway: Gateway, tmp_path: Path, phase: str, paths: tuple[str, str], examples: int, tested: int
) -> None:
    command = [BIN / "st", "--config-file", HERE / "schemathesis.toml", "run", f"{gateway.url}/openapi.json"]
    command += ["--seed=1", f"--max-examples={examples}", f"--phases={phase}", *paths]
    told = _run(*command, folder=tmp_path, seconds=580)
    assert f"Tested: {tested}" in told


@pytest.mark.slow
def test_openapi_python_client_generates_a_client_that_asks(gateway: Gateway, document: Path, tmp_path: Path) -> None:
    _run(BIN / "openapi-python-client", "generate", "--path", document, "--output-path", "made", folder=tmp_path)
    program = f"""
from bookserve_client import Client
from bookserve_client.api.gateway import list_models
from bookserve_client.api.models import predict_linear, predict_wine
from bookserve_client.models import PredictLinearBody, PredictWineBody, Problem

client = Client("{gateway.url}")
answer = predict_linear.sync(client=client, body=PredictLinearBody(x=[0.5, 1.5]))
print([prediction.y for prediction in answer.predictions])
print(predict_wine.sync(client=client, body=PredictWineBody(x=[[1.0, 2.0, 3.0]])).predictions[0].class_)
refused = predict_linear.sync(client=client, body=PredictLinearBody(x="a"))
assert isinstance(refused, Problem), refused
print(refused.type_)
"""
    told = _run(sys.executable, "-c", program, folder=tmp_path, PYTHONPATH=str(tmp_path / "made"))
    assert told.splitlines() == ["[4.5, 9.5]", "good", "urn:bookserve:problem:bad-value"]


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("npm"), reason="npm is not installed")
def test_openapi_typescript_generates_types_that_hold(document: Path, tmp_path: Path) -> None:
    (tmp_path / "package.json").write_text(json.dumps({"private": True}))
    _run("npm", "install", "--no-audit", "--no-fund", "openapi-typescript@7.13.0", "typescript@5", folder=tmp_path)
    _run("npx", "openapi-typescript", document, "-o", "api.d.ts", folder=tmp_path)
    program = """
import type { components, paths } from "./api";
type Body = paths["/api/v1/linear"]["post"]["requestBody"]["content"]["application/json"];
type Answer = paths["/api/v1/linear"]["post"]["responses"][200]["content"]["application/json"];
export const good: Body = { x: [1, 2] };
// @ts-expect-error a molecule is no number
export const bad: Body = { smiles: "CCO" };
export const y = (answer: Answer): number => answer.predictions[0]!.y;
export const kind: components["schemas"]["Problem"]["type"] = "urn:bookserve:problem:bad-value";
"""
    (tmp_path / "use.ts").write_text(program)
    _run("npx", "tsc", "--noEmit", "--strict", "--module", "nodenext", "use.ts", folder=tmp_path)
