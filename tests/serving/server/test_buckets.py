"""The model server over buckets: real processes on both sides, the bucket behind a server of each cloud's protocol."""

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bookserve.serving.wire.bucket import BucketFolder, parse
from bucket_servers import S3Server, s3_server
from cloud_emulators import cloud
from model_servers import Server, StartServer, wait_until, write_scale_model


@pytest.fixture
def bucket(tmp_path: Path) -> Iterator[S3Server]:
    with s3_server(tmp_path) as server:
        yield server


def upload(bucket: S3Server, scratch: Path, model: str, version: int, factor: float) -> None:
    bucket.put_folder(write_scale_model(scratch / model, version, factor), f"{model}/{version}")


def ask(server: Server, model: str = "scale") -> Any:
    """What it answers to [[1, 1, 1]]: the factor of the version that is served; None where none is."""
    body = json.dumps({"instances": [[1.0, 1.0, 1.0]]}).encode()
    address = f"{server.url}/v1/models/{model}:predict"
    try:
        with urllib.request.urlopen(urllib.request.Request(address, body), timeout=10) as response:
            return json.load(response)["predictions"][0][0]
    except urllib.error.HTTPError as error:
        if error.code != 404:
            raise
        return None


def put(server: Server, model: str, base_path: str) -> int:
    """The status of the answer to adding a model."""
    body = json.dumps({"base_path": base_path}).encode()
    request = urllib.request.Request(f"{server.url}/v1/models/{model}", body, method="PUT")
    try:
        with urllib.request.urlopen(request, timeout=20) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code


def lines(server: Server, text: str) -> list[str]:
    return [line for line in server.log.read_text().splitlines() if text in line]


def test_a_bucket_is_followed_and_what_is_loaded_stays_when_it_goes_away(
    tmp_path: Path, bucket: S3Server, start_server: StartServer
) -> None:
    upload(bucket, tmp_path, "scale", 1, 2.0)
    flags = (
        "--model_name=scale",
        "--model_base_path=s3://models/scale",
        "--file_system_poll_wait_seconds=0.1",
        f"--model_cache_dir={tmp_path / 'cache'}",
    )
    server = start_server(*flags, environment=bucket.environment)
    assert ask(server) == 2.0
    upload(bucket, tmp_path, "scale", 2, 3.0)
    wait_until(lambda: ask(server) == 3.0, "version 2 is served")

    assert put(server, "again", "s3://models/scale") == 200
    assert ask(server, "again") == 3.0
    assert put(server, "other", "s3://models/other") == 403  # outside of what the server began with

    bucket.kill()
    wait_until(lambda: bool(lines(server, "cannot be reached")), "the log tells of it")
    other = start_server(*flags, environment=bucket.environment)  # shares the cache, and never meets the bucket
    assert ask(other) == 3.0
    assert len(lines(other, "what the cache holds of it is served")) == 1
    assert ask(server) == 3.0
    assert sorted(line.split(" for servable ")[1].split()[0] for line in lines(server, "cannot be reached")) == [
        "again",
        "scale",
    ]
    assert server.stop() == 0
    assert other.stop() == 0


def test_a_root_in_a_bucket_is_served_with_its_config_and_workers(
    tmp_path: Path, bucket: S3Server, start_server: StartServer
) -> None:
    for model, version, factor in (("double", 1, 2.0), ("double", 2, 2.5), ("triple", 1, 3.0)):
        upload(bucket, tmp_path, model, version, factor)
    bucket.put("notes/readme.txt", b"no model")
    config = (
        'model_config_list { config { name: "double" base_path: "/elsewhere" model_platform: "tensorflow"'
        " model_version_policy { specific { versions: 1 } } } }"
    )
    bucket.put("models.config", config.encode())
    server = start_server(
        "--model_root=s3://models",
        "--file_system_poll_wait_seconds=0.1",
        "--workers=2",
        f"--model_cache_dir={tmp_path / 'cache'}",
        environment=bucket.environment,
    )
    assert (ask(server, "double"), ask(server, "triple")) == (2.0, 3.0)
    with urllib.request.urlopen(f"{server.url}/v1/models") as response:
        assert sorted(model["name"] for model in json.load(response)["models"]) == ["double", "triple"]
    bucket.put("models.config", config.replace("versions: 1", "versions: 2").encode())
    wait_until(lambda: ask(server, "double") == 2.5, "the config file is followed")
    upload(bucket, tmp_path, "half", 1, 0.5)
    wait_until(lambda: ask(server, "half") == 0.5, "a model that came is served")
    assert server.stop() == 0


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["gs", "az"])
def test_the_buckets_of_other_clouds_are_followed(tmp_path: Path, start_server: StartServer, scheme: str) -> None:
    def upload(version: int, factor: float) -> None:
        folder = write_scale_model(tmp_path / "scale", version, factor)
        target = BucketFolder(parse(f"{scheme}://models/scale/{version}"))
        for path in folder.rglob("*"):
            if path.is_file():
                target.write(path.relative_to(folder).as_posix(), path)

    with cloud(scheme, tmp_path) as environment:
        upload(1, 2.0)
        server = start_server(
            f"--model_root={scheme}://models",
            "--file_system_poll_wait_seconds=0.1",
            f"--model_cache_dir={tmp_path / 'cache'}",
            environment=environment,
        )
        assert ask(server) == 2.0
        upload(2, 3.0)
        wait_until(lambda: ask(server) == 3.0, "version 2 is served")
        assert server.stop() == 0
