import numpy as np
import pytest

from bookserve.clients import errors
from bookserve.serving.gateway.app import create_app
from bookserve.serving.gateway.config import GatewayConfig, Limits
from http_calls import problem_of

PATH = "/api/v1/ptb"
GENERATE = f"{PATH}/generate"


@pytest.fixture(autouse=True)
def _served(all_models, store) -> None:
    """Every test has all seven models, and a store with the vocabulary of version 3 where not said otherwise."""


def test_a_text_gets_its_next_words(client, backend) -> None:
    answer = client.post(PATH, json={"text": "The stock", "top_k": 2}).get_json()
    assert (answer["model"], answer["version"]) == ("ptb", 3)
    (prediction,) = answer["predictions"]
    assert (prediction["text"], prediction["unknown"]) == ("The stock", [])
    assert prediction["words"] == [{"word": "market", "probability": 0.88}, {"word": "<eos>", "probability": 0.01}]
    sent, version = backend.asked[0][1:3]
    assert (sent.dtype, sent.tolist(), version) == (np.int32, [[1, 4, 5]], 3)  # <eos> the stock


def test_unknown_words_are_named_and_never_suggested(client, backend) -> None:
    (prediction,) = client.post(PATH, json={"text": "Foo corp.", "top_k": 50}).get_json()["predictions"]
    assert prediction["unknown"] == ["foo"]
    assert backend.asked[0][1].tolist() == [[1, 0, 12]]
    words = [entry["word"] for entry in prediction["words"]]
    assert len(words) == 12
    assert "<unk>" not in words


def test_texts_of_different_lengths_keep_their_order(client, backend) -> None:
    texts = ["the stock", "mr.", "do n't"]
    predictions = client.post(PATH, json={"text": texts}).get_json()["predictions"]
    assert [prediction["text"] for prediction in predictions] == texts
    assert [prediction["words"][0]["word"] for prediction in predictions] == ["market", "corp.", "'s"]
    assert sorted(asked[1].shape for asked in backend.asked) == [(1, 2), (2, 3)]


def test_a_version_or_a_label_is_resolved_once(client, backend, store) -> None:
    assert problem_of(client.post(f"{PATH}?version=2", json={"text": "the"}), 503)  # no vocabulary of version 2
    assert client.post(f"{PATH}?label=stable", json={"text": "the"}).get_json()["version"] == 3
    assert backend.asked[-1][2:4] == (3, None)


def test_a_version_that_is_swapped_meanwhile_is_asked_again(client, backend) -> None:
    original, gone = backend.predict, []

    def once_gone(model, inputs, **options):
        if not gone:
            gone.append(options["version"])
            raise errors.NotFound("Servable not found for request: Specific(ptb, 3)")
        return original(model, inputs, **options)

    backend.predict = once_gone
    assert client.post(PATH, json={"text": "the"}).status_code == 200


def test_without_a_store_the_flag_is_named(backend, molecule_pool) -> None:
    client = create_app(GatewayConfig(), backend, molecule_pool).test_client()
    assert "--models-dir" in problem_of(client.post(PATH, json={"text": "the"}), 503)["detail"]


def test_a_vocabulary_of_another_size_is_502(client, store) -> None:
    with (store / "ptb" / "3" / "assets" / "vocabulary.txt").open("a") as file:
        file.write("more\n")
    assert "13 words, its vocabulary 14" in problem_of(client.post(PATH, json={"text": "the"}), 502)["detail"]


@pytest.mark.parametrize("content", ["", "<unk>\n<eos>\na\na\n", "<unk>\nthe\n", "\udcff"])
def test_a_broken_vocabulary_is_503(client, store, content) -> None:
    path = store / "ptb" / "3" / "assets" / "vocabulary.txt"
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    assert "vocabulary" in problem_of(client.post(PATH, json={"text": "the"}), 503)["detail"]


