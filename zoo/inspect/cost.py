"""What each part of a model costs: parameters, products, and what training keeps for the backward pass.

All of it is read off a copy of the model on the meta device, which has shapes but no memory.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from zoo.attention.base import HookPoint
from zoo.config.resolve import resolve
from zoo.errors import ConfigError, InputError
from zoo.inspect.hooks import inner
from zoo.model.base import Model
from zoo.model.construct import collection_paused, on_meta

TOKENS = 512
"""How long a text is where nobody says, unless the model takes only shorter ones."""


class Part(NamedTuple):
    """A part of a model and what it costs, the parts inside it included."""

    name: str
    """Its module path; empty for the model itself."""
    type: str
    """Its name in the registry, or the name of its class."""
    parameters: int
    """How many numbers are learned; shared ones count once."""
    flops: int
    """Floating-point operations of one forward pass in eval mode: two for each multiplication and addition of a
    matrix product, a convolution or an attention. Norms, activations and sums are not counted."""
    memory: int
    """Bytes that a forward pass in train mode keeps for the backward pass, each tensor counted once, where it is kept
    first; parameters are not counted."""
    parts: tuple[Part, ...]
    """The parts inside it."""

    def walk(self) -> Iterator[Part]:
        """This part and all inside it, each before its own parts."""
        yield self
        for part in self.parts:
            yield from part.walk()


def cost(
    model: Any,
    overrides: Mapping[str, Any] | None = None,
    *,
    batch: int = 1,
    tokens: int | None = None,
    inputs: Mapping[str, Tensor] | None = None,
) -> Part:
    """See `zoo.cost`."""
    for name, number in (("batch", batch), ("tokens", tokens)):
        if number is not None and number < 1:
            raise InputError(f"{name}: expected 1 or more, got {number}")
    with collection_paused():  # the meta device imports thousands of modules of torch
        twin = _twin(inner(model)) if isinstance(model, nn.Module) else on_meta(resolve(model, overrides))
        if isinstance(model, nn.Module) and overrides:
            raise ConfigError("overrides: a model that is built already cannot be changed; give its config instead")
        given = _on_meta(inputs) if inputs is not None else example_inputs(twin, batch, tokens)
        kept = _memory(twin.train(), given)
        flops = _flops(twin.eval().requires_grad_(False), given)
        return _part(twin, "", flops, kept, set())


def example_inputs(model: nn.Module, batch: int = 1, tokens: int | None = None) -> dict[str, Tensor]:
    """Inputs without memory, of the size that the model is made for.

    Raises:
        InputError: the model's embedding reads something of which only the caller knows the size.
    """
    towers = [getattr(model, name) for name in ("text", "vision") if isinstance(getattr(model, name, None), Model)]
    if towers:
        lengths = [None if hasattr(tower.config.embedding, "image_size") else tokens for tower in towers]
        given = [example_inputs(tower, batch, length) for tower, length in zip(towers, lengths)]
        return {name: value for each in given for name, value in each.items()}
    if isinstance(getattr(model, "encoder", None), Model):  # which reads as many tokens as are written
        sides = [getattr(model, name) for name in ("encoder", "decoder")]
        lengths = [None if hasattr(side.config.embedding, "image_size") else tokens for side in sides]
        read, written = (example_inputs(side, batch, length) for side, length in zip(sides, lengths))
        return {**read, "decoder_input_ids": written["input_ids"]}
    if hasattr(model, "embeddings"):  # of many tasks; the first one stands for the others, unless `task` is among the inputs
        whole: Any = model
        found: dict[str, Any] = {"task": next(iter(whole.config.tasks))}
        for name in whole.config.read_by(found["task"]):
            one: Any = SimpleNamespace(embedding=whole.embeddings[name], parameters=whole.parameters)
            found |= example_inputs(one, batch, None if hasattr(one.embedding.config, "image_size") else tokens)
        return found
    embedding: Any = getattr(model, "embedding", None)
    config: Any = getattr(embedding, "config", None)
    names = getattr(embedding, "inputs", ())
    if names[:1] == ("pixel_values",) and hasattr(config, "image_size"):
        if tokens is not None:
            raise InputError("tokens: this model reads images, whose number of tokens follows from their size")
        return {"pixel_values": torch.empty(batch, config.channels, *config.image_size, dtype=_dtype(model), device="meta")}
    if names[:1] == ("input_ids",):
        longest = getattr(getattr(config, "position", None), "length", None) or TOKENS
        return {"input_ids": torch.zeros(batch, tokens or min(longest, TOKENS), dtype=torch.int64, device="meta")}
    what = f"reads {', '.join(names)}" if names else "is none of zoo's"
    raise InputError(f"cost: this model {what}; say of which size: inputs={{{names[0] if names else 'name'!r}: tensor}}")


def _twin(model: nn.Module) -> nn.Module:
    """A copy on the meta device, made without copying a single weight; hooks stay behind."""
    tensors = [*model.parameters(), *model.buffers()]
    known: dict[int, Any] = {id(tensor): _shape_of(tensor) for tensor in tensors}
    twin = copy.deepcopy(model, known)
    for module in twin.modules():
        for hooks in (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks):
            hooks.clear()
    return twin


def _shape_of(tensor: Tensor) -> Tensor:
    shape = torch.empty_like(tensor, device="meta")
    return nn.Parameter(shape, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else shape


def _on_meta(inputs: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value.to("meta") if isinstance(value, Tensor) else value for name, value in inputs.items()}


@torch.no_grad()
def _flops(model: nn.Module, inputs: Mapping[str, Any]) -> dict[str, int]:
    """The operations inside each module, by its path."""
    from torch.utils.flop_counter import FlopCounterMode

    # On the meta device attention is its two products, which every version of the counter knows.
    with FlopCounterMode(display=False) as counter:
        model(**inputs)
    root = type(model).__name__
    counts = {name: sum(each.values()) for name, each in counter.get_flop_counts().items()}
    return {name.removeprefix(root).removeprefix("."): number for name, number in counts.items() if name != "Global"}


class FusedAttention(TorchFunctionMode):
    """Attention on the meta device keeps what the fused kernel keeps, not the weights of all pairs of tokens."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is functional.scaled_dot_product_attention:
            return self._attention(*args, **(kwargs or {}))
        return function(*args, **(kwargs or {}))

    def _attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        if dropout_p > 0.0 or query.shape[-1] != value.shape[-1]:  # there is no fused kernel for these on a CPU
            return functional.scaled_dot_product_attention(
                query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
            )
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            attn_mask = torch.empty_like(attn_mask, dtype=query.dtype)
        fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        mixed: Tensor = fused(query, key, value, 0.0, is_causal, attn_mask=attn_mask, scale=scale)[0]
        return mixed


