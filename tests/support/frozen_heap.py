"""A plugin of pytest: Python's garbage collector pauses while tests are collected, and leaves alone what was made then.

Thousands of modules are imported meanwhile, and nothing of them is garbage: a third of the time of collecting the tests
went into looking for some. So it is after each file of tests, for what that file has imported and left: each training
looks for garbage before it begins, which took half a second else, and `bookserve batch` thaws what is frozen.

Keras is imported as the processes of bookserve import it.
"""

import gc

import pytest

from bookserve.serving.wire import lean_keras

gc.disable()
lean_keras.expect()


def pytest_collection_finish(session: pytest.Session) -> None:
    gc.freeze()
    gc.enable()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    if nextitem is not None and nextitem.path != item.path:
        gc.collect()
        gc.freeze()
