"""The transformer: an embedding, a stack of blocks and a head."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

import torch
from pydantic import model_validator
from torch import Tensor

from zoo.config import Config, Problem, Slot, within
from zoo.config.base import raise_problems
from zoo.errors import InputError
from zoo.layout import Layout
from zoo.model.base import Model, ModelConfig, bind, chosen, masked
from zoo.output import TransformerOutput
from zoo.registry import make


class Transformer(Model):
    """An embedding, a stack of blocks and a head: ViT, BERT, GPT and Swin are configs of this.

    Papers: Vaswani et al. 2017, https://arxiv.org/abs/1706.03762, and those of the parts.
    """

    class Config(ModelConfig):
        """Config of a `transformer`."""

        type: Literal["transformer"] = "transformer"
        embedding: Annotated[Config, Slot("embedding")]
        """What turns inputs into tokens."""
        stack: Annotated[Config, Slot("stack", default="uniform")]
        """The blocks."""
        head: Annotated[Config | None, Slot("head", optional=True)] = None
        """What turns tokens into answers; without one the model gives its last hidden state."""

        @model_validator(mode="after")
        def _fits(self) -> Any:
            raise_problems("transformer", self.problems())
            return self

        def problems(self, **context: Any) -> Iterator[Problem]:
            width: int = getattr(self.stack, "output_width", None) or getattr(self.stack, "width")
            class_token = getattr(self.embedding, "class_token", True)
            yield from within("embedding", self.embedding.problems(width=getattr(self.stack, "width")))
            yield from within("stack", self.stack.problems())
            if self.head is not None:
                vocabulary = getattr(self.embedding, "vocabulary", None)
                context = {"width": width, "class_token": class_token, "vocabulary": vocabulary}
                yield from within("head", self.head.problems(**context))

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.embedding = make(config.embedding, width=getattr(config.stack, "width"))
        self.stack = make(config.stack)
        self.head = make(config.head, **head_context(config, self.stack.width))

    def forward(
        self,
        *inputs: Tensor,
        attention_mask: Tensor | None = None,
        score_mask: Tensor | None = None,
        output_hidden_states: Any = False,
        output_attentions: Any = False,
        **named: Any,
    ) -> TransformerOutput:
        """Runs the model.

        Args:
            inputs, named: what the embedding reads, by position or by name, and its options: `pixel_values`
                (batch, channels, height, width) and `interpolate_pos_encoding`, or `input_ids` (batch, tokens) and
                `token_type_ids`, `position_ids`, `sequence_ids`.
            attention_mask: (batch, tokens), 1 for tokens that may be attended to; or (batch, 1, tokens, tokens), true
                where one token may attend to another, or a float to be added to the scores. A token that may attend
                to none gets zeros from the attention.
            score_mask: (batch, tokens), true for the tokens that a head which scores each token is to score; its logits
                are then (number of these tokens, classes), row by row. Scoring few tokens saves most of a large head.
            output_hidden_states: all states, or a list of those wanted: 0 is the embedding, n is
                what the n-th block gives, negative numbers count from the last.
            output_attentions: attention weights of all layers, or of a list of layers from 0.

        Raises:
            InputError: an input that does not fit, or an argument that this model cannot honour.
        """
        given = bind(inputs, named, self.embedding.inputs, self.embedding.options)
        x, layout = self.embedding(**given)
        layout = masked(layout, attention_mask, (x.shape[0], x.shape[1]))
        depth = len(self.stack.layers)
        states = chosen(output_hidden_states, depth + 1, "output_hidden_states")
        maps = chosen(output_attentions, depth, "output_attentions")
        x, kept, seen = self.stack(x, layout, hidden_states=states, attentions=maps)
        return TransformerOutput(
            last_hidden_state=x,
            hidden_states=tuple(kept[index] for index in states) if states else None,
            attentions=tuple(seen[index] for index in maps) if maps else None,
            **self._answers(x, layout, score_mask),
        )

    def _answers(self, x: Tensor, layout: Layout, score_mask: Tensor | None) -> dict[str, Tensor]:
        """What the head gives."""
        if score_mask is None:
            answers: dict[str, Tensor] = {} if self.head is None else self.head(x, layout)
            return answers
        tensor = isinstance(score_mask, Tensor)
        if not tensor or score_mask.shape != x.shape[:2] or score_mask.dtype != torch.bool:
            found = f"{tuple(score_mask.shape)} of {score_mask.dtype}" if tensor else type(score_mask).__name__
            raise InputError(f"score_mask: expected true and false of shape {tuple(x.shape[:2])} (batch, tokens), got {found}")
        chosen = x[score_mask][None]
        given = {} if self.head is None else self.head(chosen, layout._replace(real=None, mask=None))
        if "logits" not in given or given["logits"].shape[:-1] != chosen.shape[:-1]:
            kind = repr(getattr(self.config.head, "type")) if self.head is not None else "none"
            raise InputError(f"score_mask: this needs a head that scores each token by itself, and this is {kind}")
        return {"logits": given["logits"][0]}


def head_context(config: Any, width: int) -> dict[str, Any]:
    """What the head of a model's config is built with, of what it asks for."""
    block = getattr(config.stack, "block", None)
    known = {
        "width": width,
        "vocabulary": getattr(config.embedding, "vocabulary", None),
        "norm": getattr(block, "norm", None),
    }
    return {name: known[name] for name in getattr(config.head, "context", ("width",))}
