"""What each model of the book is for and where its answers end: the words of its model card."""

# model -> what it is for and where its answers end
PURPOSE: dict[str, tuple[str, str]] = {
    "linear": (
        "The line through a hundred points: linear regression of chapter 3.",
        "It has seen x from 0 to 1 only, of one made-up line, y = 5 x + 2.",
    ),
    "logistic": (
        "Tells two clouds of points apart: logistic regression of chapter 3.",
        "It has seen two made-up clouds only, around (-1, -1) and (1, 1). The clouds do not overlap, so its "
        "probabilities are surer the longer it is trained, and say little about points far from both.",
    ),
    "tox21": (
        "Says in which of twelve laboratory assays a molecule is likely to be active: the multitask network of "
        "chapters 4 and 5 on Morgan fingerprints.",
        "It ranks molecules that resemble those of Tox21, drugs and chemicals of commerce. Its probabilities are "
        "calibrated for each assay on the validation rows (Platt): among molecules like these as many are active as "
        "they say, among others not; most assays have few actives, so few probabilities reach 0.5. It sees "
        "fingerprints of 1,024 bits, in which different molecules may look the same. But for the configuration `book` "
        "it holds the fingerprints of its training molecules and compares with them. No ground for a decision on "
        "anyone's safety.",
    ),
    "mnist": (
        "Reads one handwritten digit: LeNet-5 of chapter 6, or in the profile `full` convolutions alone.",
        "It knows only digits: white on black, 28 x 28, centred, about 20 pixels high. It gives any other image one "
        "of the ten digits too, often with a high probability. Rotated, cut or touching digits are read badly.",
    ),
    "ptb": (
        "Says which word comes next: the recurrent network over words of chapter 7.",
        "It knows 10,000 words of American business news of 1989, in lower case, numbers as `N`, everything else as "
        "`<unk>`. It repeats the prejudices of its text, knows no facts and forgets what lies many words back.",
    ),
    "cifar10": (
        "Says which of ten kinds of things a small image shows: the convolutional network of chapter 9.",
        "It has seen 32 x 32 pixels only, each with one thing in the middle. It gives any other image one of the ten "
        "kinds too, often with a high probability.",
    ),
    "tictactoe": (
        "Plays tic-tac-toe: the policy of chapter 8, trained by A3C against itself and against slips of its own hand.",
        "It was checked on every position that play can reach, and knows no others: a board with too many stones of "
        "one side gets an answer, too. Its value is what it may expect, in the book's rewards, from an opponent that "
        "plays like it but moves at random half of the time.",
    ),
}

# network -> what is to be said, besides, of the answers of one that was trained on a user's own data
OWN_DATA: dict[str, str] = {
    "tox21": " Its probabilities are calibrated for each label on the validation rows (Platt).",
}
