"""Both of BERT's pretraining tasks at once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from zoo.config import Config, Problem, Slot, within
from zoo.head.base import HeadConfig
from zoo.layout import Layout
from zoo.registry import make


class Pretraining(nn.Module):
    """A head that scores masked tokens and one that scores pairs of texts.

    Shapes: (batch, tokens, width) -> prediction_logits (batch, tokens, vocabulary), seq_relationship_logits (batch, 2).
    Paper: Devlin et al. 2018, https://arxiv.org/abs/1810.04805, section 3.1.
    """

    class Config(HeadConfig):
        """Config of the `pretraining` head."""

        type: Literal["pretraining"] = "pretraining"
        language: Annotated[Config, Slot("head", default="masked-language-model")] = Field(
            default="masked-language-model", validate_default=True
        )
        """The head that scores tokens."""
        sentence: Annotated[Config, Slot("head", default="next-sentence")] = Field(
            default="next-sentence", validate_default=True
        )
        """The head that scores pairs of texts."""

        context: ClassVar[tuple[str, ...]] = ("width", "vocabulary", "norm")

        def problems(self, **context: Any) -> Iterator[Problem]:
            for name, wanted in (("language", "masked-language-model"), ("sentence", "next-sentence")):
                head = getattr(self, name)
                if head.type != wanted:
                    yield (name,), f"expected a head of type {wanted!r}, got {head.type!r}"
                yield from within(name, head.problems(**context))

    def __init__(self, config: Config, *, width: int, vocabulary: int, norm: Any = None) -> None:
        super().__init__()
        self.language = make(config.language, width=width, vocabulary=vocabulary, norm=norm)
        self.sentence = make(config.sentence, width=width)

    def forward(self, x: Tensor, layout: Layout) -> dict[str, Tensor]:
        return {
            "prediction_logits": self.language.scores(x, layout),
            "seq_relationship_logits": self.sentence.scores(x, layout),
        }
