import numpy as np
import pytest

from http_calls import problem_of

PATH = "/api/v1/tictactoe"
EMPTY = [""] * 9
BOARD = ["X", "", "O", "", "X", "", "", "", ""]
ROWS = [["X", "", "O"], ["", "X", ""], ["", "", ""]]


@pytest.fixture(autouse=True)
def _served(all_models) -> None:
    """Every test has all seven models."""


@pytest.mark.parametrize("board", [BOARD, ROWS], ids=["nine squares", "three rows"])
@pytest.mark.parametrize("extra", [{}, {"player": "O"}], ids=["turn told", "turn given"])
def test_a_board_gets_its_best_move(client, backend, board, extra) -> None:
    answer = client.post(PATH, json={"board": board, **extra}).get_json()
    (prediction,) = answer["predictions"]
    assert (prediction["player"], prediction["move"], prediction["row"], prediction["column"]) == ("O", 8, 2, 2)
    assert prediction["value"] == 0.25
    assert [prediction["probabilities"][square] for square in (0, 2, 4)] == [0, 0, 0]
    sent = backend.asked[0][1]
    assert (sent.dtype, sent.shape) == (np.float32, (1, 3, 3, 2))
    assert sent[0, 0, 2].tolist() == [1, 0]  # O is to move
    assert sent[0, 0, 0].tolist() == [0, 1]


@pytest.mark.parametrize("boards", [[EMPTY, BOARD], [[["", "", ""]] * 3, ROWS]], ids=["squares", "rows"])
def test_several_boards(client, boards) -> None:
    answer = client.post(PATH, json={"board": boards}).get_json()
    assert [prediction["player"] for prediction in answer["predictions"]] == ["X", "O"]


def test_a_taken_square_is_never_the_move(client, backend) -> None:
    backend.outputs = {
        "probabilities": np.array([[1, 0, 0, 0, 0, 0, 0, 0, 0]], np.float32),
        "value": np.zeros(1, np.float32),
    }
    assert client.post(PATH, json={"board": BOARD}).get_json()["predictions"][0]["move"] == 1


@pytest.mark.parametrize(
    ("body", "field", "text"),
    [
        ({"board": EMPTY, "player": "O"}, "board", "turn of X"),
        ({"board": ["X", "X", *EMPTY[2:]]}, "board", "2 X and 0 O"),
        ({"board": ["O", *EMPTY[1:]]}, "board", "0 X and 1 O"),
        ({"board": ["X", "X", "X", "O", "O", "", "", "", ""]}, "board", "X has won"),
        ({"board": ["X", "X", "X", "O", "O", "O", "", "", ""]}, "board", "both"),
        ({"board": ["X", "X", "X", "O", "O", "", "O", "", ""]}, "board", "moved on"),
        ({"board": ["X", "O", "X", "X", "O", "O", "O", "X", "X"]}, "board", "a draw"),
        ({"board": EMPTY[:8]}, "board", "a list of 8"),
        ({"board": [*EMPTY[:8], "x"]}, "board[8]", 'the string "x"'),
        ({"board": [*EMPTY[:8], None]}, "board[8]", "null"),
        ({"board": [["", "", ""], ["", ""], ["", "", ""]]}, "board[1]", "a list of 2"),
        ({"board": [["", "", ""], ["", "", 1], ["", "", ""]]}, "board[1][2]", "the number 1"),
        ({"board": [EMPTY, EMPTY[:3]]}, "board[1]", "a list of 3"),
        ({"board": []}, "board", "a list of 0"),
        ({"board": "XO"}, "board", "the string"),
        ({"board": EMPTY, "player": "x"}, "player", 'the string "x"'),
        ({"board": EMPTY, "player": []}, "player", "a list of 0"),
        ({"board": EMPTY, "turn": "X"}, "turn", "board, player"),
        ({}, "board", "nothing"),
    ],
)
def test_impossible_boards_are_400(client, backend, body, field, text) -> None:
    document = problem_of(client.post(PATH, json=body), 400)
    assert document["field"] == field
    assert text in document["detail"]
    assert not backend.asked
    assert client.post(PATH, json=document["example"]).status_code == 200


def test_too_many_boards_are_413(client) -> None:
    assert problem_of(client.post(PATH, json={"board": [EMPTY] * 33}), 413)["field"] == "board"


def test_each_mark_is_left_out_once_for_the_same_side(client, backend) -> None:
    answer = client.post(f"{PATH}/explain", json={"board": BOARD}).get_json()
    assert answer["predictions"] == client.post(PATH, json={"board": BOARD}).get_json()["predictions"]
    assert [(row["square"], row["mark"]) for row in answer["without"]] == [(0, "X"), (2, "O"), (4, "X")]
    free = 2 + 4 + 6 + 7 + 8 + 9  # what the stand-in shares its probability by
    assert answer["predictions"][0]["probabilities"][8] == pytest.approx(9 / free, abs=1e-6)
    for row in answer["without"]:
        assert row["probabilities"][8] == pytest.approx(9 / (free + row["square"] + 1), abs=1e-6)
        assert row["probabilities"][row["square"]] > 0
    sent = backend.asked[0][1]
    assert sent.shape == (4, 3, 3, 2)
    assert sent[:, 0, 2].tolist() == [[1, 0], [1, 0], [0, 0], [1, 0]]  # it is O's turn in all of them
    assert sent[:, 1, 1].tolist() == [[0, 1], [0, 1], [0, 1], [0, 0]]
    assert len(backend.asked) == 2


def test_one_board_is_explained(client, backend) -> None:
    assert client.post(f"{PATH}/explain", json={"board": EMPTY}).get_json()["without"] == []
    assert problem_of(client.post(f"{PATH}/explain", json={"board": [EMPTY, BOARD]}), 400)["expected"] == "one board"
    won = ["X", "X", "X", "O", "O", "", "", "", ""]
    assert "the game is over" in problem_of(client.post(f"{PATH}/explain", json={"board": won}), 400)["detail"]
    assert len(backend.asked) == 1
