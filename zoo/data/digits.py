"""Handwritten digits that come with scikit-learn."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cached_property
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from zoo.config import Problem
from zoo.data.base import Batch, Data, DataConfig, Examples, SplitName
from zoo.extras import require


class Digits(Data):
    """1797 handwritten digits of 8 x 8 pixels, from scikit-learn, so that no network is needed.

    The test part is a third (599 images), drawn once with equal shares of the ten digits and the same
    whatever the seed of a run. Shapes: pixel_values (batch, 1, 8, 8) from -1 to 1, labels (batch,).
    Source: Alpaydin and Kaynak 1998, https://archive.ics.uci.edu/dataset/80.
    """

    class Config(DataConfig):
        """Config of the `digits` data."""

        type: Literal["digits"] = "digits"
        shift: Annotated[float, Field(ge=0)] = 0.0
        """Training images are moved at random by up to so many pixels, each way."""
        rotation: Annotated[float, Field(ge=0, le=180)] = 0.0
        """Training images are turned at random by up to so many degrees, each way."""
        zoom: Annotated[float, Field(ge=0, lt=1)] = 0.0
        """Training images are made smaller or larger at random, by up to this share."""
        shear: Annotated[float, Field(ge=0, lt=1)] = 0.0
        """Training images are slanted at random, by up to so many pixels sideways per pixel of height."""

        @property
        def classes(self) -> int:
            """How many classes the labels tell apart."""
            return 10

        def problems(self, **context: Any) -> Iterator[Problem]:
            embedding = context["model"].embedding
            if getattr(embedding, "type", None) != "patch":
                yield ("model", "embedding"), "data 'digits' are images, which need an embedding of type 'patch'"
                return
            if embedding.channels != 1:
                yield ("model", "embedding", "channels"), f"data 'digits' have 1 channel, not {embedding.channels}"
            if embedding.image_size != (8, 8) and not embedding.flexible:
                yield ("model", "embedding", "image_size"), f"data 'digits' are images of (8, 8), not {embedding.image_size}"

    config: Config

    @property
    def class_names(self) -> list[str]:
        return [str(digit) for digit in range(10)]

    def split(self, name: SplitName) -> Examples:
        """The examples of one part; `validation` is empty unless the config asks for one."""
        rows = self.rows[name]
        pixels, labels = self.everything
        return Examples(pixel_values=pixels[rows], labels=labels[rows])

    @cached_property
    def everything(self) -> tuple[Tensor, Tensor]:
        """All images (1797, 1, 8, 8) from -1 to 1, and their labels (1797,)."""
        digits = require("sklearn.datasets", "train", "data 'digits'").load_digits()
        pixels = torch.from_numpy(digits.images).float().unsqueeze(1) / 8.0 - 1.0
        return pixels, torch.from_numpy(digits.target).long()

    @cached_property
    def rows(self) -> dict[SplitName, Tensor]:
        """Which images belong to which part; the same in every run."""
        labels = self.everything[1]
        everyone = torch.arange(len(labels))
        train, test = self._apart(everyone, len(labels) // 3)
        train, validation = self._apart(train, round(len(train) * self.config.validation))
        return {"train": train, "validation": validation, "test": test}

    def augment(self, batch: Batch) -> Batch:
        """Each image moved, turned, zoomed and slanted by its own random amount; the surroundings are paper."""
        config = self.config
        if not (config.shift or config.rotation or config.zoom or config.shear):
            return batch
        pixels = batch["pixel_values"]
        moved = functional.grid_sample(
            pixels + 1.0,  # paper is zero, as is what lies outside
            functional.affine_grid(self._random_maps(pixels), list(pixels.shape), align_corners=False),
            align_corners=False,
        )
        return {**batch, "pixel_values": moved - 1.0}

    def _random_maps(self, pixels: Tensor) -> Tensor:
        """(batch, 2, 3): for each image, where in it the pixels of the new one are taken from."""
        config, number = self.config, len(pixels)
        turn, zoom, slant, right, down = (2.0 * torch.rand(5, number, device=pixels.device) - 1.0).unbind()
        turn, zoom, slant = turn * math.radians(config.rotation), 1.0 + zoom * config.zoom, slant * config.shear
        cosine, sine, step = turn.cos() * zoom, turn.sin() * zoom, 2.0 * config.shift / pixels.shape[-1]
        first = torch.stack([cosine, cosine * slant - sine, right * step], dim=1)
        second = torch.stack([sine, sine * slant + cosine, down * step], dim=1)
        return torch.stack([first, second], dim=1)

    def _apart(self, rows: Tensor, number: int) -> tuple[Tensor, Tensor]:
        """`rows` without `number` of them, and those: equal shares of each digit, drawn the same way every time."""
        if number == 0:
            return rows, rows[:0]
        split = require("sklearn.model_selection", "train", "data 'digits'").train_test_split
        labels = self.everything[1]
        kept, taken = split(rows.numpy(), test_size=number, stratify=labels[rows].numpy(), random_state=0)
        return torch.from_numpy(kept).sort().values, torch.from_numpy(taken).sort().values
