"""Distributed checkpoints: put together in one process, and refused where they are damaged or would run code."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint import filesystem, metadata

import zoo
from zoo.checkpoint import sharded
from zoo.errors import WeightsError

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


class Shards:
    """Writes a distributed checkpoint as torch does with several processes, each tensor cut into that many blocks."""

    def __init__(self, folder: Path, processes: int = 2) -> None:
        self.folder, self.processes = folder, processes
        self.files = {f"__{rank}_0.distcp": io.BytesIO() for rank in range(processes)}
        self.index = metadata.Metadata(
            state_dict_metadata={}, storage_data={}, planner_data={},
            storage_meta=metadata.StorageMeta(checkpoint_id=folder, save_id="1"),
        )  # fmt: skip

    def tensor(self, name: str, value: torch.Tensor, dimension: int = 0) -> None:
        blocks = value.detach().chunk(self.processes, dimension) if value.ndim else (value.detach(),)
        chunks, start = [], 0
        for block, file in zip(blocks, self.files):
            offset = torch.Size(start if axis == dimension else 0 for axis in range(value.ndim))
            chunks.append(metadata.ChunkStorageMetadata(offset, block.shape))
            self.index.storage_data[metadata.MetadataIndex(name, offset)] = self._write(file, block.clone())
            start += block.shape[dimension] if value.ndim else 0
        properties = metadata.TensorProperties.create_from_tensor(value)
        self.index.state_dict_metadata[name] = metadata.TensorStorageMetadata(properties, value.shape, chunks)

    def value(self, name: str, value: Any) -> None:
        self.index.state_dict_metadata[name] = metadata.BytesStorageMetadata()
        self.index.storage_data[metadata.MetadataIndex(name)] = self._write("__0_0.distcp", value)

    def finish(self, extras: Any) -> Path:
        self.folder.mkdir(exist_ok=True)
        for name, file in self.files.items():
            (self.folder / name).write_bytes(file.getvalue())
        (self.folder / ".metadata").write_bytes(pickle.dumps(self.index))
        if extras is not None:
            torch.save(extras, self.folder / "meta.pt")
        return self.folder

    def _write(self, file: str, value: Any) -> Any:
        start = self.files[file].tell()
        torch.save(value, self.files[file])
        return filesystem._StorageInfo(file, start, self.files[file].tell() - start)


@pytest.fixture(scope="module")
def model() -> Any:
    small = {"embedding.image_size": 32, "stack": {"width": 16, "depth": 1}, "stack.block.attention.heads": 2}
    return zoo.build("vit-tiny", small)


@pytest.fixture
def write(model: Any, tmp_path: Path) -> Callable[..., Path]:
    """A function that writes the model, changed by `change`, as two processes would."""

    def write(change: Callable[[Shards], None] = lambda shards: None, extras: Any = ...) -> Path:
        shards = Shards(tmp_path / "last.ckpt")
        for number, (name, value) in enumerate(model.named_parameters()):
            shards.tensor(f"state_dict.model.{name}", value, number % value.ndim)
        shards.tensor("state_dict.metrics.count", torch.tensor(3))
        shards.tensor("optimizer_0.state.model.head.output.bias.exp_avg", torch.ones(7))
        shards.value("optimizer_0.param_groups.0.betas", (0.9, 0.999))
        change(shards)
        return shards.finish({"zoo_model": json.dumps(model.config.plain()), "epoch": 1} if extras is ... else extras)

    return write


def refused(folder: Path, message: str) -> None:
    with pytest.raises(WeightsError, match=message) as caught:
        zoo.load(folder)
    assert "\n" not in str(caught.value)


def test_the_whole_model_is_put_together(write: Any, model: Any) -> None:
    loaded = zoo.load(write())
    assert str(loaded.load_report).endswith(f": {len(dict(model.named_parameters()))} loaded")
    for name, value in model.named_parameters():
        assert torch.equal(loaded.get_parameter(name), value), name
    assert not loaded.training


def test_torchs_own_reader_reads_what_the_test_writes(write: Any, model: Any) -> None:
    """So that the folders here are those of torch, and not only what zoo takes for them."""
    from torch.distributed.checkpoint import load

    state = {"state_dict": {f"model.{name}": torch.zeros_like(value) for name, value in model.named_parameters()}}
    load(state, checkpoint_id=write(), no_dist=True)
    assert all(torch.equal(state["state_dict"][f"model.{name}"], value) for name, value in model.named_parameters())


def test_what_torch_writes_in_one_process(model: Any, tmp_path: Path) -> None:
    from torch.distributed.checkpoint import save

    state = {f"model.{name}": value.detach() for name, value in model.named_parameters()}
    save({"state_dict": state, "optimizer_0": {"lr": 0.1}}, checkpoint_id=tmp_path / "own", no_dist=True)
    torch.save({"zoo_model": json.dumps(model.config.plain())}, tmp_path / "own" / "meta.pt")
    loaded = zoo.load(tmp_path / "own")
    assert all(torch.equal(loaded.get_parameter(name), value) for name, value in model.named_parameters())
    sharded.check(tmp_path / "own")


def test_overrides_and_other_types(write: Any) -> None:
    changed = zoo.load(write(), {"head.classes": 3}, dtype="bfloat16")
    assert changed.head.output.weight.shape == (3, 16) and changed.dtype == torch.bfloat16


class Harmful:
    """What unpickles to a call of `os.system`."""

    def __init__(self, folder: Path) -> None:
        self.command = f"touch {folder.parent / 'harm'}"

    def __reduce__(self) -> Any:
        return os.system, (self.command,)


def test_an_index_that_asks_to_run_code(write: Any, tmp_path: Path) -> None:
    def harm(shards: Shards) -> None:
        shards.index.planner_data = Harmful(shards.folder)

    folder = write(harm)
    refused(folder, r"not opened: it asks for posix\.system, which no distributed checkpoint needs")
    with pytest.raises(WeightsError, match="asks for"):
        sharded.check(folder)
    assert not (tmp_path / "harm").exists()
    pickle.loads((folder / ".metadata").read_bytes())  # which is what torch's reader does
    assert (tmp_path / "harm").exists()


def test_getattr_gives_members_of_enumerations_alone() -> None:
    """It is in the indices of Python 3.11.2."""
    encoding, harmless = b"\x8c\x2atorch.distributed.checkpoint.metadata\x8c\x14_MEM_FORMAT_ENCODING\x93", b"\x8c\x03ONE"
    asks = b"\x80\x04\x8c\x08builtins\x8c\x07getattr\x93%s%s\x86R."
    encoding = b"\x8c" + bytes([len("torch.distributed.checkpoint.metadata")]) + encoding[2:]
    found = sharded._Index(io.BytesIO(asks % (encoding, harmless))).load()
    assert isinstance(found, sharded.Record) and found.state == ("ONE",)
    for kind, name in ((b"\x8c\x05torch\x8c\x04Size\x93", harmless), (encoding, b"K\x01"), (harmless, harmless)):
        with pytest.raises(WeightsError, match="an attribute of something"):
            sharded._Index(io.BytesIO(asks % (kind, name))).load()


@pytest.mark.parametrize(
    "name",
    [
        ("builtins", "eval"),
        ("builtins", "setattr"),
        ("torch", "load"),
        ("torch", "serialization.os.system"),
        ("torch.distributed.checkpoint.metadata", "os.system"),
        ("torch.distributed.checkpoint.metadata", "Metadata.__init__.__globals__"),
        ("pathlib", "os.system"),
    ],
)
def test_other_names(write: Any, name: tuple[str, str]) -> None:
    folder = write()
    module, attribute = (text.encode() for text in name)
    program = b"\x80\x04" + b"".join(b"\x8c" + bytes([len(text)]) + text for text in (module, attribute)) + b"\x93."
    (folder / ".metadata").write_bytes(program)
    refused(folder, "not opened: it asks for")


def test_values_beside_the_tensors_that_ask_to_run_code(write: Any, tmp_path: Path) -> None:
    folder = write(lambda shards: shards.value("optimizer_0.param_groups.0.lr", Harmful(shards.folder)))
    with pytest.raises(
        WeightsError, match=r"optimizer_0\.param_groups\.0\.lr: not opened: it is broken or holds more than tensors"
    ):
        sharded.check(folder)  # before a training is resumed
    assert zoo.load(folder).num_parameters()  # which needs no more than the model
    refused(write(extras={"zoo_model": Harmful(folder)}), r"meta\.pt: not opened")
    with pytest.raises(WeightsError, match=r"missing: head\.output\.bias"):
        zoo.load(write(lambda shards: shards.value("state_dict.model.head.output.bias", Harmful(folder))))
    assert not (tmp_path / "harm").exists()


def test_missing_and_short_files(write: Any) -> None:
    folder = write()
    whole = (folder / "__1_0.distcp").read_bytes()
    (folder / "__1_0.distcp").write_bytes(whole[: len(whole) // 2])
    refused(folder, r"__1_0\.distcp: cut short: \d+ bytes, where \d+ are promised")
    (folder / "__1_0.distcp").unlink()
    refused(folder, r"last\.ckpt: a file of this distributed checkpoint is missing: __1_0\.distcp")
    (folder / "__1_0.distcp").write_bytes(bytes(len(whole)))
    refused(folder, r"__1_0\.distcp: .*: not opened: it is broken")
    (folder / ".metadata").write_bytes((folder / ".metadata").read_bytes()[:-200])
    refused(folder, r"\.metadata: not opened: it is damaged or no index")


def test_folders_of_others(write: Any, tmp_path: Path) -> None:
    refused(write(extras={"epoch": 3}), "was not written by zoo: it holds no config of a model")
    (tmp_path / "last.ckpt" / "meta.pt").unlink()
    refused(tmp_path / "last.ckpt", r"no meta\.pt, so this distributed checkpoint is not one of Lightning, or not whole")


def _index(change: Callable[[Any], None]) -> Callable[[Shards], None]:
    return lambda shards: change(shards.index)


NAME = "state_dict.model.head.output.weight"


def _places(index: Any) -> list[Any]:
    return [place for key, place in index.storage_data.items() if key.fqn == NAME]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda index: index.state_dict_metadata[NAME].chunks.pop(), "do not make up the whole"),
        (lambda index: index.state_dict_metadata[NAME].chunks.extend(index.state_dict_metadata[NAME].chunks), "not make up"),
        (lambda index: setattr(index.state_dict_metadata[NAME].chunks[1], "offsets", torch.Size([0, 1])), "lacks a piece"),
        (lambda index: setattr(index.state_dict_metadata[NAME], "size", torch.Size([500, 16])), "reaches beyond"),
        (lambda index: setattr(index.state_dict_metadata[NAME], "size", torch.Size([-1, 16])), "are no sizes"),
        (lambda index: setattr(index.state_dict_metadata[NAME].properties, "dtype", torch.bfloat16), "found something else"),
        (lambda index: setattr(_places(index)[0], "relative_path", "../__0_0.distcp"), "is no place in this folder"),
        (lambda index: setattr(_places(index)[0], "relative_path", "/etc/passwd"), "is no place in this folder"),
        (lambda index: setattr(_places(index)[0], "offset", -5), "is no place in this folder"),
        (lambda index: setattr(_places(index)[0], "length", 10**12), "cut short"),
        (lambda index: setattr(_places(index)[0], "length", 20), "larger than its bytes"),
        (lambda index: setattr(_places(index)[0], "transform_descriptors", ["zstd"]), "compressed"),
        (lambda index: index.state_dict_metadata.pop(NAME), "missing: head.output.weight"),
        (lambda index: setattr(index, "storage_data", None), "damaged or no index"),
    ],
)
def test_an_index_that_does_not_add_up(write: Any, change: Any, message: str) -> None:
    folder = write(_index(change))
    with pytest.raises(WeightsError, match=message):
        zoo.load(folder)


def test_pieces_that_overlap(write: Any) -> None:
    def overlap(index: Any) -> None:
        entry = index.state_dict_metadata[NAME]
        first, second = entry.chunks
        places = {key.offset: place for key, place in index.storage_data.items() if key.fqn == NAME}
        moved = torch.Size(max(0, start - 1) for start in second.offsets)
        index.storage_data[metadata.MetadataIndex(NAME, moved)] = places[second.offsets]
        second.offsets = moved
        assert first.sizes.numel() + second.sizes.numel() == entry.size.numel()

    refused(write(_index(overlap)), "do not make up the whole")


@pytest.mark.parametrize("moved", [*range(1, 400, 7), 1000, 2000, 3000])
def test_bytes_read_from_anywhere_are_one_error(write: Any, moved: int) -> None:
    """Read from there, a file of tensors is a pickle of any kind: each failure of its reader is told the same way."""

    def move(index: Any) -> None:
        _places(index)[0].offset += moved
        _places(index)[0].length -= min(moved, 300)

    refused(write(_index(move)), "not opened|found something else|cut short")


def test_damage_anywhere_is_one_error(write: Any) -> None:
    folder = write()
    index = (folder / ".metadata").read_bytes()
    chance = random.Random(0)
    for _ in range(150):
        damaged = bytearray(index)
        for _ in range(chance.randint(1, 4)):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        (folder / ".metadata").write_bytes(bytes(damaged))
        try:
            zoo.load(folder)
        except WeightsError:
            continue
