"""Boosters of XGBoost and LightGBM with every objective, as they answer to rows that the trial did not see."""

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import joblib
import lightgbm
import numpy as np
import numpy.typing as npt
import onnx
import pandas as pd
import pytest
import xgboost
from threadpoolctl import threadpool_limits

from bookserve.export import column_values, engines
from bookserve.export.contracts import Contract, from_json
from bookserve.export.converters import lightgbm_model, tree_ensemble, trial, xgboost_model
from bookserve.export.errors import ExportError

Array = npt.NDArray[Any]
Rows = tuple[Array, Array, Array]  # to train with, their value, and fresh ones as float32
ROUNDS = 12
GRAPH = "assets.extra/model.onnx"
OF_XGBOOST = {"huber_slope": 10, "quantile_alpha": 0.5, "nthread": 1}
OF_TREES = {"rate_drop": 0.4, "max_depth": 4, "min_child_weight": 0}
OF_WEIGHTS = {"eta": 0.05}
OF_LIGHTGBM = {"verbose": -1, "num_leaves": 15, "num_threads": 1}
OF_FOREST = {"bagging_freq": 1, "bagging_fraction": 0.7}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """The threads of both libraries wait for each other in a loop, which takes seconds where processors are few."""
    with threadpool_limits(1, user_api="openmp"):
        yield


@pytest.fixture(scope="module")
def sales() -> Rows:
    """Rows of seconds, prices, a small share, a kind from 0 to 5 and a size, half of which miss a tenth; a value."""
    chance = np.random.default_rng(0)
    count = 1100
    kinds = chance.integers(0, 6, count)
    columns = [
        chance.integers(0, 3600, count),
        chance.normal(250_000, 90_000, count),
        chance.random(count) * 1e-3,
        kinds,
        chance.lognormal(8, 2, count),
    ]
    rows = np.stack(columns, axis=1)
    value = rows[:, 0] / 900 + rows[:, 1] / 1e5 + rows[:, 2] * 2000 + np.log(rows[:, 4])
    value += np.array([0.0, 2.0, -1.0, 3.0, 0.5, -2.0])[kinds] + chance.normal(0, 0.3, count)
    rows[(chance.random(rows.shape) < 0.1) & (np.arange(count) % 2 == 0)[:, np.newaxis]] = np.nan
    return rows[:700], value[:700], rows[700:].astype(np.float32)


def add(path: Path) -> tuple[Contract, dict[str, Any]]:
    """What the trial says of a model's file; its graph is then in the same folder."""
    job = {"path": str(path), "folder": str(path.parent), "model": "sales", "task": None, "labels": None}
    result = trial.run({**job, "example": None, "trust": True})
    return from_json(result["contract"]), result


def ask(folder: Path, rows: Array) -> dict[str, Array]:
    return dict(engines.onnx_graph(folder / GRAPH)({"x": rows}))


def saved(booster: Any, folder: Path) -> Path:
    path = folder / ("model.ubj" if isinstance(booster, xgboost.Booster) else "model.txt")
    booster.save_model(path)
    return path


def assert_as(folder: Path, rows: Array, wanted: Array) -> None:
    """The graph's values, or its probabilities and labels, are those of the booster."""
    found = ask(folder, rows)
    values = found["variable"] if "variable" in found else found["probabilities"]
    if "probabilities" in found:
        wanted = wanted if wanted.ndim == 2 else np.stack([1 - wanted, wanted], axis=1)
        np.testing.assert_array_equal(found["label"], wanted.argmax(axis=1))
    assert np.unique(wanted).size > 1
    largest = np.abs(wanted).max()
    np.testing.assert_allclose(values, wanted.reshape(values.shape), rtol=0, atol=1e-5 * largest)


def target(objective: str, value: Array) -> Array:
    """What is learned: a value, a share, a class or a rank."""
    if objective.startswith("multi"):
        return np.digitize(value, [11, 14])
    if objective.startswith(("binary", "rank:map")):
        return (value > 12).astype(int)
    if "rank" in objective or "lambdarank" in objective:
        return np.digitize(value, [11, 14])
    if objective == "reg:squaredlogerror":
        return np.abs(value) / 10
    if objective in ("reg:logistic", "cross_entropy", "cross_entropy_lambda"):
        return 1 / (1 + np.exp(12 - value))
    return np.abs(value)


