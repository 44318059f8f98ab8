"""What a CLIP is, for all libraries that have one: which towers can be said there, and what is read of each."""

from __future__ import annotations

from typing import Any

from zoo.checkpoint.family import Wanted
from zoo.config import Config


class WantedTower(Wanted):
    """Checks within one tower of a model; messages name the place in the whole model."""

    def __init__(self, family: str, place: str = "") -> None:
        super().__init__(family)
        self.place = place

    def expect(self, path: str, value: Any, *allowed: Any) -> None:
        super().expect(self.place + path, value, *allowed)

    def training_only(self, path: str, value: float, theirs: float = 0.0) -> None:
        super().training_only(self.place + path, value, theirs)

    def equal(self, path: str, value: Any, other: str, expected: Any) -> None:
        super().equal(self.place + path, value, self.place + other, expected)


def tower(width: int, depth: int, heads: int, hidden: int, norm: Any, activation: str, **attention: Any) -> dict[str, Any]:
    """Our fields for the stack of a tower."""
    return {
        "type": "uniform",
        "width": width,
        "depth": depth,
        "block": {
            "type": "residual", "order": "pre", "norm": norm,
            "attention": {"type": "full", "heads": heads, **attention},
            "feedforward": {"type": "mlp", "hidden": hidden, "activation": activation},
        },
    }  # fmt: skip


def patches(image: Any, patch: Any, channels: int, norm: Any, resample: str = "bicubic") -> dict[str, Any]:
    """Our fields for the embedding of images."""
    position = {"type": "learned", "resample": resample}
    return {
        "type": "patch", "image_size": image, "patch_size": patch, "channels": channels, "bias": False,
        "position": position, "output_norm": norm,
    }  # fmt: skip


def check_stack(wanted: Wanted, config: Any, causal: bool) -> None:
    """Raises where the blocks of a tower are none of CLIP's."""
    stack = config.stack
    wanted.part("stack", stack, "uniform")
    wanted.expect("stack.pattern", stack.pattern, None)
    block = stack.block
    wanted.part("stack.block", block, "residual")
    wanted.expect("stack.block.order", block.order, "pre")
    wanted.expect("stack.block.layer_scale", block.layer_scale, None)
    check_norm(wanted, "stack.block.norm", block.norm)
    wanted.part("stack.block.attention", block.attention, "full")
    heads = block.attention.heads
    size = stack.width // heads
    for name, allowed in {
        "kv_heads": (None, heads), "head_size": (None, size), "bias": (True,), "output_bias": (True,), "qk_norm": (None,),
        "output_norm": (None,), "causal": (causal,), "scale": (None, size**-0.5), "position": (None,),
    }.items():  # fmt: skip
        wanted.expect(f"stack.block.attention.{name}", getattr(block.attention, name), *allowed)
    wanted.part("stack.block.feedforward", block.feedforward, "mlp")
    wanted.expect("stack.block.feedforward.bias", block.feedforward.bias, True)
    wanted.expect("stack.block.feedforward.norm", block.feedforward.norm, None)
    for path, value in {
        "stack.block.dropout": block.dropout,
        "stack.block.attention_output_dropout": block.attention_output_dropout or 0.0,
        "stack.block.feedforward.dropout": block.feedforward.dropout,
        "stack.drop_path": stack.drop_path,
    }.items():
        wanted.training_only(path, value)


def check_images(wanted: Wanted, config: Any, *heads: str) -> None:
    """Raises where a tower of images is none of CLIP's: a norm behind the embedding, and one behind the pool."""
    embedding, norm = config.embedding, config.stack.block.norm
    wanted.part("embedding", embedding, "patch")
    for name, value in {
        "class_token": True, "registers": 0, "bias": False, "prefix_position": True, "norm": None, "edges": "cut",
    }.items():  # fmt: skip
        wanted.expect(f"embedding.{name}", getattr(embedding, name), value)
    wanted.part("embedding.position", embedding.position, "learned")
    # how a table is resampled is an argument of the call; no weight depends on it
    wanted.expect("embedding.position.resample", embedding.position.resample, "bicubic", "bicubic-antialias")
    wanted.equal("embedding.output_norm", embedding.output_norm, "stack.block.norm", norm)
    check_stack(wanted, config, causal=False)
    wanted.part("stack.final_norm", config.stack.final_norm, None)
    wanted.part("head", config.head, *heads)
    wanted.part("head.pool", config.head.pool, "class-token")
    wanted.equal("head.norm", config.head.norm, "stack.block.norm", norm)
    wanted.training_only("embedding.dropout", embedding.dropout)
    _check_head(wanted, config.head)


def check_texts(wanted: Wanted, config: Any, *heads: str) -> None:
    """Raises where a tower of texts is none of CLIP's: causal, and pooled behind the last norm where the text ends."""
    embedding = config.embedding
    wanted.part("embedding", embedding, "tokens")
    for name, value in {"segments": 0, "norm": None, "padding": None, "count": "all", "segment_vectors": "own"}.items():
        wanted.expect(f"embedding.{name}", getattr(embedding, name), value)
    wanted.part("embedding.position", embedding.position, "learned")
    check_stack(wanted, config, causal=True)
    wanted.equal("stack.final_norm", config.stack.final_norm, "stack.block.norm", config.stack.block.norm)
    wanted.part("head", config.head, *heads)
    wanted.part("head.pool", config.head.pool, "end-of-text")
    wanted.expect("head.norm", config.head.norm, None)
    wanted.training_only("embedding.dropout", embedding.dropout)
    _check_head(wanted, config.head)


def check_norm(wanted: Wanted, path: str, norm: Any) -> None:
    """Raises where a norm is none of torch's layer norm with a bias."""
    wanted.part(path, norm, "layer-norm")
    wanted.expect(f"{path}.bias", norm.bias, True)


def _check_head(wanted: Wanted, head: Config) -> None:
    for name, value in {"bias": False, "projection": False}.items():
        if name in type(head).model_fields:
            wanted.expect(f"head.{name}", getattr(head, name), value)
