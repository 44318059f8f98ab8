"""What data of texts share: how a text becomes token ids, and how texts of several lengths become a batch."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from zoo.config import Config, Problem
from zoo.data.base import Batch, Data
from zoo.data.loader import stacked
from zoo.data.rows import Example
from zoo.data.tokenizer import Tokenizer, make_tokenizer
from zoo.errors import DataError


class TextConfig(Config):
    """Fields of all data of texts."""

    tokenizer: str = "bytes"
    """What makes tokens of a text: `bytes` (UTF-8, 260 ids with padding 256, start 257, end 258, mask 259), or the path
    of a `tokenizer.json` or of a folder that holds one."""
    length: Annotated[int, Field(ge=3, le=10_000_000)] = 256
    """How many tokens of a text are read at most; what is behind them is left out."""

    def problems(self, **context: Any) -> Iterator[Problem]:
        embedding, name = context["model"].embedding, f"data {getattr(self, 'type')!r}"
        if getattr(embedding, "type", None) != "tokens":
            yield ("model", "embedding"), f"{name} are texts, which need an embedding of type 'tokens'"
            return
        skipped = (embedding.padding or 0) + 1 if embedding.count == "unpadded" else 0
        room = getattr(embedding.position, "length", None)
        if room is not None and self.length > room - skipped:
            yield ("data", "length"), f"the model has positions for {room - skipped} tokens, and texts are cut at {self.length}"
        try:
            tokenizer = make_tokenizer(self.tokenizer, name)
        except DataError:
            return  # a file that is not there is an error when texts are read; the config may be looked at elsewhere
        if tokenizer.vocabulary > embedding.vocabulary:
            yield (
                ("model", "embedding", "vocabulary"),
                f"{name} have {tokenizer.vocabulary} token ids, not {embedding.vocabulary}",
            )
        if embedding.count == "unpadded" and tokenizer.padding != embedding.padding:
            yield ("model", "embedding", "padding"), f"{name} are filled up with {tokenizer.padding}, not {embedding.padding}"


class TextData(Data):
    """Base of data of texts: input_ids and attention_mask (batch, tokens), filled up to the longest text of the batch."""

    config: Any

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """What makes tokens of a text, and says which ids have a role."""
        return make_tokenizer(self.config.tokenizer, self.place)

    def tokens(self, text: str) -> dict[str, Tensor]:
        """The inputs of a single text: input_ids and attention_mask (tokens,)."""
        ids = torch.tensor(self.tokenizer.encode(text, self.config.length), dtype=torch.long)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def collate(self, examples: list[Example]) -> Batch:
        longest = max(len(example["input_ids"]) for example in examples)
        fill = {"input_ids": self.tokenizer.padding or 0, "attention_mask": 0}
        return stacked([{name: _filled(value, longest, fill.get(name)) for name, value in each.items()} for each in examples])


def _filled(value: Any, length: int, fill: int | None) -> Any:
    return value if fill is None else torch.nn.functional.pad(value, (0, length - len(value)), value=fill)
