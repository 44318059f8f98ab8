"""Texts: Python's documentation, text files, and the tokenizers that make ids of them."""

from __future__ import annotations

import json
import pickle
import re
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch

import zoo
from zoo.data.pydoc import Pydoc, apart, unique_paragraphs
from zoo.data.shares import part_of
from zoo.data.text_files import TextFiles
from zoo.data.tokenizer import ByteTokenizer, FileTokenizer, make_tokenizer
from zoo.errors import ConfigError, DataError
from zoo.training.run import resolve_run

PARTS: Any = ("train", "validation", "test")


def texts(data: Any, name: Any) -> list[str]:
    """The texts of a part, read back from their ids."""
    return [data.tokenizer.decode(example["input_ids"].tolist()) for example in data.split(name)]


def words(text: str) -> str:
    return f" {' '.join(re.findall(r'[a-z0-9_]+', text.casefold()))} "


@pytest.fixture(scope="module")
def pydoc() -> Pydoc:
    return Pydoc(Pydoc.Config(validation=0.1, length=100_000))


def test_no_paragraph_that_is_kept_out_occurs_in_training(pydoc: Pydoc) -> None:
    parts = {name: [words(text) for text in texts(pydoc, name)] for name in PARTS}
    assert len(parts["train"]) > 800 and len(parts["validation"]) > 60 and len(parts["test"]) > 200
    everything = list(chain.from_iterable(parts.values()))
    assert len(set(everything)) == len(everything)
    trained = "\n".join(parts["train"])
    assert not [text for text in parts["test"] + parts["validation"] if text in trained]
    tuned = "\n".join(parts["validation"])
    assert not [text for text in parts["test"] if text in tuned]


def test_the_topics_do_repeat_each_other() -> None:
    from pydoc_data.topics import topics

    paragraphs = [
        words(text) for topic in topics.values() for text in re.split(r"\n\s*\n", topic) if len(words(text).split()) >= 5
    ]
    assert len(paragraphs) - len(set(paragraphs)) > 100  # so that the test above tests something


def test_the_test_part_never_changes(pydoc: Pydoc) -> None:
    torch.manual_seed(3)
    again = Pydoc(Pydoc.Config(batch_size=3, length=100_000))
    assert texts(again, "test") == texts(pydoc, "test")
    assert set(texts(again, "train")) == set(texts(pydoc, "train")) | set(texts(pydoc, "validation"))
    assert not again.has("validation") and pydoc.has("validation")


def test_paragraphs_inside_of_others_are_not_kept_out() -> None:
    found = unique_paragraphs(
        ["One two three four five.\n\n  one two, three four FIVE\n\nshort one\n\n   Zero one two three four five six"]
    )
    assert list(found.values()) == ["One two three four five.", "Zero one two three four five six"]
    short = next(f" {number} a b c d " for number in range(99) if part_of(f" {number} a b c d ".encode(), 0.5, 0.0) == "test")
    long = next(key for number in range(99) if part_of((key := f" {number}{short}e ").encode(), 0.5, 0.0) == "train")
    assert apart({short: "short", long: "long"}, 0.5, 0.0) == {"train": ["long"], "validation": [], "test": []}
    assert apart({short: "short"}, 0.5, 0.0)["test"] == ["short"]


def test_batches_are_filled_up_to_their_longest_text(pydoc: Pydoc) -> None:
    data = Pydoc(Pydoc.Config(batch_size=8, length=64))
    for batch in data.loader("train"):
        ids, mask = batch["input_ids"], batch["attention_mask"]
        assert ids.shape == mask.shape and ids.dtype == torch.int64 and ids.shape[1] <= 64
        lengths = mask.sum(1)
        assert int(lengths.max()) == ids.shape[1]
        for row, real, length in zip(ids, mask, lengths, strict=True):
            assert real.tolist() == [1] * int(length) + [0] * (len(row) - int(length))
            assert int(row[0]) == 257 and int(row[length - 1]) == 258 and set(row[length:].tolist()) <= {256}
    assert any(int(example["attention_mask"].sum()) == 64 for example in data.split("train"))


def test_bytes() -> None:
    tokenizer = ByteTokenizer()
    assert tokenizer.encode("aé", 10) == [257, 97, 195, 169, 258]
    assert tokenizer.encode("aé", 4) == [257, 97, 195, 258]
    assert tokenizer.decode([257, 97, 195, 169, 258, 256, 256]) == "aé"
    assert tokenizer.vocabulary == 260 == max(tokenizer.padding, tokenizer.start, tokenizer.end, tokenizer.mask) + 1