def of_xgboost(rows: Array, value: Array, **parameters: Any) -> Any:
    objective = parameters.get("objective", "")
    table = xgboost.DMatrix(rows, label=target(objective, value))
    if objective.startswith("rank"):
        table.set_group([70] * 10)
    if objective.startswith("multi"):
        parameters["num_class"] = 3
    if objective == "binary:hinge":
        parameters["eta"] = 2
    if objective == "survival:aft":
        table.set_float_info("label_lower_bound", np.abs(value))
        table.set_float_info("label_upper_bound", np.abs(value) + 1)
    booster = OF_WEIGHTS if parameters.get("booster") == "gblinear" else OF_TREES
    return xgboost.train({**OF_XGBOOST, **booster, **parameters, "verbosity": 0}, table, ROUNDS)


def of_lightgbm(rows: Array, value: Array, categorical: Any = "auto", **parameters: Any) -> Any:
    objective = parameters.get("objective", "regression")
    group = [70] * 10 if "rank" in str(objective) else None
    learned = target(objective, value) if isinstance(objective, str) else value
    table = lightgbm.Dataset(rows, learned, group=group, categorical_feature=categorical)
    classes = {"num_class": 3} if str(objective).startswith("multi") else {}
    return lightgbm.train({**OF_LIGHTGBM, **classes, **parameters}, table, ROUNDS)


@pytest.mark.parametrize("booster", ["gbtree", "dart", "gblinear"])
@pytest.mark.parametrize("objective", sorted(xgboost_model.OBJECTIVES))
def test_xgboost(tmp_path: Path, sales: Rows, objective: str, booster: str) -> None:
    rows, value, fresh = sales
    made = of_xgboost(rows, value, objective=objective, booster=booster)
    contract, result = add(saved(made, tmp_path))
    answer = xgboost_model.OBJECTIVES[objective].answer
    assert tuple(tensor.name for tensor in contract.outputs) == answer.value
    hinge = ["binary:hinge gives the class alone: its probabilities are 0 and 1"]
    assert result["notes"] == (hinge if objective == "binary:hinge" else [])
    wanted = made.predict(xgboost.DMatrix(fresh))
    if objective == "multi:softmax":  # its prediction is the class alone
        np.testing.assert_array_equal(ask(tmp_path, fresh)["label"], wanted)
        margins = made.predict(xgboost.DMatrix(fresh), output_margin=True)
        wanted = np.exp(margins) / np.exp(margins).sum(axis=1, keepdims=True)
    assert_as(tmp_path, fresh, wanted)


@pytest.mark.parametrize("boosting", ["gbdt", "rf"])
@pytest.mark.parametrize("objective", sorted(set(lightgbm_model.OBJECTIVES) - {"custom"}))
def test_lightgbm(tmp_path: Path, sales: Rows, objective: str, boosting: str) -> None:
    rows, value, fresh = sales
    parameters = OF_FOREST if boosting == "rf" else {}
    made = of_lightgbm(rows, value, objective=objective, boosting=boosting, **parameters)
    contract, _ = add(saved(made, tmp_path))
    answer = lightgbm_model.OBJECTIVES[objective].answer
    assert tuple(tensor.name for tensor in contract.outputs) == answer.value
    assert_as(tmp_path, fresh, made.predict(fresh.astype(np.float64)))


def between_categories(fresh: Array) -> Array:
    """The rows with kinds that are fractions, negative, unknown, large or missing."""
    kinds = np.array([0.0, 1.5, 2.999, 5.5, -0.5, -1.0, -7.3, 6.0, 33.0, 1e6, 3e9, np.nan, 4.0], np.float32)
    rows = fresh.copy()
    rows[:, 3] = np.resize(kinds, len(rows))
    return rows


