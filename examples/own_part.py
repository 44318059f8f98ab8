"""A part of your own, registered from a script: a norm that takes no statistics at all.

Run it with `python examples/own_part.py`; it needs the extra `verify` for its last step.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

import zoo
from zoo.config import Config


@zoo.register("norm", "dynamic-tanh")
class DynamicTanh(nn.Module):
    """A tanh with a learned slope in the place of a norm: weight * tanh(alpha * x) + bias.

    Paper: Zhu et al. 2025, https://arxiv.org/abs/2503.10622. Shapes: (..., width) -> (..., width).
    """

    class Config(Config):
        """Config of `dynamic-tanh`."""

        kind: ClassVar[str] = "norm"

        type: Literal["dynamic-tanh"] = "dynamic-tanh"
        alpha: float = 0.5
        """Fresh slope of the tanh."""

    def __init__(self, config: Config, *, width: int) -> None:
        super().__init__()
        self.fresh = config.alpha
        self.alpha = nn.Parameter(torch.empty(1))
        self.weight = nn.Parameter(torch.empty(width))
        self.bias = nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * torch.tanh(self.alpha * x) + self.bias

    def initialize(self, init: Any) -> None:
        """Called for fresh weights, which are made without values."""
        init.norm(self)  # weights one, biases zero, as for any norm
        nn.init.constant_(self.alpha, self.fresh)


def main() -> None:
    """Uses the part by its name, as any other."""
    model = zoo.build("vit-tiny", {"stack.block.norm": "dynamic-tanh", "head.classes": 10})
    logits = model(torch.randn(2, 3, 224, 224)).logits
    logits.square().mean().backward()
    print(f"{model.num_parameters():,} parameters, logits {tuple(logits.shape)}")

    # given the reference's own inputs, only the exchanged norms compute something else
    report = zoo.verify("vit-tiny", {"stack.block.norm": "dynamic-tanh"}, tiny=True, reference="timm")
    print(*str(report).splitlines()[-4:], sep="\n")


if __name__ == "__main__":
    main()
