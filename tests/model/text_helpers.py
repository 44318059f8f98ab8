"""Small models of texts."""

from __future__ import annotations

from typing import Any

import torch

import zoo

SMALL = {
    "embedding.vocabulary": 61, "embedding.position.length": 40, "stack.width": 24, "stack.depth": 2,
    "stack.block.attention.heads": 3, "stack.block.feedforward.hidden": 40,
}  # fmt: skip
HEADS: dict[str, Any] = {
    "none": None,
    "pooler": "pooler",
    "masked-language-model": "masked-language-model",
    "untied": {"type": "masked-language-model", "tied": False},
    "pretraining": "pretraining",
    "next-sentence": "next-sentence",
    "classifier": {"type": "classifier", "dense": "tanh", "classes": 5},
    "token-classifier": {"type": "token-classifier", "classes": 5},
    "span": "span",
    "sentence-embedding": "sentence-embedding",
    "multiple-choice": "multiple-choice",
}


@torch.no_grad()
def text_model(preset: str = "bert-tiny", overrides: dict[str, Any] | None = None, dtype: Any = "float64") -> Any:
    """A small model of a preset's kind: every parameter redrawn, in eval mode."""
    model = zoo.build(preset, {**SMALL, **(overrides or {})}, dtype=dtype)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.add_((noise * 0.3).to(parameter.dtype))
    return model.eval()


def words(*shape: int, seed: int = 3) -> torch.Tensor:
    """Random tokens of the small models; none is padding."""
    return torch.randint(2, 61, shape, generator=torch.Generator().manual_seed(seed))


def answers(output: Any) -> dict[str, torch.Tensor]:
    """What a model gave, by name."""
    return {name: value for name, value in output._asdict().items() if isinstance(value, torch.Tensor)}


def far(a: torch.Tensor, b: torch.Tensor) -> float:
    """The largest difference as a share of the largest value, at least of one."""
    assert a.shape == b.shape
    return float((a - b).detach().abs().max() / b.detach().abs().max().clamp(min=1)) if b.numel() else 0.0
