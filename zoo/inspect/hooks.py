"""Sees and changes what runs through a model, at places that are named by their module path.

The names are the same for every family: `embedding`, `stack.layers.3`, `stack.layers.3.attention.pattern`, ... In a
pattern, `*`, `?` and `[...]` stand for characters within one step of the path, `**` for any number of steps.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from fnmatch import fnmatchcase
from typing import Any, Literal

import torch
from torch import Tensor, nn

from zoo.errors import InputError, UnknownNameError, did_you_mean, unknown
from zoo.model.base import Model

Change = Callable[[Tensor], Tensor]
Hook = Callable[[nn.Module, Any, Any], Any]
NO_BACKWARD = -1
"""What torch says when no backward pass is running."""


class Captured(dict[str, Any]):
    """Tensors by the name of their hook point, in the order in which they were computed."""

    def __missing__(self, name: str) -> Any:
        if not self:
            raise UnknownNameError(f"nothing was captured, {name!r} neither: the model did not run inside the context")
        hint = did_you_mean(name, self) or "; the model did not compute it, or it was not asked for"
        raise UnknownNameError(f"{name!r} was not captured{hint}")


def hook_points(model: nn.Module, patterns: str | Iterable[str] = "**") -> list[str]:
    """See `zoo.hook_points`."""
    return list(find(model, patterns))


@contextmanager
def capture(
    model: nn.Module, patterns: str | Iterable[str], *, calls: Literal["last", "all"] = "last", detach: bool = False
) -> Iterator[dict[str, Any]]:
    """See `zoo.capture`."""
    if calls not in ("last", "all"):
        raise unknown("choice of calls", calls, ("last", "all"))
    seen = Captured()

    def noting(name: str) -> Hook:
        def note(module: nn.Module, inputs: Any, output: Any) -> None:
            tensor = tensor_of(output)
            if tensor is None or torch._C._current_graph_task_id() != NO_BACKWARD:
                return  # gradient checkpointing runs a block again in the backward pass: no call of the user's
            tensor = tensor.detach() if detach else tensor
            if calls == "last":
                seen.pop(name, None)
                seen[name] = tensor
            else:
                seen.setdefault(name, []).append(tensor)

        return note

    with hooked({module: noting(name) for name, module in find(model, patterns).items()}):
        yield seen


@contextmanager
def intervene(model: nn.Module, changes: Mapping[str, Change]) -> Iterator[None]:
    """See `zoo.intervene`."""
    if not isinstance(changes, Mapping):
        raise InputError(f"intervene: expected a mapping from names to functions, got {type(changes).__name__}")
    chosen: dict[nn.Module, tuple[str, list[Change]]] = {}
    for pattern, function in changes.items():
        if not callable(function):
            raise InputError(f"intervene: {pattern}: expected a function of a tensor, got {function!r:.60}")
        for name, module in find(model, pattern).items():
            chosen.setdefault(module, (name, []))[1].append(function)

    def changing(name: str, functions: list[Change]) -> Hook:
        def change(module: nn.Module, inputs: Any, output: Any) -> Any:
            tensor = tensor_of(output)
            if tensor is None:
                return None
            for function in functions:
                tensor = _checked(name, tensor, function(tensor))
            return _replaced(output, tensor)

        return change

    # in front of other hooks: what is captured is what the model goes on with
    with hooked({module: changing(*entry) for module, entry in chosen.items()}, first=True):
        yield


def find(model: nn.Module, patterns: str | Iterable[str]) -> dict[str, nn.Module]:
    """The modules whose names match any of the patterns, in the model's order.

    Raises:
        UnknownNameError: a pattern matches nothing; the message gives the nearest name.
    """
    points = called(model)
    steps = {name: tuple(name.split(".")) for name in points}
    hits: set[str] = set()
    for pattern in [patterns] if isinstance(patterns, str) else list(patterns):
        if not isinstance(pattern, str):
            raise InputError(f"hook points: expected names or patterns, got {pattern!r:.60}")
        found = [name for name in points if matches(steps[name], tuple(pattern.split(".")))]
        if not found:
            raise _nothing(pattern, list(points))
        hits.update(found)
    return {name: module for name, module in points.items() if name in hits}


def matches(name: tuple[str, ...], pattern: tuple[str, ...]) -> bool:
    """Whether the steps of a path match those of a pattern."""
    if not pattern:
        return not name
    if pattern[0] == "**":
        return any(matches(name[skipped:], pattern[1:]) for skipped in range(len(name) + 1))
    return bool(name) and fnmatchcase(name[0], pattern[0]) and matches(name[1:], pattern[1:])


def inner(model: Any) -> nn.Module:
    """The model of zoo inside what wraps it (torch.compile, a LightningModule, DistributedDataParallel, adapters).

    A module without one is taken as it is.
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"expected a model, got {type(model).__name__}; zoo.build and zoo.load make one of a name")
    found = next((module for module in model.modules() if isinstance(module, Model)), model)
    plain: nn.Module = getattr(found, "_orig_mod", found)
    return plain


