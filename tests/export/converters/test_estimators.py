"""Estimators as people pickle them: with probabilities, decisions, groups or values, and trees over real columns."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import numpy.typing as npt
import onnx
import pytest
from sklearn import calibration, cluster, ensemble, linear_model, mixture, neighbors, svm, tree
from sklearn.base import is_classifier
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.impute import KNNImputer, SimpleImputer
from sklearn.multioutput import MultiOutputClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from bookserve.export import column_values, engines
from bookserve.export.contracts import from_json
from bookserve.export.converters import estimator_trees, pickled_estimator, trial
from bookserve.export.converters.source import Wishes
from bookserve.export.errors import ExportError

Array = npt.NDArray[Any]


@pytest.fixture(scope="module")
def sales() -> tuple[Array, Array]:
    """Rows of seconds, prices, a small share, an indicator and a size; and a value."""
    chance = np.random.default_rng(0)
    count = 600
    columns = [
        chance.integers(0, 3600, count),
        chance.normal(250_000, 90_000, count),
        chance.random(count) * 1e-3,
        chance.integers(0, 2, count),
        chance.lognormal(8, 2, count),
    ]
    rows = np.stack(columns, axis=1)
    noise = chance.normal(0, 0.3, count)
    return rows, rows[:, 0] / 900 + rows[:, 1] / 1e5 + rows[:, 2] * 2000 + rows[:, 3] + np.log(rows[:, 4]) + noise


def add(folder: Path, estimator: Any) -> dict[str, Any]:
    path = folder / "estimator.joblib"
    joblib.dump(estimator, path)
    job = {"path": str(path), "folder": str(folder), "model": "sales", "task": None, "labels": None, "example": None}
    return trial.run({**job, "trust": True})


def scaled(estimator: Any) -> Any:
    return make_pipeline(StandardScaler(), estimator)


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize(
    "estimator",
    [
        scaled(linear_model.LogisticRegression()),
        scaled(calibration.CalibratedClassifierCV(svm.LinearSVC())),
        scaled(neighbors.KNeighborsClassifier()),
        ensemble.RandomForestClassifier(20, random_state=0),
        ensemble.GradientBoostingClassifier(n_estimators=10, random_state=0),
        ensemble.HistGradientBoostingClassifier(max_iter=10),
        scaled(ensemble.HistGradientBoostingClassifier(max_iter=10)),
    ],
    ids=lambda estimator: type(pickled_estimator._last(estimator)).__name__,
)
def test_a_classifier_with_probabilities(
    tmp_path: Path, sales: tuple[Array, Array], estimator: Any, classes: int
) -> None:
    rows, value = sales
    label = np.digitize(value, [13.0] if classes == 2 else [11.0, 14.0])
    contract = from_json(add(tmp_path, estimator.fit(rows, label))["contract"])
    assert contract.task == "tabular"
    assert contract.labels == tuple(str(number) for number in range(classes))
    assert [tensor.name for tensor in contract.outputs] == ["label", "probabilities"]


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize(
    ("estimator", "scored"),
    [
        (svm.LinearSVC(), True),
        (svm.SVC(), False),  # of two classes the form of ONNX has the wrong sign
        (make_pipeline(svm.SVC()), False),
        (linear_model.SGDClassifier(random_state=0), True),
        (linear_model.Perceptron(random_state=0), True),
        (linear_model.RidgeClassifier(), True),
    ],
    ids=lambda value: "" if isinstance(value, bool) else type(value).__name__,
)
@pytest.mark.parametrize("text", [False, True], ids=["numbers", "words"])
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning", "ignore:Attribute `prob:FutureWarning")
def test_a_classifier_without_probabilities_gives_its_decisions_and_says_so(
    tmp_path: Path, sales: tuple[Array, Array], estimator: Any, scored: bool, classes: int, text: bool
) -> None:
    rows, value = sales
    label: Array = np.digitize(value, [13.0] if classes == 2 else [11.0, 14.0])
    if text:
        label = np.array(["low", "middle", "high"])[label]
    result = add(tmp_path, scaled(estimator).fit(rows, label))
    contract = from_json(result["contract"])
    assert contract.task == "tensors", "a form would show its scores as probabilities"
    has_scores = scored or classes == 3
    assert [tensor.name for tensor in contract.outputs] == ["label", *(["scores"] if has_scores else [])]
    (note,) = result["notes"]
    assert f"{type(pickled_estimator._last(estimator)).__name__} gives no probabilities" in note


@pytest.mark.parametrize(
    ("estimator", "outputs"),
    [
        (cluster.KMeans(4, random_state=0), ["label", "scores"]),
        (mixture.GaussianMixture(3, random_state=0), ["label", "probabilities"]),
        (ensemble.IsolationForest(n_estimators=20, random_state=0), ["label", "scores"]),
        (neighbors.LocalOutlierFactor(novelty=True), ["label", "scores"]),
        (svm.OneClassSVM(), ["label", "scores"]),
        (linear_model.SGDOneClassSVM(random_state=0), ["label", "scores"]),
    ],
    ids=lambda value: "" if isinstance(value, list) else type(value).__name__,
)
def test_groups_and_outliers(tmp_path: Path, sales: tuple[Array, Array], estimator: Any, outputs: list[str]) -> None:
    rows, _ = sales
    contract = from_json(add(tmp_path, scaled(estimator).fit(rows))["contract"])
    assert (contract.task, contract.labels) == ("tensors", ())
    assert [tensor.name for tensor in contract.outputs] == outputs


@pytest.mark.parametrize(
    "estimator",
    [
        linear_model.LinearRegression(),
        ensemble.RandomForestRegressor(20, random_state=0),
        ensemble.ExtraTreesRegressor(20, random_state=0),
        ensemble.HistGradientBoostingRegressor(max_iter=10),
    ],
    ids=lambda estimator: type(estimator).__name__,
)
def test_a_regression(tmp_path: Path, sales: tuple[Array, Array], estimator: Any) -> None:
    contract = from_json(add(tmp_path, estimator.fit(*sales))["contract"])
    assert (contract.task, [tensor.name for tensor in contract.outputs]) == ("regression", ["y"])


def test_xgboost_with_columns_of_whole_numbers_and_indicators(tmp_path: Path, sales: tuple[Array, Array]) -> None:
    """Also between the whole numbers, where the dump that the converter reads has rounded splits or none."""
    import xgboost

    rows, value = sales
    shifted = rows + np.array([0.25, 0, 0, 0, 0])  # so that the splits lie between whole numbers
    kinds = ["int", "float", "q", "i", "float"]
    path = tmp_path / "booster.json"
    booster = xgboost.XGBRegressor(n_estimators=20, feature_types=kinds).fit(shifted, value)
    booster.save_model(path)
    job = {"path": str(path), "folder": str(tmp_path), "model": "sales", "task": None, "labels": None}
    result = trial.run({**job, "example": None, "trust": False})
    assert max(result["parity"].values()) < 1e-4
    seconds = np.repeat(rows[:1].astype(np.float32), 40_000, axis=0)
    seconds[:, 0] = np.linspace(-10, 3610, len(seconds))
    wanted = booster.get_booster().predict(xgboost.DMatrix(seconds, feature_types=kinds))
    found = engines.onnx_graph(tmp_path / "assets.extra" / "model.onnx")({"x": seconds})["variable"]
    assert np.unique(wanted).size > 10
    np.testing.assert_allclose(found[:, 0], wanted, rtol=1e-5)


def test_the_values_reach_every_leaf_and_stay_off_the_splits(tmp_path: Path, sales: tuple[Array, Array]) -> None:
    forest = ensemble.RandomForestRegressor(10, random_state=0, max_leaf_nodes=30).fit(*sales)
    joblib.dump(forest, tmp_path / "forest.joblib")
    (tmp_path / "assets.extra").mkdir()
    pickled_estimator.convert(tmp_path / "forest.joblib", tmp_path, Wishes("sales", trust=True))
    columns = column_values.of(onnx.load(tmp_path / "assets.extra" / "model.onnx"))["x"]
    drawn = column_values.draw(columns, np.random.default_rng(0))
    assert drawn.shape == (column_values.ROWS, 5)
    assert drawn.dtype == np.float32
    leaves = sum(tree.get_n_leaves() for tree in forest.estimators_)
    reached = sum(np.unique(places).size for places in forest.apply(drawn).T)
    assert reached > 0.9 * leaves
    normal = np.random.default_rng(0).standard_normal(drawn.shape)
    assert sum(np.unique(places).size for places in forest.apply(normal).T) < 0.3 * leaves
    for column, values in enumerate(columns):
        splits = [tree.tree_.threshold[tree.tree_.feature == column] for tree in forest.estimators_]
        assert not np.isin(values.astype(np.float64), np.concatenate(splits)).any()


def test_a_graph_with_one_split_wrong_is_found(tmp_path: Path, sales: tuple[Array, Array]) -> None:
    """Not among normal values, which never come near real columns."""
    forest = ensemble.RandomForestRegressor(5, random_state=0).fit(*sales)
    joblib.dump(forest, tmp_path / "forest.joblib")
    (tmp_path / "assets.extra").mkdir()
    converted = pickled_estimator.convert(tmp_path / "forest.joblib", tmp_path, Wishes("sales", trust=True))
    graph = onnx.load(tmp_path / "assets.extra" / "model.onnx")
    trees = next(node for node in graph.graph.node if node.op_type.startswith("TreeEnsemble"))
    attributes = {entry.name: entry for entry in trees.attribute}
    column = attributes["nodes_featureids"].ints[0]  # of the first tree's root, where all rows come by
    attributes["nodes_values"].floats[0] += sales[0][:, column].std() / 20
    onnx.save(graph, tmp_path / "wrong.onnx")
    wrong = engines.onnx_graph(tmp_path / "wrong.onnx")
    chance = np.random.default_rng(0)
    drawn = {"x": column_values.draw(column_values.of(graph)["x"], chance)}
    assert np.abs(wrong(drawn)["y"] - converted.reference(drawn)["y"]).max() > 1e-3
    normal = {"x": chance.standard_normal(drawn["x"].shape).astype(np.float32)}
    assert np.abs(wrong(normal)["y"] - converted.reference(normal)["y"]).max() < 1e-4


@pytest.mark.parametrize("gaps", [True, False], ids=["with gaps", "whole"])
@pytest.mark.parametrize(
    "estimator",
    [
        ensemble.RandomForestRegressor(10, random_state=0),
        ensemble.RandomForestClassifier(10, random_state=0),
        ensemble.ExtraTreesRegressor(10, random_state=0),
        ensemble.HistGradientBoostingRegressor(max_iter=20),
        ensemble.HistGradientBoostingClassifier(max_iter=20),
        ensemble.BaggingRegressor(n_estimators=5, random_state=0),
        ensemble.IsolationForest(n_estimators=20, random_state=0),
        tree.DecisionTreeRegressor(max_depth=6, random_state=0),
        tree.DecisionTreeClassifier(max_depth=6, random_state=0),
        make_pipeline(SimpleImputer(), linear_model.Ridge()),
    ],
    ids=lambda estimator: type(pickled_estimator._last(estimator)).__name__,
)
def test_missing_numbers_go_where_the_library_sends_them(
    tmp_path: Path, sales: tuple[Array, Array], estimator: Any, gaps: bool
) -> None:
    rows, value = sales
    rows = rows.astype(np.float32).astype(np.float64)
    sparse = rows.copy()
    sparse[np.random.default_rng(2).random(rows.shape) < 0.2] = np.nan
    target = np.digitize(value, [11.0, 14.0]) if is_classifier(estimator) else value
    estimator.fit(sparse if gaps else rows, target)
    add(tmp_path, estimator)
    run = engines.onnx_graph(tmp_path / "assets.extra" / "model.onnx")
    for asked in (sparse, rows):  # those of the training are on the borders of some trees
        found = next(iter(run({"x": asked.astype(np.float32)}).values())).ravel()
        expected = estimator.predict(asked)
        np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.parametrize(
    "estimator",
    [
        ensemble.RandomForestClassifier(5, random_state=0),
        MultiOutputClassifier(linear_model.LogisticRegression()),
    ],
    ids=lambda estimator: type(estimator).__name__,
)
def test_several_labels_a_row(tmp_path: Path, sales: tuple[Array, Array], estimator: Any) -> None:
    rows, value = sales
    rows = (rows / rows.std(axis=0)).astype(np.float32).astype(np.float64)
    asked = rows.copy()
    trees = not isinstance(estimator, MultiOutputClassifier)
    if trees:
        asked[np.random.default_rng(2).random(rows.shape) < 0.2] = np.nan
    estimator.fit(asked, np.stack([value > 12, rows[:, 0] > 1, rows[:, 3] > 0], axis=1).astype(int))
    contract = from_json(add(tmp_path, estimator)["contract"])
    assert contract.labels == ()
    assert contract.task == "tensors"
    found = engines.onnx_graph(tmp_path / "assets.extra" / "model.onnx")({"x": asked.astype(np.float32)})
    np.testing.assert_array_equal(found["label"], estimator.predict(asked))


@pytest.mark.parametrize("imputer", [SimpleImputer(add_indicator=True), KNNImputer()], ids=["indicator", "neighbours"])
def test_missing_numbers_that_onnx_fills_in_otherwise_are_a_refusal(
    tmp_path: Path, sales: tuple[Array, Array], imputer: Any
) -> None:
    rows, value = sales
    sparse = rows.copy()
    sparse[np.random.default_rng(2).random(rows.shape) < 0.2] = np.nan
    fitted = make_pipeline(imputer, linear_model.Ridge()).fit(sparse, value + np.isnan(sparse[:, 0]) * 5)
    with pytest.raises(ExportError, match=r"of rows with missing numbers \(NaN\), which the model answers"):
        add(tmp_path, fitted)


def test_an_example_without_gaps_does_not_hide_where_missing_numbers_go(
    tmp_path: Path, sales: tuple[Array, Array], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, value = sales
    joblib.dump(ensemble.RandomForestRegressor(5, random_state=0).fit(rows, value), tmp_path / "estimator.joblib")
    example = tmp_path / "example.csv"
    example.write_text(",".join(map(str, rows[0])) + "\n", encoding="utf-8")
    job = {"path": str(tmp_path / "estimator.joblib"), "folder": str(tmp_path), "model": "sales", "task": None}
    monkeypatch.setattr(estimator_trees, "exact", nullcontext)
    with pytest.raises(ExportError, match=r"of rows with missing numbers \(NaN\), which the model answers"):
        trial.run({**job, "labels": None, "example": str(example), "trust": True})


def test_histogram_boosting_over_categories_is_a_refusal(tmp_path: Path, sales: tuple[Array, Array]) -> None:
    rows, value = sales
    boosted = ensemble.HistGradientBoostingRegressor(max_iter=5, categorical_features=[3]).fit(rows, value)
    with pytest.raises(ExportError, match="the trees of its HistGradientBoostingRegressor split by categories"):
        add(tmp_path, boosted)


@pytest.mark.parametrize("threshold", [0.1, 39.7849982, 1.5, -0.3, 1e300, float("inf"), 16777217.0])
def test_a_threshold_parts_all_numbers_of_float32_as_it_is(threshold: float) -> None:
    near = np.float32(min(threshold, 3e38))
    around = [near, np.nextafter(near, np.float32(-np.inf)), np.nextafter(near, np.float32(np.inf))]
    written = np.float32(estimator_trees._not_above(threshold))
    assert [value <= written for value in around] == [float(value) <= threshold for value in around]


def test_an_example_of_one_row_does_not_hide_a_wrong_leaf(
    tmp_path: Path, sales: tuple[Array, Array], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, value = sales
    forest = ensemble.RandomForestRegressor(3, max_depth=4, random_state=0).fit(rows, value)
    example = tmp_path / "example.csv"
    example.write_text(",".join(map(str, rows[0])) + "\n", encoding="utf-8")
    joblib.dump(forest, tmp_path / "estimator.joblib")
    job = {"path": str(tmp_path / "estimator.joblib"), "folder": str(tmp_path), "model": "sales", "task": None}
    job |= {"labels": None, "example": str(example), "trust": True}
    assert trial.run(job)["rows"] == "the example's"
    convert = pickled_estimator._graph
    reached = {int(leaf) for leaf in forest.estimators_[0].apply(rows[:1])}

    def wrong(*arguments: Any) -> Any:
        graph = convert(*arguments)
        trees = next(node for node in graph.graph.node if node.op_type == "TreeEnsembleRegressor")
        of = {attribute.name: attribute for attribute in trees.attribute}
        places = zip(of["target_treeids"].ints, of["target_nodeids"].ints, strict=True)
        place = next(k for k, (tree, leaf) in enumerate(places) if tree == 0 and leaf not in reached)
        of["target_weights"].floats[place] += 1.0
        return graph

    monkeypatch.setattr(pickled_estimator, "_graph", wrong)
    with pytest.raises(ExportError, match=r"the source and assets\.extra/model\.onnx differ in 'y' by"):
        trial.run(job)


def test_a_scaled_column_is_asked_in_its_own_scale(tmp_path: Path, sales: tuple[Array, Array]) -> None:
    """Behind the scaler, too, trees are asked on both sides of their splits."""
    rows, value = sales
    for number, last in enumerate((linear_model.LinearRegression(), ensemble.RandomForestRegressor(5, random_state=0))):
        folder = tmp_path / str(number)
        (folder / "assets.extra").mkdir(parents=True)
        estimator = scaled(last).fit(rows, value)
        joblib.dump(estimator, folder / "estimator.joblib")
        pickled_estimator.convert(folder / "estimator.joblib", folder, Wishes("sales", trust=True))
        columns = column_values.of(onnx.load(folder / "assets.extra" / "model.onnx"))["x"]
        drawn = column_values.draw(columns, np.random.default_rng(0))
        answers = estimator.predict(drawn.astype(np.float64))
        assert answers.std() > 0.5 * estimator.predict(rows).std()
        assert np.abs(drawn.mean(axis=0) - rows.mean(axis=0)).max() < 2 * rows.std(axis=0).max()


def test_a_pipeline_of_texts_says_how_to_convert_it(tmp_path: Path) -> None:
    texts = ["the cat sat", "a dog ate", "my cat ate it", "dog and cat"]
    model = make_pipeline(CountVectorizer(), linear_model.LogisticRegression()).fit(texts, [0, 1, 1, 0])
    with pytest.raises(ExportError, match=r"takes texts \(its first step is a CountVectorizer\).*to_onnx"):
        add(tmp_path, model)
