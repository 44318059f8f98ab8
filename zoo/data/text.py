"""What data of texts share: how a text becomes token ids, and how texts of several lengths become a batch."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from zoo.config import Config, Problem
from zoo.config.base import PositiveInt
from zoo.data.base import Batch, Data, SplitName
from zoo.data.byte_pairs import BytePairs
from zoo.data.loader import Loader, stacked
from zoo.data.rows import Example, Row
from zoo.data.tokenizer import FILE, FileTokenizer, Piece, Tokenizer, Tokens, make_tokenizer
from zoo.data.tokenizer_training import KINDS, train_tokenizer
from zoo.data.windows import windows
from zoo.errors import ZooError

FILL = {"attention_mask": 0, "word_ids": -1, "sequence_ids": -1, "token_bytes": 0}
"""What stands beside the tokens that fill a row up."""


class TextConfig(Config):
    """Fields of all data of texts."""

    tokenizer: str = "bytes"
    """What makes tokens of a text: `bytes` (UTF-8, 260 ids with padding 256, start 257, end 258, mask 259); `wordpiece`
    or `bpe`, trained on the training part and saved with the model; or the path of a `tokenizer.json` or of a folder that
    holds one, where `package:NAME/PATH` is a path within an installed package."""
    vocabulary: Annotated[PositiveInt, Field(ge=8)] = 8192
    """How many token ids a tokenizer that is trained may have."""
    length: Annotated[int, Field(ge=3, le=10_000_000)] = 256
    """How many tokens of a text are read at most; what is behind them is left out, unless texts are packed."""
    pack: bool = False
    """Whether texts share rows of `length` tokens, so that little is filled up: longer ones are cut into pieces, and
    `sequence_ids` say which tokens are of one piece, so that pieces do not see each other. For tasks without labels."""

    def problems(self, **context: Any) -> Iterator[Problem]:
        embedding, name = context["model"].embedding, f"data {getattr(self, 'type')!r}"
        if getattr(embedding, "type", None) != "tokens":
            yield ("model", "embedding"), f"{name} are texts, which need an embedding of type 'tokens'"
            return
        skipped = (embedding.padding or 0) + 1 if embedding.count == "unpadded" else 0
        room = getattr(embedding.position, "length", None)
        if room is not None and self.length > room - skipped:
            yield ("data", "length"), f"the model has positions for {room - skipped} tokens, and texts are cut at {self.length}"
        if self.pack and getattr(self, "label_column", None) is not None:
            yield ("data", "pack"), "texts that share a row cannot have labels; leave one of the two out"
        tokens = self._tokens(name)
        if tokens is None:
            return
        vocabulary, padding = tokens
        if vocabulary > embedding.vocabulary:
            yield ("model", "embedding", "vocabulary"), f"{name} have {vocabulary} token ids, not {embedding.vocabulary}"
        if embedding.count == "unpadded" and padding != embedding.padding:
            yield ("model", "embedding", "padding"), f"{name} are filled up with {padding}, not {embedding.padding}"

    def _tokens(self, name: str) -> tuple[int, int | None] | None:
        """How many token ids there are, and which one fills rows up; None where that is not known yet."""
        if self.tokenizer in KINDS:
            return self.vocabulary, KINDS[self.tokenizer].padding
        try:
            tokenizer = make_tokenizer(self.tokenizer, name)
        except ZooError:
            return None  # a file that is not there is an error when texts are read; the config may be looked at elsewhere
        return tokenizer.vocabulary, tokenizer.padding


class TextData(Data):
    """Base of data of texts: input_ids and attention_mask (batch, tokens), filled up to the longest text of the batch.

    Rows of such data are mappings; which columns hold text and label, `text_column` and `label_column` say.
    """

    config: Any
    words: bool = False
    """Whether batches have `word_ids` (batch, tokens) too: which word of its text a token is of, -1 for none. A task that
    needs them switches them on."""
    runs: bool = False
    """Whether a long text is one run of tokens, each window of which goes on where the one before ended, instead of pieces
    that are texts of their own (see `zoo.data.windows`). Batches then have `token_bytes` (batch, tokens) too: how many
    bytes of the text a token stands for. A task for models that read from left to right switches this on."""
    dropout: float = 0.0
    """How likely each merge of byte pairs is left out where such runs are read for training; a task sets it."""
    pairs: BytePairs | None = None
    """What leaves them out; there is none but in the copy of the data by which the training part is read."""

    @property
    def text_column(self) -> str:
        """Where a row holds its text; nothing for data that are none of texts."""
        return "text"

    @property
    def label_column(self) -> str | None:
        """Where it holds its class; None for texts without."""
        return None

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """What makes tokens of a text, and says which ids have a role; trained now, if it is to be."""
        name = self.config.tokenizer
        if name in KINDS:
            return train_tokenizer(name, lambda: self.texts("train"), self.config.vocabulary, self.place)
        return make_tokenizer(name, self.place)

    def texts(self, name: SplitName) -> Iterator[str]:
        """The texts of a part, as they are stored and in this order; what is no text is left out."""
        return (row[self.text_column] for row in self._texts(name))

    def labels(self, name: SplitName) -> Iterator[int]:
        """Their classes."""
        return (row[str(self.label_column)] for row in self._texts(name))

    def _texts(self, name: SplitName) -> Iterator[Row]:
        rows = getattr(self.split(name), "rows")
        return (row for row in (rows(None) if callable(rows) else rows) if isinstance(row[self.text_column], str))

    def keep(self, folder: Path) -> None:
        self.tokenizer.save(folder)

    def recall(self, folder: Path | None) -> None:
        name = self.config.tokenizer
        if folder is not None and (folder / FILE).is_file() and (name in KINDS or not _is_there(name)):
            self.__dict__["tokenizer"] = FileTokenizer(folder, self.place)

    def loader(self, name: SplitName, **options: Any) -> Loader:
        self.tokenizer, self.tally  # noqa: B018 (made here, so that workers do not each train one, and copies share them)
        if name != "train" or not self.dropout:
            return super().loader(name, **options)
        reader = copy.copy(self)
        reader.pairs = BytePairs(self.tokenizer)
        return super(TextData, reader).loader(name, **options)

    def tokens(self, text: str) -> dict[str, Tensor]:
        """The inputs of a single text: input_ids and attention_mask (tokens,); packed, all its pieces and sequence_ids."""
        if self.runs:
            return self._run(text)
        pieces = self.tokenizer.pieces(text, self.config.length, rest=self.config.pack)
        ids = torch.tensor([token for piece in pieces for token in piece.ids], dtype=torch.long)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if self.config.pack:
            inputs["sequence_ids"] = _numbered(pieces)
        if self.words:
            inputs["word_ids"] = torch.tensor([word for piece in pieces for word in piece.words], dtype=torch.long)
        return inputs

    def _run(self, text: str) -> dict[str, Tensor]:
        content = self.pairs.content(text, self.dropout) if self.pairs is not None else None
        found = windows(self.tokenizer, text, self.config.length, self.config.pack, content)
        ids = torch.tensor([token for window in found for token in window.ids], dtype=torch.long)
        sizes = torch.tensor([size for window in found for size in window.sizes], dtype=torch.long)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_bytes": sizes}
        return {**inputs, "sequence_ids": _numbered(found)} if self.config.pack else inputs

    def collate(self, examples: list[Example]) -> Batch:
        rows = packed(examples, self.config.length) if self.config.pack else examples
        longest = max(len(row["input_ids"]) for row in rows)
        fill = {"input_ids": self.tokenizer.padding or 0, **FILL}
        return stacked([{name: _filled(value, longest, fill.get(name)) for name, value in row.items()} for row in rows])


def packed(examples: list[Example], length: int) -> list[Example]:
    """The pieces of all examples in as few rows of `length` tokens as putting the longest first gives.

    Each tensor of an example is of shape (tokens,); `sequence_ids` say which piece of it a token is of, and those of a
    row which of the row's pieces.
    """
    pieces = [
        {name: values[numbers == number] for name, values in example.items()}
        for example in examples
        for numbers in [example["sequence_ids"]]
        for number in numbers.unique()
    ]
    rows: list[list[dict[str, Tensor]]] = []
    room: list[int] = []
    for piece in sorted(pieces, key=lambda piece: -len(piece["input_ids"])):
        size = len(piece["input_ids"])
        place = next((place for place, free in enumerate(room) if free >= size), None)
        if place is None:
            rows.append([])
            room.append(length)
            place = -1
        rows[place].append(piece)
        room[place] -= size
    return [
        {
            **{name: torch.cat([piece[name] for piece in row]) for name in row[0]},
            "sequence_ids": torch.cat([torch.full_like(piece["input_ids"], number) for number, piece in enumerate(row)]),
        }
        for row in rows
    ]


def _numbered(pieces: Sequence[Piece | Tokens]) -> Tensor:
    sizes = torch.tensor([len(piece.ids) for piece in pieces])
    return torch.repeat_interleave(torch.arange(len(pieces)), sizes)


def _filled(value: Any, length: int, fill: int | None) -> Any:
    return value if fill is None else functional.pad(value, (0, length - len(value)), value=fill)


def _is_there(name: str) -> bool:
    try:
        make_tokenizer(name, "")
    except ZooError:
        return False
    return True


__all__ = ["TextConfig", "TextData", "packed"]
