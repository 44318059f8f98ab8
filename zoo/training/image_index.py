"""The vectors of a folder's pictures, kept in a file beside it and made anew only for what changed."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from zoo.errors import DataError, ZooError
from zoo.extras import require
from zoo.training.predict import image_files

Backend = Literal["matrix", "faiss"]
FORMAT = "zoo image index 1"
ENDING = ".zoo-index.safetensors"


class ImageIndex(NamedTuple):
    """Pictures and their vectors."""

    names: list[str]
    """The files."""
    vectors: Tensor
    """(pictures, size), of length one."""
    made: int
    """How many of them were made now, and not read from the file."""

    def nearest(self, wanted: Tensor, top: int, backend: Backend = "matrix") -> list[tuple[str, float]]:
        """The pictures whose vectors are nearest to one (size,), with the cosines, the nearest first.

        Args:
            backend: a product with the whole matrix, or an `IndexFlatIP` of faiss; both are exact.

        Raises:
            MissingExtraError: faiss is not installed.
        """
        top, wanted = min(top, len(self.names)), wanted.to(self.vectors)
        if backend == "matrix":
            cosines, places = torch.topk(self.vectors @ wanted, top)
            found = zip(places.tolist(), cosines.tolist())
        else:
            index = require("faiss", "search", "--backend faiss").IndexFlatIP(self.vectors.shape[1])
            index.add(self.vectors.numpy())
            cosines, places = index.search(wanted[None].numpy(), top)
            found = zip(places[0].tolist(), cosines[0].tolist())
        return [(self.names[place], cosine) for place, cosine in found]


def index_folder(
    folder: Path,
    encode: Callable[[Sequence[Path]], Tensor],
    model: str,
    place: Path | None = None,
    size: int = 64,
    tell: Callable[[str], None] | None = None,
) -> ImageIndex:
    """The index of a folder: read from its file as far as that is still right, and written anew where it is not.

    A picture's vector is used again if name, size and time of change of its file are those of then. Pictures that cannot
    be read are left out with a warning. Where the file cannot be written beside the folder, that is a warning, too.

    Args:
        encode: gives the vectors of pictures (pictures, size), of length one; raises a DataError for one that cannot be read.
        model: what tells the model from others; vectors of another one are not used.
        place: the file (default: beside the folder, `FOLDER.zoo-index.safetensors`).
        size: how many pictures are encoded at once.
        tell: is told how far it is.

    Raises:
        DataError: no pictures in the folder, or none that can be read.
        ZooError: a file that is no such index is in the place, or it cannot be written where the user wants it.
    """
    folder = folder.resolve()
    path = place or folder.with_name(folder.name + ENDING)
    if not folder.name and place is None:
        raise ZooError(f"{folder}: nothing is beside this folder; say where the index is to be: --index FILE")
    known = _read(path, model)
    stamps = {str(Path(file).relative_to(folder)): _stamp(Path(file)) for file in image_files([folder])}
    fresh = [name for name, stamp in stamps.items() if known.get(name, (None, None))[0] != stamp]
    made = dict(_encoded(folder, fresh, encode, size, tell or (lambda text: None)))
    vectors = {name: made[name] if name in made else known[name][1] for name in stamps if name in made or name not in fresh}
    if not vectors:
        raise DataError(f"{folder}: none of its {len(stamps)} pictures can be read")
    index = ImageIndex([str(folder / name) for name in vectors], torch.stack(list(vectors.values())), len(made))
    if made or set(vectors) != set(known):
        _write(path, index, {name: stamps[name] for name in vectors}, model, told=place is not None)
    return index


def fingerprint(model: Any, prepared: Any) -> str:
    """What tells a dual encoder's image tower, and how images are prepared for it, from others."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(f"{model.vision.config!r}{prepared!r}".encode())
    for name, tensor in sorted(model.vision.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _encoded(
    folder: Path, names: Sequence[str], encode: Callable[[Sequence[Path]], Tensor], size: int, tell: Callable[[str], None]
) -> Iterator[tuple[str, Tensor]]:
    rest, done, left = iter(names), 0, 0
    while batch := list(islice(rest, size)):
        try:
            yield from zip(batch, encode([folder / name for name in batch]).float().cpu())
        except DataError:  # one of them: each by itself says which
            for name in batch:
                try:
                    yield name, encode([folder / name])[0].float().cpu()
                except DataError as error:
                    left += 1
                    if left <= 5:
                        more = "; further ones are left out without a word" if left == 5 else ""
                        warnings.warn(f"{error}; the picture is left out{more}", stacklevel=2)
        done += len(batch)
        tell(f"read {done} of {len(names)} pictures")


def _stamp(path: Path) -> list[int]:
    found = path.stat()
    return [found.st_size, found.st_mtime_ns]


def _read(path: Path, model: str) -> dict[str, tuple[list[int], Tensor]]:
    """Stamp and vector of each picture in a file; nothing where there is no file, or one of another model.

    Raises:
        ZooError: the file is no index.
    """
    if not path.exists():
        return {}
    try:
        with require("safetensors", "train", "an index").safe_open(str(path), "pt") as file:
            said = file.metadata() or {}
            if said.get("format") != FORMAT:
                raise ValueError("it is no index")
            stamps = json.loads(said["files"])
            vectors = file.get_tensor("vectors")
        entries = [(str(name), [int(number) for number in stamp]) for name, stamp in stamps]
        if vectors.ndim != 2 or len(vectors) != len(entries) or not bool(torch.isfinite(vectors).all()):
            raise ValueError("it is damaged")
    except Exception as error:  # whatever a file of another kind makes its reader say
        what = f"{path} is not an index of pictures that zoo wrote ({type(error).__name__})"
        raise ZooError(f"{what}; remove it, or say where the index is to be: --index FILE") from None
    return {} if said.get("model") != model else {name: (stamp, row) for (name, stamp), row in zip(entries, vectors)}


def _write(path: Path, index: ImageIndex, stamps: dict[str, list[int]], model: str, told: bool) -> None:
    """Writes beside `path` and puts it in place."""
    said = {"format": FORMAT, "model": model, "files": json.dumps(list(stamps.items()))}
    temporary = None
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
        temporary = Path(name)
        require("safetensors.torch", "train", "an index").save_file({"vectors": index.vectors.contiguous()}, name, said)
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        os.replace(temporary, path)
    except OSError as error:
        what = f"{path} cannot be written: {error.strerror or error}"
        if told:
            raise ZooError(f"--index: {what}") from None
        warnings.warn(f"{what}; the pictures will be read again next time (--index FILE says another place)", stacklevel=2)
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


__all__ = ["Backend", "ImageIndex", "fingerprint", "index_folder"]
