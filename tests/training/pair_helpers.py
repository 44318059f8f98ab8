"""What the tests of pairs of texts share: a small model with an encoder and a decoder, and a run of it."""

from __future__ import annotations

from typing import Any

ATTENTION: dict[str, Any] = {"type": "full", "heads": 2}
BLOCK: dict[str, Any] = {
    "order": "post",
    "norm": "layer-norm",
    "attention": ATTENTION,
    "feedforward": {"type": "mlp", "hidden": 32, "activation": "relu"},
}
EMBEDDING: dict[str, Any] = {"type": "tokens", "vocabulary": 260, "padding": 256, "scale": 4.0, "position": "sinusoidal"}
MODEL: dict[str, Any] = {
    "type": "encoder-decoder",
    "share_embeddings": True,
    "start": 257,
    "encoder": {
        "init": {"type": "normal", "std": 0.1},
        "embedding": EMBEDDING,
        "stack": {"width": 16, "depth": 1, "block": BLOCK},
        "head": None,
    },
    "decoder": {
        "init": {"type": "normal", "std": 0.1},
        "embedding": EMBEDDING,
        "stack": {
            "width": 16,
            "depth": 2,
            "block": {**BLOCK, "attention": {**ATTENTION, "causal": True}, "cross_attention": ATTENTION},
        },
        "head": {"type": "language-model", "tied": True},
    },
}
DATES: dict[str, Any] = {"type": "dates", "batch_size": 32, "size": 64, "measured": 24, "validation": 0.05}
RUN: dict[str, Any] = {
    "type": "train",
    "model": MODEL,
    "data": DATES,
    "task": {"type": "sequence-to-sequence", "label_smoothing": 0.1},
    "optimizer": {"name": "muon", "lr": 4e-3, "warmup": 0.1},
    "trainer": {"max_epochs": 1, "accelerator": "cpu"},
}
