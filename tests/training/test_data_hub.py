"""Data sets that `datasets` reads, from folders and files on disk: nothing is downloaded."""

from __future__ import annotations

import io
import pickle
import warnings
from itertools import chain
from pathlib import Path
from typing import Any

import datasets
import numpy
import pytest
import torch
from PIL import Image

from zoo.data.hub import Hub
from zoo.errors import ConfigError, DataError
from zoo.training.run import resolve_run

PARTS: Any = ("train", "validation", "test")


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `datasets` prepares goes into a folder of the test's."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)


def picture(seed: int, form: str = "PNG") -> bytes:
    noise = numpy.random.default_rng(seed).integers(0, 256, (10, 12, 3), dtype=numpy.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, form)
    return file.getvalue()


def rows_of(numbers: range, classes: tuple[str, ...] = ("cat", "dog", "emu"), broken: tuple[int, ...] = ()) -> Any:
    """Pictures, captions and classes; `code` is the class as a plain number."""
    columns = {
        "img": [{"bytes": b"torn" if number in broken else picture(number), "path": None} for number in numbers],
        "caption": [f"picture number {number}" for number in numbers],
        "kind": [number % len(classes) for number in numbers],
        "code": [number % len(classes) for number in numbers],
    }
    features = datasets.Features(
        img=datasets.Image(),
        caption=datasets.Value("string"),
        kind=datasets.ClassLabel(names=list(classes)),
        code=datasets.Value("int32"),
    )
    return datasets.Dataset.from_dict(columns, features=features)


@pytest.fixture(scope="module")
def splits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of parquet with three splits, as on the Hub."""
    home = tmp_path_factory.mktemp("parquet")
    for name, numbers in (("train", range(40)), ("validation", range(40, 50)), ("test", range(50, 62))):
        rows_of(numbers).to_parquet(str(home / f"{name}-00000-of-00001.parquet"))
    return home


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A single file of 120 examples, in groups of ten rows."""
    path = tmp_path_factory.mktemp("single") / "all.parquet"
    rows_of(range(120)).to_parquet(str(path), batch_size=10)
    return path


def hub(path: Path | str, **fields: Any) -> Hub:
    columns = {} if "text_column" in fields else {"image_column": "img", "image_size": 8}
    return Hub(Hub.Config(**{"path": str(path), **columns, "label_column": "kind", "batch_size": 8, **fields}))


def labels(data: Hub, name: Any) -> list[int]:
    return [int(example["labels"]) for example in data.split(name)]  # type: ignore[attr-defined]


def contents(data: Hub, name: Any) -> list[Any]:
    return [tuple(example.get("pixel_values", example.get("input_ids")).flatten().tolist()) for example in data.split(name)]


@pytest.mark.parametrize("streaming", [False, True])
def test_splits_are_parts(splits: Path, streaming: bool) -> None:
    data = hub(splits, streaming=streaming)
    assert data.class_names == ["cat", "dog", "emu"] and data.classes == 3
    assert {name: labels(data, name) for name in PARTS} == {
        "train": [number % 3 for number in range(40)],
        "validation": [number % 3 for number in range(40, 50)],
        "test": [number % 3 for number in range(50, 62)],
    }
    assert all(data.has(name) for name in PARTS)
    for name in PARTS:
        batch = next(iter(data.loader(name)))
        assert batch["pixel_values"].shape[1:] == (3, 8, 8) and batch["labels"].dtype == torch.int64
        data.check(name, 3)
    other = hub(splits, streaming=streaming, test_split="validation", train_split="train")
    assert labels(other, "test") == labels(data, "validation") and not other.has("validation")


@pytest.mark.parametrize("fields", [{}, {"text_column": "caption", "image_column": None}])
def test_shares_follow_from_the_examples_streaming_or_not(single: Path, fields: dict[str, Any]) -> None:
    stored, streamed = (hub(single, streaming=streaming, validation=0.2, **fields) for streaming in (False, True))
    parts = {name: contents(stored, name) for name in PARTS}
    assert {name: contents(streamed, name) for name in PARTS} == parts
    assert sum(map(len, parts.values())) == 120 == len(set(chain.from_iterable(parts.values())))
    assert 10 < len(parts["test"]) < 40 and 8 < len(parts["validation"]) < 35
    epoch = [row for batch in streamed.loader("train", seed=1) for row in batch["labels"].tolist()]
    assert sorted(epoch) == sorted(labels(stored, "train")) and epoch != labels(stored, "train")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_follows_from_seed_and_epoch(single: Path, workers: int) -> None:
    def epochs(workers: int, skip: int = 0) -> list[list[Any]]:
        strong = {"crop_scale": [0.3, 1.0], "randaugment": "rand-m9-n3"}
        data = hub(single, streaming=True, buffer=30, test=0.0, workers=workers, augmentation=strong)
        loader = data.loader("train", seed=2, skip=skip)
        return [[tuple(row.flatten().tolist()) for batch in loader for row in batch["pixel_values"]] for _ in range(2)]

    alone = epochs(0)
    assert epochs(workers) == alone
    assert len(set(alone[0])) == 120 and len(set(alone[0]) & set(alone[1])) < 30
    assert epochs(workers, skip=10)[0] == alone[0][80:]


