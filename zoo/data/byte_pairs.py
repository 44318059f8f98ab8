"""Byte-pair encoding in which merges are left out at random, so that a word is met in many spellings."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from typing import Any

from zoo.data.tokenizer import LibraryTokenizer, Tokenizer, Tokens
from zoo.errors import DataError


class BytePairs:
    """The merges of a tokenizer of byte pairs.

    The library leaves out merges too, but draws from a generator that nobody can seed; this one draws from Python's.

    Args:
        tokenizer: one that was trained as `bpe`, or is of the same sort, such as GPT-2's.

    Raises:
        DataError: it is of another sort.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        library = tokenizer.library if isinstance(tokenizer, LibraryTokenizer) else None
        described: Mapping[str, Any] = {} if library is None else json.loads(library.to_str())
        splitters = described.get("pre_tokenizer") or {}
        kinds = {each["type"] for each in splitters.get("pretokenizers", [splitters]) if "type" in each}
        if library is None or described["model"]["type"] != "BPE" or "ByteLevel" not in kinds or described["normalizer"]:
            raise DataError("tokenizer: merges can be left out of byte pairs alone, such as those of 'bpe'")
        self.split = library.pre_tokenizer.pre_tokenize_str
        self.numbers: dict[str, int] = described["model"]["vocab"]
        merges = (tuple(pair.split(" ") if isinstance(pair, str) else pair) for pair in described["model"]["merges"])
        self.ranks = {pair: rank for rank, pair in enumerate(merges)}

    def content(self, text: str, dropout: float) -> Tokens:
        """The tokens of a text, as `Tokenizer.content` gives them but for the merges that are left out.

        Args:
            dropout: how likely each merge is left out, each time that it could be made.
        """
        parts = [part for word, _ in self.split(text) for part in self._merged(word, dropout)]
        return Tokens([self.numbers[part] for part in parts], [len(part) for part in parts])  # a letter stands for a byte

    def _merged(self, word: str, dropout: float) -> list[str]:
        parts = list(word)
        while True:
            first, place = len(self.ranks), -1
            for number in range(len(parts) - 1):
                rank = self.ranks.get((parts[number], parts[number + 1]), first)
                if rank < first and random.random() >= dropout:
                    first, place = rank, number
            if place < 0:
                return parts
            parts[place : place + 2] = [parts[place] + parts[place + 1]]


__all__ = ["BytePairs"]
