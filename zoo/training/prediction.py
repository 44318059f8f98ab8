"""What a model says to one input."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor


class Prediction(NamedTuple):
    """What a model says to one input."""

    name: str
    """The input: a file, a text, or the number of an example."""
    answers: list[tuple[str, float]]
    """Classes or tokens and their probabilities, the likeliest first."""
    label: str | None = None
    """The right answer, where the data say."""


def likeliest(logits: Tensor, name: Callable[[int], str], top: int) -> list[tuple[str, float]]:
    """The `top` answers of logits (answers,), each with its name and its probability."""
    shares, places = logits.float().softmax(-1).topk(min(top, len(logits)))
    return [(name(place), share) for place, share in zip(places.tolist(), shares.tolist())]
