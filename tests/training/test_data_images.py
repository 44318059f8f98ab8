"""Image folders and their augmentation, and tasks with labels that are shares of classes."""

from __future__ import annotations

import random
from itertools import chain
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from PIL import Image

import zoo
from zoo.data.augmentation import Augmentation
from zoo.data.image_folder import ImageFolder
from zoo.errors import ConfigError, DataError
from zoo.registry import make
from zoo.task.classification import Classification
from zoo.training.run import resolve_run

STRONG = {
    "crop_scale": [0.5, 1.0],
    "flip": 0.5,
    "vertical_flip": 0.2,
    "randaugment": "rand-m9-n4-p0.9-mstd0.5-inc1",
    "erasing": 0.5,
}


def draw(path: Path, seed: int, size: tuple[int, int] = (20, 14), mode: str = "RGB") -> None:
    """A picture of noise, width by height."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = numpy.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=numpy.uint8)
    Image.fromarray(noise).convert(mode).save(path)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of 20 and 10 pictures in one folder."""
    home = tmp_path_factory.mktemp("images[1]")  # brackets mean something in patterns, and nothing here
    for number in range(30):
        draw(home / ("cat" if number < 20 else "dog") / f"{number}.png", number)
    return home


@pytest.fixture
def parted(tmp_path: Path) -> Path:
    """Two classes in folders of three parts."""
    for number in range(18):
        part = ("train", "validation", "test")[number % 3]
        draw(tmp_path / part / ("cat", "dog")[number % 2] / f"{number}.png", number)
    return tmp_path


def folder(path: Path, **fields: Any) -> ImageFolder:
    return ImageFolder(ImageFolder.Config(**{"path": str(path), "image_size": 16, "batch_size": 4, **fields}))


def paths(data: ImageFolder, name: Any) -> list[str]:
    return [row["path"] for row in data.split(name).rows["image"]]


def test_a_folder_is_parted_by_classes_and_always_in_the_same_way(plain: Path) -> None:
    data = folder(plain, validation=0.25)
    parts = {name: paths(data, name) for name in ("train", "validation", "test")}
    assert {name: len(found) for name, found in parts.items()} == {"train": 18, "validation": 6, "test": 6}
    assert len(set().union(*parts.values())) == 30
    for name, number in (("train", 12), ("validation", 4), ("test", 4)):
        assert data.split(name).rows["label"].count(0) == number  # type: ignore[arg-type]
    torch.manual_seed(3)
    random.seed(3)
    numpy.random.seed(3)
    again = folder(plain, batch_size=7)
    assert paths(again, "test") == parts["test"]
    assert (again.has("train"), again.has("validation"), again.has("test"), data.has("validation")) == (True, False, True, True)
    assert folder(plain, test=0.0).has("test") is False
    with pytest.raises(DataError, match="its test part is empty"):
        folder(plain, test=0.0).loader("test")


def test_parts_with_folders_of_their_own(parted: Path) -> None:
    data = folder(parted)
    assert data.class_names == ["cat", "dog"] and data.config.classes == 2
    assert all(data.has(name) for name in ("train", "validation", "test"))  # type: ignore[arg-type]
    for name in ("train", "validation", "test"):
        assert len(paths(data, name)) == 6 and all(f"/{name}/" in path for path in paths(data, name))
    with pytest.raises(DataError, match=r"validation holds the validation part, so that `validation: 0.1` has no meaning"):
        folder(parted, validation=0.1).split("train")


def test_pictures_become_pixels_as_timm_prepares_them(tmp_path: Path) -> None:
    from timm.data import create_transform

    for mode, name in (("RGB", "a.png"), ("L", "b.png"), ("P", "c.gif"), ("RGBA", "d.png"), ("CMYK", "e.JPG")):
        draw(tmp_path / "train" / "all" / "deeper" / name, 1, mode=mode)
    (tmp_path / "train" / "all" / "notes.txt").write_text("no picture")
    draw(tmp_path / "train" / "all" / ".hidden.png", 1)
    for channels in (1, 3):
        data = folder(tmp_path, image_size=(12, 16), channels=channels, mean=0.4, std=0.2, crop=0.9, test=0.0)
        rows = data.split("train")
        assert len(rows) == 5
        timms = create_transform(
            (channels, 12, 16), mean=(0.4,) * channels, std=(0.2,) * channels, crop_pct=0.9, interpolation="bicubic"
        )
        for index, path in enumerate(paths(data, "train")):
            example = rows[index]
            picture = Image.open(path).convert("L" if channels == 1 else "RGB")
            assert torch.equal(example["pixel_values"], timms(picture))
            assert example["pixel_values"].shape == (channels, 12, 16) and int(example["labels"]) == 0


