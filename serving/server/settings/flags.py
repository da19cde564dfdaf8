"""The flags of the model server: tensorflow_model_server's names, defaults and syntax, and a few of our own.

Only `--name=value` is understood, and `--name` alone for a boolean, as there. Flags that cannot apply to this server
are accepted, checked for their type, and reported.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any


def _flag(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class Flags:
    """The values that the server acts on."""

    port: int = _flag(8500, "TCP port of gRPC; 0 turns it off")
    rest_api_port: int = _flag(0, "TCP port of REST; 0 turns it off")
    bind_address: str = _flag("", "address or host name to listen on, such as 127.0.0.1; without it all, IPv4 and IPv6")
    grpc_socket_path: str = _flag("", "also listen for gRPC on this UNIX socket")
    ssl_config_file: str = _flag("", "text SSLConfig file: TLS for gRPC, with client certificates if it says so")
    rest_ssl_config_file: str = _flag("", "text SSLConfig file: the same for REST")
    ssl_cert_file: str = _flag("", "PEM file of certificates: TLS for both ports, in place of SSLConfig files")
    ssl_key_file: str = _flag("", "PEM file of their key")
    ssl_client_ca_file: str = _flag("", "PEM file of authorities: clients must show a certificate of one of them")
    grpc_channel_arguments: str = _flag("", "gRPC's own settings, such as grpc.max_receive_message_length=1000000,...")
    enable_grpc_healthcheck_service: bool = _flag(False, "answer grpc.health.v1 on the gRPC port")
    enable_grpc_reflection: bool = _flag(False, "let grpcurl and its like list and describe the gRPC services")
    enable_profiler: bool = _flag(
        False, "answer tensorflow.ProfilerService on the gRPC port; TensorFlow then opens a port on every address"
    )
    workers: int = _flag(1, "processes that answer requests behind the same ports; 0: one per core")
    worker_timeout_seconds: float = _flag(30.0, "a worker that does not answer for so long is replaced; 0: never")
    supervise: bool = _flag(True, "start the server again when it crashes, on Linux; workers are replaced anyway")
    max_memory_bytes: int = _flag(
        0,
        "that a process may hold; 0: 80 % of what there is, at least 4 GiB, -1: no limit",
    )
    model_name: str = _flag("default", "name of the one model (without --model_config_file)")
    model_base_path: str = _flag(
        "", "folder of the version folders of the one model, or their address: s3://, gs:// or az://BUCKET/PATH"
    )
    model_config_file: str = _flag("", "text ModelServerConfig file with the models to serve")
    model_config_file_poll_wait_seconds: int = _flag(0, "seconds between two looks at that file; 0 reads it once")
    model_root: str = _flag("", "serve every model below this folder or address, also those that come later")
    model_cache_dir: str = _flag(
        "", "folder for versions fetched from s3://, gs:// and az://; default: bookserve/models in the user's cache"
    )
    model_cache_max_bytes: int = _flag(
        20 << 30, "that it may hold; versions that no server has make room, the longest unused first"
    )
    allowed_model_roots: str = _flag(
        "",
        "folders or addresses, with commas, inside which models may be added at run time;"
        " default: where those of the start lie",
    )
    admin_token_file: str = _flag(
        "", "file with the token that changes of models need; without it only this machine may change them"
    )
    allowed_hosts: str = _flag(
        "",
        "without a token: names that calls which change models may have as Host or :authority, with commas, beside"
        " loopback's and --bind_address; * for any",
    )
    allow_version_labels_for_unavailable_models: bool = _flag(
        False, "let a new label name a version that is not available (with --model_root labels always may)"
    )
    file_system_poll_wait_seconds: float = _flag(
        1, "seconds between two looks for new versions; 0 looks once, a negative value never"
    )
    max_num_load_retries: int = _flag(5, "retries after a version failed to load")
    load_retry_interval_micros: int = _flag(60_000_000, "microseconds between two of them")
    num_load_threads: int = _flag(4, "versions that load at the same time")
    num_unload_threads: int = _flag(1, "versions that are freed at the same time")
    enable_model_warmup: bool = _flag(True, "run assets.extra/tf_serving_warmup_requests, or zeros, before serving")
    num_request_iterations_for_warmup: int = _flag(0, "how often each of those runs; 0 means once")
    lazy_loading: bool = _flag(False, "load a version when it is first asked for")
    max_loaded_models: int = _flag(
        0, "with --lazy_loading: versions loaded at a time, the least recently used goes; 0 means no limit"
    )
    tensorflow_session_parallelism: int = _flag(0, "threads of one run, within and between operations; 0 means one")
    tensorflow_intra_op_parallelism: int = _flag(0, "threads that one operation may use; overrides the former")
    tensorflow_inter_op_parallelism: int = _flag(0, "operations of one TensorFlow run at a time; overrides, too")
    tensorflow_session_config_file: str = _flag("", "text ConfigProto file for the versions that TensorFlow runs")
    per_process_gpu_memory_fraction: float = _flag(0.0, "of each GPU, that TensorFlow may take; 0 leaves it to itself")
    mixed_precision: str = _flag("", "bfloat16: TensorFlow computes in it where it thinks fit; ONNX graphs stay as is")
    saved_model_tags: str = _flag("serve", "comma-separated tags of the graph to load from a SavedModel")
    allow_unsafe_ops: bool = _flag(False, "run SavedModels that hold Python code or touch files, such as ReadFile")
    custom_op_libraries: str = _flag(
        "", "comma-separated shared libraries with operations for ONNX graphs; their code runs in the server"
    )
    trial_seconds: float = _flag(
        60.0, "for each step of the trial of a version in a child process, more for large files; 0: no trial"
    )
    require_signature: str = _flag(
        "", "PEM file of a public key: only versions that were signed with its private key are loaded"
    )
    prefer_tflite_model: bool = _flag(
        False, "serve model.tflite, or that in assets.extra, before other graphs of a version"
    )
    num_tflite_pools: int = _flag(0, "TFLite interpreters of a version, with batching parameters; 0: one a CPU")
    num_tflite_interpreters_per_pool: int = _flag(1, "multiplies them; never more than there are batch threads")
    enable_batching: bool = _flag(False, "batch by parameters; without it see --unasked_batching")
    batching_parameters_file: str = _flag("", "text BatchingParameters file; without it TensorFlow Serving's defaults")
    enable_per_model_batching_parameters: bool = _flag(
        False, "with --enable_batching: by batching_params.pbtxt in the version's folder, adaptively without one"
    )
    unasked_batching: bool = _flag(
        True, "without --enable_batching: requests share runs where the graph proves that rows are independent"
    )
    enable_serialization_as_tensor_content: bool = _flag(False, "gRPC answers as tensor_content, not typed fields")
    enable_signature_method_name_check: bool = _flag(
        False, "a signature answers only the method that its method_name names (Predict answers all three)"
    )
    max_request_bytes: int = _flag(64 << 20, "largest request, over gRPC and REST, also after decompression")
    max_header_bytes: int = _flag(16 << 10, "largest request line and headers, over gRPC and REST")
    max_connections: int = _flag(4096, "connections of each port, and process; more wait to be accepted")
    max_buffered_bytes: int = _flag(512 << 20, "unfinished requests of all connections together")
    handshake_seconds: float = _flag(10.0, "for a new connection to shake hands: TLS, and HTTP/2 over gRPC")
    request_seconds: float = _flag(28.0, "for a client to send one request, from its first byte to its last")
    stalled_seconds: float = _flag(60.0, "for a client to go on reading an answer")
    grpc_idle_seconds: float = _flag(3600.0, "after which a gRPC connection without calls is closed")
    rest_idle_seconds: float = _flag(120.0, "after which a REST connection without requests is closed")
    max_queued_requests: int = _flag(2000, "requests that may wait for one model; more are refused")
    max_pictures: int = _flag(
        256, "pictures in requests that are decoded, or wait for it, at once; more are refused, and 0 takes none"
    )
    rest_api_timeout_in_ms: int = _flag(30_000, "how long a REST request may wait for its answer; 0 is for ever")
    rest_api_enable_cors_support: bool = _flag(False, "let web pages of other origins use the REST API")
    monitoring_config_file: str = _flag("", "text MonitoringConfig file that turns the metrics on")
    enable_metrics: bool = _flag(False, "metrics without such a file, at /monitoring/prometheus/metrics of REST")
    log_format: str = _flag("text", "the server's log: text or json")
    log_level: str = _flag("", "debug, info, warning or error; else as TF_CPP_MIN_LOG_LEVEL says")
    log_requests: str = _flag("none", "a line in that log for requests: none, errors or all")
    request_log_file: str = _flag("", "prefix of the files with requests and answers of all models")
    request_log_format: str = _flag("jsonl", "of these files: jsonl, or tfrecord with TensorFlow's PredictionLog")
    request_log_sampling_rate: float = _flag(1.0, "share of the requests that goes there, 0 to 1")
    request_log_max_bytes: int = _flag(100 << 20, "a request log's file that reaches this size is followed by another")
    request_log_max_files: int = _flag(10, "files kept of each request log; 0 keeps all")
    otlp_endpoint: str = _flag(
        "", "URL of an OpenTelemetry collector for traces of requests, such as http://127.0.0.1:4318"
    )
    drain_seconds: float = _flag(10.0, "after SIGTERM or SIGINT: how long requests under way may take")
    drain_quiet_seconds: float = _flag(0.5, "after SIGTERM or SIGINT: how long without a new request ends the drain")
    version: bool = _flag(False, "print the versions and exit")
    help: bool = _flag(False, "print this and exit")

    @property
    def processes(self) -> int:
        """How many processes are to answer requests."""
        return self.workers or os.cpu_count() or 1

    @property
    def grpc_tls(self) -> bool:
        """Whether the gRPC port has TLS."""
        return bool(self.ssl_config_file or self.ssl_cert_file)

    @property
    def rest_tls(self) -> bool:
        """Whether the REST port has."""
        return bool(self.rest_ssl_config_file or self.ssl_cert_file)


# Flags of tensorflow_model_server that change nothing here, with their type.
WITHOUT_EFFECT: dict[str, type] = {
    "rest_api_num_threads": int,
    "flush_filesystem_caches": bool,
    "use_alts_credentials": bool,
    "platform_config_file": str,
    "grpc_max_threads": int,
    "remove_unused_fields_from_bundle_metagraph": bool,
    "xla_cpu_compilation_enabled": bool,
    "xla_gpu_compilation_enabled": bool,
    "thread_pool_factory_config_file": str,
    "skip_initialize_tpu": bool,
}
# Why, where it is not obvious.
_REASONS = {
    "platform_config_file": "it knows one platform, which the other flags set up",
    "thread_pool_factory_config_file": "that plugs C++ code into a binary; see --tensorflow_intra_op_parallelism",
    "skip_initialize_tpu": "it never initialises a TPU",
    "remove_unused_fields_from_bundle_metagraph": "it keeps the signatures of a SavedModel's description, never more",
    "flush_filesystem_caches": "the system's cache of files is shared with others, and gives way by itself",
    "xla_cpu_compilation_enabled": "TensorFlow's wheel compiles whatever a graph marks for XLA, with or without it",
    "xla_gpu_compilation_enabled": "TensorFlow's wheel compiles whatever a graph marks for XLA, with or without it",
}
# Flags that are one of a few words.
_CHOICES: dict[str, tuple[str, ...]] = {
    "log_format": ("text", "json"),
    "log_level": ("", "debug", "info", "warning", "error"),
    "log_requests": ("none", "errors", "all"),
    "request_log_format": ("jsonl", "tfrecord"),
}
# These ask for protection: serving on without it, with a warning in a log, would be worse than not serving.
_REFUSED = ("use_alts_credentials",)


class FlagError(ValueError):
    """A flag whose value cannot be read, or that asks for what this server cannot do."""


def parse(arguments: Sequence[str]) -> tuple[Flags, list[str]]:
    """The flags of a command line, and what the user should be told about it.

    Raises FlagError for a value of the wrong type and for a flag that may not be ignored.
    """
    known = {flag.name: flag.type for flag in fields(Flags)}
    values: dict[str, Any] = {}
    warnings = []
    for argument in arguments:
        name, equals, text = argument.removeprefix("--").removeprefix("-").partition("=")
        if argument.startswith("-") and name in known:
            kind = known[name]
            assert isinstance(kind, type)
            values[name] = _value(name, kind, text if equals else None)
            if name in _CHOICES and values[name] not in _CHOICES[name]:
                raise FlagError(f"--{name}={text}: expected {' or '.join(filter(None, _CHOICES[name]))}")
        elif argument.startswith("-") and name in WITHOUT_EFFECT:
            value = _value(name, WITHOUT_EFFECT[name], text if equals else None)
            if name in _REFUSED and value:
                raise FlagError(f"--{name} is not supported, as ALTS is Google's own: use TLS (--ssl_config_file)")
            reason = f": {_REASONS[name]}" if name in _REASONS else ""
            warnings.append(f"--{name} has no effect on this server{reason}")
        else:
            warnings.append(f"unknown argument: {argument}")
    return Flags(**values), warnings


def _value(name: str, kind: type, text: str | None) -> Any:
    if kind is bool:
        if text is None or text.lower() in ("true", "1"):
            return True
        if text.lower() in ("false", "0"):
            return False
        raise FlagError(f"--{name}={text}: expected true or false")
    if text is None:
        raise FlagError(f"--{name} needs a value: --{name}=VALUE (a space does not do)")
    try:
        return kind(text)
    except ValueError:
        raise FlagError(f"--{name}={text}: expected {'a number' if kind is float else 'a whole number'}") from None


def arguments(flags: Flags) -> list[str]:
    """A command line that `parse` reads as these flags."""
    values = [(flag, getattr(flags, flag.name)) for flag in fields(Flags)]
    return [f"--{flag.name}={value}" for flag, value in values if value != flag.default]


def usage() -> str:
    """The help text."""
    lines = ["usage: bookserve model-server --flag=value ...", ""]
    for flag in fields(Flags):
        lines.append(f"    --{flag.name}={str(flag.default).lower() if flag.type is bool else flag.default}")
        lines.append(f"        {flag.metadata['help']}")
    lines += ["", "tensorflow_model_server's other flags are accepted without effect:", ""]
    lines += [f"    --{name}" for name in WITHOUT_EFFECT if name not in _REFUSED]
    return "\n".join(lines)
