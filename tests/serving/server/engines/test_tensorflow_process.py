"""TensorFlow as an engine, with SavedModels of TensorFlow 1 and 2 made on the spot."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from bookserve.serving.server.batching import row_independence
from bookserve.serving.server.batching.policy import MAX_THREADS
from bookserve.serving.server.engines import tensorflow_engine
from bookserve.serving.server.engines.engine import EngineOptions
from bookserve.serving.server.engines.tensorflow_engine import TensorFlowEngine
from bookserve.serving.server.models import warmup
from bookserve.serving.server.types.errors import ServingError
from bookserve.serving.server.types.signatures import Signature
from bookserve.serving.wire import lean_keras
from model_servers import wait_until

pytestmark = pytest.mark.usefixtures("tensorflow_kept")


class Model(tf.Module):
    def __init__(self) -> None:
        self.factor = tf.Variable(2.0)

    @tf.function(input_signature=[tf.TensorSpec([None, 3], tf.float32)])
    def scale(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": self.factor * x}

    @tf.function(input_signature=[tf.TensorSpec([None, 3], tf.float32)])
    def centre(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": x - tf.reduce_mean(x, axis=0)}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
    def shout(self, words: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"loud": tf.strings.upper(words), "lengths": tf.strings.length(words)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "1"
    model = Model()
    signatures = {"serving_default": model.scale, "centre": model.centre, "shout": model.shout}
    tf.saved_model.save(model, str(folder), signatures=signatures)
    return folder


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[TensorFlowEngine]:
    with load(folder) as engine:
        yield engine


@contextmanager
def load(folder: Path, options: EngineOptions | None = None) -> Iterator[TensorFlowEngine]:
    engine = TensorFlowEngine(folder, options or EngineOptions())
    try:
        yield engine
    finally:
        engine.close()


def run(engine: TensorFlowEngine, inputs: dict[str, Any], signature: str = "serving_default") -> dict[str, Any]:
    asked: Signature = engine.signatures[signature]
    inputs = dict(asked.complete(inputs))
    names = tuple(asked.outputs)
    return dict(zip(names, engine.run(asked, inputs, names), strict=True))


def test_several_signatures_strings_and_several_outputs(engine: TensorFlowEngine) -> None:
    assert set(engine.signatures) == {"serving_default", "centre", "shout"}
    assert run(engine, {"x": np.ones((2, 3), np.float32)})["y"].tolist() == [[2, 2, 2], [2, 2, 2]]
    loud = run(engine, {"words": np.array([b"a", "ü".encode(), b"\xff\0"], object)}, "shout")
    assert loud["loud"].tolist() == [b"A", "ü".encode(), b"\xff\0"]
    assert loud["lengths"].tolist() == [1, 2, 2]


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_the_process_goes_without_what_keras_imports_besides(engine: TensorFlowEngine) -> None:
    assert tensorflow_engine._TEMPLATE._process is not None
    libraries = Path(f"/proc/{tensorflow_engine._TEMPLATE._process.pid}/maps").read_text()
    assert "/tensorflow/" in libraries
    assert [name for name in lean_keras.UNUSED if f"/{name}/" in libraries] == []


def test_signatures_are_batched_only_where_the_manifest_says_so(engine: TensorFlowEngine, folder: Path) -> None:
    assert row_independence.shared(engine, folder, unasked=True, declared=None) == set()
    declared = row_independence.shared(engine, folder, unasked=True, declared=True)
    assert {"serving_default", "shout"} <= declared


def test_types_and_shapes_are_checked_before_a_kernel_runs(engine: TensorFlowEngine) -> None:
    with pytest.raises(ServingError, match=r"Expects arg\[0\] to be float but double is provided"):
        run(engine, {"x": np.ones((2, 3))})
    for shape in [(2, 4), (3,), (1, 2, 3)]:
        with pytest.raises(ServingError, match=r"input 'x' expects shape \[\?, 3\]"):
            run(engine, {"x": np.ones(shape, np.float32)})


def test_as_many_runs_at_a_time_as_parameters_may_ask_for(folder: Path) -> None:
    with load(folder, EngineOptions(parallel_runs=MAX_THREADS)) as engine:
        assert run(engine, {"x": np.ones((1, 3), np.float32)})["y"].tolist() == [[2, 2, 2]]


@pytest.mark.skipif(sys.platform != "linux", reason="threads are kept to cores on Linux alone")
def test_a_process_that_a_thread_on_one_core_started_uses_all() -> None:
    everywhere = os.sched_getaffinity(0)
    template = tensorflow_engine._Template()

    def start() -> None:
        os.sched_setaffinity(0, sorted(everywhere)[:1])
        template._start()

    with ThreadPoolExecutor(1) as pool:
        pool.submit(start).result()
    assert template._process is not None
    assert template._control is not None
    try:
        pid = template._process.pid
        wait_until(lambda: os.sched_getaffinity(pid) == everywhere, "all cores for the process", seconds=60)
    finally:
        template._control.close()
        template._process.kill()
        template._process.wait()


def test_other_tags_are_chosen_or_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ServingError, match=r"NOT_FOUND: Could not find meta graph def .* has \{ serve \}") as caught:
        TensorFlowEngine(folder, EngineOptions(saved_model_tags=("serve", "gpu")))
    assert "--saved_model_tags" in caught.value.message
    _save_tf1(tmp_path / "1", ["serve", "gpu"])
    with load(tmp_path / "1", EngineOptions(saved_model_tags=("gpu", "serve"))) as engine:
        assert set(engine.signatures) == {"serving_default"}


def test_bfloat16_goes_in_and_comes_out(tmp_path: Path) -> None:
    module = tf.Module()
    module.brain = tf.function(
        lambda x: {"y": x + tf.constant(1, tf.bfloat16)}, input_signature=[tf.TensorSpec([None], tf.bfloat16, name="x")]
    )
    tf.saved_model.save(module, str(tmp_path / "1"), signatures={"serving_default": module.brain})
    x = np.array([0.5, -1.0], tf.bfloat16.as_numpy_dtype)
    with load(tmp_path / "1") as engine:
        y = run(engine, {"x": x})["y"]
    assert y.dtype == x.dtype
    assert y.astype(np.float32).tolist() == [1.5, 0.0]


def test_an_output_of_a_type_that_numpy_lacks_says_so(tmp_path: Path) -> None:
    module = tf.Module()
    module.brain = tf.function(
        lambda x: {"y": tf.cast(x, tf.dtypes.experimental.float8_e5m2)},
        input_signature=[tf.TensorSpec([None], tf.float32, name="x")],
    )
    tf.saved_model.save(module, str(tmp_path / "1"), signatures={"serving_default": module.brain})
    expected = "UNIMPLEMENTED: an output of the model cannot be answered: no TensorFlow type for numpy's float8_e5m2"
    with load(tmp_path / "1") as engine, pytest.raises(ServingError, match=expected):
        run(engine, {"x": np.ones(1, np.float32)})


def test_a_session_config_file_is_read(folder: Path, tmp_path: Path) -> None:
    config = tmp_path / "session.config"
    config.write_text("intra_op_parallelism_threads: 1 graph_options { optimizer_options { opt_level: L0 } }")
    with load(folder, EngineOptions(session_config_file=str(config), bfloat16=True)) as engine:
        assert run(engine, {"x": np.ones((1, 3), np.float32)})["y"].tolist() == [[2, 2, 2]]
    config.write_text("intra_op: 1")
    with pytest.raises(ServingError, match=r"Invalid protobuf file: '.*session\.config'"):
        TensorFlowEngine(folder, EngineOptions(session_config_file=str(config)))


def _save_tf1(folder: Path, tags: list[str]) -> None:
    """Half plus two of TensorFlow Serving's own examples: x [?, 1], with an initialised table beside it."""
    v1 = tf.compat.v1
    with v1.Session(graph=tf.Graph()) as session:
        x = v1.placeholder(tf.float32, [None, 1], name="x")
        half = v1.get_variable("a", initializer=0.5)
        y = half * x + 2.0
        session.run(v1.global_variables_initializer())
        builder = v1.saved_model.Builder(str(folder))
        definition = v1.saved_model.signature_def_utils.predict_signature_def({"x": x}, {"y": y})
        builder.add_meta_graph_and_variables(
            session, tags, {"serving_default": definition}, main_op=v1.tables_initializer()
        )
        builder.save()


