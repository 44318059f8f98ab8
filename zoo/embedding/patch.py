"""Images as a sequence of patches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from zoo import kernel
from zoo.config import Config, Problem, Slot, within
from zoo.config.base import Count, Pair, PositiveInt, Probability
from zoo.embedding.base import EmbeddingConfig, misplaced
from zoo.errors import InputError
from zoo.layout import Layout
from zoo.registry import make


class PatchEmbedding(nn.Module):
    """Cuts an image into patches, projects each to a token, puts class and register tokens in front, adds positions.

    Papers: Dosovitskiy et al. 2020, https://arxiv.org/abs/2010.11929; Darcet et al. 2023,
    https://arxiv.org/abs/2309.16588 (registers); Li et al. 2022, https://arxiv.org/abs/2212.00794 (patch dropout).
    Shapes: (batch, channels, height, width) -> (batch, prefix + rows x columns, width).
    """

    class Config(EmbeddingConfig):
        """Config of the `patch` embedding."""

        type: Literal["patch"] = "patch"
        image_size: Pair = (224, 224)
        """Height and width of the images, in pixels; one number for squares."""
        patch_size: Pair = (16, 16)
        """Height and width of a patch, in pixels; one number for squares."""
        channels: PositiveInt = 3
        """Channels of the images."""
        bias: bool = True
        """Whether the projection of the patches has a bias."""
        class_token: bool = True
        """Whether a learned class token stands first."""
        registers: Count = 0
        """How many learned register tokens stand behind the class token."""
        position: Annotated[Config | None, Slot("position", default="learned", optional=True)] = Field(
            default="learned", validate_default=True
        )
        """Positions added to the tokens."""
        prefix_position: bool = True
        """Whether class and register tokens have positions too, or only the patches."""
        norm: Annotated[Config | None, Slot("norm", default="layer-norm", optional=True)] = None
        """A norm of the projected patches, before positions are added."""
        output_norm: Annotated[Config | None, Slot("norm", default="layer-norm", optional=True)] = None
        """A norm of the tokens, after positions are added."""
        dropout: Probability = 0.0
        """Share of the embedded values dropped in training."""
        patch_dropout: Probability = 0.0
        """Share of whole patches left out in training; class and register tokens stay."""
        flexible: bool = False
        """Take images of any size, resampling the positions, without being asked in the call."""
        edges: Literal["cut", "pad", "refuse"] = "cut"
        """What is done with pixels beyond the last whole patch: cut them off, pad the image on the right and
        below with zeros to one more patch, or refuse such images."""

        @property
        def grid(self) -> tuple[int, int]:
            """Rows and columns of whole patches."""
            return self.image_size[0] // self.patch_size[0], self.image_size[1] // self.patch_size[1]

        @property
        def prefix(self) -> int:
            """How many tokens stand before the patches."""
            return int(self.class_token) + self.registers

        def problems(self, *, width: int, **context: Any) -> Iterator[Problem]:
            if 0 in self.grid:
                yield ("patch_size",), f"patches of {self.patch_size} do not fit into images of {self.image_size}"
            divisible = all(size % patch == 0 for size, patch in zip(self.image_size, self.patch_size))
            if self.edges != "cut" and not self.flexible and not divisible:
                what = f"{self.image_size} is not a multiple of patch_size {self.patch_size}"
                yield ("image_size",), f"{what}, which `edges: {self.edges}` needs for images of a fixed size"
            for name in ("norm", "output_norm", "position"):
                part = getattr(self, name)
                wrong = list(misplaced(part)) if name == "position" else []
                yield from wrong
                if part is not None and not wrong:
                    yield from within(name, part.problems(width=width, grid=self.grid, **context))

    inputs = ("pixel_values",)
    options = ("interpolate_pos_encoding",)

    def __init__(self, config: Config, *, width: int) -> None:
        super().__init__()
        self.config, self.prefix = config, config.prefix
        self.weight = nn.Parameter(torch.empty(width, config.channels, *config.patch_size))
        self.bias = nn.Parameter(torch.empty(width)) if config.bias else None
        self.norm = make(config.norm, width=width)
        self.class_token = nn.Parameter(torch.empty(1, 1, width)) if config.class_token else None
        self.register_tokens = nn.Parameter(torch.empty(1, config.registers, width)) if config.registers else None
        rows, columns = config.grid
        length = rows * columns + (config.prefix if config.prefix_position else 0)
        self.position = make(config.position, width=width, length=length, grid=config.grid)
        self.dropout = nn.Dropout(config.dropout)
        self.output_norm = make(config.output_norm, width=width)

    def forward(self, pixel_values: Tensor, interpolate_pos_encoding: bool | None = None) -> tuple[Tensor, Layout]:
        """Embeds a batch of images.

        Args:
            pixel_values: (batch, channels, height, width), of a floating type.
            interpolate_pos_encoding: take images of another size, resampling the positions.

        Raises:
            InputError: channels or size do not fit the config.
        """
        pixels = self._checked(pixel_values, bool(interpolate_pos_encoding))
        patches = kernel.patches(pixels, self.weight, self.bias, self.config.patch_size)
        rows, columns = patches.shape[1:3]
        patches = patches.flatten(1, 2) if self.norm is None else self.norm(patches.flatten(1, 2))
        resample = self.config.flexible or bool(interpolate_pos_encoding)
        layout = Layout(prefix=self.prefix, grid=(rows, columns), resample=resample)
        if self.config.prefix_position:
            x = self._place(self._join(patches), layout)
        else:
            x = self._join(self._place(patches, layout._replace(prefix=0)))
        x = self.dropout(x)
        if self.training and self.config.patch_dropout > 0.0:
            x, layout = self._drop_patches(x), layout._replace(grid=None)
        return (x if self.output_norm is None else self.output_norm(x)), layout

    def initialize(self, init: Any) -> None:
        init.patch(self.weight, self.bias)
        for token in (self.class_token, self.register_tokens):
            if token is not None:
                init.token(token)

    def adapted(self, name: str, weight: Tensor, source: PatchEmbedding) -> tuple[Tensor, str] | None:
        """A trained projection for another number of channels: summed for one, else repeated and scaled."""
        old, new = weight.shape, self.weight.shape
        if name != "weight" or old[0] != new[0] or old[2:] != new[2:]:
            return None
        if new[1] == 1:
            return weight.float().sum(dim=1, keepdim=True).to(weight.dtype), f"{old[1]} channels summed to 1"
        repeated = weight.float().repeat(1, -(-new[1] // old[1]), 1, 1)[:, : new[1]]
        return (repeated * (old[1] / new[1])).to(weight.dtype), f"{old[1]} channels repeated and scaled to {new[1]}"

    def _checked(self, pixels: Tensor, interpolate: bool) -> Tensor:
        config = self.config
        if not isinstance(pixels, Tensor):
            raise InputError(f"pixel_values: expected a tensor, got {type(pixels).__name__}")
        if pixels.ndim != 4 or not pixels.is_floating_point():
            kind = f"{tuple(pixels.shape)} of {pixels.dtype}"
            raise InputError(f"pixel_values: expected floats of shape (batch, channels, height, width), got {kind}")
        if pixels.shape[1] != config.channels:
            raise InputError(f"pixel_values: expected {config.channels} channels, got {pixels.shape[1]}")
        size = (pixels.shape[2], pixels.shape[3])
        if not (config.flexible or interpolate) and size != config.image_size:
            hint = "; interpolate_pos_encoding=True (or `flexible: true` in the config) takes other sizes"
            raise InputError(f"pixel_values: expected images of {config.image_size}, got {size}{hint}")
        rest = [-side % patch for side, patch in zip(size, config.patch_size)]
        if any(rest) and config.edges == "refuse":
            raise InputError(f"pixel_values: {size} is not a multiple of the patch size {config.patch_size}")
        if any(rest) and config.edges == "pad":
            pixels = functional.pad(pixels, (0, rest[1], 0, rest[0]))
        elif size[0] < config.patch_size[0] or size[1] < config.patch_size[1]:
            raise InputError(f"pixel_values: images of {size} are smaller than one patch of {config.patch_size}")
        device = pixels.device.type
        mixed = device != "meta" and torch.is_autocast_enabled(device)  # torch refuses the question for shapes only
        return pixels if mixed else pixels.to(self.weight.dtype)

    def _place(self, x: Tensor, layout: Layout) -> Tensor:
        placed: Tensor = x if self.position is None else self.position(x, layout)
        return placed

    def _join(self, patches: Tensor) -> Tensor:
        prefix = [token.expand(len(patches), -1, -1) for token in (self.class_token, self.register_tokens) if token is not None]
        return torch.cat([*prefix, patches], dim=1) if prefix else patches

    def _drop_patches(self, x: Tensor) -> Tensor:
        patches = x[:, self.prefix :]
        keep = max(1, int(patches.shape[1] * (1.0 - self.config.patch_dropout)))
        kept = torch.rand(patches.shape[:2], device=x.device).argsort(dim=1)[:, :keep, None]
        return torch.cat([x[:, : self.prefix], patches.gather(1, kept.expand(-1, -1, x.shape[2]))], dim=1)
