"""What data of images with captions share: which model reads them, and which of several captions is taken."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

from zoo.config import Problem
from zoo.data.base import SplitName
from zoo.data.broken import Broken
from zoo.data.image import ImageConfig, ImageData
from zoo.data.rows import Example, Row
from zoo.data.text import TextConfig, TextData
from zoo.data.tokenizer import make_tokenizer
from zoo.data.tokenizer_training import KINDS
from zoo.errors import ZooError


def model_problems(config: Any, model: Any) -> Iterator[Problem]:
    """What keeps a model from reading images with captions."""
    name = f"data {config.type!r}"
    if model.type != "dual-encoder":
        yield ("model", "type"), f"{name} are images with captions, which need a model of type 'dual-encoder'"
        return
    readers: tuple[tuple[Any, str], ...] = ((ImageConfig, "vision"), (TextConfig, "text"))
    for reader, tower in readers:
        for path, message in reader.problems(config, model=getattr(model, tower)):
            yield (("model", tower, *path[1:]) if path[0] == "model" else path), message
    pool = getattr(model.text.head, "pool", None)
    end, wanted = _end_of(config.tokenizer), getattr(pool, "id", None)
    if getattr(pool, "type", None) == "end-of-text" and None not in (end, wanted) and end != wanted:
        what = f"texts of {name} end with token {end}, and the model looks for {wanted}"
        yield ("model", "text", "head", "pool", "id"), what


def field_problems(config: Any) -> Iterator[Problem]:
    """Fields that have no meaning for images with captions."""
    if config.pack:
        yield ("pack",), "each image has a row of its own with its text, so that texts cannot share rows; leave it out"
    if config.augmentation.mixes:
        yield ("augmentation",), "mixup and cutmix mix the labels of classes, and these are captions; leave them out"


class CaptionedConfig(ImageConfig, TextConfig):
    """Fields of all data of images with captions."""

    def _own_problems(self) -> Iterator[Problem]:
        yield from super()._own_problems()
        yield from field_problems(self)

    def problems(self, **context: Any) -> Iterator[Problem]:
        yield from model_problems(self, context["model"])


class CaptionedData(ImageData, TextData):
    """Base of data of images with captions: pixel_values (batch, channels, height, width), input_ids and attention_mask
    (batch, tokens).

    Of an image with several captions one is drawn anew in each epoch of a training, and the first is taken elsewhere.
    """

    config: Any

    def captions(self, row: Row) -> Sequence[str]:
        """The captions of a stored row.

        Raises:
            Broken: it has none.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say what the captions of a row are")

    def texts(self, name: SplitName) -> Iterator[str]:
        """All captions of a part, as they are stored and in this order; examples without any are left out."""
        rows = getattr(self.split(name), "rows")
        for row in rows(None) if callable(rows) else rows:
            try:
                yield from self.captions(row)
            except Broken:
                continue

    def captioned(self, image: Any, captions: Sequence[str], training: bool) -> Example:
        """The example of a stored image (see `pixels`) and its captions.

        Raises:
            Broken: the image cannot be decoded.
        """
        # drawn before the image is changed at random, so that the choice does not depend on how it is changed
        caption = random.choice(captions) if training else captions[0]
        return {"pixel_values": self.pixels(image, training), **self.tokens(caption)}


def said(captions: Any, name: str) -> list[str]:
    """The captions that a value holds, a text or a list of texts; what is blank is none.

    Args:
        name: what messages call the example.

    Raises:
        Broken: none of them says anything, or one is no text.
    """
    found = captions if isinstance(captions, (list, tuple)) else [captions]
    wrong = next((each for each in found if not isinstance(each, str) and each is not None), None)
    if wrong is not None:
        raise Broken(name, f"the caption is no text but {wrong!r:.40}")
    texts = [text for each in found if each and (text := each.strip())]
    if not texts:
        raise Broken(name, "there is no caption")
    return texts


def _end_of(tokenizer: str) -> int | None:
    """The token that ends a text; None where that is not known before a tokenizer is trained or its file is there."""
    if tokenizer in KINDS:
        return None
    try:
        return make_tokenizer(tokenizer, "").end
    except ZooError:
        return None


__all__ = ["CaptionedConfig", "CaptionedData", "field_problems", "model_problems", "said"]
