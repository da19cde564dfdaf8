"""Where things are in a version's folder, for the store that writes it and the server that reads it."""

MANIFEST = "assets.extra/manifest.json"
CARD = "assets.extra/report/card.md"  # which a version of a model store has
SIGNATURE = "assets.extra/model.sig"  # over every other file
WARMUP = "assets.extra/tf_serving_warmup_requests"
BATCHING = "batching_params.pbtxt"
SAVED_MODELS = ("saved_model.pb", "saved_model.pbtxt")  # the first that is there counts, as in TensorFlow
GRAPHS = (
    *(*SAVED_MODELS, "model.onnx", "assets.extra/model.onnx"),
    *("model.tflite", "assets.extra/model.tflite"),
)
MAX_MANIFEST_BYTES = 16 << 20
_MAX_NAME, _MAX_PART = 1024, 255  # characters of a file's path, and bytes of each part of it
_BY_HAND = (BATCHING, WARMUP, SIGNATURE)


def may_lie_beside(name: str) -> bool:
    """Whether a file may lie in a version though its manifest does not list it.

    That is what is put there after the version was published, and hidden files, which file managers leave behind.
    """
    return name in _BY_HAND or name.rpartition("/")[2].startswith(".")


def is_inside(name: str) -> bool:
    """Whether a name that came from elsewhere is a plain path of a file inside a version, on every system."""
    parts = name.split("/")
    printable = not any(ord(character) < 32 or ord(character) == 127 for character in name)
    short = len(name) <= _MAX_NAME and all(len(part.encode("utf-8", "surrogatepass")) <= _MAX_PART for part in parts)
    return printable and short and "\\" not in name and all(part.strip(".") for part in parts)
