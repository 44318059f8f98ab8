"""What the blocks of a model look at in another sequence, as a call gives it or a cache kept it."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from zoo.cache import Cache
from zoo.errors import InputError
from zoo.layout import Memory


def memory_of(tokens: Any, mask: Any, x: Tensor, cache: Cache | None) -> Memory:
    """The other sequence for tokens `x` (batch, tokens, width).

    Args:
        tokens: (batch, others, width); None where the cache has its keys and values.
        mask: (batch, others), 1 for those that may be attended to; or (batch or 1, heads or 1, tokens or 1, others), true for
            these, or a float to be added to the scores. A cache keeps the first kind.

    Raises:
        InputError: there is no other sequence, or it does not fit.
    """
    kept = None if cache is None else cache.layers[0].across
    if kept is None and tokens is None:
        raise InputError("encoder_hidden_states: missing; the blocks of this model attend to another sequence")
    several = cache.several if cache is not None and kept is not None else 1
    rows = x.shape[0] // several
    if tokens is not None:
        if not isinstance(tokens, Tensor) or not tokens.is_floating_point() or tokens.ndim != 3:
            found = f"{tuple(tokens.shape)} of {tokens.dtype}" if isinstance(tokens, Tensor) else type(tokens).__name__
            raise InputError(f"encoder_hidden_states: expected vectors of shape (batch, tokens, width), got {found}")
        if kept is None and (tokens.shape[0] != x.shape[0] or tokens.shape[2] != x.shape[2]):
            wanted = f"({x.shape[0]}, tokens, {x.shape[2]})"
            raise InputError(f"encoder_hidden_states: expected shape {wanted}, as the decoder's, got {tuple(tokens.shape)}")
    if kept is not None:
        if kept[0].shape[0] * several != x.shape[0]:
            raise InputError(f"past_key_values: of {kept[0].shape[0] * several} texts, but these are {x.shape[0]}")
        if tokens is not None and tokens.shape[1] != kept[0].shape[2]:
            raise InputError(
                f"encoder_hidden_states: of {tokens.shape[1]} tokens, but the past_key_values are of {kept[0].shape[2]}"
            )
    others = int(tokens.shape[1] if kept is None else kept[0].shape[2])
    if mask is None:
        return Memory(tokens, None if cache is None else cache.across)
    if not isinstance(mask, Tensor) or mask.is_complex():
        found = str(mask.dtype) if isinstance(mask, Tensor) else type(mask).__name__
        raise InputError(f"encoder_attention_mask: expected a tensor of 0 and 1, or of scores, got {found}")
    if mask.ndim == 4:
        fits = mask.shape[0] in (1, x.shape[0]) and mask.shape[2] in (1, x.shape[1]) and mask.shape[3] == others
        if not fits or several > 1:
            wanted = f"{(x.shape[0], others)} or {(x.shape[0], 1, x.shape[1], others)}"
            raise InputError(f"encoder_attention_mask: expected shape {wanted}, got {tuple(mask.shape)}")
        return Memory(tokens, mask if mask.is_floating_point() else mask.bool())
    if tuple(mask.shape) not in ((rows, others), (x.shape[0], others)):
        raise InputError(f"encoder_attention_mask: expected shape {(x.shape[0], others)}, got {tuple(mask.shape)}")
    seen = mask.bool()[:: several if mask.shape[0] != rows else 1, None, None, :]
    if cache is not None:
        cache.across = seen
    return Memory(tokens, seen)
