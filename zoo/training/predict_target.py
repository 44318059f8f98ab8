"""What a model of type `encoder-decoder` writes for texts, and how likely it holds that to be."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zoo import registry
from zoo.data.base import SplitName
from zoo.data.pairs import PairData
from zoo.data.tokenizer import Tokenizer
from zoo.errors import ConfigError
from zoo.training.evaluate import files_of
from zoo.training.prediction import Prediction
from zoo.training.texts import batch_of, longest, tokenizer_of


def answers(
    model: Any,
    source: str | Path,
    texts: Sequence[str] = (),
    data: Any = None,
    *,
    split: SplitName = "test",
    top: int = 1,
    batch_size: int = 64,
) -> Iterator[Prediction]:
    """The likeliest targets that a search with `top` beams finds for each text, or for each pair of a part of the data.

    Args:
        model: an encoder-decoder; `source` is what messages call it.
        data: the config of the data of its run, if there is one.
        split: which part of them is answered where there are no texts.

    Raises:
        ConfigError: the model has no tokenizer, or there is nothing to answer.
        DataError: the tokenizer has no token that ends a text.
    """
    tokenizer = tokenizer_of(model, source, data)
    if tokenizer.end is None:
        raise ConfigError(f"{source}: its tokenizer has no token that ends a text, so that no answer would ever end")
    rows: Iterable[tuple[str, str | None]] = ((text, None) for text in texts)
    if not texts:
        part = None if data is None else registry.make(data)
        if not isinstance(part, PairData):
            raise ConfigError(f"{source} belongs to no run with pairs of texts, so say what to answer")
        part.recall(files_of(source))
        rows = part.pairs_of(split)
    length, rows = longest(model, getattr(data, "length", None)), iter(rows)
    while some := list(islice(rows, batch_size)):
        inputs = batch_of([tokenizer.encode(text, length) for text, _ in some], tokenizer.padding, model.device)
        for (text, label), found in zip(some, written(model, inputs, tokenizer, top, getattr(data, "target_length", 256))):
            yield Prediction(text, found, label)


@torch.inference_mode()
def written(
    model: Any, inputs: dict[str, Tensor], tokenizer: Tokenizer, top: int, length: int
) -> Iterator[list[tuple[str, float]]]:
    """For each of the inputs the texts that the model writes, of at most `length` tokens, with their probabilities."""
    end, padding = tokenizer.end, tokenizer.end if tokenizer.padding is None else tokenizer.padding
    said = model.generate(
        **inputs, max_new_tokens=length, eos_token_id=end, pad_token_id=padding, num_beams=top, num_return_sequences=top
    )[:, 1:]
    ends = (said == end).cumsum(1)
    labels = said.masked_fill((ends > 1) | ((ends == 1) & (said != end)), -100)
    again = {name: value.repeat_interleave(top, 0) for name, value in inputs.items()}
    logits = model(**again, decoder_input_ids=model.shifted(labels)).logits.float().log_softmax(-1)
    chances = logits.gather(2, labels.clamp(min=0)[..., None])[..., 0].masked_fill(labels < 0, 0).sum(1).exp()
    for row, shares in zip(said.unflatten(0, (-1, top)).tolist(), chances.unflatten(0, (-1, top)).tolist()):
        found = [(tokenizer.decode(_until(ids, end)), share) for ids, share in zip(row, shares)]
        yield sorted(found, key=lambda answer: -answer[1])


def _until(ids: list[int], end: int | None) -> list[int]:
    return ids[: ids.index(end)] if end in ids else ids


__all__ = ["answers", "written"]