@contextmanager
def hooked(hooks: Mapping[nn.Module, Hook], first: bool = False) -> Iterator[None]:
    """Within it the hooks see the outputs of their modules; what they return, if anything, replaces the output."""
    with ExitStack() as stack:
        stack.enter_context(compiled_code_off())
        for module, hook in hooks.items():
            stack.callback(module.register_forward_hook(hook, prepend=first).remove)
        yield


def compiled_code_off() -> Any:
    """A context in which compiled models run as plain Python.

    Compiled code knows nothing of hooks that come later, since torch guards none of them, and compiling anew for each
    look would take minutes.
    """
    return torch.compiler.set_stance("force_eager")


def tensor_of(output: Any) -> Tensor | None:
    """The tensor that a module's output stands for: itself, or the first one of a tuple or a mapping."""
    if isinstance(output, Tensor):
        return output
    values = output.values() if isinstance(output, Mapping) else output if isinstance(output, tuple) else ()
    return next((value for value in values if isinstance(value, Tensor)), None)


def _replaced(output: Any, tensor: Tensor) -> Any:
    old = tensor_of(output)
    if isinstance(output, Mapping):
        return {name: tensor if value is old else value for name, value in output.items()}
    if isinstance(output, tuple):
        values = [tensor if value is old else value for value in output]
        return type(output)(*values) if hasattr(output, "_fields") else tuple(values)
    return tensor


def _checked(name: str, before: Tensor, after: Any) -> Tensor:
    if not isinstance(after, Tensor):
        raise InputError(f"intervene: {name}: the function returned {type(after).__name__}, expected a tensor")
    if after.shape != before.shape or after.dtype != before.dtype:
        ours, theirs = (f"{tuple(t.shape)} of {str(t.dtype).removeprefix('torch.')}" for t in (before, after))
        raise InputError(f"intervene: {name}: the function returned {theirs}, expected {ours}")
    return after


def called(model: nn.Module) -> dict[str, nn.Module]:
    """Every module that is called, by its path; lists of modules are not."""
    containers = (nn.ModuleList, nn.ModuleDict)
    return {name: module for name, module in inner(model).named_modules() if name and not isinstance(module, containers)}


def _nothing(pattern: str, names: list[str]) -> UnknownNameError:
    if not any(character in pattern for character in "*?["):
        return unknown("hook point", pattern, names)
    steps = ["**" if step == "*" else step for step in pattern.split(".")]
    for wider in (steps, ["**", *steps]):
        if "**" not in pattern and any(matches(tuple(name.split(".")), tuple(wider)) for name in names):
            rule = "* stands within one step of a name, ** for any number of steps"
            return UnknownNameError(f"no hook point matches {pattern!r}; did you mean {'.'.join(wider)!r}? ({rule})")
    # the nearest name, its numbers written as the pattern writes them
    starred = dict.fromkeys(re.sub(r"(?<=\.)\d+(?=\.|$)", "*", name) for name in names)
    ends = dict.fromkeys(f"**.{name.rpartition('.')[2]}" for name in names)
    near = ends if pattern.startswith("**") else [*starred, *names]
    return UnknownNameError(f"no hook point matches {pattern!r}{did_you_mean(pattern, near)}")
