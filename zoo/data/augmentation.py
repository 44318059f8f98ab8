"""Random changes of training images, all of them timm's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional

from zoo.config import Config, Problem
from zoo.config.base import Probability, raise_problems
from zoo.data.base import check_labels
from zoo.extras import require

_Scale = Annotated[float, Field(gt=0, le=1)]
_Ratio = Annotated[float, Field(gt=0)]
_Strength = Annotated[float, Field(ge=0)]


class Augmentation(Config):
    """How training images are changed at random; nothing is, unless a field says so.

    Papers: Cubuk et al. 2019, https://arxiv.org/abs/1909.13719 (RandAugment); Zhong et al. 2017,
    https://arxiv.org/abs/1708.04896 (random erasing); Zhang et al. 2017, https://arxiv.org/abs/1710.09412 (mixup);
    Yun et al. 2019, https://arxiv.org/abs/1905.04899 (cutmix).
    """

    crop_scale: tuple[_Scale, _Scale] | None = None
    """Smallest and largest share of an image's area that a random crop keeps, such as [0.08, 1.0] for photographs
    (default: the whole image, cut in the middle to the shape that is wanted)."""
    crop_ratio: tuple[_Ratio, _Ratio] = (3 / 4, 4 / 3)
    """Smallest and largest width of a random crop, as a multiple of its height."""
    flip: Probability = 0.0
    """How often left and right change places."""
    vertical_flip: Probability = 0.0
    """How often top and bottom change places."""
    color_jitter: _Strength = 0.0
    """By what share brightness, contrast and saturation change at most, such as 0.4."""
    randaugment: str | None = None
    """Random operations, in timm's notation: `rand-m9-mstd0.5-inc1` is of strength 9, give or take 0.5, two
    operations an image."""
    erasing: Probability = 0.0
    """How often a rectangle is erased."""
    erasing_mode: Literal["const", "rand", "pixel"] = "pixel"
    """What erased pixels become: the mean of all images, one random colour, or noise."""
    mixup: _Strength = 0.0
    """Alpha of the beta distribution that two images are blended by, such as 0.8; labels are blended too."""
    cutmix: _Strength = 0.0
    """Alpha of the beta distribution that says how much of an image is another's, such as 1.0."""
    mix: Probability = 1.0
    """How often images are mixed at all, where `mixup` or `cutmix` is set."""
    switch: Probability = 0.5
    """How often it is cutmix, where both are set."""
    mix_mode: Literal["batch", "pair", "elem"] = "batch"
    """Whether the amount is drawn once for a batch, for each pair of images or for each image."""

    @property
    def mixes(self) -> bool:
        """Whether labels become shares of classes."""
        return self.mixup > 0 or self.cutmix > 0

    @property
    def changes(self) -> bool:
        """Whether single images are changed."""
        amounts = (self.flip, self.vertical_flip, self.color_jitter, self.erasing)
        return self.crop_scale is not None or self.randaugment is not None or any(amounts)

    @model_validator(mode="after")
    def _valid(self) -> Augmentation:
        raise_problems("augmentation", self.problems())
        return self

    def problems(self, **context: Any) -> Iterator[Problem]:
        for name in ("crop_scale", "crop_ratio"):
            pair = getattr(self, name)
            if pair is not None and pair[0] > pair[1]:
                yield (name,), f"expected the smaller number first, got {list(pair)}"
        if self.randaugment is None:
            return
        if self.color_jitter:
            yield ("color_jitter",), "timm leaves it out beside randaugment, which changes colours itself; set only one"
        try:
            if not self.randaugment.startswith("rand"):
                raise ValueError
            require("timm.data.auto_augment", "train", "randaugment").rand_augment_transform(self.randaugment)
        except (AssertionError, ValueError, KeyError, TypeError):
            what = "expected timm's notation, such as rand-m9-mstd0.5-inc1"
            yield ("randaugment",), f"{what} (m: strength, mstd: its deviation, n: how many), got {self.randaugment!r}"


class Mixing:
    """Blends the images of a batch, and their labels into shares of the classes (batch, classes).

    Label smoothing is the task's, so that it is applied once.
    """

    def __init__(self, augmentation: Augmentation, classes: int, place: str) -> None:
        self.classes, self.place = classes, place
        self.mix: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] = require("timm.data.mixup", "train", "mixup").Mixup(
            mixup_alpha=augmentation.mixup,
            cutmix_alpha=augmentation.cutmix,
            prob=augmentation.mix,
            switch_prob=augmentation.switch,
            mode=augmentation.mix_mode,
            label_smoothing=0.0,
            num_classes=classes,
        )

    def __call__(self, pixels: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Images (batch, channels, height, width) and labels (batch,), mixed.

        Raises:
            DataError: a label that is no class, as far as the labels lie on the CPU.
        """
        if labels.device.type == "cpu":  # elsewhere the look would make the device wait
            check_labels(labels, self.classes, self.place)
        even = len(labels) // 2 * 2  # timm mixes pairs; the last image of an odd batch stays as it is
        single = functional.one_hot(labels[even:], self.classes).float()
        if even == 0:
            return pixels, single
        mixed, shares = self.mix(pixels[:even].clone(), labels[:even])
        return torch.cat([mixed, pixels[even:]]), torch.cat([shares, single])
