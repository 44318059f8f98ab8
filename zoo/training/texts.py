"""Texts for a model at hand: its tokenizer, and batches of token ids."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from zoo.data.old_tokenizer import OLD, old_tokenizer
from zoo.data.tokenizer import FILE, FileTokenizer, Tokenizer, make_tokenizer
from zoo.errors import ConfigError
from zoo.training.evaluate import checked


def tokenizer_of(model: Any, source: str | Path, data: Any = None) -> Tokenizer:
    """The tokenizer of a model that was loaded.

    Args:
        source: what messages call it.
        data: the name, the fields or the config of the data of its run; if they read bytes, the model does.

    Raises:
        ConfigError: there is none, or it has token ids that the model does not.
        DataError: it cannot be read.
    """
    embedding = _read_by(model)
    if getattr(embedding, "type", None) != "tokens":
        found = getattr(embedding, "type", "images beside texts")
        raise ConfigError(f"{source}: texts need an embedding of type 'tokens', and this is {found!r}")
    place = Path(getattr(model.load_report, "place", None) or source)
    folder = place if place.is_dir() else place.parent
    named = getattr(checked("data", data), "tokenizer", None) if data is not None else None
    if (folder / FILE).is_file():
        tokenizer: Tokenizer = FileTokenizer(folder, str(source))
    elif named is not None and (named == "bytes" or "/" in named):
        tokenizer = make_tokenizer(named, str(source))
    elif all((folder / name).is_file() for name in OLD):
        tokenizer = old_tokenizer(folder, str(source))
    else:
        raise ConfigError(f"{source}: there is no {FILE} in {folder}, so nothing says what the model's tokens are")
    if tokenizer.vocabulary > embedding.vocabulary:
        what = f"{tokenizer.vocabulary} token ids, and the model {embedding.vocabulary}"
        raise ConfigError(f"{source}: the {FILE} in {folder} has {what}; it belongs to another model")
    return tokenizer


def longest(model: Any, length: int | None = None) -> int:
    """How many tokens of a text are read: `length`, or as many as the model has positions for.

    Raises:
        ConfigError: more than these, or fewer than three.
    """
    embedding = _read_by(model)
    skipped = (embedding.padding or 0) + 1 if embedding.count == "unpadded" else 0
    room = getattr(embedding.position, "length", None)
    if length is not None and (length < 3 or (room is not None and length > room - skipped)):
        most = "" if room is None else f" to {room - skipped}, for which the model has positions"
        raise ConfigError(f"length: expected 3{most or ' or more'}, got {length}")
    return length or (10_000_000 if room is None else room - skipped)


def batch_of(texts: Sequence[Sequence[int]], padding: int | None, device: torch.device) -> dict[str, Tensor]:
    """The inputs of texts that are token ids already: input_ids and attention_mask (batch, tokens)."""
    rows = [torch.tensor(ids, dtype=torch.long) for ids in texts]
    mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    ids = pad_sequence(rows, batch_first=True, padding_value=padding or 0)
    return {"input_ids": ids.to(device), "attention_mask": mask.to(device)}


def _read_by(model: Any) -> Any:
    """The config of the embedding that reads a model's texts: of an encoder-decoder the encoder's."""
    return getattr(model.config, "encoder", model.config).embedding


__all__ = ["batch_of", "longest", "tokenizer_of"]
