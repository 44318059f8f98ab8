"""Hugging Face's Falcon, both ways."""

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
from zoo.errors import ConfigError

BLOCK = "transformer.h.{n}"
ALIBI = {"type": "alibi", "form": "place", "count": "unpadded", "rounding": "bfloat16", "scaled": True}
"""As Falcon was trained: slopes, places and what becomes of them are rounded, and scaled as the scores are."""
ROTARY = ("rope_parameters", "rope_scaling", "rope_theta", "partial_rotary_factor", "original_max_position_embeddings")
YES_OR_NO = {True: True, False: False, None: False}
NORMS = {"input_layernorm": "attention_norm", "post_attention_layernorm": "feedforward_norm"}
"""Of all blocks but those whose branches have one each of the same tokens."""
OWN_NORMS = {"ln_attn": "attention_norm", "ln_mlp": "feedforward_norm"}


class HuggingFaceFalcon(HuggingFaceDecoder):
    """`FalconModel` and the models with a head that are built on it.

    The architecture of the 40B model has two norms of the same tokens, or one, and any number of heads of keys; the older
    one has one of keys or as many as of queries, and its feed-forward may follow the attention instead.
    """

    model_type = "falcon"
    class_name = "Falcon"
    prefix = "transformer."
    words = "word_embeddings.weight"
    token_scores = "classifier"
    ignored = {
        "lm_head.weight": f"a copy of the embedding, or {OTHER_HEAD}",
        "transformer.h.*.self_attention.rotary_emb.inv_freq": "computed from theta",
        "transformer.h.*.self_attention.maybe_rotary.inv_freq": "computed from theta",
        "transformer.rotary_emb.inv_freq": "computed from theta",
        "score.weight": OTHER_HEAD,
        "classifier.*": OTHER_HEAD,
        "qa_outputs.*": OTHER_HEAD,
    }
    taps = (
        ("transformer.word_embeddings", "embedding"),
        *((f"{BLOCK}.{theirs}", f"stack.layers.{{n}}.{ours}") for theirs, ours in (*NORMS.items(), *OWN_NORMS.items())),
        (f"{BLOCK}.self_attention", "stack.layers.{n}.attention"),
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
        for name in ("is_decoder", "auto_map"):  # which it always is, and code that transformers needs no more
            fields.take(name, None)
        fields.require("apply_residual_connection_post_layernorm", False, why="the sum goes on as it was before the norm")
        norm = {"type": "layer-norm", "eps": fields.number("layer_norm_epsilon", 1e-5, whole=False)}
        width, heads = fields.number("hidden_size", 4544), fields.number("num_attention_heads", 71)
        width = width if fields.take("n_embed", None) is None else fields.number("n_embed")
        head_size = read_head_size(fields, "hidden_size", width, heads)
        length, bias = fields.number("max_position_embeddings", 2048), fields.choice("bias", YES_OR_NO, False)
        alibi, dropout = fields.choice("alibi", YES_OR_NO, False), fields.number("hidden_dropout", 0.0, whole=False)
        if alibi:
            for name in ROTARY:
                fields.take(name, None)
        position = {**ALIBI, "length": length} if alibi else read_rotary(fields, length, head_size)
        order, kv_heads = self._read_architecture(fields, heads)
        between = fields.number("attention_dropout", 0.0, whole=False)
        inner = fields.take("ffn_hidden_size", None)
        model = {
            "type": "transformer",
            "init": {"type": "normal", "std": values.get("initializer_range", 0.02)},
            "embedding": {"type": "tokens", "vocabulary": fields.number("vocab_size", 65024)},
            "stack": {
                "type": "uniform",
                "width": width,
                "depth": fields.number("num_hidden_layers", 32),
                "final_norm": norm,
                "block": {
                    "type": "residual", "norm": norm, "dropout": dropout, **order,
                    # theirs drops nothing between rotary queries and keys
                    "attention_output_dropout": between if order["order"] == "pre" and between != dropout else None,
                    "attention": {
                        "type": "full", "heads": heads, "kv_heads": None if kv_heads == heads else kv_heads, "causal": True,
                        "bias": bias, "output_bias": bias, "dropout": between if alibi else 0.0, "position": position,
                    },
                    "feedforward": {
                        "type": "mlp",
                        "hidden": 4 * width if inner is None else fields.number("ffn_hidden_size"),
                        "activation": fields.choice("activation", ACTIVATIONS, "gelu"),
                        "bias": bias,
                    },
                },
            },
            "head": self.read_head(fields, names, True, fields.take("pad_token_id", None)),
        }  # fmt: skip
        fields.finish()
        return model

    def write_config(self, config: Any) -> dict[str, Any]:
        wanted = Wanted("Hugging Face's Falcon")
        block = check_blocks(wanted, config, "parallel", "pre")
        embedding, stack, attention = config.embedding, config.stack, block.attention
        for name, allowed in {
            "norm.bias": (True,), "attention.output_bias": (attention.bias,), "feedforward.bias": (attention.bias,),
            "attention.head_size": (None, stack.width // attention.heads),
        }.items():  # fmt: skip
            wanted.expect(f"stack.block.{name}", attrgetter(name)(block), *allowed)
        wanted.expect("embedding.padding", embedding.padding, None)
        alibi, place = getattr(attention.position, "type", None) == "alibi", "stack.block.attention.position"
        if alibi:
            for name, value in ALIBI.items():
                wanted.expect(f"{place}.{name}", getattr(attention.position, name), value)
            if attention.position.length is None:
                raise ConfigError(f"{place}.length: {wanted.family} says how many places a model was trained on; set it")
            position = {"max_position_embeddings": attention.position.length}
        else:
            position = write_rotary(wanted, attention.position)
        between = block.dropout if block.attention_output_dropout is None else block.attention_output_dropout
        if alibi:
            between = attention.dropout
        else:
            wanted.training_only("stack.block.attention.dropout", attention.dropout)
            between = between if block.order == "pre" else 0.0
        only_in_training(wanted, config, between if block.order == "pre" else block.dropout, embedding=0.0)
        head = self.write_head(wanted, config.head)
        return {
            "model_type": self.model_type,
            "vocab_size": embedding.vocabulary,
            "hidden_size": stack.width,
            "num_hidden_layers": stack.depth,
            "num_attention_heads": attention.heads,
            "ffn_hidden_size": block.feedforward.inner(stack.width),
            "activation": WRITTEN_ACTIVATIONS[block.feedforward.activation],
            "bias": attention.bias,
            "alibi": alibi,
            "hidden_dropout": block.dropout,
            "attention_dropout": between,
            "layer_norm_epsilon": block.norm.eps,
            "initializer_range": getattr(config.init, "std", 0.02),
            **self._write_architecture(wanted, block),
            **position,
            **head,
        }

    def rules(self, config: Any, names: Collection[str] = ()) -> Iterable[Rule]:
        block, ours = config.stack.block, "stack.layers.{n}"
        norms = OWN_NORMS if block.order == "parallel" and not block.shared_norm else NORMS
        parts = {
            **norms, "self_attention.dense": "attention.output",
            "mlp.dense_h_to_4h": "feedforward.up", "mlp.dense_4h_to_h": "feedforward.down",
        }  # fmt: skip
        modules = {f"{BLOCK}.{theirs}": f"{ours}.{name}" for theirs, name in parts.items()}
        return [
            self.words_rule(config.head, names),
            *joined_rules(f"{BLOCK}.self_attention.query_key_value", block.attention.kv_heads or block.attention.heads),
            *(each for theirs, name in modules.items() for each in module_rules(theirs, name)),
            *module_rules("transformer.ln_f", "stack.final_norm"),
            *self.head_rules(config.head, names),
        ]

    def _class_dropout(self, fields: Fields) -> float:
        found = next((name for name in ("classifier_dropout", "hidden_dropout") if fields.take(name, None) is not None), None)
        return 0.0 if found is None else float(fields.number(found, whole=False))

    def _read_architecture(self, fields: Fields, heads: int) -> tuple[dict[str, Any], int]:
        """The order of the block, and the number of heads of keys."""
        new, parallel, alone = (
            fields.choice(name, YES_OR_NO, default)
            for name, default in {"new_decoder_architecture": False, "parallel_attn": True, "multi_query": True}.items()
        )
        norms = fields.take("num_ln_in_parallel_attn", None)
        kv_heads = fields.take("num_kv_heads", None)
        kv_heads = heads if kv_heads is None else fields.number("num_kv_heads")
        if new and (not parallel or norms not in (None, 1, 2)):
            name, value = ("num_ln_in_parallel_attn", norms) if parallel else ("parallel_attn", parallel)
            raise fields.error(name, f"{value!r} is not supported where new_decoder_architecture is true, nor by the reference")
        if not new and parallel and norms == 2:
            raise fields.error("num_ln_in_parallel_attn", "2 norms need new_decoder_architecture, in the reference too")
        if not new and not alone and kv_heads != heads:
            raise fields.error("num_kv_heads", f"expected {heads}, as many as heads, without multi_query, got {kv_heads}")
        shared = norms == 1 if new else parallel
        order = {"order": "parallel" if new or parallel else "pre", "shared_norm": shared}
        return order, kv_heads if new or not alone else 1

    def _write_architecture(self, wanted: Wanted, block: Any) -> dict[str, Any]:
        heads, parallel = block.attention.heads, block.order == "parallel"
        kv_heads = block.attention.kv_heads or heads
        if not parallel:
            wanted.expect("stack.block.attention.kv_heads", kv_heads, heads, 1)
        new = parallel and (not block.shared_norm or kv_heads not in (1, heads))
        values = {"new_decoder_architecture": new, "parallel_attn": parallel, "num_kv_heads": kv_heads}
        values["multi_query"] = kv_heads < heads or heads == 1
        return values | ({"num_ln_in_parallel_attn": 1 if block.shared_norm else 2} if new else {})
