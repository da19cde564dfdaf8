"""Pipelines over the columns of a table, with words, gaps and dropped columns, as pickles of scikit-learn hold them."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.compose import ColumnTransformer, make_column_selector
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import QuadraticDiscriminantAnalysis
from sklearn.ensemble import (
    GradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestRegressor,
    VotingClassifier,
)
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import RandomizedSearchCV
from sklearn.multiclass import OneVsOneClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, PolynomialFeatures, StandardScaler
from sklearn.semi_supervised import SelfTrainingClassifier
from sklearn.tree import DecisionTreeClassifier

from bookserve.export import engines
from bookserve.export.contracts import Contract, from_json
from bookserve.export.converters import pickled_estimator, trial
from bookserve.export.errors import ExportError

NUMBERS, WORDS = ["age", "rooms", "price"], ["city", "sex"]
COUNT = 600


def flats(seed: int) -> pd.DataFrame:
    chance = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "city": chance.choice(["Zürich", "Basel", "Bern", "Genève"], COUNT),
            "sex": chance.choice(["f", "m"], COUNT),
            "age": chance.normal(40, 12, COUNT).round(1),
            "rooms": chance.integers(1, 7, COUNT),
            "price": chance.lognormal(12, 0.6, COUNT),
            "floor": chance.choice([0, 1, 2, 12], COUNT),
        }
    )


def stays(table: pd.DataFrame) -> np.ndarray:
    return np.where((table.age > 40) ^ (table.city == "Bern"), "stays", "leaves")


def rent(table: pd.DataFrame) -> np.ndarray:
    return np.asarray(table.price / 1e5 + table.rooms + (table.sex == "f") * 3)


def added(folder: Path, estimator: Any) -> tuple[dict[str, Any], Contract]:
    joblib.dump(estimator, folder / "estimator.joblib")
    job = {"path": str(folder / "estimator.joblib"), "folder": str(folder), "model": "flats", "task": None}
    result = trial.run({**job, "labels": None, "example": None, "trust": True})
    return result, from_json(result["contract"])


def ask(folder: Path, contract: Contract, table: pd.DataFrame) -> dict[str, Any]:
    """The graph's answers to the columns that the contract has, words as bytes."""
    rows = {}
    for tensor in contract.inputs:
        values = table[tensor.name].tolist()
        if tensor.dtype == "object":
            rows[tensor.name] = np.array([[value.encode()] for value in values], object)
        else:
            rows[tensor.name] = np.array(values, np.float32)[:, np.newaxis]
    return dict(engines.onnx_graph(folder / "assets.extra/model.onnx")(rows))


def columns(words: Any, numbers: Any = None, **options: Any) -> ColumnTransformer:
    return ColumnTransformer([("n", numbers or StandardScaler(), NUMBERS), ("w", words, WORDS)], **options)


PIPELINES: Mapping[str, tuple[Any, Callable[[pd.DataFrame], np.ndarray]]] = {
    "one-hot": (make_pipeline(columns(OneHotEncoder()), LogisticRegression()), stays),
    "one-hot, others ignored": (
        make_pipeline(columns(OneHotEncoder(handle_unknown="ignore")), GradientBoostingClassifier(n_estimators=10)),
        stays,
    ),
    "ordinal": (make_pipeline(columns(OrdinalEncoder()), DecisionTreeClassifier(max_depth=4)), stays),
    "polynomials": (
        make_pipeline(columns(OneHotEncoder(), make_pipeline(StandardScaler(), PolynomialFeatures(2))), Ridge()),
        rent,
    ),
    "the rest passed on": (
        make_pipeline(
            ColumnTransformer([("w", OneHotEncoder(), WORDS)], remainder="passthrough"),
            RandomForestRegressor(10, max_depth=5, random_state=0),
        ),
        rent,
    ),
    "numbers that are kinds": (
        make_pipeline(
            ColumnTransformer([("w", OneHotEncoder(), ["city", "floor"]), ("n", "passthrough", ["age"])]),
            LogisticRegression(max_iter=1000),
        ),
        stays,
    ),
    "columns by type": (
        make_pipeline(
            ColumnTransformer(
                [
                    ("n", StandardScaler(), make_column_selector(dtype_include=np.number)),
                    ("w", OneHotEncoder(), make_column_selector(dtype_exclude=np.number)),
                ]
            ),
            Ridge(),
        ),
        rent,
    ),
    "columns by place": (
        make_pipeline(
            ColumnTransformer([("w", OneHotEncoder(), [0, 1]), ("n", StandardScaler(), slice(2, 5))]),
            LogisticRegression(),
        ),
        stays,
    ),
    "a pipeline at the end": (
        make_pipeline(
            columns(OneHotEncoder(sparse_output=False), sparse_threshold=0), make_pipeline(PCA(3), LogisticRegression())
        ),
        stays,
    ),
    "found by a search": (
        RandomizedSearchCV(
            make_pipeline(columns(OneHotEncoder()), LogisticRegression()),
            {"logisticregression__C": [0.1, 1.0]},
            n_iter=2,
            cv=2,
            random_state=0,
        ),
        stays,
    ),
}


