"""Distributed checkpoints: a folder to which every process of a training wrote its share. And: a share made whole.

torch's own reader unpickles the folder's index, `.metadata`, which may then run any code. Here the names that torch
writes there stand for records of ours, and any other name is refused.
"""

from __future__ import annotations

import io
import math
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from zoo.checkpoint.tensors import Stored, open_pickle
from zoo.errors import WeightsError

INDEX, EXTRAS = ".metadata", "meta.pt"
"""torch's index of the folder, and what Lightning stores beside the tensors."""
_TORCH = "torch.distributed.checkpoint"


class Piece(NamedTuple):
    """A block of a tensor, or a value that is no tensor, and where it lies."""

    offset: tuple[int, ...] | None
    shape: tuple[int, ...]
    file: Path
    start: int
    length: int


class Pieces(NamedTuple):
    """All that a name of the index stands for."""

    shape: tuple[int, ...] | None
    """Of the whole tensor; None for a value that is no tensor."""
    dtype: torch.dtype | None
    pieces: list[Piece]

    def get_tensor(self, name: str) -> Tensor:
        """The whole tensor, put together.

        Raises:
            WeightsError: a piece is missing, damaged or of another shape.
        """
        assert self.shape is not None
        whole = torch.empty(self.shape, dtype=self.dtype)
        for piece in self.pieces:
            part = _read(piece, name)
            if not isinstance(part, Tensor) or tuple(part.shape) != piece.shape or part.dtype != self.dtype:
                raise WeightsError(f"{piece.file}: {name}: expected {list(piece.shape)} of {self.dtype}, found something else")
            block = whole
            for dimension, (start, size) in enumerate(zip(piece.offset or (), piece.shape)):
                block = block.narrow(dimension, start, size)
            block.copy_(part)
        return whole


def is_distributed(folder: Path) -> bool:
    """Whether a folder is a distributed checkpoint."""
    return (folder / INDEX).is_file()


def open_distributed(folder: Path) -> tuple[Mapping[str, Any], dict[str, Stored]]:
    """What Lightning stored beside the tensors, and the tensors of the module, not read yet.

    Raises:
        WeightsError: a file is missing, damaged, or asks to run code; or Lightning did not write this.
    """
    if not (folder / EXTRAS).is_file():
        raise WeightsError(f"{folder}: no {EXTRAS}, so this distributed checkpoint is not one of Lightning, or not whole")
    extras = open_pickle(folder / EXTRAS)
    stored = {}
    for name, pieces in index(folder).items():
        if name.startswith("state_dict.") and pieces.shape is not None:
            stored[name.removeprefix("state_dict.")] = Stored(pieces.shape, pieces.dtype, pieces)
    return extras, stored


def check(folder: Path) -> None:
    """Reads the index and all that is no tensor: after this, torch's reader meets nothing that could run code.

    Raises:
        WeightsError: a file is missing, damaged, or asks to run code.
    """
    for name, pieces in index(folder).items():
        if pieces.shape is None:
            for piece in pieces.pieces:
                _read(piece, name)


def index(folder: Path) -> dict[str, Pieces]:
    """The names of a distributed checkpoint, and where what they stand for lies; nothing but the index is read.

    Raises:
        WeightsError: the index is damaged or asks to run code, a file is missing or too short, or the pieces of a
            tensor do not make up the whole of it.
    """
    path = folder / INDEX
    try:
        record = _Index(io.BytesIO(path.read_bytes())).load()
        where: dict[str, list[tuple[Any, Any]]] = {}
        for key, place in _field(record, "storage_data", dict).items():
            where.setdefault(_field(key, "fqn", str), []).append((key, place))
        entries = _field(record, "state_dict_metadata", dict)
        found = {name: _pieces(folder, name, entry, where.get(name, [])) for name, entry in entries.items()}
    except WeightsError:
        raise
    except Exception as error:  # a pickle that was tampered with can fail in any way
        reason = " ".join(str(error).split())[:160]
        raise WeightsError(f"{path}: not opened: it is damaged or no index of a distributed checkpoint ({reason})") from None
    return found


def read_value(pieces: Pieces, name: str) -> Any:
    """What an index's name stands for, if that is no tensor.

    Raises:
        WeightsError: it is damaged or asks to run code.
    """
    return _read(pieces.pieces[0], name)


def whole_parameters(model: nn.Module) -> dict[str, Tensor] | None:
    """The parameters of a model by name; those of which each process has a share are gathered on the first.

    For that every process must call this. None on all processes but the first.
    """
    parameters: dict[str, Tensor] = dict(model.named_parameters())
    if not any(hasattr(parameter, "device_mesh") for parameter in parameters.values()):
        return parameters
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    state: Any = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    return {name: state[name] for name in parameters} if torch.distributed.get_rank() == 0 else None


