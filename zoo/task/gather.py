"""What the other processes of a training hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, distributed
from torch.nn import functional

from zoo.task.base import Step


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


def gathered(tensors: Sequence[Tensor], group: Any = None) -> tuple[list[Tensor], int]:
    """The rows of all processes, in the order of their ranks, with gradients.

    Args:
        tensors: of equally many rows, at least one; processes may differ in how many.
        group: the processes that hold batches of their own (default: all).

    Returns:
        The rows of all, and where those of this process begin.
    """
    if not distributed.is_available() or not distributed.is_initialized() or distributed.get_world_size(group) == 1:
        return list(tensors), 0
    number, rank = len(tensors[0]), distributed.get_rank(group)
    counts = [torch.zeros(1, dtype=torch.int64, device=tensors[0].device) for _ in range(distributed.get_world_size(group))]
    distributed.all_gather(counts, torch.tensor([number], device=tensors[0].device), group=group)
    sizes = [int(count) for count in counts]
    found = []
    for rows in tensors:
        padded = functional.pad(rows, (0, 0, 0, max(sizes) - number))
        parts: Tensor = _Gather.apply(padded, group)
        found.append(torch.cat([part[:size] for part, size in zip(parts, sizes)]))
    return found, sum(sizes[:rank])


def mean_over_all(step: Step, group: Any = None) -> Tensor:
    """The loss of a step, such that its mean over all processes is the mean over the targets of all.

    Processes may have different numbers of targets, as of texts of different lengths or of masked words, so that the mean of
    their means would be another. Every one of them has to call this.

    Args:
        group: the processes that hold batches of their own (default: all).
    """
    if not distributed.is_available() or not distributed.is_initialized() or distributed.get_world_size(group) == 1:
        return step.loss
    own = torch.tensor(len(step.targets), dtype=torch.float64, device=step.loss.device)
    total = own.clone()
    distributed.all_reduce(total, group=group)
    factor = own * distributed.get_world_size(group) / total.clamp(min=1.0)
    mean = step.loss if step.routers is None else step.loss - step.routers
    return step.loss + (factor - 1.0).to(mean.dtype) * mean
