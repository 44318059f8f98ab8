"""From text to token ids: UTF-8 bytes, or a `tokenizer.json` of Hugging Face's, which is read as data."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, NamedTuple

from zoo.errors import DataError, did_you_mean
from zoo.extras import require
from zoo.resources import packaged

FILE, CONFIG_FILE = "tokenizer.json", "tokenizer_config.json"
NAMES = ("bytes", "wordpiece", "bpe")
"""What a config may name instead of a path."""
SPECIAL = {
    "padding": (("pad_token",), ("[PAD]", "<pad>", "<|padding|>")),
    "start": (("bos_token", "cls_token"), ("[CLS]", "<s>", "<|begin_of_text|>", "<|startoftext|>", "<|endoftext|>")),
    "end": (("eos_token", "sep_token"), ("[SEP]", "</s>", "<|end_of_text|>", "<|endoftext|>")),
    "mask": (("mask_token",), ("[MASK]", "<mask>")),
}
"""For each role, its names in a tokenizer_config.json and the usual tokens."""


class Piece(NamedTuple):
    """A text, or a part of one that is too long."""

    ids: Sequence[int]
    """Its tokens, those that stand around a text included."""
    words: Sequence[int]
    """For each token, which word of the text it is of, counted from 0; -1 where it is of none."""


class Tokens(NamedTuple):
    """Tokens, and how much of a text they are."""

    ids: Sequence[int]
    """The tokens."""
    sizes: Sequence[int]
    """How many bytes of the text, in UTF-8, each of them stands for; 0 for one that stands around it."""


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
    mask_text: str | None = None
    """How the mask is written in a text; None where it cannot be."""

    def encode(self, text: str, length: int) -> list[int]:
        """The token ids of a text, at most `length` of them."""
        return list(self.pieces(text, length, rest=False)[0].ids)

    def pieces(self, text: str, length: int, rest: bool = True) -> list[Piece]:
        """A text in pieces of at most `length` tokens, each as if it were a text of its own.

        Args:
            rest: give all pieces; otherwise the first alone.
        """
        raise NotImplementedError

    def content(self, text: str) -> Tokens:
        """The tokens of the whole text alone, without those that stand around it.

        Of a letter that is several tokens, the first one may have all bytes; what no token stands for has none.
        """
        raise NotImplementedError

    def decode(self, ids: list[int]) -> str:
        """The text of token ids, those with a role left out."""
        raise NotImplementedError

    def token(self, number: int) -> str:
        """How a single token is shown."""
        return self.decode([number]) or f"<{number}>"

    def save(self, folder: Path) -> None:
        """Leaves in a folder what `make_tokenizer` and transformers open; bytes need no file."""


class ByteTokenizer(Tokenizer):
    """The bytes of UTF-8 as ids 0 to 255, between a start and an end; needs no file and knows every text."""

    vocabulary = 260
    padding, start, end, mask = 256, 257, 258, 259

    def pieces(self, text: str, length: int, rest: bool = True) -> list[Piece]:
        content, room = text.encode("utf-8"), length - 2
        words = [number for number, word in enumerate(_WORD.findall(content)) for _ in word]
        starts = range(0, max(len(content), 1), room) if rest else (0,)
        return [
            Piece(
                [self.start, *content[place : place + room], self.end],
                [-1, *words[place : place + room], -1],
            )
            for place in starts
        ]

    def content(self, text: str) -> Tokens:
        ids = list(text.encode("utf-8"))
        return Tokens(ids, [1] * len(ids))

    def decode(self, ids: list[int]) -> str:
        return bytes(token for token in ids if token < 256).decode("utf-8", errors="replace")

    def token(self, number: int) -> str:
        names = {self.padding: "<padding>", self.start: "<start>", self.end: "<end>", self.mask: "<mask>"}
        return names.get(number) or super().token(number)


_WORD = re.compile(rb"[0-9A-Za-z\x80-\xff]+|.", re.DOTALL)


class LibraryTokenizer(Tokenizer):
    """A tokenizer of the library `tokenizers`, with the tokens that its own post-processor puts around a text.

    Args:
        tokenizer: the library's; whatever it says of padding and of lengths is switched off.
        named: the tokens with a role, by their names in a tokenizer_config.json.
    """

    def __init__(self, tokenizer: Any, named: Mapping[str, str] | None = None) -> None:
        self._tokenizer = tokenizer
        self._named = {name: token for name, token in (named or {}).items() if name.endswith("_token")}
        padding = tokenizer.padding
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self.vocabulary = tokenizer.get_vocab_size()
        roles = {role: self._role(*names) for role, names in SPECIAL.items()}
        self.padding = roles["padding"] if padding is None else padding["pad_id"]
        self.start, self.end, self.mask = roles["start"], roles["end"], roles["mask"]
        self.mask_text = None if self.mask is None else tokenizer.id_to_token(self.mask)

    @property
    def library(self) -> Any:
        """The library's own."""
        return self._tokenizer

    def pieces(self, text: str, length: int, rest: bool = True) -> list[Piece]:
        if (self._tokenizer.truncation or {}).get("max_length") != length:
            self._tokenizer.enable_truncation(length)
        whole = self._tokenizer.encode(text)
        found = [whole, *whole.overflowing] if rest else [whole]
        return [Piece(each.ids, [-1 if word is None else word for word in each.word_ids]) for each in found]

    def content(self, text: str) -> Tokens:
        self._tokenizer.no_truncation()
        found = self._tokenizer.encode(text, add_special_tokens=False)
        ends = accumulate((end for _, end in found.offsets), max, initial=0)  # in letters
        before = range(len(text) + 1) if text.isascii() else _bytes_before(text)
        places = [before[end] for end in ends]
        return Tokens(found.ids, [after - place for place, after in pairwise(places)])

    def decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids))

    def token(self, number: int) -> str:
        known = self._tokenizer.id_to_token(number)
        return f"<{number}>" if known is None else self.decode([number]).strip() or str(known)

    def save(self, folder: Path) -> None:
        """Writes `tokenizer.json` and `tokenizer_config.json`, each in one step.

        Raises:
            DataError: the folder cannot be written.
        """
        self._tokenizer.no_truncation()
        roles = {"pad_token": self.padding, "cls_token": self.start, "sep_token": self.end, "mask_token": self.mask}
        tokens = {name: self._tokenizer.id_to_token(number) for name, number in roles.items() if number is not None}
        fields = {"tokenizer_class": "PreTrainedTokenizerFast", **tokens, **self._named}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _write(folder / FILE, self._tokenizer.to_str(pretty=True))
            _write(folder / CONFIG_FILE, json.dumps(fields, indent=2) + "\n")
        except OSError as error:
            raise DataError(f"{folder}: the tokenizer cannot be written: {error.strerror or error}") from None

    def _role(self, fields: Iterable[str], usual: Iterable[str]) -> int | None:
        tokens = [*(self._named[field] for field in fields if field in self._named), *usual]
        found = (self._tokenizer.token_to_id(token) for token in tokens)
        return next((token for token in found if token is not None), None)


