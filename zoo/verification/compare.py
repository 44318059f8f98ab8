"""Records what the modules of two models compute, and measures the differences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from zoo.cache import LayerCache
from zoo.errors import ZooError
from zoo.layout import Layout

ROUTERS = ("router_logits", "encoder_router_logits", "decoder_router_logits")
"""Outputs of which each layer's stands for itself."""


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

    Theirs may be `A > B`, where no single module does what ours does: what A is given, and what B gives; or `A >> B`: what
    A gives, and what B gives; or `A < B`: what A is given, and what B is given.
    """
    found: dict[str, str] = {}
    numbered = [tap for tap in taps if "{n}" in tap[1]]
    first = list(taps[: taps.index(numbered[0])]) if numbered else list(taps)
    last = [tap for tap in taps if tap not in numbered and tap not in first]
    layers = [tuple(name.replace("{n}", str(layer)) for name in tap) for layer in range(depth) for tap in numbered]
    modules = dict(theirs.named_modules()), dict(ours.named_modules())
    for their_name, our_name in [*first, *layers, *last]:
        between = _between(their_name)
        names = [_present(name, modules[0]) for name in their_name.split(between)]
        if all(names) and our_name in modules[1]:
            found[our_name] = between.join(name for name in names if name)
    return found


def _between(name: str) -> str:
    """What stands between the modules of a tap."""
    return next((each for each in (" >> ", " < ") if each in name), " > ")


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

    def note_output(key: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            given[key] = (_first(output),)

        return hook

    def note(key: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            given_here = tuple(map(_tokens, given[key]))
            seen[key] = Seen(given_here, _tokens(_first(output)).clone())  # some models go on to write over it

        return hook

    def note_next(key: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            seen[key] = Seen(given[key], _tokens(args[0]))

        return hook

    handles: list[Any] = []
    for key, name in names.items():
        between = _between(name)
        first, last = model.get_submodule(name.split(between)[0]), model.get_submodule(name.split(between)[-1])
        if between == " >> ":
            handles.append(first.register_forward_hook(note_output(key)))
        else:
            handles.append(first.register_forward_pre_hook(note_inputs(key), with_kwargs=True))
        if between == " < ":
            handles.append(last.register_forward_pre_hook(note_next(key)))
        else:
            handles.append(last.register_forward_hook(note(key)))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def own_errors(
    ours: nn.Module,
    theirs: Mapping[str, Seen],
    layout: Layout,
    inputs: Mapping[str, Any],
    caches: dict[str, LayerCache] | None = None,
    layouts: Mapping[str, Layout] | None = None,
    memory: Tensor | None = None,
) -> dict[str, float]:
    """How far each module of ours is from theirs when it is given what theirs was given.

    Args:
        layouts: of modules whose tokens are others than those that the first module is given.
        caches: what each module kept of the calls before, where they go on; it kept what it made of theirs, too.
        memory: what cross-attention of theirs looks at.
    """
    found = {}
    for name, seen in theirs.items():
        own = (layouts or {}).get(name, layout)
        if memory is not None and own.memory is not None:
            own = own._replace(memory=own.memory._replace(tokens=memory))
        own = own if caches is None else own._replace(cache=caches.setdefault(name, LayerCache()))
        try:
            found[name] = error(fed(ours.get_submodule(name), name, seen, own, inputs), seen.output)
        except (ZooError, RuntimeError):  # it cannot take what theirs was given
            found[name] = float("inf")
    return found


@torch.no_grad()
def fed(module: nn.Module, name: str, seen: Seen, layout: Layout, inputs: Mapping[str, Any]) -> Tensor:
    """What our module makes of what theirs was given."""
    part = name.rpartition(".")[2]
    if part == "embedding":
        given = inputs
        if name == "decoder.embedding":
            own = {key.removeprefix("decoder_"): value for key, value in inputs.items() if key.startswith("decoder_")}
            given = {"input_ids": layout.ids, **own}
        allowed = {key: value for key, value in given.items() if key in module.inputs + module.options}  # type: ignore[operator]
        borrowed = {"table": layout.table} if getattr(module, "table", module) is None else {}
        return _first(module(**allowed, **({"past": layout.past} if layout.past else {}), **borrowed))
    x = seen.inputs[0]
    if part == "head":
        # the reference's last linear layer sees the pooled vector: the rest of our head has no counterpart
        last = getattr(module, "output", None)
        if x.ndim == 2:
            return x if last is None else _first(last(x))
        return _first(module(x, layout))
    if part == "cross_attention":
        return _first(module(x, layout, memory=layout.memory))
    takes_layout = name.endswith("attention") or part.isdigit()
    return _first(module(x, layout) if takes_layout else module(x))


def answered(output: Any) -> dict[str, Any]:
    """What our model answers by name; each feature map, and each answer of a tower, stands for itself."""
    answers: dict[str, Any] = output._asdict()
    maps = answers.pop("feature_maps", None) or {}
    for name in ROUTERS:
        answers |= {f"{name}.{layer}": each for layer, each in enumerate(answers.pop(name, None) or ())}
    towers = {name: answered(value) for name, value in answers.items() if hasattr(value, "_asdict")}
    answers |= {f"{tower}.{name}": value for tower, inner in towers.items() for name, value in inner.items()}
    return answers | {f"feature_maps.{name}": each.map for name, each in maps.items()}


def layouts(seen: Mapping[str, Seen]) -> dict[str, Layout]:
    """What the tokens are that our modules were given, as far as they were told."""
    given = {name: [value for value in call.inputs if isinstance(value, Layout)] for name, call in seen.items()}
    return {name: found[0] for name, found in given.items() if found}


def _tokens(value: Any) -> Any:
    """A grid of tokens, (batch, rows, columns, size), as a row of them; anything else as it is."""
    return value.flatten(1, 2) if isinstance(value, Tensor) and value.ndim == 4 else value


def _first(output: Any) -> Tensor:
    if isinstance(output, Mapping):
        output = next(iter(output.values()))
    first: Tensor = output if isinstance(output, Tensor) else output[0]
    return first
