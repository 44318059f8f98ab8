"""Hugging Face's GPT-J, both ways."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from operator import attrgetter
from typing import Any

from zoo.checkpoint.family import Wanted
from zoo.checkpoint.fields import ACTIVATIONS, WRITTEN_ACTIVATIONS, text_fields
from zoo.checkpoint.huggingface_decoder import OTHER_HEAD, HuggingFaceDecoder
from zoo.checkpoint.huggingface_parallel import check_blocks, only_in_training, read_head_size
from zoo.checkpoint.rules import Rule, module_rules
from zoo.errors import ConfigError

BLOCK = "transformer.h.{n}"
THETA = 10000.0
"""By which angles grow; the family has no other."""
WITHOUT_INFLUENCE = (
    *(f"summary_{name}" for name in ("type", "use_proj", "activation", "proj_to_labels", "first_dropout")),
    "rotary", "scale_attn_weights", "n_ctx", "n_special", "predict_special_tokens", "is_decoder",
)  # fmt: skip
"""Fields of old files that no code reads any more."""
PARTS = {
    "ln_1": "attention_norm",
    "attn.q_proj": "attention.query",
    "attn.k_proj": "attention.key",
    "attn.v_proj": "attention.value",
    "attn.out_proj": "attention.output",
    "mlp.fc_in": "feedforward.up",
    "mlp.fc_out": "feedforward.down",
}
"""The modules of a layer, theirs and ours."""


class HuggingFaceGPTJ(HuggingFaceDecoder):
    """`GPTJModel` and the models with a head that are built on it: attention and feed-forward read one norm's tokens."""

    model_type = "gptj"
    class_name = "GPTJ"
    prefix = "transformer."
    words = "wte.weight"
    biased_scores = True
    ends = ("Model", "ForCausalLM", "ForSequenceClassification", "ForQuestionAnswering")
    ignored = {
        "transformer.h.*.attn.bias": "a table of which token sees which",
        "transformer.h.*.attn.masked_bias": "a number that stands for minus infinity",
        "transformer.h.*.attn.embed_positions": "computed from the size that is turned",
        "lm_head.weight": f"a copy of the embedding, or {OTHER_HEAD}",
        "lm_head.bias": OTHER_HEAD,
        "score.weight": OTHER_HEAD,
        "qa_outputs.*": OTHER_HEAD,
    }
    taps = (
        ("transformer.drop", "embedding"),
        (f"{BLOCK}.ln_1", "stack.layers.{n}.attention_norm"),
        (f"{BLOCK}.attn", "stack.layers.{n}.attention"),
        (f"{BLOCK}.mlp", "stack.layers.{n}.feedforward"),
        (BLOCK, "stack.layers.{n}"),
        ("transformer.ln_f", "stack.final_norm"),
        ("lm_head", "head"),
        ("score", "head.output"),
        ("qa_outputs", "head.output"),
    )

    def read_config(self, values: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
        fields = text_fields(values, self.model_type)
        for name in WITHOUT_INFLUENCE:
            fields.take(name, None)
        norm = {"type": "layer-norm", "eps": fields.number("layer_norm_epsilon", 1e-5, whole=False)}
        # the names that all their models know overrule GPT-J's own
        width = fields.number("hidden_size", fields.number("n_embd", 4096))
        depth = fields.number("num_hidden_layers", fields.number("n_layer", 28))
        heads = fields.number("num_attention_heads", fields.number("n_head", 16))
        length = fields.number("max_position_embeddings", fields.number("n_positions", 2048))
        head_size = read_head_size(fields, "n_embd", width, heads)
        inner = fields.take("n_inner", None)
        model = {
            "type": "transformer",
            "init": {"type": "normal", "std": values.get("initializer_range", 0.02)},
            "embedding": {
                "type": "tokens",
                "vocabulary": fields.number("vocab_size", 50400),
                "segment_vectors": "tokens",
                "dropout": fields.number("embd_pdrop", 0.0, whole=False),
            },
            "stack": {
                "type": "uniform",
                "width": width,
                "depth": depth,
                "final_norm": norm,
                "block": {
                    "type": "residual", "order": "parallel", "shared_norm": True, "norm": norm,
                    "dropout": fields.number("resid_pdrop", 0.0, whole=False),
                    "attention": {
                        "type": "full", "heads": heads, "causal": True, "bias": False, "output_bias": False,
                        "dropout": fields.number("attn_pdrop", 0.0, whole=False),
                        "position": {
                            "type": "rotary", "theta": THETA, "order": "interleaved", "length": length,
                            "fraction": share(fields.number("rotary_dim", 64), head_size),
                        },
                    },
                    "feedforward": {
                        "type": "mlp",
                        "hidden": inner if inner is None else fields.number("n_inner"),
                        "activation": fields.choice("activation_function", ACTIVATIONS, "gelu_new"),
                    },
                },
            },
            "head": self.read_head(fields, names, False, fields.take("pad_token_id", None)),
        }  # fmt: skip
        fields.finish()
        return model

    def write_config(self, config: Any) -> dict[str, Any]:
        wanted = Wanted("Hugging Face's GPTJ")
        block = check_blocks(wanted, config, "parallel", segments="tokens")
        embedding, stack, attention = config.embedding, config.stack, block.attention
        head_size = stack.width // attention.heads
        for name, allowed in {
            "norm.bias": (True,), "shared_norm": (True,), "feedforward.bias": (True,), "attention.bias": (False,),
            "attention.output_bias": (False,), "attention.kv_heads": (None, attention.heads),
            "attention.head_size": (None, head_size),
        }.items():  # fmt: skip
            wanted.expect(f"stack.block.{name}", attrgetter(name)(block), *allowed)
        wanted.expect("embedding.padding", embedding.padding, None)
        position, place = attention.position, "stack.block.attention.position"
        wanted.part(place, position, "rotary")
        wanted.expect(f"{place}.order", position.order, "interleaved")
        wanted.expect(f"{place}.theta", position.theta, THETA)
        wanted.expect(f"{place}.scaling", position.scaling, None)
        if position.length is None:
            raise ConfigError(f"{place}.length: {wanted.family} says how many places a model has; set it")
        head = self.write_head(wanted, config.head)
        only_in_training(wanted, config)
        inner = block.feedforward.inner(stack.width)
        return {
            "model_type": self.model_type,
            "vocab_size": embedding.vocabulary,
            "n_positions": position.length,
            "n_embd": stack.width,
            "n_layer": stack.depth,
            "n_head": attention.heads,
            "rotary_dim": position.size(head_size),
            "n_inner": None if inner == 4 * stack.width else inner,
            "activation_function": WRITTEN_ACTIVATIONS[block.feedforward.activation],
            "resid_pdrop": block.dropout,
            "embd_pdrop": embedding.dropout,
            "attn_pdrop": attention.dropout,
            "layer_norm_epsilon": block.norm.eps,
            "initializer_range": getattr(config.init, "std", 0.02),
            **head,
        }

    def rules(self, config: Any, names: Collection[str] = ()) -> Iterable[Rule]:
        modules = {"transformer.ln_f": "stack.final_norm"}
        modules |= {f"{BLOCK}.{theirs}": f"stack.layers.{{n}}.{ours}" for theirs, ours in PARTS.items()}
        return [
            self.words_rule(config.head, names),
            *(each for theirs, ours in modules.items() for each in module_rules(theirs, ours)),
            *self.head_rules(config.head, names),
        ]


def share(size: int, head_size: int) -> float:
    """The share of a head's features that so many of them are, such that the share of the head is that many again."""
    found = size / head_size
    return found if int(head_size * found) == size else math.nextafter(found, 2.0)
