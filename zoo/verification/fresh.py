"""Fresh weights: whether ours are drawn from the distributions that the reference's are."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zoo.checkpoint.save import family_for
from zoo.model.construct import fresh
from zoo.verification.reference import Library
from zoo.verification.shrink import shrink
from zoo.verification.stored import read_as_ours

SIGMAS = 6.0
"""How many standard errors two samples may be apart: one false alarm in some hundred million tensors."""


def fresh_differences(library: Library, config: Any, seed: int) -> list[str]:
    """The tensors whose mean or deviation differs from the reference's own fresh ones, on a small model.

    A preset follows one published recipe, so a library with another one differs; that is a fact, no mistake.
    """
    small = shrink(config, head_size=32, stages=2)
    family, values = family_for(small, library.name)
    with torch.random.fork_rng(devices=[]), tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(seed)
        ours = fresh(small, "cpu", torch.float32)
        library.save(library.build(values, small), Path(folder))
        theirs = read_as_ours(family, ours, Path(folder))
        return [name for name, tensor in theirs.items() if not _alike(tensor, ours.get_parameter(name))]


@torch.no_grad()
def _alike(theirs: Tensor, ours: Tensor) -> bool:
    """Whether two tensors may be samples of one distribution, as far as mean and deviation tell."""
    count = ours.numel()
    samples = _usual(theirs.double(), ours), _usual(ours.double(), ours)
    means, deviations = [float(each.mean()) for each in samples], [float(each.std(correction=0)) for each in samples]
    pooled = math.sqrt((deviations[0] ** 2 + deviations[1] ** 2) / 2)
    error = pooled * math.sqrt(2 / count) * SIGMAS
    return abs(means[0] - means[1]) <= error + 1e-12 and abs(deviations[0] - deviations[1]) <= error / math.sqrt(2) + 1e-12


def _usual(sample: Tensor, ours: Tensor) -> Tensor:
    """A sample without the few values that lie beyond ten deviations of ours.

    torch's truncated normal draws a value at the cut itself, a hundred deviations away, about once in ten million times.
    """
    near = (sample - sample.median()).abs() <= 10 * ours.double().std(correction=0) + 1e-12
    return sample[near] if int((~near).sum()) <= max(1, sample.numel() // 100_000) else sample
