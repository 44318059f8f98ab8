"""Images with captions: folders, tables, tar files and data sets on disk; what is broken, and the same order everywhere."""

from __future__ import annotations

import io
import json
import os
import pickle
import tarfile
import warnings
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import datasets
import numpy
import pytest
import torch
from PIL import Image

import zoo
from zoo.data.hub import Hub
from zoo.data.image_text_folder import ImageTextFolder
from zoo.data.tokenizer import ByteTokenizer
from zoo.data.webdataset import WebDataset
from zoo.errors import ConfigError, DataError
from zoo.training.run import resolve_run

PARTS: Any = ("train", "validation", "test")
NUMBER = 40
COMMON = {"image_size": 4, "channels": 1, "batch_size": 4, "length": 30}


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `datasets` prepares goes into a folder of the test's."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)


def picture(number: int) -> bytes:
    """A grey square that says which number it is of."""
    file = io.BytesIO()
    Image.new("L", (4, 4), number).save(file, "PNG")
    return file.getvalue()


def write_folder(home: Path, numbers: Any = range(NUMBER), captions: int = 1) -> Path:
    home.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        (home / f"{number:03}.png").write_bytes(picture(number))
        said = "\n".join(f"{number} in words {each}" for each in range(captions))
        (home / f"{number:03}.txt").write_text(said + "\n\n")
    return home


def write_shard(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def pair(number: int, text: str | None = None, ending: str = "txt") -> dict[str, bytes]:
    said = (f"{number} in words 0" if text is None else text).encode()
    return {f"{number:03}.png": picture(number), f"{number:03}.{ending}": said}


def write_shards(home: Path) -> Path:
    """Four tar files of ten pairs."""
    for shard in range(4):
        numbers = range(10 * shard, 10 * shard + 10)
        files = dict(chain.from_iterable(pair(number).items() for number in numbers))
        write_shard(home / f"part-{shard:02}.tar", files)
    return home


def write_parquet(home: Path, listed: bool = False) -> Path:
    columns = {
        "image": [{"bytes": picture(number), "path": None} for number in range(NUMBER)],
        "said": [[f"{number} in words {each}" for each in range(3)] if listed else f"{number} in words 0"
                 for number in range(NUMBER)],
    }  # fmt: skip
    text: Any = datasets.Value("string")
    features = datasets.Features(image=datasets.Image(), said=[text] if listed else text)
    path = home / "all.parquet"
    datasets.Dataset.from_dict(columns, features=features).to_parquet(str(path))
    return path


def folder(path: Path, **fields: Any) -> ImageTextFolder:
    return ImageTextFolder(ImageTextFolder.Config(**{"path": str(path), **COMMON, **fields}))


def shards(path: Path | str, **fields: Any) -> WebDataset:
    pattern = str(path / "*.tar") if isinstance(path, Path) and path.is_dir() else str(path)
    return WebDataset(WebDataset.Config(**{"path": pattern, **COMMON, **fields}))


def hub(path: Path, **fields: Any) -> Hub:
    return Hub(Hub.Config(**{"path": str(path), "image_column": "image", "text_column": "said", **COMMON, **fields}))


MAKERS: dict[str, Callable[..., Any]] = {
    "folder": lambda home, **fields: folder(write_folder(home / "a"), **fields),
    "shards": lambda home, **fields: shards(write_shards(home), **fields),
    "shards, streaming": lambda home, **fields: shards(write_shards(home), streaming=True, buffer=25, **fields),
    "hub": lambda home, **fields: hub(write_parquet(home), **fields),
    "hub, streaming": lambda home, **fields: hub(write_parquet(home), streaming=True, buffer=25, **fields),
}
EVERY = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())


def numbers_of(batch: Any) -> list[int]:
    """Which pictures these are; each with a caption of its own."""
    seen = ((batch["pixel_values"][:, 0, 0, 0] + 1) * 127.5).round().int().tolist()
    texts = [ByteTokenizer().decode(row.tolist()) for row in batch["input_ids"]]
    assert [int(text.split()[0]) for text in texts] == seen
    return seen


def epoch(loader: Any) -> list[list[int]]:
    return [numbers_of(batch) for batch in loader]


def flat(batches: list[list[int]]) -> list[int]:
    return list(chain.from_iterable(batches))