@pytest.mark.parametrize("kind", PIPELINES)
def test_a_pipeline_over_columns_answers_as_its_library(tmp_path: Path, kind: str) -> None:
    pipeline, target = PIPELINES[kind]
    known, fresh = flats(0), flats(1)
    fitted = clone(pipeline).fit(known, target(known))
    _, contract = added(tmp_path, fitted)
    found = ask(tmp_path, contract, fresh)
    expected = fitted.predict(fresh)
    if target is rent:
        np.testing.assert_allclose(found["y"][:, 0], expected, rtol=1e-5)
    else:
        assert len(set(expected)) == 2
        assert found["label"].tolist() == expected.tolist()
    if "probabilities" in found:
        np.testing.assert_allclose(found["probabilities"], fitted.predict_proba(fresh), atol=1e-5)


def test_columns_that_are_dropped_are_not_asked_for(tmp_path: Path) -> None:
    known = flats(0)
    _, contract = added(
        tmp_path, make_pipeline(columns(OneHotEncoder()), LogisticRegression()).fit(known, stays(known))
    )
    assert [(tensor.name, tensor.dtype) for tensor in contract.inputs] == [
        ("city", "object"),
        ("sex", "object"),
        ("age", "float32"),
        ("rooms", "float32"),
        ("price", "float32"),
    ]


def test_an_empty_text_is_a_missing_one_where_those_are_filled_in(tmp_path: Path) -> None:
    known, fresh = flats(0), flats(1)
    gaps = np.random.default_rng(2).random(COUNT) < 0.1
    known.loc[gaps, "city"] = np.nan
    known.loc[gaps[::-1], "age"] = np.nan
    words = make_pipeline(SimpleImputer(strategy="most_frequent"), OneHotEncoder(handle_unknown="ignore"))
    numbers = make_pipeline(SimpleImputer(), StandardScaler())
    fitted = make_pipeline(columns(words, numbers), LogisticRegression()).fit(known, stays(known))
    result, contract = added(tmp_path, fitted)
    assert result["notes"] == ["an empty text in city, sex counts as missing"]
    fresh.loc[:9, "age"] = np.nan
    sent = fresh.copy()
    fresh.loc[5:19, "city"], sent.loc[5:19, "city"] = np.nan, ""
    sent.loc[20, "city"] = fresh.loc[20, "city"] = "Chur"
    found = ask(tmp_path, contract, sent)
    np.testing.assert_allclose(found["probabilities"], fitted.predict_proba(fresh), atol=1e-5)
    assert found["label"].tolist() == fitted.predict(fresh).tolist()


@pytest.mark.parametrize(
    "encoder",
    [
        OneHotEncoder(sparse_output=False),
        OneHotEncoder(handle_unknown="ignore", sparse_output=False),
        OrdinalEncoder(),
        OrdinalEncoder(encoded_missing_value=-1),
    ],
    ids=["one-hot", "one-hot, others ignored", "ordinal", "ordinal, missing -1"],
)
def test_an_empty_text_is_the_category_of_missing_ones(tmp_path: Path, encoder: Any) -> None:
    known, fresh = flats(0), flats(1)
    known.loc[np.random.default_rng(2).random(COUNT) < 0.1, "city"] = np.nan
    boosted = HistGradientBoostingRegressor(max_iter=10)
    fitted = make_pipeline(columns(encoder, "passthrough"), boosted).fit(known, rent(known) + known.city.isna() * 5)
    result, contract = added(tmp_path, fitted)
    assert result["notes"] == ["an empty text in city counts as missing"]
    fresh["age"], fresh["price"] = fresh.age.astype(np.float32), fresh.price.astype(np.float32)
    sent = fresh.copy()
    fresh.loc[5:99, "city"], sent.loc[5:99, "city"] = np.nan, ""
    np.testing.assert_allclose(ask(tmp_path, contract, sent)["y"][:, 0], fitted.predict(fresh), rtol=1e-5)


