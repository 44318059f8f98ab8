"""What simple methods reach on the same split."""

from __future__ import annotations

from typing import Any

import torch

from zoo.data.base import Data, Examples
from zoo.data.text import TextData
from zoo.extras import require
from zoo.registry import make

PIXELS = ("logistic regression", "support vectors (RBF)")
WORDS = "TF-IDF, logistic regression"
"""The names of the methods."""


def baselines(data: Any) -> dict[str, float]:
    """Accuracy on the test part by the name of the method, each with its default settings.

    Trained on all that is not the test part: images in memory as flat pixels, texts with labels as words weighed by how
    rare they are (TF-IDF). For other data there is none.

    Args:
        data: the config of data.
    """
    part: Data = make(data)
    test: Any = part.split("test")
    if isinstance(test, Examples):
        return _of_pixels(part)
    labelled = isinstance(part, TextData) and bool(part.text_column) and part.label_column is not None
    return _of_words(part) if labelled and hasattr(test, "__len__") else {}  # type: ignore[arg-type]


def _of_pixels(part: Data) -> dict[str, float]:
    linear = require("sklearn.linear_model", "train", "baselines").LogisticRegression(max_iter=1000)
    vectors = require("sklearn.svm", "train", "baselines").SVC()
    train, validation, test = (_flat(part.split(name)) for name in ("train", "validation", "test"))  # type: ignore[arg-type]
    pixels, labels = (torch.cat(both).numpy() for both in zip(train, validation))
    return {
        name: float(method.fit(pixels, labels).score(test[0].numpy(), test[1].numpy()))
        for name, method in zip(PIXELS, (linear, vectors))
    }


def _of_words(part: TextData) -> dict[str, float]:
    linear = require("sklearn.linear_model", "train", "baselines").LogisticRegression(max_iter=1000)
    words = require("sklearn.feature_extraction.text", "train", "baselines").TfidfVectorizer()
    kept: Any = ("train", "validation") if part.has("validation") else ("train",)
    texts, labels = (
        [text for name in kept for text in part.texts(name)],
        [label for name in kept for label in part.labels(name)],
    )
    method = require("sklearn.pipeline", "train", "baselines").make_pipeline(words, linear)
    return {WORDS: float(method.fit(texts, labels).score(list(part.texts("test")), list(part.labels("test"))))}


def _flat(examples: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return examples.tensors["pixel_values"].flatten(1), examples.tensors["labels"]