@pytest.mark.parametrize("fields", [{}, {"text_column": "caption", "image_column": None}])
def test_workers_can_be_started_anew(single: Path, fields: dict[str, Any]) -> None:
    for streaming in (False, True):
        loader = hub(single, streaming=streaming, **fields).loader("train", seed=1)
        (first, *_), rows = loader, list(loader.sampler)[:8]
        again = pickle.loads(pickle.dumps(loader.dataset))  # as where processes are spawned instead of forked
        assert again.__getitems__(rows).batch.keys() == first.keys()


def test_two_processes_share_a_stream(single: Path) -> None:
    one = hub(single, streaming=True, test=0.0, text_column="caption").loader("train")
    two = [
        hub(single, streaming=True, test=0.0, text_column="caption", batch_size=4).loader("train", shard=(rank, 2))
        for rank in (0, 1)
    ]
    for whole, *shares in zip(one, *two, strict=True):
        together = torch.stack([share["labels"] for share in shares], dim=1).flatten()
        assert torch.equal(together, whole["labels"])


def test_files_and_folders_of_other_formats(tmp_path: Path) -> None:
    rows = rows_of(range(12)).remove_columns("img")
    rows.to_json(str(tmp_path / "a.jsonl"))
    rows.to_csv(str(tmp_path / "b.csv"))
    rows.to_csv(str(tmp_path / "c.tsv"), sep="\t")
    rows.save_to_disk(str(tmp_path / "d"))
    datasets.DatasetDict({"train": rows, "test": rows.select(range(4))}).save_to_disk(str(tmp_path / "e"))
    for name in ("a.jsonl", "b.csv", "c.tsv", "d", "e"):
        for streaming in (False, True):
            data = hub(tmp_path / name, text_column="caption", test=None if name == "e" else 0.0, streaming=streaming)
            batches = list(data.loader("train"))
            assert sorted(torch.cat([batch["labels"] for batch in batches]).tolist()) == sorted(rows["kind"])
            assert data.tokenizer.decode(batches[0]["input_ids"][0].tolist()).startswith("picture number ")
            assert data.class_names == (["cat", "dog", "emu"] if name in "de" else None)
            assert data.has("test") is (name == "e")


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
def test_broken_pictures(tmp_path: Path, streaming: bool, workers: int) -> None:
    rows_of(range(20), broken=(3, 11)).to_parquet(str(tmp_path / "x.parquet"))
    data = hub(tmp_path / "x.parquet", streaming=streaming, workers=workers, test=0.0)
    with pytest.warns(
        UserWarning, match=r"data 'hub': row \d+ of the train part cannot be read and is left out: cannot identify image"
    ):
        assert sum(len(batch["labels"]) for batch in data.loader("train")) == 18
    with (
        pytest.raises(
            DataError, match=r"2 examples cannot be read, more than `broken: 1` allows: row \d+ of the train part \("
        ),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        list(hub(tmp_path / "x.parquet", streaming=streaming, workers=workers, test=0.0, broken=1).loader("train"))


def test_missing_values(tmp_path: Path) -> None:
    rows = rows_of(range(6))
    features = rows.features
    holes = datasets.Dataset.from_dict({**rows.to_dict(), "caption": ["a", None, "b", "c", None, "d"]}, features=features)
    holes.to_parquet(str(tmp_path / "x.parquet"))
    with pytest.warns(
        UserWarning, match=r"row [14] of the train part cannot be read and is left out: column 'caption' holds no text"
    ):
        (batch,) = hub(tmp_path / "x.parquet", text_column="caption", test=0.0).loader("train")
    assert len(batch["labels"]) == 4


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
def test_labels_out_of_range(splits: Path, streaming: bool, workers: int) -> None:
    data = hub(splits, label_column="code", classes=2, streaming=streaming, workers=workers)
    with pytest.raises(DataError, match=r"^data 'hub': label 2 of an example is not one of the classes, 0 to 1$"):
        list(data.loader("train"))
    assert len(list(hub(splits, label_column="code", classes=3).loader("train"))) == 5
    with pytest.raises(DataError, match=r"classes: 2 are expected, but column 'kind' names 3$"):
        hub(splits, classes=2).split("train")
    with pytest.raises(DataError, match=r"its 3 classes \(cat, dog, emu\) do not fit the head's 10$"):
        hub(splits).check("train", 10)
    with pytest.raises(DataError, match="mixup and cutmix need to know how many classes there are"):
        mixing = hub(splits, label_column="code", augmentation={"mixup": 1.0})
        mixing.augment(next(iter(mixing.loader("train"))))
    mixing = hub(splits, augmentation={"mixup": 1.0})
    assert mixing.augment(next(iter(mixing.loader("train"))))["labels"].shape == (8, 3)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image_column": "image"}, r"image_column: .* has no column 'image'; did you mean 'img'\?$"),
        ({"label_column": "labels"}, r"label_column: .* has no column 'labels'; expected one of img, caption, kind, code$"),
        ({"label_column": "caption"}, r"label_column: 'caption' holds string, not classes as whole numbers$"),
        ({"image_column": "code"}, r"image_column: 'code' holds int32, not images$"),
        ({"text_column": "kind"}, r"text_column: 'kind' holds int64, not texts$"),
        ({"train_split": "trian"}, r"train_split: .* has no split 'trian'; did you mean 'train'\?$"),
        ({"test_split": "held-out"}, r"test_split: .* has no split 'held-out'; expected one of train, validation, test$"),
        ({"test_split": "test", "test": 0.1}, r"`test` has no meaning beside `test_split`; leave one of them out$"),
        ({"revision": "main"}, r"revision: .* is a folder or file, which has no versions$"),
    ],
)
def test_what_a_set_does_not_have(splits: Path, fields: dict[str, Any], message: str, streaming: bool) -> None:
    with pytest.raises(DataError, match=r"^data 'hub': " + message) as caught:
        data = hub(splits, streaming=streaming, **fields)
        data.check("train")
        next(iter(data.loader("train")))
    assert "\n" not in str(caught.value)


