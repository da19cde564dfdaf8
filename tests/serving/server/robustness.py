"""What the transports must stand before a release: `python tests/serving/server/robustness.py`. No call may fail.

A million calls on one channel by h2load (Debian: nghttp2-client) and 50,000 by the official client; 10 MiB messages
both ways; a thousand calls at a time; slow readers; keep-alive pings; TLS. The server is a process of its own.
"""

import shutil
import ssl
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "support"))

from bookserve.serving.wire import tensorflow_serving_pb2 as messages
from bookserve.serving.wire.tensors import to_proto
from certificates import Authority
from load import predict_request
from model_servers import Server, answers, server_starter, wait_until, write_scale_model
from raw_http2 import RawClient, request, settings_frame, window_update

PREDICT = "/tensorflow.serving.PredictionService/Predict"
UNLIMITED = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
CALLS = 1_000_000
CLIENT_CALLS = 50_000


def million_by_h2load(server: Server, scratch: Path) -> str:
    if shutil.which("h2load") is None:
        return "left out: h2load is not installed"
    body = scratch / "request"
    message = predict_request()
    body.write_bytes(struct.pack(">BL", 0, len(message)) + message)
    command = ["h2load", "-n", str(CALLS), "-c", "1", "-m", "64", "-t", "1", "-d", str(body)]
    command += ["-H", "content-type: application/grpc", "-H", "te: trailers"]
    output = subprocess.run(
        [*command, f"http://{server.target}{PREDICT}"], capture_output=True, text=True, check=True
    ).stdout
    requests = next(line for line in output.splitlines() if line.startswith("requests:"))
    assert f"{CALLS} succeeded, 0 failed, 0 errored, 0 timeout" in requests, output
    return next(line for line in output.splitlines() if line.startswith("finished"))


def many_by_the_official_client(server: Server, channel: grpc.Channel) -> str:
    call = channel.unary_unary(PREDICT)
    message = predict_request()
    expected = call(message, timeout=60)

    def ask(worker: int) -> int:
        return sum(call(message, timeout=60) == expected for _ in range(CLIENT_CALLS // 8))

    with ThreadPoolExecutor(8) as pool:
        answered = sum(pool.map(ask, range(8)))
    assert answered == CLIENT_CALLS
    return f"{answered} answered"


def large_messages(server: Server, channel: grpc.Channel) -> str:
    rows = np.random.default_rng(0).random((873_814, 3), np.float32)  # 10 MiB
    asked = messages.PredictRequest()
    asked.model_spec.name = "scale"
    asked.inputs["x"].CopyFrom(to_proto(rows))
    call = channel.unary_unary(PREDICT)
    futures = [call.future(asked.SerializeToString(), timeout=300) for _ in range(4)]
    for future in futures:
        answer = messages.PredictResponse.FromString(future.result())
        assert np.array_equal(np.array(answer.outputs["y"].float_val, np.float32), (rows * 2).ravel())
    return f"4 at a time of {asked.ByteSize() >> 20} MiB"


def thousand_at_a_time(server: Server, channel: grpc.Channel) -> str:
    call = channel.unary_unary(PREDICT)
    message = predict_request()
    expected = call(message, timeout=60)
    for _ in range(10):
        futures = [call.future(message, timeout=120) for _ in range(1000)]
        assert all(future.result() == expected for future in futures)
    return "10 times 1,000"


def slow_readers(server: Server) -> str:
    """Fifty connections that take their answers four bytes at a time, while others are served at once."""
    streams = range(1, 21, 2)
    clients = [RawClient(server.grpc_port, settings=settings_frame(window=4)) for _ in range(50)]
    for client in clients:
        client.send(*[request(stream, predict_request(), PREDICT.encode()) for stream in streams])
    slowest = 0.0
    with grpc.insecure_channel(server.target) as channel:
        call = channel.unary_unary(PREDICT)
        expected = call(predict_request(), timeout=60)
        for _ in range(30):
            for client in clients:
                client.send(*[window_update(stream, 4) for stream in streams])
            began = time.monotonic()
            assert call(predict_request(), timeout=60) == expected
            slowest = max(slowest, time.monotonic() - began)
    for client in clients:
        client.read_until(lambda client=client: client.ended() == set(streams))  # type: ignore[misc]
        assert all(client.data(stream)[5:] == expected for stream in streams)
        client.socket.close()
    return f"500 slow answers complete, the others' slowest {slowest * 1000:.0f} ms"


def keep_alive_pings(server: Server) -> str:
    options = [
        ("grpc.keepalive_time_ms", 100),
        ("grpc.keepalive_timeout_ms", 5000),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.keepalive_permit_without_calls", 1),
    ]
    with grpc.insecure_channel(server.target, options) as channel:
        call = channel.unary_unary(PREDICT)
        end = time.monotonic() + 10
        calls = 0
        while time.monotonic() < end:
            call(predict_request(), timeout=60)
            calls += 1
            time.sleep(0.25)
    return f"{calls} calls between pings for 10 s"


def main() -> None:
    """Runs everything, without TLS and with it, and prints a line for each."""
    with tempfile.TemporaryDirectory() as folder, server_starter(Path(folder)) as start:
        scratch = Path(folder)
        write_scale_model(scratch / "scale", 1, 2.0)
        flags = ["--model_name=scale", f"--model_base_path={scratch / 'scale'}"]
        authority = Authority()
        config = authority.write_config(scratch / "ssl.pbtxt")
        plain = start(*flags)
        secure = start(*flags, f"--ssl_config_file={config}", f"--rest_ssl_config_file={config}", wait=False)
        trusting = ssl.create_default_context(cadata=authority.certificate.decode())
        wait_until(lambda: answers(f"https://127.0.0.1:{secure.rest_port}/readyz", trusting), "TLS is up", 60)
        with grpc.insecure_channel(plain.target, UNLIMITED) as channel:
            _run("a million calls on one connection", lambda: million_by_h2load(plain, scratch))
            _run("official client", lambda: many_by_the_official_client(plain, channel))
            _run("10 MiB messages both ways", lambda: large_messages(plain, channel))
            _run("a thousand calls at a time", lambda: thousand_at_a_time(plain, channel))
        _run("slow readers", lambda: slow_readers(plain))
        _run("keep-alive pings", lambda: keep_alive_pings(plain))
        with grpc.secure_channel(
            secure.target, grpc.ssl_channel_credentials(authority.certificate), UNLIMITED
        ) as channel:
            _run("TLS: official client", lambda: many_by_the_official_client(secure, channel))
            _run("TLS: 10 MiB messages both ways", lambda: large_messages(secure, channel))
            _run("TLS: a thousand calls at a time", lambda: thousand_at_a_time(secure, channel))
        for server in (plain, secure):
            assert server.stop(timeout=60) == 0
            assert "Traceback" not in server.log.read_text()


def _run(name: str, case: Callable[[], str]) -> None:
    began = time.monotonic()
    result = case()
    print(f"{name:36s} {time.monotonic() - began:7.1f} s  {result}", flush=True)  # noqa: T201 - what it is run for


if __name__ == "__main__":
    main()
