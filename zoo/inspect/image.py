"""Images as a model reads them: from a file, prepared as its checkpoint says, or from a data part."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import ValidationError
from torch import Tensor

from zoo import registry
from zoo.config import Slot
from zoo.config.messages import config_error
from zoo.config.source import read_yaml
from zoo.errors import ConfigError, DataError, InputError
from zoo.extras import require

FILE = "preprocessor_config.json"
"""What transformers writes beside a model about its images."""


class Preparation(NamedTuple):
    """How an image becomes pixels."""

    mean: tuple[float, ...] = (0.5,)
    """What is subtracted from values between 0 and 1, one number or one for each channel."""
    std: tuple[float, ...] = (0.5,)
    """What they are then divided by."""
    size: tuple[int, int] | int | None = None
    """Height and width that the image is brought to, or its shorter side alone; None for the size of the model."""
    crop: tuple[int, int] | None = None
    """Height and width that are then cut out of its middle; None for all of it."""


class Picture(NamedTuple):
    """An image, for a model and for people."""

    pixels: Tensor
    """(1, channels, height, width), as the model reads it."""
    shown: Tensor
    """(height, width, channels) of the same section, from 0 to 1."""
    title: str
    label: int | None = None
    """Its class, where the data say."""


def preparation(folder: Path, task: str | None = None) -> Preparation:
    """What lies in a model's folder about its images, or what is usual: a mean and a deviation of 0.5.

    That is transformers' `preprocessor_config.json`, timm's `pretrained_cfg`, or the data of the run around the folder.

    Args:
        task: of a run of several tasks, which one's data say it.

    Raises:
        ConfigError: a file cannot be read, or says something that is no such thing.
    """
    values, place = _json(folder / FILE), str(folder / FILE)
    if not values:
        config, place = _json(folder / "config.json"), f"{folder}/config.json: pretrained_cfg"
        values = _image_fields(config.get("pretrained_cfg"))
    if not values and (folder.parent / "config.yaml").is_file():
        run, place = read_yaml(folder.parent / "config.yaml"), f"{folder.parent}/config.yaml: data"
        data = run.get("data") if isinstance(run, dict) else None
        if task is not None:
            tasks = data.get("tasks") if isinstance(data, dict) else None
            data = tasks.get(task) if isinstance(tasks, dict) else None
        values = _image_fields(data)
    mean, std = (_numbers(values.get(f"image_{name}", 0.5), f"{place}: image_{name}") for name in ("mean", "std"))
    if values.get("do_normalize") is False:
        mean, std = (0.0,), (1.0,)
    crop = _size(values.get("crop_size"), f"{place}: crop_size") if values.get("do_center_crop") else None
    crop = (crop, crop) if isinstance(crop, int) else crop
    return Preparation(mean, std, _size(values.get("size"), f"{place}: size"), crop)


def read_image(path: Path, embedding: Any, prepared: Preparation) -> Picture:
    """An image file.

    Args:
        embedding: the config of the embedding that will read it.

    Raises:
        DataError: there is no such file, or it is no image.
        InputError: the model reads no images of 1 or 3 channels.
    """
    channels = _channels(embedding)
    image = _opened(path, "L" if channels == 1 else "RGB")
    sampling = require("PIL.Image", "train", "images").Resampling
    size, crop = prepared.size or prepared.crop or embedding.image_size, prepared.crop
    if isinstance(size, int):  # the shorter side, and what is longer is cut
        high, wide = (size * side // min(image.size) for side in reversed(image.size))  # rounded down, as all others do
        size, crop = (high, wide), crop or embedding.image_size
    image = image.resize((size[1], size[0]), sampling.BICUBIC)
    high, wide = crop or size
    left, top = (size[1] - wide) // 2, (size[0] - high) // 2
    image = image.crop((left, top, left + wide, top + high))
    shown = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(high, wide, channels) / 255.0
    mean, std = (_each(numbers, channels) for numbers in (prepared.mean, prepared.std))
    return Picture(((shown - mean) / std).permute(2, 0, 1)[None].contiguous(), shown, path.name)


def example_of(words: str, config: Any) -> Picture:
    """A test image of a data part: `digits:17`; negative numbers count from the end.

    Args:
        config: the config of the model that will read it.

    Raises:
        UnknownNameError: there are no such data.
        ConfigError: they need more than a name.
        InputError: they do not fit the model.
        DataError: they have no such image.
    """
    name, _, number = words.rpartition(":")
    registry.part("data", name)  # an unknown name says so, with the nearest
    try:
        fields = Slot("data").validate(name)
    except ValidationError as error:
        raise config_error(error, words) from None
    assert fields is not None
    problems = [message for _, message in fields.problems(model=config)]
    if problems:
        raise InputError(f"{words} is nothing for this model: {'; '.join(problems)}")
    data = registry.make(fields)
    examples = data.split("test")
    if not (hasattr(examples, "__len__") and number.removeprefix("-").isdecimal()):
        raise DataError(f"{words}: expected data with a number, as in digits:17")
    if not -len(examples) <= int(number) < len(examples):
        raise DataError(f"{words}: the test part has {len(examples)} examples, 0 to {len(examples) - 1}")
    example = examples[int(number) % len(examples)]
    if "pixel_values" not in example:
        raise DataError(f"{words}: these are no images")
    pixels = example["pixel_values"]
    low, high = float(pixels.min()), float(pixels.max())
    shown = ((pixels - low) / (high - low if high > low else 1.0)).permute(1, 2, 0)
    label = int(example["labels"]) if "labels" in example else None
    return Picture(pixels[None], shown, f"{name}, test image {int(number) % len(examples)}", label)


def _opened(path: Path, mode: str) -> Any:
    """The image upright and in the colours wanted, on white where it is transparent."""
    library = require("PIL.Image", "train", "images")
    if not path.is_file():
        raise DataError(f"{path}: {'a folder, not an image' if path.is_dir() else 'no such file'}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", library.DecompressionBombWarning)
            with library.open(path) as image:
                image.load()
                upright = require("PIL.ImageOps", "train", "images").exif_transpose(image)
    except library.UnidentifiedImageError:
        raise DataError(f"{path}: not an image that can be read") from None
    except (library.DecompressionBombError, library.DecompressionBombWarning):
        raise DataError(f"{path}: the image has more pixels than can be trusted") from None
    except Exception as error:  # a decoder may fail in any way on a broken file
        raise DataError(f"{path}: cannot be read as an image: {str(error).partition(chr(10))[0]}") from None
    if upright.mode.startswith("I;16"):  # 16 bits of grey, which a plain conversion would cut off at 255
        upright = upright.convert("I").point(lambda value: value / 257).convert("L")
    if "A" in upright.mode or "transparency" in upright.info:
        upright = upright.convert("RGBA")
        white = library.new("RGBA", upright.size, "white")
        upright = library.alpha_composite(white, upright)
    return upright.convert(mode)


def _channels(embedding: Any) -> int:
    channels = getattr(embedding, "channels", None)
    if channels not in (1, 3) or not hasattr(embedding, "image_size"):
        what = "reads no images" if channels is None else f"reads images of {channels} channels"
        raise InputError(f"the model {what}; a picture has 1 or 3")
    return int(channels)


def _each(numbers: Sequence[float], channels: int) -> Tensor:
    if len(numbers) not in (1, channels):
        raise ConfigError(f"mean and std: {len(numbers)} numbers for images of {channels} channels")
    return torch.tensor(numbers).expand(channels)


def _numbers(value: Any, place: str) -> tuple[float, ...]:
    numbers = value if isinstance(value, list) else [value]
    if not numbers or not all(isinstance(n, (int, float)) and not isinstance(n, bool) and abs(n) < 1e6 for n in numbers):
        raise ConfigError(f"{place}: expected numbers, got {value!r:.60}")
    if place.endswith("std") and min(numbers) <= 0:
        raise ConfigError(f"{place}: expected numbers above 0, got {value!r:.60}")
    return tuple(float(number) for number in numbers)


def _size(value: Any, place: str) -> tuple[int, int] | int | None:
    """A height and a width, or the shorter of the two, as any version of transformers writes them."""
    sides = value if isinstance(value, list) else [value]
    if isinstance(value, dict):
        sides = [value.get("shortest_edge")] if "shortest_edge" in value else [value.get("height"), value.get("width")]
    if sides in ([None], [None, None]):
        return None
    if len(sides) > 2 or not all(isinstance(n, int) and not isinstance(n, bool) and 0 < n <= 20_000 for n in sides):
        raise ConfigError(f"{place}: expected a height and a width in pixels, got {value!r:.60}")
    both = isinstance(value, int) or len(sides) == 2
    return (sides[0], sides[-1]) if both else sides[0]


def _image_fields(values: Any) -> dict[str, Any]:
    """Mean and deviation as timm and runs call them, by transformers' names."""
    found = values if isinstance(values, dict) else {}
    return {f"image_{name}": found[name] for name in ("mean", "std") if name in found}


def _json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: cannot be read as JSON: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected a JSON object, found {type(values).__name__}")
    return values
