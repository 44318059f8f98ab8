"""A model over several processes: fully sharded data parallel (FSDP2) and tensor parallel, as its parts declare it.

A part says by a class attribute `sharding` how the processes of a tensor-parallel group divide what it holds:

    sharding = {"heads": "count", "query": "column", "key": "column", "value": "column", "output": "row"}

Megatron's scheme (Shoeybi et al. 2019, https://arxiv.org/abs/1909.08053): columns first, then rows, with one sum over
the processes at the end. What lies between works on its share of the columns and knows nothing of the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from zoo.errors import ConfigError, did_you_mean

WAYS = {
    "column": "a linear layer whose outputs are divided among the processes",
    "row": "a linear layer whose inputs are divided; its outputs are summed over the processes",
    "head": "a module that treats each head alone, (batch, heads, tokens, size); its weights are on every process",
    "whole": "a module that would need all columns at once; a model that has it is refused",
    "same": "a module or parameter outside of what is divided; it is on every process",
    "count": "a number, such as that of the heads, that must be divisible by that of the processes",
}
"""What a part may say of an attribute."""
FUSED = ("adam", "adamw")
"""The optimisers whose fused implementation torch has for divided weights too."""


def shard(model: nn.Module, mesh: Any) -> None:
    """Divides the parameters of `model` among processes, all of which call this; once done, it is never done again.

    Fresh or loaded, the weights become those of the first process everywhere, as in DDP. The processes of a tensor-parallel
    group go on with the same random numbers: what is dropped where all of them hold the same must be the same.

    Args:
        mesh: a torch `DeviceMesh` with the dimensions `data_parallel` and `tensor_parallel`.

    Raises:
        ConfigError: a part cannot be divided among so many processes.
    """
    if is_sharded(model):
        return
    data, tensor = mesh["data_parallel"], mesh["tensor_parallel"]
    for problem in misfits(model, tensor.size()):
        raise ConfigError(f"tensor_parallel: {problem}")
    _agree(model, mesh.device_type)
    if tensor.size() > 1:
        _draw_alike(tensor)
        _divide(model, tensor)
    if data.size() > 1:
        _shard_fully(model, data)


def is_sharded(model: nn.Module) -> bool:
    """Whether this process holds only a share of the model."""
    return any(_is_distributed(parameter) for parameter in model.parameters())


def misfits(model: nn.Module, processes: int) -> Iterator[str]:
    """Why a tensor-parallel group of so many processes cannot hold the model; nothing where it can."""
    if processes == 1:
        return
    declared = False
    for place, part in model.named_modules():
        sharding: Mapping[str, str] = getattr(type(part), "sharding", {})
        declared = declared or bool(sharding)
        for name, way in sharding.items():
            yield from _misfits(f"{place}.{name}", getattr(part, name, None), way, processes)
        if sharding:
            inside = [*part.named_children(), *part.named_parameters(recurse=False)]
            for name, held in inside:
                if held is not None and name not in sharding and (isinstance(held, nn.Parameter) or any(held.parameters())):
                    kind = type(part).__name__
                    yield f"{place}.{name}: {kind}.sharding says nothing of it; expected {' or '.join(map(repr, WAYS))}"
    if not declared:
        yield "no part of this model says how it is divided (a class attribute `sharding`)"


def _misfits(place: str, held: Any, way: str, processes: int) -> Iterator[str]:
    if way not in WAYS:
        yield f"{place}: {way!r} is no way to divide it{did_you_mean(way, WAYS) or f'; expected one of {list(WAYS)}'}"
    elif held is None:
        return
    elif way == "whole":
        yield f"{place} needs all columns at once, so that it cannot be divided among {processes} processes"
    elif way == "count":
        if held % processes:
            yield f"{place}: {held} cannot be divided evenly among {processes} processes"
    elif way in ("column", "row"):
        if not isinstance(held, nn.Linear):
            yield f"{place}: only a linear layer is divided by {way}s, not {type(held).__name__}"
        elif (size := held.out_features if way == "column" else held.in_features) % processes:
            yield f"{place}: {size} {way}s cannot be divided evenly among {processes} processes"


def sum_gradients(model: nn.Module) -> None:
    """Makes gradients whole of which each process has a summand, as of a norm of heads; to be called after each backward."""
    for parameter in model.parameters():
        gradient: Any = parameter.grad
        if _is_distributed(gradient) and any(placement.is_partial() for placement in gradient.placements):
            parameter.grad = gradient.redistribute(placements=getattr(parameter, "placements"))


def one_mesh_each(groups: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """An optimiser's parameter groups, such that no group mixes parameters that are divided in different ways.

    Optimisers treat a group's parameters together, which torch can do for one kind only.
    """
    split: list[dict[str, Any]] = []
    for group in groups:
        kinds: dict[Any, list[nn.Parameter]] = {}
        for parameter in group["params"]:
            kinds.setdefault(getattr(parameter, "device_mesh", None), []).append(parameter)
        split += [{**group, "params": parameters} for parameters in kinds.values()]
    return split


def clip_gradients(parameters: Iterable[nn.Parameter], value: float, algorithm: str = "norm") -> None:
    """Clips gradients of which each process may hold only a share: by the norm of all together, or each value.

    Args:
        value: the largest norm or value.
        algorithm: `norm` or `value`, as `lightning.Trainer` calls them.
    """
    kinds = one_mesh_each([{"params": [each for each in parameters if each.grad is not None]}])
    if algorithm == "value":
        for kind in kinds:
            torch.nn.utils.clip_grad_value_(kind["params"], value, foreach=False)
        return
    norms: list[Any] = [torch.nn.utils.get_total_norm([each.grad for each in kind["params"]]) for kind in kinds]
    total = torch.linalg.vector_norm(torch.stack([norm.full_tensor() if _is_distributed(norm) else norm for norm in norms]))
    for kind in kinds:
        torch.nn.utils.clip_grads_with_norm_(kind["params"], value, total)


def _agree(model: nn.Module, device: str) -> None:
    """Gives every process the first one's weights."""
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            sent = tensor.detach().to(device)
            torch.distributed.broadcast(sent, 0)
            tensor.copy_(sent)


