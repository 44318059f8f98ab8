"""Times several contenders by turns, so that a drifting machine favours none of them."""

from __future__ import annotations

import gc
import os
import statistics
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class Timing(NamedTuple):
    """What one contender took."""

    median: float
    """Seconds of its median round."""
    spread: float
    """The middle half of its rounds, as a share of the median."""
    ratio: float
    """Median over the rounds of its time as a share of the base's time in the same round."""


def interleave(
    contenders: Mapping[str, Callable[[], object]], base: str, rounds: int = 9, warmup: int = 3
) -> dict[str, Timing]:
    """Every round runs each contender once, in rotating order.

    A round in which other processes took much of a core is repeated, up to three times as many rounds in all.
    """
    names = list(contenders)
    for _ in range(warmup):
        for run in contenders.values():
            run()
    done: list[tuple[float, dict[str, float]]] = []
    gc.collect()
    gc.disable()
    try:
        while len(done) < 3 * rounds and sum(foreign < 0.15 for foreign, _ in done) < rounds:
            first = len(done) % len(names)
            busy, own, start = _busy(), time.process_time(), time.perf_counter()
            took = {}
            for name in names[first:] + names[:first]:
                before = time.perf_counter()
                contenders[name]()
                took[name] = time.perf_counter() - before
            elapsed = time.perf_counter() - start
            foreign = max(0.0, (_busy() - busy - (time.process_time() - own)) / elapsed)
            done.append((foreign, took))
    finally:
        gc.enable()
    quiet = [took for _, took in sorted(done, key=lambda entry: entry[0])[:rounds]]
    result = {}
    for name in names:
        times = sorted(took[name] for took in quiet)
        median = statistics.median(times)
        spread = (times[-1 - len(times) // 4] - times[len(times) // 4]) / median
        result[name] = Timing(median, spread, statistics.median(took[name] / took[base] for took in quiet))
    return result


def disturbance(seconds: float = 0.5) -> float:
    """How much of a core other processes take at the moment."""
    busy, own = _busy(), time.process_time()
    time.sleep(seconds)
    return max(0.0, (_busy() - busy - (time.process_time() - own)) / seconds)


def _busy() -> float:
    """Seconds that all cores together were busy since the machine started (Linux; elsewhere 0)."""
    try:
        with open("/proc/stat") as stat:
            ticks = [int(value) for value in stat.readline().split()[1:9]]
    except OSError:
        return 0.0
    return (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")


class Products(TorchDispatchMode):
    """Notes the shapes of all matrix products within it; attention counts as its two."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Callable[[], Tensor]] = []
        self.flops = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        name = function.overloadpacket.__name__
        if name in ("mm", "bmm"):
            self._product(args[0], args[1])
        elif name in ("addmm", "baddbmm"):
            self._product(args[1], args[2])
        elif name == "convolution":
            patches = args[0].new_empty(args[0][:, 0].numel() // args[1][0, 0].numel(), args[1][0].numel())
            self._product(patches, args[1].flatten(1).T)
        elif "scaled_dot_product" in name:
            backward = "backward" in name
            query, key = (args[1], args[2]) if backward else (args[0], args[1])
            flat = [tensor.flatten(0, 1) for tensor in (query, key)]
            scores = flat[0].new_empty(flat[0].shape[0], flat[0].shape[1], flat[1].shape[1])
            for _ in range(2 if backward else 1):
                self._product(flat[0], flat[1].mT)
                self._product(scores, flat[1])
            if backward:
                self._product(flat[0], flat[1].mT)
        return function(*args, **(kwargs or {}))

    def _product(self, left: Tensor, right: Tensor) -> None:
        operands = [torch.randn(shape).to(left.dtype) for shape in (left.shape, right.shape)]
        if right.ndim == 2 and right.stride(0) == 1:
            operands[1] = operands[1].T.contiguous().T
        self.flops += 2 * left.numel() * right.shape[-1]
        self.calls.append(lambda: torch.matmul(*operands))

    def replay(self) -> None:
        """Performs the noted products and nothing else."""
        with torch.inference_mode():
            for call in self.calls:
                call()
