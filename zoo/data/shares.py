"""Keeping examples out of training by what they are: the same example is in the same part wherever it stands."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterable

from zoo.data.base import SplitName


def part_of(content: bytes, test: float, validation: float) -> SplitName:
    """The part of an example, drawn from what it holds.

    Equal examples are in one part, so that none is both trained and measured on; no order of reading and no other
    example plays a role, so that a stream is parted like a set in memory.

    Args:
        content: what tells the example from others.
        test, validation: the shares of all examples, and of those that are not test.
    """
    if _drawn(content, b"test") < test:
        return "test"
    return "validation" if _drawn(content, b"validation") < validation else "train"


def few(contents: Iterable[bytes], most: int) -> set[bytes]:
    """So many of these at most, drawn from what they hold: the others play no role but by being there."""
    return set(heapq.nsmallest(most, set(contents), key=lambda content: _drawn(content, b"few")))


def _drawn(content: bytes, name: bytes) -> float:
    """A number from 0 to 1 that follows from `content`."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=8, person=name).digest(), "big") / 2**64
