"""Records what the modules of two models compute, and measures the differences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from zoo.layout import Layout


class Seen(NamedTuple):
    """The call of a module: what it was given and what it gave."""

    inputs: tuple[Any, ...]
    output: Tensor


def error(ours: Tensor | None, theirs: Tensor) -> float:
    """The largest difference as a share of the largest value; infinite where there is none, or shapes or NaNs disagree."""
    if ours is None or ours.shape != theirs.shape:
        return float("inf")
    difference, scale = (ours.double() - theirs.double()).abs().max(), theirs.double().abs().max()
    value = float(difference / scale) if scale > 0 else float(difference)
    return value if value == value else float("inf")


def pairs(taps: tuple[tuple[str, str], ...], theirs: nn.Module, ours: nn.Module, depth: int) -> dict[str, str]:
    """Our module's name to theirs, in the order of computation, for the modules that both have.

    Theirs may be `A > B`, where no single module does what ours does: what A is given, and what B gives.
    """
    found: dict[str, str] = {}
    numbered = [tap for tap in taps if "{n}" in tap[1]]
    first = list(taps[: taps.index(numbered[0])]) if numbered else list(taps)
    last = [tap for tap in taps if tap not in numbered and tap not in first]
    layers = [tuple(name.replace("{n}", str(layer)) for name in tap) for layer in range(depth) for tap in numbered]
    modules = dict(theirs.named_modules()), dict(ours.named_modules())
    for their_name, our_name in [*first, *layers, *last]:
        names = [_present(name, modules[0]) for name in their_name.split(" > ")]
        if all(names) and our_name in modules[1]:
            found[our_name] = " > ".join(name for name in names if name)
    return found


def _present(name: str, modules: Mapping[str, nn.Module]) -> str | None:
    """The name, or the name without its prefix where the body is the whole model, if there is such a module."""
    return next((each for each in (name, name.partition(".")[2]) if each and each in modules), None)


@contextmanager
def recording(model: nn.Module, names: Mapping[str, str]) -> Iterator[dict[str, Seen]]:
    """Within it, each module that `names` points to notes its call under its key."""
    seen: dict[str, Seen] = {}
    given: dict[str, tuple[Any, ...]] = {}

    def note_inputs(key: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
            given[key] = args or tuple(named.values())

        return hook

    def note(key: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            seen[key] = Seen(given[key], _first(output))

        return hook

    handles: list[Any] = []
    for key, name in names.items():
        first, last = model.get_submodule(name.split(" > ")[0]), model.get_submodule(name.split(" > ")[-1])
        handles.append(first.register_forward_pre_hook(note_inputs(key), with_kwargs=True))
        handles.append(last.register_forward_hook(note(key)))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def own_errors(ours: nn.Module, theirs: Mapping[str, Seen], layout: Layout, inputs: Mapping[str, Any]) -> dict[str, float]:
    """How far each module of ours is from theirs when it is given what theirs was given."""
    return {
        name: error(fed(ours.get_submodule(name), name, seen, layout, inputs), seen.output) for name, seen in theirs.items()
    }


@torch.no_grad()
def fed(module: nn.Module, name: str, seen: Seen, layout: Layout, inputs: Mapping[str, Any]) -> Tensor:
    """What our module makes of what theirs was given."""
    if name == "embedding":
        allowed = {key: value for key, value in inputs.items() if key in module.inputs + module.options}  # type: ignore[operator]
        return _first(module(**allowed))
    x = seen.inputs[0]
    if name == "head":
        # the reference's last linear layer sees the pooled vector: the rest of our head has no counterpart
        last = getattr(module, "output", None)
        if x.ndim == 2:
            return x if last is None else _first(last(x))
        return _first(module(x, layout))
    takes_layout = name.endswith("attention") or name.rpartition(".")[2].isdigit()
    return _first(module(x, layout) if takes_layout else module(x))


def _first(output: Any) -> Tensor:
    if isinstance(output, Mapping):
        output = next(iter(output.values()))
    first: Tensor = output if isinstance(output, Tensor) else output[0]
    return first
