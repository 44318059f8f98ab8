"""Random numbers of one example: they follow from a few whole numbers, and disturb nobody else's."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy
import torch


def mixed(*numbers: int) -> int:
    """A whole number of 63 bits that follows from `numbers`, and has nothing to do with that of other ones."""
    text = "/".join(map(str, numbers)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1


def start_from(*numbers: int) -> None:
    """Lets the generators of Python, numpy and torch (CPU) start from `numbers`: use it inside of `undisturbed`."""
    seed = mixed(*numbers)
    random.seed(seed)
    numpy.random.seed(seed & 0xFFFFFFFF)
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed accelerators too


@contextmanager
def undisturbed() -> Iterator[None]:
    """Behind it, the generators of Python, numpy and torch (CPU) are as they were before."""
    before = random.getstate(), numpy.random.get_state(), torch.default_generator.get_state()
    try:
        yield
    finally:
        random.setstate(before[0])
        numpy.random.set_state(before[1])
        torch.default_generator.set_state(before[2])