@pytest.fixture
def tokenizer_folder(tmp_path: Path) -> Path:
    """A tokenizer of whole words, with special tokens and a post-processor, as Hugging Face's BERT has."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    vocabulary = {
        word: index for index, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red", "green", "blue"])
    }
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.add_special_tokens(["[PAD]", "[CLS]", "[SEP]", "[MASK]"])
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def test_a_tokenizer_of_ones_own(tokenizer_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "colours.txt").write_text("red green\nblue\nred red red red red\n")
    for path in (tokenizer_folder, tokenizer_folder / "tokenizer.json"):
        data = TextFiles(TextFiles.Config(path=str(tmp_path / "*.txt"), tokenizer=str(path), length=5, test=0.0))
        tokenizer = data.tokenizer
        found = (tokenizer.vocabulary, tokenizer.padding, tokenizer.start, tokenizer.end, tokenizer.mask)
        assert found == (8, 0, 2, 3, 4)
        (batch,) = list(data.loader("train"))
        rows = sorted(map(tuple, batch["input_ids"].tolist()))
        assert rows == [(2, 5, 5, 5, 3), (2, 5, 6, 3, 0), (2, 7, 3, 0, 0)]
        assert tokenizer.decode([2, 5, 6, 3, 0]) == "red green"
        assert pickle.loads(pickle.dumps(tokenizer)).encode("blue", 5) == [2, 7, 3]
    (tokenizer_folder / "tokenizer_config.json").write_text(
        json.dumps({"eos_token": {"content": "blue"}, "mask_token": "green"})
    )
    named = FileTokenizer(tokenizer_folder, "data")
    assert (named.end, named.mask, named.start) == (7, 6, 2)


def test_no_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^data 'x': tokenizer: byte is no file; did you mean 'bytes'\?$"):
        make_tokenizer("byte", "data 'x'")
    with pytest.raises(DataError, match=r"expected bytes, wordpiece, bpe, a tokenizer.json or a folder with one$"):
        make_tokenizer(str(tmp_path), "data 'x'")
    (tmp_path / "tokenizer.json").write_text('{"model": 1}')
    with pytest.raises(DataError, match=r"tokenizer.json describes no tokenizer: .*") as caught:
        make_tokenizer(str(tmp_path), "data 'x'")
    assert "\n" not in str(caught.value)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """300 lines in three files, every fifth of them in two."""
    for number, name in enumerate(("a", "b", "c")):
        lines = [
            f"line {index % 250 if index % 5 == 0 else index} of the text" for index in range(100 * number, 100 * number + 100)
        ]
        (tmp_path / f"{name}.txt").write_text("\n".join(lines) + "\n")
    return tmp_path


def text_files(folder: Path, **fields: Any) -> TextFiles:
    return TextFiles(TextFiles.Config(**{"path": str(folder / "*.txt"), "batch_size": 16, **fields}))


def test_parts_follow_from_the_texts_streaming_or_not(files: Path) -> None:
    stored, streamed = (text_files(files, streaming=streaming, validation=0.1) for streaming in (False, True))
    parts = {name: texts(stored, name) for name in PARTS}
    assert {name: texts(streamed, name) for name in PARTS} == parts
    assert sum(len(part) for part in parts.values()) == 300
    assert 35 < len(parts["test"]) < 85 and 10 < len(parts["validation"]) < 45
    assert not set(parts["test"]) & set(parts["train"] + parts["validation"])
    assert not set(parts["train"]) & set(parts["validation"])
    (files / "0.txt").write_text("another line first\n")  # other texts do not move these
    assert set(parts["test"]) <= set(texts(text_files(files, validation=0.1), "test"))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_is_shuffled_by_seed_and_epoch(files: Path, workers: int) -> None:
    def epochs(workers: int, buffer: int, seed: int = 1) -> list[Any]:
        loader = text_files(files, streaming=True, buffer=buffer, test=0.0, workers=workers).loader("train", seed=seed)
        return [[tuple(row) for batch in loader for row in batch["input_ids"].tolist()] for _ in range(2)]

    alone, other = epochs(0, 50), epochs(workers, 50)
    assert alone == other
    assert alone[0] != alone[1] and sorted(alone[0]) == sorted(alone[1]) and len(alone[0]) == 300
    assert epochs(0, 50, seed=2)[0] != alone[0]
    loader = text_files(files, streaming=True, buffer=50, test=0.0, workers=workers).loader("train", seed=1, skip=7)
    assert [tuple(row) for batch in loader for row in batch["input_ids"].tolist()] == alone[0][7 * 16 :]
    stored = text_files(files, test=0.0).loader("train")
    assert sorted(tuple(row) for batch in stored for row in batch["input_ids"].tolist()) == sorted(alone[0])


def test_files_of_their_own_for_each_part(files: Path) -> None:
    data = text_files(files, path=[str(files / "a.txt"), str(files / "[ab].txt")], test_path=str(files / "c.txt"))
    assert (len(data.split("train")), len(data.split("test")), data.has("validation")) == (200, 100, False)
    assert len(text_files(files, test_path=str(files / "c.txt"), validation=0.5).split("train")) < 200
    with pytest.raises(DataError, match="`test` has no meaning beside `test_path`; leave one of them out"):
        text_files(files, test_path=str(files / "c.txt"), test=0.1).split("test")


def test_lines_and_paragraphs(tmp_path: Path) -> None:
    content = "\ufeffone\r\n  two  \r\n\r\n\r\nthree\r\n\t\r\nfour\r\n five"
    (tmp_path / "x.txt").write_bytes(content.encode("utf-8"))
    assert texts(text_files(tmp_path, test=0.0), "train") == ["one", "two", "three", "four", "five"]
    data = text_files(tmp_path, test=0.0, unit="paragraph")
    assert texts(data, "train") == ["one\n  two", "three", "four\n five"]
    assert [Path(row["place"]).name for row in data.split("train").rows] == ["x.txt:1", "x.txt:5", "x.txt:7"]


@pytest.mark.filterwarnings("ignore:data")
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("streaming", [False, True])
def test_lines_that_are_no_utf8(tmp_path: Path, streaming: bool, workers: int) -> None:
    (tmp_path / "x.txt").write_bytes(b"".join(b"line %d\n" % number for number in range(20)) + b"caf\xe9\n" * 3 + b"end\n")
    data = text_files(tmp_path, streaming=streaming, workers=workers, test=0.0)
    with pytest.warns(
        UserWarning, match=r"data 'text-files': .*x.txt:2[123] cannot be read and is left out: no UTF-8: .* 0xe9"
    ):
        batches = list(data.loader("train"))
    assert sum(len(batch["input_ids"]) for batch in batches) == 21
    strict = text_files(tmp_path, streaming=streaming, workers=workers, test=0.0, broken=2)
    with pytest.raises(DataError, match=r"3 examples cannot be read, more than `broken: 2` allows: .*x.txt:2\d \(no UTF-8"):
        list(strict.loader("train"))


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^data 'text-files': path: no file answers to '.*\*\.txt'$"):
        text_files(tmp_path).loader("train")
    with pytest.raises(DataError, match=r"no file answers to '.*'; did you mean '.*\*\*/\*\.txt'\?$"):
        text_files(tmp_path, path=str(tmp_path)).loader("train")
    (tmp_path / "empty.txt").write_text("\n\n")
    for streaming in (False, True):
        with pytest.raises(DataError, match=r"test_path: no file answers to 'nowhere.txt'$"):
            text_files(tmp_path, test_path="nowhere.txt", streaming=streaming).split("train")
    with pytest.raises(DataError, match=r"^data 'text-files': its train part is empty$"):
        text_files(tmp_path).loader("train")
    with pytest.raises(DataError, match=r"^data 'text-files': its train part is empty$"):
        list(text_files(tmp_path, streaming=True).loader("train"))


MODEL: dict[str, Any] = {
    "type": "transformer",
    "embedding": {"type": "tokens", "vocabulary": 260, "position": {"type": "learned", "length": 64}},
    "stack": {"width": 16, "depth": 1, "block": {"norm": "layer-norm", "attention": {"heads": 2}, "feedforward": "mlp"}},
    "head": {"type": "classifier", "classes": 2, "pool": "mean"},
}


def test_a_model_of_texts_reads_the_batches() -> None:
    model = zoo.build(MODEL).eval()
    data = Pydoc(Pydoc.Config(batch_size=4, length=64))
    batch = next(iter(data.loader("train")))
    logits = model(**batch).logits
    assert logits.shape == (4, 2)
    for index, length in enumerate(batch["attention_mask"].sum(1).tolist()):  # what fills a text up plays no role
        alone = model(batch["input_ids"][index : index + 1, :length]).logits
        assert torch.allclose(alone, logits[index : index + 1], atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data.length": 65}, r"^data\.length: the model has positions for 64 tokens, and texts are cut at 65$"),
        ({"model.embedding.vocabulary": 256}, r"^model\.embedding\.vocabulary: data 'pydoc' have 260 token ids, not 256$"),
        (
            {"model.embedding.count": "unpadded", "model.embedding.padding": 1},
            r"data\.length: .* for 62 tokens.*\n  model\.embedding\.padding: data 'pydoc' are filled up with 256, not 1$",
        ),
    ],
)
def test_texts_must_fit_the_model(change: dict[str, Any], message: str) -> None:
    run = {"model": MODEL, "data": {"type": "pydoc", "length": 64}, "task": "classification"}
    assert resolve_run(run).data.length == 64
    with pytest.raises(ConfigError, match=message):
        resolve_run(run, change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": "pydoc"}, r"model\.embedding: data 'pydoc' are texts, which need an embedding of type 'tokens'"),
        ({"data": {"type": "pydoc", "length": 2}}, r"data\.length: expected greater than or equal to 3, got 2"),
        ({"data": {"type": "text-files"}}, r"data\.path: this field is needed"),
        (
            {"data": {"type": "text-files", "path": "x", "unit": "word"}},
            r"data\.unit: expected 'line' or 'paragraph', got 'word'",
        ),
        ({"data": {"type": "text-files", "path": "x", "streming": True}}, r"data\.streming: .*; did you mean 'streaming'\?"),
    ],
)
def test_errors_of_a_run_name_the_place(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve_run("vit-tiny-digits", change)
