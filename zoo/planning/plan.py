"""Whether a training fits into the memory of its devices, and what they send each other."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from zoo.config.resolve import resolve
from zoo.errors import ConfigError, InputError, did_you_mean, one_of, unknown
from zoo.model.construct import on_meta
from zoo.planning.optimizer import Held, held_by
from zoo.planning.precision import PRECISIONS
from zoo.planning.share import all_experts
from zoo.planning.step import Settings, Step, simulate
from zoo.planning.strategy import Strategy, all_strategies, read_strategy

UNITS = {f"{prefix}{unit}": (1000 if unit == "B" else 1024) ** power for unit in ("B", "iB")
         for power, prefix in enumerate(("", "k", "M", "G", "T")) if prefix or unit == "B"}  # fmt: skip
MOST = 2**16
"""The largest micro-batch that is looked for."""


class Memory(NamedTuple):
    """Bytes of one device at the moment when they are the most."""

    parameters: int
    gradients: int
    optimizer: int
    activations: int
    """Values kept for the backward pass, and those that are being computed."""
    buffers: int
    """What the engine gathers or sends: unsharded weights of FSDP, DDP's buckets."""

    @property
    def total(self) -> int:
        return sum(self)


class Estimate(NamedTuple):
    """What one strategy comes to."""

    strategy: Strategy
    reason: str
    """Why it does not fit; empty if it does."""
    micro_batch: int
    """Examples of each group of devices at once, to which the following belongs."""
    accumulate: int
    """How many of them make a step (`trainer.accumulate_grad_batches`)."""
    largest: int
    """The largest micro-batch that fits; 0 if none does."""
    memory: Memory | None
    """None where the model cannot be divided like that."""
    when: str
    """In which phase of a step the memory is the most."""
    communication: dict[str, int]
    """Bytes that a device sends in a step: `gather` weights, `reduce` gradients, `average` them, `sum` activations, `exchange`
    rows of tokens between experts."""

    @property
    def fits(self) -> bool:
        return not self.reason


class Plan(NamedTuple):
    """What a training would need, by strategy."""

    parameters: int
    devices: int
    memory: int
    """Bytes that each device has."""
    batch: int | None
    precision: str
    checkpointing: bool
    optimizer: str
    estimates: tuple[Estimate, ...]

    @property
    def fits(self) -> bool:
        """Whether any strategy does."""
        return any(estimate.fits for estimate in self.estimates)

    def as_json(self) -> dict[str, Any]:
        """Plain numbers and texts, bytes throughout."""
        estimates = [
            {**each._asdict(), "strategy": each.strategy.label, "trainer": each.strategy.trainer, "fits": each.fits,
             "memory": None if each.memory is None else {**each.memory._asdict(), "total": each.memory.total}}
            for each in self.estimates
        ]  # fmt: skip
        return {**self._asdict(), "estimates": estimates, "fits": self.fits}


def plan(
    model: Any,
    overrides: Mapping[str, Any] | None = None,
    *,
    devices: int = 1,
    memory: str | int = "80GB",
    strategy: Any = None,
    batch: int | None = None,
    tokens: int | None = None,
    precision: str = "32-true",
    checkpointing: bool = False,
    optimizer: str = "adamw",
    accelerator: Literal["gpu", "cpu"] = "gpu",
) -> Plan:
    """See `zoo.plan`."""
    for name, number in (("devices", devices), ("batch", batch), ("tokens", tokens)):
        if number is not None and number < 1:
            raise InputError(f"{name}: expected 1 or more, got {number}")
    if precision not in PRECISIONS:
        raise unknown("precision", precision, PRECISIONS)
    if accelerator not in ("gpu", "cpu"):
        raise unknown("accelerator", accelerator, ("gpu", "cpu"))
    room, config = read_memory(memory), resolve(model, overrides)
    whole = on_meta(config)
    experts = math.gcd(*(each.number for each in all_experts(whole))) or 1
    wanted = [strategy] if isinstance(strategy, (str, Mapping)) else strategy
    strategies = [read_strategy(each, devices) for each in wanted] if wanted else list(all_strategies(devices, experts))
    for each in strategies if wanted and batch is not None else []:
        if batch is not None and batch % each.data:
            raise ConfigError(f"batch: {batch} examples cannot be divided evenly among {each.data} groups of devices")
    planner = _Planner(config, Settings(precision, checkpointing, tokens, accelerator == "cpu"), optimizer, room)
    estimates = tuple(planner.estimate(each, batch) for each in strategies)
    return Plan(whole.num_parameters(), devices, room, batch, precision, checkpointing, optimizer, estimates)


def read_memory(value: str | int) -> int:
    """Bytes from `80GB` or `79GiB`; a number is one of bytes.

    Raises:
        InputError: no size, or one without a unit.
    """
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return value
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", str(value))
    if found is None or float(found[1]) == 0:
        raise InputError(f"memory: {value!r} is no size; expected one such as '80GB'")
    number, unit = found.groups()
    units = {name.lower(): size for name, size in UNITS.items()}
    if not unit:
        raise InputError(f"memory: {value!r} has no unit; did you mean '{number}GB'?")
    if unit.lower() not in units:
        raise InputError(f"memory: unknown unit {unit!r}{did_you_mean(unit, UNITS) or f'; expected {one_of(UNITS)}'}")
    return int(float(number) * units[unit.lower()])


