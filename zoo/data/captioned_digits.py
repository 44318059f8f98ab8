"""Handwritten digits, and sentences that say which digit each one is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from zoo.config import Problem, within
from zoo.data.base import Batch, Examples, SplitName
from zoo.data.digits import Digits
from zoo.data.tokenizer import ByteTokenizer

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
PHRASINGS = (
    "{}", "a {}", "the {}", "digit {}", "the digit {}", "a digit: {}", "number {}", "the number {}", "a number {}", "no. {}",
    "a photo of a {}", "a photo of the {}", "a photo of the digit {}", "a picture of a {}", "a picture of the number {}",
    "an image of a {}", "an image of the digit {}", "a scan of a {}", "a scan of the number {}", "a drawing of a {}",
    "a handwritten {}", "the handwritten digit {}", "a hand-drawn {}", "a {} written by hand", "a {} in ink", "a {} on paper",
    "someone wrote a {}", "someone wrote the number {}", "somebody drew a {}", "a child wrote {} here", "i wrote a {}",
    "this is a {}", "this is the number {}", "this is the digit {}.", "here is a {}", "here stands a {}", "here we see {}",
    "it is a {}", "it reads {}", "it shows a {}", "it says {}", "you can see a {}", "you see the number {}", "look, a {}!",
    "small grey pixels that form a {}", "eight by eight pixels: {}", "a blurry {}", "a tiny {}", "a bold {}", "one more {}",
    "what you see is {}", "clearly a {}", "probably a {}", "the figure {}", "the figure of a {}", "the shape of a {}",
    "a {} that someone put down", "a {} made with a pen", "a {} scanned by a machine", "the {} that was asked for",
    "on this little square stands a {}", "what was scanned here is the figure {}",
)  # fmt: skip
"""What is said of digits in training; the place is filled with a word or a figure."""
OPENINGS = ("", "look: ", "well, ", "today ", "yes, ", "and ")
CLOSINGS = ("", ".", "!", " again", " by me", " in black", ", i think", " over there")
"""What may stand around a sentence in training, so that the digit is met at many places."""
HELD_OUT = (
    "a sketch of a {}", "the written number {}", "a {} drawn by somebody", "we can see the digit {}", "this shows {}",
    "a grey {} on white paper", "a small image that shows the number {}", "here you see a handwritten {}",
)  # fmt: skip
"""What is said of them when a model is measured, and never in training."""


class CaptionedDigits(Digits):
    """The images of `digits`, each with a sentence that says which digit it is, so that no network is needed.

    In training the sentence is drawn anew each time, from 62 phrasings with a word or a figure, and what may stand before
    and behind ("a photo of the digit three", "well, someone wrote a 3 again"); a model is measured on other images with 8
    other phrasings. Tokens are bytes of UTF-8
    between a start (257) and an end (258), and filled up with that same end. Shapes: pixel_values (batch, 1, 8, 8) from -1
    to 1, input_ids (batch, length), labels (batch,).
    """

    class Config(Digits.Config):
        """Config of the `captioned-digits` data."""

        type: Literal["captioned-digits"] = "captioned-digits"  # type: ignore[assignment]

        tokenizer: ClassVar[str] = "bytes"

        def problems(self, **context: Any) -> Iterator[Problem]:
            model = context["model"]
            if model.type != "dual-encoder":
                yield ("model", "type"), f"data {self.type!r} are pairs, which need a model of type 'dual-encoder'"
                return
            for path, message in Digits.Config.problems(self, model=model.vision):
                yield ("model", "vision", *path[1:]), message
            yield from within("model", within("text", self._text_problems(model.text.embedding)))

        def _text_problems(self, embedding: Any) -> Iterator[Problem]:
            if embedding.vocabulary < ByteTokenizer.vocabulary:
                what = f"data {self.type!r} have {ByteTokenizer.vocabulary} token ids, not {embedding.vocabulary}"
                yield ("embedding", "vocabulary"), what
            room = getattr(embedding.position, "length", None)
            if room is not None and room < LENGTH:
                yield ("embedding", "position", "length"), f"data {self.type!r} have texts of {LENGTH} tokens, not {room}"

    config: Config

    def split(self, name: SplitName) -> Examples:
        """The examples of one part. Those of training have plain sentences until `augment` draws others."""
        examples, table = super().split(name), self.sentences(name)
        labels = examples.tensors["labels"]
        phrasing = torch.zeros_like(labels) if name == "train" else torch.arange(len(labels)) % len(table)
        return Examples(**examples.tensors, input_ids=table[phrasing, labels])

    def augment(self, batch: Batch) -> Batch:
        """A sentence drawn anew for each image, which is moved as in `digits`."""
        labels = batch["labels"]
        table = self.sentences("train").to(labels.device)
        drawn = torch.randint(len(table), (len(labels),), device=labels.device)
        return {**super().augment(batch), "input_ids": table[drawn, labels]}

    def sentences(self, name: SplitName) -> Tensor:
        """All that is said of digits in a part, as tokens: (phrasings, 10, length)."""
        return self._tables["train" if name == "train" else "held out"]

    @property
    def prompts(self) -> Tensor:
        """Sentences for each digit that no training has met, by which images are classified: (phrasings, 10, length)."""
        return self.sentences("test")

    @cached_property
    def _tables(self) -> dict[str, Tensor]:
        trained = [opening + each + closing for each in PHRASINGS for opening in OPENINGS for closing in CLOSINGS]
        return {"train": _table(trained), "held out": _table(HELD_OUT)}


def _table(phrasings: Sequence[str]) -> Tensor:
    """Each phrasing with words, and with figures, for each digit: (2 x phrasings, 10, length)."""
    names = (WORDS, [str(digit) for digit in range(10)])
    rows = [encoded(phrasing.format(each)) for phrasing in phrasings for words in names for each in words]
    return torch.stack(rows).unflatten(0, (-1, 10))


def encoded(text: str) -> Tensor:
    """The tokens of a sentence (length,), filled up with what ends it."""
    ids = ByteTokenizer().encode(text, LENGTH)
    return torch.tensor(ids + [ByteTokenizer.end] * (LENGTH - len(ids)))


LENGTH = 2 + sum(max(len(each.format("seven")) for each in texts) for texts in (OPENINGS, (*PHRASINGS, *HELD_OUT), CLOSINGS))
"""How many tokens the longest sentence has."""
