"""TensorFlow without its start-up chatter, so that a command prints only its own lines."""

import gc
import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from bookserve.serving.wire import lean_keras


@contextmanager
def silence_tensorflow() -> Iterator[None]:
    """Around the first import of TensorFlow: what its C++ side writes meanwhile is shown only if the import fails.

    Its later log lines are off, unless TF_CPP_MIN_LOG_LEVEL is set: errors reach the user as exceptions. So are the
    warnings of its Python side, which are about models of others; trainings of ours cause none. The import takes half
    the time: without what Keras imports besides, and without looking for garbage, of which an import makes none.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    lean_keras.expect()
    collects = gc.isenabled() and "tensorflow" not in sys.modules
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as chatter:
        os.dup2(chatter.fileno(), 2)
        try:
            if collects:
                gc.disable()
            yield
        except BaseException:
            chatter.seek(0)
            os.write(kept, chatter.read())
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            if collects:
                gc.enable()
