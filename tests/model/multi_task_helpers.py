"""What the tests of models of many tasks share: a small one with experts, and the transformers that its paths are."""

from __future__ import annotations

import copy
from typing import Any

import torch

import zoo

ATTENTION: dict[str, Any] = {"type": "full", "heads": 2, "position": "rotary"}
EXPERTS: dict[str, Any] = {
    "type": "mixture-of-experts",
    "experts": 4,
    "top_k": 2,
    "expert": {"type": "gated", "hidden": 16},
    "balance": 0.01,
}
MODEL: dict[str, Any] = {
    "type": "multi-task",
    "init": {"type": "truncated-normal", "std": 0.2},
    "embeddings": {
        "image": {"type": "patch", "image_size": 8, "patch_size": 4, "channels": 1, "class_token": False},
        "text": {"type": "tokens", "vocabulary": 260, "position": {"type": "learned", "length": 160}},
    },
    "stack": {
        "width": 16,
        "depth": 2,
        "final_norm": "layer-norm",
        "block": {"norm": "layer-norm", "attention": ATTENTION, "feedforward": {"type": "mlp", "hidden": 32}},
        "pattern": [{}, {"feedforward": EXPERTS}],
    },
    "heads": {"digit": {"type": "classifier", "classes": 10, "pool": "mean"}, "words": {"type": "language-model"}},
    "tasks": {
        "recognise": {"from": "image", "to": "digit"},
        "caption": {"from": ["image", "text"], "to": "words"},
        "write": {"from": "text", "to": "words"},
    },
}


def model_of(overrides: dict[str, Any] | None = None, seed: int = 0, dtype: Any = "float64") -> Any:
    """A new one, in evaluation."""
    torch.manual_seed(seed)
    return zoo.build(copy.deepcopy(MODEL), overrides, dtype=dtype).eval()


def transformer_of(model: Any, task: str) -> Any:
    """The path of one task as a transformer of its own, with copies of the weights."""
    read, route = model.config.read_by(task), model.config.route(task)
    fields = {"type": "transformer", **{name: getattr(route, name).model_dump() for name in ("embedding", "stack", "head")}}
    single = zoo.build(fields, dtype=str(model.dtype).removeprefix("torch.")).eval()
    places = {"embedding": model.embeddings[read[-1]], "stack": model.stack, "head": model.heads[model.config.tasks[task].to]}
    for name, part in places.items():
        getattr(single, name).load_state_dict(part.state_dict())
    return single


def inputs_of(batch: int = 3, tokens: int = 7, seed: int = 0) -> dict[str, torch.Tensor]:
    """Images and texts."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "pixel_values": torch.randn(batch, 1, 8, 8, generator=generator, dtype=torch.float64),
        "input_ids": torch.randint(0, 256, (batch, tokens), generator=generator),
    }
