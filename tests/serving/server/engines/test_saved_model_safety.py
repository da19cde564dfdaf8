"""SavedModels that run code or touch files are refused before they run, with the operation's name."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from bookserve.serving.server.engines import choose
from bookserve.serving.server.engines.engine import EngineOptions
from bookserve.serving.server.engines.tensorflow_engine import TensorFlowEngine
from bookserve.serving.server.types.errors import ServingError

pytestmark = pytest.mark.usefixtures("tensorflow_kept")

STRINGS = [tf.TensorSpec([None], tf.string)]


def save(folder: Path, function: Any, specs: Any = STRINGS, module: tf.Module | None = None) -> Path:
    module = module or tf.Module()
    module.serve = tf.function(function, input_signature=specs)
    tf.saved_model.save(module, str(folder), signatures={"serving_default": module.serve})
    return folder


def reading(paths: tf.Tensor) -> dict[str, tf.Tensor]:
    return {"contents": tf.map_fn(tf.io.read_file, paths)}


def writing(paths: tf.Tensor) -> dict[str, tf.Tensor]:
    with tf.control_dependencies([tf.io.write_file(paths[0], "x")]):
        return {"y": tf.identity(paths)}


def python(paths: tf.Tensor) -> dict[str, tf.Tensor]:
    return {"y": tf.py_function(lambda value: value, [paths], tf.string)}


def in_a_branch(paths: tf.Tensor) -> dict[str, tf.Tensor]:
    return {"y": tf.cond(tf.size(paths) > 7, lambda: tf.io.read_file(paths[0]), lambda: tf.constant(b""))}


def in_a_dataset(paths: tf.Tensor) -> dict[str, tf.Tensor]:
    lines = tf.data.TextLineDataset(paths)
    return {"y": lines.reduce(tf.constant(b""), lambda so_far, line: tf.strings.join([so_far, line]))}


def printing(paths: tf.Tensor) -> dict[str, tf.Tensor]:
    tf.print(paths, output_stream="file:///tmp/printed")
    return {"y": tf.identity(paths)}


@pytest.mark.parametrize(
    ("function", "op"),
    [
        (reading, "ReadFile"),
        (writing, "WriteFile"),
        (python, "EagerPyFunc"),
        (in_a_branch, "ReadFile"),
        (in_a_dataset, "TextLineDataset"),
        (printing, "PrintV2"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_files_and_code_are_refused_by_name(tmp_path: Path, function: Any, op: str) -> None:
    folder = save(tmp_path / "1", function)
    with pytest.raises(ServingError, match=rf"may not run: {op} \(node '.*allow_unsafe_ops"):
        TensorFlowEngine(folder, EngineOptions())


def test_the_flag_lifts_it(tmp_path: Path) -> None:
    engine = TensorFlowEngine(save(tmp_path / "1", reading), EngineOptions(allow_unsafe_ops=True))
    secret = tmp_path / "secret"
    secret.write_text("s")
    paths = {"paths": np.array([str(secret).encode()], object)}
    assert engine.run(engine.signatures["serving_default"], paths, ["contents"])[0].tolist() == [b"s"]
    engine.close()


def table_model(folder: Path, vocabulary: Path) -> Path:
    class Words(tf.Module):
        def __init__(self) -> None:
            initializer = tf.lookup.TextFileInitializer(
                str(vocabulary),
                tf.string,
                tf.lookup.TextFileIndex.WHOLE_LINE,
                tf.int64,
                tf.lookup.TextFileIndex.LINE_NUMBER,
            )
            self.table = tf.lookup.StaticHashTable(initializer, -1)
            self.weights = tf.Variable([1.0])  # so that there is something to restore

    module = Words()
    return save(folder, lambda words: {"ids": module.table.lookup(words)}, module=module)


def test_tables_are_filled_from_assets(tmp_path: Path) -> None:
    vocabulary = tmp_path / "words.txt"
    vocabulary.write_text("a\nb\n")
    folder = table_model(tmp_path / "1", vocabulary)
    vocabulary.unlink()
    engine = TensorFlowEngine(folder, EngineOptions())
    words = {"words": np.array([b"b", b"a", b"?"], object)}
    assert engine.run(engine.signatures["serving_default"], words, ["ids"])[0].tolist() == [1, 0, -1]
    engine.close()


def edit(folder: Path, change: Any) -> None:
    from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

    path = folder / "saved_model.pb"
    model = SavedModel.FromString(path.read_bytes())
    change(model.meta_graphs[0])
    path.write_bytes(model.SerializeToString())


def test_tables_are_not_filled_from_elsewhere(tmp_path: Path) -> None:
    vocabulary = tmp_path / "words.txt"
    vocabulary.write_text("a\nb\n")
    folder = table_model(tmp_path / "1", vocabulary)
    edit(folder, lambda graph: graph.ClearField("asset_file_def"))
    with pytest.raises(ServingError, match="fills a table from a file that is no asset"):
        TensorFlowEngine(folder, EngineOptions())

    def climb(graph: Any) -> None:
        graph.asset_file_def.add(filename="../../words.txt").tensor_info.name = "x:0"

    folder = table_model(tmp_path / "2", vocabulary)
    edit(folder, climb)
    with pytest.raises(ServingError, match=r"names an asset outside its folder: '\.\./\.\./words\.txt'"):
        TensorFlowEngine(folder, EngineOptions())


def saved_again(folder: Path, vocabulary: Path) -> Path:
    """A table model loaded and saved in another, as TensorFlow Transform does: functions make and fill the table."""
    module = tf.Module()
    module.inner = tf.saved_model.load(str(table_model(folder / "first", vocabulary)))
    ids = module.inner.signatures["serving_default"]
    return save(folder / "second", lambda words: ids(words), module=module)


def test_a_table_that_a_function_makes_is_filled_from_assets_alone(tmp_path: Path) -> None:
    vocabulary = tmp_path / "words.txt"
    vocabulary.write_text("a\nb\n")
    folder = saved_again(tmp_path / "1", vocabulary)
    engine = TensorFlowEngine(folder, EngineOptions())
    words = {"words": np.array([b"b", b"a", b"?"], object)}
    assert engine.run(engine.signatures["serving_default"], words, ["ids"])[0].tolist() == [1, 0, -1]
    engine.close()

    def path_of_a_function(graph: Any) -> None:
        paths = {node.name for node in graph.graph_def.node if node.op == "ReadVariableOp"}  # of the asset's variable
        (filler,) = (node for node in graph.graph_def.node if "Call" in node.op and paths & set(node.input))
        call = graph.graph_def.node.add(name="call", op="StatefulPartitionedCall")
        call.attr["f"].func.name = filler.attr["f"].func.name
        call.attr["Tout"].list.type.append(tf.string.as_datatype_enum)
        place = next(place for place, name in enumerate(filler.input) if name in paths)
        filler.input[place] = "call"

    edit(folder, path_of_a_function)
    with pytest.raises(ServingError, match="fills a table from a file that is no asset"):
        TensorFlowEngine(folder, EngineOptions())


def test_what_restores_the_variables_may_do_nothing_else(tmp_path: Path) -> None:
    """The loader runs the node that the SavedModel names for it."""
    module = tf.Module()
    module.weights = tf.Variable([1.0])
    folder = save(tmp_path / "1", lambda x: {"y": tf.identity(x)}, module=module)
    TensorFlowEngine(folder, EngineOptions()).close()

    def swap(graph: Any) -> None:
        graph.graph_def.node.add(name="evil", op="WriteFile")
        graph.saver_def.restore_op_name = "evil"

    edit(folder, swap)
    with pytest.raises(ServingError, match=r"WriteFile \(node 'evil'"):
        TensorFlowEngine(folder, EngineOptions())


NUMBERS = [tf.TensorSpec([None], tf.int64)]


def cached(file: Any) -> Any:
    def total(numbers: tf.Tensor) -> dict[str, tf.Tensor]:
        rows = tf.data.Dataset.from_tensor_slices(numbers)
        kept = rows.cache(file() if callable(file) else file)
        return {"y": kept.reduce(tf.constant(0, tf.int64), tf.add)}

    return total


def test_a_data_set_may_be_kept_in_memory(tmp_path: Path) -> None:
    engine = TensorFlowEngine(save(tmp_path / "1", cached(""), NUMBERS), EngineOptions())
    try:
        (answer,) = engine.run(engine.signatures["serving_default"], {"numbers": np.array([2, 3])}, ["y"])
        assert answer == 5
    finally:
        engine.close()


@pytest.mark.parametrize("file", ["/tmp/cached", lambda: tf.strings.join(["/tmp/", "cached"])], ids=["given", "made"])
def test_a_data_set_may_not_be_kept_in_a_file(tmp_path: Path, file: Any) -> None:
    folder = save(tmp_path / "1", cached(file), NUMBERS)
    with pytest.raises(ServingError, match=r"CacheDatasetV2 .* keeps a data set in a file"):
        TensorFlowEngine(folder, EngineOptions())


def test_a_saved_model_of_text_is_checked_and_served_as_one_of_bytes(tmp_path: Path) -> None:
    v1 = tf.compat.v1

    def words(sources: Any) -> Path:
        folder = tmp_path / str(len(list(tmp_path.iterdir())) + 1)
        with v1.Graph().as_default(), v1.Session() as session:
            x = v1.placeholder(tf.string, [None])
            factor = v1.get_variable("factor", initializer=3.0)
            session.run(factor.initializer)
            y = factor * tf.cast(tf.strings.length(sources(x)), tf.float32)
            builder = v1.saved_model.builder.SavedModelBuilder(str(folder))
            signature = v1.saved_model.predict_signature_def({"x": x}, {"y": y})
            builder.add_meta_graph_and_variables(session, ["serve"], {"serving_default": signature})
            builder.save(as_text=True)
        return folder

    folder = words(tf.identity)
    assert not (folder / "saved_model.pb").exists()
    engine = choose.load(folder, EngineOptions())
    try:
        texts = np.array([b"a", b"ccc"], np.object_)
        assert engine.run(engine.signatures["serving_default"], {"x": texts}, ["y"])[0].tolist() == [3.0, 9.0]
    finally:
        engine.close()
    reading_files = words(lambda paths: tf.map_fn(tf.io.read_file, paths))
    with pytest.raises(ServingError, match="may not run: ReadFile"):
        choose.load(reading_files, EngineOptions())
    (folder / "saved_model.pbtxt").write_text("meta_graphs { graph_def { node: }")
    with pytest.raises(ServingError, match=r"saved_model\.pbtxt cannot be read as a SavedModel: 1:"):
        choose.load(folder, EngineOptions())
