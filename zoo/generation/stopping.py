"""When a text has come to its end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from zoo.errors import InputError
from zoo.generation.options import GenerationOptions


class Stop:
    """Whether the newest token of each text ends it.

    Args:
        tokenizer: anything with `decode`, from a list of token ids to their text; for stop strings.
    """

    def __init__(self, options: GenerationOptions, tokenizer: Any, device: torch.device) -> None:
        self.ends = torch.tensor(options.ends, device=device) if options.ends else None
        self.strings, self.tokenizer = options.strings, tokenizer
        # no token is shorter than a byte; the first ones may decode to something else where the rest is cut off
        self.window = max((len(each.encode("utf-8")) for each in self.strings), default=0) + 4

    def __bool__(self) -> bool:
        """Whether anything but the length ends a text."""
        return self.ends is not None or bool(self.strings)

    def __call__(self, tokens: Tensor) -> Tensor:
        """(rows, tokens) so far -> (rows,), true where the last one is an end, or completes a stop string."""
        last = tokens[:, -1]
        if self.ends is None:
            ended = torch.zeros_like(last, dtype=torch.bool)
        elif len(self.ends) == 1:
            ended = last == self.ends
        else:
            ended = torch.isin(last, self.ends)
        if self.strings:
            said = [self._said(row) for row in tokens[:, -self.window :].tolist()]
            ended = ended | torch.tensor(said, device=tokens.device)
        return ended

    def _said(self, ids: Sequence[int]) -> bool:
        text: str = self.tokenizer.decode(list(ids))
        # a letter that is not yet whole is decoded to a mark, in whose place there may be a part of the string now
        before = len(str(self.tokenizer.decode(list(ids[:-1]))).rstrip("\ufffd"))
        return any(text.find(each, max(0, before - len(each) + 1)) >= 0 for each in self.strings)


def filling(options: GenerationOptions, tokenizer: Any, rows: int) -> int | None:
    """The token that fills up texts which end before others; None where no text does.

    Raises:
        InputError: it is needed, and nobody says which.
    """
    if options.pad_token_id is not None:
        return options.pad_token_id
    if options.ends:
        return options.ends[0]
    if not options.strings:
        return None
    for name in ("pad_token_id", "eos_token_id", "padding", "end"):
        found = getattr(tokenizer, name, None)
        if isinstance(found, int):
            return found
    if rows > 1:
        raise InputError("pad_token_id: texts that stop before others are filled up with it, and nobody says which it is")
    return 0
