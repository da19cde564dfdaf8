"""The names in a run folder: what one training leaves behind, and all that export reads of it.

    runs/<model>/<time>/
        config.json     what was asked for: model, contract, profile, seed, numbers, data and its card, devices,
                        versions of the libraries
        metrics.json    {"train": {}, "valid": {}, "test": {}}
        history.csv     one line an epoch
        model.keras     the trained network behind its contract
        examples.npz    test rows as the contract's inputs, for the parity check and the warm-up
        assets/         the files that the contract names, such as a vocabulary
        report/         images; left_out.txt, what of a user's own data could not be used
        tensorboard/    for `tensorboard --logdir`

A run is written in `<time>.unfinished` and gets its name when it is complete, so a run that died is never taken for a
whole one. Until then the folder also holds `checkpoint.npz`, from which a training with the same settings goes on, and
`lock`, which the training process holds.
"""

CONFIG = "config.json"
METRICS = "metrics.json"
HISTORY = "history.csv"
NETWORK = "model.keras"
EXAMPLES = "examples.npz"
ASSETS = "assets"
REPORT = "report"
EVALUATION = "evaluation.json"  # in the report: the served graph on the test rows (evaluation.py)
LEFT_OUT = "left_out.txt"  # in the report
TENSORBOARD = "tensorboard"
UNFINISHED = ".unfinished"
CHECKPOINT = "checkpoint.npz"
LOCK = "lock"
