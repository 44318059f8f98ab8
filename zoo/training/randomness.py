"""Random numbers that a killed run can pick up again: each step's follow from the seed and the step, nothing else."""

from __future__ import annotations

import random
from typing import Any

import numpy
import torch

from zoo.data.randomness import mixed


def seed_step(seed: int, epoch: int, batch: int, rank: int, device: torch.device) -> None:
    """Seeds the generators of Python, numpy and torch for one training batch.

    What is drawn on the way, such as dropout and batch-wise augmentation, then depends on nothing that happened
    before, so that a run resumed at any batch draws what the run without a break would have drawn.

    Args:
        seed: that of the run.
        epoch, batch: which batch of which epoch, both from 0.
        rank: which of several processes, each of which draws its own numbers.
        device: where the model is.
    """
    number = mixed(seed, epoch, batch, rank)
    random.seed(number)
    numpy.random.seed(number % 2**32)
    torch.default_generator.manual_seed(number)
    if device.type != "cpu":  # torch.manual_seed would look for accelerators in every step
        accelerator: Any = getattr(torch, device.type)
        accelerator.manual_seed(number)
