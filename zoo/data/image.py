"""What data of images share: how a stored image becomes the pixels that a model reads."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property, partial
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from zoo.config import Problem
from zoo.config.base import Pair, raise_problems
from zoo.data.augmentation import Augmentation, Mixing
from zoo.data.base import Batch, Data, FilesConfig
from zoo.data.broken import Broken
from zoo.errors import DataError
from zoo.extras import require


class ImageConfig(FilesConfig):
    """Fields of all data of images."""

    image_size: Pair = (224, 224)
    """Height and width that images are brought to, in pixels; one number for squares."""
    channels: Literal[1, 3] = 3
    """3 for colours, 1 for grey; images of the other kind are converted."""
    mean: float | list[float] = 0.5
    """What is subtracted from pixels between 0 and 1, one number or one for each channel."""
    std: float | list[float] = 0.5
    """What they are then divided by; with a mean and a deviation of 0.5, pixels are from -1 to 1."""
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bicubic"
    """How images are brought to their size."""
    crop: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the height and width of an image that is looked at when nothing is random, in the middle."""
    augmentation: Augmentation = Field(default_factory=Augmentation)
    """How training images are changed at random."""

    @model_validator(mode="after")
    def _valid(self) -> ImageConfig:
        raise_problems("data", self._own_problems())
        return self

    def _own_problems(self) -> Iterator[Problem]:
        for field in ("mean", "std"):
            value = getattr(self, field)
            if isinstance(value, list) and len(value) != self.channels:
                yield (field,), f"expected one number, or {self.channels} for {self.channels} channels, got {value}"
        if min(_each(self.std, 1), default=0.0) <= 0:
            yield ("std",), f"expected greater than 0, got {self.std}"

    def problems(self, **context: Any) -> Iterator[Problem]:
        embedding, name = context["model"].embedding, f"data {getattr(self, 'type')!r}"
        if getattr(embedding, "type", None) != "patch":
            yield ("model", "embedding"), f"{name} are images, which need an embedding of type 'patch'"
            return
        if embedding.channels != self.channels:
            yield (
                ("data", "channels"),
                f"the model takes images of {embedding.channels} channels, and these have {self.channels}",
            )
        if embedding.image_size != self.image_size and not embedding.flexible:
            yield ("data", "image_size"), f"the model takes images of {embedding.image_size}, and these are {self.image_size}"


class ImageData(Data):
    """Base of data of images: pixel_values (batch, channels, height, width), prepared by timm's transforms."""

    config: ImageConfig

    def pixels(self, image: Any, training: bool) -> Tensor:
        """(channels, height, width) of a stored image: a mapping with its `bytes` or its `path`.

        Raises:
            Broken: it cannot be decoded.
        """
        try:
            if image is None:
                raise ValueError("there is no image")
            picture = self._decoder.decode_example(image)
        except Exception as error:  # a decoder may fail in any way on a broken file
            path = image.get("path") if isinstance(image, Mapping) else None
            reason = getattr(error, "strerror", None) or re.sub(r" ('[^']*'|<[^>]*>)$", "", str(error))  # not the file again
            raise Broken(str(path or ""), reason or type(error).__name__) from None
        return self._transforms[training](picture)

    def augment(self, batch: Batch) -> Batch:
        """Images and labels mixed, if the config says so."""
        if self._mixing is None:
            return batch
        pixels, labels = self._mixing(batch["pixel_values"], batch["labels"])
        return {**batch, "pixel_values": pixels, "labels": labels}

    @property
    def classes(self) -> int | None:
        """How many classes the labels tell apart, where anybody says."""
        return None if self.class_names is None else len(self.class_names)

    @cached_property
    def _decoder(self) -> Any:
        return require("datasets", "train", self.place).Image(mode="RGB" if self.config.channels == 3 else "L")

    @cached_property
    def _transforms(self) -> Mapping[bool, Callable[[Any], Tensor]]:
        """How an image is prepared: for True in training, for False elsewhere."""
        return {training: self._transform(training) for training in (False, True)}

    def _transform(self, training: bool) -> Callable[[Any], Tensor]:
        config, random = self.config, self.config.augmentation
        common = {
            "input_size": (config.channels, *config.image_size),
            "interpolation": config.interpolation,
            "mean": _each(config.mean, config.channels),
            "std": _each(config.std, config.channels),
        }
        create: Any = require("timm.data", "train", self.place).create_transform
        if not training or not random.changes:
            return create(**common, crop_pct=config.crop)
        whole = {"train_crop_mode": "rkrc", "scale": (1.0, 1.0), "ratio": (1.0, 1.0)}  # only resized, the middle kept
        part = {"train_crop_mode": "rrc", "scale": random.crop_scale, "ratio": random.crop_ratio}
        transform = create(
            **common,
            **(whole if random.crop_scale is None else part),
            is_training=True,
            hflip=random.flip,
            vflip=random.vertical_flip,
            color_jitter=random.color_jitter or None,
            auto_augment=random.randaugment,
            re_prob=random.erasing,
            re_mode=random.erasing_mode,
        )
        for operation in (each for step in transform.transforms for each in getattr(step, "ops", ())):
            if operation.name.startswith("Posterize"):
                operation.aug_fn = partial(_posterized, operation.aug_fn)
        return transform

    @cached_property
    def _mixing(self) -> Mixing | None:
        if not self.config.augmentation.mixes:
            return None
        if self.classes is None:
            raise DataError(f"{self.place}: mixup and cutmix need to know how many classes there are")
        return Mixing(self.config.augmentation, self.classes, f"{self.place}, labels of a batch")


def _posterized(posterize: Callable[..., Any], image: Any, bits: int, **options: Any) -> Any:
    """What timm's operation makes of an image; at its strongest it asks for no bit at all, which Pillow 13 refuses."""
    return posterize(image, max(bits, 1), **options)


def label_of(value: Any, classes: int | None, place: str) -> Tensor:
    """A label as a tensor.

    Raises:
        DataError: it is no whole number, or none of 0 to classes - 1.
    """
    if not isinstance(value, int) or value < 0 or (classes is not None and value >= classes):
        wanted = "a whole number from 0" if classes is None else f"one of the classes, 0 to {classes - 1}"
        raise DataError(f"{place}: label {value!r} of an example is not {wanted}")
    return torch.tensor(int(value))


def _each(value: float | list[float], channels: int) -> tuple[float, ...]:
    return tuple(value) if isinstance(value, list) else (value,) * channels