ALONE = {
    "one against one": OneVsOneClassifier(LogisticRegression()),
    "quadratic": QuadraticDiscriminantAnalysis(),
    "voters": VotingClassifier(
        [("a", LogisticRegression()), ("b", DecisionTreeClassifier(max_depth=3))], voting="soft"
    ),
    "some rows without a label": SelfTrainingClassifier(LogisticRegression()),
}


@pytest.mark.parametrize("kind", ALONE)
def test_labels_are_one_to_a_row(tmp_path: Path, kind: str) -> None:
    chance = np.random.default_rng(3)
    x = chance.normal(size=(COUNT, 4))
    label = np.digitize(x[:, 0] + x[:, 1], [-0.5, 0.5])
    if kind == "some rows without a label":
        label[::5] = -1
    fitted = clone(ALONE[kind]).fit(x, label)
    added(tmp_path, fitted)
    fresh = chance.normal(size=(50, 4)).astype(np.float32)
    found = engines.onnx_graph(tmp_path / "assets.extra/model.onnx")({"x": fresh})
    assert found["label"].tolist() == fitted.predict(fresh.astype(np.float64)).tolist()
    if "probabilities" in found:
        np.testing.assert_allclose(found["probabilities"], fitted.predict_proba(fresh.astype(np.float64)), atol=1e-5)


def test_voters_by_majority_give_the_label_alone(tmp_path: Path) -> None:
    x = np.random.default_rng(3).normal(size=(COUNT, 4))
    voters = VotingClassifier([("a", LogisticRegression()), ("b", DecisionTreeClassifier(max_depth=3))])
    result, contract = added(tmp_path, voters.fit(x, x[:, 0] > 0))
    assert [tensor.name for tensor in contract.outputs] == ["label"]
    assert result["notes"] == [
        "VotingClassifier gives neither probabilities nor scores: the version has the label alone"
    ]


def test_what_only_transforms_gives_its_columns(tmp_path: Path) -> None:
    known, fresh = flats(0), flats(1)
    fitted = columns(OneHotEncoder(handle_unknown="ignore"), make_pipeline(StandardScaler(), PCA(2))).fit(known)
    _, contract = added(tmp_path, fitted)
    assert [tensor.name for tensor in contract.outputs] == ["features"]
    fresh.loc[0, "city"] = "Chur"
    found = ask(tmp_path, contract, fresh)
    np.testing.assert_allclose(found["features"], fitted.transform(fresh), rtol=0, atol=1e-5)


def test_a_leaf_behind_scaled_columns_and_words_that_is_wrong_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = flats(0)
    trees = RandomForestRegressor(5, max_depth=4, random_state=0)
    fitted = make_pipeline(columns(OneHotEncoder(), make_pipeline(SimpleImputer(), StandardScaler())), trees)
    fitted.fit(known, rent(known))
    convert = pickled_estimator._graph
    places = iter(range(0, 60, 7))

    def with_a_wrong_leaf(*arguments: Any) -> Any:
        graph = convert(*arguments)
        node = next(node for node in graph.graph.node if node.op_type == "TreeEnsembleRegressor")
        weights = next(attribute for attribute in node.attribute if attribute.name == "target_weights").floats
        weights[next(places) % len(weights)] += 0.1
        return graph

    added(tmp_path, fitted)
    monkeypatch.setattr(pickled_estimator, "_graph", with_a_wrong_leaf)
    for _ in range(9):
        with pytest.raises(ExportError, match=r"the source and assets\.extra/model\.onnx differ in 'y' by"):
            added(tmp_path, fitted)
