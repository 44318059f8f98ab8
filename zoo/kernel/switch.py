"""The one switch of the package, and the question "may a fast way be taken here at all?".

Every function of `zoo.kernel` has a plain way, the torch call that it stands for, and some have a fast way
that was measured to beat it. The plain way is always right; the fast way is taken only where `fast()` holds
and the tensors are of a kind that the fast way was measured on (each function says which).

Two ways to have everything plain: the environment variable `ZOO_KERNEL=plain`, read when zoo is imported, and
the context manager `plain()`, which holds for the code inside it (per thread and per asynchronous task).
`ZOO_KERNEL=torch` allows fast ways, but only of torch's own operators: nothing is compiled (`zoo.kernel.compiled`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

_SETTING = os.environ.get("ZOO_KERNEL", "")
COMPILED = _SETTING not in ("plain", "torch")
"""Whether C sources may be compiled and used."""

_fast: ContextVar[bool] = ContextVar("zoo.kernel.fast", default=_SETTING != "plain")

_repetition: ContextVar[dict[Any, Any] | None] = ContextVar("zoo.kernel.repetition", default=None)


@contextmanager
def plain() -> Iterator[None]:
    """Within this context every function of `zoo.kernel` is its plain torch call."""
    before, around = _fast.set(False), _repetition.set(None)  # what was prepared outside is not for the plain calls
    try:
        yield
    finally:
        _repetition.reset(around)
        _fast.reset(before)


@contextmanager
def repeated() -> Iterator[None]:
    """Within this context the caller computes the same model again and again, and changes none of its weights.

    What is prepared from weights (`zoo.kernel.packed`) is then held against them once instead of in every call.
    """
    before = _repetition.set({})
    try:
        yield
    finally:
        _repetition.reset(before)


def repetition() -> dict[Any, Any] | None:
    """What is kept for as long as the innermost `repeated()` lasts, and stands for it; None outside of all."""
    return _repetition.get()


def fast() -> bool:
    """Whether fast ways are allowed at this point of the program.

    They are not while something watches or transforms the operators, because it must see the plain ones:
    torch.compile and torch.export, torch.jit tracing, torch.func transforms, forward-mode differentiation,
    dispatch and function modes (operation counters, fake tensors, default devices).
    """
    if torch.compiler.is_compiling():  # first: the compiler folds this and never sees the rest
        return False
    return (
        _fast.get()
        and torch._C._len_torch_dispatch_stack() == 0
        and torch._C._len_torch_function_stack() == 0
        and torch._C._functorch.peek_interpreter_stack() is None
        and torch._C._get_tracing_state() is None
        and forward_ad._current_level < 0
    )


def readable(tensor: Tensor, wait: bool = False) -> bool:
    """Whether code may look at a tensor's values.

    It may not while something traces or transforms the operators, because then there are none; nor on a device,
    which it would have to wait for, unless it says that it does (`wait`).
    """
    if torch.compiler.is_compiling() or type(tensor) not in _DENSE or tensor.is_meta:
        return False
    return (wait or tensor.device.type == "cpu") and torch._C._functorch.peek_interpreter_stack() is None


def product_dtype(*tensors: Tensor) -> torch.dtype | None:
    """The dtype in which a product of these tensors is computed by a fast way; None: only the plain way.

    That is float32 (all of them, no autocast) or bfloat16 (all of them, or float32 under bfloat16 autocast),
    on dense CPU tensors that are no subclasses. float64 is always plain: it is the reference.
    """
    autocast = torch.is_autocast_enabled("cpu")
    dtypes = set()
    for tensor in tensors:
        if type(tensor) not in _DENSE or tensor.device.type != "cpu" or tensor.layout != torch.strided:
            return None
        dtypes.add(tensor.dtype)
    if autocast:
        known = torch.get_autocast_dtype("cpu") == torch.bfloat16 and dtypes <= {
            torch.float32,
            torch.bfloat16,
        }
        return torch.bfloat16 if known else None
    return dtypes.pop() if len(dtypes) == 1 and dtypes <= {torch.float32, torch.bfloat16} else None


_DENSE = (Tensor, torch.nn.Parameter)
