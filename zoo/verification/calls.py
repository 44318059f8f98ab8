"""How both models are called: case by case, and where a case is read in several calls, each with its own cache."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

from zoo.cache import LayerCache
from zoo.model.base import Model
from zoo.verification.cases import CHUNKS, calls
from zoo.verification.reference import Library

Batches = Mapping[str, Mapping[str, Any]]


class Call(NamedTuple):
    """One call of both models."""

    name: tuple[str, int]
    """The case, and which of its calls this is."""
    inputs: dict[str, Any]
    theirs: dict[str, Any]
    ours: dict[str, Any]
    """The inputs with the model's cache, where calls go on from those before."""
    kept: dict[str, LayerCache] | None
    """There, what each of our modules alone keeps."""


def both_called(
    library: Library, theirs: nn.Module, ours: Model, batches: Batches, dtype: Any = torch.float64
) -> Iterator[Call]:
    """The calls of all cases, one after another; what is no whole number is of `dtype`."""
    for case, batch in batches.items():
        pasts: tuple[dict[str, Any], ...] = ({}, {})
        if CHUNKS in batch and not getattr(getattr(ours, "decoder", ours).stack, "decodes", False):
            continue  # ours sees later tokens, which the other cases show
        if CHUNKS in batch:
            pasts = {"past_key_values": library.new_cache(theirs)}, {"past_key_values": ours.new_cache()}
        kept: dict[str, LayerCache] | None = {} if CHUNKS in batch else None
        for number, inputs in enumerate(calls(batch)):
            for name, value in inputs.items():
                if torch.is_tensor(value) and value.is_floating_point():
                    inputs[name] = value.to(dtype)
            yield Call((case, number), inputs, {**inputs, **pasts[0]}, {**inputs, **pasts[1]}, kept)
            if CHUNKS in batch and number == 0 and "decoder_input_ids" in inputs:
                read = {name: value for name, value in inputs.items() if not name.startswith("decoder_")}
                pasts[0]["encoder_outputs"] = library.encoded(theirs, read)
                pasts[1]["encoder_outputs"] = ours.get_submodule("encoder")(**read)
