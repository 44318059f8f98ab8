"""State of an optimiser that goes on among other processes: found by the names of parameters, not by their places.

Among other processes parameters are divided in other ways, so that an optimiser has other groups (`one_mesh_each`); those of
one process are divided in one way only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer

from zoo.checkpoint.sharded import index, open_distributed, read_value
from zoo.errors import WeightsError

OWN = ("params", "fused", "foreach")
"""Fields of a group that follow from how the model is divided: torch fuses what is whole."""


def saved_groups(folder: Path) -> list[dict[str, Any]]:
    """The parameter groups of the optimiser in a distributed checkpoint; `params` are names.

    Raises:
        WeightsError: the checkpoint is damaged or asks to run code.
    """
    start, groups = "optimizer_0.param_groups.", dict[int, dict[str, Any]]()
    for name, pieces in index(folder).items():
        if name.startswith(start):
            place, _, field = name.removeprefix(start).partition(".")
            groups.setdefault(int(place), {})[field] = read_value(pieces, name)
    return [groups[place] for place in sorted(groups)]


def saved_states(folder: Path) -> set[str]:
    """The parameters of which a distributed checkpoint has the optimiser's state: those that took part in a step."""
    start = "optimizer_0.state."
    return {name.removeprefix(start).rpartition(".")[0] for name in index(folder) if name.startswith(start)}


def regrouped(
    groups: Sequence[Mapping[str, Any]], saved: Sequence[Mapping[str, Any]], where: Path | str
) -> list[dict[str, Any]]:
    """The fields of the saved groups for the parameters of these groups, which keep the way in which they are computed.

    Args:
        groups: of an optimiser, in which `params` are names.

    Raises:
        WeightsError: a parameter is in none of the saved groups.
    """
    found = []
    for group in groups:
        first = group["params"][0]
        before = next((each for each in saved if first in each["params"]), None)
        if before is None:
            raise WeightsError(f"{where}: no state of the optimiser for {first}; go on with the same model and optimizer")
        found.append({**before, **{name: group[name] for name in OWN if name in group}})
    return found


def whole_checkpoint(folder: Path) -> dict[str, Any]:
    """A distributed checkpoint as one process, or several with whole models, would have written it.

    The optimiser's state is by names; `by_place` brings it into the order of an optimiser.

    Raises:
        WeightsError: the checkpoint is damaged or asks to run code.
    """
    extras, stored = open_distributed(folder)
    checkpoint: dict[str, Any] = dict(extras)
    checkpoint["state_dict"] = {name: tensor.fetch(name) for name, tensor in stored.items()}
    states: dict[str, dict[str, Any]] = {}
    for name, pieces in index(folder).items():
        if name.startswith("optimizer_0.state."):
            parameter, _, field = name.removeprefix("optimizer_0.state.").rpartition(".")
            value = read_value(pieces, name) if pieces.shape is None else pieces.get_tensor(name)
            states.setdefault(parameter, {})[field] = value
    groups = saved_groups(folder)
    checkpoint["optimizer_states"] = [{"state": states, "param_groups": groups}] if groups else []
    return without_groups(checkpoint)


def without_groups(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Schedules without what they say of each group, which a new schedule knows from the config."""
    schedules = checkpoint.get("lr_schedulers", [])
    lists = ("base_values", "warmup_steps", "base_lrs", "_last_lr")
    plain = [{name: value for name, value in each.items() if name not in lists} for each in schedules]
    return {**checkpoint, "lr_schedulers": plain}


def by_place(module: nn.Module, optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """The state of an optimiser by the places of its parameters, from one by their names; any other as it is.

    Raises:
        WeightsError: a parameter has no state.
    """
    if not any(isinstance(name, str) for group in state["param_groups"] for name in group["params"]):
        return state
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    groups = [{**group, "params": [names[id(parameter)] for parameter in group["params"]]} for group in optimizer.param_groups]
    order = {name: place for place, name in enumerate(name for group in groups for name in group["params"])}
    found = regrouped(groups, state["param_groups"], "last.ckpt")
    return {
        "state": {order[name]: value for name, value in state["state"].items() if name in order},
        "param_groups": [{**group, "params": [order[name] for name in group["params"]]} for group in found],
    }


def by_name(names: Sequence[str], state: Mapping[str, Any], where: Path | str) -> dict[str, Any]:
    """The state of an optimiser by the names of its parameters, from one by their places; any other as it is.

    Args:
        names: of all parameters, in the order in which that optimiser had them.

    Raises:
        WeightsError: it had another number of parameters.
    """
    places = [place for group in state["param_groups"] for place in group["params"]]
    if any(isinstance(place, str) for place in places):
        return dict(state)
    if len(places) != len(names):
        raise WeightsError(f"{where}: the optimiser in it has {len(places)} parameters, and that of this model {len(names)}")
    order = dict(zip(places, names))
    return {
        "state": {order[place]: value for place, value in state["state"].items()},
        "param_groups": [{**group, "params": [order[place] for place in group["params"]]} for group in state["param_groups"]],
    }


__all__ = ["by_name", "by_place", "regrouped", "saved_groups", "saved_states", "whole_checkpoint", "without_groups"]
