"""Texts for models that read from left to right: one run of tokens, cut where it is too long."""

from __future__ import annotations

from zoo.data.tokenizer import Tokenizer, Tokens
from zoo.errors import DataError


def windows(tokenizer: Tokenizer, text: str, length: int, rest: bool = True, content: Tokens | None = None) -> list[Tokens]:
    """The start token, a text and the end token, in windows of at most `length` tokens.

    The first token of each further window is the last of the one before: it was guessed there, and is here to be seen
    alone. So, of all windows together, every token but the start is guessed once, the end token with them, and the bytes
    of what is guessed are those of the text.

    Args:
        rest: give all windows; otherwise the first alone, which has no end token where the text goes on behind it.
        content: the text's own tokens (default: those that the tokenizer gives).

    Raises:
        DataError: the tokenizer has no token that could stand before or behind a text.
    """
    start, end = boundaries(tokenizer)
    content = tokenizer.content(text) if content is None else content
    ids = [start, *content.ids, end]
    left = len(text.encode("utf-8")) - sum(content.sizes)  # what the tokenizer drops, such as blanks, ends the text
    sizes = [0, *content.sizes, left]
    places = range(0, len(ids) - 1, length - 1) if rest else (0,)
    return [Tokens(ids[place : place + length], [0, *sizes[place + 1 : place + length]]) for place in places]


def boundaries(tokenizer: Tokenizer) -> tuple[int, int]:
    """The tokens before and behind a text; where the tokenizer has only one of them, it is both, as in GPT-2.

    Raises:
        DataError: it has neither.
    """
    start = tokenizer.end if tokenizer.start is None else tokenizer.start
    end = tokenizer.start if tokenizer.end is None else tokenizer.end
    if start is None or end is None:
        raise DataError("tokenizer: it has neither a start nor an end token, so that no text could begin or end")
    return start, end


__all__ = ["boundaries", "windows"]
