"""What a model writes for texts or behind images, and how likely it holds that to be."""

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
from zoo.data.windows import boundaries
from zoo.errors import ConfigError
from zoo.generation.text import padded
from zoo.training.evaluate import files_of
from zoo.training.prediction import Prediction
from zoo.training.texts import batch_of, longest, tokenizer_of

LONGEST = 128
"""How many tokens a caption has at most where nobody says so."""


def answers(
    model: Any,
    source: str | Path,
    texts: Sequence[str] = (),
    data: Any = None,
    *,
    split: SplitName = "test",
    top: int = 1,
    batch_size: int = 64,
    home: Path | None = None,
) -> Iterator[Prediction]:
    """The likeliest targets that a search with `top` beams finds for each text, or for each pair of a part of the data.

    Args:
        model: an encoder-decoder, or a decoder that has learned to write behind a source; `source` is what messages call it.
        data: the config of the data of its run, if there is one.
        split: which part of them is answered where there are no texts.
        home: where what the data left lies (default: the folder of `source`).

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
        part.recall(home or files_of(source))
        rows = part.pairs_of(split)
    length, rows = longest(model, getattr(data, "length", None)), iter(rows)
    room, pair = getattr(data, "target_length", 256), model.config.type == "encoder-decoder"
    while some := list(islice(rows, batch_size)):
        sources = [tokenizer.encode(text, length) for text, _ in some]
        if pair:
            answered = written(model, batch_of(sources, tokenizer.padding, model.device), tokenizer, top, room)
        else:
            answered = written_behind(model, sources, tokenizer, top, room, prefix=True)
        for (text, label), found in zip(some, answered):
            yield Prediction(text, found, label)


def captions(
    model: Any,
    source: str | Path,
    images: Iterable[tuple[str, Tensor]],
    data: Any = None,
    *,
    top: int = 1,
    batch_size: int = 64,
) -> Iterator[Prediction]:
    """The likeliest texts that a search with `top` beams finds for each image.

    Args:
        model: one that writes a text behind an image; `source` is what messages call it.
        images: names and pixels (1, channels, height, width).
        data: the config of the data of its run, if there is one.

    Raises:
        ConfigError: the model has no tokenizer.
        DataError: its tokenizer has no token that stands before or behind a text.
    """
    tokenizer = tokenizer_of(model, source, data)
    start, images = boundaries(tokenizer)[0], iter(images)
    room = min(getattr(data, "length", None) or LONGEST, longest(model) - 1)
    while some := list(islice(images, batch_size)):
        pixels = torch.cat([each for _, each in some]).to(model.device)
        found = written_behind(model, [[start]] * len(some), tokenizer, top, room, pixel_values=pixels)
        yield from (Prediction(name, answers) for (name, _), answers in zip(some, found))


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


@torch.inference_mode()
def written_behind(
    model: Any,
    rows: Sequence[Sequence[int]],
    tokenizer: Tokenizer,
    top: int,
    length: int,
    *,
    prefix: bool = False,
    **front: Tensor,
) -> Iterator[list[tuple[str, float]]]:
    """The same by a decoder, behind tokens that are given.

    Args:
        prefix: whether these are a source, whose tokens see each other where the model can be told so.
        front: what else is given, such as `pixel_values`, one for each row.
    """
    end = boundaries(tokenizer)[1]
    inputs = padded(rows, tokenizer.padding, model.device)
    first = inputs["input_ids"].shape[1]
    told = prefix and hasattr(model, "causal")  # a transformer is causal throughout
    # of rows that are filled up on the left, all sources end at the same place
    lengths = {"prefix_lengths": torch.full((len(rows),), first, device=model.device)} if told else {}
    said = model.generate(
        **inputs, **front, **lengths, max_new_tokens=length, eos_token_id=end,
        pad_token_id=end if tokenizer.padding is None else tokenizer.padding, num_beams=top, num_return_sequences=top,
    )[:, first:].tolist()  # fmt: skip
    texts = [_until(ids, end) for ids in said]
    given = [list(row) for row in rows for _ in range(top)]
    # what ends a text is part of it, unless there was no room for it
    targets = [text + [end] * (end in ids) for text, ids in zip(texts, said)]
    again = {name: value.repeat_interleave(top, 0) for name, value in front.items()}
    if told:
        again["prefix_lengths"] = torch.tensor([len(row) for row in given], device=model.device)
    whole = batch_of([row + target for row, target in zip(given, targets)], tokenizer.padding, model.device)
    logits = model(**whole, **again).logits.float()
    shares = []
    for row, target, scores in zip(given, targets, logits):
        own = scores[len(row) - 1 : len(row) - 1 + len(target)].log_softmax(-1)
        shares.append(float(own.gather(1, torch.tensor(target, device=own.device)[:, None]).sum().exp()) if target else 1.0)
    for number in range(len(rows)):
        some = slice(number * top, (number + 1) * top)
        found = [(tokenizer.decode(text), share) for text, share in zip(texts[some], shares[some])]
        yield sorted(found, key=lambda answer: -answer[1])


def _until(ids: list[int], end: int | None) -> list[int]:
    return ids[: ids.index(end)] if end in ids else ids


__all__ = ["answers", "captions", "written", "written_behind"]