@pytest.mark.parametrize("channels", [1, 3])
def test_random_changes_follow_from_seed_epoch_and_picture(plain: Path, channels: int) -> None:
    def epochs(workers: int) -> list[list[Any]]:
        data = folder(plain, workers=workers, channels=channels, augmentation=STRONG)
        loader = data.loader("train", seed=5)
        return [list(loader) for _ in range(2)]

    random.seed(11)
    alone = epochs(0)
    random.seed(12)
    torch.manual_seed(12)
    for first, second in zip(chain.from_iterable(alone), chain.from_iterable(epochs(2)), strict=True):
        assert torch.equal(first["pixel_values"], second["pixel_values"]) and torch.equal(first["labels"], second["labels"])
    images = [{tuple(image.flatten().tolist()) for batch in epoch for image in batch["pixel_values"]} for epoch in alone]
    assert len(images[0]) == len(images[1]) == 24 and not images[0] & images[1]
    batches = list(folder(plain, augmentation=STRONG).loader("train", seed=5, skip=3))
    if channels == 3:
        assert all(torch.equal(a["pixel_values"], b["pixel_values"]) for a, b in zip(batches, alone[0][3:], strict=True))


def test_each_change_does_what_it_says(tmp_path: Path) -> None:
    for number in range(12):
        draw(tmp_path / "all" / f"{number:02}.png", number, size=(20, 20))
    data = folder(tmp_path)
    whole = data.split("train")
    still = [whole[index]["pixel_values"] for index in range(8)]

    def changed(**fields: Any) -> list[Any]:
        rows = folder(tmp_path, augmentation=fields).split("train")
        return [rows[index]["pixel_values"] for index in range(8)]

    assert all(torch.equal(a, b) for a, b in zip(changed(flip=1e-12), still, strict=True))
    assert all(torch.equal(a, b.flip(-1)) for a, b in zip(changed(flip=1.0), still, strict=True))
    assert all(torch.equal(a, b.flip(-2)) for a, b in zip(changed(vertical_flip=1.0), still, strict=True))
    erased = changed(erasing=1.0, erasing_mode="const")
    assert all(0 < int((a == 0).all(0).sum()) < 16 * 16 for a in erased)
    for fields in ({"color_jitter": 0.4}, {"crop_scale": [0.2, 0.5]}, {"randaugment": "rand-m9-n3-p1.0"}, {"erasing": 1.0}):
        different = sum(not torch.allclose(a, b, atol=0.02) for a, b in zip(changed(**fields), still, strict=True))
        assert different >= 6, fields
    strong = folder(tmp_path, augmentation=STRONG)
    assert torch.equal(strong.split("test")[0]["pixel_values"], data.split("test")[0]["pixel_values"])
    batch = next(iter(data.loader("train")))
    assert data.augment(batch) is batch


@pytest.mark.parametrize("channels", [1, 3])
def test_the_strongest_operations_do_not_fail(plain: Path, channels: int) -> None:
    strongest = {"randaugment": "rand-m20-n6-p1.0-mstd2-mmax20-inc1"}
    rows = folder(plain, channels=channels, augmentation=strongest).split("train")
    for _ in range(5):
        assert all(bool(torch.isfinite(rows[index]["pixel_values"]).all()) for index in range(len(rows)))


