"""Hugging Face's BERT, both ways."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any, ClassVar

import torch

from zoo.checkpoint.family import Family, Wanted, plain_names
from zoo.checkpoint.fields import ACTIVATIONS, WRITTEN_ACTIVATIONS, labels, names_of, text_fields
from zoo.checkpoint.huggingface_old import model_type, modern_names
from zoo.checkpoint.rules import Copied, Rule, module_rules, rule
from zoo.errors import ConfigError, one_of

OTHER_HEAD = "of a head that this model does not have"
LAYER = "bert.encoder.layer.{n}"


class HuggingFaceBert(Family):
    """`BertModel` and the models with a head that are built on it."""

    library = "transformers"
    model_type: ClassVar[str] = "bert"
    class_name: ClassVar[str] = "Bert"
    padding: ClassVar[int] = 0
    count: ClassVar[str] = "all"
    architectures: ClassVar[Mapping[str, str | None]] = {
        "Model": "pooler",
        "ForMaskedLM": "masked-language-model",
        "ForPreTraining": "pretraining",
        "ForSequenceClassification": "classifier",
        "ForTokenClassification": "token-classifier",
        "ForQuestionAnswering": "span",
        "ForMultipleChoice": "multiple-choice",
        "ForNextSentencePrediction": "next-sentence",
    }
    """Our head by the end of their class's name."""
    pretrained: ClassVar[tuple[str, ...]] = ("pooler", "masked-language-model", "pretraining", "next-sentence")
    """The heads whose tensors mean the same whatever else lies in the file."""
    prefix = "bert."
    heads: ClassVar[tuple[str, ...]] = ("cls.", "classifier.", "qa_outputs.")
    ignored = {
        "bert.embeddings.position_ids": "a table of 0, 1, 2, ...",
        "bert.pooler.dense.*": OTHER_HEAD,
        "cls.predictions.decoder.weight": f"a copy of the embedding, or {OTHER_HEAD}",
        "cls.predictions.bias": f"a copy of the scores' other bias, or {OTHER_HEAD}",
        "cls.predictions.decoder.bias": f"a copy of the scores' other bias, or {OTHER_HEAD}",
        "cls.predictions.transform.*": OTHER_HEAD,
        "cls.seq_relationship.*": OTHER_HEAD,
        "classifier.*": OTHER_HEAD,
        "qa_outputs.*": OTHER_HEAD,
    }
    language: ClassVar[tuple[str, str, str, str]] = (
        "cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm",
        "cls.predictions.decoder", "cls.predictions.bias",
    )  # fmt: skip
    """Names of the layer, the norm, the scores and the bias of the head for masked tokens."""
    taps: ClassVar[tuple[tuple[str, str], ...]] = (
        ("bert.embeddings", "embedding"),
        (f"{LAYER}.attention.self > {LAYER}.attention.output.dense", "stack.layers.{n}.attention"),
        (f"{LAYER}.attention.output.LayerNorm", "stack.layers.{n}.attention_norm"),
        (f"{LAYER}.intermediate > {LAYER}.output.dense", "stack.layers.{n}.feedforward"),
        (f"{LAYER}.output.LayerNorm", "stack.layers.{n}.feedforward_norm"),
        (LAYER, "stack.layers.{n}"),
        ("bert.pooler", "head"),
        ("cls.predictions", "head"),
        ("cls", "head"),
        ("classifier", "head"),
        ("qa_outputs", "head.output"),
    )

    def recognises(self, values: Mapping[str, Any]) -> bool:
        return model_type(values) == self.model_type

    def read_config(self, values: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
        fields = text_fields(values, self.model_type)
        norm = {"type": "layer-norm", "eps": fields.number("layer_norm_eps", 1e-12, whole=False)}
        dropout = fields.number("hidden_dropout_prob", 0.1, whole=False)
        activation = fields.choice("hidden_act", ACTIVATIONS, "gelu")
        kind = self._head_type(values, names)
        chosen = fields.take("classifier_dropout", None)
        head_dropout = dropout if chosen is None else fields.number("classifier_dropout", dropout, whole=False)
        tied = fields.flag("tie_word_embeddings", True) and not self._scores_of_its_own(names)
        padding = fields.take("pad_token_id", self.padding)
        model = {
            "type": "transformer",
            "init": {"type": "truncated-normal", "std": values.get("initializer_range", 0.02)},
            "embedding": {
                "type": "tokens",
                "vocabulary": fields.number("vocab_size", 30522 if self.model_type == "bert" else 50265),
                "segments": fields.number("type_vocab_size", 2),
                "padding": padding,
                "count": self.count,
                "position": {"type": "learned", "length": fields.number("max_position_embeddings", 512)},
                "norm": norm,
                "dropout": dropout,
            },
            "stack": {
                "type": "uniform",
                "width": fields.number("hidden_size", 768),
                "depth": fields.number("num_hidden_layers", 12),
                "block": {
                    "type": "residual", "order": "post", "norm": norm, "dropout": dropout,
                    "attention": {
                        "type": "full",
                        "heads": fields.number("num_attention_heads", 12),
                        "dropout": fields.number("attention_probs_dropout_prob", 0.1, whole=False),
                        "causal": fields.flag("is_decoder", False),
                    },
                    "feedforward": {
                        "type": "mlp", "hidden": fields.number("intermediate_size", 3072), "activation": activation,
                    },
                },
            },
            "head": self._read_head(kind, values, norm, activation, (dropout, head_dropout), tied),
        }  # fmt: skip
        fields.finish()
        return model

    def with_head(self, values: Mapping[str, Any], head: str | None, names: Collection[str]) -> dict[str, Any] | None:
        if head in (None, "sentence-embedding"):
            return {**self.read_config({**values, "architectures": [f"{self.class_name}Model"]}, names), "head": None}
        end = next((end for end, each in self.architectures.items() if each == head and head in self.pretrained), None)
        return None if end is None else self.read_config({**values, "architectures": [f"{self.class_name}{end}"]}, names)

    def write_config(self, config: Any) -> dict[str, Any]:
        wanted = Wanted(f"Hugging Face's {self.class_name}")
        embedding, stack = config.embedding, config.stack
        self._check_embedding(wanted, embedding)
        norm = embedding.norm
        block = check_post_norm_stack(wanted, stack, norm)
        attention, feedforward = block.attention, block.feedforward
        wanted.expect("stack.block.attention_output_dropout", block.attention_output_dropout, None, block.dropout)
        wanted.training_only("embedding.dropout", embedding.dropout, block.dropout)
        return {
            "model_type": self.model_type,
            "vocab_size": embedding.vocabulary,
            "type_vocab_size": embedding.segments,
            "max_position_embeddings": embedding.position.length,
            "pad_token_id": embedding.padding,
            "hidden_size": stack.width,
            "num_hidden_layers": stack.depth,
            "num_attention_heads": attention.heads,
            "intermediate_size": feedforward.inner(stack.width),
            "hidden_act": WRITTEN_ACTIVATIONS[feedforward.activation],
            "hidden_dropout_prob": block.dropout,
            "attention_probs_dropout_prob": attention.dropout,
            "is_decoder": attention.causal,
            "initializer_range": getattr(config.init, "std", 0.02),
            "layer_norm_eps": norm.eps,
            **self._write_head(wanted, config.head, feedforward.activation, norm, block.dropout),
        }

    def rules(self, config: Any, names: Collection[str] = ()) -> Iterable[Rule]:
        body, layer, ours = self.prefix, f"{self.prefix}encoder.layer.{{n}}", "stack.layers.{n}"
        kind = getattr(config.head, "type", None)
        return [
            rule(f"{body}embeddings.word_embeddings.weight", "embedding.table"),
            rule(f"{body}embeddings.position_embeddings.weight", "embedding.position.table"),
            rule(f"{body}embeddings.token_type_embeddings.weight", "embedding.segment"),
            *module_rules(f"{body}embeddings.LayerNorm", "embedding.norm"),
            *module_rules(f"{layer}.attention.self.query", f"{ours}.attention.query"),
            *module_rules(f"{layer}.attention.self.key", f"{ours}.attention.key"),
            *module_rules(f"{layer}.attention.self.value", f"{ours}.attention.value"),
            *module_rules(f"{layer}.attention.output.dense", f"{ours}.attention.output"),
            *module_rules(f"{layer}.attention.output.LayerNorm", f"{ours}.attention_norm"),
            *module_rules(f"{layer}.intermediate.dense", f"{ours}.feedforward.up"),
            *module_rules(f"{layer}.output.dense", f"{ours}.feedforward.down"),
            *module_rules(f"{layer}.output.LayerNorm", f"{ours}.feedforward_norm"),
            *self._head_rules(kind, config.head, names),
        ]

    def plain_names(self, names: Iterable[str]) -> dict[str, str]:
        return modern_names(plain_names(names, self.prefix, self.heads))

    def _head_rules(self, kind: str | None, head: Any, names: Collection[str]) -> list[Rule]:
        pooler = f"{self.prefix}pooler.dense"
        if kind == "pooler":
            return module_rules(pooler, "head.output")
        if kind in ("masked-language-model", "pretraining"):
            at, language = ("head", head) if kind == "masked-language-model" else ("head.language", head.language)
            pair = [*module_rules(pooler, "head.sentence.dense"), *module_rules("cls.seq_relationship", "head.sentence.output")]
            return [*self._language_rules(at, language.tied, names), *(pair if kind == "pretraining" else [])]
        if kind == "next-sentence":
            return [*module_rules(pooler, "head.dense"), *module_rules("cls.seq_relationship", "head.output")]
        if kind == "span":
            return module_rules("qa_outputs", "head.output")
        return self._classifier_rules(pooler, kind)

    def _classifier_rules(self, pooler: str, kind: str | None) -> list[Rule]:
        return [*module_rules(pooler, "head.dense"), *module_rules("classifier", "head.output")]

    def _language_rules(self, at: str, tied: bool, names: Collection[str]) -> list[Rule]:
        dense, norm, scores, bias = self.language
        table = [*module_rules(dense, f"{at}.dense"), *module_rules(norm, f"{at}.norm")]
        if not tied:
            table.append(rule(f"{scores}.weight", f"{at}.weight"))
        # theirs scores with the first of two biases; its files hold both, or, where scores are tied, one of the two
        both = tuple(dict.fromkeys((f"{scores}.bias", bias)))
        if names:
            return [*table, rule(next((name for name in both if name in names), bias), f"{at}.bias")]
        return [*table, rule(bias, f"{at}.bias") if tied else Rule(both, (f"{at}.bias",), Copied())]

    def _head_type(self, values: Mapping[str, Any], names: Collection[str]) -> str | None:
        known = {f"{self.class_name}{end}": head for end, head in self.architectures.items()}
        listed = values.get("architectures") or [None]
        if not isinstance(listed, list):
            raise ConfigError(f"{self.model_type}: architectures: expected a list, got {listed!r:.60}")
        name = listed[0] or f"{self.class_name}Model"
        if name not in known:
            raise ConfigError(f"{self.model_type}: architectures: {name} is not supported; expected {one_of(known)}")
        if known[name] == "pooler" and not any(each.endswith("pooler.dense.weight") for each in names):
            return None
        return known[name]

    def _scores_of_its_own(self, names: Any) -> bool:
        """Whether the file holds vectors for the scores that are none of the embedding's, as the reference looks for."""
        name, table = f"{self.language[2]}.weight", "embeddings.word_embeddings.weight"
        table = next((each for each in (f"{self.prefix}{table}", table) if each in names), table)
        if name not in names or table not in names or not isinstance(names, Mapping):
            return False
        first, second = names[name], names[table]
        return first.shape == second.shape and not torch.equal(first.fetch(name), second.fetch(table))

    def _read_head(
        self, kind: str | None, values: Mapping[str, Any], norm: Any, activation: str, dropouts: tuple[float, float], tied: bool
    ) -> dict[str, Any] | None:
        dropout, head_dropout = dropouts
        activation = self._language_activation(activation)
        language = {"type": "masked-language-model", "activation": activation, "norm": norm, "tied": tied}
        count, words = labels(values)
        if kind is None:
            return None
        if kind == "pooler":
            return {"type": "pooler", "activation": "tanh", "pool": "class-token"}
        if kind == "masked-language-model":
            return language
        if kind == "pretraining":
            return {"type": "pretraining", "language": language, "sentence": "next-sentence"}
        if kind == "classifier":
            return {
                "type": "classifier", "classes": count, "labels": words, "pool": "class-token", "dense": "tanh",
                "dense_dropout": self._dense_dropout(head_dropout), "dropout": head_dropout,
            }  # fmt: skip
        if kind == "token-classifier":
            return {"type": kind, "classes": count, "labels": words, "dropout": head_dropout}
        if kind == "span" and count != 2:
            raise ConfigError(f"{self.model_type}: num_labels: a model that finds answers has 2, not {count}")
        if kind == "multiple-choice":
            return {"type": kind, "dropout": self._choice_dropout(dropout, head_dropout)}
        return {"type": kind}

    def _write_head(self, wanted: Wanted, head: Any, activation: str, norm: Any, dropout: float) -> dict[str, Any]:
        kind = None if head is None else head.type
        ends = {head: end for end, head in self.architectures.items()}
        wanted.part("head", head, *ends, None)
        values: dict[str, Any] = {"architectures": [f"{self.class_name}{ends.get(kind, 'Model')}"]}
        if kind is None:
            return values
        fixed: dict[str, dict[str, Any]] = {
            "pooler": {"size": None, "activation": "tanh", "projection": True, "norm": None},
            "classifier": {"norm": None, "bias": True, "dense": "tanh"},
        }
        for name, value in fixed.get(kind, {}).items():
            wanted.expect(f"head.{name}", getattr(head, name), value)
        if kind in fixed:
            wanted.part("head.pool", head.pool, "class-token")
        if kind in ("masked-language-model", "pretraining"):
            language, path = (head, "head") if kind == "masked-language-model" else (head.language, "head.language")
            wanted.expect(f"{path}.activation", language.activation, self._language_activation(activation))
            wanted.equal(f"{path}.norm", language.norm or norm, "embedding.norm", norm)
            values["tie_word_embeddings"] = language.tied
        if kind in ("next-sentence", "multiple-choice"):
            wanted.expect("head.activation", head.activation, "tanh")
        if kind == "pretraining":
            wanted.expect("head.sentence.activation", head.sentence.activation, "tanh")
        if kind == "classifier":
            wanted.training_only("head.dense_dropout", head.dense_dropout, self._dense_dropout(head.dropout))
        if kind == "span":
            wanted.training_only("head.dropout", head.dropout)
        if kind == "multiple-choice":
            values["classifier_dropout"] = self._choice_dropout(dropout, head.dropout)
            wanted.training_only("head.dropout", head.dropout, values["classifier_dropout"])
        if kind in ("classifier", "token-classifier"):
            values |= names_of(wanted.family, head)
            values["classifier_dropout"] = head.dropout
        return values

    def _check_embedding(self, wanted: Wanted, embedding: Any) -> None:
        wanted.part("embedding", embedding, "tokens")
        wanted.part("embedding.norm", embedding.norm, "layer-norm")
        wanted.expect("embedding.norm.bias", embedding.norm.bias, True)
        wanted.part("embedding.position", embedding.position, "learned")
        wanted.expect("embedding.count", embedding.count, self.count)
        if embedding.segments == 0:
            raise ConfigError(f"embedding.segments: {wanted.family} has no model without segments; use 1")

    def _language_activation(self, activation: str) -> str:
        return activation

    def _dense_dropout(self, head_dropout: float) -> float:
        return 0.0

    def _choice_dropout(self, dropout: float, head_dropout: float) -> float:
        return head_dropout


def check_post_norm_stack(wanted: Wanted, stack: Any, norm: Any) -> Any:
    """The block of a stack that is as BERT's: post-norm, one eps, all biases; raises where it is not."""
    wanted.part("stack", stack, "uniform")
    wanted.expect("stack.pattern", stack.pattern, None)
    wanted.expect("stack.final_norm", stack.final_norm, None)
    wanted.training_only("stack.drop_path", stack.drop_path)
    block = stack.block
    wanted.part("stack.block", block, "residual")
    wanted.expect("stack.block.order", block.order, "post")
    wanted.expect("stack.block.layer_scale", block.layer_scale, None)
    wanted.equal("stack.block.norm", block.norm, "embedding.norm", norm)
    attention, feedforward = block.attention, block.feedforward
    wanted.part("stack.block.attention", attention, "full")
    head_size = stack.width // attention.heads
    for name, allowed in {
        "kv_heads": (None, attention.heads), "head_size": (None, head_size), "bias": (True,), "output_bias": (True,),
        "qk_norm": (None,), "output_norm": (None,), "scale": (None, head_size**-0.5),
    }.items():  # fmt: skip
        wanted.expect(f"stack.block.attention.{name}", getattr(attention, name), *allowed)
    wanted.part("stack.block.feedforward", feedforward, "mlp")
    wanted.expect("stack.block.feedforward.bias", feedforward.bias, True)
    wanted.expect("stack.block.feedforward.norm", feedforward.norm, None)
    wanted.training_only("stack.block.feedforward.dropout", feedforward.dropout)
    return block