class FileTokenizer(LibraryTokenizer):
    """A `tokenizer.json`.

    Args:
        path: the file, or a folder that holds it; a `tokenizer_config.json` beside it may name the tokens with a role.
        place: what errors call the data.

    Raises:
        DataError: there is no such file, or it describes no tokenizer.
    """

    def __init__(self, path: Path, place: str) -> None:
        file = path / FILE if path.is_dir() else path
        if not file.is_file():
            hint = did_you_mean(str(path), NAMES) or f"; expected {', '.join(NAMES)}, a tokenizer.json or a folder with one"
            raise DataError(f"{place}: tokenizer: {file} is no file{hint}")
        try:
            tokenizer: Any = require("tokenizers", "train", place).Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises bare Exceptions
            if isinstance(error, ImportError):
                raise
            raise DataError(f"{place}: tokenizer: {file} describes no tokenizer: {error}") from None
        super().__init__(tokenizer, _named(file.parent / CONFIG_FILE))


def make_tokenizer(name: str, place: str) -> Tokenizer:
    """The tokenizer that a config names: `bytes`, or a path, which `package:` may begin (see `zoo.resources.packaged`).

    Raises:
        DataError: the path leads to no tokenizer.
    """
    return ByteTokenizer() if name == "bytes" else FileTokenizer(packaged(name).expanduser(), place)


def _bytes_before(text: str) -> list[int]:
    """How many bytes stand before each letter, and before the end."""
    return list(accumulate((len(letter.encode("utf-8")) for letter in text), initial=0))


def _write(path: Path, text: str) -> None:
    """Writes beside `path` and renames, which is one step for whoever reads."""
    beside = path.with_name(f".{path.name}.unfinished")
    beside.write_text(text, encoding="utf-8")
    os.replace(beside, path)


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
