"""Hugging Face's Mistral and Qwen2, both ways: Llamas of which layers may see a window of the text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from zoo.checkpoint.family import Wanted
from zoo.checkpoint.fields import Fields
from zoo.checkpoint.huggingface_llama import HuggingFaceLlama, own_fields
from zoo.errors import ConfigError, one_of

LAYERS = {"full_attention": "full", "sliding_attention": "local"}


class HuggingFaceMistral(HuggingFaceLlama):
    """`MistralModel` and the models with a head that are built on it: no biases, and one window for all layers."""

    model_type = "mistral"
    class_name = "Mistral"
    spans: ClassVar[Mapping[str, str]] = {}
    defaults: ClassVar[Mapping[str, Any]] = {
        "vocab_size": 32000, "intermediate_size": 14336, "max_position_embeddings": 131072, "num_key_value_heads": 8,
    }  # fmt: skip
    attentions = ("full", "local")

    def check(self, width: int, heads: int, place: str = "hidden_size") -> None:
        pass  # a width that the heads do not divide is rounded down

    def read_biases(self, fields: Fields) -> dict[str, bool]:
        return {"bias": False, "output_bias": False}

    def read_inner_bias(self, fields: Fields) -> bool:
        return False

    def write_biases(self, wanted: Wanted, attention: Any, feedforward: Any) -> dict[str, Any]:
        for name, value in self.read_biases(Fields({}, "", {})).items():
            wanted.expect(f"stack.block.attention.{name}", getattr(attention, name), value)
        wanted.expect("stack.block.feedforward.bias", feedforward.bias, False)
        return {}

    def read_windows(self, fields: Fields, attention: dict[str, Any], depth: int) -> tuple[dict[str, Any], Any]:
        window = fields.take("sliding_window", self.defaults.get("sliding_window", 4096))
        return (attention if window is None else {**attention, **_local(fields, 4096)}), None

    def write_windows(self, wanted: Wanted, blocks: list[Any]) -> dict[str, Any]:
        windows = windows_of(wanted, blocks)
        if len(set(windows)) > 1:
            raise ConfigError(f"stack.pattern: {wanted.family} has no model whose layers have different windows")
        return {"sliding_window": windows[0]}


class HuggingFaceQwen2(HuggingFaceMistral):
    """`Qwen2Model` and the models with a head that are built on it: biases of queries, keys and values, and a window for
    some of the layers."""

    model_type = "qwen2"
    class_name = "Qwen2"
    spans = HuggingFaceLlama.spans
    defaults: ClassVar[Mapping[str, Any]] = {
        "vocab_size": 151936, "intermediate_size": 22016, "max_position_embeddings": 32768, "num_key_value_heads": 32,
    }  # fmt: skip
    vary = ("type", "window")

    def read_biases(self, fields: Fields) -> dict[str, bool]:
        return {"bias": True, "output_bias": False}

    def read_windows(self, fields: Fields, attention: dict[str, Any], depth: int) -> tuple[dict[str, Any], Any]:
        window = fields.take("sliding_window", 4096) if fields.flag("use_sliding_window", False) else None
        fields.take("sliding_window", None)
        first, listed = fields.number("max_window_layers", 28), fields.take("layer_types", None)
        if listed is None:
            listed = ["full_attention" if window is None or layer < first else "sliding_attention" for layer in range(depth)]
        if not isinstance(listed, list) or len(listed) != depth or any(each not in LAYERS for each in listed):
            raise fields.error("layer_types", f"expected {one_of(LAYERS)} for each of {depth} layers, got {listed!r:.60}")
        if window is None and "sliding_attention" in listed:
            raise fields.error("layer_types", "'sliding_attention' needs use_sliding_window and a sliding_window")
        if window is None or "sliding_attention" not in listed:
            return attention, None
        local = _local(fields, 4096)
        if "full_attention" not in listed:
            return {**attention, **local}, None
        return attention, _shortest([{} if each == "full_attention" else {"attention": local} for each in listed])

    def write_windows(self, wanted: Wanted, blocks: list[Any]) -> dict[str, Any]:
        windows = windows_of(wanted, blocks)
        known = sorted({window for window in windows if window is not None})
        if len(known) > 1:
            raise ConfigError(f"stack.pattern: {wanted.family} has no model with windows of different sizes")
        if not known:
            return {"use_sliding_window": False}
        types = ["full_attention" if window is None else "sliding_attention" for window in windows]
        first = types.index("sliding_attention")
        return {"use_sliding_window": True, "sliding_window": known[0], "max_window_layers": first, "layer_types": types}


def windows_of(wanted: Wanted, blocks: list[Any]) -> list[int | None]:
    """How many tokens each layer sees, the one that looks among them; None for all."""
    for attention in (block.attention for block in blocks if block.attention.type == "local"):
        for name in own_fields(attention) - {"type", "window"}:
            default = type(attention).model_fields[name].get_default(call_default_factory=True)
            wanted.expect(f"stack.block.attention.{name}", getattr(attention, name), default)
    return [None if block.attention.type == "full" else block.attention.window + 1 for block in blocks]


def _local(fields: Fields, default: int) -> dict[str, Any]:
    window = fields.number("sliding_window", default)
    if window < 1:
        raise fields.error("sliding_window", f"expected 1 or more, got {window}")
    return {"type": "local", "window": window - 1}


def _shortest(kinds: list[Any]) -> list[Any]:
    """The shortest pattern that, repeated, gives these kinds of layers."""
    return next(
        kinds[:length]
        for length in range(1, len(kinds) + 1)
        if all(kinds[layer % length] == k for layer, k in enumerate(kinds))
    )
