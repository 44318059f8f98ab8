"""Prompts as tokens, and tokens as text while they come."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from zoo.errors import InputError

if TYPE_CHECKING:
    from zoo.data.tokenizer import Tokenizer

LONGEST = 10_000_000
"""No prompt is cut."""


def prompt_ids(tokenizer: Tokenizer, text: str, start: int | None = None) -> list[int]:
    """The tokens of a text that is to be continued: what stands in front of it, but nothing that would end it.

    Args:
        start: stands in front, instead of what the tokenizer puts there.

    Raises:
        InputError: there is nothing to continue.
    """
    if start is not None:
        return [start, *tokenizer.content(text).ids]
    whole = tokenizer.pieces(text, LONGEST, rest=False)[0]
    ids, words = list(whole.ids), list(whole.words)
    while words and words[-1] < 0:
        words.pop()
    if not words:
        raise InputError("the prompt is empty: there is nothing to continue")
    return ids[: len(words)]


def padded(prompts: Sequence[Sequence[int]], padding: int | None, device: Any = None) -> dict[str, Tensor]:
    """The inputs of `generate` for prompts of any lengths: input_ids and attention_mask, padded on the left."""
    longest = max(len(ids) for ids in prompts)
    ids = torch.full((len(prompts), longest), padding or 0, dtype=torch.long)
    mask = torch.zeros(len(prompts), longest, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask[row, longest - len(prompt) :] = 1
    return {"input_ids": ids.to(device), "attention_mask": mask.to(device)}


class TextStream:
    """Turns tokens into text as they come. What a letter of several tokens is, is said with the last of them.

    Args:
        tokenizer: anything with `decode`.
        prompt: the tokens in front, which are not said again.
    """

    def __init__(self, tokenizer: Any, prompt: Sequence[int] = ()) -> None:
        self.tokenizer = tokenizer
        self.ids = list(prompt)
        self._from = max(0, len(self.ids) - 6)  # some tokens are written otherwise at the beginning of a text
        self._said = len(self.ids)

    def add(self, token: int) -> str:
        """What this token adds to the text; nothing while a letter is unfinished."""
        self.ids.append(token)
        return self._rest(whole=False)

    def end(self) -> str:
        """What is left, with marks for letters that were never finished."""
        return self._rest(whole=True)

    def _rest(self, whole: bool) -> str:
        known: str = self.tokenizer.decode(self.ids[self._from : self._said])
        text: str = self.tokenizer.decode(self.ids[self._from :])
        unfinished = text.endswith("\ufffd") and len(self.ids) - self._said < 8  # more is no letter, but noise
        if unfinished and not whole:
            return ""
        if len(self.ids) > self._said:
            self._from, self._said = self._said, len(self.ids)
        return text[len(known) :]
