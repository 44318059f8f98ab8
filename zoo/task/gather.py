"""What the other processes of a training hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, distributed
from torch.nn import functional


class _Gather(torch.autograd.Function):
    """The rows of all processes, of which each has as many; a gradient goes back to the process whose rows they are."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, group: Any) -> Tensor:
        ctx.group = group
        parts = [torch.empty_like(rows) for _ in range(distributed.get_world_size(group))]
        distributed.all_gather(parts, rows.contiguous(), group=group)
        return torch.stack(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        total = gradients[0].contiguous()
        distributed.all_reduce(total, group=ctx.group)
        return total[distributed.get_rank(ctx.group)], None


def gathered(tensors: Sequence[Tensor], group: Any = None) -> tuple[list[Tensor], int, float]:
    """The rows of all processes, in the order of their ranks, with gradients.

    Args:
        tensors: of equally many rows, at least one; processes may differ in how many.
        group: the processes that hold batches of their own (default: all).

    Returns:
        The rows of all, where those of this process begin, and what a mean over its own rows is to be multiplied by, so
        that the mean over all processes of the products is the mean over all rows.
    """
    if not distributed.is_available() or not distributed.is_initialized() or distributed.get_world_size(group) == 1:
        return list(tensors), 0, 1.0
    number, rank = len(tensors[0]), distributed.get_rank(group)
    counts = [torch.zeros(1, dtype=torch.int64, device=tensors[0].device) for _ in range(distributed.get_world_size(group))]
    distributed.all_gather(counts, torch.tensor([number], device=tensors[0].device), group=group)
    sizes = [int(count) for count in counts]
    found = []
    for rows in tensors:
        padded = functional.pad(rows, (0, 0, 0, max(sizes) - number))
        parts: Tensor = _Gather.apply(padded, group)
        found.append(torch.cat([part[:size] for part, size in zip(parts, sizes)]))
    return found, sum(sizes[:rank]), number * len(sizes) / sum(sizes)
