"""What the first files of Hugging Face's BERT, of 2018 and 2019, spell otherwise."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from zoo.errors import WeightsError

GOOGLES_FIELDS = {
    "attention_probs_dropout_prob", "hidden_act", "hidden_dropout_prob", "hidden_size", "initializer_range",
    "intermediate_size", "max_position_embeddings", "num_attention_heads", "num_hidden_layers", "type_vocab_size", "vocab_size",
}  # fmt: skip
"""What every config has that came with BERT itself."""
CLASSES = {"Bert": "bert", "Roberta": "roberta", "DistilBert": "distilbert"}


def model_type(values: Mapping[str, Any]) -> Any:
    """The model type of a config: as it says, or as its class does, or BERT's where only BERT's own fields stand there."""
    kind, listed = values.get("model_type"), values.get("architectures")
    if kind is None and isinstance(listed, list) and listed:
        return next((kind for start, kind in CLASSES.items() if re.match(f"{start}(Model|For)", str(listed[0]))), None)
    return "bert" if kind is None and not listed and values.keys() >= GOOGLES_FIELDS else kind


def modern_names(found: Mapping[str, str]) -> dict[str, str]:
    """The names on disk by today's names, for norms that have `gamma` and `beta` there.

    Raises:
        WeightsError: two names on disk mean the same tensor.
    """
    modern: dict[str, str] = {}
    for name, stored in found.items():
        name = re.sub(r"\.gamma$", ".weight", re.sub(r"\.beta$", ".bias", name))
        if name in modern:
            raise WeightsError(f"two sources for one tensor: {modern[name]} and {stored}")
        modern[name] = stored
    return modern
