"""The JavaScript client in Node, against a real gateway with keys; and its types, which are the document's."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import grpc
import pytest

from book_contracts import CONTRACTS, write_manifests
from bookserve.serving.gateway import openapi
from gateway_servers import start_gateway
from model_servers import server_starter, write_scale_model
from stand_in_models import FakeServer, serve

ROOT = Path(__file__).resolve().parents[2]
CLIENT = ROOT / "clients" / "javascript"
KEY = "0123456789abcdef"

pytestmark = pytest.mark.skipif(not shutil.which("node"), reason="node is not installed")


def _run(*command: str | Path, folder: Path, **environment: str) -> str:
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def test_the_client_works_in_node(tmp_path: Path) -> None:
    store = write_manifests(tmp_path / "models")
    (tmp_path / "keys").write_text(KEY)
    fake = FakeServer(models=tuple(CONTRACTS))
    server = serve(fake)
    options = [f"--models-dir={store}", f"--model-server={fake.target}", f"--api-keys={tmp_path / 'keys'}"]
    gateway = start_gateway(tmp_path / "log", *options, host="127.0.0.1")
    try:
        seven = str(ROOT / "clients" / "examples" / "seven.png")
        tests = ROOT / "tests" / "clients" / "javascript" / "client.test.mjs"
        told = _run("node", "--test", tests, folder=tmp_path, GATEWAY=gateway.url, KEY=KEY, SEVEN=seven)
        assert "# pass 9" in told
        assert "# fail 0" in told
    finally:
        gateway.process.kill()
        gateway.process.wait()
        assert gateway.process.stdout is not None
        gateway.process.stdout.close()
        server.stop(None).wait()


def test_the_package_lists_its_files() -> None:
    package = json.loads((CLIENT / "package.json").read_text())
    assert sorted(package["files"]) == sorted(
        path.name for path in CLIENT.iterdir() if path.is_file() and path.name != "package.json"
    )


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("npm"), reason="npm is not installed")
def test_its_types_are_those_of_the_document_and_hold(tmp_path: Path) -> None:
    for path in CLIENT.iterdir():
        if path.is_file():
            shutil.copy(path, tmp_path)
    (tmp_path / "openapi.json").write_text(json.dumps(openapi.document([])))
    _run("npm", "install", "--no-audit", "--no-fund", folder=tmp_path)
    _run("npm", "run", "types", folder=tmp_path)
    assert (tmp_path / "api.d.ts").read_text() == (CLIENT / "api.d.ts").read_text(), "run `make javascript`"
    (tmp_path / "use.ts").write_text(
        """
import { BookserveError, Client, type Line } from "./bookserve.js";
const client = new Client("http://127.0.0.1:8080", { key: "k", timeout: 1000 });
export async function first(): Promise<number> {
  const { predictions } = await client.predict<{ y: number }>("score", { x: [1] });
  return predictions[0]!.y;
}
export async function* rows(bodies: { x: number }[]): AsyncGenerator<Line<{ y: number }>> {
  for await (const answer of client.lines<{ y: number }>("score", bodies)) {
    if (answer.problem) console.error(answer.problem.detail);
    else console.log(answer.predictions[0]!.y);
    yield answer;
  }
}
export const isBad = (error: BookserveError) => error.type === "urn:bookserve:problem:bad-value";
// @ts-expect-error no such problem
export const isOther = (error: BookserveError) => error.type === "urn:bookserve:problem:nothing";
"""
    )
    options = ["--noEmit", "--strict", "--module", "nodenext", "--target", "es2024", "--lib", "es2024,dom,dom.iterable"]
    _run("npx", "tsc", *options, "use.ts", folder=tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("npm"), reason="npm is not installed")
def test_grpc_js_asks_the_model_server(tmp_path: Path) -> None:
    write_scale_model(tmp_path / "models" / "scale", 1, 2.0)
    (tmp_path / "bookserve").mkdir()
    (tmp_path / "bookserve" / "serving").symlink_to(ROOT / "serving")
    shutil.copy(ROOT / "tests" / "clients" / "javascript" / "grpc_js.mjs", tmp_path)
    _run("npm", "install", "--no-audit", "--no-fund", "@grpc/grpc-js@1", "@grpc/proto-loader@0.8", folder=tmp_path)
    with server_starter(tmp_path) as start:
        server = start(f"--model_root={tmp_path / 'models'}")
        told = _run("node", "grpc_js.mjs", str(tmp_path), f"127.0.0.1:{server.grpc_port}", folder=tmp_path)
    assert json.loads(told) == {"numbers": [2, 4, 8], "refused": grpc.StatusCode.NOT_FOUND.value[0]}
