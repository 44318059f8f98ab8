"""From a config to a module: on the meta device first, then with memory and values."""

from __future__ import annotations

from typing import Any

import torch

from zoo.errors import ConfigError, did_you_mean
from zoo.model.base import Model
from zoo.registry import make


def on_meta(config: Any) -> Model:
    """The model with shapes but without memory."""
    with torch.device("meta"):
        model: Model = make(config)
    return model


def fresh(config: Any, device: Any = None, dtype: Any = None) -> Model:
    """The model with freshly drawn weights; on the meta device it stays without memory."""
    model = on_meta(config)
    model.to(read_dtype(dtype) or torch.get_default_dtype())
    where = read_device(device)
    if where.type == "meta":
        return model
    model.to_empty(device=where)
    model.initialize_weights()
    return model


def read_device(device: Any) -> torch.device:
    """A device from its name; torch's default device from None."""
    try:
        return torch.get_default_device() if device is None else torch.device(device)
    except (RuntimeError, TypeError):
        raise ConfigError(f"device: {device!r} is none; expected one such as 'cpu', 'cuda', 'cuda:1' or 'meta'") from None


def read_dtype(dtype: Any) -> torch.dtype | None:
    """A floating type from itself or its name; None stays None."""
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if found is None and dtype is None:
        return None
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        floats = ("float32", "float64", "bfloat16", "float16")
        hint = did_you_mean(dtype, floats) or f"; expected one of {', '.join(floats)}"
        raise ConfigError(f"dtype: {dtype!r} is no floating type{hint}")
    return found
