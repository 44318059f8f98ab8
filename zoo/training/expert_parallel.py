"""Experts divided among processes: rows travel to the process that holds their expert, and back.

Each process holds as many experts of every mixture. Between the processes of an `expert` group, which have batches of their
own, rows go by all-to-all (Lepikhin et al. 2020, https://arxiv.org/abs/2006.16668). Those of a tensor-parallel group hold
the same rows; each computes those of its own experts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, distributed, nn

from zoo.kernel.share import share


def divide_experts(experts: nn.Module, expert: Any, tensor: Any, mesh: Any) -> None:
    """Leaves each process its share of the experts, and lets rows come to it and return.

    Args:
        experts: a `zoo.feedforward.mixture_of_experts.Experts`.
        expert: the mesh of one dimension among which batches are divided too; may be of one process.
        tensor: that of one dimension whose processes work on the same batch; may be of one process.
        mesh: of both, or of the one that has several processes.
    """
    from torch.distributed.tensor import Shard, distribute_tensor

    placements = [Shard(0)] * mesh.ndim
    for part in experts.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            own = distribute_tensor(parameter.detach(), mesh, placements)
            part.register_parameter(name, nn.Parameter(own, parameter.requires_grad))
    exchange = Exchange(expert, tensor)
    setattr(experts, "number", getattr(experts, "number") // mesh.size())
    experts.register_forward_pre_hook(exchange.bring)
    experts.register_forward_hook(exchange.send_back)


class Exchange:
    """What happens to rows before and after the experts of a process compute them.

    The mean over processes of their losses is what is followed, so that a weight's gradient from the rows of all is divided
    by the number of processes that have batches of their own, here among those which exchange rows.
    """

    def __init__(self, expert: Any, tensor: Any) -> None:
        self.expert, self.tensor = expert, tensor
        self.back: Any = None

    def bring(self, experts: Any, inputs: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Rows (rows, width), sorted by expert, and how many each of all experts has: those of this process's experts."""
        rows, counts = inputs
        # (expert groups, tensor-parallel processes, experts here)
        sizes = counts.view(self.expert.size(), self.tensor.size(), -1)
        total = int(counts.sum())
        rows = rows[:total]
        if torch.is_grad_enabled() and not rows.requires_grad:
            rows = rows.detach().requires_grad_()  # so that all processes take part in the way back
        mine = None
        if self.tensor.size() > 1:
            owner = torch.arange(sizes[..., 0].numel(), device=rows.device).remainder(self.tensor.size())
            owners = owner.repeat_interleave(sizes.sum(-1).flatten())
            mine = (owners == self.tensor.get_local_rank()).nonzero().squeeze(1)
            rows = _Own.apply(rows, mine, self.tensor.get_group())
        sizes = sizes[:, self.tensor.get_local_rank()]
        order, sent, received = None, [], []
        if self.expert.size() > 1:
            group = self.expert.get_group()
            arriving = torch.empty_like(sizes)
            distributed.all_to_all_single(arriving, sizes.contiguous(), group=group)
            sent, received = sizes.sum(1).tolist(), arriving.sum(1).tolist()
            rows = _Scaled.apply(_exchanged(rows, received, sent, group), float(self.expert.size()))
            whose = torch.arange(sizes.shape[1], device=rows.device).repeat(self.expert.size())
            order = whose.repeat_interleave(arriving.flatten()).argsort(stable=True)
            rows, sizes = rows.index_select(0, order), arriving
        self.back = total, mine, order, sent, received
        return rows, sizes.sum(0)

    def send_back(self, experts: Any, inputs: Any, found: Tensor) -> Tensor:
        """What the experts of this process made of rows: all rows of its own batch, as they were sorted."""
        total, mine, order, sent, received = self.back
        self.back = None
        if not len(found) and torch.is_grad_enabled():
            for parameter in experts.parameters():  # whose gradient is then zero, as in one process, and not missing
                found = found + share(parameter).flatten()[:0].sum().to(found.dtype)
        if order is not None:
            found = _Scaled.apply(found, 1.0 / self.expert.size())
            found = found.index_select(0, order.argsort())
            found = _exchanged(found, sent, received, self.expert.get_group())
        return found if mine is None else _All.apply(found, mine, total, self.tensor.get_group())  # type: ignore[no-any-return]


class _Scaled(torch.autograd.Function):
    """The same; its gradient is multiplied."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return rows.view_as(rows)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return gradient * ctx.factor, None


class _Own(torch.autograd.Function):
    """Some of the rows that all processes of a group have; each gives gradients for its own ones, and gets all."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, mine: Tensor, group: Any) -> Tensor:
        ctx.mine, ctx.total, ctx.group = mine, len(rows), group
        return rows.index_select(0, mine)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        return _together(gradient, ctx.mine, ctx.total, ctx.group), None, None


class _All(torch.autograd.Function):
    """The rows of all processes of a group, of which each brings some; the other way round."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, mine: Tensor, total: int, group: Any) -> Tensor:
        ctx.mine = mine
        return _together(rows, mine, total, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:  # type: ignore[override]
        return gradient.index_select(0, ctx.mine), None, None, None


def _together(rows: Tensor, mine: Tensor, total: int, group: Any) -> Tensor:
    whole = rows.new_zeros(total, rows.shape[1]).index_copy_(0, mine, rows)
    distributed.all_reduce(whole, group=group)  # of which all but one summand are zero
    return whole


def _exchanged(rows: Tensor, received: Sequence[int], sent: Sequence[int], group: Any) -> Tensor:
    from torch.distributed._functional_collectives import all_to_all_single_autograd

    found = all_to_all_single_autograd(rows.contiguous(), list(received), list(sent), group)
    return found.wait() if hasattr(found, "wait") else found  # type: ignore[no-any-return]


__all__ = ["Exchange", "divide_experts"]
