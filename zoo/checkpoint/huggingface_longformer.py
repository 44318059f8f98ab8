"""Hugging Face's Longformer, both ways: RoBERTa whose tokens see a window of the text, and global tokens all of it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from zoo.checkpoint.family import Wanted
from zoo.checkpoint.fields import Fields
from zoo.checkpoint.huggingface_roberta import HuggingFaceRoberta
from zoo.checkpoint.rules import Rule, module_rules
from zoo.errors import ConfigError

CLASSIFIER = "LongformerForSequenceClassification"


class HuggingFaceLongformer(HuggingFaceRoberta):
    """`LongformerModel` and the models with a head that are built on it.

    Those that find answers or choose one look for separators to say which tokens are global, and are refused. For all other
    heads, as there, a call says it by `global_attention_mask`; of a classifier it is the first token where a call says nothing.
    Their window of 512 is 256 here: tokens on each side.
    """

    model_type = "longformer"
    class_name = "Longformer"
    architectures = {
        end: head for end, head in HuggingFaceRoberta.architectures.items() if head not in ("span", "multiple-choice")
    }
    prefix = "longformer."
    ignored = {name.replace("roberta.", "longformer."): why for name, why in HuggingFaceRoberta.ignored.items()}
    taps = tuple((theirs.replace("roberta.", "longformer."), ours) for theirs, ours in HuggingFaceRoberta.taps)

    def read_config(self, values: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
        fields = Fields(values, self.model_type, {})
        fields.require("is_decoder", False, why="every token sees those behind it too")
        fields.require("attention_mode", "longformer", why="only windows with global tokens")
        fields.require("ignore_attention_mask", False, why="padding is masked")
        window, depth = fields.take("attention_window", 512), fields.number("num_hidden_layers", 12)
        windows = window if isinstance(window, list) else [window] * depth
        whole = all(isinstance(each, int) and not isinstance(each, bool) and each > 0 and each % 2 == 0 for each in windows)
        if not whole or len(windows) != depth:
            raise fields.error(
                "attention_window", f"expected an even number above 0, or one for each layer, got {window!r:.60}"
            )
        known = {"attention_window", "attention_mode", "ignore_attention_mask", "onnx_export"}
        known.add("classifier_dropout")  # which is read by none of their classes
        rest = {"vocab_size": 30522, **{name: value for name, value in values.items() if name not in known}}
        model = super().read_config(rest, names)
        attention = model["stack"]["block"]["attention"]
        attention |= {"type": "local", "window": windows[0] // 2, "global_projections": True, "padding": "zero"}
        if (values.get("architectures") or [None])[0] == CLASSIFIER:
            attention["global_tokens"] = 1
        if len(set(windows)) > 1:
            model["stack"]["pattern"] = [{"attention": {"window": each // 2}} for each in windows]
        return model

    def write_config(self, config: Any) -> dict[str, Any]:
        wanted = Wanted(f"Hugging Face's {self.class_name}")
        self._check_embedding(wanted, config.embedding)
        wanted.part("stack", config.stack, "uniform")
        blocks = config.stack.blocks()
        values = super().write_config(_as_roberta(wanted, config, blocks))
        kind = getattr(config.head, "type", None)
        for name, value in {
            "causal": False, "global_projections": True, "padding": "zero", "global_tokens": 1 if kind == "classifier" else 0,
        }.items():  # fmt: skip
            wanted.expect(f"stack.block.attention.{name}", getattr(blocks[0].attention, name), value)
        windows = [2 * block.attention.window for block in blocks]
        if min(windows) < 4 or any(max(windows) % each for each in windows):
            raise ConfigError(
                f"stack.block.attention.window: {wanted.family} can compute windows of 2 and more that divide the largest of"
                f" all layers, not {sorted({each // 2 for each in windows})}"
            )
        dropout = values.pop("classifier_dropout", values["hidden_dropout_prob"])
        wanted.training_only("head.dropout", dropout, values["hidden_dropout_prob"])
        return {**values, "attention_window": windows[0] if len(set(windows)) == 1 else windows}

    def rules(self, config: Any, names: Collection[str] = ()) -> Iterable[Rule]:
        layer, ours = f"{self.prefix}encoder.layer.{{n}}.attention.self", "stack.layers.{n}.attention"
        table = list(super().rules(config, names))
        for name in ("query", "key", "value"):
            table += module_rules(f"{layer}.{name}_global", f"{ours}.global_{name}")
        return table


def _as_roberta(wanted: Wanted, config: Any, blocks: list[Any]) -> Any:
    """The config with full attention, which must be the same in all layers but for the window."""
    shared = []
    for block in blocks:
        wanted.part("stack.block.attention", block.attention, "local")
        shared.append(block.model_copy(update={"attention": block.attention.model_copy(update={"window": 0})}))
    if any(block != shared[0] for block in shared):
        raise ConfigError(f"stack.pattern: {wanted.family} has no model whose layers differ in more than the window")
    full = blocks[0].attention.model_copy(update={"type": "full"})
    stack = config.stack.model_copy(update={"pattern": None, "block": blocks[0].model_copy(update={"attention": full})})
    return config.model_copy(update={"stack": stack})
