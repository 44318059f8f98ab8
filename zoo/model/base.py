"""What all models share."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Collection, Sequence
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from zoo.cache import Cache
from zoo.config import Config, Slot
from zoo.errors import InputError, did_you_mean, one_of
from zoo.layout import Layout
from zoo.registry import make

CALL_ARGUMENTS = (
    "attention_mask",
    "global_attention_mask",
    "encoder_hidden_states",
    "encoder_attention_mask",
    "score_mask",
    "logits_to_keep",
    "past_key_values",
    "use_cache",
    "output_hidden_states",
    "output_attentions",
    "output_router_logits",
    "features",
)
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
    embedding: Any
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

    def num_parameters(self, active: bool = False) -> int:
        """How many parameters the model has, shared ones counted once.

        Args:
            active: without the experts that a token does not meet.
        """
        idle = sum(getattr(module, "idle_parameters", 0) for module in self.modules()) if active else 0
        return sum(parameter.numel() for parameter in self.parameters()) - idle

    def new_cache(self, capacity: int | None = None) -> Cache:
        """An empty cache for `past_key_values`, with room for `capacity` tokens at once; more is taken when more come.

        Raises:
            InputError: tokens of this model depend on later ones, so that nothing can be kept.
        """
        if not getattr(self.stack, "decodes", False) or not getattr(self.embedding, "continues", False):
            raise InputError("use_cache: tokens of this model depend on later ones; only causal attention can be continued")
        return Cache(len(self.stack.layers), capacity)

    def generate(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        logits_processor: Sequence[Any] | None = None,
        tokenizer: Any = None,
        streamer: Any = None,
        generator: torch.Generator | None = None,
        **options: Any,
    ) -> Any:
        """Continues texts: greedily, by drawing tokens, or by beam search.

        Names and meanings are those of transformers, whose results greedy and beam search equal token for token. A model in
        training decodes as in evaluation, and goes on training afterwards.

        Args:
            input_ids: (batch, tokens), the prompts.
            attention_mask: (batch, tokens), 0 for padding, which stands on the left (default: `pad_token_id` is padding where
                it is given and ends no text).
            position_ids: (batch, tokens), where the tokens stand (default: each row counts from its first real one).
            past_key_values: the cache of a call that read the first of these tokens; the others are added to it.
            logits_processor: functions of the tokens so far (rows, tokens) and scores (rows, vocabulary) that give new scores.
            tokenizer: decodes tokens where `stop_strings` are given.
            streamer: a function that gets the new tokens (batch,) of each step; or an object with `put`, which gets the
                prompts first, and `end`.
            generator: draws, where `do_sample` is set and no `seed`.
            options: the fields of `zoo.generation.options.GenerationOptions`: `max_new_tokens`, `do_sample`, `temperature`,
                `top_k`, `top_p`, `min_p`, `seed`, `num_beams`, `num_return_sequences`, `eos_token_id`, `stop_strings`, ...

        Returns:
            (batch x num_return_sequences, tokens), the prompts with what was generated; with `return_dict_in_generate` a
            `zoo.generation.output.GenerateOutput`.

        Raises:
            InputError: the model scores no next token, an unknown or contradicting option, an input that does not fit, or a
                text that becomes longer than the model has positions for. Nothing has been computed then.
        """
        from zoo.generation.run import generate

        return generate(
            self,
            input_ids,
            attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            logits_processor=logits_processor,
            tokenizer=tokenizer,
            streamer=streamer,
            generator=generator,
            given=options,
        )

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the weights."""
        return next(self.parameters()).dtype


def bind(
    inputs: tuple[Any, ...],
    named: dict[str, Any],
    names: tuple[str, ...],
    options: tuple[str, ...],
    needed: Literal["first", "any", "none"] = "first",
) -> dict[str, Any]:
    """The inputs of a call by name, of which the first is needed, or any, or none.

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
    if needed != "none" and all(bound.get(name) is None for name in (names[:1] if needed == "first" else names)):
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


def masked(layout: Layout, attention_mask: Tensor | None, shape: tuple[int, int], cache: Cache | None = None) -> Layout:
    """The layout with what the caller lets each token attend to.

    Args:
        attention_mask: (batch, past + tokens), 1 for real tokens; or whatever is to be masked, as (batch or 1, heads or 1,
            tokens, past + tokens), true where a token may attend to another, or a float to be added to the scores.
        shape: (batch, tokens).
        cache: the tokens of the past; it remembers which of them, and of these, are real.

    Raises:
        InputError: no mask, one of another shape, or a mask of scores for packed texts.
    """
    mask, real = None, None
    batch, tokens = shape
    keys = tokens if cache is None else tokens + len(cache)
    if attention_mask is not None and (not isinstance(attention_mask, Tensor) or attention_mask.is_complex()):
        found = attention_mask.dtype if isinstance(attention_mask, Tensor) else type(attention_mask).__name__
        raise InputError(f"attention_mask: expected a tensor of 0 and 1, or of scores, got {found}")
    if attention_mask is not None and attention_mask.ndim == 3 and attention_mask.shape[1] == layout.choices:
        attention_mask = attention_mask.flatten(0, 1)
    if attention_mask is not None and attention_mask.ndim == 4:
        if attention_mask.shape[0] not in (1, batch) or tuple(attention_mask.shape[2:]) not in ((tokens, keys), (1, keys)):
            wanted = f"{(batch, keys)} or {(batch, 1, tokens, keys)}"
            raise InputError(f"attention_mask: expected shape {wanted}, got {tuple(attention_mask.shape)}")
        mask = attention_mask if attention_mask.is_floating_point() else attention_mask.bool()
    elif attention_mask is not None:
        if tuple(attention_mask.shape) != (batch, keys):
            what = "(batch, tokens)" if keys == tokens else f"(batch, {keys - tokens} tokens in the cache + {tokens})"
            raise InputError(f"attention_mask: expected shape {(batch, keys)} {what}, got {tuple(attention_mask.shape)}")
        real = attention_mask.bool()
    elif cache is not None and cache.real is not None:
        real = functional.pad(cache.real, (0, tokens), value=True)
    if real is not None:
        mask = real[:, None, None, :]
    if layout.texts is not None and mask is not None and mask.is_floating_point():
        raise InputError("attention_mask: scores cannot be given beside sequence_ids; use a mask of true and false")
    if cache is not None:
        if layout.texts is not None:
            raise InputError("sequence_ids: texts packed into a row cannot be continued; give each a row of its own")
        cache.real = real
        real = None if real is None else real[:, keys - tokens :]
    # routers write into an object that stays the same where FSDP2 rebuilds dictionaries with tensors in them, block by block
    return layout._replace(mask=mask, real=real, cache=cache, shared={"routed": UserDict()})
