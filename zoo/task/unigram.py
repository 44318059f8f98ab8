"""What can be guessed of tokens from their frequencies alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor


def references(data: Any, split: Any, targets: Tensor) -> dict[str, float]:
    """The figures, in nats per token, that the loss of guessing tokens is to be compared with.

    - `unigram_entropy`: the entropy of the tokens of the part by their own frequencies, which no rule that
      gives each token one probability can fall below;
    - `unigram_loss`: their mean loss by the frequencies in the training part, each token counted once more than it occurs;
    - `target_entropy`, `target_unigram_loss`: the same for the tokens that were guessed alone.

    Args:
        data: data of texts in memory; of a stream, which would have to be read once more, nothing is said.
        targets: the tokens that were guessed.
    """
    if not hasattr(data.split("train"), "__len__"):
        return {}
    trained, tested, guessed = counted(data, "train"), counted(data, split), Counter(targets.tolist())
    vocabulary = data.tokenizer.vocabulary
    return {
        "unigram_entropy": entropy(tested),
        "unigram_loss": loss(tested, trained, vocabulary),
        "target_entropy": entropy(guessed),
        "target_unigram_loss": loss(guessed, trained, vocabulary),
    }


def counted(data: Any, split: Any) -> Counter[int]:
    """How often each token occurs in a part, as far as its texts are read; those around texts are left out."""
    config, pieces = data.config, data.tokenizer.pieces
    found: Counter[int] = Counter()
    for text in data.texts(split):
        for piece in pieces(text, config.length, rest=config.pack):
            found.update(token for token, word in zip(piece.ids, piece.words) if word >= 0)
    return found


def entropy(tokens: Mapping[int, int]) -> float:
    """In nats."""
    shares = _tensor(tokens.values())
    shares = shares / shares.sum()
    return float(-(shares * shares.log()).sum())


def loss(tokens: Mapping[int, int], trained: Mapping[int, int], vocabulary: int) -> float:
    """The mean negative logarithm of the share of each token among those `trained` on, counted once more than there."""
    weights = _tensor(tokens.values())
    shares = _tensor(trained.get(token, 0) + 1 for token in tokens) / (sum(trained.values()) + vocabulary)
    return float(-(weights * shares.log()).sum() / weights.sum())


def _tensor(numbers: Iterable[int]) -> Tensor:
    return torch.tensor(list(numbers), dtype=torch.float64)
