"""Hugging Face's Llama, both ways, and what its relatives share with it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any, ClassVar

from zoo.attention.base import AttentionConfig
from zoo.checkpoint.family import Wanted
from zoo.checkpoint.fields import ACTIVATIONS, WRITTEN_ACTIVATIONS, Fields, text_fields
from zoo.checkpoint.huggingface_decoder import OTHER_HEAD, HuggingFaceDecoder, alike, check_causal_blocks
from zoo.checkpoint.huggingface_rotary import read_rotary, write_rotary
from zoo.checkpoint.rules import Rule, module_rules, rule
from zoo.errors import ConfigError

LAYER = "model.layers.{n}"
PARTS = {
    "input_layernorm": "attention_norm",
    "self_attn.q_proj": "attention.query",
    "self_attn.k_proj": "attention.key",
    "self_attn.v_proj": "attention.value",
    "self_attn.o_proj": "attention.output",
    "post_attention_layernorm": "feedforward_norm",
    "mlp.gate_proj": "feedforward.gate",
    "mlp.up_proj": "feedforward.up",
    "mlp.down_proj": "feedforward.down",
}
"""The modules of a layer, theirs and ours."""
TAPS = (
    ("model.embed_tokens", "embedding"),
    (f"{LAYER}.input_layernorm", "stack.layers.{n}.attention_norm"),
    (f"{LAYER}.self_attn", "stack.layers.{n}.attention"),
    (f"{LAYER}.post_attention_layernorm", "stack.layers.{n}.feedforward_norm"),
    (f"{LAYER}.mlp", "stack.layers.{n}.feedforward"),
    (LAYER, "stack.layers.{n}"),
    ("model.norm", "stack.final_norm"),
    ("lm_head", "head"),
    ("score", "head.output"),
    ("qa_outputs", "head.output"),
)


class HuggingFaceLlama(HuggingFaceDecoder):
    """`LlamaModel` and the models with a head that are built on it; its relatives say what they have otherwise."""

    model_type = "llama"
    class_name = "Llama"
    prefix = "model."
    words = "embed_tokens.weight"
    spans: ClassVar[Mapping[str, str]] = {"ForQuestionAnswering": "transformer."}
    ignored = {
        "model.layers.*.self_attn.rotary_emb.inv_freq": "computed from theta",
        "model.rotary_emb.inv_freq": "computed from theta",
        "lm_head.weight": f"a copy of the embedding, or {OTHER_HEAD}",
        "score.*": OTHER_HEAD,
        "qa_outputs.*": OTHER_HEAD,
    }
    # a model that finds answers calls its body otherwise
    taps = tuple((theirs.replace("model.", start), ours) for start in ("model.", "transformer.") for theirs, ours in TAPS)
    defaults: ClassVar[Mapping[str, Any]] = {
        "vocab_size": 32000, "intermediate_size": 11008, "max_position_embeddings": 2048, "num_key_value_heads": None,
    }  # fmt: skip
    """What absent fields mean."""
    attentions: ClassVar[tuple[str, ...]] = ("full",)
    """The types of attention that a layer may have."""
    feedforward: ClassVar[str] = "gated"
    """The type of feed-forward that layers have."""
    vary: ClassVar[tuple[str, ...]] = ()
    """The fields of attention in which layers may differ."""

    def read_config(self, values: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
        fields = text_fields(values, self.model_type)
        for name in ("is_decoder", "pretraining_tp"):  # which it always is, and which splits products without changing them
            fields.take(name, None)
        width, heads = fields.number("hidden_size", 4096), fields.number("num_attention_heads", 32)
        depth = fields.number("num_hidden_layers", 32)
        head_size = fields.take("head_dim", None)
        head_size = width // max(heads, 1) if head_size is None else fields.number("head_dim")
        kv_heads = fields.take("num_key_value_heads", self.defaults["num_key_value_heads"])
        length = fields.number("max_position_embeddings", self.defaults["max_position_embeddings"])
        vocabulary = fields.number("vocab_size", self.defaults["vocab_size"])
        padding = fields.take("pad_token_id", None)
        padding = None if padding is None else fields.number("pad_token_id")
        eps = fields.number("rms_norm_eps", self.defaults.get("rms_norm_eps", 1e-6), whole=False)
        norm = {"type": "rms-norm", "eps": eps, "precision": "float32"}
        attention = {
            "type": "full", "heads": heads, "causal": True,
            "kv_heads": heads if kv_heads is None else fields.number("num_key_value_heads", kv_heads),
            "head_size": None if head_size * heads == width else head_size,
            "dropout": fields.number("attention_dropout", 0.0, whole=False),
            "position": read_rotary(fields, length, head_size, theta=self.defaults.get("rope_theta", 10000.0)),
            **self.read_biases(fields),
        }  # fmt: skip
        attention, pattern = self.read_windows(fields, attention, depth)
        model = {
            "type": "transformer",
            "init": {"type": "normal", "std": values.get("initializer_range") or 0.02},
            "embedding": {
                "type": "tokens",
                "vocabulary": vocabulary,
                # a negative one counts from the end
                "padding": padding if padding is None or padding >= 0 else vocabulary + padding,
            },
            "stack": {
                "type": "uniform",
                "width": width,
                "depth": depth,
                "pattern": pattern,
                "final_norm": norm,
                "block": {
                    "type": "residual", "order": "pre", "norm": norm, "attention": attention,
                    "feedforward": self.read_feedforward(fields),
                },
            },
            "head": self.read_head(fields, names, False, padding),
        }  # fmt: skip
        self.check(width, heads)
        fields.finish()
        return model

    def write_config(self, config: Any) -> dict[str, Any]:
        wanted = Wanted(f"Hugging Face's {self.class_name}")
        embedding, stack = config.embedding, config.stack
        wanted.part("embedding", embedding, "tokens")
        for name, value in {"segments": 0, "norm": None, "count": "all", "position": None}.items():
            wanted.expect(f"embedding.{name}", getattr(embedding, name), value)
        blocks = check_causal_blocks(wanted, stack)
        block, attention = blocks[0], blocks[0].attention
        wanted.part("stack.block.norm", block.norm, "rms-norm")  # in whatever precision: float32 has the same
        for each in blocks:
            wanted.part("stack.block.attention", each.attention, *self.attentions)
            wanted.part("stack.block.feedforward", each.feedforward, self.feedforward)
        feedforward, experts = self.write_feedforward(wanted, block.feedforward)
        alike(wanted, blocks, *self.vary, checked={name for each in blocks for name in own_fields(each.attention)})
        head_size = attention.head_size or stack.width // attention.heads
        wanted.expect("stack.block.attention.scale", attention.scale, None, head_size**-0.5)
        self.check(stack.width, attention.heads, "stack.width")
        values = {
            "model_type": self.model_type,
            "vocab_size": embedding.vocabulary,
            "pad_token_id": embedding.padding,
            "hidden_size": stack.width,
            "intermediate_size": feedforward.inner(stack.width),
            "num_hidden_layers": stack.depth,
            "num_attention_heads": attention.heads,
            "num_key_value_heads": attention.kv_heads or attention.heads,
            "head_dim": head_size,
            "hidden_act": WRITTEN_ACTIVATIONS[feedforward.activation],
            "attention_dropout": attention.dropout,
            "rms_norm_eps": block.norm.eps,
            "initializer_range": getattr(config.init, "std", 0.02),
            **experts,
            **self.write_biases(wanted, attention, feedforward),
            **self.write_windows(wanted, blocks),
            **write_rotary(wanted, attention.position),
        }
        head = self.write_head(wanted, config.head)
        if "pad_token_id" in head:
            wanted.equal("head.pool.padding", head["pad_token_id"], "embedding.padding", embedding.padding)
        for path, dropout in {
            "embedding.dropout": embedding.dropout,
            "stack.drop_path": stack.drop_path,
            "stack.block.dropout": block.dropout,
            "stack.block.attention_output_dropout": block.attention_output_dropout or 0.0,
            "stack.block.feedforward.dropout": feedforward.dropout,
        }.items():
            wanted.training_only(path, dropout)
        return values | head

    def rules(self, config: Any, names: Collection[str] = ()) -> Iterable[Rule]:
        body = self.body(config.head, names)
        return [
            self.words_rule(config.head, names),
            *(
                each
                for theirs, ours in PARTS.items()
                for each in module_rules(f"{body}layers.{{n}}.{theirs}", f"stack.layers.{{n}}.{ours}")
            ),
            rule(f"{body}norm.weight", "stack.final_norm.weight"),
            *self.head_rules(config.head, names),
        ]

    def check(self, width: int, heads: int, place: str = "hidden_size") -> None:
        """Raises where the family has no such sizes."""
        if heads > 0 and width % heads:
            raise ConfigError(f"{place}: {width} is no multiple of the {heads} heads, as {self.class_name} needs it")

    def read_biases(self, fields: Fields) -> dict[str, bool]:
        """Which projections of attention have a bias."""
        bias = fields.flag("attention_bias", False)
        return {"bias": bias, "output_bias": bias}

    def read_feedforward(self, fields: Fields) -> dict[str, Any]:
        """The feed-forward of the blocks."""
        return {
            "type": "gated",
            "hidden": fields.number("intermediate_size", self.defaults["intermediate_size"]),
            "activation": fields.choice("hidden_act", ACTIVATIONS, "silu"),
            "bias": self.read_inner_bias(fields),
        }

    def write_feedforward(self, wanted: Wanted, feedforward: Any) -> tuple[Any, dict[str, Any]]:
        """The gated feed-forward of a block, and what their config says around it."""
        return feedforward, {}

    def read_inner_bias(self, fields: Fields) -> bool:
        """Whether the feed-forward has biases."""
        return fields.flag("mlp_bias", False)

    def write_biases(self, wanted: Wanted, attention: Any, feedforward: Any) -> dict[str, Any]:
        wanted.expect("stack.block.attention.output_bias", attention.output_bias, attention.bias)
        return {"attention_bias": attention.bias, "mlp_bias": feedforward.bias}

    def read_windows(self, fields: Fields, attention: dict[str, Any], depth: int) -> tuple[dict[str, Any], Any]:
        """The attention of the blocks, and the pattern of those that have another."""
        return attention, None

    def write_windows(self, wanted: Wanted, blocks: list[Any]) -> dict[str, Any]:
        """What their config says of how far each layer sees."""
        return {}


def own_fields(attention: Any) -> set[str]:
    """The fields of an attention that its type has alone; `type` is one."""
    return set(type(attention).model_fields) - (set(AttentionConfig.model_fields))
