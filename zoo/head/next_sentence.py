"""Whether one text follows another."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from zoo import kernel
from zoo.activation import Activation
from zoo.head.base import HeadConfig
from zoo.layout import Layout


class NextSentence(nn.Module):
    """The first token, a linear layer and an activation, then two scores: the second text follows, or not.

    Shapes: (batch, tokens, width) -> logits (batch, 2).
    Paper: Devlin et al. 2018, https://arxiv.org/abs/1810.04805, section 3.1.
    """

    class Config(HeadConfig):
        """Config of the `next-sentence` head."""

        type: Literal["next-sentence"] = "next-sentence"
        activation: Activation = "tanh"
        """The non-linearity behind the linear layer."""

    def __init__(self, config: Config, *, width: int) -> None:
        super().__init__()
        self.dense = kernel.Linear(width, width)
        self.activation = config.activation
        self.output = kernel.Linear(width, 2)

    def forward(self, x: Tensor, layout: Layout) -> dict[str, Tensor]:
        return {"logits": self.scores(x, layout)}

    def scores(self, x: Tensor, layout: Layout) -> Tensor:
        """(batch, tokens, width) -> (batch, 2)"""
        scores: Tensor = self.output(kernel.activation(self.activation)(self.dense(x[:, 0])))
        return scores
