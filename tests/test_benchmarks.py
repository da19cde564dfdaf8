"""The pieces of the model server's benchmark: what its generators print is read right, and its figures are true."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import onnxruntime
import pytest
from click.testing import CliRunner

import batch
import batch_sizes
import benchmark_models
import checkouts
import load_generators
import measurements
import processes
import request_files

FOLDER = Path(__file__).parent / "benchmarks"
needs_generators = pytest.mark.skipif(bool(load_generators.missing()), reason="needs h2load and wrk")

H2LOAD = """
finished in 8.73s, 2291.17 req/s, 241.88KB/s
requests: {total} total, {total} started, {done} done, {succeeded} succeeded, {failed} failed, 0 errored, 0 timeout
status codes: {succeeded} 2xx, 0 3xx, 0 4xx, 0 5xx
traffic: 2.06MB (2162048) total, 59.28KB (60704) headers (space savings 96.16%), 1.47MB ({data}) data
                     min         max         mean         sd        +/- sd
time for request:      690us     54.55ms      6.78ms      4.03ms    87.19%
req/s           :     143.21      144.33      143.56        0.34    68.75%
"""
WRK = """Running 4s test @ http://127.0.0.1:8501/v1/models/lenet5:predict
  1 threads and 16 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     3.96ms    1.20ms  20.01ms   80.00%
    Req/Sec     4.09k   300.00     4.60k    70.00%
  Latency Distribution
     50%  870.00us
     75%    4.40ms
     90%    5.30ms
     99%    1.20s
  16000 requests in 4.00s, 3.10MB read
{errors}Requests/sec:   4000.00
Transfer/sec:    793.60KB
"""


def load_command() -> ModuleType:
    """By its path: a file named serving is not to be imported as `serving`."""
    spec = importlib.util.spec_from_file_location("serving_benchmark", FOLDER / "serving.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look it up
    spec.loader.exec_module(module)
    return module


def test_what_h2load_prints_is_read() -> None:
    output = H2LOAD.format(total=100, done=100, succeeded=100, failed=0, data=7700)
    log = "".join(f"1795858011400101\t200\t{micros}\n" for micros in range(1000, 101_000, 1000))
    load = load_generators.parse_h2load(output, log, answer_bytes=77)
    assert (load.calls, load.failed, load.rate) == (100, 0, 2291.17)
    assert load.p50_ms == pytest.approx(50.5)
    assert load.p99_ms == pytest.approx(99.01)


def test_a_grpc_call_without_an_answer_has_failed_whatever_its_http_status() -> None:
    output = H2LOAD.format(total=100, done=90, succeeded=90, failed=10, data=77 * 60)
    load = load_generators.parse_h2load(output, "1\t200\t500\n", answer_bytes=77)
    assert (load.calls, load.failed) == (100, 40)
    assert load.rate == pytest.approx(2291.17 * 60 / 90)


def test_what_wrk_prints_is_read() -> None:
    load = load_generators.parse_wrk(WRK.format(errors=""))
    assert load == load_generators.Load(calls=16000, failed=0, rate=4000.0, p50_ms=0.87, p99_ms=1200.0)
    errors = "  Socket errors: connect 1, read 2, write 0, timeout 3\n  Non-2xx or 3xx responses: 4000\n"
    load = load_generators.parse_wrk(WRK.format(errors=errors))
    assert (load.calls, load.failed, load.rate) == (16006, 4006, 3000.0)


def test_something_unexpected_is_no_figure() -> None:
    with pytest.raises(measurements.MeasurementError, match="unable to connect"):
        load_generators.parse_wrk("unable to connect to 127.0.0.1")


def test_contenders_take_turns_and_ratios_are_those_of_a_round() -> None:
    order = []
    figures = {"theirs": iter([100.0, 200.0, 400.0]), "ours": iter([200.0, 300.0, 400.0])}

    def measure(name: str) -> measurements.Figures:
        order.append(name)
        return {"calls/s": next(figures[name]), "failed calls": 0}

    measured = measurements.in_turns({name: lambda name=name: measure(name) for name in figures}, rounds=3)
    assert order == ["theirs", "ours", "ours", "theirs", "theirs", "ours"]
    rate, failed = measurements.lines("gRPC 16", measured)
    assert " ".join(rate.split()) == (
        "gRPC 16 calls/s theirs 200 (100..400) ours 300 (200..400) ratio 1.50 (1.00..2.00)"
    )
    assert " ".join(failed.split()) == "gRPC 16 failed calls theirs 0 (0..0) ours 0 (0..0)"


def test_batch_sizes_are_those_between_two_pages() -> None:
    name = ":tensorflow:serving:batching_session:processed_batch_size"

    def page(one: int, two: int, four: int, rows: int) -> str:
        buckets = {"1": one, "2": one + two, "4": one + two + four, "+Inf": one + two + four}
        lines = [f'{name}_bucket{{le="{bound}"}} {count}' for bound, count in buckets.items()]
        return "\n".join([*lines, f"{name}_sum{{}} {rows}", f"{name}_count{{}} {one + two + four}"])

    figures = batch_sizes.between(page(10, 0, 0, 10), page(13, 0, 1, 17))
    assert figures == {"rows a batch": 7 / 4, "batches <= 1 %": 75.0, "batches <= 4 %": 25.0}


def test_cpu_time_by_thread_adds_up() -> None:
    burn = """if True:
        import sys, threading, time
        def burn(seconds):
            while time.thread_time() < seconds: pass
            spent.append(time.thread_time())
        spent, done = [], threading.Event()
        def burn_and_stay():
            burn(0.2)
            done.wait()
        other = threading.Thread(target=burn_and_stay)
        other.start()
        while not spent: time.sleep(0.01)
        burn(0.5)
        print(spent[1], spent[0], time.process_time(), flush=True)
        sys.stdin.read()
        done.set()
    """
    process = subprocess.Popen([sys.executable, "-c", burn], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdout is not None
        main, other, total = map(float, process.stdout.readline().split())
        seconds = processes.thread_seconds(process.pid)
        assert len(seconds) == 2
        assert processes.by_main_thread({}, seconds) == pytest.approx((main, other), abs=0.05)
        assert sum(seconds.values()) == pytest.approx(total, abs=0.05)
        assert processes.by_main_thread(seconds, seconds) == (0, 0)
        assert processes.family(process.pid) == [process.pid]
        process.communicate("")


def test_the_int8_graph_answers_like_the_float32_one(tmp_path: Path) -> None:
    answers = []
    images = np.random.default_rng(3).random((100, *benchmark_models.PICTURE), np.float32)
    for model in (benchmark_models.LENET5, benchmark_models.LENET5_INT8):
        model.write(tmp_path / model.name / "1")
        session = onnxruntime.InferenceSession(str(model.graph(tmp_path)))
        answers.append(session.run(None, {"x": images})[0])
    float32, int8 = (model.graph(tmp_path) for model in (benchmark_models.LENET5, benchmark_models.LENET5_INT8))
    assert int8.stat().st_size < 0.3 * float32.stat().st_size
    assert np.abs(answers[0] - answers[1]).max() < 0.02
    best, second = np.sort(answers[0])[:, ::-1][:, :2].T
    clear = best - second > 0.02  # the weights are random, so some images have two best digits
    assert clear.sum() > 20
    assert (answers[0].argmax(1) == answers[1].argmax(1))[clear].all()


@needs_generators
def test_calls_of_a_model_that_is_not_there_are_counted_as_failed(tmp_path: Path) -> None:
    model = benchmark_models.MODELS[0]
    model.write(tmp_path / model.name / "1")
    x, expected = model.request(), model.answer(tmp_path)
    request = request_files.tensorflow_serving(tmp_path, "another", x, expected)
    with checkouts.own().serve(f"--model_root={tmp_path}") as server:
        with pytest.raises(measurements.MeasurementError, match="another"):
            request.check_answer(server.grpc_port)
        for protocol in (request_files.tensorflow_serving, request_files.open_inference):
            assert protocol(tmp_path, model.name, x, expected).check_answer(server.grpc_port) > expected.nbytes
            with pytest.raises(measurements.MeasurementError, match="the server answers"):
                protocol(tmp_path, model.name, x, expected + 1).check_answer(server.grpc_port)
        request = request_files.tensorflow_serving(tmp_path, "another", x, expected)
        address = load_generators.url(server.grpc_port, request.grpc_method)
        load = load_generators.H2load(request.grpc_body, address, 2, 3, answer_bytes=50).run(seconds=1)
        assert (load.calls, load.failed) == (6, 6)
        address = load_generators.url(server.rest_port, request.rest_path)
        refused = load_generators.Wrk(request.rest_script, address, 2).run(seconds=1)
        assert refused.failed == refused.calls > 0
        assert server.resident_mib() > 10
    assert server.process.returncode == 0


@needs_generators
@pytest.mark.slow
def test_the_command_measures_both_checkouts_in_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = load_command()
    model = benchmark_models.Model("multiplication", "small", (1, 3), benchmark_models.write_multiplication, (1,), 0)
    monkeypatch.setattr(command, "MODELS", (model,))
    monkeypatch.setattr(command.signal, "signal", lambda *_: None)
    model.write(tmp_path / "store" / model.name / "1")
    there = checkouts.Checkout(tmp_path, Path(sys.executable))
    monkeypatch.setattr(checkouts, "_installed", lambda _: there)
    done = CliRunner().invoke(
        command.main,
        f"--models-dir {tmp_path / 'store'} --beside {tmp_path} --only start,multiplication --rounds 1 --seconds 1"
        " --batches",
        catch_exceptions=False,
    )
    assert done.exit_code == 0, done.output
    assert "not measured" not in done.output
    for point in ("start", "gRPC 1", "REST 1"):
        for figure in ("resident MiB", *([] if point == "start" else ["calls/s", "p99 ms", "rows a batch"])):
            (line,) = (line for line in done.output.splitlines() if line.startswith(f"  {point:12s} {figure}"))
            assert "theirs" in line
            assert "ours" in line
            assert "ratio" in line


def test_an_unknown_part_is_refused() -> None:
    done = CliRunner().invoke(load_command().main, ["--only", "lenet5,nothing"])
    assert done.exit_code == 2
    assert "int8" in done.output


def test_the_batch_command_is_measured_beside_a_loop_that_answers_the_same() -> None:
    done = CliRunner().invoke(
        batch.main, ["--rounds", "1", "--pictures", "70", "--lines", "1500"], catch_exceptions=False
    )
    assert done.exit_code == 0, done.output
    for form, loops in (
        ("pictures", ["loop"]),
        ("csv", ["loop", "arrow"]),
        ("ndjson", ["loop"]),
        ("parquet", ["loop"]),
    ):
        for figure in ("rows/s", "rows/s of runs"):
            lines = [line for line in done.output.splitlines() if line.startswith(f"  {form:12s} {figure:18s} ")]
            assert [line[34:].split()[0] for line in lines] == loops
            assert all("ratio" in line for line in lines)
