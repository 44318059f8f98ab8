"""Which of several texts is the right one."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from zoo import kernel
from zoo.activation import Activation
from zoo.config.base import Probability
from zoo.errors import InputError
from zoo.head.base import HeadConfig
from zoo.layout import Layout


class MultipleChoice(nn.Module):
    """Scores each of the texts that are given as the choices of one question.

    The first token of each, a linear layer and an activation, then one score. Shapes: (batch x choices, tokens,
    width), of input_ids (batch, choices, tokens) -> logits (batch, choices).
    Paper: Devlin et al. 2018, https://arxiv.org/abs/1810.04805, section 4.4.
    """

    class Config(HeadConfig):
        """Config of the `multiple-choice` head."""

        type: Literal["multiple-choice"] = "multiple-choice"
        activation: Activation = "tanh"
        """The non-linearity behind the linear layer."""
        dropout: Probability = 0.0
        """Share of values dropped in training before the score."""

    def __init__(self, config: Config, *, width: int) -> None:
        super().__init__()
        self.dense = kernel.Linear(width, width)
        self.activation = config.activation
        self.dropout = nn.Dropout(config.dropout)
        self.output = kernel.Linear(width, 1)

    def forward(self, x: Tensor, layout: Layout) -> dict[str, Tensor]:
        if layout.choices is None:
            raise InputError("input_ids: a multiple-choice head needs texts of shape (batch, choices, tokens)")
        scores = self.output(self.dropout(kernel.activation(self.activation)(self.dense(x[:, 0]))))
        return {"logits": scores.view(len(x) // layout.choices, layout.choices)}
