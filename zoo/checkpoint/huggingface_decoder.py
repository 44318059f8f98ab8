"""What Hugging Face's decoders share: their classes with a head, scores that are tied or not, and a causal stack."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any, ClassVar

from zoo.checkpoint.family import Family, Wanted, plain_names
from zoo.checkpoint.fields import Fields, labels, names_of
from zoo.checkpoint.rules import Rule, module_rules, rule
from zoo.errors import ConfigError, one_of

OTHER_HEAD = "of a head that this model does not have"
SCORES = "lm_head.weight"


class HuggingFaceDecoder(Family):
    """A decoder of Hugging Face and the models with a head that are built on it."""

    library = "transformers"
    model_type: ClassVar[str]
    class_name: ClassVar[str]
    heads = ("lm_head.", "embed_out.", "score.", "classifier.", "qa_outputs.")
    language: ClassVar[str] = "ForCausalLM"
    """The end of the name of the class that scores the next token."""
    ends: ClassVar[tuple[str, ...] | None] = None
    """The ends of the names of its classes, where it has not all of them."""
    words: ClassVar[str]
    """The name of the tokens' vectors, without the prefix."""
    scores: ClassVar[str] = SCORES
    """The name of the vectors by which the next token is scored, where they are not tied."""
    biased_scores: ClassVar[bool] = False
    """Whether each token has a score of its own that is added."""
    token_scores: ClassVar[str] = "score"
    """The name of the linear layer that scores each token for classes."""
    spans: ClassVar[Mapping[str, str]] = {}
    """The prefix of classes that have another one, by the end of their names."""

    @property
    def architectures(self) -> dict[str, str | None]:
        """Our head by the end of their class's name."""
        known = {
            "Model": None,
            self.language: "language-model",
            "ForSequenceClassification": "classifier",
            "ForTokenClassification": "token-classifier",
            "ForQuestionAnswering": "span",
        }
        return {end: head for end, head in known.items() if self.ends is None or end in self.ends}

    def recognises(self, values: Mapping[str, Any]) -> bool:
        kind, listed = values.get("model_type"), values.get("architectures")
        if kind is None and isinstance(listed, list) and listed:
            return re.match(f"{self.class_name}(Model|LMHead|DoubleHeads|For)", str(listed[0])) is not None
        return bool(kind == self.model_type)

    def with_head(self, values: Mapping[str, Any], head: str | None, names: Collection[str]) -> dict[str, Any] | None:
        end = {None: "Model", "language-model": self.language}.get(head)
        return None if end is None else self.read_config({**values, "architectures": [f"{self.class_name}{end}"]}, names)

    def plain_names(self, names: Iterable[str]) -> dict[str, str]:
        listed, others = list(names), tuple(self.spans.values())
        other = next((each for each in others if any(name.startswith(each) for name in listed)), "")
        whole = {name: name.removeprefix(other) for name in listed}
        plain = plain_names(whole.values(), self.prefix, self.heads)
        back = {short: name for name, short in whole.items()}
        return {name: back[short] for name, short in plain.items()}

    def body(self, head: Any, names: Collection[str]) -> str:
        """The prefix of the body's names: as `plain_names` makes them of those read, or as the class writes them."""
        end = next((end for end, kind in self.architectures.items() if kind == getattr(head, "type", None)), "")
        return self.prefix if names else self.spans.get(end, self.prefix)

    def read_head(self, fields: Fields, names: Collection[str], tied: bool, padding: int | None) -> dict[str, Any] | None:
        """Our head for their class; `tied` is what a config without the field means."""
        kind = self._head_type(fields.values)
        tied = fields.flag("tie_word_embeddings", tied)
        dropout = self._class_dropout(fields)
        count, words = labels(fields.values)
        if kind == "language-model":
            return {"type": kind, "tied": tied and not self._scores_of_its_own(names), "bias": self.biased_scores}
        if kind == "classifier":
            pool = {"type": "last-token", "padding": padding}
            return {"type": kind, "classes": count, "labels": words, "pool": pool, "bias": False}
        if kind == "token-classifier":
            return {"type": kind, "classes": count, "labels": words, "dropout": dropout}
        return None if kind is None else {"type": kind}

    def write_head(self, wanted: Wanted, head: Any) -> dict[str, Any]:
        """What their config says of our head."""
        kind = None if head is None else head.type
        ends = {head: end for end, head in self.architectures.items()}
        wanted.part("head", head, *ends)
        values: dict[str, Any] = {"architectures": [f"{self.class_name}{ends[kind]}"]}
        if kind == "language-model":
            wanted.expect("head.bias", head.bias, self.biased_scores)
            wanted.expect("head.scale", head.scale, None, 1.0)
            return values | {"tie_word_embeddings": head.tied}
        if kind == "span":
            wanted.training_only("head.dropout", head.dropout)
        if kind == "classifier":
            for name, value in {"norm": None, "bias": False, "dense": None}.items():
                wanted.expect(f"head.{name}", getattr(head, name), value)
            wanted.part("head.pool", head.pool, "last-token")
            wanted.training_only("head.dropout", head.dropout)
            values["pad_token_id"] = head.pool.padding
        if kind == "token-classifier":
            values["classifier_dropout"] = head.dropout
        if kind in ("classifier", "token-classifier"):
            values |= names_of(wanted.family, head)
        return values

    def head_rules(self, head: Any, names: Collection[str]) -> list[Rule]:
        """The rules for our head; a tied one reads nothing."""
        kind = getattr(head, "type", None)
        if kind == "language-model":
            own = [] if head.tied else [rule(self.scores, "head.weight")]
            return [*own, rule(self.scores.replace("weight", "bias"), "head.bias")]
        if kind == "span":
            return module_rules("qa_outputs", "head.output")
        return module_rules(self.token_scores if kind == "token-classifier" else "score", "head.output")

    def words_rule(self, head: Any, names: Collection[str]) -> Rule:
        """The rule for the tokens' vectors, which a file of a tied model may hold as those of the scores alone."""
        alone = self.scores in names and not any(name.endswith(self.words) for name in names)
        return rule(
            self.scores if alone and getattr(head, "tied", False) else self.body(head, names) + self.words, "embedding.table"
        )

    def _head_type(self, values: Mapping[str, Any]) -> str | None:
        known = {f"{self.class_name}{end}": head for end, head in self.architectures.items()}
        listed = values.get("architectures") or [None]
        if not isinstance(listed, list):
            raise ConfigError(f"{self.model_type}: architectures: expected a list, got {listed!r:.60}")
        name = listed[0] or f"{self.class_name}Model"
        if name not in known:
            raise ConfigError(f"{self.model_type}: architectures: {name} is not supported; expected {one_of(known)}")
        if known[name] == "span" and labels(values)[0] != 2:
            raise ConfigError(f"{self.model_type}: num_labels: a model that finds answers has 2, not {labels(values)[0]}")
        return known[name]

    def _class_dropout(self, fields: Fields) -> float:
        """The dropout before scores for classes, which has two names and a default of its own."""
        fields.require("token_classification_bias", True, why="a model that scores tokens for classes has a bias")
        found = [name for name in ("classifier_dropout", "hidden_dropout") if fields.take(name, None) is not None]
        return float(fields.number(found[0], whole=False)) if found else 0.1

    def _scores_of_its_own(self, names: Any) -> bool:
        """Whether the file holds vectors for the scores that are none of the embedding's, as the reference looks for."""
        table = next((each for each in (f"{self.prefix}{self.words}", self.words) if each in names), None)
        if self.scores not in names or table is None or not isinstance(names, Mapping):
            return False
        first, second = names[self.scores], names[table]
        return first.shape != second.shape or not bool((first.fetch(self.scores) == second.fetch(table)).all())