@EVERY
def test_pairs_stay_pairs_and_parts_are_always_the_same(make: Callable[..., Any], tmp_path: Path) -> None:
    data = make(tmp_path, validation=0.2)
    parts = {name: flat(epoch(data.loader(name, seed=3))) for name in PARTS}
    assert sorted(flat(list(parts.values()))) == list(range(NUMBER))
    assert 3 <= len(parts["test"]) <= 16 and 2 <= len(parts["validation"]) <= 14
    assert parts["test"] == sorted(parts["test"]) and parts["train"] != sorted(parts["train"])
    batch = next(iter(data.loader("train")))
    assert batch["pixel_values"].shape == (4, 1, 4, 4) and batch["input_ids"].dtype == torch.int64
    assert batch["input_ids"].shape == batch["attention_mask"].shape
    assert torch.equal(batch["attention_mask"], (batch["input_ids"] != ByteTokenizer.padding).long())
    again = make(tmp_path, validation=0.2, batch_size=7)
    assert flat(epoch(again.loader("test"))) == parts["test"]
    assert sorted(data.texts("test")) == sorted(f"{number} in words 0" for number in parts["test"])


@EVERY
@pytest.mark.parametrize("workers", [0, 2])
def test_the_order_goes_on_where_it_was_left(make: Callable[..., Any], workers: int, tmp_path: Path) -> None:
    data = make(tmp_path, workers=workers, test=0.0)
    whole = data.loader("train", seed=5)
    epochs = [epoch(whole) for _ in range(2)]
    assert sorted(flat(epochs[0])) == list(range(NUMBER)) and epochs[0] != epochs[1]
    rest = data.loader("train", seed=5, skip=6)
    assert epoch(rest) == epochs[0][6:] and epoch(rest) == epochs[1]
    assert epoch(data.loader("train", seed=6)) != epochs[0]


@EVERY
def test_two_processes_share_what_one_would_see(make: Callable[..., Any], tmp_path: Path) -> None:
    one = epoch(make(tmp_path, batch_size=8, test=0.0).loader("train", seed=1))
    halves = [epoch(make(tmp_path, test=0.0).loader("train", seed=1, shard=(rank, 2))) for rank in (0, 1)]
    assert [sorted(first + second) for first, second in zip(*halves, strict=True)] == [sorted(batch) for batch in one]


@EVERY
def test_workers_can_be_started_anew(make: Callable[..., Any], tmp_path: Path) -> None:
    """Where processes are spawned instead of forked."""
    loader = make(tmp_path).loader("train", seed=1)
    (first, *_), drawn = loader, list(loader.sampler)[:4]
    assert pickle.loads(pickle.dumps(loader.dataset)).__getitems__(drawn).batch.keys() == first.keys()


