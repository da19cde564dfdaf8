import os
from pathlib import Path

import pytest
from google.protobuf import text_format

from bookserve.serving.server.models import config as config_file
from bookserve.serving.server.models.config import (
    RequestLogSetting,
    check_prefix,
    check_type,
    discover,
    from_message,
)
from bookserve.serving.server.models.version_policy import versions_on_disk
from bookserve.serving.server.types.errors import ServingError, invalid_argument
from bookserve.serving.wire.tensorflow_serving_pb2 import ModelServerConfig


def config(logging: str) -> ModelServerConfig:
    text = f'model_config_list {{ config {{ name: "m" base_path: "/m" model_platform: "tensorflow" {logging} }} }}'
    return text_format.Parse(text, ModelServerConfig())


def test_what_the_original_samples_beside_is_read_and_changes_nothing() -> None:
    (setting,) = from_message(
        config(
            'logging_config { log_collector_config { filename_prefix: "/log" } sampling_config { sampling_rate: 0.5'
            ' attributes: 3 per_task_sampling_configs { dc: "a" task_index: 1 sampling_rate: 1 } } }'
        )
    )
    assert setting.request_log == RequestLogSetting("/log", 0.5)


def test_a_logger_of_elsewhere_is_refused() -> None:
    logging = 'logging_config { custom_logging_config { type_url: "x" } log_collector_config { type: "jsonl" } }'
    with pytest.raises(ServingError, match="custom_logging_config of model m is not supported"):
        from_message(config(logging))


def test_settings_of_a_request_log_that_make_no_sense() -> None:
    for rate in (-0.1, 1.1, float("nan")):
        with pytest.raises(ServingError, match="between 0 and 1"):
            RequestLogSetting("/tmp/x", rate)
    for prefix in ("", "/", "/tmp/a\0b"):
        with pytest.raises(ServingError, match="no prefix"):
            RequestLogSetting(prefix)
    with pytest.raises(ServingError, match="type 'bigquery' is not supported"):
        check_type("bigquery")
    for name in ("", "jsonl", "tfrecord"):
        check_type(name)


def test_a_prefix_from_the_network_stays_below_the_allowed_folders(tmp_path: Path) -> None:
    allowed = tmp_path / "logs"
    allowed.mkdir()
    (allowed / "out").symlink_to("/etc")
    (tmp_path / "in").symlink_to(allowed)
    for prefix in (f"{allowed}/requests", f"{allowed}/deeper/requests", f"{tmp_path}/in/requests"):
        check_prefix(prefix, [tmp_path / "elsewhere", allowed])
    for prefix in (
        "",
        "requests",
        "/etc/requests",
        f"{allowed}/../requests",
        f"{allowed}/out/requests",
        f"{allowed}-too/requests",
        f"{allowed}/a\0b",
        f"{allowed}/deeper/../../requests",
    ):
        with pytest.raises(ServingError, match="outside the allowed folders"):
            check_prefix(prefix, [allowed])
    with pytest.raises(ServingError, match="outside the allowed folders"):
        check_prefix(f"{allowed}/requests", [])


def test_hidden_folders_and_names_that_are_no_text_are_no_models(tmp_path: Path) -> None:
    for name in (b"digits", "ziffern-\u00fc".encode(), b".cache", b"bad\xff\xfename"):
        os.makedirs(os.path.join(os.fsencode(tmp_path), name, b"1"))  # noqa: PTH103, PTH118 - pathlib takes no bytes
    assert [setting.name for setting in discover(tmp_path)] == ["digits", "ziffern-\u00fc"]


def test_an_error_can_be_sent_whatever_the_name_of_a_file_is() -> None:
    error = invalid_argument(os.fsdecode(b"/m/1/bad\xff.txt is not in its manifest"))
    assert error.message.encode() == b"/m/1/bad?.txt is not in its manifest"


def test_a_folder_that_may_not_be_read_stops_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Such as `lost+found`, which a volume of its own has, for a server without the rights of root."""
    for name in ("digits", "lost+found"):
        (tmp_path / name / "1").mkdir(parents=True)

    def listed(folder: Path) -> dict[int, Path]:
        if folder.name == "lost+found":
            raise PermissionError(13, "Permission denied", str(folder))
        return versions_on_disk(folder)

    monkeypatch.setattr(config_file, "versions_on_disk", listed)
    for _ in range(2):
        assert [setting.name for setting in discover(tmp_path)] == ["digits"]
    assert caplog.text.count("lost+found is passed over: it cannot be listed: Permission denied") == 1