def test_sets_that_cannot_be_loaded(tmp_path: Path) -> None:
    def complain(path: Path | str, message: str, **fields: Any) -> None:
        with pytest.raises(DataError, match=r"^data 'hub': " + message) as caught:
            hub(path, **fields).split("train")
        assert "\n" not in str(caught.value)

    complain("somebody/no-such-set", "somebody/no-such-set cannot be loaded: ")
    complain(tmp_path, ".* cannot be loaded: ")
    code = tmp_path / "scripted"
    code.mkdir()
    (code / "scripted.py").write_text("raise SystemExit('this was run')")
    complain(code, "path: .*scripted brings code of its own, which is never run$")
    complain(code / "scripted.py", "path: .*scripted.py brings code of its own, which is never run$")
    (tmp_path / "x.pkl").write_bytes(b"")
    complain(tmp_path / "x.pkl", r"path: .*x.pkl is no file of a known format; expected one of \.parquet, ")
    (tmp_path / "x.parquet").write_bytes(b"torn")
    complain(tmp_path / "x.parquet", "name: .*x.parquet is a single file, which holds one data set$", name="plain")
    complain(tmp_path / "x.parquet", ".*x.parquet cannot be loaded: ")


RUN: dict[str, Any] = {
    "model": {
        "extends": "vit-tiny",
        "embedding": {"image_size": 8, "patch_size": 4},
        "stack": {"depth": 1},
        "head": {"classes": 3},
    },
    "data": {"type": "hub", "path": "x", "image_column": "img", "image_size": 8, "classes": 3},
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data.text_column": "caption"}, "data 'hub' are images with captions, which need a model of type 'dual-encoder'"),
        ({"data.image_column": None}, "data: expected the name of a column as `image_column`, as `text_column`, or as both$"),
        ({"data.length": 7}, r"data\.length: this has no meaning for data of images; leave it out$"),
        ({"data.classes": 4}, r"model\.head\.classes: data 'hub' has 4 classes, and this is 3$"),
        ({"data.image_size": 16}, r"data\.image_size: the model takes images of \(8, 8\), and these are \(16, 16\)$"),
        (
            {"data": {**RUN["data"], "image_column": None, "text_column": "a"}},
            r"data\.image_size: this has no meaning for data of texts",
        ),
        (
            {"data": {"text_column": "a", "image_column": None, "image_size": 224}},
            r"model\.embedding: data 'hub' are texts, which need",
        ),
    ],
)
def test_errors_of_a_run_name_the_place(change: dict[str, Any], message: str) -> None:
    assert resolve_run(RUN).data.streaming is False
    with pytest.raises(ConfigError, match=message):
        resolve_run(RUN, change)
