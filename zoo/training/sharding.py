"""A model over several processes: fully sharded data parallel (FSDP2), tensor and expert parallel, as its parts declare it.

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
from zoo.training.expert_parallel import divide_experts

WAYS = {
    "column": "a linear layer whose outputs are divided among the processes",
    "row": "a linear layer whose inputs are divided; its outputs are summed over the processes",
    "head": "a module that treats each head alone, (batch, heads, tokens, size); its weights are on every process",
    "whole": "a module that would need all columns at once; a model that has it is refused",
    "heads": "a parameter whose last dimension is the heads, or a tuple with a number for each; a process has its own heads'",
    "experts": "stacked experts, which are divided among the processes; each computes the rows of its own",
    "same": "a module or parameter outside of what is divided; it is on every process",
    "count": "a number, such as that of the heads, that must be divisible by that of the processes",
}
"""What a part may say of an attribute."""
FUSED = ("adam", "adamw")
"""The optimisers whose fused implementation torch has for divided weights too."""


def shard(model: nn.Module, mesh: Any, expert: int = 1) -> None:
    """Divides the parameters of `model` among processes, all of which call this; once done, it is never done again.

    Fresh or loaded, the weights become those of the first process everywhere, as in DDP. The processes of a tensor-parallel
    group go on with the same random numbers: what is dropped where all of them hold the same must be the same.

    Args:
        mesh: a torch `DeviceMesh` with the dimensions `data_parallel` and `tensor_parallel`.
        expert: among how many of the processes of `data_parallel` experts are divided.

    Raises:
        ConfigError: a part cannot be divided among so many processes.
    """
    if is_sharded(model):
        return
    data, tensor = mesh["data_parallel"], mesh["tensor_parallel"]
    for problem in misfits(model, tensor.size()):
        raise ConfigError(f"tensor: {problem}")
    for problem in expert_misfits(model, expert, tensor.size()):
        raise ConfigError(f"expert: {problem}")
    _agree(model, mesh.device_type)
    parts = mesh._unflatten(0, (data.size() // expert, expert), ("replica", "expert"))
    _divide_experts(model, parts)
    if tensor.size() > 1:
        _draw_alike(tensor)
        _divide(model, tensor)
    if data.size() > 1:
        _shard_fully(model, data, parts["replica"] if expert > 1 else None)


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


def expert_misfits(model: nn.Module, processes: int, tensor: int = 1) -> Iterator[str]:
    """Why experts cannot be divided among so many processes, and their shares among so many of a tensor-parallel group."""
    found = list(_experts(model))
    if processes > 1 and not found:
        yield "no part of this model has experts (feedforward 'mixture-of-experts')"
    for place, experts in found:
        if processes > 1 and experts.number % (processes * tensor):
            among = f"{processes} x {tensor}" if tensor > 1 else processes
            yield f"{place}: {experts.number} experts cannot be divided evenly among {among} processes"


def _experts(model: nn.Module) -> Iterator[tuple[str, Any]]:
    for place, part in model.named_modules():
        for name, way in getattr(type(part), "sharding", {}).items():
            if way == "experts":
                yield f"{place}.{name}", getattr(part, name)


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
    elif way in ("heads", "experts"):
        if (size := held.number if way == "experts" else _heads(held)) % processes:
            yield f"{place}: {size} {way} cannot be divided evenly among {processes} processes"
    elif way in ("column", "row"):
        if not isinstance(held, nn.Linear):
            yield f"{place}: only a linear layer is divided by {way}s, not {type(held).__name__}"
        elif (size := held.out_features if way == "column" else held.in_features) % processes:
            yield f"{place}: {size} {way}s cannot be divided evenly among {processes} processes"


def _heads(held: Any) -> int:
    return held.shape[-1] if isinstance(held, nn.Parameter) else len(held)


def own_heads(numbers: tuple[Any, ...], place: int, processes: int) -> tuple[Any, ...]:
    """Of numbers of which each head has one, those of the heads of the process at this place of its group."""
    size = len(numbers) // processes
    return numbers[place * size : (place + 1) * size]


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
    from torch.distributed.tensor import Shard, distribute_tensor
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, SequenceParallel, parallelize_module

    heads: dict[str, Any] = {"sequence_dim": 1, "use_local_output": True}  # the heads stand where a sequence would
    styles: dict[str, Callable[[], Any]] = {
        "column": ColwiseParallel,
        "row": RowwiseParallel,
        "head": lambda: SequenceParallel(**heads),
    }
    for part in model.modules():
        sharding: Mapping[str, str] = getattr(type(part), "sharding", {})
        held = {name: (way, getattr(part, name)) for name, way in sharding.items() if getattr(part, name) is not None}
        plan = {name: styles[way]() for name, (way, each) in held.items() if way in styles and not hasattr(each, "sharding")}
        if plan:
            parallelize_module(part, mesh, plan)
        for name, (way, each) in held.items():
            if way == "heads" and not isinstance(each, nn.Parameter):
                setattr(part, name, own_heads(each, mesh.get_local_rank(), mesh.size()))
            elif way == "heads":
                divided = distribute_tensor(each.detach(), mesh, [Shard(each.ndim - 1)])
                part.register_parameter(name, nn.Parameter(divided, each.requires_grad))


def _divide_experts(model: nn.Module, mesh: Any) -> None:
    """Divides experts among the processes of the dimensions `expert` and `tensor_parallel`."""
    names = tuple(name for name in ("expert", "tensor_parallel") if mesh[name].size() > 1)
    for _, experts in list(_experts(model)) if names else ():
        divide_experts(experts, mesh["expert"], mesh["tensor_parallel"], mesh[names])


def _shard_fully(model: nn.Module, mesh: Any, replica: Any = None) -> None:
    """FSDP2 of every block and of what is left.

    Args:
        replica: the mesh of the processes that have the same experts, where not all have the same ones.
    """
    from torch.distributed.fsdp import fully_shard

    apart: set[nn.Parameter] = set()
    for _, experts in _experts(model):
        experts.register_forward_pre_hook(_nothing)
        if replica is not None and replica.size() > 1:
            fully_shard(experts, mesh=replica, shard_placement_fn=lambda parameter: _divisible(parameter, replica.size()))
        elif replica is not None:
            apart |= set(experts.parameters())
    for part in list(model.modules()):
        if _kind(part) == "block":
            fully_shard(part, mesh=mesh, ignored_params=apart)
        elif isinstance(part, nn.Linear):
            # a hook keeps `zoo.kernel` from preparing weights that are here for the length of one call only
            part.register_forward_pre_hook(_nothing)
    # of a model with several ways through it, the parts are called and not the whole
    ways = [part for part in model.modules() if _kind(part) in ("embedding", "stack", "head")]
    for part in ways if hasattr(model, "route") else [model]:
        if any(True for _ in part.parameters()):
            fully_shard(part, mesh=mesh, ignored_params=apart)


def _kind(part: nn.Module) -> str:
    return getattr(getattr(type(part), "Config", None), "kind", "")


def _divisible(parameter: Any, processes: int) -> Any:
    """Along which dimension FSDP2 divides a parameter of experts: one behind that of the experts, if it goes evenly."""
    from torch.distributed.tensor import Shard

    return Shard(next((place for place in range(1, parameter.ndim) if parameter.shape[place] % processes == 0), 0))


def _is_distributed(tensor: Any) -> bool:
    return hasattr(tensor, "device_mesh")  # that is, a torch DTensor


def _nothing(*_: Any) -> None:
    return None


__all__ = [
    "FUSED",
    "WAYS",
    "clip_gradients",
    "expert_misfits",
    "is_sharded",
    "misfits",
    "one_mesh_each",
    "own_heads",
    "shard",
    "sum_gradients",
]
