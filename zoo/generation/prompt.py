"""What a model is given to continue, checked before anything is computed."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from zoo.cache import Cache
from zoo.errors import InputError
from zoo.generation.options import DEFAULT_NEW, GenerationOptions


class Prompt(NamedTuple):
    """The prompts of a batch, (rows, tokens) each, on the model's device."""

    ids: Tensor
    """The tokens."""
    real: Tensor | None
    """True where a token is none of padding; None where all are real."""
    positions: Tensor | None
    """Where each token stands; None where they are 0, 1, 2, ..."""
    new: int
    """How many tokens are generated at most."""


def prompt_of(
    model: Any,
    input_ids: Any,
    attention_mask: Any,
    position_ids: Any,
    past: Cache | None,
    options: GenerationOptions,
) -> Prompt:
    """Checks the inputs of `generate`, and whether the model can continue them.

    Raises:
        InputError: it cannot, or they do not fit.
    """
    vocabulary = _vocabulary(model)
    ids = _ids(input_ids, vocabulary).to(model.device, torch.int64)
    for token in (*options.ends, *(() if options.pad_token_id is None else (options.pad_token_id,))):
        if token >= vocabulary:
            name = "eos_token_id" if token in options.ends else "pad_token_id"
            raise InputError(f"{name}: {token} is none of the model's tokens, 0 to {vocabulary - 1}")
    real = _real(ids, attention_mask, options)
    positions = _positions(model, ids, real, position_ids)
    if past is not None and len(past) >= ids.shape[1]:
        raise InputError(
            f"past_key_values: of {len(past)} tokens; input_ids holds these and at least one more, not {ids.shape[1]}"
        )
    return Prompt(ids, real, positions, _new(model, ids, real, positions, options))


def _vocabulary(model: Any) -> int:
    """How many tokens the model scores.

    Raises:
        InputError: it scores none, or scores them knowing what comes behind.
    """
    embedding, head = model.config.embedding, model.config.head
    read = getattr(model.embedding, "inputs", ("images beside texts",))[0]
    if read != "input_ids":
        raise InputError(f"generate: a model of texts is needed, and this one reads {read}")
    if "vocabulary" not in getattr(head, "context", ()):
        found = "none" if head is None else repr(getattr(head, "type", None))
        raise InputError(
            f"generate: this needs a head that scores the next token, such as 'language-model', and this is {found}"
        )
    if not getattr(model, "decodes", getattr(model.stack, "decodes", False)):
        raise InputError("generate: tokens of this model depend on later ones; only causal attention can be continued")
    return int(embedding.vocabulary)


def _ids(ids: Any, vocabulary: int) -> Tensor:
    if not isinstance(ids, Tensor):
        raise InputError(f"input_ids: expected a tensor, got {type(ids).__name__}")
    if ids.ndim != 2 or ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise InputError(f"input_ids: expected whole numbers of shape (batch, tokens), got {tuple(ids.shape)} of {ids.dtype}")
    if not ids.numel():
        raise InputError(f"input_ids: there is nothing to continue, got shape {tuple(ids.shape)}; begin with a start token")
    low, high = (int(each) for each in ids.aminmax())
    if low < 0 or high >= vocabulary:
        raise InputError(f"input_ids: {low if low < 0 else high} is none of 0 to {vocabulary - 1}")
    return ids


def _real(ids: Tensor, mask: Any, options: GenerationOptions) -> Tensor | None:
    """Which tokens are real. Without a mask it is read off the tokens, as transformers does, where padding is not the end."""
    if mask is None:
        padding = options.pad_token_id
        real = ids != padding if padding is not None and padding not in options.ends else None
    elif not isinstance(mask, Tensor) or tuple(mask.shape) != tuple(ids.shape) or mask.is_floating_point():
        found = f"{tuple(mask.shape)} of {mask.dtype}" if isinstance(mask, Tensor) else type(mask).__name__
        raise InputError(f"attention_mask: expected 0 and 1 of shape {tuple(ids.shape)}, as input_ids, got {found}")
    else:
        real = mask.to(ids.device).bool()
    if real is None or bool(real.all()):
        return None
    behind = (~real[:, -1]).nonzero()
    if len(behind):
        raise InputError(
            f"attention_mask: row {int(behind[0])} ends with padding, and it is the end that is continued; pad on the left"
        )
    return real


def _positions(model: Any, ids: Tensor, real: Tensor | None, given: Any) -> Tensor | None:
    """Where the tokens stand: each row counts from its own first one."""
    if given is not None:
        if (
            not isinstance(given, Tensor)
            or given.is_floating_point()
            or tuple(given.shape) not in (ids.shape, (1, ids.shape[1]))
        ):
            found = f"{tuple(given.shape)} of {given.dtype}" if isinstance(given, Tensor) else type(given).__name__
            raise InputError(f"position_ids: expected whole numbers of shape {tuple(ids.shape)}, as input_ids, got {found}")
        return given.to(ids.device, torch.int64).expand(ids.shape)
    if real is None or not getattr(model, "_placed", bool)():
        return None  # where nothing asks where tokens stand, the model takes no positions
    return (real.cumsum(1) - 1).clamp(min=0) + _first(model)


def _first(model: Any) -> int:
    """The position of a text's first token."""
    config = model.config.embedding
    return config.padding + 1 if getattr(config, "count", "all") == "unpadded" else 0


def _new(model: Any, ids: Tensor, real: Tensor | None, positions: Tensor | None, options: GenerationOptions) -> int:
    """How many tokens to generate. The last one is not read again, so that it needs no position."""
    tokens = ids.shape[1]
    room = getattr(getattr(model.embedding, "position", None), "length", None)  # of a learned table
    if positions is not None:
        used = int(positions[:, -1].max()) + 1
    else:
        used = tokens + _first(model)
    new = options.max_new_tokens
    if options.max_length is not None:
        new = options.max_length - tokens
        if new < 1:
            raise InputError(f"max_length: {options.max_length} leaves no room for a token behind a prompt of {tokens} tokens")
    if room is None:
        return new or DEFAULT_NEW
    most = room + 1 - used
    if most < 1:
        raise InputError(f"input_ids: the prompt ends at position {used - 1}, beyond the model's table of {room} positions")
    if new is not None and new > most:
        raise InputError(
            f"a prompt of {used - _first(model)} tokens + max_new_tokens={new} exceeds the model's table of {room} positions; "
            f"at most {most} new tokens fit"
        )
    return new or min(DEFAULT_NEW, most)
