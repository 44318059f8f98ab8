"""Which experts of a model the tokens of each task choose."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Experts(NamedTuple):
    """How often each expert was chosen, by layer and by task."""

    layers: list[str]
    """The layers with experts, by their names in the model."""
    tasks: list[str]
    shares: list[Tensor]
    """Of each layer (tasks, experts): the share of a task's tokens that meet an expert. Rows sum to `top_k`."""
    top_k: list[int]
    """Of each layer, how many experts a token meets."""
    tokens: list[int]
    """Of each task, how many tokens there were; padding is none."""

    def plain(self) -> dict[str, Any]:
        """As lists and mappings, for JSON."""
        shares = {
            layer: {task: [round(share, 6) for share in row] for task, row in zip(self.tasks, table.tolist())}
            for layer, table in zip(self.layers, self.shares)
        }
        return {"tokens": dict(zip(self.tasks, self.tokens)), "top_k": dict(zip(self.layers, self.top_k)), "shares": shares}


class Choices:
    """Counts what the routers of a model choose, step after step, for one task or another.

    Tokens of padding do not count, and of several calls of a layer in one step only the first does: others are comparisons
    that a task makes for its metrics. What an expert of limited capacity turns away was chosen all the same.
    """

    def __init__(self) -> None:
        self.layers: dict[str, Any] = {}
        self._new: dict[str, tuple[Tensor, int]] = {}
        self._counts: dict[str, dict[str, tuple[Tensor, int]]] = {}

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[Choices]:
        """Counts while the block runs; a model without experts is left alone."""
        hooks = []
        for name, module in model.named_modules():
            if getattr(module, "router", None) is not None and hasattr(module, "idle_parameters"):
                self.layers[name] = module
                hooks.append(module.register_forward_hook(self._hook(name)))
        try:
            yield self
        finally:
            for hook in hooks:
                hook.remove()

    def belong_to(self, task: str) -> None:
        """What was counted in the step that ends here are choices of this task."""
        for name, (counts, tokens) in self._new.items():
            before, number = self._counts.setdefault(task, {}).get(name, (0, 0))
            self._counts[task][name] = (counts + before, tokens + number)
        self._new.clear()

    def shares(self) -> Experts | None:
        """What was counted; None where no token met a router."""
        tasks = list(self._counts)
        layers = [name for name in self.layers if any(name in counts for counts in self._counts.values())]
        if not layers:
            return None
        shares = []
        for layer in layers:
            none = (torch.zeros(self.layers[layer].config.experts), 1)
            rows = [self._counts[task].get(layer, none) for task in tasks]
            shares.append(torch.stack([counts / max(number, 1) for counts, number in rows]))
        tokens = [max(number for _, number in self._counts[task].values()) for task in tasks]
        return Experts(layers, tasks, shares, [self.layers[layer].config.top_k for layer in layers], tokens)

    def _hook(self, name: str) -> Any:
        def count(module: Any, arguments: tuple[Any, ...], output: Any) -> None:
            layout: Any = arguments[1] if len(arguments) > 1 else None
            routed = ((getattr(layout, "shared", None) or {}).get("routed") or {}).get(id(module))
            if routed is None or name in self._new:
                return
            logits, real = routed.logits.detach(), layout.real
            # where padding was left out, all tokens are real
            weights = real.flatten() if real is not None and real.numel() == len(logits) else torch.ones_like(logits[:, 0])
            weights = weights.double()
            chosen = logits.topk(routed.top_k, dim=-1).indices
            counts = torch.zeros(logits.shape[-1], dtype=torch.float64, device=logits.device)
            counts = counts.scatter_add(0, chosen.flatten(), weights.repeat_interleave(routed.top_k))
            self._new[name] = (counts.cpu(), int(weights.sum()))

        return count


__all__ = ["Choices", "Experts"]