def _memory(model: nn.Module, inputs: Mapping[str, Any]) -> dict[str, int]:
    """The bytes that each module itself keeps for the backward pass, by its path."""
    counts: dict[str, int] = {}
    seen: dict[int, Any] = {t.untyped_storage()._cdata: None for t in [*model.parameters(), *model.buffers()]}
    where: list[str] = [""]

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in seen:
            seen[storage._cdata] = storage  # held, so that no other can come to have its number
            counts[where[-1]] = counts.get(where[-1], 0) + storage.nbytes()
        return tensor

    watching = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with _following(model, where), watching, torch.enable_grad(), FusedAttention():
        model(**inputs)
    return counts


@contextmanager
def _following(model: nn.Module, where: list[str]) -> Iterator[None]:
    """Within it `where[-1]` is the path of the module that is running."""
    handles = []
    for name, module in model.named_modules():
        if name and not isinstance(module, HookPoint):  # whose value would be computed if it were watched
            handles.append(module.register_forward_pre_hook(lambda module, inputs, name=name: where.append(name)))
            handles.append(module.register_forward_hook(lambda module, inputs, output: where.pop() and None))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _part(module: nn.Module, name: str, flops: Mapping[str, int], kept: Mapping[str, int], counted: set[int]) -> Part:
    own = 0
    for parameter in module.parameters(recurse=False):
        own += 0 if id(parameter) in counted else parameter.numel()
        counted.add(id(parameter))
    parts = tuple(_parts(module, name, flops, kept, counted))
    return Part(
        name=name,
        type=type_of(module),
        parameters=own + sum(part.parameters for part in parts),
        flops=flops.get(name, 0),
        memory=kept.get(name, 0) + sum(part.memory for part in parts),
        parts=parts,
    )


def _parts(module: nn.Module, name: str, *figures: Any) -> Iterator[Part]:
    for step, child in module.named_children():
        path = f"{name}.{step}" if name else step
        if isinstance(child, (nn.ModuleList, nn.ModuleDict)):  # no part of its own: its members are
            yield from _parts(child, path, *figures)
        else:
            yield _part(child, path, *figures)


def type_of(module: nn.Module) -> str:
    """What a config calls a module: its name in the registry; the name of its class if it has none there."""
    field = getattr(getattr(type(module), "Config", None), "model_fields", {}).get("type")
    return str(field.default) if field is not None else type(module).__name__


def _dtype(model: nn.Module) -> torch.dtype:
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.get_default_dtype())