class _Planner:
    """What the estimates of one plan have in common."""

    def __init__(self, config: Any, settings: Settings, optimizer: str, room: int) -> None:
        self.config, self.settings, self.optimizer, self.room = config, settings, optimizer, room
        self.held: dict[Strategy, Held] = {}
        self.steps: dict[tuple[Strategy, int], Step] = {}

    def estimate(self, strategy: Strategy, batch: int | None) -> Estimate:
        share = None if batch is None else batch // strategy.data
        if batch is not None and batch % strategy.data:
            return _none(strategy, f"a batch of {batch} cannot be divided evenly among {strategy.data} groups of devices")
        try:
            self._step(strategy, 1)
        except ConfigError as error:
            return _none(strategy, str(error))
        least, when, step = self._at(strategy, 1)
        if least.total > self.room:
            return Estimate(strategy, self._reason(least), 1, share or 1, 0, least, when, _sent(step, share or 1))
        largest = self._largest(strategy, least.total, share or MOST)
        micro = next(size for size in range(largest, 0, -1) if (share or largest) % size == 0)
        found, when, step = self._at(strategy, micro)
        accumulate = 1 if share is None else share // micro
        return Estimate(strategy, "", micro, accumulate, largest, found, when, _sent(step, accumulate))

    def _largest(self, strategy: Strategy, least: int, most: int) -> int:
        """The largest micro-batch that fits, found along the line between two that were counted."""
        fitting, need, failing = 1, least, most + 1
        guess = min(2, most)
        while failing - fitting > 1:
            found = self._at(strategy, guess)[0].total
            slope = max((found - need) / max(guess - fitting, 1), 1.0)
            if found <= self.room:
                fitting, need = guess, found
            else:
                failing = guess
            guess = min(max(fitting + int((self.room - need) / slope), fitting + 1), failing - 1)
        return fitting

    def _at(self, strategy: Strategy, batch: int) -> tuple[Memory, str, Step]:
        """Memory at its peak, in which phase that is, and the step."""
        step = self._step(strategy, batch)
        if strategy not in self.held:
            self.held[strategy] = held_by(self.optimizer, self.config, strategy, self.settings, step)
        held = self.held[strategy]
        bucket = step.gradients if strategy.name == "ddp" else 0.0
        phases = {name: dict(peak) for name, peak in step.peaks.items()}
        phases["optimiser's step"] = {"gradients": step.gradients, "activations": held.temporary, "buffers": bucket}
        when = max(phases, key=lambda name: sum(phases[name].values()))
        peak = {name: round(size) for name, size in phases[when].items()}
        found = Memory(round(step.parameters), peak["gradients"], round(held.states), peak["activations"], peak["buffers"])
        return found, _phase(when), step

    def _step(self, strategy: Strategy, batch: int) -> Step:
        if (strategy, batch) not in self.steps:
            self.steps[strategy, batch] = self._run(strategy, batch)
        return self.steps[strategy, batch]

    def _run(self, strategy: Strategy, batch: int) -> Step:
        """One step; of many equal layers a few are run, twice, and the others are as those in between."""
        short = _shortened(self.config)
        if short is None:
            return simulate(self.config, strategy, self.settings, batch)
        few, more, times = short
        return simulate(more, strategy, self.settings, batch).beyond(simulate(few, strategy, self.settings, batch), times)

    def _reason(self, memory: Memory) -> str:
        kept, room = memory.parameters + memory.optimizer, scaled(self.room)
        if kept > self.room:
            return f"weights and optimiser states alone take {scaled(kept)} of {room}"
        if kept + memory.gradients > self.room:
            return f"weights, gradients and optimiser states take {scaled(kept + memory.gradients)} of {room}"
        if kept + memory.gradients + memory.buffers > self.room:
            return f"with what is gathered and sent they take {scaled(memory.total - memory.activations)} of {room}"
        hint = "" if self.settings.checkpointing else "; activation checkpointing keeps less"
        return f"one example at a time takes {scaled(memory.total)} of {room}{hint}"


def _shortened(config: Any) -> tuple[Any, Any, float] | None:
    """The model with few layers, with a period more, and how many periods are then missing; None if it is short already."""
    stack: Any = getattr(config, "stack", None)
    if getattr(stack, "type", None) != "uniform":
        return None
    period = len(stack.pattern or [{}])
    few = 4 + (stack.depth - 4) % period
    more = few + period
    if stack.depth <= more + 2:
        return None
    try:
        return resolve(config, {"stack.depth": few}), resolve(config, {"stack.depth": more}), (stack.depth - more) / period
    except ConfigError:  # another part counts on the depth
        return None


def _sent(step: Step, accumulate: int) -> dict[str, int]:
    found = {name: size * (1 if name == "average" else accumulate) for name, size in step.traffic.items()}
    return {name: round(size) for name, size in found.items()}


def _none(strategy: Strategy, reason: str) -> Estimate:
    return Estimate(strategy, reason, 0, 0, 0, None, "", {})


def _phase(name: str) -> str:
    return {"forward": "forward pass", "loss": "backward pass", "optimiser's step": name}.get(name, "backward pass")


def scaled(number: float) -> str:
    """Bytes with three or four digits: `35.1 GB`."""
    for prefix in ("", "k", "M", "G"):
        if abs(number) < 999.5:
            return f"{number:.{0 if not prefix or abs(number) >= 99.95 else 1 if abs(number) >= 9.995 else 2}f} {prefix}B"
        number /= 1000
    return f"{number:.{0 if abs(number) >= 99.95 else 1 if abs(number) >= 9.995 else 2}f} TB"


__all__ = ["Estimate", "Memory", "Plan", "plan", "read_memory", "scaled"]