@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
@pytest.mark.parametrize("number", [1, 2, 5, 8])
def test_mixed_labels_are_the_shares_of_the_pictures(plain: Path, mode: str, number: int) -> None:
    data = folder(plain, augmentation={"mixup": 1.0, "mix_mode": mode})
    labels = torch.arange(number) % 2
    # a picture of class 0 is black and one of class 1 white, so that the mean of a mixed one is its share of class 1
    pixels = labels.float()[:, None, None, None].expand(-1, 3, 16, 16).contiguous()
    before, strengths = pixels.clone(), []
    for fields in ({"mixup": 1.0}, {"cutmix": 1.0}, {"mixup": 0.5, "cutmix": 1.0, "switch": 0.3}):
        numpy.random.seed(2)
        data = folder(plain, augmentation={**fields, "mix_mode": mode})
        mixed = data.augment({"pixel_values": pixels, "labels": labels})
        assert mixed["labels"].shape == (number, 2) and mixed["pixel_values"].shape == pixels.shape
        assert torch.allclose(mixed["labels"].sum(1), torch.ones(number))
        assert torch.allclose(mixed["pixel_values"].mean((1, 2, 3)), mixed["labels"][:, 1], atol=1e-5)
        strengths.append(mixed["labels"].min(1).values.max())
        numpy.random.seed(2)
        assert torch.equal(data.augment({"pixel_values": pixels, "labels": labels})["labels"], mixed["labels"])
    assert torch.equal(pixels, before)  # the batch that was given is left alone
    assert number == 1 or max(strengths) > 0.1
    with pytest.raises(DataError, match=r"data 'image-folder', labels of a batch: label 2 of example 0"):
        data.augment({"pixel_values": pixels, "labels": labels + 2})


@pytest.fixture(scope="module")
def model() -> Any:
    return zoo.build(resolve_run("vit-tiny-digits").model, {"stack.depth": 1})


