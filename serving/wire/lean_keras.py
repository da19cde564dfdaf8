"""Keras without the libraries that it does without where they are missing: half of the time of importing TensorFlow.

Keras takes tables of pandas, wraps networks for scikit-learn and draws galleries with Matplotlib. `import tensorflow`
imports Keras, and Keras all three, where they are installed. No process of bookserve gives Keras any of that.
"""

import importlib.abc
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

UNUSED = ("matplotlib", "pandas", "sklearn")


def expect() -> None:
    """Call this before TensorFlow or Keras is imported; whoever else imports the three libraries later gets them."""
    if "keras" not in sys.modules and not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder(importlib.abc.MetaPathFinder):
    """Finds Keras as the finder of installed packages does, and has it loaded by `_Loader`."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        found = PathFinder.find_spec(fullname, path, target) if fullname == "keras" else None
        if found is not None and found.loader is not None:
            found.loader = _Loader(found.loader)
        return found


class _Loader(importlib.abc.Loader):
    """Runs Keras, which imports all of its own modules then, while the three libraries seem not to be installed."""

    def __init__(self, real: importlib.abc.Loader) -> None:
        self._real = real

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._real.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__loader__ = module.__spec__.loader = self._real
        kept = {name: sys.modules[name] for name in UNUSED if name in sys.modules}
        sys.modules.update(dict.fromkeys(UNUSED))  # type: ignore[arg-type]  # None is what import takes for missing
        try:
            self._real.exec_module(module)
        finally:
            for name in UNUSED:
                del sys.modules[name]
            sys.modules.update(kept)