def test_tensorflow_1_takes_a_vector_for_a_column(tmp_path: Path) -> None:
    _save_tf1(tmp_path / "1", ["serve"])
    with load(tmp_path / "1") as engine:
        assert run(engine, {"x": np.array([1, 2, 5], np.float32)})["y"].tolist() == [2.5, 3.0, 4.5]
        assert run(engine, {"x": np.array([[1], [2]], np.float32)})["y"].tolist() == [[2.5], [3.0]]
        with pytest.raises(ServingError, match=r"expects shape \[\?, 1\]"):
            run(engine, {"x": np.ones((2, 2), np.float32)})


class Counter(tf.Module):
    """Counts its calls in a variable."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = tf.Variable(0)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
    def __call__(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": x, "calls": self.calls.assign_add(1)}


def test_loading_changes_nothing(tmp_path: Path) -> None:
    counter = Counter()
    tf.saved_model.save(counter, str(tmp_path / "1"), signatures={"serving_default": counter.__call__})
    with load(tmp_path / "1") as engine:
        assert warmup.warm_up(engine, tmp_path / "1", 1) == 0
        assert row_independence.shared(engine, tmp_path / "1", unasked=True, declared=None) == set()
        assert run(engine, {"x": np.array([0.5], np.float32)})["calls"] == 1


def test_large_tensors_and_types_survive_the_way_to_the_process(engine: TensorFlowEngine) -> None:
    x = np.random.default_rng(0).random((200_000, 3), np.float32)
    np.testing.assert_array_equal(run(engine, {"x": x})["y"], 2 * x)
    assert run(engine, {"x": np.empty((0, 3), np.float32)})["y"].shape == (0, 3)


# Processes


def test_each_process_starts_a_profiler_of_its_own_once(engine: TensorFlowEngine, folder: Path) -> None:
    with load(folder) as other:
        ports = [each.profiler_port() for each in (engine, other)]
        assert len(set(ports)) == 2
        assert [each.profiler_port() for each in (engine, other)] == ports
        for port in ports:
            socket.create_connection(("127.0.0.1", port), timeout=20).close()


@pytest.mark.parametrize(
    ("outcome", "shown"), [("pass", ""), ("raise SystemExit(1)", "no AVX"), ("os.abort()", "no AVX")]
)
def test_what_an_import_writes_is_shown_when_it_fails_or_ends_the_process(outcome: str, shown: str) -> None:
    program = (
        "import os\n"
        "from bookserve.serving.server.engines import tensorflow_process\n"
        "with tensorflow_process._quiet_stderr():\n"
        "    os.write(2, b'no AVX')\n"
        f"    {outcome}\n"
        "os.write(2, b'|later')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True, timeout=60)
    assert done.stderr == (shown or "|later")


def descendants(pid: int) -> set[int]:
    children = [int(text) for text in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return {*children, *(below for child in children for below in descendants(child))}


needs_proc = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


@needs_proc
def test_a_process_that_dies_fails_its_requests_and_is_replaced(folder: Path) -> None:
    x = {"x": np.ones((1, 3), np.float32)}
    before = set(_leaves())
    with load(folder) as engine:
        (mine,) = _leaves() - before
        os.kill(mine, signal.SIGSTOP)
        with ThreadPoolExecutor() as pool:
            asked = pool.submit(run, engine, x)
            os.kill(mine, signal.SIGKILL)
            with pytest.raises(ServingError, match="UNAVAILABLE: TensorFlow died"):
                asked.result()

        def back() -> bool:
            try:
                return bool(run(engine, x)["y"].tolist() == [[2, 2, 2]])
            except ServingError:
                return False

        wait_until(back, "the version is back", seconds=120)
    wait_until(lambda: _leaves() <= before, "the process has ended with its engine")


@needs_proc
def test_a_process_that_does_not_answer_is_not_waited_for_when_profiled(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = set(_leaves())
    monkeypatch.setattr(tensorflow_engine, "_PROFILER_SECONDS", 0.1)
    with load(folder) as engine:
        (mine,) = _leaves() - before
        os.kill(mine, signal.SIGSTOP)
        try:
            for _ in range(2):
                with pytest.raises(ServingError, match="UNAVAILABLE: TensorFlow's process does not tell"):
                    engine.profiler_port()
        finally:
            os.kill(mine, signal.SIGCONT)

        def told() -> bool:
            try:
                return engine.profiler_port() > 0
            except ServingError:
                return False

        wait_until(told, "the port is told", seconds=120)


def test_tensorflow_stays_a_while_without_a_version(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So a model that is unloaded before its successor is there does not wait for TensorFlow to start again."""
    template = tensorflow_engine._Template()
    monkeypatch.setattr(tensorflow_engine, "_TEMPLATE", template)
    with load(folder):
        assert template._process is not None
        first = template._process
    assert first.poll() is None
    monkeypatch.setattr(tensorflow_engine, "_TEMPLATE_SECONDS", 0.0)
    with load(folder) as engine:
        assert template._process is first
        assert run(engine, {"x": np.ones((1, 3), np.float32)})["y"].tolist() == [[2, 2, 2]]
        tensorflow_engine.end()  # for versions that are gone: this one is not
        assert first.poll() is None
    wait_until(lambda: template._process is None, "it ends, some time after its last version", 60)
    assert first.returncode == 0


def _leaves() -> set[int]:
    """The forks of the template."""
    found = set()
    for pid in descendants(os.getpid()):
        try:
            arguments = Path(f"/proc/{pid}/cmdline").read_bytes()
            parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except FileNotFoundError:
            continue
        if b"tensorflow_process" in arguments and parent != os.getpid():
            found.add(pid)
    return found