@pytest.mark.parametrize("kind", ["beside", "csv", "tsv", "jsonl", "jsonl with lists", "json in tar", "hub"])
def test_one_of_several_captions_is_drawn(kind: str, tmp_path: Path) -> None:
    home = write_folder(tmp_path / "a", captions=3)
    names = {n: [f"{n} in words {each}" for each in range(3)] for n in range(NUMBER)}
    rows: list[dict[str, Any]] = [{"name": f"{n:03}.png", "caption": text} for n, texts in names.items() for text in texts]
    if kind in ("csv", "tsv"):
        mark = {"csv": ",", "tsv": "\t"}[kind]
        lines = [mark.join(("name", "caption", "more")), *(mark.join((*row.values(), "x")) for row in rows)]
        (home / f"captions.{kind}").write_text("\ufeff" + "\n".join(lines))
    elif kind.startswith("jsonl"):
        if "lists" in kind:
            rows = [{"name": f"{n:03}.png", "caption": texts} for n, texts in names.items()]
        (home / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    if kind != "beside":
        for path in home.glob("*.txt"):
            path.unlink()
    if kind == "json in tar":
        said = {n: json.dumps({"caption": texts}) for n, texts in names.items()}
        files = dict(chain.from_iterable(pair(n, said[n], "json").items() for n in range(NUMBER)))
        data: Any = shards(write_shard(tmp_path / "one.tar", files), caption="json", test=0.0)
    else:
        data = hub(write_parquet(tmp_path, listed=True), test=0.0) if kind == "hub" else folder(home, test=0.0)

    def which(loader: Any) -> dict[int, int]:
        found = {}
        for batch in loader:
            for number, ids in zip(numbers_of(batch), batch["input_ids"]):
                found[number] = int(ByteTokenizer().decode(ids.tolist()).split()[-1])
        return found

    loader = data.loader("train", seed=2)
    first, second = which(loader), which(loader)
    assert set(first) == set(range(NUMBER)) and set(first.values()) == {0, 1, 2} and first != second
    assert which(data.loader("train", seed=2)) == first
    assert len(data.split("train")) == NUMBER
    assert set(data.texts("train")) == set(chain.from_iterable(names.values()))
    kept = (
        folder(home, test=0.9)
        if kind not in ("json in tar", "hub")
        else type(data)(data.config.model_copy(update={"test": 0.9}))
    )
    assert set(which(kept.loader("test")).values()) == {0}  # where a model is measured it is always the first


def test_folders_of_parts_with_tables_of_their_own(tmp_path: Path) -> None:
    for start, part in ((0, "train"), (10, "validation"), (20, "test")):
        write_folder(tmp_path / part / "deeper", range(start, start + 10))
    (tmp_path / "test" / "list.csv").write_text("file,text\ndeeper/021.png,21 it is\n")
    data = folder(tmp_path)
    assert {name: flat(epoch(data.loader(name))) for name in ("validation", "test")} == {
        "validation": list(range(10, 20)), "test": list(range(20, 30))}  # fmt: skip
    with pytest.raises(DataError, match=r"table: there is no file .*train/list\.csv"):
        folder(tmp_path, table="list.csv").split("train")
    for part in ("train", "validation"):
        (tmp_path / part / "list.csv").write_text("file,text\n" + f"deeper/0{'0' if part == 'train' else '1'}1.png,it is\n")
    named = folder(tmp_path, table="list.csv", name_column="file", caption_column="text")
    assert [len(named.split(name)) for name in PARTS] == [1, 1, 1]
    with pytest.raises(DataError, match=r"holds the test part, so that `test: 0.1` has no meaning"):
        folder(tmp_path, test=0.1).split("train")


@pytest.mark.filterwarnings("ignore:data")
@pytest.mark.parametrize("workers", [0, 2])
def test_what_is_broken_in_a_folder_is_named_and_left_out(tmp_path: Path, workers: int) -> None:
    home = write_folder(tmp_path / "a", range(12))
    (home / "001.png").write_bytes(b"no picture")
    (home / "002.txt").unlink()
    (home / "003.txt").write_text(" \n\n")
    (home / "004.txt").write_bytes(b"\xff\xfe\xfa")
    data = folder(home, test=0.0, workers=workers)
    with pytest.warns(UserWarning, match=r"002\.png cannot be read and is left out: there is no caption 002\.txt beside it"):
        assert sorted(flat(epoch(data.loader("train")))) == [0, *range(5, 12)]
    reasons = {Path(name).name: reason for name, reason in data.tally.reasons.items()}
    assert set(reasons) == {"001.png", "002.png", "003.png", "004.png"}
    assert reasons["003.png"] == "there is no caption" and "no text in UTF-8" in reasons["004.png"]
    with pytest.raises(DataError, match=r"4 examples cannot be read, more than `broken: 3` allows"):
        epoch(folder(home, test=0.0, workers=workers, broken=3).loader("train"))
    outside = [{"name": name, "caption": "no"} for name in ("../secret.png", str(home / "000.png"))]
    table = [{"name": "000.png", "caption": "0 is it"}, {"name": "gone.png", "caption": "no"}]
    table += [{"name": "001.png", "caption": 7}, {"caption": "of what?"}, *outside, {"name": "005.png"}]  # type: ignore
    (home / "captions.jsonl").write_text("\n".join(map(json.dumps, table)) + "\n{torn\n")
    told = folder(home, test=0.0, workers=workers)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert set(flat(epoch(told.loader("train")))) == {0}
    reasons = {name.rpartition("/")[2]: reason for name, reason in told.tally.reasons.items()}
    assert {name: reason.partition(":")[0] for name, reason in reasons.items()} == {
        "gone.png": "No such file or directory",
        "captions.jsonl:3": "the 'caption' of '001.png' is no text",
        "captions.jsonl:4": "no 'name' says which picture",
        "captions.jsonl:5": "'../secret.png' leads out of the folder",
        "captions.jsonl:6": f"'{home}/000.png' leads out of the folder",
        "captions.jsonl:7": "there is no caption",
        "captions.jsonl:8": "the line is no JSON object",
    }


def test_folders_without_what_is_needed(tmp_path: Path) -> None:
    def complain(message: str, path: Path = tmp_path, **fields: Any) -> None:
        with pytest.raises(DataError, match=message) as caught:
            folder(path, **fields).loader("train")
        assert "\n" not in str(caught.value)

    complain("path: .*nowhere is no folder", tmp_path / "nowhere")
    complain("holds no pictures$")
    (tmp_path / "one.png").write_bytes(picture(1))
    complain(r"pictures without captions; expected a text file beside each, such as one\.txt, or a table one of captions\.csv")
    complain(r"table: 'one\.png' is no table; expected a \.csv", table="one.png")
    (tmp_path / "captions.csv").write_text("name,captoin\none.png,hello\n")
    complain(r"caption_column: .*captions\.csv has no column 'caption'; did you mean 'captoin'\?")
    complain(r"table: there is no file .*caption\.csv; did you mean 'captions\.csv'\?", table="caption.csv")
    (tmp_path / "captions.csv").write_text("name,caption\n")
    complain(r"captions\.csv names no pictures")
    (tmp_path / "captions.csv").write_bytes(b"name,caption\none.png,\xff\xff\n")
    complain(r"captions\.csv cannot be read: invalid start byte")
    (tmp_path / "test").mkdir()
    complain("has a folder 'test' but none called 'train'")


@pytest.mark.filterwarnings("ignore:data")
@pytest.mark.parametrize("streaming", [False, True])
def test_what_is_broken_in_a_shard_is_named_and_left_out(tmp_path: Path, streaming: bool) -> None:
    files = {"notes.md": b"about this", **pair(0), "001.png": picture(1), "002.txt": b"2 alone", "003.png": b"torn",
             "003.txt": b"3 it is", **pair(4, " \n"), "005.png": picture(5), "005.txt": b"\xff", **pair(6)}  # fmt: skip
    path = write_shard(tmp_path / "a.tar", files)
    data = shards(path, test=0.0, streaming=streaming)
    assert set(flat(epoch(data.loader("train")))) == {0, 6}
    reasons = {name.rpartition(":")[2]: reason for name, reason in data.tally.reasons.items()}
    assert set(reasons) == {"001", "002", "003", "004", "005"} and reasons["002"] == "there is no picture with its name"
    assert reasons["001"] == "there is no caption: no file with its name ends in .txt"
    assert "its .txt cannot be read" in reasons["005"] and reasons["004"] == "there is no caption"
    json_files = {**pair(0, '{"caption": "0 it is"}', "json"), **pair(1, "{torn", "json"), **pair(2, "[]", "json")}
    told = shards(write_shard(tmp_path / "b.tar", json_files), caption="json", test=0.0, streaming=streaming)
    assert flat(epoch(told.loader("train"))) == [0] and len(told.tally.reasons) == 2
    # a shard that is cut off between the time when its headers were read and now
    loader = shards(write_shard(tmp_path / "c.tar", {**pair(0), **pair(1)}), test=0.0).loader("train")
    content = (tmp_path / "c.tar").read_bytes()
    (tmp_path / "c.tar").write_bytes(content[:2100])
    assert flat(epoch(loader)) in ([0], [0, 0])


def test_shards_that_are_none(tmp_path: Path) -> None:
    def complain(message: str, path: Any, **fields: Any) -> None:
        for streaming in (False, True):
            with pytest.raises(DataError, match=message) as caught:
                list(shards(path, streaming=streaming, **fields).loader("train"))
            assert "\n" not in str(caught.value)

    complain(r"path: no file answers to '.*\*\.tar'$", tmp_path)
    complain(r"path: no file answers to '.*'; did you mean '.*/\*\*/\*\.tar'\?$", str(tmp_path))
    write_shards(tmp_path)
    complain(r"no file answers to '.*part-04\.tar'$", str(tmp_path / "part-{00..05}.tar"))
    complain(r"part-00\.tar: holds neither pictures nor files that end in \.caption|there is no caption",
             tmp_path, caption="caption", broken=0, test=0.0)  # fmt: skip
    (tmp_path / "part-04.tar").write_bytes(b"nothing of that kind" * 100)
    complain(r"part-04\.tar cannot be read: it is no whole tar file", tmp_path)
    with tarfile.open(tmp_path / "part-04.tar", "w:gz") as archive:
        archive.add(tmp_path / "part-00.tar", "001.png")
    complain(r"part-04\.tar cannot be read: it is compressed; expected a plain \.tar file", tmp_path)
    write_shard(tmp_path / "part-04.tar", {"readme.md": b"no pairs"})
    complain(r"part-04\.tar: holds neither pictures nor files that end in \.txt", tmp_path)


def test_names_of_shards_are_expanded_as_a_shell_does(tmp_path: Path) -> None:
    write_shards(tmp_path)
    data = shards(str(tmp_path / "part-{00..02}.tar"), test_path=str(tmp_path / "part-{03,00}.tar"))
    assert [Path(file).name for file in data.files("train")] == ["part-00.tar", "part-01.tar", "part-02.tar"]
    assert sorted(flat(epoch(data.loader("train")))) == list(range(30))
    assert flat(epoch(data.loader("test"))) == [*range(30, 40), *range(10)] and not data.has("validation")
    with pytest.raises(DataError, match="more than 1000000 files"):
        shards(str(tmp_path / "part-{0..99999999}.tar")).files("train")


class Trap:
    """What runs a command when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kind", ["webdataset", "hub"])
def test_no_shard_can_make_us_unpickle_anything(tmp_path: Path, streaming: bool, kind: str) -> None:
    sprung = tmp_path / "sprung"
    poison = pickle.dumps(Trap(sprung))
    pickle.loads(poison)
    assert sprung.is_dir()  # it would work
    sprung.rmdir()
    array = io.BytesIO()
    numpy.save(array, numpy.array([Trap(sprung)], dtype=object), allow_pickle=True)
    weights = io.BytesIO()
    torch.save({"a": Trap(sprung)}, weights)
    harmless = ("pyd", "pickle", "pkl", "pth.bin")
    files: dict[str, bytes] = {}
    for number in range(6):
        files |= pair(number)
        files |= {f"{number:03}.{ending}": poison for ending in harmless}
    home = tmp_path / "home"
    home.mkdir()
    path = write_shard(home / "train.tar", files)
    options = {"streaming": streaming, "test": 0.0}
    if kind == "webdataset":
        assert sorted(flat(epoch(shards(path, **options).loader("train")))) == list(range(6))
        for ending in ("pickle", "pyd", "pth", "npy"):  # taken for captions by a config, they are no text
            said = {"pth": weights.getvalue(), "npy": array.getvalue()}.get(ending, b"\xff" + poison)
            bad = write_shard(tmp_path / f"{ending}.tar", {"0.png": picture(0), f"0.{ending}": said})
            with pytest.raises(DataError, match="cannot be read"):
                list(shards(bad, caption=ending, broken=0, **options).loader("train"))
    else:
        data = hub(home, image_column="png", text_column="txt", **options)
        assert sorted(flat(epoch(data.loader("train")))) == list(range(6))
        for ending, content in (("pth", weights.getvalue()), ("npy", array.getvalue()), ("npz", array.getvalue())):
            bad_home = tmp_path / ending
            bad_home.mkdir()
            write_shard(bad_home / "train.tar", {**pair(0), f"000.{ending}": content})
            with pytest.raises(DataError, match="cannot be loaded"):
                list(hub(bad_home, image_column="png", text_column="txt", **options).loader("train"))
    assert not sprung.exists()


@pytest.mark.filterwarnings("ignore:data")
def test_data_sets_that_were_saved(tmp_path: Path) -> None:
    rows = datasets.load_dataset("parquet", data_files=str(write_parquet(tmp_path)))["train"]
    rows.train_test_split(test_size=10, seed=0).save_to_disk(str(tmp_path / "saved"))
    data = hub(tmp_path / "saved")
    assert len(data.split("test")) == 10 and len(data.split("train")) == 30  # type: ignore[arg-type]
    assert len(flat(epoch(data.loader("test")))) == 10
    torn = {"image": [{"bytes": b"torn", "path": None}, *({"bytes": picture(n), "path": None} for n in (1, 2, 3))],
            "said": ["0 it is", None, "  ", "3 it is"]}  # fmt: skip
    features = datasets.Features(image=datasets.Image(), said=datasets.Value("string"))
    datasets.Dataset.from_dict(torn, features=features).save_to_disk(str(tmp_path / "torn"))
    broken = hub(tmp_path / "torn", test=0.0)
    assert set(flat(epoch(broken.loader("train")))) == {3}
    assert sorted(broken.tally.reasons.values())[:2] == ["cannot identify image file", "there is no caption"] or len(
        broken.tally.reasons) == 3  # fmt: skip
    with pytest.raises(DataError, match=r"text_column: .* has no column 'siad'; did you mean 'said'\?"):
        hub(tmp_path / "saved", text_column="siad").loader("train")
    with pytest.raises(
        DataError, match=r"text_column: 'image' holds Image, not texts|text_column: 'image' holds .*, not texts"
    ):
        hub(tmp_path / "saved", text_column="image").loader("train")


RUN: dict[str, Any] = {
    "type": "train",
    "model": {
        "extends": "clip-vit-b32",
        "vision": {"embedding": {"image_size": 4, "patch_size": 2, "channels": 1},
                   "stack": {"width": 16, "depth": 1, "block": {"attention": {"heads": 2}, "feedforward": {"hidden": 24}}},
                   "head": {"size": 8}},
        "text": {"embedding": {"vocabulary": 260, "position": {"length": 30}},
                 "stack": {"width": 16, "depth": 1, "block": {"attention": {"heads": 2}, "feedforward": {"hidden": 24}}},
                 "head": {"size": 8, "pool": {"type": "end-of-text", "id": 258}}},
    },
    "data": {"type": "image-text-folder", "path": "somewhere", **COMMON},
    "task": "contrastive",
    "trainer": {"max_epochs": 2, "accelerator": "cpu"},
}  # fmt: skip


@pytest.mark.parametrize("kind", ["image-text-folder", "webdataset", "hub"])
def test_a_dual_encoder_trains_and_is_used(kind: str, tmp_path: Path) -> None:
    from zoo.training.zero_shot import search

    home = write_folder(tmp_path / "a")
    data: dict[str, Any] = {"type": kind, "path": str(home), **COMMON}
    trainer = dict(RUN["trainer"])
    if kind == "webdataset":
        write_shards(tmp_path)
        data |= {"path": str(tmp_path / "part-*.tar"), "streaming": True}
        trainer = {"max_steps": 8, "accelerator": "cpu"}
    elif kind == "hub":
        data |= {"path": str(write_parquet(tmp_path)), "image_column": "image", "text_column": "said"}
    run = {**RUN, "data": data, "trainer": trainer, "folder": str(tmp_path / "run")}
    result = zoo.train(run, progress=False)
    assert 0 <= result.metrics["test_recall"] <= 1 and result.metrics["test_loss"] > 0
    assert len(search(result.folder, [home], "7 in words 0", top=3)) == 3


@pytest.mark.parametrize("kind", ["image-text-folder", "webdataset", "hub"])
@pytest.mark.parametrize(("change", "message"), [
    ({"model": "vit-tiny"}, r"model\.type: data '.*' are images with captions, which need a model of type 'dual-encoder'"),
    ({"data.image_size": 8}, r"^data\.image_size: the model takes images of \(4, 4\), and these are \(8, 8\)$"),
    ({"data.channels": 3}, r"^data\.channels: the model takes images of 1 channels, and these have 3$"),
    ({"data.length": 31}, r"^data\.length: the model has positions for 30 tokens, and texts are cut at 31$"),
    ({"model.text.embedding.vocabulary": 259}, r"^model\.text\.embedding\.vocabulary: data '.*' have 260 token ids, not 259$"),
    ({"model.text.head.pool.id": 7}, r"^model\.text\.head\.pool\.id: texts of data '.*' end with token 258, and the model"),
    ({"data.pack": True}, r"^data\.pack: each image has a row of its own"),
    ({"data.augmentation.mixup": 0.5}, r"^data\.augmentation: mixup and cutmix mix the labels of classes"),
])  # fmt: skip
def test_what_does_not_fit_is_refused_before_anything_is_read(kind: str, change: dict[str, Any], message: str) -> None:
    more = {"image_column": "a", "text_column": "b"} if kind == "hub" else {}
    with pytest.raises(ConfigError, match=message):
        resolve_run({**RUN, "data": {**RUN["data"], "type": kind, **more}}, change)
