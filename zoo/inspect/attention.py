"""Who attends to whom: the attention weights of chosen layers, and attention traced through all of them."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from zoo.errors import InputError, one_of
from zoo.inspect.hooks import called, compiled_code_off, inner, matches
from zoo.layout import Layout

Heads = Sequence[int] | Literal["mean"] | None
LAYERS = "stack.**.attention"
"""The attentions of a model that has one stack."""


class Attended(NamedTuple):
    """What `zoo.attend` saw."""

    layers: tuple[int, ...]
    """Which layers the maps are of, as they were asked for, from 0."""
    heads: tuple[int, ...] | None
    """Which heads; None if the maps are means over all of them."""
    maps: tuple[Tensor, ...]
    """For each layer (batch, heads, tokens, keys): how much of each key a token takes, which sums to 1; a mean counts
    as one head."""
    rollout: Tensor | None
    """(batch, tokens, tokens): how much of each input token is in each token at the end, by attention rollout."""
    prefix: int
    """How many class and register tokens stand before the patches."""
    grid: tuple[int, int] | None
    """Rows and columns of the patches; None where the tokens form no grid."""
    output: Any
    """What the model gave."""
    grids: tuple[tuple[int, int] | None, ...] = ()
    """For each layer its rows and columns, where tokens are merged between layers; the same as `grid` elsewhere."""
    windows: tuple[Any, ...] = ()
    """For each layer how it cuts its grid into windows (`zoo.kernel.Windows`); None where it does not."""


def attend(
    model: nn.Module,
    inputs: Any,
    *,
    at: str = LAYERS,
    layers: Sequence[int] | None = None,
    heads: Heads = None,
    rollout: bool = False,
) -> Attended:
    """See `zoo.attend`."""
    names = attention_layers(model, at)
    chosen = numbered("layers", layers, len(names)) if layers is not None else tuple(range(len(names)))
    if isinstance(heads, str) and heads != "mean":
        raise InputError(f"heads: expected numbers or 'mean', got {heads!r}")
    maps: dict[int, Tensor] = {}
    traced: list[Tensor] = []
    picked: list[tuple[int, ...]] = []
    layout: list[Layout] = []
    given: dict[int, Layout] = {}

    def see(number: int, weights: Tensor) -> None:
        if number in chosen:
            if heads == "mean":
                maps[number] = weights.mean(1, keepdim=True)
            else:
                picked.append(
                    numbered("heads", heads, weights.shape[1]) if heads is not None else tuple(range(weights.shape[1]))
                )
                # copied, since a part of a map would hold the whole of it
                maps[number] = weights if heads is None else weights[:, list(picked[-1])].clone()
        if rollout:
            traced[:] = [_one_further(weights, *traced)]

    wanted = {name: number for number, name in enumerate(names) if rollout or number in chosen}
    plain = inner(model)
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        if "torch._dynamo" in sys.modules:  # without it, which takes a second to import, nothing is compiled
            stack.enter_context(compiled_code_off())
        stack.enter_context(_evaluating(plain))
        for name, number in wanted.items():
            stack.enter_context(_watched(plain.get_submodule(name), name, number, see))
            stack.enter_context(_told(plain.get_submodule(name), number, given))
        embedding = getattr(plain.get_submodule(names[0].rpartition("stack.")[0].rstrip(".")), "embedding", None)
        if isinstance(embedding, nn.Module):
            handle = embedding.register_forward_hook(lambda module, args, output: layout.extend(_layouts(output)))
            stack.callback(handle.remove)
        output = model(**inputs) if isinstance(inputs, Mapping) else model(inputs)
    if heads is None and len(set(picked)) > 1:
        picked = [max(picked, key=len)]  # layers may differ in how many heads they have
    grids = {number: each.grid for number, each in given.items()}
    configs = {number: getattr(plain.get_submodule(name), "config", None) for name, number in wanted.items()}
    return Attended(
        layers=chosen,
        heads=None if heads == "mean" else picked[0] if picked else (),
        maps=tuple(maps[number] for number in chosen),
        rollout=traced[0] if traced else None,
        prefix=layout[0].prefix if layout else 0,
        grid=layout[0].grid if layout else None,
        output=output,
        grids=tuple(grids.get(number) for number in chosen),
        windows=tuple(_cut(configs[number], grids.get(number)) for number in chosen),
    )


def rollout(maps: Iterable[Tensor]) -> Tensor:
    """Attention traced from the last layer through all before it to the input.

    Each layer passes on half of a token itself (the residual path) and half of what its heads, on average, take from
    all tokens. Paper: Abnar and Zuidema 2020, https://arxiv.org/abs/2005.00928, section 3.

    Args:
        maps: the attention weights (batch, heads, tokens, tokens) of all layers, the first layer first.

    Returns:
        (batch, tokens, tokens), rows that sum to 1: how much of each input token is in each token at the end.

    Raises:
        InputError: no maps, or some that do not lead from all tokens to all tokens.
    """
    traced: list[Tensor] = []
    for weights in maps:
        traced[:] = [_one_further(weights, *traced)]
    if not traced:
        raise InputError("rollout: there are no maps")
    return traced[0]


def attention_layers(model: nn.Module, at: str = LAYERS) -> list[str]:
    """The paths of the attentions of a model's layers, in their order.

    Args:
        at: a pattern of hook points; see `zoo.inspect.hooks`.

    Raises:
        InputError: it has none there; the message names those of its other stacks.
    """
    paths = [tuple(name.split(".")) for name in called(model)]
    found = [".".join(path) for path in paths if matches(path, tuple(at.split(".")))]
    if found:
        return found
    kind = type(inner(model)).__name__
    elsewhere = (matches(path, ("**", "stack", "**", "attention")) or path[-1] == "cross_attention" for path in paths)
    others = [f"{'.'.join(path[: path.index('stack') + 1])}.**.{path[-1]}" for path, is_one in zip(paths, elsewhere) if is_one]
    if others:
        raise InputError(f"{kind} has no attention at {at!r}; `at` can be {one_of(list(dict.fromkeys(others)))}")
    raise InputError(f"{kind} has no layers with attention that zoo knows of")


def _one_further(weights: Tensor, before: Tensor | None = None) -> Tensor:
    tokens, keys = weights.shape[-2:]
    if tokens == keys and before is not None and before.shape[-1] != keys:
        raise InputError(f"rollout: {before.shape[-1]} tokens became {keys} on the way, through which it cannot be traced")
    if tokens != keys:
        raise InputError(f"rollout: needs maps from all tokens to all tokens, and one is from {tokens} to {keys}")
    mixed = weights.mean(1, dtype=torch.promote_types(weights.dtype, torch.float32))
    mixed.diagonal(dim1=-2, dim2=-1).add_(1.0)
    mixed /= mixed.sum(-1, keepdim=True)
    return mixed if before is None else mixed @ before


@contextmanager
def _watched(module: nn.Module, name: str, number: int, see: Any) -> Iterator[None]:
    """Within it the attention is asked for its weights, which `see` is given and nobody else keeps."""

    def ask(module: nn.Module, args: Any, named: dict[str, Any]) -> Any:
        return args, {**named, "weights": True}

    def take(module: nn.Module, args: Any, output: Any) -> Any:
        if not (isinstance(output, tuple) and len(output) == 2 and isinstance(output[1], Tensor)):
            raise InputError(f"{name}: {type(module).__name__} gives no map of who attends to whom")
        see(number, output[1])
        return output[0], None

    handles = module.register_forward_pre_hook(ask, with_kwargs=True), module.register_forward_hook(take)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _cut(config: Any, grid: tuple[int, int] | None) -> Any:
    """How a layer of this config cuts its grid into windows; None where it does not."""
    return config.windows(grid) if grid is not None and hasattr(config, "windows") else None


@contextmanager
def _told(module: nn.Module, number: int, given: dict[int, Layout]) -> Iterator[None]:
    """Within it the layout that a layer is given is noted."""

    def note(module: nn.Module, args: Any, named: dict[str, Any]) -> None:
        for each in (*args, *named.values()):
            if isinstance(each, Layout):
                given[number] = each

    handle = module.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Within it the model is in eval mode; afterwards each of its modules is as it was."""
    training = [module for module in model.modules() if module.training]
    if training:
        model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _layouts(output: Any) -> list[Layout]:
    return [value for value in output if isinstance(value, Layout)] if isinstance(output, tuple) else []


def numbered(what: str, numbers: Sequence[int], available: int) -> tuple[int, ...]:
    """The numbers, counted from 0."""
    if isinstance(numbers, (str, bytes)) or not isinstance(numbers, Sequence):
        raise InputError(f"{what}: expected a list of numbers, got {numbers!r:.60}")
    for number in numbers:
        if not isinstance(number, int) or isinstance(number, bool):
            raise InputError(f"{what}: expected whole numbers, got {number!r:.60}")
        if not -available <= number < available:
            raise InputError(f"{what}: {number} is none of 0 to {available - 1} (negative numbers count from the end)")
    if not numbers:
        raise InputError(f"{what}: expected at least one")
    return tuple(number % available for number in numbers)
