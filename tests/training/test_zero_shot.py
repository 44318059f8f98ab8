"""Classes that are only named, and pictures that are looked for: on a small CLIP of transformers with its own tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from PIL import Image

import zoo
from zoo.cli import main
from zoo.errors import ConfigError, DataError, InputError
from zoo.inspect.image import read_image
from zoo.training.zero_shot import Comparer, classify, search

WORDS = ["<|startoftext|>", "!", "a", "photo", "of", "cat", "dog", "red", "car", "the", "unknown", "<|endoftext|>"]
END = len(WORDS) - 1


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP as the Hub has them: tensors, a tokenizer, and how images are prepared."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    place: Path = tmp_path_factory.mktemp("clip")
    torch.manual_seed(1)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    text = {**sizes, "vocab_size": len(WORDS), "max_position_embeddings": 9, "eos_token_id": 2, "bos_token_id": 0}
    config = transformers.CLIPConfig(
        text_config=text, vision_config={**sizes, "image_size": 12, "patch_size": 4}, projection_dim=6
    )
    model = transformers.CLIPModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(place)
    words = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="unknown"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    around = [(WORDS[0], 0), (WORDS[END], END)]
    words.post_processor = processors.TemplateProcessing(single=f"{WORDS[0]} $A {WORDS[END]}", special_tokens=around)
    roles = {"bos_token": WORDS[0], "eos_token": WORDS[END], "pad_token": WORDS[END], "unk_token": "unknown"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, model_max_length=9, **roles).save_pretrained(place)
    size = {"size": {"shortest_edge": 12}, "crop_size": {"height": 12, "width": 12}}
    transformers.CLIPImageProcessor(**size).save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of several sizes and colours."""
    place: Path = tmp_path_factory.mktemp("pictures")
    drawn = numpy.random.default_rng(0)
    for number, size in enumerate([(12, 12), (30, 20), (17, 40), (64, 64), (12, 25), (31, 33), (47, 32)]):
        coarse = Image.fromarray(drawn.integers(0, 255, (4, 4, 3), dtype=numpy.uint8))
        coarse.resize(size, Image.Resampling.BICUBIC).save(place / f"{number}.png")
    return place


def pixels_of(comparer: Comparer, files: list[Path]) -> torch.Tensor:
    embedding = comparer.model.config.vision.embedding
    return torch.cat([read_image(path, embedding, comparer.prepared).pixels for path in files])


TEXTS = ["a photo of a cat", "the dog", "a red car", "cat " * 20]


