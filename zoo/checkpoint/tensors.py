"""Reading tensors from files, lazily and without ever unpickling anything else."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from zoo.errors import WeightsError

_TYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


class Stored(NamedTuple):
    """A tensor that has not been read yet."""

    shape: tuple[int, ...]
    dtype: torch.dtype | None
    source: Any

    def fetch(self, name: str) -> Tensor:
        """Its values; from safetensors, a view of the mapped file."""
        tensor: Tensor = self.source.get_tensor(name) if hasattr(self.source, "get_tensor") else self.source[name]
        return tensor


def open_folder(folder: Path, *names: str) -> dict[str, Stored]:
    """All tensors of a folder: safetensors, in one file or many; else a file of torch's, tensors only.

    Args:
        names: what the two are called (default: `model.safetensors` and `pytorch_model.bin`).

    Raises:
        WeightsError: no such file, a broken one, or one that holds more than tensors.
    """
    names = names or ("model.safetensors", "pytorch_model.bin")
    for stem, opener in zip(names, (_open_safetensors, _open_pickle)):
        index = folder / f"{stem}.index.json"
        if index.is_file():
            return _open_shards(index, opener)
        if (folder / stem).is_file():
            return opener(folder / stem)
    found = sorted(path.name for path in folder.iterdir())
    raise WeightsError(f"{folder}: no weights: expected {' or '.join(names)}, found {', '.join(found[:10]) or 'nothing'}")


def open_pickle(path: Path) -> Mapping[str, Any]:
    """What a torch file holds, as long as that is nothing but tensors and plain values.

    Raises:
        WeightsError: the file is broken, or asks to run code.
    """
    try:
        mapped = zipfile.is_zipfile(path)  # files from before 2020 are none, and cannot be mapped into memory
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # broken bytes may fail in any step of an unpickler
        reason = str(error).strip().partition("\n")[0][:160]
        raise WeightsError(f"{path}: not opened: it is broken or holds more than tensors ({reason})") from None
    if not isinstance(content, Mapping):
        raise WeightsError(f"{path}: expected tensors by name, found {type(content).__name__}")
    return content


def _open_safetensors(path: Path) -> dict[str, Stored]:
    try:
        file = safe_open(str(path), framework="pt", device="cpu")
        stored = {}
        for name in file.keys():  # noqa: SIM118 (not a mapping)
            part = file.get_slice(name)
            stored[name] = Stored(tuple(part.get_shape()), _TYPES.get(part.get_dtype()), file)
        return stored
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path}: broken or cut short, it is no safetensors file ({error})") from None


def _open_pickle(path: Path) -> dict[str, Stored]:
    content = open_pickle(path)
    inner = content.get("state_dict")
    content = inner if isinstance(inner, Mapping) else content  # a checkpoint of training holds them beside other things
    wrong = [name for name, value in content.items() if not isinstance(value, Tensor)]
    if wrong:
        raise WeightsError(f"{path}: expected tensors only, found other values: {', '.join(map(str, wrong[:5]))}")
    return {name: Stored(tuple(value.shape), value.dtype, content) for name, value in content.items()}


def _open_shards(index: Path, opener: Any) -> dict[str, Stored]:
    try:
        where = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        files = {name: index.parent / Path(name).name for name in set(where.values())}
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError):
        raise WeightsError(f"{index}: no index of shards: expected a JSON object with a weight_map") from None
    absent = sorted(name for name, path in files.items() if not path.is_file())
    if absent:
        raise WeightsError(f"{index.parent}: shards are missing: {', '.join(absent)}")
    shards = {name: opener(path) for name, path in files.items()}
    lost = sorted(name for name, shard in where.items() if name not in shards[shard])
    if lost:
        raise WeightsError(f"{index}: its shards lack {', '.join(lost[:10])}")
    return {name: shards[shard][name] for name, shard in where.items()}
