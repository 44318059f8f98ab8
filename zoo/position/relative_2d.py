"""Biases for each distance in rows and columns."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from zoo import kernel
from zoo.kernel.share import share
from zoo.position.base import AttentionPosition, PositionConfig


class Relative2dPosition(AttentionPosition):
    """Adds to each score a learned bias of the head's own for how many rows and columns the query is from the key.

    It belongs into attention within windows of a grid: a window of h x w tokens knows (2h - 1)(2w - 1) distances.
    Paper: Liu et al. 2021, https://arxiv.org/abs/2103.14030, section 3.2.
    Shapes: the biases of a window are (1, heads, h x w queries, h x w keys).
    """

    class Config(PositionConfig):
        """Config of `relative-2d` positions."""

        type: Literal["relative-2d"] = "relative-2d"
        std: Annotated[float, Field(gt=0)] | None = None
        """Standard deviation of a fresh table (default: that of the model's initialisation)."""

        where: ClassVar[Literal["embedding", "attention"]] = "attention"
        windowed = True
        context = ("heads", "window")

    relative = True
    sharding: ClassVar[dict[str, str]] = {"table": "heads"}
    """How tensor-parallel processes divide it: see `zoo.training.sharding`."""

    def __init__(self, config: Config, *, heads: int, window: tuple[int, int]) -> None:
        super().__init__()
        self.config, self.grid = config, tuple(window)
        self.table = nn.Parameter(torch.empty((2 * window[0] - 1) * (2 * window[1] - 1), heads))
        self.kept = kernel.Kept()

    def within(self, windows: kernel.Windows) -> Tensor:
        """What is added to the scores within windows: (1 or windows, heads, queries, keys), of the type of the table.

        Tokens that only the movement of the windows brought together are set apart in it.
        """

        def make() -> Tensor:
            index = kernel.window_index(windows.window, self.table.device)
            tokens = windows.window[0] * windows.window[1]
            biases = share(self.table)[index].unflatten(0, (tokens, tokens)).permute(2, 0, 1)[None]
            apart = kernel.regions(windows, self.table)
            return biases.contiguous() if apart is None else biases + apart

        return self.kept.of(self.table, windows._replace(grid=windows.padded, pad_first=True), make)

    def initialize(self, init: Any) -> None:
        init.position(self.table, self.config.std)

    def adapted(self, name: str, table: Tensor, source: Relative2dPosition) -> tuple[Tensor, str] | None:
        """The trained biases of another window as ours, by bicubic interpolation between distances; None for other heads."""
        if table.shape[1] != self.table.shape[1]:
            return None
        old, new = ((2 * high - 1, 2 * wide - 1) for high, wide in (source.grid, self.grid))
        wide = table.T.reshape(1, -1, *old)
        kind = table.dtype if table.dtype == torch.float64 else torch.float32
        resized = functional.interpolate(wide.to(kind), size=new, mode="bicubic", align_corners=False)
        sizes = (f"{high} x {wide}" for high, wide in (source.grid, self.grid))
        return resized[0].flatten(1).T.to(table.dtype), "biases of a {} window interpolated (bicubic) to {}".format(*sizes)

    def extra_repr(self) -> str:
        return f"window={self.grid}, heads={self.table.shape[1]}"