@pytest.mark.parametrize("boosting", ["gbdt", "rf"])
def test_categories_of_lightgbm(tmp_path: Path, sales: Rows, boosting: str) -> None:
    rows, value, fresh = sales
    parameters = OF_FOREST if boosting == "rf" else {}
    made = of_lightgbm(rows, value, [3], boosting=boosting, min_data_per_group=5, max_cat_to_onehot=1, **parameters)
    assert "||" in json.dumps(made.dump_model())
    add(saved(made, tmp_path))
    for asked in (fresh, between_categories(fresh)):
        assert_as(tmp_path, asked, made.predict(asked.astype(np.float64)))


@pytest.mark.parametrize("one_hot", [1, 100])
def test_categories_of_xgboost(tmp_path: Path, sales: Rows, one_hot: int) -> None:
    rows, value, fresh = sales
    kinds = ["q", "q", "q", "c", "q"]
    table = xgboost.DMatrix(rows, label=value, feature_types=kinds, enable_categorical=True)
    made = xgboost.train({"max_cat_to_onehot": one_hot, "nthread": 1}, table, ROUNDS)
    _, result = add(saved(made, tmp_path))
    assert result["notes"] == [
        "give the codes of the categories (0, 1, …) in column 3, as .cat.codes of pandas, and NaN for none"
    ]
    for asked in (fresh, between_categories(fresh)):
        wanted = made.predict(xgboost.DMatrix(asked), validate_features=False)
        assert_as(tmp_path, asked, wanted)


def test_categories_of_pandas_are_given_by_their_codes(tmp_path: Path, sales: Rows) -> None:
    rows, value, fresh = sales
    names = ["seconds", "price", "share", "kind", "size"]
    words = np.array([*"abcdef", None], dtype=object)

    def table(numbers: Array) -> pd.DataFrame:
        kinds = words[np.nan_to_num(numbers[:, 3], nan=6).astype(int)]
        return pd.DataFrame(numbers, columns=names).assign(kind=pd.Categorical(kinds, categories=[*"abcdef"]))

    of_pandas = lightgbm.train(OF_LIGHTGBM, lightgbm.Dataset(table(rows), value), ROUNDS)
    (tmp_path / "lightgbm").mkdir()
    _, result = add(saved(of_pandas, tmp_path / "lightgbm"))
    line = "give the codes of the categories (0, 1, …) in kind, as .cat.codes of pandas, and NaN for none"
    assert result["notes"] == [line]
    assert_as(tmp_path / "lightgbm", fresh, of_pandas.predict(table(fresh)))

    learned = xgboost.DMatrix(table(rows), label=value, enable_categorical=True)
    made = xgboost.train({"nthread": 1}, learned, ROUNDS)
    contract, result = add(saved(made, tmp_path))
    assert (result["notes"], contract.columns) == ([line], tuple(names))
    assert_as(tmp_path, fresh, made.predict(xgboost.DMatrix(table(fresh), enable_categorical=True)))


@pytest.mark.parametrize("parameters", [{}, {"zero_as_missing": True}, {"use_missing": False}], ids=str)
def test_missing_numbers_of_lightgbm(tmp_path: Path, sales: Rows, parameters: dict[str, Any]) -> None:
    """Also zeros and what LightGBM takes for zero, and NaN in a model that was trained without."""
    rows, value, fresh = sales
    shifted = rows - np.array([1800, 250_000, 0, 2, 0])
    shifted[::7, 0] = 0
    made = of_lightgbm(shifted, value, **parameters)
    kinds = {"zero_as_missing": "Zero", "use_missing": "None"}
    assert f'"{kinds.get(*parameters, "NaN") if parameters else "NaN"}"' in json.dumps(made.dump_model())
    add(saved(made, tmp_path))
    asked = (fresh - np.array([1800, 250_000, 0, 2, 0])).astype(np.float32)
    asked[::3, 0] = np.resize(np.array([0, -0.0, 1e-36, -1e-36, 2e-35, -2e-35, np.nan], np.float32), len(asked[::3]))
    assert_as(tmp_path, asked, made.predict(asked.astype(np.float64)))
    whole = asked[~np.isnan(asked).any(axis=1)].astype(np.float64)
    made = of_lightgbm(np.nan_to_num(shifted), value, **parameters)
    add(saved(made, tmp_path))
    assert_as(tmp_path, asked, made.predict(asked.astype(np.float64)))
    assert_as(tmp_path, whole.astype(np.float32), made.predict(whole))


