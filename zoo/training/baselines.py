"""What simple models of scikit-learn reach on the same split."""

from __future__ import annotations

from typing import Any

import torch

from zoo.data.base import Data
from zoo.extras import require
from zoo.registry import make

NAMES = ("logistic regression", "support vectors (RBF)")


def baselines(data: Any) -> dict[str, float]:
    """Accuracy on the test part by the name of the method, each with its default settings.

    Trained on all that is not the test part, as flat pixels.

    Args:
        data: the config of data whose examples lie in memory.
    """
    part: Data = make(data)
    linear = require("sklearn.linear_model", "train", "baselines").LogisticRegression(max_iter=1000)
    vectors = require("sklearn.svm", "train", "baselines").SVC()
    train, validation, test = (_flat(part.split(name)) for name in ("train", "validation", "test"))  # type: ignore[arg-type]
    pixels, labels = (torch.cat(both).numpy() for both in zip(train, validation))
    return {
        name: float(method.fit(pixels, labels).score(test[0].numpy(), test[1].numpy()))
        for name, method in zip(NAMES, (linear, vectors))
    }


def _flat(examples: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return examples.tensors["pixel_values"].flatten(1), examples.tensors["labels"]
