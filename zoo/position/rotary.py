"""Queries and keys turned by angles that grow with their place."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from zoo import kernel
from zoo.config import Config, Problem, within
from zoo.config.base import PositiveInt
from zoo.layout import Layout
from zoo.position.base import AttentionPosition, PositionConfig

Positive = Annotated[float, Field(gt=0)]
USED = {
    "linear": {"factor"},
    "dynamic": {"factor", "length"},
    "llama3": {"factor", "length", "slow", "fast"},
    "yarn": {"factor", "length", "slow", "fast", "attention", "truncate"},
}
"""The fields of each way to scale."""


class RotaryScaling(Config):
    """How the angles are changed, so that a model serves longer texts than those it was first trained on."""

    type: Literal["linear", "dynamic", "llama3", "yarn"]
    """`linear` slows all angles alike (Chen et al. 2023, https://arxiv.org/abs/2306.15595). `dynamic` raises theta for texts
    beyond `length`, the more the longer they are. `llama3` and `yarn` (Peng et al. 2023, https://arxiv.org/abs/2309.00071)
    slow what turns seldom within `length`, keep what turns often, and blend between: by the turns, or by the number of the
    feature."""
    factor: Positive
    """How many times slower angles grow."""
    length: PositiveInt | None = None
    """How many places the model was first trained on (all but `linear`)."""
    slow: Positive | None = None
    """So many turns within `length`, or fewer, are seldom (`llama3`, `yarn`; default: 1)."""
    fast: Positive | None = None
    """So many turns within `length`, or more, are often (default: 4 for `llama3`, 32 for `yarn`)."""
    attention: float | None = None
    """What cosine and sine are multiplied by (`yarn`; default: 0.1 x ln(factor) + 1)."""
    truncate: bool = True
    """Whether the features between which is blended are rounded to whole numbers (`yarn`)."""

    def problems(self, *, size: int, theta: float, **context: Any) -> Iterator[Problem]:
        for name, field in type(self).model_fields.items():
            if name not in {"type", *USED[self.type]} and getattr(self, name) != field.default:
                yield (name,), f"{self.type!r} has no such field; its fields are {', '.join(sorted(USED[self.type]))}"
        if self.type != "linear" and self.length is None:
            yield ("length",), f"{self.type!r} needs to know how many places the model was first trained on"
        if self.type == "dynamic" and size <= 2:
            yield ("type",), "'dynamic' needs more than two features to turn"
        if self.type == "yarn" and theta == 1:
            yield ("type",), "'yarn' needs features that turn differently, which they do not where theta is 1"


class RotaryPosition(AttentionPosition):
    """Turns pairs of features of queries and keys by angles in proportion to their place.

    The score of a query and a key then depends on how far apart they are. Angles, cosines and sines are computed in
    float32, whatever the type of the model is. Paper: Su et al. 2021, https://arxiv.org/abs/2104.09864.
    Shapes: (batch, heads, tokens, head_size) -> (batch, heads, tokens, head_size).
    """

    class Config(PositionConfig):
        """Config of `rotary` positions."""

        type: Literal["rotary"] = "rotary"
        theta: Positive = 10000.0
        """Pair i of n turns by theta^(-i/n) from one place to the next."""
        fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
        """Share of each head's features that is turned: the first ones."""
        order: Literal["halves", "interleaved"] = "halves"
        """Which features are a pair: one of the first half and one of the second, or two side by side (the paper)."""
        scaling: RotaryScaling | None = None
        """Changes of the angles for longer texts."""
        length: PositiveInt | None = None
        """How many places the model was trained on. Beyond them it works on, and warns once."""

        where: ClassVar[Literal["embedding", "attention"]] = "attention"

        def size(self, head_size: int) -> int:
            """How many features of a head are turned."""
            return int(head_size * self.fraction)

        def problems(self, *, head_size: int, **context: Any) -> Iterator[Problem]:
            size = self.size(head_size)
            if size < 2 or size % 2:
                yield ("fraction",), f"{size} of a head's {head_size} features cannot be turned in pairs"
            if self.scaling is not None:
                yield from within("scaling", self.scaling.problems(size=size, theta=self.theta))

    def __init__(self, config: Config, *, head_size: int, heads: int) -> None:
        super().__init__()
        self.config, self.size = config, config.size(head_size)
        self.name = ("rotary", self.size, config.model_dump_json())
        self.factor = 1.0 if config.scaling is None else attention_factor(config.scaling)
        # neither a parameter nor a buffer: it stays in float32, whatever becomes of the model, on each device that needed it
        with torch.inference_mode(False):  # it outlives whatever this is built in
            self._frequencies: dict[Any, Tensor] = {torch.device("cpu"): frequencies(config, self.size)}
        self._warned = False

    def turned(self, query: Tensor, key: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
        cosine, sine = self.tables(layout, query)
        return self._turn(query, cosine, sine), self._turn(key, cosine, sine)

    def tables(self, layout: Layout, x: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine of each token's angles, (batch or 1, 1, tokens, size / 2); equal layers share them."""
        # where autocast chooses types, the turned features are rounded once, behind the sum
        dtype = torch.float32 if not x.is_meta and torch.is_autocast_enabled(x.device.type) else x.dtype
        name = (*self.name, x.device, dtype)
        known: tuple[Tensor, Tensor] | None = None if layout.shared is None else layout.shared.get(name)
        if known is None:
            angles = self._angles(layout, x.shape[2], x.device)[:, None]
            known = (angles.cos() * self.factor).to(dtype), (angles.sin() * self.factor).to(dtype)
            if layout.shared is not None:
                layout.shared[name] = known
        return known

    def record(self, program: kernel.Program) -> tuple[int, bool]:
        return self.size, self.config.order == "interleaved"

    def _angles(self, layout: Layout, tokens: int, device: torch.device) -> Tensor:
        """(batch or 1, tokens, size / 2), float32"""
        places = layout.places(tokens, device)
        self._warned = self._warned or warn_beyond(self.config.length, layout, tokens)
        turns = self._frequencies.get(device)
        if turns is None:
            with torch.inference_mode(False):
                turns = self._frequencies[torch.device("cpu")].to(device)
            if not torch.compiler.is_compiling():
                self._frequencies[device] = turns
        if self.config.scaling is not None and self.config.scaling.type == "dynamic" and places.numel():
            turns = _stretched(self.config, self.size, places.max() + 1, turns)
        return places[..., None].float() * turns

    def _turn(self, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        size = self.size
        if self.config.order == "halves":
            first, second = x[..., : size // 2], x[..., size // 2 : size]
        else:
            first, second = x[..., 0:size:2], x[..., 1:size:2]
        pair = [first * cosine - second * sine, second * cosine + first * sine]
        if self.config.order == "interleaved":
            pair = [torch.stack(pair, dim=-1).flatten(-2)]
        if size < x.shape[-1]:
            pair.append(x[..., size:])
        return torch.cat(pair, dim=-1).to(x.dtype)

    def extra_repr(self) -> str:
        scaling = "" if self.config.scaling is None else f", scaling={self.config.scaling.type}"
        return f"{self.size}, theta={self.config.theta:g}, order={self.config.order}{scaling}"


def frequencies(config: RotaryPosition.Config, size: int) -> Tensor:
    """By how much each pair of features turns from one place to the next: (size / 2,), float32, on the CPU."""
    share = torch.arange(0, size, 2, dtype=torch.float32, device="cpu") / size
    plain, scaling = 1.0 / config.theta**share, config.scaling
    if scaling is None or scaling.type == "dynamic":
        return plain
    if scaling.type == "linear":
        return plain / scaling.factor
    slow, fast, length = scaling.slow or 1.0, scaling.fast or (4.0 if scaling.type == "llama3" else 32.0), scaling.length
    assert length is not None  # which the config has made sure of
    if scaling.type == "llama3":
        wavelength = 2 * math.pi / plain
        slowed = torch.where(wavelength > length / slow, plain / scaling.factor, plain)
        often = (length / wavelength - slow) / (fast - slow) if fast != slow else torch.ones_like(plain)
        blended = (1 - often) * slowed / scaling.factor + often * slowed
        between = ~(wavelength < length / fast) & ~(wavelength > length / slow)
        return torch.where(between, blended, slowed)
    # the features that turn `fast` and `slow` times within the length
    bounds = [size * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(config.theta)) for turns in (fast, slow)]
    if scaling.truncate:
        bounds = [math.floor(bounds[0]), math.ceil(bounds[1])]
    first, last = max(bounds[0], 0), min(bounds[1], size - 1)
    last = last + 0.001 if first == last else last
    ramp = (torch.arange(size // 2, dtype=torch.float32, device="cpu") - first) / (last - first)
    kept = 1 - ramp.clamp(0, 1)
    power = config.theta**share
    return 1.0 / (scaling.factor * power) * (1 - kept) + 1.0 / power * kept


def _stretched(config: RotaryPosition.Config, size: int, end: Tensor, plain: Tensor) -> Tensor:
    """The frequencies of `dynamic` for a text that ends before the place `end`: the `plain` ones up to its length."""
    scaling = config.scaling
    assert scaling is not None and scaling.length is not None
    longer = scaling.factor * end.clamp(min=scaling.length).float() / scaling.length - (scaling.factor - 1)
    theta = config.theta * longer ** (size / (size - 2))
    share = torch.arange(0, size, 2, dtype=torch.float32, device=end.device) / size
    return torch.where(end > scaling.length, 1.0 / theta**share, plain)


def attention_factor(scaling: RotaryScaling) -> float:
    """What cosine and sine are multiplied by."""
    if scaling.type != "yarn":
        return 1.0
    if scaling.attention is not None:
        return scaling.attention
    return 0.1 * math.log(scaling.factor) + 1.0 if scaling.factor > 1 else 1.0


def warn_beyond(length: int | None, layout: Layout, tokens: int) -> bool:
    """Warns of tokens beyond the places a model was trained on; whether it did, or another layer of this forward."""
    if length is None or torch.compiler.is_compiling():
        return False
    if layout.positions is None:
        last = layout.past + tokens - 1
    elif layout.positions.numel() and kernel.readable(layout.positions):
        last = int(layout.positions.max())
    else:
        return False
    if last < length:
        return False
    if layout.shared is None or "beyond" not in layout.shared:
        warnings.warn(f"position {last} is beyond the {length} places that this model was trained on", stacklevel=2)
    if layout.shared is not None:
        layout.shared["beyond"] = last
    return True