def _pieces(folder: Path, name: Any, entry: Any, places: list[tuple[Any, Any]]) -> Pieces:
    if not isinstance(name, str) or not places:
        raise WeightsError(f"{folder}: the index of this distributed checkpoint does not say where {name} lies")
    if entry.name == "BytesStorageMetadata":
        return Pieces(None, None, [_piece(folder, None, (), place) for _, place in places])
    shape, dtype = _sizes(_field(entry, "size", tuple)), _field(entry, "properties", Record).state[0]
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"{name} has no type")
    lying = {_sizes(_field(key, "offset", tuple)): place for key, place in places}
    pieces = []
    for chunk in _field(entry, "chunks", list):
        offset, size = _sizes(_field(chunk, "offsets", tuple)), _sizes(_field(chunk, "sizes", tuple))
        if offset not in lying or len(offset) != len(shape) or len(size) != len(shape):
            raise ValueError(f"{name} lacks a piece")
        if any(start + length > all_ for start, length, all_ in zip(offset, size, shape)):
            raise ValueError(f"{name} has a piece that reaches beyond it")
        piece = _piece(folder, offset, size, lying[offset])
        if math.prod(size) * dtype.itemsize > piece.length:
            raise ValueError(f"{name} has a piece larger than its bytes")
        pieces.append(piece)
    # blocks that do not overlap and have as many elements as the whole are the whole
    if sum(math.prod(piece.shape) for piece in pieces) != math.prod(shape) or _overlap(pieces):
        raise ValueError(f"the pieces of {name} do not make up the whole of it")
    return Pieces(shape, dtype, pieces)


def _piece(folder: Path, offset: tuple[int, ...] | None, shape: tuple[int, ...], place: Any) -> Piece:
    relative, start, length = (_field(place, name, kind) for name, kind in _PLACE.items())
    file = folder / Path(relative).name
    if place.state.get("transform_descriptors"):
        raise WeightsError(f"{folder}: compressed distributed checkpoints are not supported")
    if relative != file.name or start < 0 or length < 0:
        raise ValueError(f"{relative!r:.60} is no place in this folder")
    if not file.is_file():
        raise WeightsError(f"{folder}: a file of this distributed checkpoint is missing: {file.name}")
    if file.stat().st_size < start + length:
        raise WeightsError(f"{file}: cut short: {file.stat().st_size} bytes, where {start + length} are promised")
    return Piece(offset, shape, file, start, length)


_PLACE = {"relative_path": str, "offset": int, "length": int}


def _overlap(pieces: list[Piece]) -> bool:
    def apart(first: Piece, second: Piece) -> bool:
        return any(
            start + size <= other or other + length <= start
            for start, size, other, length in zip(first.offset or (), first.shape, second.offset or (), second.shape)
        )

    filled = [piece for piece in pieces if math.prod(piece.shape)]
    return any(not apart(piece, other) for number, piece in enumerate(filled) for other in filled[:number])


def _read(piece: Piece, name: str) -> Any:
    try:
        with piece.file.open("rb") as file:
            file.seek(piece.start)
            return torch.load(io.BytesIO(file.read(piece.length)), map_location="cpu", weights_only=True)
    except Exception as error:  # broken bytes may fail in any step of an unpickler
        reason = str(error).strip().partition("\n")[0][:160]
        raise WeightsError(f"{piece.file}: {name}: not opened: it is broken or holds more than tensors ({reason})") from None


class Record:
    """What stands in the index for an object of torch: its class's name and its fields, and no code of it."""

    name = ""
    state: Any = ()

    def __new__(cls, *arguments: Any) -> Any:
        record = super().__new__(cls)
        record.state = arguments
        return record

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Index(pickle.Unpickler):
    """Reads an index into records; a name that torch does not write there is an error."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _RECORDS:
            return type(name, (Record,), {"name": name})
        if (module, name) == ("torch", "Size"):
            return tuple
        if (module, name) == ("builtins", "getattr"):  # as Python 3.11.2 writes a member of an enumeration
            return _member
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        raise WeightsError(f"not opened: it asks for {module}.{name}, which no distributed checkpoint needs")


_RECORDS = {
    *((f"{_TORCH}.metadata", name) for name in (
        "Metadata", "MetadataIndex", "StorageMeta", "TensorStorageMetadata", "BytesStorageMetadata",
        "ChunkStorageMetadata", "TensorProperties", "_MEM_FORMAT_ENCODING",
    )),
    (f"{_TORCH}.filesystem", "_StorageInfo"),
    ("torch.serialization", "_get_layout"),
    ("pathlib", "PosixPath"),
    ("pathlib", "WindowsPath"),
    ("pathlib._local", "PosixPath"),
    ("pathlib._local", "WindowsPath"),
}  # fmt: skip


def _member(kind: Any, name: Any) -> Record:
    """A member of an enumeration, which is all that an index may ask `getattr` for."""
    if not (isinstance(kind, type) and issubclass(kind, Record) and type(name) is str):
        raise WeightsError("not opened: it asks for an attribute of something, which no distributed checkpoint needs")
    return kind(name)


def _field(record: Any, name: str, kind: Any) -> Any:
    value = record.state[name]
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ValueError(f"{name} is no {kind.__name__}")
    return value


def _sizes(values: tuple[Any, ...]) -> tuple[int, ...]:
    if not all(type(value) is int and value >= 0 for value in values):
        raise ValueError(f"{values!r:.60} are no sizes")
    return values


__all__ = ["check", "index", "is_distributed", "open_distributed", "read_value", "whole_parameters"]
