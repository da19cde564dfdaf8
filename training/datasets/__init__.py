"""One module a data set: where it comes from, its checksums, its parsing and its splits."""

DOWNLOADED = ("mnist", "tox21", "ptb", "cifar10")
"""The modules whose files are fetched; `at_hand` of each says where they lie."""
