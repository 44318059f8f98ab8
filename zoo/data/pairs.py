"""What data of pairs of texts share: how a source and its target become the inputs and the labels of one batch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from zoo.config import Problem
from zoo.data.base import Batch, SplitName
from zoo.data.rows import Example, Row
from zoo.data.text import TextConfig, TextData
from zoo.data.tokenizer_training import KINDS

IGNORED = -100
"""The label of what fills a target up."""


class PairConfig(TextConfig):
    """Fields of all data of pairs of texts."""

    target_length: Annotated[int, Field(ge=3, le=10_000_000)] = 256
    """How many tokens of a target are read at most; `length` is that of a source."""

    def problems(self, **context: Any) -> Iterator[Problem]:
        model, name = context["model"], f"data {getattr(self, 'type')!r}"
        if self.pack:
            yield ("data", "pack"), "pairs of texts cannot share a row"
        if model.type != "encoder-decoder":
            yield ("model", "type"), f"{name} are pairs of texts, which need a model of type 'encoder-decoder'"
            return
        for side, field in (("encoder", "length"), ("decoder", "target_length")):
            read = self.model_copy(update={"length": getattr(self, field), "pack": False})
            for path, message in TextConfig.problems(read, model=getattr(model, side)):
                yield (("model", side, *path[1:]) if path[0] == "model" else ("data", field)), message


class PairData(TextData):
    """Base of data of pairs: input_ids and attention_mask (batch, tokens) of sources, labels (batch, tokens) of targets.

    Both are filled up to the longest of the batch, labels with -100. A target is its tokens and what ends it; what a decoder
    begins with is the model's to say. Rows of such data are mappings with `source` and `target`.
    """

    def texts(self, name: SplitName) -> Iterator[str]:
        """Sources and targets of a part, one after the other, from which a tokenizer may be trained."""
        for source, target in self.pairs_of(name):
            yield source
            yield target

    def pairs_of(self, name: SplitName) -> Iterator[tuple[str, str]]:
        """The sources and targets of a part that can be read, in order."""
        return ((row["source"], row["target"]) for row in getattr(self.split(name), "rows") if not row.get("problem"))

    @property
    def text_column(self) -> str:
        return "source"

    def read(self, row: Row) -> Example:
        """An example of a stored pair."""
        return {**self.tokens(row["source"]), "labels": self.labels_of(row["target"])}

    def labels_of(self, target: str) -> Tensor:
        """The tokens of a target (tokens,), the one that ends it included."""
        ids = self.tokenizer.encode(target, self.config.target_length)
        # what a tokenizer.json puts in front of a text its model has learned to write; our own tokenizers' start it has not
        own = self.config.tokenizer == "bytes" or self.config.tokenizer in KINDS
        return torch.tensor(ids[1:] if own else ids, dtype=torch.long)

    def collate(self, examples: list[Example]) -> Batch:
        fill = {"input_ids": self.tokenizer.padding or 0, "attention_mask": 0, "labels": IGNORED}
        return {
            name: pad_sequence([example[name] for example in examples], batch_first=True, padding_value=value)
            for name, value in fill.items()
        }


__all__ = ["IGNORED", "PairConfig", "PairData"]
