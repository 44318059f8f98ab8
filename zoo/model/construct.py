"""From a config to a module: on the meta device first, then with memory and values."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from zoo.errors import ConfigError, did_you_mean
from zoo.model.base import Model
from zoo.registry import make


@contextmanager
def collection_paused() -> Iterator[None]:
    """Puts garbage collection off: hundreds of new modules would set off passes over all that is imported."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def on_meta(config: Any) -> Model:
    """The model with shapes but without memory."""
    with torch.device("meta"):
        model: Model = make(config)
    return model


def fresh(config: Any, device: Any = None, dtype: Any = None) -> Model:
    """The model with freshly drawn weights; on the meta device it stays without memory."""
    where, kind = read_device(device), read_dtype(dtype) or torch.get_default_dtype()
    with collection_paused():
        model = on_meta(config)
        if where.type == "meta":
            return model.to(kind)
        shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
        # torch's own `to_empty` imports its symbolic-shape machinery first, which takes half a second
        set_parameters(model, {name: torch.empty(shape, dtype=kind, device=where) for name, shape in shapes.items()})
        model.initialize_weights()
    return model


def set_parameters(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Puts these tensors themselves, no copies, where the parameters of these names are."""
    modules = dict(model.named_modules())
    for name, tensor in tensors.items():
        owner, _, attribute = name.rpartition(".")
        parameters = modules[owner]._parameters
        old = parameters[attribute]
        parameters[attribute] = nn.Parameter(tensor, requires_grad=old is None or old.requires_grad)


def read_device(device: Any) -> torch.device:
    """A device from its name; torch's default device from None."""
    try:
        found = torch.get_default_device() if device is None else torch.device(device)
        if found.type not in ("cpu", "meta"):
            torch.empty(0, device=found)  # whether there is one, only trying tells
        return found
    except (RuntimeError, TypeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().partition("\n")[0][:120]
        message = f"device: {device!r} is none here; expected one such as 'cpu', 'cuda', 'cuda:1' or 'meta' ({reason})"
        raise ConfigError(message) from None


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
