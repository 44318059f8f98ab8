"""Hugging Face's Cohere, both ways: parallel blocks without any bias, the plan of PaLM."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from operator import attrgetter
from typing import Any

from zoo.checkpoint.family import Wanted
from zoo.checkpoint.fields import ACTIVATIONS, WRITTEN_ACTIVATIONS, text_fields
from zoo.checkpoint.huggingface_decoder import OTHER_HEAD, HuggingFaceDecoder
from zoo.checkpoint.huggingface_llama import LAYER, PARTS, TAPS
from zoo.checkpoint.huggingface_parallel import check_blocks, only_in_training
from zoo.checkpoint.huggingface_rotary import read_rotary, write_rotary
from zoo.checkpoint.rules import Rule, module_rules, rule


class HuggingFaceCohere(HuggingFaceDecoder):
    """`CohereModel` and `CohereForCausalLM`: one norm for both branches, gated feed-forwards, pairs side by side turned."""

    model_type = "cohere"
    class_name = "Cohere"
    prefix = "model."
    words = "embed_tokens.weight"
    ends = ("Model", "ForCausalLM")
    ignored = {
        "model.rotary_emb.inv_freq": "computed from theta",
        "lm_head.weight": f"a copy of the embedding, or {OTHER_HEAD}",
    }
    # their scores are scaled behind the module that gives them; the logits show it
    taps = tuple(tap for tap in TAPS if tap[1].partition(".")[0] != "head")

    def read_config(self, values: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
        fields = text_fields(values, self.model_type)
        fields.take("is_decoder", None)  # which it always is
        fields.require("use_qk_norm", False, None, why="norms of queries and keys that differ from head to head")
        norm = {"type": "layer-norm", "eps": fields.number("layer_norm_eps", 1e-5, whole=False), "bias": False}
        width, heads = fields.number("hidden_size", 8192), fields.number("num_attention_heads", 64)
        head_size = width // max(heads, 1) if fields.take("head_dim", None) is None else fields.number("head_dim")
        kv_heads, bias = fields.take("num_key_value_heads", None), fields.flag("attention_bias", False)
        length = fields.number("max_position_embeddings", 8192)
        padding = fields.take("pad_token_id", 0)
        scale = fields.number("logit_scale", 0.0625, whole=False)
        rotary = read_rotary(fields, length, head_size, theta=500000.0)
        head = self.read_head(fields, names, True, None)
        model = {
            "type": "transformer",
            "init": {"type": "normal", "std": values.get("initializer_range", 0.02)},
            "embedding": {
                "type": "tokens",
                "vocabulary": fields.number("vocab_size", 256000),
                "padding": padding if padding is None else fields.number("pad_token_id", 0),
            },
            "stack": {
                "type": "uniform",
                "width": width,
                "depth": fields.number("num_hidden_layers", 40),
                "final_norm": norm,
                "block": {
                    "type": "residual", "order": "parallel", "shared_norm": True, "norm": norm,
                    "attention": {
                        "type": "full", "heads": heads, "causal": True, "bias": bias, "output_bias": bias,
                        "kv_heads": heads if kv_heads is None else fields.number("num_key_value_heads"),
                        "head_size": None if head_size * heads == width else head_size,
                        "dropout": fields.number("attention_dropout", 0.0, whole=False),
                        "position": {**rotary, "order": "interleaved"},
                    },
                    "feedforward": {
                        "type": "gated",
                        "hidden": fields.number("intermediate_size", 22528),
                        "activation": fields.choice("hidden_act", ACTIVATIONS, "silu"),
                        "bias": False,
                    },
                },
            },
            "head": head and {**head, "scale": None if scale == 1 else scale},
        }  # fmt: skip
        fields.finish()
        return model

    def write_config(self, config: Any) -> dict[str, Any]:
        wanted = Wanted("Hugging Face's Cohere")
        block = check_blocks(wanted, config, "parallel", feedforward="gated")
        embedding, stack, attention = config.embedding, config.stack, block.attention
        for name, allowed in {
            "norm.bias": (False,), "shared_norm": (True,), "attention.output_bias": (attention.bias,),
            "feedforward.bias": (False,),
        }.items():  # fmt: skip
            wanted.expect(f"stack.block.{name}", attrgetter(name)(block), *allowed)
        rotary = write_rotary(wanted, attention.position, order="interleaved")
        wanted.training_only("stack.block.dropout", block.dropout)
        only_in_training(wanted, config, attention=0.0, embedding=0.0)
        head_size = attention.head_size or stack.width // attention.heads
        head, scale = config.head, getattr(config.head, "scale", None)
        if scale is not None:
            head = head.model_copy(update={"scale": None})
        return {
            "model_type": self.model_type,
            "vocab_size": embedding.vocabulary,
            "pad_token_id": embedding.padding,
            "hidden_size": stack.width,
            "intermediate_size": block.feedforward.inner(stack.width),
            "num_hidden_layers": stack.depth,
            "num_attention_heads": attention.heads,
            "num_key_value_heads": attention.kv_heads or attention.heads,
            **({} if head_size * attention.heads == stack.width else {"head_dim": head_size}),
            "hidden_act": WRITTEN_ACTIVATIONS[block.feedforward.activation],
            "attention_bias": attention.bias,
            "attention_dropout": attention.dropout,
            "layer_norm_eps": block.norm.eps,
            "logit_scale": 1.0 if scale is None else scale,
            "initializer_range": getattr(config.init, "std", 0.02),
            **rotary,
            **self.write_head(wanted, head),
        }

    def rules(self, config: Any, names: Collection[str] = ()) -> Iterable[Rule]:
        parts = {theirs: ours for theirs, ours in PARTS.items() if ours != "feedforward_norm"}
        return [
            self.words_rule(config.head, names),
            *(
                each
                for theirs, ours in parts.items()
                for each in module_rules(f"{LAYER}.{theirs}", f"stack.layers.{{n}}.{ours}")
            ),
            rule("model.norm.weight", "stack.final_norm.weight"),
            *self.head_rules(config.head, names),
        ]
