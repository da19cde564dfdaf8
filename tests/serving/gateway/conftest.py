from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from book_contracts import CONTRACTS, write_manifests
from bookserve.clients import errors
from bookserve.clients.answers import ModelMetadata, Prediction, Signature, VersionStatus
from bookserve.serving.gateway.app import create_app
from bookserve.serving.gateway.config import GatewayConfig
from bookserve.serving.gateway.molecule_pool import MoleculePool
from stand_in_models import WORDS, answer_of, signature_of

GOOD = signature_of(CONTRACTS["mnist"])


@dataclass
class StandIn:
    """A back end in this process that serves `models`; a test may give it a signature, outputs or an error."""

    version: int = 3
    models: tuple[str, ...] = ("mnist",)
    signature: Signature = GOOD
    fail: Exception | None = None
    fail_metadata: Exception | None = None
    outputs: dict[str, np.ndarray] | None = None
    asked: list[tuple[Any, ...]] = field(default_factory=list)
    metadata_calls: int = 0

    def predict(self, model, inputs, *, version=None, label=None, signature=None, timeout=0.0) -> Prediction:
        value, *others = inputs.values()
        self.asked.append((model, value.copy(), version, label, signature, timeout, *others))
        if self.fail is not None:
            raise self.fail
        return Prediction(model, version or self.version, self.outputs or answer_of(model, inputs))

    def metadata(self, model, *, version=None, label=None, timeout=0.0) -> ModelMetadata:
        self.metadata_calls += 1
        if self.fail_metadata is not None:
            raise self.fail_metadata
        if model not in self.models:
            raise errors.NotFound(f"Servable not found for request: Latest({model})")
        signature = self.signature if model == "mnist" else signature_of(CONTRACTS[model])
        return ModelMetadata(model, version or self.version, {"serving_default": signature})

    def status(self, model, *, timeout=0.0) -> list[VersionStatus]:
        if self.fail_metadata is not None:
            raise self.fail_metadata
        return [VersionStatus(self.version, "AVAILABLE", ""), VersionStatus(1, "END", "")]


@pytest.fixture
def backend() -> StandIn:
    """Serves mnist only."""
    return StandIn()


@pytest.fixture
def all_models(backend) -> StandIn:
    """The back end of `client` with all seven models."""
    backend.models = tuple(CONTRACTS)
    return backend


@pytest.fixture(scope="session")
def molecule_pool() -> Iterator[MoleculePool]:
    with closing(MoleculePool()) as molecule_pool:
        yield molecule_pool


@pytest.fixture
def models_dir(tmp_path):
    """A model store with version 3 of all seven models, which has manifests and no graphs."""
    return write_manifests(tmp_path)


@pytest.fixture
def store(models_dir):
    """The model store, with the vocabulary of ptb version 3."""
    assets = models_dir / "ptb" / "3" / "assets"
    assets.mkdir(parents=True)
    (assets / "vocabulary.txt").write_text("".join(f"{word}\n" for word in WORDS))
    return models_dir


@pytest.fixture
def client(backend, molecule_pool, models_dir):
    app = create_app(GatewayConfig(models_dir=models_dir), backend, molecule_pool)
    return app.test_client()
