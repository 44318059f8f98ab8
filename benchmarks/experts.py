"""A mixture of experts against transformers' ways of computing it, and against a dense layer of as many products."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.harness import interleave
from zoo.config.base import Slot
from zoo.extras import require
from zoo.registry import make

EXPERTS, TOP_K, WIDTH, HIDDEN = 8, 2, 512, 1792
JOBS = {"experts": 1024, "experts-64": 64}
"""How many tokens."""
PEERS = {"experts": ("eager", "grouped_mm"), "experts-64": ("eager", "grouped_mm", "batched_mm")}
"""The ways of transformers; `batched_mm` copies the weights for each choice of each token, 22 GB of them at 1024 tokens."""


def parts(peers: tuple[str, ...]) -> dict[str, nn.Module]:
    """Ours, the dense layer, and transformers' block in each of these ways, with the weights of ours."""
    expert = {"type": "gated", "hidden": HIDDEN, "bias": False}
    sparse = {"type": "mixture-of-experts", "experts": EXPERTS, "top_k": TOP_K, "expert": expert}
    ours = make(Slot("feedforward").validate(sparse), width=WIDTH)
    dense = make(Slot("feedforward").validate({**expert, "hidden": TOP_K * HIDDEN}), width=WIDTH)
    for module in (ours, dense):
        for parameter in module.parameters():
            nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    return {"zoo": ours, "dense": dense, **{name: theirs(ours, name) for name in peers}}


def theirs(ours: Any, way: str) -> nn.Module:
    """The block of transformers, with these weights."""
    require("transformers", "bench", "this comparison")
    from transformers import MixtralConfig
    from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

    config = MixtralConfig(hidden_size=WIDTH, intermediate_size=HIDDEN, num_local_experts=EXPERTS, num_experts_per_tok=TOP_K)
    config._experts_implementation = way
    block: Any = MixtralSparseMoeBlock(config)
    with torch.no_grad():
        experts = ours.experts
        block.gate.weight.copy_(ours.router.weight)
        block.experts.gate_up_proj.copy_(torch.cat([experts.gate.weight, experts.up.weight], 1))
        block.experts.down_proj.copy_(experts.down.weight)
    return block


def once(module: nn.Module, x: Tensor, mode: str) -> Callable[[], None]:
    """One forward pass, or one with its backward pass."""

    def forward() -> None:
        with torch.inference_mode():
            module(x)

    def step() -> None:
        module.zero_grad(set_to_none=True)
        module(x.clone().requires_grad_()).sum().backward()

    return forward if mode == "forward" else step


def measure(job: str, mode: str, rounds: int) -> dict[str, Any]:
    """The row of a job in float32, `forward` or `step`."""
    torch.manual_seed(0)
    x, peers = torch.randn(1, JOBS[job], WIDTH), PEERS[job]
    modules = parts(peers)
    with torch.inference_mode():
        wanted = modules["zoo"](x)
        for name in peers:
            assert float((modules[name](x) - wanted).abs().max()) < 1e-4, f"{name} computes something else"
    timings = interleave({name: once(each, x, mode) for name, each in modules.items()}, "zoo", rounds)
    return {
        "job": f"{EXPERTS} experts, {TOP_K} for each of {JOBS[job]} tokens, {mode}",
        "milliseconds": {name: round(timing.median * 1e3, 2) for name, timing in timings.items()},
        "spread": {name: round(timing.spread, 3) for name, timing in timings.items()},
        "of the dense layer's time": round(1 / timings["dense"].ratio, 2),
        "faster than": {name: round(timings[name].ratio, 2) for name in peers},
        "faster than the faster peer": round(min(timings[name].ratio for name in peers), 2),
    }
