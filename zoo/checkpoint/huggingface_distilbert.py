"""Hugging Face's DistilBERT, both ways."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from zoo.checkpoint.family import Wanted
from zoo.checkpoint.fields import ACTIVATIONS, WRITTEN_ACTIVATIONS, labels, names_of, text_fields
from zoo.checkpoint.huggingface_bert import OTHER_HEAD, HuggingFaceBert, check_post_norm_stack
from zoo.checkpoint.rules import Rule, module_rules, rule
from zoo.errors import ConfigError

EPS = 1e-12  # written into the code there


class HuggingFaceDistilBert(HuggingFaceBert):
    """`DistilBertModel` and the models with a head that are built on it; it has no segments and no pooler."""

    model_type = "distilbert"
    class_name = "DistilBert"
    architectures = {
        "Model": None,
        "ForMaskedLM": "masked-language-model",
        "ForSequenceClassification": "classifier",
        "ForTokenClassification": "token-classifier",
        "ForQuestionAnswering": "span",
        "ForMultipleChoice": "multiple-choice",
    }
    prefix = "distilbert."
    heads = ("vocab_", "pre_classifier.", "classifier.", "qa_outputs.")
    ignored = {
        "distilbert.embeddings.position_ids": "a table of 0, 1, 2, ...",
        "vocab_projector.weight": f"a copy of the embedding, or {OTHER_HEAD}",
        "vocab_projector.bias": OTHER_HEAD,
        "vocab_transform.*": OTHER_HEAD,
        "vocab_layer_norm.*": OTHER_HEAD,
        "pre_classifier.*": OTHER_HEAD,
        "classifier.*": OTHER_HEAD,
        "qa_outputs.*": OTHER_HEAD,
    }
    language = ("vocab_transform", "vocab_layer_norm", "vocab_projector", "vocab_projector.bias")
    taps = (
        ("distilbert.embeddings", "embedding"),
        ("distilbert.transformer.layer.{n}.attention", "stack.layers.{n}.attention"),
        ("distilbert.transformer.layer.{n}.sa_layer_norm", "stack.layers.{n}.attention_norm"),
        ("distilbert.transformer.layer.{n}.ffn", "stack.layers.{n}.feedforward"),
        ("distilbert.transformer.layer.{n}.output_layer_norm", "stack.layers.{n}.feedforward_norm"),
        ("distilbert.transformer.layer.{n}", "stack.layers.{n}"),
        ("vocab_transform > vocab_projector", "head"),
        ("classifier", "head"),
        ("qa_outputs", "head.output"),
    )

    def read_config(self, values: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
        fields = text_fields(values, self.model_type)
        fields.take("sinusoidal_pos_embds", False)  # how a fresh table is filled; it is in the file either way
        fields.require("tie_weights_", True, why="it ties nothing")
        fields.require("is_decoder", False, why="every token sees all others")
        norm = {"type": "layer-norm", "eps": EPS}
        dropout, activation = fields.number("dropout", 0.1, whole=False), fields.choice("activation", ACTIVATIONS, "gelu")
        tied = fields.flag("tie_word_embeddings", True) and not self._scores_of_its_own(names)
        model: dict[str, Any] = {
            "type": "transformer",
            "init": {"type": "truncated-normal", "std": values.get("initializer_range", 0.02)},
            "embedding": {
                "type": "tokens",
                "vocabulary": fields.number("vocab_size", 30522),
                "padding": fields.take("pad_token_id", 0),
                "position": {"type": "learned", "length": fields.number("max_position_embeddings", 512)},
                "norm": norm,
                "dropout": dropout,
            },
            "stack": {
                "type": "uniform",
                "width": fields.number("hidden_size", fields.number("dim", 768)),
                "depth": fields.number("num_hidden_layers", fields.number("n_layers", 6)),
                "block": {
                    "type": "residual", "order": "post", "norm": norm, "dropout": dropout, "attention_output_dropout": 0.0,
                    "attention": {
                        "type": "full",
                        "heads": fields.number("num_attention_heads", fields.number("n_heads", 12)),
                        "dropout": fields.number("attention_dropout", 0.1, whole=False),
                    },
                    "feedforward": {"type": "mlp", "hidden": fields.number("hidden_dim", 3072), "activation": activation},
                },
            },
        }  # fmt: skip
        answer, choice = fields.number("qa_dropout", 0.1, whole=False), fields.number("seq_classif_dropout", 0.2, whole=False)
        model["head"] = self._head(self._head_type(values, names), values, norm, activation, tied, (dropout, answer, choice))
        fields.finish()
        return model

    def write_config(self, config: Any) -> dict[str, Any]:
        wanted = Wanted(f"Hugging Face's {self.class_name}")
        embedding, stack, head = config.embedding, config.stack, config.head
        self._check_embedding(wanted, embedding)
        wanted.expect("embedding.norm.eps", embedding.norm.eps, EPS)
        block = check_post_norm_stack(wanted, stack, embedding.norm)
        wanted.expect("stack.block.attention.causal", block.attention.causal, False)
        wanted.expect("stack.block.attention_output_dropout", block.attention_output_dropout, 0.0)
        wanted.training_only("embedding.dropout", embedding.dropout, block.dropout)
        kind = None if head is None else head.type
        wanted.part("head", head, *self.architectures.values())
        values: dict[str, Any] = {
            "model_type": self.model_type,
            "architectures": [f"DistilBert{next(end for end, each in self.architectures.items() if each == kind)}"],
            "vocab_size": embedding.vocabulary,
            "max_position_embeddings": embedding.position.length,
            "pad_token_id": embedding.padding,
            "dim": stack.width,
            "n_layers": stack.depth,
            "n_heads": block.attention.heads,
            "hidden_dim": block.feedforward.inner(stack.width),
            "activation": WRITTEN_ACTIVATIONS[block.feedforward.activation],
            "dropout": block.dropout,
            "attention_dropout": block.attention.dropout,
            "initializer_range": getattr(config.init, "std", 0.02),
        }
        if kind == "masked-language-model":
            wanted.expect("head.activation", head.activation, block.feedforward.activation)
            wanted.equal("head.norm", head.norm or embedding.norm, "embedding.norm", embedding.norm)
            values["tie_word_embeddings"] = head.tied
        if kind == "classifier":
            for name, value in {"norm": None, "bias": True, "dense": "relu"}.items():
                wanted.expect(f"head.{name}", getattr(head, name), value)
            wanted.training_only("head.dense_dropout", head.dense_dropout)
            wanted.part("head.pool", head.pool, "class-token")
        if kind == "multiple-choice":
            wanted.expect("head.activation", head.activation, "relu")
        if kind == "token-classifier":
            wanted.training_only("head.dropout", head.dropout, block.dropout)
        if kind in ("classifier", "token-classifier"):
            values |= names_of(wanted.family, head)
        dropouts = {"classifier": "seq_classif_dropout", "multiple-choice": "seq_classif_dropout", "span": "qa_dropout"}
        return values | ({dropouts[kind]: head.dropout} if kind in dropouts else {})

    def rules(self, config: Any, names: Collection[str] = ()) -> Iterable[Rule]:
        layer, ours = "distilbert.transformer.layer.{n}", "stack.layers.{n}"
        parts = {
            "attention.q_lin": "attention.query", "attention.k_lin": "attention.key", "attention.v_lin": "attention.value",
            "attention.out_lin": "attention.output", "sa_layer_norm": "attention_norm", "ffn.lin1": "feedforward.up",
            "ffn.lin2": "feedforward.down", "output_layer_norm": "feedforward_norm",
        }  # fmt: skip
        kind = getattr(config.head, "type", None)
        return [
            rule("distilbert.embeddings.word_embeddings.weight", "embedding.table"),
            rule("distilbert.embeddings.position_embeddings.weight", "embedding.position.table"),
            *module_rules("distilbert.embeddings.LayerNorm", "embedding.norm"),
            *(each for theirs, here in parts.items() for each in module_rules(f"{layer}.{theirs}", f"{ours}.{here}")),
            *(self._language_rules("head", config.head.tied, names) if kind == "masked-language-model" else []),
            *(module_rules("qa_outputs", "head.output") if kind == "span" else []),
            *([*module_rules("pre_classifier", "head.dense"), *module_rules("classifier", "head.output")]
              if kind in ("classifier", "token-classifier", "multiple-choice") else []),
        ]  # fmt: skip

    def _check_embedding(self, wanted: Wanted, embedding: Any) -> None:
        wanted.part("embedding", embedding, "tokens")
        wanted.part("embedding.norm", embedding.norm, "layer-norm")
        wanted.expect("embedding.norm.bias", embedding.norm.bias, True)
        wanted.part("embedding.position", embedding.position, "learned")
        wanted.expect("embedding.count", embedding.count, "all")
        wanted.expect("embedding.segments", embedding.segments, 0)

    def _head(
        self, kind: str | None, values: Mapping[str, Any], norm: Any, activation: str, tied: bool, dropouts: tuple[float, ...]
    ) -> dict[str, Any] | None:
        dropout, answer, choice = dropouts
        count, words = labels(values)
        if kind == "span" and count != 2:
            raise ConfigError(f"{self.model_type}: num_labels: a model that finds answers has 2, not {count}")
        known: dict[str | None, dict[str, Any] | None] = {
            None: None,
            "masked-language-model": {"activation": activation, "norm": norm, "tied": tied},
            "classifier": {"classes": count, "labels": words, "pool": "class-token", "dense": "relu", "dropout": choice},
            "token-classifier": {"classes": count, "labels": words, "dropout": dropout},
            "span": {"dropout": answer},
            "multiple-choice": {"activation": "relu", "dropout": choice},
        }
        fields = known[kind]
        return None if fields is None else {"type": kind, **fields}
