#!/usr/bin/env python
"""Trains what the model store of a container does not hold yet, or the models that are named, and publishes it.

`train-missing [OPTION=VALUE]... [MODEL]...`: the options are those of `bookserve train-all`, which it becomes.
"""

import os
import sys
from pathlib import Path

import click

from bookserve.export.store import ModelStore
from bookserve.training.models import MODELS

STORE = Path("/models")


def main() -> None:
    """Chooses the models and becomes `bookserve train-all`; ends with 0 when there is nothing to train."""
    options = [argument for argument in sys.argv[1:] if argument.startswith("-")]
    named = [argument for argument in sys.argv[1:] if not argument.startswith("-")]
    store = ModelStore(STORE)
    names = named or [model for model in MODELS if not store.versions(model)]
    if not names:
        click.echo(f"{STORE} holds every model: name those to train again")
        return
    os.execvp("bookserve", ["bookserve", "train-all", *options, f"--models-dir={STORE}", "--runs-dir=/runs", *names])


if __name__ == "__main__":
    main()
