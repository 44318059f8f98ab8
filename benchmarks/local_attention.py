"""Local attention against its peers at one length, and how its time and memory grow with the length."""

from __future__ import annotations

import ctypes
import gc
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.harness import interleave
from zoo import kernel
from zoo.extras import require

HEADS, SIZE, SIDE = 8, 64, 128  # a window of 256: 128 tokens on each side
LENGTH = 4096
LENGTHS = (1024, 2048, 4096, 8192, 16384, 32768, 65536)
JOBS = ("local-attention", "local-attention-growth")

Work = Callable[[Tensor], Tensor]


def ours(x: Tensor) -> Tensor:
    """Of queries, keys and values (batch, heads, tokens, size), which are equal here; so for all contenders."""
    return kernel.local_attention(x, x, x, window=SIDE)


def package() -> Work:
    """The `local-attention` package, with windows as exact as ours."""
    library = require("local_attention", "bench", "this comparison")
    layer = library.LocalAttention(SIDE, look_backward=1, look_forward=1, exact_windowsize=True, use_rotary_pos_emb=False)
    return lambda x: layer(x, x, x)


def longformer() -> Work:
    """Hugging Face's layer without its projections."""
    from transformers import LongformerConfig
    from transformers.models.longformer.modeling_longformer import LongformerSelfAttention

    class Copy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.clone()  # which is then divided in place

    config = LongformerConfig(hidden_size=HEADS * SIZE, num_attention_heads=HEADS, attention_window=[2 * SIDE])
    layer: Any = LongformerSelfAttention(config, 0).eval()
    layer.query = layer.key = layer.value = Copy()

    def run(x: Tensor) -> Tensor:
        batch, _, tokens, _ = x.shape
        zero = torch.zeros(batch, tokens)
        none = {"is_index_masked": zero.bool(), "is_index_global_attn": zero.bool(), "is_global_attn": False}
        output: Tensor = layer(x.transpose(1, 2).flatten(2), attention_mask=zero, **none)[0]
        return output.unflatten(-1, (HEADS, SIZE)).transpose(1, 2)

    return run


def flex() -> Work:
    """Torch's flex attention, compiled."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    compiled, masks = torch.compile(flex_attention, dynamic=False), {}

    def run(x: Tensor) -> Tensor:
        tokens = x.shape[2]
        if tokens not in masks:
            masks[tokens] = create_block_mask(_near, None, None, tokens, tokens, device="cpu")
        output: Tensor = compiled(x, x, x, block_mask=masks[tokens])
        return output

    return run


def _near(batch: Any, head: Any, query: Any, key: Any) -> Any:
    return (query - key).abs() <= SIDE


def masked(x: Tensor) -> Tensor:
    """Attention to all tokens with a band as its mask."""
    place = torch.arange(x.shape[2])
    return F.scaled_dot_product_attention(x, x, x, attn_mask=(place[:, None] - place).abs() <= SIDE)


def once(work: Work, x: Tensor, mode: str) -> Callable[[], None]:
    """One forward pass, or one with its backward pass."""

    def forward() -> None:
        with torch.inference_mode():
            work(x)

    def step() -> None:
        leaf = x.clone().requires_grad_()
        work(leaf).sum().backward()

    return forward if mode == "forward" else step


def measure(job: str, mode: str, rounds: int) -> dict[str, Any]:
    """The row of a job in float32, `forward` or `step`."""
    return growth(mode, rounds) if job == "local-attention-growth" else against(mode, rounds)


def against(mode: str, rounds: int) -> dict[str, Any]:
    """Milliseconds of all at one length; flex attention has no backward pass on a CPU."""
    torch.manual_seed(0)
    x = torch.randn(1, HEADS, LENGTH, SIZE)
    work = {"zoo": ours, "local-attention": package(), "longformer": longformer(), "all tokens, masked": masked}
    if mode == "forward":
        work["flex, compiled"] = flex()
    with torch.inference_mode():
        wanted = masked(x)
        for name, each in work.items():
            assert float((each(x) - wanted).abs().max()) < 1e-4, f"{name} computes something else"
    timings = interleave({name: once(each, x, mode) for name, each in work.items()}, "zoo", rounds)
    peers = {name: timings[name].ratio for name in ("local-attention", "longformer")}
    return {
        "job": f"local attention of {LENGTH} tokens, {mode}",
        "milliseconds": {name: round(timing.median * 1e3, 1) for name, timing in timings.items()},
        "spread": {name: round(timing.spread, 3) for name, timing in timings.items()},
        "extra memory in MiB": {name: round(peak(once(each, x, mode)) / 2**20) for name, each in work.items()},
        "faster than": {name: round(timing.ratio, 2) for name, timing in timings.items() if name != "zoo"},
        "faster than the faster peer": round(min(peers.values()), 2),
    }


def growth(mode: str, rounds: int) -> dict[str, Any]:
    """Milliseconds and memory at growing lengths."""
    inputs = {length: torch.randn(1, HEADS, length, SIZE) for length in LENGTHS}
    runs = {str(length): once(ours, x, mode) for length, x in inputs.items()}
    timings = interleave(runs, "16384", rounds, warmup=1)
    memory = {length: peak(run) / 2**20 for length, run in runs.items()}
    return {
        "job": f"local attention of 1k to 64k tokens, {mode}",
        "milliseconds": {length: round(timing.median * 1e3, 1) for length, timing in timings.items()},
        "extra memory in MiB": {length: round(value, 1) for length, value in memory.items()},
        "time from 16k to 32k": round(timings["32768"].ratio, 2),
        "memory from 16k to 32k": round(memory["32768"] / memory["16384"], 2),
        "power of the length": round(math.log(timings["65536"].median / timings["8192"].median) / math.log(8), 2),
        "faster than the faster peer": "-",
    }


def peak(run: Callable[[], object]) -> int:
    """By how many bytes the memory of the process grows at most while this runs (Linux)."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    before = _status("VmRSS")
    run()
    return max(_status("VmHWM") - before, 1)


def _status(name: str) -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(name))