@pytest.mark.parametrize(
    "parameters",
    [
        {"objective": "regression", "reg_sqrt": True},
        {"boosting": "dart", "drop_rate": 0.5},
        {"objective": "binary", "sigmoid": 2.5},
        {"objective": "multiclassova", "sigmoid": 0.5},
        {"objective": lambda found, table: (found - table.get_label(), np.ones_like(found))},
    ],
    ids=["root", "dart", "steep", "flat", "custom"],
)
def test_lightgbm_with_numbers_of_its_own(tmp_path: Path, sales: Rows, parameters: dict[str, Any]) -> None:
    rows, value, fresh = sales
    made = of_lightgbm(rows, value - 10 if "reg_sqrt" in parameters else value, **parameters)
    add(saved(made, tmp_path))
    assert_as(tmp_path, fresh, made.predict(fresh.astype(np.float64)))


@pytest.mark.parametrize(
    ("parameters", "width"),
    [
        ({"base_score": 0.9, "objective": "binary:logistic"}, 2),
        ({"num_parallel_tree": 4, "subsample": 0.5, "objective": "multi:softprob"}, 3),
        ({"objective": "reg:quantileerror", "quantile_alpha": [0.1, 0.5, 0.9]}, 3),
        ({"scale_pos_weight": 3, "objective": "binary:logistic", "max_delta_step": 1}, 2),
    ],
    ids=["base", "forest", "quantiles", "weighted"],
)
def test_xgboost_with_several_outputs_and_trees(
    tmp_path: Path, sales: Rows, parameters: dict[str, Any], width: int
) -> None:
    rows, value, fresh = sales
    made = of_xgboost(rows, value, **parameters)
    contract, _ = add(saved(made, tmp_path))
    assert contract.outputs[-1].shape == (None, width)
    assert_as(tmp_path, fresh, made.predict(xgboost.DMatrix(fresh)))


@pytest.mark.parametrize("strategy", ["one_output_per_tree", "multi_output_tree"])
@pytest.mark.parametrize("objective", ["reg:squarederror", "binary:logistic"])
def test_xgboost_with_several_targets(tmp_path: Path, sales: Rows, strategy: str, objective: str) -> None:
    rows, value, fresh = sales
    targets = np.stack([value, 20 - value], axis=1)
    table = xgboost.DMatrix(rows, label=targets > 11 if objective == "binary:logistic" else targets)
    made = xgboost.train({"multi_strategy": strategy, "objective": objective, "nthread": 1}, table, ROUNDS)
    contract, _ = add(saved(made, tmp_path))
    assert [(tensor.name, tensor.shape) for tensor in contract.outputs] == [("variable", (None, 2))]
    assert_as(tmp_path, fresh, made.predict(xgboost.DMatrix(fresh)))


def stopped(rows: Array, value: Array) -> xgboost.XGBRegressor:
    """An estimator that learned on after its best iteration."""
    made = xgboost.XGBRegressor(n_jobs=1, n_estimators=200, early_stopping_rounds=10, learning_rate=0.7)
    made.fit(rows[:400], value[:400], eval_set=[(rows[400:], value[400:])], verbose=False)
    assert made.best_iteration + 10 < made.get_booster().num_boosted_rounds()
    return made