def test_texts_and_images_are_read_as_transformers_reads_them(folder: Path, pictures: Path) -> None:
    import transformers

    comparer = Comparer(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    theirs = tokenizer(TEXTS, padding=True, truncation=True, max_length=9, return_tensors="pt")
    ours = [comparer.tokenizer.encode(text, 9) for text in TEXTS]
    assert [row + [END] * (9 - len(row)) for row in ours] == theirs["input_ids"].tolist()
    processor = transformers.CLIPImageProcessorPil.from_pretrained(folder)
    images = [Image.open(path) for path in sorted(pictures.iterdir())]
    pixels = processor(images, return_tensors="pt")["pixel_values"]
    own = pixels_of(comparer, sorted(pictures.iterdir()))
    assert own.shape == pixels.shape
    assert (own - pixels).abs().max() < 1e-6
    fast = transformers.CLIPImageProcessor.from_pretrained(folder)(images, return_tensors="pt")["pixel_values"]
    # where torchvision resamples instead of Pillow, one of 255 steps may be rounded otherwise
    assert (own - fast).abs().max() <= 1.5 / 255 / 0.26 and (own - fast).abs().mean() < 2e-3


def test_a_folder_with_old_files_of_a_tokenizer(folder: Path, tmp_path: Path) -> None:
    """As CLIP was published: a list of tokens and one of merges, without a tokenizer.json."""
    import shutil

    import transformers

    home = Path(shutil.copytree(folder, tmp_path / "old"))
    (home / "tokenizer.json").unlink()
    ids = {"<|startoftext|>": 0, "a</w>": 1, "a": 2, "c": 3, "t</w>": 4, "at</w>": 5, "cat</w>": 6, "!</w>": 7, "t": 8,
           "o</w>": 9, "!": 10, "<|endoftext|>": 11}  # fmt: skip
    (home / "vocab.json").write_text(json.dumps(ids))
    (home / "merges.txt").write_text("#version: 0.2\na t</w>\nc at</w>\n")
    roles = {"bos_token": "<|startoftext|>", **dict.fromkeys(("eos_token", "unk_token", "pad_token"), "<|endoftext|>")}
    (home / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CLIPTokenizer", **roles}))
    comparer, theirs = Comparer(home), transformers.AutoTokenizer.from_pretrained(home)
    for text in ("A  cat!", "cat a at", "a cat " * 20):
        wanted = theirs(text, truncation=True, max_length=9)["input_ids"]
        assert comparer.tokenizer.encode(text, 9) == wanted and wanted[0] == 0 and wanted[-1] == END
    assert comparer.tokenizer.end == END and comparer.texts(["a cat"]).shape == (1, 6)
    (home / "vocab.json").write_text("[]")
    with pytest.raises(DataError, match=r"tokenizer: vocab\.json, merges\.txt, tokenizer_config\.json in .* describe none"):
        Comparer(home)


@torch.no_grad()
def test_vectors_and_probabilities_are_those_of_transformers(folder: Path, pictures: Path) -> None:
    import transformers

    model = transformers.CLIPModel.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    comparer = Comparer(folder)
    (names, vectors) = next(comparer.images([pictures]))
    assert [Path(name).name for name in names] == [f"{number}.png" for number in range(7)]
    pixels = pixels_of(comparer, [Path(name) for name in names])
    inputs = tokenizer(TEXTS, padding=True, truncation=True, max_length=9, return_tensors="pt")
    expected = model(**inputs, pixel_values=pixels)
    assert torch.allclose(vectors, expected.image_embeds, atol=1e-5)
    assert torch.allclose(comparer.texts(TEXTS), expected.text_embeds, atol=1e-5)
    answers = list(classify(folder, [pictures], TEXTS, top=4))
    for prediction, row in zip(answers, expected.logits_per_image.softmax(1)):
        assert dict(prediction.answers) == pytest.approx(dict(zip(TEXTS, row.tolist())), abs=1e-5)
    hits = search(folder, [pictures], TEXTS[0], top=2)
    cosines = expected.image_embeds @ expected.text_embeds[0]
    assert [hit.cosine for hit in hits] == pytest.approx(cosines.sort(descending=True).values[:2].tolist(), abs=1e-5)
    assert hits[0].name == names[int(cosines.argmax())]


@torch.no_grad()
def test_a_label_is_the_mean_of_its_sentences(folder: Path) -> None:
    comparer = Comparer(folder)
    both = comparer.labels(["cat", "dog"], ["a {}", "the {}"])
    sentences = comparer.texts(["a cat", "the cat", "a dog", "the dog"])
    means = torch.nn.functional.normalize(torch.stack([sentences[:2].mean(0), sentences[2:].mean(0)]))
    assert torch.allclose(both, means, atol=1e-6) and not torch.allclose(both, comparer.labels(["cat", "dog"]), atol=1e-3)


def test_what_cannot_be_compared_is_refused(folder: Path, pictures: Path, tiny: dict[str, Any], tmp_path: Path) -> None:
    plain = zoo.save(zoo.build(tiny), tmp_path / "plain")
    with pytest.raises(ConfigError, match="needs a model of type 'dual-encoder', and this is 'transformer'"):
        list(classify(plain, [pictures], ["a"]))
    bare = zoo.save(zoo.load(folder), tmp_path / "bare")
    with pytest.raises(ConfigError, match=r"no tokenizer\.json"):
        Comparer(bare)
    with pytest.raises(ConfigError, match="at least one name"):
        list(classify(folder, [pictures], []))
    with pytest.raises(ConfigError, match=r"one \{\} for the label"):
        list(classify(folder, [pictures], ["a"], templates=["a photo"]))
    with pytest.raises(InputError, match="no such file"):
        search(folder, ["nowhere"], "a")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no images"):
        search(folder, [tmp_path / "empty"], "a")


def run(words: list[str]) -> Any:
    with pytest.raises(SystemExit) as ended:
        main(words)
    return ended.value.code


def test_the_commands(folder: Path, pictures: Path, tmp_path: Path, capsys: Any) -> None:
    assert run(["classify", str(folder), str(pictures / "1.png"), "--labels", "cat, dog", "--template", "a {}", "--json"]) == 0
    (answer,) = json.loads(capsys.readouterr().out)
    assert {each["class"] for each in answer["answers"]} == {"cat", "dog"}
    assert sum(each["probability"] for each in answer["answers"]) == pytest.approx(1, abs=1e-5)
    assert run(["classify", str(folder), str(pictures), "--labels", "cat,dog"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if " cat " in line]
    assert len(lines) == len(list(pictures.rglob("*.png")))  # whose names may be cut short
    grid = tmp_path / "found.png"
    assert run(["search", str(folder), str(pictures), "a red car", "--top", "3", "-o", str(grid)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 4 and said[-1].endswith("3 images") and Image.open(grid).size[0] > 100
    assert run(["search", str(folder), str(pictures), "a red car", "--top", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [f"{each['cosine']:7.4f}  {each['name']}" for each in found] == said[:2]
    assert run(["search", str(folder), "a red car"]) == 1
    assert "expected a folder of images and a text" in capsys.readouterr().err
