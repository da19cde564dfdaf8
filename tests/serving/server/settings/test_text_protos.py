import os
import subprocess
import sys
from pathlib import Path

import pytest

from bookserve.serving.server.settings import text_protos
from bookserve.serving.server.types.errors import ServingError
from bookserve.serving.wire.tensorflow_serving_pb2 import ModelServerConfig

COMMAND = (sys.executable, "-m", "bookserve.clients.command_line", "model-server")


def test_a_file_is_read_into_the_message(tmp_path: Path) -> None:
    path = tmp_path / "models.config"
    path.write_text('model_config_list { config { name: "m" } }')
    message = ModelServerConfig()
    assert text_protos.read(path, message) is message
    assert message.model_config_list.config[0].name == "m"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"model_config_list {\n  nonsense: 1 }", "tensorflow.serving.ModelServerConfig: 2:3: "),
        (b"model_config_list {", "tensorflow.serving.ModelServerConfig: 1:19: "),
    ],
)
def test_what_cannot_be_parsed_is_named_as_the_original_names_it(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "models.config"
    path.write_bytes(content)
    with pytest.raises(ServingError) as caught:
        text_protos.read(path, ModelServerConfig())
    expected = f"INVALID_ARGUMENT: Invalid protobuf file: '{path}': Error parsing text-format {reason}"
    assert str(caught.value).startswith(expected)


@pytest.mark.parametrize("content", [b"\xff\xfe", None])
def test_what_cannot_be_read_names_the_file(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "models.config"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ServingError, match=f"Invalid protobuf file: '{path}': "):
        text_protos.read(path, ModelServerConfig())


def test_a_start_without_the_session_config_that_it_names_ends(tmp_path: Path) -> None:
    flags = (f"--model_base_path={tmp_path}", f"--tensorflow_session_config_file={tmp_path / 'nowhere'}")
    done = subprocess.run([*COMMAND, *flags], capture_output=True, text=True, timeout=60)
    assert done.returncode == 255
    assert f"Error: INVALID_ARGUMENT: Invalid protobuf file: '{tmp_path / 'nowhere'}'" in done.stdout


def test_a_start_with_a_bad_config_says_why_on_both_outputs(tmp_path: Path) -> None:
    path = tmp_path / "models.config"
    path.write_text("improper model config")
    command = [*COMMAND, f"--model_config_file={path}"]
    everything_logged = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "0"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=everything_logged)
    assert done.returncode == 255
    assert "Error parsing text-format tensorflow.serving.ModelServerConfig: 1:" in done.stderr
    assert done.stdout.startswith(f"Failed to start server. Error: INVALID_ARGUMENT: Invalid protobuf file: '{path}'")
