import pytest

from bookserve.serving.gateway import headline


@pytest.mark.parametrize(
    ("metrics", "name", "split"),
    [
        (
            {"train": {"accuracy": 1}, "test": {"accuracy": 0.9, "loss": 0.1}, "valid": {"accuracy": 0.8}},
            "accuracy",
            "test",
        ),
        ({"train": {"accuracy": 1}, "valid": {"accuracy": 0.8}}, "accuracy", "valid"),
        ({"test": {"loss": 6.2, "perplexity": 513, "rows": 10}}, "perplexity", "test"),
        ({"test": {"loss": 6.2, "rows": 10, "won": 0.5}}, "won", "test"),
        ({"test": {"rows": 10, "loss": 6.2}}, "loss", "test"),
        ({"mine": {"f1": 0.7}}, "f1", "mine"),
    ],
)
def test_the_figure_that_says_most_stands_for_a_version(metrics, name, split) -> None:
    found = headline.of({"metrics": metrics})
    assert found is not None
    assert found == {"name": name, "split": split, "value": metrics[split][name]}


def test_an_int8_version_without_metrics_has_its_own_figure() -> None:
    found = headline.of({"metrics": {}, "quantization": {"figure": "agreement", "int8": 0.99}})
    assert found == {"name": "agreement", "split": "", "value": 0.99}


@pytest.mark.parametrize(
    "manifest",
    [None, {}, {"metrics": {}}, {"metrics": []}, {"metrics": {"test": 3}}, {"metrics": {"test": {"rows": 3}}}]
    + [{"metrics": {"test": {"accuracy": value}}} for value in (None, "1", True)]
    + [{"quantization": {"int8": None}}, {"quantization": 3}],
)
def test_what_has_no_figure_has_no_headline(manifest) -> None:
    assert headline.of(manifest) is None
