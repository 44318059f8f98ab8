"""Pictures of attention, and the images they are of: whole files, right places, one clear error for what is wrong."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import zoo
from zoo.errors import ConfigError, DataError, InputError, UnknownNameError, ZooError
from zoo.inspect.attention import Attended
from zoo.inspect.image import Preparation, example_of, preparation, read_image
from zoo.inspect.picture import over_image, over_tokens, token_maps

pytest.importorskip("matplotlib")
Image: Any = pytest.importorskip("PIL.Image")
Make = Callable[..., Any]


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """An image that is red on the left and blue on the right, wider than high."""
    image = Image.new("RGB", (80, 40), (255, 0, 0))
    image.paste((0, 0, 255), (40, 0, 80, 40))
    image.save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def embedding(**fields: Any) -> Any:
    return zoo.get_config({"embedding": {"type": "patch", "image_size": 32, "patch_size": 8, **fields},
                           "stack": {"width": 8, "depth": 1, "block": {"attention": {"heads": 1}, "norm": "layer-norm",
                                                                        "feedforward": "mlp"}}}).embedding  # fmt: skip


def looked(maps: int = 2, heads: int = 1, grid: tuple[int, int] = (4, 4), traced: bool = False) -> Attended:
    """Maps as `zoo.attend` gives them, in which the class token looks at the second patch alone."""
    tokens = 1 + grid[0] * grid[1]
    weights = torch.full((1, heads, tokens, tokens), 1 / tokens)
    weights[:, :, 0] = 0.0
    weights[:, :, 0, 2] = 1.0
    names = None if heads == 1 else tuple(range(heads))
    return Attended(tuple(range(maps)), names, (weights,) * maps, weights.mean(1) if traced else None, 1, grid, None)


def drawn(path: Path) -> Any:
    """The pixels of a picture (height, width, 3)."""
    with Image.open(path) as image:
        return torch.frombuffer(bytearray(image.convert("RGB").tobytes()), dtype=torch.uint8).view(image.height, -1, 3)


def test_an_image_is_brought_to_the_size_and_the_numbers_of_the_model(photo: Path) -> None:
    picture = read_image(photo, embedding(), Preparation())
    assert picture.pixels.shape == (1, 3, 32, 32) and picture.shown.shape == (32, 32, 3) and picture.title == "photo.png"
    assert picture.pixels[0, :, 16, 4].tolist() == [1.0, -1.0, -1.0] and picture.pixels[0, :, 16, 28].tolist() == [
        -1.0,
        -1.0,
        1.0,
    ]
    own = read_image(photo, embedding(), Preparation((0.1, 0.2, 0.3), (0.5, 0.25, 0.2)))
    assert own.pixels[0, :, 16, 4].tolist() == pytest.approx([1.8, -0.8, -1.5])
    grey = read_image(photo, embedding(channels=1, image_size=[16, 24]), Preparation())
    assert grey.pixels.shape == (1, 1, 16, 24) and float(grey.pixels[0, 0, 8, 2]) == pytest.approx(0.299 * 2 - 1, abs=0.01)


def test_the_shorter_side_and_the_middle(photo: Path) -> None:
    """40 high, 80 wide: brought to 64 x 128, of which the middle is cut out."""
    image = Image.open(photo)
    image.paste((0, 255, 0), (30, 0, 50, 40))
    image.save(photo)
    picture = read_image(photo, embedding(), Preparation(size=64, crop=(32, 32)))
    assert picture.pixels.shape == (1, 3, 32, 32)
    assert picture.pixels[0, :, 16].mean(-1).tolist() == pytest.approx([-1.0, 1.0, -1.0], abs=0.05)
    edge = read_image(photo, embedding(), Preparation(size=40))  # cut to what the model takes
    assert edge.pixels.shape == (1, 3, 32, 32)


def test_every_kind_of_image_file(photo: Path, tmp_path: Path) -> None:
    image = Image.open(photo)
    image.convert("L").point(lambda value: value * 257, "I").convert("I;16").save(tmp_path / "deep.png")
    image.convert("P").save(tmp_path / "palette.gif")
    image.save(tmp_path / "photo.jpg")
    clear = image.convert("RGBA")
    clear.putalpha(0)
    clear.save(tmp_path / "clear.png")
    grey = read_image(photo, embedding(channels=1), Preparation()).pixels
    deep = read_image(tmp_path / "deep.png", embedding(channels=1), Preparation()).pixels
    assert (deep - grey).abs().max() < 0.02
    for name in ("palette.gif", "photo.jpg"):
        assert read_image(tmp_path / name, embedding(), Preparation()).pixels[0, 0, 16, 4] > 0.9
    assert float(read_image(tmp_path / "clear.png", embedding(), Preparation()).pixels.min()) == 1.0  # white
    turned = Image.Exif()
    turned[0x0112] = 6  # the camera was held upright
    image.save(tmp_path / "turned.jpg", exif=turned)
    upright = read_image(tmp_path / "turned.jpg", embedding(), Preparation()).pixels[0, :, :, 16]
    assert upright[0, 4] > 0.9 and upright[2, 28] > 0.9


def test_what_is_no_image_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("not a picture")
    Image.new("RGB", (64, 64)).save(tmp_path / "whole.png")
    (tmp_path / "half.png").write_bytes((tmp_path / "whole.png").read_bytes()[:60])
    for name, words in (("text.png", "not an image"), ("missing.png", "no such file"), (".", "a folder, not an image"),
                        ("half.png", "cannot be read as an image")):  # fmt: skip
        with pytest.raises(DataError, match=words):
            read_image(tmp_path / name, embedding(), Preparation())
    for fields, words in (({"channels": 5}, "images of 5 channels"), ({}, "reads no images")):
        with pytest.raises(InputError, match=words):
            read_image(tmp_path / "whole.png", embedding(**fields) if fields else object(), Preparation())
    with pytest.raises(ConfigError, match="2 numbers for images of 3 channels"):
        read_image(tmp_path / "whole.png", embedding(), Preparation((0.1, 0.2)))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}, Preparation((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))),
        ({"size": {"height": 20, "width": 30}}, Preparation(size=(20, 30))),
        ({"size": 24}, Preparation(size=(24, 24))),
        ({"size": {"shortest_edge": 40}, "do_center_crop": True, "crop_size": 32}, Preparation(size=40, crop=(32, 32))),
        ({"size": 40, "do_center_crop": False, "crop_size": {"height": 32, "width": 32}}, Preparation(size=(40, 40))),
        ({"do_normalize": False, "image_mean": [0.1]}, Preparation((0.0,), (1.0,))),
        ({"do_resize": True}, Preparation()),
    ],
    ids=str,
)
def test_what_transformers_writes_about_images(tmp_path: Path, values: dict[str, Any], expected: Preparation) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(values))
    assert preparation(tmp_path) == expected


def test_what_timm_and_runs_write_about_images(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    assert preparation(tmp_path / "model") == Preparation()
    (tmp_path / "config.yaml").write_text("data: {type: image-folder, mean: 0.4, std: [0.1, 0.2, 0.3]}")
    assert preparation(tmp_path / "model") == Preparation((0.4,), (0.1, 0.2, 0.3))
    (tmp_path / "model" / "config.json").write_text(json.dumps({"pretrained_cfg": {"mean": [0.3], "std": [0.2]}}))
    assert preparation(tmp_path / "model") == Preparation((0.3,), (0.2,))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "cannot be read as JSON"),
        ("[1]", "expected a JSON object, found list"),
        ('{"image_mean": "half"}', "image_mean: expected numbers, got 'half'"),
        ('{"image_std": [0.5, 0.0, 0.5]}', "image_std: expected numbers above 0"),
        ('{"size": {"height": -3, "width": 3}}', "size: expected a height and a width"),
        ('{"size": {"longest_edge": 5, "height": "x"}}', "size: expected a height and a width"),
        ('{"image_mean": [NaN]}', "image_mean: expected numbers"),
        ('{"size": [1, 2, 3]}', "size: expected a height and a width"),
    ],
)
def test_a_damaged_description_of_images_is_named(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "preprocessor_config.json").write_text(text)
    with pytest.raises(ConfigError, match=f"preprocessor_config.json.*{words}"):
        preparation(tmp_path)


def test_an_image_of_data() -> None:
    pytest.importorskip("sklearn")
    config = zoo.get_config("vit-tiny", {"embedding": {"image_size": 8, "patch_size": 2, "channels": 1}})
    picture = example_of("digits:17", config)
    from zoo.registry import make, part

    example = make(part("data", "digits").Config()).split("test")[17]
    assert torch.equal(picture.pixels[0], example["pixel_values"]) and picture.label == int(example["labels"])
    assert picture.shown.shape == (8, 8, 1) and picture.title == "digits, test image 17"
    assert example_of("digits:-599", config).title == "digits, test image 0"
    with pytest.raises(DataError, match="digits:599: the test part has 599 examples, 0 to 598"):
        example_of("digits:599", config)
    with pytest.raises(UnknownNameError, match="did you mean 'digits'"):
        example_of("digit:1", config)
    with pytest.raises(InputError, match="digits:1 is nothing for this model: data 'digits' have 1 channel, not 3; "):
        example_of("digits:1", zoo.get_config("vit-tiny"))


@pytest.mark.parametrize("suffix", [".png", ".pdf", ".svg"])
def test_formats(tmp_path: Path, suffix: str) -> None:
    path = over_image(looked(), torch.rand(32, 32, 3), tmp_path / f"picture{suffix}", token=0, title="a title")
    start = {".png": b"\x89PNG", ".pdf": b"%PDF", ".svg": b"<?xml"}[suffix]
    assert path.read_bytes().startswith(start) and os.listdir(tmp_path) == [path.name]


def test_the_map_is_bright_where_the_attention_is(tmp_path: Path) -> None:
    """The only panel of 4 x 4 patches has one bright patch: the second of the first row."""
    path = over_image(looked(maps=1), torch.zeros(32, 32, 1), tmp_path / "picture.png", token=0)
    pixels = drawn(path).float()
    yellow = (pixels[..., 0] > 170) & (pixels[..., 1] > 150) & (pixels[..., 2] < 110)
    purple = (pixels[..., 2] > pixels[..., 1] + 25) & (pixels[..., 0] < 110)
    panel = purple.nonzero()
    top, left = panel.min(0).values.tolist()
    rows, columns = yellow[:, : left + 360].nonzero().unbind(1)  # the bar of colours stands further right
    side = 1.75 * 200 / 4
    assert len(rows) > 0.5 * side**2
    assert abs(float(rows.float().mean()) - (top + side / 2)) < side / 3
    assert abs(float(columns.float().mean()) - (left + 1.5 * side)) < side / 3


def test_pages_of_many_shapes(tmp_path: Path) -> None:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("error")  # what does not fit on a page is a warning of matplotlib's
        for number, (seen, shown, token) in enumerate(
            [
                (looked(maps=12, traced=True), torch.rand(64, 64, 3), 0),
                (looked(maps=3, heads=4, traced=True), torch.rand(64, 64, 3), 7),
                (looked(maps=1, heads=2, traced=True), torch.rand(64, 64, 1), None),
                (looked(maps=1, heads=12), torch.rand(20, 80, 3), -0),
                (looked(maps=2, grid=(2, 9)), torch.rand(20, 90, 3), 18),
            ]
        ):
            page = drawn(over_image(seen, shown, tmp_path / f"{number}.png", token=token, title="a model\nits attention"))
            for edge in (page[:8], page[-8:], page[:, :8], page[:, -8:]):
                assert bool((edge == 255).all()), "something touches the edge of the page"


def test_tokens(tmp_path: Path) -> None:
    words = ["[CLS]", "The", "cat", "sat", "\n", "on", "$", "the", "very", "long", "mat-of-many-syllables", ".", "[SEP]"]
    maps = [(f"layer 0, head {head}", torch.rand(len(words), len(words)).softmax(-1)) for head in range(3)]
    page = drawn(over_tokens(maps, words, tmp_path / "tokens.png", title="a sentence"))
    assert bool((page[:8] == 255).all()) and page.shape[1] > 800
    many = [f"token{number}" for number in range(150)]
    over_tokens([("all", torch.rand(150, 150))], many, tmp_path / "many.png")
    over_tokens([("cross", torch.rand(2, 5))], ["a", "b"], tmp_path / "cross.png", keys=list("vwxyz"))
    for wrong, words_ in (
        ([], "there are no maps"),
        ([("x", torch.rand(3, 4))], r"x: a map of \(3, 4\) for 2 tokens and 2 keys"),
    ):
        with pytest.raises(InputError, match=words_):
            over_tokens(wrong, ["a", "b"], tmp_path / "wrong.png")
    assert not (tmp_path / "wrong.png").exists()


def test_tokens_of_any_model(model_of: Make, images: Make, tmp_path: Path) -> None:
    seen = zoo.attend(model_of(), images(), layers=[1], rollout=True)
    maps = token_maps(seen, example=1)
    assert [name for name, _ in maps] == [*(f"layer 1, head {head}" for head in range(3)), "rollout, all layers"]
    assert torch.equal(maps[2][1], seen.maps[0][1, 2]) and torch.equal(maps[3][1], seen.rollout[1])
    assert over_tokens(maps, ["class", *(f"patch {n}" for n in range(16))], tmp_path / "patches.png").is_file()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("picture.jpg", "picture.jpg: expected the name of a picture, with one of .png, .pdf, .svg"),
        ("picture", "expected the name of a picture"),
        ("missing/picture.png", "cannot be written: there is no folder"),
        ("folder.png", "cannot be written: a folder is there"),
    ],
)
def test_what_cannot_be_written_is_named(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(ZooError, match=words):
        over_image(looked(), torch.rand(32, 32, 3), tmp_path / name)


def test_a_picture_is_there_whole_or_not_at_all(tmp_path: Path, monkeypatch: Any) -> None:
    from matplotlib.figure import Figure

    path = tmp_path / "picture.png"
    path.write_bytes(b"the old one")

    def full(self: Any, name: Any, **options: Any) -> None:
        Path(name).write_bytes(b"half of")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Figure, "savefig", full)
    with pytest.raises(ZooError, match=r"picture.png: cannot be written: No space left on device"):
        over_image(looked(), torch.rand(32, 32, 3), path)
    assert path.read_bytes() == b"the old one" and os.listdir(tmp_path) == ["picture.png"]


def test_maps_that_fit_no_image_are_named(tmp_path: Path) -> None:
    shown = torch.rand(32, 32, 3)
    for seen, token, words in (
        (looked()._replace(grid=None), None, "form no grid"),
        (looked()._replace(grid=(3, 3)), None, "17 keys cannot be laid over 3 x 3 patches"),
        (looked(), 17, "token: 17 is none of 0 to 16"),
    ):
        with pytest.raises(InputError, match=words):
            over_image(seen, shown, tmp_path / "picture.png", token=token)
