"""Hugging Face's T5, T5 v1.1, Flan-T5 and mT5, both ways."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any, ClassVar

from zoo.checkpoint.clip import WantedTower
from zoo.checkpoint.family import Family, Wanted
from zoo.checkpoint.fields import Fields
from zoo.checkpoint.huggingface_clip import tower_tables, tower_taps
from zoo.checkpoint.huggingface_t5_stacks import (
    KINDS,
    TABLES,
    UNUSED,
    HuggingFaceT5Encoder,
    check_class,
    differ,
    first_class,
    is_kind,
    kind_of,
    read_stack,
    stack_rules,
    t5_fields,
    words,
    write_stack,
)
from zoo.checkpoint.rules import Rule, rule
from zoo.errors import ConfigError

SIDES = ("encoder", "decoder")
SCORES = "lm_head.weight"
TRAINING = {"dropout_rate": "stack.block.dropout", "initializer_factor": "init.factor"}
"""Fields of theirs, and ours, that act in training or before it alone."""
DECODER_TAPS = (
    ("decoder.embed_tokens", "embedding"),
    ("decoder.block.{n}.layer.0.layer_norm", "stack.layers.{n}.attention_norm"),
    ("decoder.block.{n}.layer.0.SelfAttention", "stack.layers.{n}.attention"),
    ("decoder.block.{n}.layer.1.layer_norm", "stack.layers.{n}.cross_attention_norm"),
    ("decoder.block.{n}.layer.1.EncDecAttention", "stack.layers.{n}.cross_attention"),
    ("decoder.block.{n}.layer.2.layer_norm", "stack.layers.{n}.feedforward_norm"),
    ("decoder.block.{n}.layer.2.DenseReluDense", "stack.layers.{n}.feedforward"),
    ("decoder.block.{n}", "stack.layers.{n}"),
    ("decoder.final_layer_norm", "stack.final_norm"),
    ("decoder.final_layer_norm >> lm_head", "head"),  # between which theirs scales the tokens, as our head does
)


class HuggingFaceT5(Family):
    """`T5ForConditionalGeneration` and `T5Model`, and mT5's."""

    assembly = "encoder-decoder"
    library = "transformers"
    model_type = "t5"
    kinds: ClassVar[Mapping[str, str]] = KINDS
    heads = ("",)  # no name carries a prefix
    ignored = {
        **dict.fromkeys((*TABLES, SCORES), "a copy of the embedding"),
        UNUSED: "written into old files, read by no code",
    }

    def recognises(self, values: Mapping[str, Any]) -> bool:
        return is_kind(values, self.kinds) and not first_class(values).endswith("EncoderModel")

    def read_config(self, values: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
        kind = kind_of(values, self.kinds)
        end = check_class(values, kind, self.kinds[kind], "Model", "ForConditionalGeneration")
        for each in TABLES:
            if differ(names, words(names), each):
                raise ConfigError(f"{kind}: {each} is not {words(names)}: the two stacks share the vectors of tokens")
        fields = t5_fields(values, kind)
        model = {"type": "encoder-decoder", "share_embeddings": True, **_read_tokens(fields)}
        for side in SIDES:
            model[side] = self.read_side(fields, kind, side)
        scaled = self.read_scaled(fields, kind)
        if end == "ForConditionalGeneration":
            tied = not differ(names, SCORES, words(names))
            scale = model["decoder"]["stack"]["width"] ** -0.5 if scaled else None
            model["decoder"]["head"] = {"type": "language-model", "tied": tied, "scale": scale}
        fields.finish()
        return model

    def with_head(self, values: Mapping[str, Any], head: str | None, names: Collection[str]) -> dict[str, Any] | None:
        end = {None: "Model", "language-model": "ForConditionalGeneration"}.get(head)
        start = self.kinds[kind_of(values, self.kinds)]
        return None if end is None else self.read_config({**values, "architectures": [f"{start}{end}"]}, names)

    def write_config(self, config: Any) -> dict[str, Any]:
        start = self.kinds[self.model_type]
        family = f"Hugging Face's {start}"
        whole = WantedTower(family)
        values = {side: self.write_side(WantedTower(family, f"{side}."), getattr(config, side), side) for side in SIDES}
        layers, alike = values["decoder"].pop("num_layers"), dict(values["decoder"])
        for name, path in TRAINING.items():
            whole.training_only(f"decoder.{path}", alike.pop(name), values["encoder"][name])
        for name, value in alike.items():
            if value != values["encoder"].get(name, value):
                what = f"{family} has no model whose stacks differ in {name}, which is {value!r} here"
                raise ConfigError(f"decoder.stack.block: {what}")
        head = config.decoder.head
        whole.part("decoder.head", head, None, "language-model")
        if head is not None:
            whole.expect("decoder.head.bias", head.bias, False)
            whole.expect("decoder.head.scale", head.scale, None, config.decoder.stack.width**-0.5)
        whole.expect("share_embeddings", config.share_embeddings, True)
        whole.expect("decoder_input", config.decoder_input, "given")
        return {
            "architectures": [f"{start}{'Model' if head is None else 'ForConditionalGeneration'}"],
            "model_type": self.model_type,
            **alike,
            **values["encoder"],
            "num_decoder_layers": layers,
            "decoder_start_token_id": config.start,
            "pad_token_id": config.start if config.padding is None else config.padding,
            **self.write_scores(whole, head),
        }

    def rules(self, config: Any, names: Collection[str] = ()) -> Iterable[Rule]:
        own = [] if getattr(config.decoder.head, "tied", True) else [rule(SCORES, "decoder.head.weight")]
        return [rule(words(names, SCORES), "encoder.embedding.table"), *own]

    def table(self, config: Any, ours: Iterable[str], names: Collection[str] = ()) -> list[Rule]:
        return tower_tables(self, config, ours, {side: self.side_rules(getattr(config, side), side) for side in SIDES}, names)

    def tapped(self, config: Any) -> tuple[tuple[str, str], ...]:
        return tower_taps(config, {"encoder": HuggingFaceT5Encoder.taps, "decoder": DECODER_TAPS})

    def read_side(self, fields: Fields, kind: str, side: str) -> dict[str, Any]:
        """Our fields for the transformer of a side."""
        return read_stack(fields, kind, side)

    def write_side(self, wanted: WantedTower, config: Any, side: str) -> dict[str, Any]:
        """Their fields for our transformer of a side; those that the sides have in common are to agree."""
        return write_stack(wanted, config, side)

    def side_rules(self, config: Any, side: str) -> list[Rule]:
        """The rules for the stack of a side."""
        return stack_rules(config, side)

    def read_scaled(self, fields: Fields, kind: str) -> bool:
        """Whether tokens are scaled before they are scored; in old files that is said by whether they are tied."""
        tied = fields.take("tie_word_embeddings", None) is not False
        scaled = fields.flag("scale_decoder_outputs", tied)
        return scaled and kind == "t5"

    def write_scores(self, wanted: Wanted, head: Any) -> dict[str, bool]:
        """What their config says of how tokens are scored."""
        # theirs of today ties what is equal in the file, whatever this says; earlier ones scaled what they tied
        tied, scaled = head is None or head.tied, head is None or head.scale is not None
        return {"tie_word_embeddings": tied, "scale_decoder_outputs": scaled}


def _read_tokens(fields: Fields) -> dict[str, Any]:
    """What a decoder's text begins with and is filled up with. Without a start, it is padding, as in all of their models."""
    padding = fields.take("pad_token_id", 0)
    padding = None if padding is None else fields.number("pad_token_id", 0)
    if fields.take("decoder_start_token_id", None) is not None:
        return {"start": fields.number("decoder_start_token_id"), "padding": padding}
    if padding is None:
        raise fields.error("decoder_start_token_id", "missing, and no pad_token_id to begin with instead")
    return {"start": padding, "padding": padding}
