"""Where in a text an answer stands."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from zoo import kernel
from zoo.config.base import Probability
from zoo.head.base import HeadConfig
from zoo.layout import Layout


class Span(nn.Module):
    """Scores each token as the first and as the last of the answer to a question.

    Shapes: (batch, tokens, width) -> start_logits, end_logits (batch, tokens).
    Paper: Devlin et al. 2018, https://arxiv.org/abs/1810.04805, section 4.2.
    """

    class Config(HeadConfig):
        """Config of the `span` head."""

        type: Literal["span"] = "span"
        dropout: Probability = 0.0
        """Share of values dropped in training before the linear layer."""

    def __init__(self, config: Config, *, width: int) -> None:
        super().__init__()
        self.dropout = nn.Dropout(config.dropout)
        self.output = kernel.Linear(width, 2)

    def forward(self, x: Tensor, layout: Layout) -> dict[str, Tensor]:
        start, end = self.output(self.dropout(x)).unbind(-1)
        return {"start_logits": start.contiguous(), "end_logits": end.contiguous()}
