"""What all models share."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from zoo.config import Config, Slot
from zoo.errors import InputError, did_you_mean, one_of
from zoo.layout import Layout
from zoo.registry import make

CALL_ARGUMENTS = ("attention_mask", "score_mask", "output_hidden_states", "output_attentions")
"""What the call of every model takes beside its inputs."""


class ModelConfig(Config):
    """Fields of every model."""

    kind: ClassVar[str] = "model"

    init: Annotated[Config, Slot("initializer", default="truncated-normal")] = Field(
        default="truncated-normal", validate_default=True
    )
    """How fresh weights are drawn."""


class Model(nn.Module):
    """An assembly of parts, with the frozen config that describes it."""

    config: Any
    stack: Any
    load_report: Any = None
    """What loading did with each tensor; None for a model with fresh weights."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config

    def initialize_weights(self) -> None:
        """Draws all weights afresh, by the recipe of the config."""
        make(self.config.init)(self)

    def gradient_checkpointing(self, enable: bool = True) -> None:
        """Keeps only each block's input in training and computes the rest again in the backward pass."""
        module: Any
        for module in self.modules():
            if hasattr(module, "checkpointing"):
                module.checkpointing = enable

    def num_parameters(self) -> int:
        """How many parameters the model has, shared ones counted once."""
        return sum(parameter.numel() for parameter in self.parameters())

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the weights."""
        return next(self.parameters()).dtype


def bind(inputs: tuple[Any, ...], named: dict[str, Any], names: tuple[str, ...], options: tuple[str, ...]) -> dict[str, Any]:
    """The inputs of a call by name.

    Raises:
        InputError: an argument that the model does not know, too many inputs, or none.
    """
    if len(inputs) > len(names):
        raise InputError(f"{len(inputs)} inputs given by position, but the model takes {one_of(names)}")
    bound = dict(zip(names, inputs))
    for name, value in named.items():
        if name in bound:
            raise InputError(f"{name} was given twice, by position and by name")
        if name not in names + options:
            if value is None:
                continue  # an option that a caller passes on unset asks for nothing
            known = (*names, *options, *CALL_ARGUMENTS)
            hint = did_you_mean(name, known) or f"; it takes {', '.join(known)}"
            raise InputError(f"{name}: this model cannot honour such an argument{hint}")
        bound[name] = value
    if bound.get(names[0]) is None:
        raise InputError(f"{names[0]} is missing: this model reads {', '.join(names)}")
    return bound


def chosen(choice: Any, available: int, name: str) -> list[int]:
    """The indices that `output_hidden_states` or `output_attentions` asks for: all, none, or a list.

    Raises:
        InputError: an index that the model does not have, or something else than a truth value or a list.
    """
    if choice is None or choice is False:
        return []
    if choice is True:
        return list(range(available))
    if isinstance(choice, (str, bytes)) or not isinstance(choice, Collection):
        raise InputError(f"{name}: expected true, false or a list of layers, got {choice!r}")
    if not all(isinstance(index, int) and not isinstance(index, bool) for index in choice):
        raise InputError(f"{name}: expected whole numbers, got {list(choice)!r}")
    wanted = [index + available if index < 0 else index for index in choice]
    for index, given in zip(wanted, choice):
        if not 0 <= index < available:
            raise InputError(f"{name}: {given} is none of 0 to {available - 1}")
    return wanted


def masked(layout: Layout, attention_mask: Tensor | None, shape: tuple[int, int]) -> Layout:
    """The layout with what each token may attend to, of what the caller says and what texts are packed into a row.

    Args:
        attention_mask: (batch, tokens), 1 for real tokens; or whatever is to be masked, as (batch or 1, heads or 1, tokens,
            tokens), true where a token may attend to another, or a float to be added to the scores.
        shape: (batch, tokens).

    Raises:
        InputError: no mask, one of another shape, or a mask of scores for packed texts.
    """
    mask, real = None, None
    if attention_mask is not None and (not isinstance(attention_mask, Tensor) or attention_mask.is_complex()):
        found = attention_mask.dtype if isinstance(attention_mask, Tensor) else type(attention_mask).__name__
        raise InputError(f"attention_mask: expected a tensor of 0 and 1, or of scores, got {found}")
    if attention_mask is not None and attention_mask.ndim == 3 and attention_mask.shape[1] == layout.choices:
        attention_mask = attention_mask.flatten(0, 1)
    if attention_mask is not None and attention_mask.ndim == 4:
        batch, tokens = shape
        if attention_mask.shape[0] not in (1, batch) or tuple(attention_mask.shape[2:]) not in ((tokens, tokens), (1, tokens)):
            wanted = f"({batch}, 1, {tokens}, {tokens})"
            raise InputError(f"attention_mask: expected shape {shape} or {wanted}, got {tuple(attention_mask.shape)}")
        mask = attention_mask if attention_mask.is_floating_point() else attention_mask.bool()
    elif attention_mask is not None:
        if tuple(attention_mask.shape) != shape:
            raise InputError(f"attention_mask: expected shape {shape} (batch, tokens), got {tuple(attention_mask.shape)}")
        real = attention_mask.bool()
        mask = real[:, None, None, :]
    if layout.texts is not None:
        same = (layout.texts[:, :, None] == layout.texts[:, None, :])[:, None]
        if mask is not None and mask.is_floating_point():
            raise InputError("attention_mask: scores cannot be given beside sequence_ids; use a mask of true and false")
        mask = same if mask is None else mask & same
    return layout._replace(mask=mask, real=real, shared={})