def test_a_linked_vocabulary_is_not_read(client, store) -> None:
    path = store / "ptb" / "3" / "assets" / "vocabulary.txt"
    path.rename(store / "elsewhere.txt")
    path.symlink_to(store / "elsewhere.txt")
    assert "link" in problem_of(client.post(PATH, json={"text": "the"}), 503)["detail"]


def test_generating_goes_on_word_by_word(client, backend) -> None:
    answer = client.post(GENERATE, json={"text": "the", "words": 4, "temperature": 0}).get_json()
    (prediction,) = answer["predictions"]
    assert prediction["words"] == ["stock", "market", "do", "n't"]
    assert [asked[1].shape[1] for asked in backend.asked] == [2, 3, 4, 5]


def test_the_same_seed_draws_the_same(client) -> None:
    body = {"text": ["the", "mr. corp."], "words": 12, "temperature": 2.0}
    first = client.post(GENERATE, json={**body, "seed": 1}).get_json()
    assert first == client.post(GENERATE, json={**body, "seed": 1}).get_json()
    assert first != client.post(GENERATE, json={**body, "seed": 2}).get_json()
    told = client.post(GENERATE, json=body).get_json()
    assert told == client.post(GENERATE, json={**body, "seed": told["seed"]}).get_json()
    assert all("<unk>" not in prediction["words"] for prediction in told["predictions"])


@pytest.mark.parametrize(
    ("path", "body", "field", "given"),
    [
        (PATH, {"text": ""}, "text", 'the string ""'),
        (PATH, {"text": " \t"}, "text", "no words"),
        (PATH, {"text": "..."}, "text", "no words"),
        (PATH, {"text": ["the", 7]}, "text[1]", "the number 7"),
        (PATH, {"text": ["the", ""]}, "text[1]", 'the string ""'),
        (PATH, {"text": []}, "text", "a list of 0"),
        (PATH, {}, "text", "nothing"),
        (PATH, {"text": "the", "top_k": 0}, "top_k", "the number 0"),
        (PATH, {"text": "the", "top_k": 51}, "top_k", "the number 51"),
        (PATH, {"text": "the", "top_k": True}, "top_k", "true"),
        (PATH, {"text": "the", "words": 1}, "words", 'the string "words"'),
        (GENERATE, {"text": "the", "words": 51}, "words", "the number 51"),
        (GENERATE, {"text": "the", "words": 1.5}, "words", "the number 1.5"),
        (GENERATE, {"text": "the", "temperature": -0.1}, "temperature", "the number -0.1"),
        (GENERATE, {"text": "the", "temperature": False}, "temperature", "false"),
        (GENERATE, {"text": "the", "seed": -1}, "seed", "the number -1"),
        (GENERATE, {"text": "the", "seed": None}, "seed", "null"),
        (GENERATE, {"text": ""}, "text", "no words"),
    ],
)
def test_wrong_bodies_name_the_place_and_show_one_that_works(client, backend, path, body, field, given) -> None:
    document = problem_of(client.post(path, json=body), 400)
    assert document["field"] == field
    assert given in document["given"]
    assert not backend.asked
    assert client.post(path, json=document["example"]).status_code == 200


@pytest.mark.parametrize("text", ["x" * 4001, "the " * 201], ids=["characters", "words"])
def test_long_texts_are_413(client, text) -> None:
    assert problem_of(client.post(PATH, json={"text": ["the", text]}), 413)["field"] == "text[1]"


def test_the_limit_of_generated_words_can_be_set(backend, molecule_pool, store) -> None:
    config = GatewayConfig(models_dir=store, limits=Limits(generated_words=2))
    client = create_app(config, backend, molecule_pool).test_client()
    assert client.post(GENERATE, json={"text": "the"}).get_json()["predictions"][0]["words"]
    assert problem_of(client.post(GENERATE, json={"text": "the", "words": 3}), 400)["field"] == "words"