def test_the_loss_of_shares_is_smoothed_once(model: Any) -> None:
    from timm.data.mixup import Mixup

    pixels, labels = torch.randn(6, 1, 8, 8), torch.tensor([0, 1, 2, 9, 9, 3])
    numpy.random.seed(0)
    mixed, shares = Mixup(0.8, label_smoothing=0.0, num_classes=10)(pixels.clone(), labels)
    numpy.random.seed(0)
    _, smoothed = Mixup(0.8, label_smoothing=0.1, num_classes=10)(pixels.clone(), labels)
    task = Classification(Classification.Config(label_smoothing=0.1))
    step = task.step(model.train(), {"pixel_values": mixed, "labels": shares})
    wanted = -(smoothed * step.predictions.log_softmax(-1)).sum(-1).mean()  # the smoothing that timm itself would do
    assert torch.allclose(step.loss, wanted, atol=1e-6)
    assert torch.equal(step.targets, shares.argmax(-1))
    metric = task.metrics(model)["accuracy"]
    metric.update(step.predictions, step.targets)
    assert 0.0 <= float(metric.compute()) <= 1.0
    hard = task.step(model, {"pixel_values": pixels, "labels": torch.nn.functional.one_hot(labels, 10).float()})
    same = task.step(model, {"pixel_values": pixels, "labels": labels.int()})
    assert torch.allclose(hard.loss, same.loss) and torch.equal(hard.targets, same.targets)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.full((4, 7), 1 / 7), r"shares of shape \(batch, 10\), got torch.float32 of shape \(4, 7\)"),
        (torch.zeros(4), r"whole numbers of shape \(batch,\) or .*, got torch.float32 of shape \(4,\)"),
        (torch.zeros(4, 10), "shares of the classes are from 0 to 1, and 1 together"),
        (torch.tensor([0, 1, 2, 10]), "label 10 of example 3 is none of the head's classes, 0 to 9"),
    ],
)
def test_labels_that_are_none(model: Any, labels: torch.Tensor, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Classification(Classification.Config()).step(model, {"pixel_values": torch.randn(4, 1, 8, 8), "labels": labels})


@pytest.mark.filterwarnings("ignore:data")
@pytest.mark.parametrize("workers", [0, 2])
def test_pictures_that_cannot_be_decoded(tmp_path: Path, workers: int) -> None:
    for number in range(12):
        draw(tmp_path / ("cat", "dog")[number % 2] / f"{number:02}.png", number)
    good = (tmp_path / "cat" / "00.png").read_bytes()
    (tmp_path / "cat" / "02.png").write_bytes(good[: len(good) // 2])
    (tmp_path / "dog" / "03.png").write_bytes(b"")
    (tmp_path / "dog" / "05.png").write_bytes(b"no picture at all")
    data = folder(tmp_path, workers=workers, test=0.0)
    with pytest.warns(UserWarning, match=r"data 'image-folder': .*0[235].png cannot be read and is left out"):
        batches = list(data.loader("train", seed=1))
    assert sum(len(batch["labels"]) for batch in batches) == 9
    assert {Path(name).name for name in data.tally.reasons} == {"02.png", "03.png", "05.png"}
    strict = folder(tmp_path, workers=workers, test=0.0, broken=2)
    with (
        pytest.raises(DataError, match=r"^data 'image-folder': 3 examples cannot be read, more than `broken: 2` allows: .*png"),
        pytest.warns(UserWarning),
    ):
        list(strict.loader("train"))
    missing = folder(tmp_path, workers=workers, test=0.0)
    missing.split("train")
    (tmp_path / "cat" / "00.png").unlink()
    with pytest.warns(UserWarning, match="No such file"):
        assert sum(len(batch["labels"]) for batch in missing.loader("train")) == 8


def test_folders_without_what_is_needed(tmp_path: Path, parted: Path) -> None:
    def complain(path: Path, message: str, **fields: Any) -> None:
        with pytest.raises(DataError, match=message) as caught:
            folder(path, **fields).loader("train")
        assert "\n" not in str(caught.value)

    complain(tmp_path / "nowhere", r"data 'image-folder': path: .*nowhere is no folder")
    assert folder(tmp_path / "nowhere").config.classes is None
    (tmp_path / "empty").mkdir()
    complain(tmp_path / "empty", "empty has no folders, where one for each class was expected")
    (parted / "test" / "cta").mkdir()
    complain(parted, r"test/cta is no class of the training part; did you mean 'cat'\?")
    (parted / "test" / "cta").rmdir()
    (parted / "train" / "bird").mkdir()
    complain(parted, "train/bird holds no images")
    draw(tmp_path / "single" / "cat" / "1.png", 1)
    complain(tmp_path / "single", "1 images cannot be parted by classes")
    draw(tmp_path / "lone" / "test" / "cat" / "1.png", 1)
    complain(tmp_path / "lone", "has a folder 'test' but none called 'train'")


RUN: dict[str, Any] = {
    "model": {
        "extends": "vit-tiny",
        "embedding": {"image_size": 16, "patch_size": 8},
        "stack": {"depth": 1},
        "head": {"classes": 2},
    },
    "data": {"type": "image-folder", "image_size": 16},
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data.image_size": 32}, r"^data\.image_size: the model takes images of \(16, 16\), and these are \(32, 32\)$"),
        ({"data.channels": 1}, r"^data\.channels: the model takes images of 3 channels, and these have 1$"),
        ({"data.channels": 2}, r"^data\.channels: expected 1 or 3, got 2$"),
        ({"model.head.classes": 3}, r"^model\.head\.classes: data 'image-folder' has 2 classes, and this is 3$"),
        ({"data.mean": [0.5, 0.5]}, r"^data\.mean: expected one number, or 3 for 3 channels, got \[0\.5, 0\.5\]$"),
        ({"data.std": 0}, r"^data\.std: expected greater than 0, got 0"),
        (
            {"data.augmentation.randaugment": "rnad-m9"},
            r"^data\.augmentation\.randaugment: expected timm's notation, .*'rnad-m9'$",
        ),
        (
            {"data.augmentation.randaugment": "rand-q9"},
            r"^data\.augmentation\.randaugment: expected timm's notation, .*'rand-q9'$",
        ),
        ({"data.augmentation.mixpu": 0.8}, r"^data\.augmentation\.mixpu: unknown field of .*; did you mean 'mixup'\?$"),
        ({"data.augmentation.erasing": 2}, r"^data\.augmentation\.erasing: expected less than or equal to 1, got 2$"),
        ({"data.augmentation.crop_scale": [1, 0.5]}, r"^data\.augmentation\.crop_scale: expected the smaller number first"),
        (
            {"data.augmentation": {"randaugment": "rand-m9", "color_jitter": 0.4}},
            r"^data\.augmentation\.color_jitter: timm leaves it out beside randaugment",
        ),
    ],
)
def test_errors_of_a_run_name_the_place(plain: Path, change: dict[str, Any], message: str) -> None:
    run = {**RUN, "data": {**RUN["data"], "path": str(plain)}}
    assert resolve_run(run).data.classes == 2
    with pytest.raises(ConfigError, match=message):
        resolve_run(run, change)


def test_classes_are_checked_against_the_head(plain: Path) -> None:
    data = folder(plain)
    data.check("train", 2)
    with pytest.raises(DataError, match=r"data 'image-folder': its 2 classes \(cat, dog\) do not fit the head's 3$"):
        data.check("train", 3)


def test_all_changes_are_off_by_default() -> None:
    augmentation = Augmentation()
    assert not augmentation.changes and not augmentation.mixes
    config = make(resolve_run("vit-tiny-digits").data)
    assert config.class_names == [str(digit) for digit in range(10)]
