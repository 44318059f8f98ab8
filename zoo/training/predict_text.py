"""What a model says to texts: which words stand behind masks, which token comes next, and which class a text is of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zoo.data.tokenizer import Tokenizer
from zoo.data.windows import boundaries
from zoo.errors import ConfigError, InputError
from zoo.training.prediction import Prediction, likeliest
from zoo.training.texts import batch_of, longest, tokenizer_of

FILLED = ("masked-language-model", "pretraining")
"""The heads that guess what stands behind a mask."""


def fill(
    model: Any, source: str | Path, texts: Sequence[str], data: Any = None, *, top: int = 5, batch_size: int = 64
) -> Iterator[Prediction]:
    """The likeliest tokens for each mask of each text.

    Args:
        model: one with a head for masked tokens; `source` is what messages call it.
        texts: with the tokenizer's mask token, such as [MASK], in each.
        data: that of its run, if there is one.

    Raises:
        ConfigError: the model has no tokenizer, or one without a mask.
        InputError: a text without a mask, or one that is too long.
    """
    tokenizer = tokenizer_of(model, source, data)
    if tokenizer.mask is None or tokenizer.mask_text is None:
        raise ConfigError(f"{source}: its tokenizer has no mask token that can be written in a text")
    if not texts:
        raise ConfigError(f"{source}: say what to fill, such as 'A {tokenizer.mask_text} of words.'")
    length = longest(model)
    tokens = [_with_mask(text, tokenizer, length) for text in texts]
    for start in range(0, len(texts), batch_size):
        rows = tokens[start : start + batch_size]
        found = iter(_scores(model, batch_of(rows, tokenizer.padding, model.device), tokenizer.mask))
        for text, row in zip(texts[start:], rows):
            masks = row.count(tokenizer.mask)
            for number in range(1, masks + 1):
                what = text if masks == 1 else f"{text} (mask {number})"
                yield Prediction(what, likeliest(next(found), tokenizer.token, top))


def follow(
    model: Any, source: str | Path, texts: Sequence[str], data: Any = None, *, top: int = 5, batch_size: int = 64
) -> Iterator[Prediction]:
    """The likeliest next tokens of each text; the arguments are those of `fill`.

    Raises:
        ConfigError: the model has no tokenizer.
        DataError: its tokenizer has no token that stands before a text.
        InputError: a text that is too long.
    """
    tokenizer = tokenizer_of(model, source, data)
    if not texts:
        raise ConfigError(f"{source}: say what the next token is asked of, such as 'A list of'")
    length, start = longest(model), boundaries(tokenizer)[0]
    tokens = [[start, *tokenizer.content(text).ids] for text in texts]
    for text, row in zip(texts, tokens):
        if len(row) > length:
            raise InputError(f"{text!r:.80}: these are {len(row)} tokens, and the model reads {length}")
    for first in range(0, len(texts), batch_size):
        rows = tokens[first : first + batch_size]
        inputs = batch_of(rows, tokenizer.padding, model.device)
        last = torch.zeros_like(inputs["attention_mask"], dtype=torch.bool)
        last[range(len(rows)), [len(row) - 1 for row in rows]] = True
        with torch.inference_mode():
            scores = model(**inputs, score_mask=last).logits
        for text, row in zip(texts[first:], scores):
            yield Prediction(text, likeliest(row, lambda token: _shown(tokenizer, token), top))


def _shown(tokenizer: Tokenizer, token: int) -> str:
    """A token with the blank before it, if there is one; blanks alone as Python writes them."""
    text = tokenizer.decode([token])
    return text if text.strip() else repr(text) if text else tokenizer.token(token)


def classify(
    model: Any,
    source: str | Path,
    texts: Sequence[str],
    names: Sequence[str],
    data: Any = None,
    *,
    top: int = 5,
    batch_size: int = 64,
) -> Iterator[Prediction]:
    """The likeliest classes of each text; the arguments are those of `fill`, and the `names` of the classes.

    Raises:
        ConfigError: the model has no tokenizer.
    """
    tokenizer, read = tokenizer_of(model, source, data), getattr(data, "length", None)
    length = longest(model, read)
    for start in range(0, len(texts), batch_size):
        some = texts[start : start + batch_size]
        inputs = batch_of([tokenizer.encode(text, length) for text in some], tokenizer.padding, model.device)
        with torch.inference_mode():
            logits = model(**inputs).logits
        yield from (Prediction(text, likeliest(row, names.__getitem__, top)) for text, row in zip(some, logits))


def _with_mask(text: str, tokenizer: Tokenizer, length: int) -> list[int]:
    whole, mask = tokenizer.pieces(text, length), int(tokenizer.mask or 0)
    if not any(mask in piece.ids for piece in whole):
        raise InputError(f"{text!r:.80}: there is no mask in it; write {tokenizer.mask_text} where a word is to be guessed")
    ids = list(whole[0].ids)
    if ids.count(mask) < sum(list(piece.ids).count(mask) for piece in whole):
        raise InputError(f"{text!r:.80}: a mask stands behind the {length} tokens that the model reads")
    return ids


@torch.inference_mode()
def _scores(model: Any, inputs: dict[str, Tensor], mask: int) -> Tensor:
    """(masks, vocabulary), row by row."""
    masked = inputs["input_ids"] == mask
    if model.config.head.type == "pretraining":
        return model(**inputs).prediction_logits[masked]
    return model(**inputs, score_mask=masked).logits


__all__ = ["FILLED", "classify", "fill", "follow"]
