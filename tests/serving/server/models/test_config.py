import pytest
from google.protobuf import text_format

from bookserve.serving.server.models.config import from_message
from bookserve.serving.server.observability.request_log import RequestLogSetting
from bookserve.serving.server.types.errors import ServingError
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
