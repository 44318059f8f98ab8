"""Words, or pieces of them, as tokens."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from zoo import kernel
from zoo.config import Config, Problem, Slot, within
from zoo.config.base import Count, PositiveInt, Probability
from zoo.embedding.base import EmbeddingConfig, misplaced
from zoo.errors import InputError
from zoo.layout import Layout
from zoo.registry import make


class TokenEmbedding(nn.Module):
    """Looks up a learned vector for each token, and adds those of its segment and its position.

    Shapes: input_ids (batch, tokens) -> (batch, tokens, width); (batch, choices, tokens) become
    (batch x choices, tokens). Paper: Devlin et al. 2018, https://arxiv.org/abs/1810.04805, section 3.
    """

    class Config(EmbeddingConfig):
        """Config of the `tokens` embedding."""

        type: Literal["tokens"] = "tokens"
        vocabulary: PositiveInt
        """How many different tokens there are."""
        segments: Count = 0
        """How many segments (`token_type_ids`) are told apart; 0 has no vectors for them."""
        segment_vectors: Literal["own", "tokens"] = "own"
        """Whose vectors those of segments are: their own, or those of tokens, so that `token_type_ids` are tokens too and
        add nothing where they are left out (GPT-2)."""
        padding: Count | None = None
        """The token that fills rows up. Its vector is zero when fresh and gets no gradient; it is masked only if the caller
        says so."""
        count: Literal["all", "unpadded"] = "all"
        """How positions are numbered: all tokens from 0, or those that are not `padding` from `padding` + 1 on, and
        padding itself has the position `padding` (RoBERTa)."""
        scale: Annotated[float, Field(gt=0)] | None = None
        """What the vectors of tokens are multiplied by, such as width^0.5 in the first transformer (default: nothing)."""
        position: Annotated[Config | None, Slot("position", default="learned", optional=True)] = None
        """What tells tokens apart by their place."""
        norm: Annotated[Config | None, Slot("norm", default="layer-norm", optional=True)] = None
        """A norm of the sum."""
        dropout: Probability = 0.0
        """Share of values dropped in training."""

        prefix: ClassVar[int] = 0
        """No token stands in front of the text's own."""

        def problems(self, *, width: int, **context: Any) -> Iterator[Problem]:
            if self.padding is not None and self.padding >= self.vocabulary:
                yield ("padding",), f"{self.padding} is none of the vocabulary's 0 to {self.vocabulary - 1}"
            if self.segment_vectors == "tokens" and self.segments:
                yield ("segments",), "the segments are tokens (`segment_vectors`), so they have no vectors of their own"
            if self.count == "unpadded" and self.padding is None:
                yield ("count",), "'unpadded' needs to know which token is `padding`"
            if getattr(self.position, "type", None) == "learned":
                length, first = getattr(self.position, "length"), self.padding if self.count == "unpadded" else None
                if length is None:
                    yield ("position", "length"), "a table for texts needs a length"
                elif first is not None and length <= first + 1:
                    yield ("position", "length"), f"the first token of a text has position {first + 1} already"
            for name in ("position", "norm"):
                part = getattr(self, name)
                wrong = list(misplaced(part)) if name == "position" else []
                yield from wrong
                if part is not None and not wrong:
                    yield from within(name, part.problems(width=width, **context))

    inputs = ("input_ids",)
    options = ("token_type_ids", "position_ids", "sequence_ids")
    continues: ClassVar[bool] = True
    """Whether it can embed tokens that follow others (`past`)."""

    def __init__(self, config: Config, *, width: int, own_table: bool = True) -> None:
        super().__init__()
        self.config = config
        self.table = nn.Parameter(torch.empty(config.vocabulary, width)) if own_table else None
        self.segment = nn.Parameter(torch.empty(config.segments, width)) if config.segments else None
        unused = {"padding": config.padding} if config.count == "unpadded" else {}
        self.position = make(config.position, width=width, length=getattr(config.position, "length", None), **unused)
        self.norm = make(config.norm, width=width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        input_ids: Tensor,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        sequence_ids: Tensor | None = None,
        past: int = 0,
        table: Tensor | None = None,
    ) -> tuple[Tensor, Layout]:
        """Embeds a batch of texts.

        Args:
            input_ids: (batch, tokens), or (batch, choices, tokens), whole numbers.
            token_type_ids: the segment of each token, of the same shape (default: the first).
            position_ids: (batch or 1, tokens), the place of each token (default: counted as the config says).
            sequence_ids: (batch, tokens), where rows hold several texts: which text each token belongs to. Positions
                then start anew with each text, and no token attends to another text.
            past: how many tokens of each text came before these.
            table: (vocabulary, width), another embedding's vectors of tokens, where this one has none of its own.

        Raises:
            InputError: a shape, a type or a number that does not fit.
        """
        ids = self._checked("input_ids", input_ids, None, self.config.vocabulary)
        choices = ids.shape[1] if ids.ndim == 3 else None
        among_tokens = self.config.segment_vectors == "tokens"
        kinds = self.config.vocabulary if among_tokens else max(self.config.segments, 1)
        segments = self._checked("token_type_ids", token_type_ids, ids, kinds)
        given = self._checked("position_ids", position_ids, ids, None)
        texts = self._checked("sequence_ids", sequence_ids, ids, None)
        if choices is not None:
            ids, segments, given, texts = (
                each.flatten(0, 1) if each is not None and each.ndim == 3 else each for each in (ids, segments, given, texts)
            )
        positions = self._positions(ids, texts, past) if given is None else given
        table = self.table if table is None else table
        if table is None:
            raise InputError("these tokens have the vectors of another embedding, which are missing; call the whole model")
        layout = Layout(positions=positions, texts=texts, choices=choices, ids=ids, past=past, table=table)
        x = functional.embedding(ids, table, padding_idx=self.config.padding)  # which gets no gradient
        x = x if self.config.scale is None else x * self.config.scale
        if self.segment is not None:
            x = x + (self.segment[0] if segments is None else functional.embedding(segments, self.segment))
        elif among_tokens and segments is not None:
            x = x + functional.embedding(segments, table, padding_idx=self.config.padding)
        if self.position is not None:
            x = self.position(x, layout)
        if self.norm is not None:
            x = self.norm(x)
        return self.dropout(x), layout

    def initialize(self, init: Any) -> None:
        if self.table is not None:
            init.table(self.table, self.config.padding)
        if self.segment is not None:
            init.table(self.segment, None)

    def _positions(self, ids: Tensor, texts: Tensor | None, past: int) -> Tensor | None:
        padding = self.config.padding
        if self.config.count == "unpadded" and padding is not None:
            real = (ids != padding).to(torch.int64)
            counted = real.cumsum(1) if texts is None else _counted(texts, real)
            return (counted + past) * real + padding
        return None if texts is None else _counted(texts, torch.ones_like(ids)) - 1

    def _checked(self, name: str, ids: Tensor | None, like: Tensor | None, number: int | None) -> Any:
        """The numbers of an input, of the shape of `like` if there is one and below `number` if there is one."""
        if ids is None:
            if like is None:
                raise InputError(f"{name} is missing")
            return None
        if not isinstance(ids, Tensor):
            raise InputError(f"{name}: expected a tensor, got {type(ids).__name__}")
        if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool or (like is None and ids.ndim not in (2, 3)):
            shape = f"{tuple(ids.shape)} of {ids.dtype}"
            raise InputError(f"{name}: expected whole numbers of shape (batch, tokens), got {shape}")
        if like is None and 0 in ids.shape[1:]:
            raise InputError(f"{name}: a text has at least one token, got shape {tuple(ids.shape)}")
        shared = name == "position_ids" and like is not None and tuple(ids.shape) == (1, like.shape[-1])
        if like is not None and ids.shape != like.shape and not shared:
            raise InputError(f"{name}: expected shape {tuple(like.shape)}, as input_ids, got {tuple(ids.shape)}")
        ids = ids if ids.dtype in (torch.int64, torch.int32) else ids.long()
        if number is not None and ids.numel() and kernel.readable(ids):
            low, high = (int(each) for each in ids.aminmax())
            if low < 0 or high >= number:
                raise InputError(f"{name}: {low if low < 0 else high} is none of 0 to {number - 1}")
        return ids

    def extra_repr(self) -> str:
        return f"vocabulary={self.config.vocabulary}, segments={self.config.segments}"


def _counted(texts: Tensor, real: Tensor) -> Tensor:
    """How many of the real tokens of its own text stand up to each token, itself included."""
    same = texts[:, :, None] == texts[:, None, :]
    before = torch.ones(texts.shape[1], texts.shape[1], dtype=torch.bool, device=texts.device).tril()
    return ((same & before) * real[:, None, :]).sum(-1)
