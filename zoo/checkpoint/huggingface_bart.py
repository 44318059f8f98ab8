"""Hugging Face's BART, both ways, and what Marian has as BART does."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any, ClassVar

from zoo.checkpoint.clip import WantedTower
from zoo.checkpoint.family import Wanted
from zoo.checkpoint.fields import ACTIVATIONS, WRITTEN_ACTIVATIONS, Fields
from zoo.checkpoint.huggingface_decoder import OTHER_HEAD
from zoo.checkpoint.huggingface_encoder_decoder import (
    SIDES,
    HuggingFaceEncoderDecoder,
    only_in_training,
    scores_bias,
    sequence_fields,
    token,
)
from zoo.checkpoint.rules import Batched, Rule, module_rules, rule
from zoo.config import Config

EPS = 1e-5
"""That of torch's own layer norm, which no config says."""
BIAS = "final_logits_bias"
WITHOUT_INFLUENCE = (
    "classifier_dropout", "classif_dropout", "_num_labels", "num_labels", "output_past",  # of another head
    "force_bos_token_to_be_generated", "save_step",  # arguments of generation
    "init_std",  # read beside the fields
)  # fmt: skip
FIRST_FILES = {
    "normalize_before": (False, "norms stand behind the branches"),
    "add_final_layer_norm": (False, "there is no norm behind the last block"),
    "add_bias_logits": (False, "the scores have no bias that is learned"),
}
"""What the first files say of relatives that were never part of this family."""


