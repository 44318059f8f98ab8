"""Which patches answer which word: on a small model that has learned where the answer is, and against masking patches."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import zoo
from zoo.errors import InputError
from zoo.inspect.words import Answered, answers, relevance

COLOURS = {"red": (1.0, -1.0, -1.0), "green": (-1.0, 1.0, -1.0), "blue": (-1.0, -1.0, 1.0), "white": (1.0, 1.0, 1.0)}
WORDS = ["", "the", *COLOURS, "end"]
END, GRID = len(WORDS) - 1, 4
TOWER = {"width": 32, "depth": 2, "block": {"attention": {"heads": 2}, "feedforward": {"hidden": 64}}}
MODEL = {
    "vision": {"embedding": {"image_size": 8, "patch_size": 2, "channels": 3}, "stack": TOWER, "head": {"size": 16}},
    "text": {"embedding": {"vocabulary": len(WORDS), "position": {"length": 6}}, "stack": TOWER,
             "head": {"size": 16, "pool": {"type": "end-of-text", "id": END}}},
}  # fmt: skip


def encoded(texts: Sequence[str]) -> Tensor:
    rows = [[WORDS.index(word) for word in text.split()] for text in texts]
    return torch.tensor([(row + [END] * 6)[:6] for row in rows])


def scenes(number: int, generator: torch.Generator, single: float = 0.0) -> tuple[Tensor, list[str], Tensor]:
    """Black pictures with patches of two colours, what is said of them, and where the two are: (number, 2).

    Args:
        single: the share of pictures with the first of the two alone.
    """
    images, texts = torch.full((number, 3, 8, 8), -1.0), []
    places = torch.stack([torch.randperm(GRID**2, generator=generator)[:2] for _ in range(number)])
    for image, pair, alone in zip(images, places.tolist(), torch.rand(number, generator=generator).tolist()):
        drawn = torch.randperm(len(COLOURS), generator=generator)[: 1 if alone < single else 2]
        chosen = [list(COLOURS)[each] for each in drawn.sort().values.tolist()]
        texts.append(f"the {' '.join(chosen)}")
        for place, colour in zip(pair, chosen):
            paint(image, place, COLOURS[colour])
    return images, texts, places


def paint(image: Tensor, place: int, colour: tuple[float, ...] = (-1.0, -1.0, -1.0)) -> None:
    row, column = divmod(place, GRID)
    image[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2] = torch.tensor(colour)[:, None, None]


@pytest.fixture(scope="module")
def trained() -> Any:
    """A dual encoder that tells which two colours are in a picture."""
    torch.manual_seed(0)
    model = zoo.build("clip-vit-b32", MODEL)
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    target = torch.arange(64)
    for _ in range(300):
        images, texts, _ = scenes(64, generator, single=0.5)
        same = torch.tensor([[a == b for b in texts] for a in texts])
        bare = torch.rand(64, generator=generator) < 0.5  # "the" may be left out, so that it says nothing
        texts = [text.removeprefix("the ") if plain else text for text, plain in zip(texts, bare.tolist())]
        scores = model(input_ids=encoded(texts), pixel_values=images).logits_per_image
        scores = scores.masked_fill(same & ~torch.eye(64, dtype=torch.bool), -1e4)  # the same colours are no others
        loss = torch.nn.functional.cross_entropy(scores, target) + torch.nn.functional.cross_entropy(scores.T, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def reader(model: Any) -> Callable[[Sequence[str]], Tensor]:
    @torch.inference_mode()
    def read(texts: Sequence[str]) -> Tensor:
        vectors: Tensor = model(input_ids=encoded(texts)).text_embeds
        return vectors

    return read


def test_a_word_is_answered_by_the_patch_that_it_is_about(trained: Any) -> None:
    images, texts, places = scenes(40, torch.Generator().manual_seed(7))
    right, larger = 0, 0
    for image, text, pair in zip(images, texts, places.tolist()):
        seen = answers(trained, image[None], text, reader(trained))
        assert seen.words == tuple(text.split()) and seen.maps.shape == (4, GRID, GRID) and seen.maps.min() >= 0
        of_word = dict(zip(("the", "first", "second"), seen.maps[1:].flatten(1)))
        right += sum(int(of_word[word].argmax()) == place for word, place in zip(("first", "second"), pair))
        larger += sum(float(of_word[word].max()) > 2 * float(of_word["the"].max()) for word in ("first", "second"))
    # by chance it would be 5 of 80
    assert right >= 56 and larger >= 72, (right, larger)


def test_masking_what_is_named_costs_more_than_masking_anything_else(trained: Any) -> None:
    images, texts, _ = scenes(20, torch.Generator().manual_seed(8))
    named, others, most = [], [], 0
    for image, text in zip(images, texts):
        read = reader(trained)
        seen = answers(trained, image[None], text, read)
        for word in (1, 2):
            without = " ".join(each for number, each in enumerate(text.split()) if number != word)
            direction = read([text])[0] - read([without])[0]
            masked = image.repeat(GRID**2, 1, 1, 1)
            for place in range(GRID**2):
                paint(masked[place], place)
            with torch.no_grad():
                score, *scores = (trained(pixel_values=torch.cat([image[None], masked])).image_embeds @ direction).tolist()
            assert score == pytest.approx(float(seen.cosines[word + 1]), abs=1e-5)
            lost, best = [score - each for each in scores], int(seen.maps[word + 1].argmax())
            named.append(lost.pop(best))
            others.append(sum(lost) / len(lost))
            most += named[-1] > max(lost)
    assert sum(named) > 10 * abs(sum(others)) and most >= 28, (sum(named), sum(others), most)


def test_relevance_is_that_of_the_paper(trained: Any) -> None:
    """Equations 5 and 6, written out with the attention maps as inputs: R = R + mean of heads of (gradient x A)+ times R."""
    image, direction = scenes(1, torch.Generator().manual_seed(9))[0], torch.randn(2, 16)
    names = [f"stack.layers.{layer}.attention.pattern" for layer in (0, 1)]
    expected = []
    for each in direction:
        with zoo.capture(trained.vision, names) as seen:
            output = trained.vision(image).image_embeds[0]
        score = each @ output / output.norm()
        whole = torch.eye(17)
        for name in names:
            (gradient,) = torch.autograd.grad(score, seen[name], retain_graph=True)
            whole = whole + (gradient * seen[name])[0].relu().mean(0) @ whole
        expected.append(whole[0, 1:].detach().view(GRID, GRID))
    found, scores = relevance(trained, image, direction)
    assert torch.allclose(found, torch.stack(expected), atol=1e-7) and found.max() > 1e-3
    assert torch.allclose(scores, (trained(pixel_values=image).image_embeds @ direction.T)[0], atol=1e-6)
    last, _ = relevance(trained, image, direction, layers=[-1])
    assert not torch.allclose(last, found) and bool((last <= found + 1e-7).all())


def test_the_model_is_left_as_it_was(trained: Any) -> None:
    image, direction = scenes(1, torch.Generator().manual_seed(9))[0], torch.randn(1, 16)
    expected, _ = relevance(trained, image, direction)
    trained.requires_grad_(False)
    with torch.inference_mode():
        frozen, _ = relevance(trained.train(), image, direction)
    assert all(module.training for module in trained.modules())
    trained.requires_grad_(True).eval()
    assert torch.equal(frozen, expected) and not expected.requires_grad
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in trained.modules())
    assert all(parameter.grad is None for parameter in zoo.build("clip-vit-b32", MODEL).parameters())


@pytest.mark.parametrize("pool", ["mean", "class-token"])
def test_towers_of_other_kinds(pool: str) -> None:
    head = {"type": "projection", "size": 16, "pool": pool, "norm": None}
    change = {"vision.head": head, "vision.embedding.class_token": pool == "class-token"}
    model = zoo.build("clip-vit-b32", MODEL | {}, device=None)
    model = zoo.build(zoo.get_config(model.config, change)).eval()
    found, _ = relevance(model, torch.randn(1, 3, 8, 8), torch.randn(3, 16))
    assert found.shape == (3, GRID, GRID) and bool((found >= 0).all()) and found.max() > 0
    wide, _ = relevance(model, torch.randn(1, 3, 12, 8), torch.randn(1, 16))  # positions are resampled
    assert wide.shape == (1, 6, 4)


def test_what_cannot_be_seen_is_refused(trained: Any) -> None:
    image, direction = torch.randn(1, 3, 8, 8), torch.randn(1, 16)
    with pytest.raises(InputError, match="expected a model of type 'dual-encoder', got Transformer"):
        relevance(trained.vision, image, direction)
    with pytest.raises(InputError, match=r"expected one image \(1, channels, height, width\), got \(2, 3, 8, 8\)"):
        relevance(trained, image.repeat(2, 1, 1, 1), direction)
    with pytest.raises(InputError, match="layers: 2 is none of 0 to 1"):
        relevance(trained, image, direction, layers=[2])
    with pytest.raises(InputError, match="expected at least one word"):
        answers(trained, image, "  ", reader(trained))
    projection = {"type": "projection", "size": 16, "pool": "mean"}
    small = {"embedding.image_size": 48, "stack.width": 12, "stack.block.attention.window": 3,
             "stack.stages": [{"depth": 1, "heads": 3}, {"depth": 1, "heads": 3}], "head": projection}  # fmt: skip
    swin = {"type": "dual-encoder", "vision": zoo.get_config("swin-tiny", small), "text": trained.text.config}
    with pytest.raises(InputError, match="traced through attention of all tokens to all tokens, and this model's is local"):
        relevance(zoo.build(swin), torch.randn(1, 3, 48, 48), direction)


def test_a_picture_of_words(trained: Any, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from PIL import Image

    from zoo.inspect.word_picture import over_words

    images, texts, _ = scenes(1, torch.Generator().manual_seed(7))
    seen = answers(trained, images, texts[0], reader(trained))
    shown = (images[0].permute(1, 2, 0) + 1) / 2
    path = over_words(seen, shown, tmp_path / "words.png", title="a title")
    with Image.open(path) as picture:
        assert picture.size[0] > 800 and len(picture.convert("RGB").getcolors(1 << 20) or ()) > 100
    other = over_words(seen._replace(maps=seen.maps.flip(1)), shown, tmp_path / "flipped.png", title="a title")
    assert other.read_bytes() != path.read_bytes()
    many = Answered(("word",) * 61, torch.zeros(62, 2, 2), torch.zeros(62))
    with pytest.raises(InputError, match="the text has 61 words; a picture has room for 60"):
        over_words(many, shown, tmp_path / "many.png")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder: a dual encoder that reads bytes and digits."""
    home = tmp_path_factory.mktemp("runs") / "small"
    from zoo.training.run import resolve_run

    config = resolve_run("clip-mini-digits", {"model.vision.stack.depth": 1, "model.text.stack.depth": 1})
    torch.manual_seed(0)
    zoo.save(zoo.build(config.model), home / "model")
    (home / "config.yaml").write_text(json.dumps({"type": "train", "data": {"type": "captioned-digits"}}))
    return home