def test_after_early_stopping_a_file_answers_as_the_interface_that_wrote_it(tmp_path: Path, sales: Rows) -> None:
    rows, value, fresh = sales
    estimator = stopped(rows, value)
    count, rounds = estimator.best_iteration + 1, estimator.get_booster().num_boosted_rounds()
    estimator.save_model(tmp_path / "estimator.json")
    _, result = add(tmp_path / "estimator.json")
    line = f"it answers with the first {count} of {rounds} iterations, the best, as its estimator"
    assert result["notes"] == [line]
    assert_as(tmp_path, fresh, estimator.predict(fresh))
    booster = estimator.get_booster()
    booster.set_attr(scikit_learn=None)
    _, result = add(saved(booster, tmp_path))
    assert f"with all {rounds} iterations, as Booster.predict does; the best one, after {count}," in result["notes"][0]
    every = booster.predict(xgboost.DMatrix(fresh))
    assert np.abs(every - estimator.predict(fresh)).max() > 1e-2
    assert_as(tmp_path, fresh, every)


@pytest.mark.parametrize(
    "make",
    [
        lambda rows, value: xgboost.XGBRegressor(n_jobs=1, n_estimators=9, objective="count:poisson").fit(rows, value),
        lambda rows, value: xgboost.XGBRegressor(n_jobs=1, n_estimators=9, booster="dart", rate_drop=0.4).fit(
            rows, value
        ),
        lambda rows, value: xgboost.XGBRFRegressor(n_jobs=1, n_estimators=9).fit(rows, value),
        lambda rows, value: xgboost.XGBRanker(n_jobs=1, n_estimators=9).fit(rows, value > 12, group=[70] * 10),
        lambda rows, value: xgboost.XGBRegressor(n_jobs=1, n_estimators=9).fit(rows, np.stack([value, -value], 1)),
        stopped,
        lambda rows, value: xgboost.XGBClassifier(n_jobs=1, n_estimators=9).fit(rows, np.digitize(value, [11, 14])),
        lambda rows, value: xgboost.XGBClassifier(n_jobs=1, n_estimators=9, objective="binary:hinge").fit(
            rows, value > 12
        ),
        lambda rows, value: lightgbm.LGBMRegressor(n_jobs=1, n_estimators=9, objective="mape", verbose=-1).fit(
            rows, value
        ),
        lambda rows, value: lightgbm.LGBMClassifier(n_jobs=1, n_estimators=9, verbose=-1).fit(
            rows, np.array(["low", "middle", "high"])[np.digitize(value, [11, 14])], categorical_feature=[3]
        ),
    ],
    ids=[
        "poisson",
        "dart",
        "forest",
        "ranks",
        "targets",
        "stopped",
        "classes",
        "hinge",
        "mape",
        "words and categories",
    ],
)
def test_a_pickled_estimator(tmp_path: Path, sales: Rows, make: Callable[[Array, Array], Any]) -> None:
    rows, value, fresh = sales
    estimator = make(rows, value)
    joblib.dump(estimator, tmp_path / "estimator.joblib")
    contract, _ = add(tmp_path / "estimator.joblib")
    found = ask(tmp_path, fresh)
    wanted = estimator.predict(fresh)
    if "label" in found:
        np.testing.assert_array_equal(found["label"], wanted)
        np.testing.assert_allclose(found["probabilities"], estimator.predict_proba(fresh), atol=1e-5)
    else:
        assert contract.outputs[0].shape == (None, *found["y"].shape[1:])
        wanted = wanted.reshape(found["y"].shape)
        np.testing.assert_allclose(found["y"], wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (
            lambda rows, value: xgboost.XGBRegressor(n_jobs=1, n_estimators=2, missing=0).fit(rows, value),
            "missing numbers are 0 to it, and NaN in ONNX: train it with missing=nan",
        ),
        (
            lambda rows, value: xgboost.XGBClassifier(n_jobs=1, n_estimators=2).fit(
                rows, np.stack([value > 9, value > 12], 1)
            ),
            "it gives several classes to a row: train it as a regressor, or one classifier for each class",
        ),
        (
            lambda rows, value: lightgbm.LGBMRegressor(n_jobs=1, n_estimators=2, linear_tree=True, verbose=-1).fit(
                rows, value
            ),
            r"its trees have a regression in each leaf \(linear_tree=true\), which has no ONNX form",
        ),
    ],
    ids=["missing", "several", "regressions"],
)
def test_a_pickled_estimator_without_a_form_is_refused(
    tmp_path: Path, sales: Rows, make: Callable[[Array, Array], Any], told: str
) -> None:
    joblib.dump(make(np.nan_to_num(sales[0]), sales[1]), tmp_path / "estimator.joblib")
    with pytest.raises(ExportError, match=told):
        add(tmp_path / "estimator.joblib")


