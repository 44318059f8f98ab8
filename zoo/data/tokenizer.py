"""From text to token ids: UTF-8 bytes, or a `tokenizer.json` of Hugging Face's, which is read as data."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zoo.errors import DataError, did_you_mean
from zoo.extras import require

SPECIAL = {
    "padding": ("pad_token", ("[PAD]", "<pad>", "<|padding|>")),
    "start": ("bos_token", ("[CLS]", "<s>", "<|begin_of_text|>", "<|startoftext|>", "<|endoftext|>")),
    "end": ("eos_token", ("[SEP]", "</s>", "<|end_of_text|>", "<|endoftext|>")),
    "mask": ("mask_token", ("[MASK]", "<mask>")),
}
"""For each role, its name in a tokenizer_config.json and the usual tokens."""


class Tokenizer:
    """What all tokenizers have: ids from 0 to `vocabulary` - 1, some of them with a role."""

    vocabulary: int
    """How many token ids there are."""
    padding: int | None
    """Fills up shorter texts of a batch, where no token is looked at."""
    start: int | None
    """Stands before a text."""
    end: int | None
    """Stands behind a text."""
    mask: int | None
    """Stands for a token that is to be guessed."""

    def encode(self, text: str, length: int) -> list[int]:
        """The token ids of a text, at most `length` of them."""
        raise NotImplementedError

    def decode(self, ids: list[int]) -> str:
        """The text of token ids, those with a role left out."""
        raise NotImplementedError


class ByteTokenizer(Tokenizer):
    """The bytes of UTF-8 as ids 0 to 255, between a start and an end; needs no file and knows every text."""

    vocabulary = 260
    padding, start, end, mask = 256, 257, 258, 259

    def encode(self, text: str, length: int) -> list[int]:
        return [self.start, *text.encode("utf-8")[: length - 2], self.end]

    def decode(self, ids: list[int]) -> str:
        return bytes(token for token in ids if token < 256).decode("utf-8", errors="replace")


class FileTokenizer(Tokenizer):
    """A `tokenizer.json`, with the tokens that its own post-processor puts around a text.

    Args:
        path: the file, or a folder that holds it; a `tokenizer_config.json` beside it may name the tokens with a role.
        place: what errors call the data.

    Raises:
        DataError: there is no such file, or it describes no tokenizer.
    """

    def __init__(self, path: Path, place: str) -> None:
        file = path / "tokenizer.json" if path.is_dir() else path
        if not file.is_file():
            hint = did_you_mean(str(path), ["bytes"]) or '; expected "bytes", a tokenizer.json or a folder with one'
            raise DataError(f"{place}: tokenizer: {file} is no file{hint}")
        try:
            self._tokenizer: Any = require("tokenizers", "train", place).Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises bare Exceptions
            if isinstance(error, ImportError):
                raise
            raise DataError(f"{place}: tokenizer: {file} describes no tokenizer: {error}") from None
        padding = self._tokenizer.padding
        self._tokenizer.no_padding()
        self.vocabulary = self._tokenizer.get_vocab_size()
        named = _named(file.parent / "tokenizer_config.json")
        ids = {role: self._id_of([named.get(field), *usual]) for role, (field, usual) in SPECIAL.items()}
        self.padding = ids["padding"] if padding is None else padding["pad_id"]
        self.start, self.end, self.mask = ids["start"], ids["end"], ids["mask"]

    def encode(self, text: str, length: int) -> list[int]:
        if (self._tokenizer.truncation or {}).get("max_length") != length:
            self._tokenizer.enable_truncation(length)
        return list(self._tokenizer.encode(text).ids)

    def decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids))

    def _id_of(self, tokens: list[str | None]) -> int | None:
        found = (self._tokenizer.token_to_id(token) for token in tokens if token is not None)
        return next((token for token in found if token is not None), None)


def make_tokenizer(name: str, place: str) -> Tokenizer:
    """The tokenizer that a config names: `bytes`, or a path.

    Raises:
        DataError: the path leads to no tokenizer.
    """
    return ByteTokenizer() if name == "bytes" else FileTokenizer(Path(name).expanduser(), place)


def _named(file: Path) -> dict[str, str]:
    """The tokens that a tokenizer_config.json names by role."""
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(fields, Mapping):
        return {}
    texts = {name: value.get("content") if isinstance(value, Mapping) else value for name, value in fields.items()}
    return {name: value for name, value in texts.items() if isinstance(value, str)}
