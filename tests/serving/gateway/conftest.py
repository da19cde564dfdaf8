from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from bookserve.clients import errors
from bookserve.clients.answers import ModelMetadata, Prediction, Signature, TensorInfo, VersionStatus
from bookserve.export.contracts import CONTRACTS, Contract
from bookserve.serving.gateway.app import create_app
from bookserve.serving.gateway.chemist import Chemist
from bookserve.serving.gateway.config import GatewayConfig

WORDS = ("<unk>", "<eos>", "N", "$", "the", "stock", "market", "do", "n't", "'s", "rose", "mr.", "corp.")


def signature_of(contract: Contract) -> Signature:
    return Signature(
        inputs={tensor.name: TensorInfo(tensor.dtype, tensor.shape) for tensor in contract.inputs},
        outputs={tensor.name: TensorInfo(tensor.dtype, tensor.shape) for tensor in contract.outputs},
    )


GOOD = signature_of(CONTRACTS["mnist"])


def classes_of(images: np.ndarray) -> np.ndarray:
    """What the stand-in picture models answer: the mean level, modulo 10."""
    return images.mean(axis=tuple(range(1, images.ndim))).astype(np.int64) % 10


def answer_of(model: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What the stand-in models answer: simple functions of their inputs, of the contract's shapes and types."""
    (value,) = inputs.values()
    rows = len(value)
    match model:
        case "linear":
            return {"y": (5 * value[:, 0] + 2).astype(np.float32)}
        case "logistic":
            probability = (1 / (1 + np.exp(-value.sum(axis=1)))).astype(np.float32)
            return {"probability": probability, "class": (probability >= 0.5).astype(np.int64)}
        case "tox21":
            bits = value.sum(axis=1, dtype=np.float32)[:, None]
            return {"probabilities": (bits / 1024 + np.arange(12, dtype=np.float32) / 24).astype(np.float32)}
        case "ptb":
            # The word after the last one, and a little of all others.
            nexts = (value[:, -1] + 1) % len(WORDS)
            probabilities = np.full((rows, len(WORDS)), 0.01, np.float32)
            probabilities[np.arange(rows), nexts] = 1 - 0.01 * (len(WORDS) - 1)
            top = np.argsort(-probabilities, axis=1)[:, :10].astype(np.int32)
            return {
                "probabilities": probabilities,
                "top_ids": top,
                "top_probabilities": np.take_along_axis(probabilities, top, axis=1),
            }
        case "tictactoe":
            # Each free square more likely than the one before it.
            free = 1 - value.sum(axis=3).reshape(rows, 9)
            weights = free * np.arange(1, 10)
            probabilities = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
            return {"probabilities": probabilities, "value": np.full(rows, 0.25, np.float32)}
        case _:
            classes = classes_of(value)
            return {"probabilities": np.eye(10, dtype=np.float32)[classes], "classes": classes}


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
        (value,) = inputs.values()
        self.asked.append((model, value.copy(), version, label, signature, timeout))
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
def chemist() -> Iterator[Chemist]:
    with Chemist() as chemist:
        yield chemist


@pytest.fixture
def store(tmp_path):
    """A model store that has the vocabulary of ptb version 3."""
    assets = tmp_path / "ptb" / "3" / "assets"
    assets.mkdir(parents=True)
    (assets / "vocabulary.txt").write_text("".join(f"{word}\n" for word in WORDS))
    return tmp_path


@pytest.fixture
def client(backend, chemist, tmp_path):
    app = create_app(GatewayConfig(models_dir=tmp_path), backend, chemist)
    return app.test_client()