class HuggingFaceBart(HuggingFaceEncoderDecoder):
    """`BartModel` and `BartForConditionalGeneration`."""

    model_type = "bart"
    class_name = "Bart"
    prefix = "model."
    heads = ("lm_head.", BIAS, "classification_head.", "qa_outputs.")
    ignored = {
        "model.shared.weight": "no side looks at it, or both have it as their own",
        "model.encoder.embed_tokens.weight": "a copy of the vectors that both sides share",
        "model.decoder.embed_tokens.weight": "a copy of the vectors that both sides share",
        "lm_head.weight": f"a copy of the decoder's vectors, or {OTHER_HEAD}",
        BIAS: f"zero for each token, or {OTHER_HEAD}",
        "model.encoder.version": "a number that no code reads",
        "model.decoder.version": "a number that no code reads",
        "classification_head.*": OTHER_HEAD,
        "qa_outputs.*": OTHER_HEAD,
    }
    defaults: ClassVar[Mapping[str, Any]] = {"vocab_size": 50265, "pad_token_id": 1, "decoder_start_token_id": 2}
    """What an absent field means, where that differs from Marian's."""
    embedding_norm: ClassVar[bool] = True
    """Whether the sum of a token's vector and its position is normed."""
    decoder_input: ClassVar[str] = "shifted"
    """What the decoder reads where nobody says."""
    embedding_tap: ClassVar[str] = "model.{0}.layernorm_embedding"
    """Where the sum of tokens and positions, normed, can be seen."""

    def read_config(self, values: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
        kind = self.head_type(values)
        fields = sequence_fields(values, self.model_type)
        for name in WITHOUT_INFLUENCE:
            fields.take(name, None)
        self._check_first_files(fields)
        tied = fields.flag("tie_word_embeddings", True)
        vocabularies = self._vocabularies(fields)
        shares = self._shares(fields, vocabularies) and tied
        shared, tied = self.read_tables(names, shares, tied)
        padding, start = fields.take("pad_token_id", self.defaults["pad_token_id"]), self.defaults["decoder_start_token_id"]
        if padding is not None:
            token(fields, "pad_token_id", self.defaults["pad_token_id"], min(vocabularies))
        sides = {name: self._read_side(fields, name, words) for name, words in zip(SIDES, vocabularies)}
        bias = scores_bias(names, self.plain_names(names), BIAS)
        head = None if kind is None else {"type": kind, "tied": tied, "bias": bias}
        model = {
            "type": self.assembly,
            "encoder": sides["encoder"],
            "decoder": {**sides["decoder"], "head": head},
            "share_embeddings": shared,
            "start": token(fields, "decoder_start_token_id", start, vocabularies[1]),
            "decoder_input": self.decoder_input,
        }
        only_in_training(fields, *(f"{name}_layerdrop" for name in SIDES))
        fields.finish()
        self.check_tensors(names, model)
        return model

    def write_config(self, config: Any) -> dict[str, Any]:
        family = f"Hugging Face's {self.class_name}"
        wanted, encoder, decoder = Wanted(family), config.encoder, config.decoder
        for name in SIDES:
            self._check_side(WantedTower(family, f"{name}."), getattr(config, name), decodes=name == "decoder")
        wanted.part("decoder.head", decoder.head, *self.architectures.values())
        if decoder.head is not None:
            wanted.expect("decoder.head.scale", decoder.head.scale, None, 1.0)
        for path, mine, others in (
            ("embedding.padding", decoder.embedding.padding, encoder.embedding.padding),
            ("embedding.scale", decoder.embedding.scale, encoder.embedding.scale),
            ("embedding.position.length", decoder.embedding.position.length, encoder.embedding.position.length),
            ("feedforward.activation", *(each.stack.block.feedforward.activation for each in (decoder, encoder))),
        ):
            wanted.equal(f"decoder.{path}", mine, f"encoder.{path}", others)
        padding = config.padding if config.padding is not None else decoder.embedding.padding
        wanted.equal("padding", padding, "decoder.embedding.padding", decoder.embedding.padding)
        wanted.expect("decoder_input", config.decoder_input, self.decoder_input)
        block = encoder.stack.block
        dropouts = {
            "dropout": block.dropout,
            "attention_dropout": block.attention.dropout,
            "activation_dropout": block.feedforward.dropout,
        }
        self._check_dropouts(wanted, config, dropouts)
        return {
            "architectures": self.class_of(decoder.head),
            "model_type": self.model_type,
            "is_encoder_decoder": True,
            "vocab_size": encoder.embedding.vocabulary,
            **self._write_tables(wanted, config),
            "d_model": encoder.stack.width,
            **{
                f"{name}_{field}": value
                for name in SIDES
                for field, value in self._write_side(getattr(config, name).stack).items()
            },
            "max_position_embeddings": self._write_length(encoder.embedding.position),
            "activation_function": WRITTEN_ACTIVATIONS[block.feedforward.activation],
            "scale_embedding": encoder.embedding.scale not in (None, 1.0),
            "pad_token_id": decoder.embedding.padding,
            "decoder_start_token_id": config.start,
            "init_std": getattr(encoder.init, "std", 0.02),
            **dropouts,
        }

    def side_rules(self, name: str, side: Any) -> Iterable[Rule]:
        theirs, ours = f"model.{name}.layers.{{n}}", "stack.layers.{n}"
        parts = {
            "self_attn_layer_norm": "attention_norm",
            "encoder_attn_layer_norm": "cross_attention_norm",
            "fc1": "feedforward.up",
            "fc2": "feedforward.down",
            "final_layer_norm": "feedforward_norm",
        }
        for their_part, our_part in {"self_attn": "attention", "encoder_attn": "cross_attention"}.items():
            for letter, word in {"q_proj": "query", "k_proj": "key", "v_proj": "value", "out_proj": "output"}.items():
                parts[f"{their_part}.{letter}"] = f"{our_part}.{word}"
        return [
            rule(f"model.{name}.embed_positions.weight", "embedding.position.table"),
            *module_rules(f"model.{name}.layernorm_embedding", "embedding.norm"),
            *(each for own, mine in parts.items() for each in module_rules(f"{theirs}.{own}", f"{ours}.{mine}")),
        ]

    def rules(self, config: Any, names: Collection[str] = ()) -> Iterable[Rule]:
        return [*super().rules(config, names), rule(BIAS, "decoder.head.bias", operation=Batched())]

    def side_taps(self, name: str) -> tuple[tuple[str, str], ...]:
        theirs, ours = f"model.{name}.layers.{{n}}", "stack.layers.{n}"
        across = (
            (f"{theirs}.encoder_attn", f"{ours}.cross_attention"),
            (f"{theirs}.encoder_attn_layer_norm", f"{ours}.cross_attention_norm"),
        )
        return (
            (self.embedding_tap.format(name), "embedding"),
            (f"{theirs}.self_attn", f"{ours}.attention"),
            (f"{theirs}.self_attn_layer_norm", f"{ours}.attention_norm"),
            *(across if name == "decoder" else ()),
            (f"{theirs}.fc1 > {theirs}.fc2", f"{ours}.feedforward"),
            (f"{theirs}.final_layer_norm", f"{ours}.feedforward_norm"),
            (theirs, ours),
            *((("lm_head", "head"),) if name == "decoder" else ()),
        )

    def check_tensors(self, names: Collection[str], model: Mapping[str, Any]) -> None:
        """Raises where the file holds what our model has computed, and something else than it would be."""

    def _check_first_files(self, fields: Fields) -> None:
        for name, (value, why) in FIRST_FILES.items():
            fields.require(name, value, why=why)
        fields.require("normalize_embedding", self.embedding_norm, why="tells of a relative of this family")
        fields.require("static_position_embeddings", not self.embedding_norm, why="tells of a relative of this family")
        fields.take("extra_pos_embeddings", 2)

    def _vocabularies(self, fields: Fields) -> tuple[int, int]:
        words = fields.number("vocab_size", self.defaults["vocab_size"])
        return words, words

    def _shares(self, fields: Fields, vocabularies: tuple[int, int]) -> bool:
        """Whether the config means both sides to have the same vectors, where vectors are tied."""
        return True

    def _read_position(self, length: int) -> dict[str, Any]:
        return {"type": "learned", "length": length, "unused": 2}

    def _read_side(self, fields: Fields, name: str, vocabulary: int) -> dict[str, Any]:
        width = fields.number("hidden_size", fields.number("d_model", 1024))
        depth, heads = fields.number(f"{name}_layers", 12), fields.number(f"{name}_attention_heads", 16)
        if name == "encoder":  # the names that all their models know overrule its own
            depth, heads = fields.number("num_hidden_layers", depth), fields.number("num_attention_heads", heads)
        norm = {"type": "layer-norm", "eps": EPS}
        attention = {"type": "full", "heads": heads, "dropout": fields.number("attention_dropout", 0.0, whole=False)}
        across = {"cross_attention": attention} if name == "decoder" else {}
        dropout = fields.number("dropout", 0.1, whole=False)
        scale = math.sqrt(width) if fields.flag("scale_embedding", False) else None
        return {
            "type": "transformer",
            "init": {"type": "normal", "std": fields.values.get("init_std", 0.02)},
            "embedding": {
                "type": "tokens", "vocabulary": vocabulary, "dropout": dropout, "scale": scale,
                "padding": fields.take("pad_token_id", self.defaults["pad_token_id"]),
                "position": self._read_position(fields.number("max_position_embeddings", 1024)),
                "norm": norm if self.embedding_norm else None,
            },
            "stack": {
                "type": "uniform", "width": width, "depth": depth,
                "block": {
                    "type": "residual", "order": "post", "norm": norm, "dropout": dropout,
                    "attention": {**attention, "causal": name == "decoder"},
                    **across,
                    "feedforward": {
                        "type": "mlp", "hidden": fields.number(f"{name}_ffn_dim", 4096),
                        "activation": fields.choice("activation_function", ACTIVATIONS, "gelu"),
                        "dropout": fields.number("activation_dropout", 0.0, whole=False),
                    },
                },
            },
        }  # fmt: skip

    def _write_side(self, stack: Any) -> dict[str, Any]:
        return {
            "layers": stack.depth,
            "attention_heads": stack.block.attention.heads,
            "ffn_dim": stack.block.feedforward.inner(stack.width),
        }

    def _write_tables(self, wanted: Wanted, config: Any) -> dict[str, Any]:
        """What their config says of whose vectors tokens have."""
        head = config.decoder.head
        if head is not None:
            wanted.equal("decoder.head.tied", head.tied, "share_embeddings", config.share_embeddings)
        words = config.encoder.embedding.vocabulary
        wanted.equal("decoder.embedding.vocabulary", config.decoder.embedding.vocabulary, "the encoder's", words)
        return {"tie_word_embeddings": config.share_embeddings}

    def _write_length(self, position: Any) -> int:
        length: int = position.length
        return length

    def _check_side(self, wanted: Wanted, side: Any, decodes: bool) -> None:
        """Raises where a side is none of BART's: norms behind the branches, biases everywhere, nothing behind the stack."""
        stack, width = side.stack, side.stack.width
        self._check_embedding(wanted, side.embedding, width)
        wanted.part("stack", stack, "uniform")
        for name, value in {"pattern": None, "position": None, "final_norm": None}.items():
            wanted.expect(f"stack.{name}", getattr(stack, name), value)
        block = stack.block
        wanted.part("stack.block", block, "residual")
        wanted.expect("stack.block.order", block.order, "post")
        wanted.expect("stack.block.layer_scale", block.layer_scale, None)
        self._check_norm(wanted, "stack.block.norm", block.norm)
        heads = block.attention.heads
        for name in ("attention", "cross_attention") if decodes else ("attention",):
            attention = getattr(block, name)
            wanted.part(f"stack.block.{name}", attention, "full")
            for field, allowed in {
                "heads": (heads,), "kv_heads": (None, heads), "head_size": (None, width // heads), "bias": (True,),
                "output_bias": (True,), "qk_norm": (None,), "output_norm": (None,), "position": (None,),
                "scale": (None, (width // heads) ** -0.5), "causal": (decodes and name == "attention",),
            }.items():  # fmt: skip
                wanted.expect(f"stack.block.{name}.{field}", getattr(attention, field), *allowed)
        if not decodes:
            wanted.expect("stack.block.cross_attention", block.cross_attention, None)
        wanted.part("stack.block.feedforward", block.feedforward, "mlp")
        for name, value in {"bias": True, "norm": None}.items():
            wanted.expect(f"stack.block.feedforward.{name}", getattr(block.feedforward, name), value)
        for name in ("drop_path", "dropout"):
            wanted.training_only(f"stack.{name}", getattr(stack, name))

    def _check_embedding(self, wanted: Wanted, embedding: Any, width: int) -> None:
        wanted.part("embedding", embedding, "tokens")
        for name, value in {"segments": 0, "segment_vectors": "own", "count": "all"}.items():
            wanted.expect(f"embedding.{name}", getattr(embedding, name), value)
        wanted.expect("embedding.scale", embedding.scale, None, 1.0, math.sqrt(width))
        self._check_position(wanted, embedding.position)
        if self.embedding_norm:
            self._check_norm(wanted, "embedding.norm", embedding.norm)
        else:
            wanted.expect("embedding.norm", embedding.norm, None)

    def _check_position(self, wanted: Wanted, position: Any) -> None:
        wanted.part("embedding.position", position, "learned")
        wanted.expect("embedding.position.unused", position.unused, 2)

    def _check_norm(self, wanted: Wanted, path: str, norm: Config | None) -> None:
        wanted.part(path, norm, "layer-norm")
        for name, value in {"eps": EPS, "bias": True}.items():
            wanted.expect(f"{path}.{name}", getattr(norm, name), value)

    def _check_dropouts(self, wanted: Wanted, config: Any, dropouts: Mapping[str, float]) -> None:
        """Warns of shares that are dropped in training at other places than theirs."""
        for name in SIDES:
            side = getattr(config, name)
            block, dropout = side.stack.block, dropouts["dropout"]
            wanted.training_only(f"{name}.embedding.dropout", side.embedding.dropout, dropout)
            wanted.training_only(f"{name}.stack.block.dropout", block.dropout, dropout)
            given = block.attention_output_dropout
            wanted.training_only(f"{name}.stack.block.attention_output_dropout", dropout if given is None else given, dropout)
            wanted.training_only(
                f"{name}.stack.block.feedforward.dropout", block.feedforward.dropout, dropouts["activation_dropout"]
            )
            for part in ("attention", "cross_attention"):
                if getattr(block, part) is not None:
                    path, value = f"{name}.stack.block.{part}.dropout", getattr(block, part).dropout
                    wanted.training_only(path, value, dropouts["attention_dropout"])