def check_causal_blocks(wanted: Wanted, stack: Any, *orders: str) -> list[Any]:
    """The blocks of a stack that is as decoders have it: causal, a norm behind; raises where it is not.

    Args:
        orders: where the norm may stand (default: pre).
    """
    wanted.part("stack", stack, "uniform")
    blocks: list[Any] = stack.blocks()
    for block in blocks:
        wanted.part("stack.block", block, "residual")
        wanted.expect("stack.block.order", block.order, *(orders or ("pre",)))
        wanted.expect("stack.block.layer_scale", block.layer_scale, None)
        for name, allowed in {"causal": (True,), "qk_norm": (None,), "output_norm": (None,)}.items():
            wanted.expect(f"stack.block.attention.{name}", getattr(block.attention, name), *allowed)
        wanted.expect("stack.block.feedforward.norm", block.feedforward.norm, None)
    wanted.equal("stack.final_norm", stack.final_norm, "stack.block.norm", stack.block.norm)
    return blocks


def alike(wanted: Wanted, blocks: list[Any], *vary: str, checked: Collection[str] = ()) -> None:
    """Raises where blocks differ in more than these fields of their attention, and others that are `checked` elsewhere."""
    plain = [block.model_dump() for block in blocks]
    for block in plain:
        block["attention"] = {name: value for name, value in block["attention"].items() if name not in (*vary, *checked)}
    if any(block != plain[0] for block in plain):
        allowed = " or ".join(f"attention.{name}" for name in vary)
        more = f" in more than {allowed}" if vary else ""
        raise ConfigError(f"stack.pattern: {wanted.family} has no model whose layers differ{more}")