def test_what_has_no_form_is_refused_in_a_line(tmp_path: Path, sales: Rows) -> None:
    rows, value, _ = sales
    with pytest.raises(ExportError, match=r"linear_tree=true\), which has no ONNX form: train it with linear_tree=fal"):
        add(saved(of_lightgbm(rows, value, linear_tree=True), tmp_path))
    with pytest.raises(ExportError, match=r"^the objective of-tomorrow is not converted; regression, "):
        lightgbm_model.margins_of({"objective": "of-tomorrow"})
    learner = {"objective": {"name": "of:tomorrow"}, "learner_model_param": {}}
    with pytest.raises(ExportError, match=r"^the objective of:tomorrow is not converted; reg:squarederror, "):
        xgboost_model._objective(learner)
    with pytest.raises(ExportError, match=r"multi_output_tree.* with XGBoost 3.2 and later: install that, or train"):
        xgboost_model._leaf({"tree_param": {"size_leaf_vector": "2"}}, 0, 0, np.float32(1))


def test_a_wrong_way_of_missing_numbers_is_found(tmp_path: Path, sales: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the rows that miss numbers alone: the inputs that the trial draws have all."""
    rows, value, _ = sales
    split = tree_ensemble.split

    def other(*arguments: Any) -> tree_ensemble.Split:
        made = split(*arguments)
        return made._replace(missing=made.first + made.second - made.missing)

    path = saved(of_lightgbm(rows, value), tmp_path)
    add(path)
    monkeypatch.setattr(tree_ensemble, "split", other)
    with pytest.raises(
        ExportError,
        match=r"^of rows with missing numbers \(NaN\), which the model answers, the source and ",
    ):
        add(path)
    monkeypatch.setattr(trial, "_compare_missing", lambda *arguments: None)
    add(path)


def test_a_split_is_where_the_answer_changes() -> None:
    members = {0, 1, 4}
    made = tree_ensemble.split(
        2, [math.nextafter(-1, 0), 1.0, 2.0, 4.0, 5.0], lambda value: value > -1 and int(value) in members, 7, 8, 8
    )
    assert made == (2, (math.nextafter(-1, 0), 2.0, 4.0, 5.0), 8, 7, 8)
    every = tree_ensemble.split(0, [1.0], lambda value: True, 3, 4, 4)
    assert every == (0, (-math.inf,), 4, 3, 4)
    assert tree_ensemble.at_least(1e300) == tree_ensemble.above(1e300) == math.inf
    assert tree_ensemble.at_least(0.1) == float(np.float32(0.1)) > 0.1
    assert tree_ensemble.above(0.3) == float(np.float32(0.3)) > 0.3
    assert tree_ensemble.at_least(0.7) == float(np.nextafter(np.float32(0.7), np.float32(1))) > 0.7
    assert tree_ensemble.at_least(2.0) == 2.0
    assert tree_ensemble.above(2.0) == float(np.nextafter(np.float32(2), np.float32(3)))


def test_a_split_that_parts_numbers_from_missing_ones_leaves_the_others(tmp_path: Path, sales: Rows) -> None:
    """LightGBM writes it as one at 1e300, which is infinite in float32."""
    rows, value, fresh = sales
    made = of_lightgbm(rows, value + 50 * np.isnan(rows[:, 1]))
    assert "1e+300" in json.dumps(made.dump_model())
    add(saved(made, tmp_path))
    drawn = column_values.of(onnx.load(tmp_path / GRAPH))["x"]
    assert all(values.size for values in drawn)
    assert np.isfinite(np.concatenate(drawn)).all()
    assert_as(tmp_path, fresh, made.predict(fresh.astype(np.float64)))
