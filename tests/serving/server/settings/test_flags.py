import pytest

from bookserve.serving.server.settings.flags import WITHOUT_EFFECT, FlagError, Flags, parse, usage

# Every flag of tensorflow_model_server (model_servers/main.cc).
ORIGINAL = """
port grpc_socket_path rest_api_port rest_api_num_threads rest_api_timeout_in_ms
rest_api_enable_cors_support enable_batching batching_parameters_file
enable_per_model_batching_parameters allow_version_labels_for_unavailable_models model_config_file
model_config_file_poll_wait_seconds model_name model_base_path num_load_threads num_unload_threads
max_num_load_retries load_retry_interval_micros file_system_poll_wait_seconds flush_filesystem_caches
tensorflow_session_parallelism tensorflow_intra_op_parallelism tensorflow_inter_op_parallelism
tensorflow_session_config_file use_alts_credentials ssl_config_file platform_config_file
per_process_gpu_memory_fraction saved_model_tags grpc_channel_arguments grpc_max_threads
enable_model_warmup num_request_iterations_for_warmup version monitoring_config_file
remove_unused_fields_from_bundle_metagraph prefer_tflite_model num_tflite_pools
num_tflite_interpreters_per_pool enable_signature_method_name_check xla_cpu_compilation_enabled
xla_gpu_compilation_enabled enable_profiler thread_pool_factory_config_file mixed_precision
skip_initialize_tpu enable_grpc_healthcheck_service enable_serialization_as_tensor_content
"""


def test_every_flag_of_the_original_is_known() -> None:
    known = set(Flags.__dataclass_fields__) | set(WITHOUT_EFFECT)
    assert set(ORIGINAL.split()) <= known
    for name in known:
        assert f"--{name}" in usage() or name == "use_alts_credentials"


def test_values_and_booleans() -> None:
    flags, warnings = parse(
        ["--port=1", "--model_name=a=b", "--enable_serialization_as_tensor_content", "--drain_seconds=2.5"]
    )
    assert (flags.port, flags.model_name, flags.drain_seconds) == (1, "a=b", 2.5)
    assert flags.enable_serialization_as_tensor_content
    assert not parse(["--enable_serialization_as_tensor_content=false"])[0].enable_serialization_as_tensor_content
    assert warnings == []


def test_what_has_no_effect_is_said_and_what_is_unknown_too() -> None:
    _, warnings = parse(["--skip_initialize_tpu", "--model_nam=x", "stray", "--grpc_max_threads=3"])
    assert warnings == [
        "--skip_initialize_tpu has no effect on this server: it never initialises a TPU",
        "unknown argument: --model_nam=x",
        "unknown argument: stray",
        "--grpc_max_threads has no effect on this server",
    ]


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--port=x", "--port=x: expected a whole number"),
        ("--port", "--port needs a value"),
        ("--drain_seconds=soon", "--drain_seconds=soon: expected a number"),
        ("--version=maybe", "--version=maybe: expected true or false"),
        ("--num_tflite_pools=many", "expected a whole number"),
        ("--use_alts_credentials", "--use_alts_credentials is not supported"),
    ],
)
def test_values_that_cannot_be_read(argument: str, message: str) -> None:
    with pytest.raises(FlagError, match=message):
        parse([argument])
