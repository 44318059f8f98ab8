"""Two transformers side by side, whose vectors are compared."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import model_validator
from torch import Tensor, nn
from torch.nn import functional

from zoo.cache import Cache
from zoo.config import Config, Problem, Slot
from zoo.config.base import raise_problems
from zoo.errors import InputError
from zoo.model.base import Model, bind
from zoo.output import DualEncoderOutput
from zoo.registry import make, part

TOWERS = ("vision", "text")


class DualEncoder(Model):
    """A transformer for images and one for texts, whose projected vectors are compared: CLIP and SigLIP are configs of this.

    Papers: Radford et al. 2021, https://arxiv.org/abs/2103.00020; Zhai et al. 2023, https://arxiv.org/abs/2303.15343 (a bias
    of the scores).
    """

    class Config(Config):
        """Config of a `dual-encoder`."""

        kind: ClassVar[str] = "model"

        type: Literal["dual-encoder"] = "dual-encoder"
        vision: Annotated[Config, Slot("model", default="transformer")]
        """The transformer that reads images; its head is a `projection`."""
        text: Annotated[Config, Slot("model", default="transformer")]
        """The transformer that reads texts; its head is a `projection` of the same size."""
        logit_scale: float = math.log(1 / 0.07)
        """The natural logarithm of what cosines are multiplied by, when fresh; it is learned."""
        logit_bias: float | None = None
        """What is added to the scores behind that, when fresh; it is learned, too (default: nothing; SigLIP: -10)."""

        embedding: ClassVar[None] = None
        stack: ClassVar[None] = None
        head: ClassVar[None] = None

        @model_validator(mode="after")
        def _fits(self) -> Any:
            raise_problems("dual-encoder", self.problems())
            return self

        def problems(self, **context: Any) -> Iterator[Problem]:
            sizes: dict[str, int] = {}
            for name, reads in (("vision", "pixel_values"), ("text", "input_ids")):
                tower: Any = getattr(self, name)
                if tower.type != "transformer":
                    yield (name, "type"), f"a tower is a 'transformer', and this is {tower.type!r}"
                    continue
                inputs = part("embedding", tower.embedding.type).inputs
                if reads not in inputs:
                    yield (name, "embedding"), f"this tower is to read {reads}, but {tower.embedding.type!r} reads {inputs[0]}"
                if getattr(tower.head, "type", None) != "projection":
                    found = "none" if tower.head is None else repr(tower.head.type)
                    yield (name, "head"), f"a tower needs a head of type 'projection', and this is {found}"
                    continue
                sizes[name] = tower.head.size or getattr(tower.stack, "output_width", None) or tower.stack.width
            if len(set(sizes.values())) > 1:
                what = f"vectors of size {sizes['text']} cannot be compared with those of images, of {sizes['vision']}"
                yield ("text", "head", "size"), what

    embedding = None
    stack = None
    head = None

    def __init__(self, config: Config) -> None:
        nn.Module.__init__(self)
        self.config = config
        self.vision: Model = make(config.vision)
        self.text: Model = make(config.text)
        self.logit_scale = nn.Parameter(torch.empty(1))  # a vector of one number can be divided among processes
        self.logit_bias = nn.Parameter(torch.empty(1)) if config.logit_bias is not None else None

    def forward(
        self,
        *inputs: Tensor,
        attention_mask: Tensor | None = None,
        output_hidden_states: Any = False,
        output_attentions: Any = False,
        **named: Any,
    ) -> DualEncoderOutput:
        """Runs both towers, or the one whose input is given, and compares each text with each image.

        Args:
            inputs, named: what the towers read, by position (texts first) or by name, and its options: `input_ids` (texts,
                tokens), `pixel_values` (images, channels, height, width), `position_ids`, `interpolate_pos_encoding`, ...
            attention_mask: of the texts, as a transformer takes it.
            output_hidden_states, output_attentions: of both towers, as a transformer takes them.

        Raises:
            InputError: an input that does not fit, or an argument that this model cannot honour.
        """
        text, vision = self.text.embedding, self.vision.embedding
        names, options = (*text.inputs, *vision.inputs), (*text.options, *vision.options)
        given = bind(inputs, named, names, options, needed="any")
        kept = {"output_hidden_states": output_hidden_states, "output_attentions": output_attentions}
        seen = self._run(self.vision, given, kept)
        read = self._run(self.text, given, {**kept, "attention_mask": attention_mask})
        if read is None and attention_mask is not None:
            raise InputError("attention_mask: it is of texts, and none are given")
        images = None if seen is None else unit(seen.image_embeds)
        texts = None if read is None else unit(read.text_embeds)
        scores = None if images is None or texts is None else self.scores(texts, images)
        return DualEncoderOutput(
            logits_per_image=None if scores is None else scores.t(),
            logits_per_text=scores,
            text_embeds=texts,
            image_embeds=images,
            logit_scale=self.logit_scale.exp().squeeze(0),
            logit_bias=None if self.logit_bias is None else self.logit_bias.squeeze(0),
            text_model_output=None if read is None else read._replace(pooler_output=read.text_embeds),
            vision_model_output=None if seen is None else seen._replace(pooler_output=seen.image_embeds),
        )

    def scores(self, texts: Tensor, images: Tensor) -> Tensor:
        """How well texts (texts, size) fit images (images, size), both of length one: (texts, images)."""
        scores = texts @ images.t() * self.logit_scale.exp()
        return scores if self.logit_bias is None else scores + self.logit_bias

    def initialize_weights(self) -> None:
        """Draws all weights afresh, those of each tower by its own recipe."""
        for name in TOWERS:
            getattr(self, name).initialize_weights()
        nn.init.constant_(self.logit_scale, self.config.logit_scale)
        if self.logit_bias is not None:
            nn.init.constant_(self.logit_bias, self.config.logit_bias)

    def new_cache(self, capacity: int | None = None) -> Cache:
        """Raises, since vectors are no texts to be continued."""
        raise InputError("use_cache: a dual encoder gives vectors, and continues no texts")

    def _run(self, tower: Model, given: dict[str, Any], options: dict[str, Any]) -> Any:
        """What a tower gives; None where its input is not given."""
        own = {name: value for name, value in given.items() if name in tower.embedding.inputs + tower.embedding.options}
        if all(own.get(name) is None for name in tower.embedding.inputs):
            left = next((name for name, value in own.items() if value is not None), None)
            if left is not None:
                raise InputError(f"{left}: given without {tower.embedding.inputs[0]}")
            return None
        return tower(**own, **options)


def unit(vectors: Tensor) -> Tensor:
    """The vectors (number, size) at length one."""
    # what guards against a length of zero must not be zero in float16, nor its inverse infinite
    return functional.normalize(vectors, dim=-1, eps=1e-4 if vectors.dtype == torch.float16 else 1e-12)