def test_a_pair_from_the_command_line(folder: Path, tmp_path: Path, capsys: Any) -> None:
    from zoo.cli import main

    def run(*words: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as ended:
            main(["attend", str(folder), *words])
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out + said.err

    path = str(tmp_path / "words.png")
    assert run("digits:17", "a seven", "-o", path) == (0, f"{path}\n") and Path(path).read_bytes()[:4] == b"\x89PNG"
    code, said = run("digits:17", "a seven", "-o", path, "--json", "--layers", "0")
    found = json.loads(said)
    assert code == 0 and [each["word"] for each in found["words"]] == ["a", "seven"]
    assert len(found["relevance"]) == 4 and len(found["words"][0]["relevance"][0]) == 4 and -1 <= found["cosine"] <= 1
    for words, message in (
        (("digits:17", "-o", path), "compares images with texts, so give both"),
        (("digits:17", " ", "-o", path), "TEXT: the text is empty"),
        (("digits:17", "a seven", "-o", path, "--rollout"), "--heads, --rollout and --token have no meaning"),
        (("digits:17", "a seven", "-o", path, "--layers", "3"), "layers: 3 is none of 0 to 0"),
        (("nowhere.png", "a seven", "-o", path), "nowhere.png: no such file"),
        (("digits:17", "a seven", "-o", str(tmp_path / "words.doc")), "expected the name of a picture"),
    ):
        assert run(*words)[0] == 1, words
        assert message in run(*words)[1], words