def _draw_alike(mesh: Any) -> None:
    """Gives the processes of a group the states of the first one's generators."""
    group, device = mesh.get_group(), mesh.device_type
    for library in (torch, *([] if device == "cpu" else [getattr(torch, device)])):
        state = library.get_rng_state().to(device)
        torch.distributed.broadcast(state, torch.distributed.get_global_rank(group, 0), group=group)
        library.set_rng_state(state.cpu())


def _divide(model: nn.Module, mesh: Any) -> None:
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, SequenceParallel, parallelize_module

    heads: dict[str, Any] = {"sequence_dim": 1, "use_local_output": True}  # the heads stand where a sequence would
    styles: dict[str, Callable[[], Any]] = {
        "column": ColwiseParallel,
        "row": RowwiseParallel,
        "head": lambda: SequenceParallel(**heads),
    }
    for part in model.modules():
        sharding: Mapping[str, str] = getattr(type(part), "sharding", {})
        plan = {name: styles[way]() for name, way in sharding.items() if way in styles and getattr(part, name) is not None}
        if plan:
            parallelize_module(part, mesh, plan)


def _shard_fully(model: nn.Module, mesh: Any) -> None:
    from torch.distributed.fsdp import fully_shard

    for part in list(model.modules()):
        if getattr(getattr(type(part), "Config", None), "kind", "") == "block":
            fully_shard(part, mesh=mesh)
        elif isinstance(part, nn.Linear):
            # a hook keeps `zoo.kernel` from preparing weights that are here for the length of one call only
            part.register_forward_pre_hook(_nothing)
    fully_shard(model, mesh=mesh)


def _is_distributed(tensor: Any) -> bool:
    return hasattr(tensor, "device_mesh")  # that is, a torch DTensor


def _nothing(*_: Any) -> None:
    return None


__all__ = ["FUSED", "WAYS", "clip_gradients", "is_sharded", "misfits", "one_mesh_each", "shard", "sum_gradients"]
