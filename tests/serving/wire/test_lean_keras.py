import subprocess
import sys
from pathlib import Path

import pytest

from bookserve.export import confined
from bookserve.serving.wire import lean_keras

KERAS = """
try:
    import pandas, sklearn.base
except ImportError:
    pandas = None
try:
    import matplotlib.pyplot as plt
except ImportError:
    plt = None
"""
PROGRAM = """
import importlib.util, sys
from bookserve.serving.wire import lean_keras

import matplotlib
lean_keras.expect()
lean_keras.expect()
assert importlib.util.find_spec("keras") is not None  # TensorFlow asks where it is, and imports it later
import keras
assert (keras.pandas, keras.plt) == (None, None)
assert type(keras.__loader__) is type(keras.__spec__.loader) is type(matplotlib.__loader__)
import matplotlib.pyplot, pandas, sklearn.base
assert matplotlib is sys.modules["matplotlib"]
"""


def test_keras_goes_without_the_libraries_and_others_get_them(tmp_path: Path) -> None:
    (tmp_path / "keras").mkdir()
    (tmp_path / "keras/__init__.py").write_text(KERAS)
    for name in lean_keras.UNUSED:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("")
    (tmp_path / "matplotlib/pyplot.py").write_text("")
    (tmp_path / "sklearn/base.py").write_text("")
    program = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{PROGRAM}"
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def finders(_: object) -> list[str]:
    return [type(finder).__module__ for finder in sys.meta_path]


def test_a_child_for_foreign_files_expects_keras(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    assert confined.call("test_lean_keras:finders", {}, confined.NONE)[0] == lean_keras.__name__
