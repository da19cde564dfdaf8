"""Rows of networks that PyTorch's users build are proved to be independent in the graph that is made of them."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bookserve.export.converters import torch_program, trial
from bookserve.serving.server.engines.onnx_rows import walk
from bookserve.serving.wire.onnx_graph_pb2 import ModelProto

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def torch() -> Any:
    pytest.importorskip("onnxscript", reason="part of the extra 'torch'")
    return pytest.importorskip("torch", reason="torch is an extra of its own, see pyproject.toml")


def vision_transformer(torch: Any) -> tuple[Callable[..., Any], dict[str, Any], Any]:
    def forward(self, image):
        places = self.patches(image).flatten(2).transpose(1, 2)
        places = torch.cat([self.first.expand(places.shape[0], -1, -1), places], 1) + self.positions
        return self.encoder(places)[:, 0]

    layers = {
        "patches": torch.nn.Conv2d(3, 8, 4, 4),
        "first": torch.nn.Parameter(torch.zeros(1, 1, 8)),
        "positions": torch.nn.Parameter(torch.zeros(1, 17, 8)),
        "encoder": encoder(torch),
    }
    return forward, layers, torch.randn(2, 3, 16, 16)


def encoder(torch: Any) -> Any:
    layer = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    return torch.nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)


def text_encoder(torch: Any) -> tuple[Callable[..., Any], dict[str, Any], Any]:
    def forward(self, tokens):
        return self.encoder(self.words(tokens) + self.positions[:, : tokens.shape[1]]).mean(1)

    positions = torch.nn.Parameter(torch.randn(1, 16, 8))
    layers = {"words": torch.nn.Embedding(50, 8), "positions": positions, "encoder": encoder(torch)}
    return forward, layers, torch.randint(0, 50, (2, 9))


def generator(torch: Any) -> tuple[Callable[..., Any], dict[str, Any], Any]:
    """Causal attention written out, as small GPTs have it."""

    def forward(self, tokens):
        words = self.words(tokens)
        rows, steps, width = words.shape
        heads = (part.view(rows, steps, 2, 4).transpose(1, 2) for part in self.parts(words).split(width, 2))
        query, key, value = heads
        seen = torch.tril(torch.ones(steps, steps)).bool()
        scores = (query @ key.transpose(-2, -1)).masked_fill(~seen, float("-inf")).softmax(-1)
        return self.scores((scores @ value).transpose(1, 2).reshape(rows, steps, width))

    layers = {"words": torch.nn.Embedding(50, 8), "parts": torch.nn.Linear(8, 24), "scores": torch.nn.Linear(8, 50)}
    return forward, layers, torch.randint(0, 50, (2, 9))


def channels_last(torch: Any) -> tuple[Callable[..., Any], dict[str, Any], Any]:
    def forward(self, image):
        return torch.flatten(torch.nn.functional.adaptive_avg_pool2d(self.body(image), 1), 1)

    last = torch.channels_last
    body = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU())
    return forward, {"body": body.to(memory_format=last)}, torch.randn(2, 3, 16, 16).to(memory_format=last)


def spectrum(torch: Any) -> tuple[Callable[..., Any], dict[str, Any], Any]:
    def forward(self, sound):
        parts = torch.stft(sound, 64, 32, window=self.window, center=False, return_complex=True)
        return torch.log1p(parts.abs()).mean(-1)

    return forward, {"window": torch.nn.Buffer(torch.hann_window(64))}, torch.randn(2, 640)


def recurrent(torch: Any) -> tuple[Callable[..., Any], dict[str, Any], Any]:
    def forward(self, steps):
        return torch.cat(tuple(self.cells(steps)[1][0]), 1)

    return forward, {"cells": torch.nn.LSTM(8, 4, bidirectional=True, batch_first=True)}, torch.randn(2, 9, 8)


def mean_of_the_batch(torch: Any) -> tuple[Callable[..., Any], dict[str, Any], Any]:
    return lambda self, x: x - x.mean(0), {}, torch.randn(4, 3)


INDEPENDENT = (vision_transformer, text_encoder, generator, channels_last, spectrum, recurrent)


@pytest.mark.parametrize("kind", [*INDEPENDENT, mean_of_the_batch], ids=lambda kind: kind.__name__)
def test_rows_are_proved_where_they_are_independent(kind: Callable[..., Any], torch: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    forward, layers, example = kind(torch)
    module = type("Net", (torch.nn.Module,), {"forward": forward})()
    for name, layer in layers.items():
        setattr(module, name, layer)
    free = {0: torch.export.Dim.DYNAMIC, **({1: torch.export.Dim.DYNAMIC} if kind in (text_encoder, generator) else {})}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of its own layers
        torch.export.save(torch.export.export(module.eval(), (example,), dynamic_shapes=(free,)), tmp_path / "net.pt2")
    job = {"path": str(tmp_path / "net.pt2"), "folder": str(tmp_path), "model": "net", "task": None, "labels": None}
    made = trial.run({**job, "example": None, "trust": True})
    assert made["format"] == torch_program.FORMAT
    assert max(made["parity"].values()) < 1e-5
    doubt = walk.refusal(ModelProto.FromString((tmp_path / "assets.extra/model.onnx").read_bytes()))
    assert (doubt == "") == (kind in INDEPENDENT), doubt
