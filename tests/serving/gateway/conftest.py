from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from bookserve.clients import errors
from bookserve.clients.answers import ModelMetadata, Prediction, Signature, TensorInfo, VersionStatus
from bookserve.serving.gateway.app import create_app
from bookserve.serving.gateway.config import GatewayConfig

GOOD = Signature(
    inputs={"images": TensorInfo("uint8", (None, 28, 28))},
    outputs={"probabilities": TensorInfo("float32", (None, 10)), "classes": TensorInfo("int64", (None,))},
)


def classes_of(images: np.ndarray) -> np.ndarray:
    """What the stand-in models answer: the mean grey level, modulo 10."""
    return images.mean(axis=(1, 2)).astype(np.int64) % 10


@dataclass
class StandIn:
    """A back end in this process; a test may give it another signature, other outputs or an error."""

    version: int = 3
    signature: Signature = GOOD
    fail: Exception | None = None
    fail_metadata: Exception | None = None
    outputs: dict[str, np.ndarray] | None = None
    asked: list[tuple[Any, ...]] = field(default_factory=list)
    metadata_calls: int = 0

    def predict(self, model, inputs, *, version=None, label=None, signature=None, timeout=0.0) -> Prediction:
        self.asked.append((model, inputs["images"].copy(), version, label, signature, timeout))
        if self.fail is not None:
            raise self.fail
        classes = classes_of(inputs["images"])
        outputs = {"probabilities": np.eye(10, dtype=np.float32)[classes], "classes": classes}
        return Prediction(model, version or self.version, self.outputs or outputs)

    def metadata(self, model, *, version=None, label=None, timeout=0.0) -> ModelMetadata:
        self.metadata_calls += 1
        if self.fail_metadata is not None:
            raise self.fail_metadata
        if model != "mnist":
            raise errors.NotFound(f"Servable not found for request: Latest({model})")
        return ModelMetadata(model, version or self.version, {"serving_default": self.signature})

    def status(self, model, *, timeout=0.0) -> list[VersionStatus]:
        if self.fail_metadata is not None:
            raise self.fail_metadata
        return [VersionStatus(self.version, "AVAILABLE", ""), VersionStatus(1, "END", "")]


@pytest.fixture
def backend() -> StandIn:
    return StandIn()


@pytest.fixture
def client(backend, tmp_path):
    app = create_app(GatewayConfig(models_dir=tmp_path), backend)
    return app.test_client()
