"""What Hugging Face's encoder-decoders share: their classes, whose vectors tokens have, and rules for two sides."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Collection, Iterable, Mapping
from typing import Any, ClassVar, NamedTuple

from zoo.checkpoint.family import Family
from zoo.checkpoint.fields import HUGGING_FACE_IGNORED, TEXT_IGNORED, Fields
from zoo.checkpoint.huggingface_clip import tower_tables, tower_taps
from zoo.checkpoint.rules import Copied, Rule, rule
from zoo.checkpoint.tensors import Stored
from zoo.errors import ConfigError, one_of

SIDES = ("encoder", "decoder")


class Words(NamedTuple):
    """The names, without the prefix of the body, of the vectors of tokens: those of all, of each side, and of the scores."""

    shared: str = "shared.weight"
    encoder: str = "encoder.embed_tokens.weight"
    decoder: str = "decoder.embed_tokens.weight"
    scores: str = "lm_head.weight"


class HuggingFaceEncoderDecoder(Family):
    """An encoder-decoder of Hugging Face, bare or with scores for the next token."""

    assembly = "encoder-decoder"
    library = "transformers"
    model_type: ClassVar[str]
    class_name: ClassVar[str]
    language: ClassVar[str] = "ForConditionalGeneration"
    """The end of the name of the class that scores the next token."""
    words: ClassVar[Words] = Words()
    unused_shared: ClassVar[bool] = True
    """Whether there is a table of all tokens even where neither side looks at it."""

    def recognises(self, values: Mapping[str, Any]) -> bool:
        kind, listed = values.get("model_type"), values.get("architectures")
        if kind is None and isinstance(listed, list) and listed:
            return str(listed[0]) in self.architectures
        return bool(kind == self.model_type)

    @property
    def architectures(self) -> dict[str, str | None]:
        """Our head by the name of their class."""
        return {f"{self.class_name}Model": None, f"{self.class_name}{self.language}": "language-model"}

    def with_head(self, values: Mapping[str, Any], head: str | None, names: Collection[str]) -> dict[str, Any] | None:
        name = next((name for name, kind in self.architectures.items() if kind == head), None)
        return None if name is None else self.read_config({**values, "architectures": [name]}, names)

    def head_type(self, values: Mapping[str, Any]) -> str | None:
        """The type of our head for their class; without one, that of the bare model.

        Raises:
            ConfigError: a class that we do not support.
        """
        listed = values.get("architectures") or [f"{self.class_name}Model"]
        if not isinstance(listed, list):
            raise ConfigError(f"{self.model_type}: architectures: expected a list, got {listed!r:.60}")
        if listed[0] not in self.architectures:
            known = one_of(self.architectures)
            raise ConfigError(f"{self.model_type}: architectures: {listed[0]} is not supported; expected {known}")
        return self.architectures[listed[0]]

    def class_of(self, head: Any) -> list[str]:
        """Their class for our head, as a config states it."""
        kind = getattr(head, "type", None)
        return [next(name for name, known in self.architectures.items() if known == kind)]

    @abstractmethod
    def side_rules(self, name: str, side: Any) -> Iterable[Rule]:
        """Their names and ours within a side, "encoder" or "decoder", beside the vectors of tokens and the head."""

    @abstractmethod
    def side_taps(self, name: str) -> tuple[tuple[str, str], ...]:
        """Modules that give the same values: (theirs, ours within a side), with {n}."""

    def read_tables(self, names: Collection[str], shared: bool, tied: bool) -> tuple[bool, bool]:
        """Whether the sides share their vectors of tokens, and whether the scores are those of the decoder's.

        As there, what a config ties is tied unless the file holds two that differ.

        Args:
            shared, tied: what the config says.
        """
        sources = self._sources(names, shared)
        plain = self.plain_names(names)

        def same(first: str, second: str) -> bool:
            if first == second or not isinstance(names, Mapping):
                return True
            one, other = names[plain[first]], names[plain[second]]
            if one.shape != other.shape:
                return False
            return bool((one.fetch(plain[first]) == other.fetch(plain[second])).all())

        if not sources:
            return shared, tied
        together = shared and same(sources["encoder"], sources["decoder"])
        return together, tied and same(sources["scores"], sources["decoder"])

    def table(self, config: Any, ours: Iterable[str], names: Collection[str] = ()) -> list[Rule]:
        sides = {name: self.side_rules(name, getattr(config, name)) for name in SIDES}
        return tower_tables(self, config, ours, sides, names)

    def rules(self, config: Any, names: Collection[str] = ()) -> Iterable[Rule]:
        """The rules for what belongs to no layer: the vectors of tokens, and those of the scores."""
        words, found = self._words(), set(self.plain_names(names))
        shared, head = config.share_embeddings, config.decoder.head
        tied = head is None or head.tied

        def first(*candidates: str) -> str:
            return next((name for name in candidates if name in found), candidates[0])

        scores = [words.scores] if tied else []
        if shared:
            tables = [rule(first(words.shared, words.encoder, words.decoder, *scores), "encoder.embedding.table")]
        else:
            encoder = rule(first(words.encoder, words.shared), "encoder.embedding.table")
            if self.unused_shared and not found:  # it is written, though nobody looks at it
                encoder = Rule((words.encoder, words.shared), encoder.ours, Copied())
            tables = [encoder, rule(first(words.decoder, words.shared, *scores), "decoder.embedding.table")]
        return [*tables, rule(words.scores, "decoder.head.weight")]

    def tapped(self, config: Any) -> tuple[tuple[str, str], ...]:
        taps = tower_taps(config, {name: self.side_taps(name) for name in SIDES})
        biased = getattr(config.decoder.head, "bias", False) or getattr(config.decoder.head, "scale", None)
        return tuple(tap for tap in taps if not (biased and tap[1] == "decoder.head"))

    def _words(self) -> Words:
        """The names of the vectors of tokens, with the prefix of the body."""
        shared, encoder, decoder = (f"{self.prefix}{name}" for name in self.words[:3])
        return Words(shared, encoder, decoder, self.words.scores)

    def _sources(self, names: Collection[str], shared: bool) -> dict[str, str]:
        """Where each vector of tokens is read, of the names on disk, where a config ties what it can."""
        words, found = self._words(), self.plain_names(names)
        common = (words.shared,) if shared else ()
        orders = {
            "encoder": (words.encoder, *common, words.decoder, words.scores),
            "decoder": (words.decoder, *common, *((words.encoder,) if shared else ()), words.scores),
            "scores": (words.scores, words.decoder, *common, words.encoder),
        }
        read = {role: next((name for name in order if name in found), None) for role, order in orders.items()}
        return {role: name for role, name in read.items() if name is not None} if all(read.values()) else {}


def sequence_fields(values: Mapping[str, Any], place: str) -> Fields:
    """The fields of a model that reads texts and writes texts, without those that change nothing.

    Raises:
        ConfigError: one of those that would change something.
    """
    fields = Fields(values, place, {**HUGGING_FACE_IGNORED, **TEXT_IGNORED})
    fields.require("is_encoder_decoder", True, why="this model has an encoder")
    fields.require("is_decoder", False, why="this model is not a decoder alone")
    fields.require("add_cross_attention", False, True, why="expected true or false")
    fields.require("cross_attention_hidden_size", None, why="the decoder attends to an encoder of its own width")
    fields.require("tie_encoder_decoder", False, why="the two sides have weights of their own")
    fields.require("pruned_heads", {}, None, why="heads of different number in each layer")
    return fields


def only_in_training(fields: Fields, *names: str) -> None:
    """Reads fields that act only in training and that ours cannot say, and warns where they would."""
    for name in names:
        value = fields.number(name, 0.0, whole=False) if fields.take(name, 0.0) is not None else 0.0
        if value:
            warnings.warn(f"{fields.place}: {name}: {value} becomes 0; it only acts in training", stacklevel=3)


def token(fields: Fields, name: str, default: int | None, vocabulary: int) -> int:
    """A token that has to be one of the vocabulary."""
    value = fields.take(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < vocabulary:
        raise fields.error(name, f"expected a token, a whole number from 0 to {vocabulary - 1}, got {value!r:.60}")
    return value


def scores_bias(names: Collection[str], plain: Mapping[str, str], name: str) -> bool:
    """Whether a file adds a number of its own to the score of each token, which may be there and zero."""
    stored = names[plain[name]] if isinstance(names, Mapping) and name in plain else None
    return isinstance(stored, Stored) and bool((stored.fetch(plain[name]) != 0).any())
