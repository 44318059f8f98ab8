"""Hugging Face's GPT-2, both ways."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from zoo.checkpoint.family import Wanted
from zoo.checkpoint.fields import ACTIVATIONS, WRITTEN_ACTIVATIONS, Fields, text_fields
from zoo.checkpoint.huggingface_decoder import OTHER_HEAD, HuggingFaceDecoder, alike, check_causal_blocks
from zoo.checkpoint.rules import Rule, Split, Transposed, module_rules, rule
from zoo.errors import ConfigError

BLOCK = "transformer.h.{n}"
WITHOUT_INFLUENCE = (
    *(f"summary_{name}" for name in ("type", "use_proj", "activation", "proj_to_labels", "first_dropout")),  # of two heads
    "reorder_and_upcast_attn",  # rounds otherwise, in one of their kernels
    "n_ctx", "n_special", "predict_special_tokens", "is_decoder",  # read by no code any more
)  # fmt: skip


class HuggingFaceGPT2(HuggingFaceDecoder):
    """`GPT2Model` and the models with a head that are built on it."""

    model_type = "gpt2"
    class_name = "GPT2"
    prefix = "transformer."
    language = "LMHeadModel"
    words = "wte.weight"
    token_scores = "classifier"
    ignored = {
        "transformer.h.*.attn.bias": "a table of which token sees which",
        "transformer.h.*.attn.masked_bias": "a number that stands for minus infinity",
        "lm_head.weight": f"a copy of the embedding, or {OTHER_HEAD}",
        "score.weight": OTHER_HEAD,
        "classifier.*": OTHER_HEAD,
        "qa_outputs.*": OTHER_HEAD,
        "multiple_choice_head.*": OTHER_HEAD,
    }
    taps = (
        ("transformer.drop", "embedding"),
        (f"{BLOCK}.ln_1", "stack.layers.{n}.attention_norm"),
        (f"{BLOCK}.attn", "stack.layers.{n}.attention"),
        (f"{BLOCK}.ln_2", "stack.layers.{n}.feedforward_norm"),
        (f"{BLOCK}.mlp", "stack.layers.{n}.feedforward"),
        (BLOCK, "stack.layers.{n}"),
        ("transformer.ln_f", "stack.final_norm"),
        ("lm_head", "head"),
        ("score", "head.output"),
        ("classifier", "head.output"),
        ("qa_outputs", "head.output"),
    )

    def read_config(self, values: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
        fields = text_fields(values, self.model_type)
        for name in WITHOUT_INFLUENCE:
            fields.take(name, None)
        norm = {"type": "layer-norm", "eps": fields.number("layer_norm_epsilon", 1e-5, whole=False)}
        # the names that all their models know overrule GPT-2's own
        width = fields.number("hidden_size", fields.number("n_embd", 768))
        depth = fields.number("num_hidden_layers", fields.number("n_layer", 12))
        heads = fields.number("num_attention_heads", fields.number("n_head", 12))
        inner = fields.take("n_inner", None)
        scale, pattern = self._read_scales(fields, width, heads, depth)
        padding = fields.take("pad_token_id", None)
        model = {
            "type": "transformer",
            "init": {"type": "normal", "std": values.get("initializer_range", 0.02), "scale_residual": True},
            "embedding": {
                "type": "tokens",
                "vocabulary": fields.number("vocab_size", 50257),
                "segment_vectors": "tokens",
                "position": {
                    "type": "learned",
                    "length": fields.number("max_position_embeddings", fields.number("n_positions", 1024)),
                },
                "dropout": fields.number("embd_pdrop", 0.1, whole=False),
            },
            "stack": {
                "type": "uniform",
                "width": width,
                "depth": depth,
                "pattern": pattern,
                "final_norm": norm,
                "block": {
                    "type": "residual", "order": "pre", "norm": norm,
                    "dropout": fields.number("resid_pdrop", 0.1, whole=False),
                    "attention": {
                        "type": "full", "heads": heads, "causal": True, "scale": scale,
                        "dropout": fields.number("attn_pdrop", 0.1, whole=False),
                    },
                    "feedforward": {
                        "type": "mlp",
                        "hidden": inner if inner is None else fields.number("n_inner"),
                        "activation": fields.choice("activation_function", ACTIVATIONS, "gelu_new"),
                    },
                },
            },
            "head": self.read_head(fields, names, True, padding),
        }  # fmt: skip
        fields.finish()
        return model

    def write_config(self, config: Any) -> dict[str, Any]:
        wanted = Wanted("Hugging Face's GPT2")
        embedding, stack = config.embedding, config.stack
        self._check_embedding(wanted, embedding)
        blocks = check_causal_blocks(wanted, stack)
        wanted.part("stack.block.norm", stack.block.norm, "layer-norm")
        wanted.expect("stack.block.norm.bias", stack.block.norm.bias, True)
        block, attention = stack.block, stack.block.attention
        head_size = stack.width // attention.heads
        for each in blocks:
            wanted.part("stack.block.attention", each.attention, "full")
            wanted.part("stack.block.feedforward", each.feedforward, "mlp")
        for name, allowed in {
            "kv_heads": (None, attention.heads), "head_size": (None, head_size), "bias": (True,), "output_bias": (True,),
            "position": (None,),
        }.items():  # fmt: skip
            wanted.expect(f"stack.block.attention.{name}", getattr(attention, name), *allowed)
        alike(wanted, blocks, "scale")
        wanted.expect("stack.block.feedforward.bias", block.feedforward.bias, True)
        wanted.expect("stack.block.attention_output_dropout", block.attention_output_dropout, None, block.dropout)
        scales, head = self._write_scales(wanted, blocks, head_size), self.write_head(wanted, config.head)
        wanted.training_only("stack.drop_path", stack.drop_path)
        wanted.training_only("stack.block.feedforward.dropout", block.feedforward.dropout)
        inner = block.feedforward.inner(stack.width)
        return {
            "model_type": self.model_type,
            "vocab_size": embedding.vocabulary,
            "n_positions": embedding.position.length,
            "n_embd": stack.width,
            "n_layer": stack.depth,
            "n_head": attention.heads,
            "n_inner": None if inner == 4 * stack.width else inner,
            "activation_function": WRITTEN_ACTIVATIONS[block.feedforward.activation],
            "resid_pdrop": block.dropout,
            "embd_pdrop": embedding.dropout,
            "attn_pdrop": attention.dropout,
            "layer_norm_epsilon": block.norm.eps,
            "initializer_range": getattr(config.init, "std", 0.02),
            **scales,
            **head,
        }

    def rules(self, config: Any, names: Collection[str] = ()) -> Iterable[Rule]:
        ours = "stack.layers.{n}"
        joined = [[f"{ours}.attention.{part}.{kind}" for part in ("query", "key", "value")] for kind in ("weight", "bias")]
        return [
            self.words_rule(config.head, names),
            rule("transformer.wpe.weight", "embedding.position.table"),
            *module_rules(f"{BLOCK}.ln_1", f"{ours}.attention_norm"),
            rule(f"{BLOCK}.attn.c_attn.weight", *joined[0], operation=Transposed(Split())),
            rule(f"{BLOCK}.attn.c_attn.bias", *joined[1]),
            *_transposed(f"{BLOCK}.attn.c_proj", f"{ours}.attention.output"),
            *module_rules(f"{BLOCK}.ln_2", f"{ours}.feedforward_norm"),
            *_transposed(f"{BLOCK}.mlp.c_fc", f"{ours}.feedforward.up"),
            *_transposed(f"{BLOCK}.mlp.c_proj", f"{ours}.feedforward.down"),
            *module_rules("transformer.ln_f", "stack.final_norm"),
            *self.head_rules(config.head, names),
        ]

    def _check_embedding(self, wanted: Wanted, embedding: Any) -> None:
        wanted.part("embedding", embedding, "tokens")
        for name, value in {"segments": 0, "norm": None, "padding": None, "count": "all"}.items():
            wanted.expect(f"embedding.{name}", getattr(embedding, name), value)
        wanted.part("embedding.position", embedding.position, "learned")

    def _read_scales(self, fields: Fields, width: int, heads: int, depth: int) -> tuple[float | None, Any]:
        """What scores are multiplied by: in every layer, or in each one."""
        plain = None if fields.flag("scale_attn_weights", True) else 1.0
        if not fields.flag("scale_attn_by_inverse_layer_idx", False) or heads < 1 or width < heads:
            return plain, None
        first = (width // heads) ** -0.5 if plain is None else plain
        return plain, [{"attention": {"scale": first / (layer + 1)}} for layer in range(depth)]

    def _write_scales(self, wanted: Wanted, blocks: list[Any], head_size: int) -> dict[str, bool]:
        scales = [each.attention.scale or head_size**-0.5 for each in blocks]
        for inverse in (False, True):
            for plain in (head_size**-0.5, 1.0):
                expected = [plain / (layer + 1 if inverse else 1) for layer in range(len(blocks))]
                if all(math.isclose(*pair, rel_tol=1e-12) for pair in zip(scales, expected)):
                    return {"scale_attn_weights": plain != 1.0 or head_size == 1, "scale_attn_by_inverse_layer_idx": inverse}
        known = f"1, {head_size**-0.5:.6g}, or one of them divided by the number of the layer"
        raise ConfigError(f"stack.block.attention.scale: {wanted.family} has no model with {scales[0]!r} here, only {known}")


def _transposed(theirs: str, ours: str) -> list[Rule]:
    """A linear layer of theirs, whose weight is (inputs, outputs)."""
    return [rule(f"{theirs}.weight", f"{ours}.weight", operation=Transposed()), rule(f"{theirs}.bias", f"{ours}.bias")]
