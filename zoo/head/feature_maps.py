"""Feature maps for detectors and segmenters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from zoo.config import Config, Problem, Slot, within
from zoo.errors import did_you_mean
from zoo.head.base import HeadConfig
from zoo.layout import Layout
from zoo.registry import make


class FeatureMaps(nn.Module):
    """Makes the model give feature maps of some of its stages, each with a norm of its own.

    Shapes: `feature_maps` by name, (batch, channels, rows, columns) each.
    """

    class Config(HeadConfig):
        """Config of the `feature-maps` head."""

        type: Literal["feature-maps"] = "feature-maps"
        features: Annotated[list[str], Field(min_length=1)]
        """Which maps: `stem` is the embedding, `stage1`, `stage2`, ... what the stages give before their tokens are merged."""
        norm: Annotated[Config | None, Slot("norm", default="layer-norm", optional=True)] = Field(
            default="layer-norm", validate_default=True
        )
        """The norm of each place of a map; each map has one of its own."""

        context: ClassVar[tuple[str, ...]] = ("channels",)

        def problems(self, *, channels: Mapping[str, int] | None = None, **context: Any) -> Iterator[Problem]:
            for number, name in enumerate(self.features):
                if name not in (channels or {}):
                    known = ", ".join(channels or {}) or "none"
                    hint = did_you_mean(name, channels or {})
                    yield ("features", number), f"{name!r} is no feature map of this model{hint}; it has {known}"
                elif self.norm is not None:
                    yield from within("norm", self.norm.problems(**{**context, "width": (channels or {})[name]}))
            if len(set(self.features)) < len(self.features):
                yield ("features",), "a map is named twice"

    def __init__(self, config: Config, *, channels: Mapping[str, int]) -> None:
        super().__init__()
        self.features = tuple(config.features)
        named = {name: make(config.norm, width=channels[name]) for name in self.features}
        self.norms = nn.ModuleDict(named if config.norm is not None else {})

    def forward(self, x: Tensor, layout: Layout) -> dict[str, Tensor]:
        return {}  # the model itself gives the maps, of the states that its stack keeps
