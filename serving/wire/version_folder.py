"""Where things are in a version's folder, for the store that writes it and the server that reads it."""

MANIFEST = "assets.extra/manifest.json"
CARD = "assets.extra/report/card.md"  # which a version of a model store has
SIGNATURE = "assets.extra/model.sig"  # over every other file
WARMUP = "assets.extra/tf_serving_warmup_requests"
BATCHING = "batching_params.pbtxt"
_BY_HAND = (BATCHING, WARMUP, SIGNATURE)


def may_lie_beside(name: str) -> bool:
    """Whether a file may lie in a version though its manifest does not list it.

    That is what is put there after the version was published, and hidden files, which file managers leave behind.
    """
    return name in _BY_HAND or name.rpartition("/")[2].startswith(".")
