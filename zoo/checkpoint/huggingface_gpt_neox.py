"""Hugging Face's GPT-NeoX, both ways: GPT-NeoX-20B and the Pythia models."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from operator import attrgetter
from typing import Any

from zoo.checkpoint.family import Wanted
from zoo.checkpoint.fields import ACTIVATIONS, WRITTEN_ACTIVATIONS, Fields, text_fields
from zoo.checkpoint.huggingface_decoder import OTHER_HEAD, HuggingFaceDecoder
from zoo.checkpoint.huggingface_parallel import check_blocks, joined_rules, only_in_training, read_head_size
from zoo.checkpoint.huggingface_rotary import read_rotary, write_rotary
from zoo.checkpoint.rules import Rule, module_rules

LAYER = "gpt_neox.layers.{n}"
SCORES = "embed_out.weight"
WITHOUT_INFLUENCE = ("is_decoder", "attention_probs_dropout_prob", "hidden_dropout_prob")
"""Which it always is, and spellings of old files that no code reads."""
PARTS = {
    "input_layernorm": "attention_norm",
    "attention.dense": "attention.output",
    "post_attention_layernorm": "feedforward_norm",
    "mlp.dense_h_to_4h": "feedforward.up",
    "mlp.dense_4h_to_h": "feedforward.down",
}
"""The modules of a layer that ours has too, theirs and ours."""


class HuggingFaceGPTNeoX(HuggingFaceDecoder):
    """`GPTNeoXModel` and the models with a head that are built on it: two norms of the same tokens, or one after another."""

    model_type = "gpt_neox"
    class_name = "GPTNeoX"
    prefix = "gpt_neox."
    words = "embed_in.weight"
    scores = SCORES
    token_scores = "classifier"
    ignored = {
        "gpt_neox.layers.*.attention.bias": "a table of which token sees which",
        "gpt_neox.layers.*.attention.masked_bias": "a number that stands for minus infinity",
        "gpt_neox.layers.*.attention.rotary_emb.inv_freq": "computed from theta",
        "gpt_neox.rotary_emb.inv_freq": "computed from theta",
        SCORES: f"a copy of the embedding, or {OTHER_HEAD}",
        "score.weight": OTHER_HEAD,
        "classifier.*": OTHER_HEAD,
        "qa_outputs.*": OTHER_HEAD,
    }
    taps = (
        ("gpt_neox.emb_dropout", "embedding"),
        (f"{LAYER}.input_layernorm", "stack.layers.{n}.attention_norm"),
        (f"{LAYER}.attention", "stack.layers.{n}.attention"),
        (f"{LAYER}.post_attention_layernorm", "stack.layers.{n}.feedforward_norm"),
        (f"{LAYER}.mlp", "stack.layers.{n}.feedforward"),
        (LAYER, "stack.layers.{n}"),
        ("gpt_neox.final_layer_norm", "stack.final_norm"),
        ("lm_head", "head"),
        ("score", "head.output"),
        ("classifier", "head.output"),
        ("qa_outputs", "head.output"),
    )

    def read_config(self, values: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
        fields = text_fields(values, self.model_type)
        for name in WITHOUT_INFLUENCE:
            fields.take(name, None)
        norm = {"type": "layer-norm", "eps": fields.number("layer_norm_eps", 1e-5, whole=False)}
        width, heads = fields.number("hidden_size", 6144), fields.number("num_attention_heads", 64)
        head_size = read_head_size(fields, "hidden_size", width, heads)
        length, bias = fields.number("max_position_embeddings", 2048), fields.flag("attention_bias", True)
        dropout = fields.number("hidden_dropout", 0.0, whole=False)
        rotary = read_rotary(fields, length, head_size, 0.25, ("rotary_emb_base", "rotary_pct"))
        model = {
            "type": "transformer",
            "init": {"type": "normal", "std": values.get("initializer_range", 0.02)},
            "embedding": {"type": "tokens", "vocabulary": fields.number("vocab_size", 50432), "dropout": dropout},
            "stack": {
                "type": "uniform",
                "width": width,
                "depth": fields.number("num_hidden_layers", 44),
                "final_norm": norm,
                "block": {
                    "type": "residual", "norm": norm, "dropout": dropout,
                    "order": "parallel" if fields.flag("use_parallel_residual", True) else "pre",
                    "attention": {
                        "type": "full", "heads": heads, "causal": True, "bias": bias, "output_bias": bias,
                        "dropout": fields.number("attention_dropout", 0.0, whole=False),
                        "position": rotary,
                    },
                    "feedforward": {
                        "type": "mlp",
                        "hidden": fields.number("intermediate_size", 24576),
                        "activation": fields.choice("hidden_act", ACTIVATIONS, "gelu"),
                    },
                },
            },
            "head": self.read_head(fields, names, False, fields.take("pad_token_id", None)),
        }  # fmt: skip
        fields.finish()
        return model

    def write_config(self, config: Any) -> dict[str, Any]:
        wanted = Wanted("Hugging Face's GPTNeoX")
        block = check_blocks(wanted, config, "parallel", "pre")
        embedding, stack, attention = config.embedding, config.stack, block.attention
        for name, allowed in {
            "norm.bias": (True,), "shared_norm": (False,), "feedforward.bias": (True,),
            "attention.output_bias": (attention.bias,), "attention.kv_heads": (None, attention.heads),
            "attention.head_size": (None, stack.width // attention.heads),
        }.items():  # fmt: skip
            wanted.expect(f"stack.block.{name}", attrgetter(name)(block), *allowed)
        wanted.expect("embedding.padding", embedding.padding, None)
        rotary = write_rotary(wanted, attention.position, partial=True)
        head = self.write_head(wanted, config.head)
        only_in_training(wanted, config, embedding=block.dropout)
        return {
            "model_type": self.model_type,
            "vocab_size": embedding.vocabulary,
            "hidden_size": stack.width,
            "num_hidden_layers": stack.depth,
            "num_attention_heads": attention.heads,
            "intermediate_size": block.feedforward.inner(stack.width),
            "hidden_act": WRITTEN_ACTIVATIONS[block.feedforward.activation],
            "use_parallel_residual": block.order == "parallel",
            "attention_bias": attention.bias,
            "hidden_dropout": block.dropout,
            "attention_dropout": attention.dropout,
            "layer_norm_eps": block.norm.eps,
            "initializer_range": getattr(config.init, "std", 0.02),
            **rotary,
            **head,
        }

    def rules(self, config: Any, names: Collection[str] = ()) -> Iterable[Rule]:
        ours = "stack.layers.{n}"
        modules = {f"{LAYER}.{theirs}": f"{ours}.{name}" for theirs, name in PARTS.items()}
        return [
            self.words_rule(config.head, names),
            *joined_rules(f"{LAYER}.attention.query_key_value", config.stack.block.attention.heads),
            *(each for theirs, name in modules.items() for each in module_rules(theirs, name)),
            *module_rules("gpt_neox.final_layer_norm", "stack.final_norm"),
            *self.head_rules(config.head, names),
        ]

    def _class_dropout(self, fields: Fields) -> float:
        return float(fields.number("classifier_dropout", 0.1, whole=False))
