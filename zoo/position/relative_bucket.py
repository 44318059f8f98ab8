"""A learned score for each distance, of which far ones share buckets."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from zoo import kernel
from zoo.config import Problem
from zoo.config.base import PositiveInt
from zoo.kernel.share import share
from zoo.position.base import AttentionPosition, PositionConfig


class RelativeBucketPosition(AttentionPosition):
    """Adds to each score a learned number, of the head and of how far the key is from the query.

    Near distances have a number each; farther ones share buckets that grow logarithmically up to `distance`, and all beyond
    that share the last. In causal attention all buckets are of keys before the query; otherwise half of them are of keys
    behind it. Usually one part serves a whole stack, at `stack.position`.
    Paper: Raffel et al. 2020, https://arxiv.org/abs/1910.10683, section 2.1.
    Shapes: places (batch or 1, queries), (batch or 1, keys) -> (batch or 1, heads, queries, keys).
    """

    class Config(PositionConfig):
        """Config of `relative-bucket` positions."""

        type: Literal["relative-bucket"] = "relative-bucket"
        buckets: Annotated[int, Field(ge=2)] = 32
        """How many buckets there are: of both directions together where attention is not causal."""
        distance: PositiveInt = 128
        """From which distance on all keys share the last bucket."""
        std: Annotated[float, Field(gt=0)] | None = None
        """Standard deviation of a fresh table (default: that of the model's initialisation)."""

        where: ClassVar[Literal["embedding", "attention"]] = "attention"
        context = ("heads", "causal")

        def problems(self, *, causal: bool = False, **context: Any) -> Iterator[Problem]:
            one_way = self.buckets if causal else self.buckets // 2
            if one_way < 2:
                yield ("buckets",), f"{self.buckets} buckets for two directions leave {one_way} for each; 4 would do"
            elif self.distance <= one_way // 2:
                near = f"{one_way // 2} of the {one_way} buckets of a direction are of a single distance each"
                yield ("distance",), f"{near}, so that the last one begins later than at {self.distance}"

    relative = True
    sharding: ClassVar[dict[str, str]] = {"table": "heads"}
    """How tensor-parallel processes divide it: see `zoo.training.sharding`."""

    def __init__(self, config: Config, *, heads: int, causal: bool) -> None:
        super().__init__()
        self.config, self.causal = config, causal
        self.table = nn.Parameter(torch.empty(config.buckets, heads))

    @property
    def identity(self) -> Hashable:
        return ("relative-bucket", id(self))  # what is learned is equal for the layers that share this very part

    def record(self, program: kernel.Program) -> tuple[int, bool]:
        return 0, False

    def bias(self, query_at: Tensor, key_at: Tensor) -> Tensor:
        queries, keys = query_at.shape[1], key_at.shape[1]
        if queries > 1 and _in_a_row(query_at) and _in_a_row(key_at):
            first = int(key_at[0, 0]) - int(query_at[0, -1])
            apart = torch.arange(first, first + queries + keys - 1, device=key_at.device)
            return kernel.by_distance(self._numbers(apart).T.contiguous(), queries)[None]
        return self._numbers(key_at[:, None, :] - query_at[:, :, None]).permute(0, 3, 1, 2).contiguous()

    def _numbers(self, apart: Tensor) -> Tensor:
        """(...) -> (..., heads), the numbers of each distance."""
        return nn.functional.embedding(self.bucket(apart), share(self.table))

    def bucket(self, apart: Tensor) -> Tensor:
        """The bucket of each distance, key minus query, whole numbers of any shape."""
        if self.causal:
            return self._one_way((-apart).clamp(min=0), self.config.buckets)
        one_way = self.config.buckets // 2
        return self._one_way(apart.abs(), one_way) + (apart > 0) * one_way

    def _one_way(self, apart: Tensor, buckets: int) -> Tensor:
        near = buckets // 2
        # in float32, as trained models had it: at the edges of buckets rounding decides
        share = (apart.clamp(min=1).float() / near).log() / math.log(self.config.distance / near)
        far = near + (share * (buckets - near)).long()
        return torch.where(apart < near, apart, far.clamp(max=buckets - 1))

    def initialize(self, init: Any) -> None:
        init.position(self.table, self.config.std)

    def extra_repr(self) -> str:
        return f"buckets={self.config.buckets}, distance={self.config.distance}, heads={self.table.shape[1]}"


def _in_a_row(places: Tensor) -> bool:
    """Whether places are those of one row and follow one another, as far as one can know."""
    return places.shape[0] == 1 and kernel.readable(places) and bool((places[0, 1:] - places[0, :-1] == 1).all())
