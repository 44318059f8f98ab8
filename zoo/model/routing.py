"""What the routers of a model say: their scores, and the losses that keep them from choosing the same experts always."""

from __future__ import annotations

from itertools import groupby
from typing import Any

import torch
from torch import Tensor, distributed, nn

from zoo.layout import Layout


def router_answers(layout: Layout, wanted: bool, training: bool) -> dict[str, Any]:
    """The outputs of a model whose blocks route tokens, after its blocks have run.

    Args:
        wanted: whether the caller asks for scores; otherwise there is only what training needs.

    Returns:
        `router_logits` and `aux_loss` if wanted, as transformers calls them, and in training `router_loss`; nothing where
        no block routes.
    """
    routed = list((layout.shared or {}).get("routed", {}).values())
    counted = [each for each in routed if each.balance or each.z_loss] if training else []
    if not routed or not (wanted or counted):
        return {}
    answers: dict[str, Any] = {}
    if wanted:
        kinds = groupby(sorted(routed, key=_kind), _kind)
        answers["router_logits"] = tuple(each.logits for each in routed)
        grouped = [(kind[1], [each.logits for each in group]) for kind, group in kinds]
        answers["aux_loss"] = _sum([balance_loss(logits, top_k, layout.real) for top_k, logits in grouped])
    if counted:
        losses = []
        for kind, several in groupby(sorted(counted, key=_kind), _kind):
            group = list(several)
            logits, processes = [each.logits for each in group], group[0].processes
            if group[0].balance:
                losses.append(group[0].balance * balance_loss(logits, kind[1], layout.real, processes))
            if group[0].z_loss:
                losses.append(group[0].z_loss * z_loss(logits, layout.real, processes))
        answers["router_loss"] = _sum(losses)
    return answers


def count_together(model: nn.Module, processes: Any) -> None:
    """Lets the losses of a model's routers count the tokens of several processes, whose gradients are averaged.

    Args:
        processes: a torch process group, all of which run every forward pass in training; None counts those of a model alone.
    """
    for part in model.modules():
        if hasattr(type(part), "processes"):
            setattr(part, "processes", processes)


def balance_loss(logits: list[Tensor], top_k: int, real: Tensor | None = None, processes: Any = None) -> Tensor:
    """How unevenly experts are chosen: `top_k` where all are alike, up to experts x top_k.

    The share of tokens that choose an expert times its mean share of the router's softmax, summed over experts and
    multiplied by their number; all layers count together. Sums are in float32, whatever the model's type is.
    Paper: Fedus et al. 2021, https://arxiv.org/abs/2101.03961, section 2.2.

    Args:
        logits: of each layer, (tokens of all texts, experts).
        real: true where a token is none of padding, of as many tokens; padding does not count.
        processes: those whose tokens count together. It is no mean of means: the shares are those of all tokens.
    """
    experts = logits[0].shape[-1]
    counts = torch.zeros(experts, dtype=torch.float32, device=logits[0].device)
    shares, rows = counts, counts.new_zeros(())
    for each in logits:
        softmax = each.softmax(-1)
        chosen = softmax.topk(top_k, dim=-1).indices
        weight = _weights(each, real)
        counts = counts.scatter_add(0, chosen.flatten(), weight.repeat_interleave(top_k))
        shares = shares + (softmax.float() * weight[:, None]).sum(0)
        rows = rows + weight.sum()
    if processes is not None:
        counts, shares, rows = _Total.apply(torch.cat([counts, shares, rows[None]]), processes).split([experts, experts, 1])
    return (counts / rows * (shares / rows)).sum() * experts


def z_loss(logits: list[Tensor], real: Tensor | None = None, processes: Any = None) -> Tensor:
    """The mean, over layers and tokens, of the square of the logarithm of the sum of exponentiated scores.

    Paper: Zoph et al. 2022, https://arxiv.org/abs/2202.08906, section 3.1. Arguments as of `balance_loss`.
    """
    weights = [_weights(each, real) for each in logits]
    squares = [each.float().logsumexp(-1).square() * weight for each, weight in zip(logits, weights)]
    total = torch.stack([_sum([each.sum() for each in squares]), _sum([each.sum() for each in weights])])
    squared, rows = total if processes is None else _Total.apply(total, processes)
    return squared / rows


class _Total(torch.autograd.Function):
    """The sum over processes. Each has the same loss of it, of which the mean is followed, so that what the gradients of all
    add up to is one of them, times their number."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, processes: Any) -> Tensor:
        ctx.number = distributed.get_world_size(processes)
        total = own.clone()
        distributed.all_reduce(total, group=processes)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return gradient * ctx.number, None


def _weights(logits: Tensor, real: Tensor | None) -> Tensor:
    """(tokens,), 1 for those that count; where padding was left out, all are real."""
    if real is None or real.numel() != logits.shape[0]:
        return torch.ones(logits.shape[0], dtype=torch.float32, device=logits.device)
    return real.flatten().float()


def _kind(routed: Any) -> tuple[int, int, float, float]:
    return routed.logits.shape[-1], routed.top_k, routed.balance, routed.z_loss


def _sum(terms: list[Tensor]) -> Tensor:
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total
