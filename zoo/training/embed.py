"""A vector for each sentence of a file."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy
import torch

from zoo.config.merge import unflatten
from zoo.data.hub import FORMATS, Hub
from zoo.data.hub import load as read_table
from zoo.data.tokenizer import Tokenizer
from zoo.errors import ConfigError, InputError, ZooError, one_of
from zoo.extras import require
from zoo.resources import packaged
from zoo.training.folder import CONFIG
from zoo.training.texts import batch_of, longest, tokenizer_of

HEAD = "sentence-embedding"
ENDINGS = (".npy", ".parquet")
POOLS = {"mean_tokens": "mean", "cls_token": "class-token", "max_tokens": "max"}
"""Our pool by what a `pooling_mode_...` of sentence-transformers calls it."""


class Embedder(NamedTuple):
    """A model with what it needs to embed sentences."""

    model: Any
    tokenizer: Tokenizer
    length: int
    """How many tokens of a sentence are read."""
    replaced: str | None
    """The type of the head whose place the sentence embedding took, if there was another; `none` for no head."""


def open_embedder(source: str | Path, overrides: Mapping[str, Any] | None = None, length: int | None = None) -> Embedder:
    """A model that gives each sentence a vector; a head of another kind is replaced.

    What the library sentence-transformers left in the folder about pooling is respected.

    Args:
        source: a run's folder, or what `zoo.load` takes.
        overrides: fields of the model to change, such as `{"head.pool": "max", "head.normalize": False}`.
        length: how many tokens of a sentence are read (default: as many as the model has positions for).

    Raises:
        ConfigError: no model of texts, or one without a tokenizer.
        WeightsError: the model cannot be read.
    """
    from zoo.api import load
    from zoo.checkpoint.locate import locate

    path = packaged(source)
    place: Any = path / "model" if (path / CONFIG).is_file() and (path / "model").is_dir() else source
    fields = locate(place).fields
    if fields.get("type", "transformer") != "transformer":
        raise ConfigError(f"{source}: sentences are embedded by a model of type 'transformer', and this is {fields['type']!r}")
    head = fields.get("head")
    found = head.get("type") if isinstance(head, Mapping) else head
    change = unflatten(overrides or {})
    if found != HEAD:
        own = change.get("head", {})
        change["head"] = {
            "type": HEAD,
            **(_pooling(packaged(place)) if not own else {}),
            **(own if isinstance(own, Mapping) else {}),
        }
    model = load(place, change)
    data = _data_of(path if (path / CONFIG).is_file() else path.parent)
    tokenizer = tokenizer_of(model, source, data)
    return Embedder(model, tokenizer, longest(model, length), None if found == HEAD else str(found or "none"))


def sentences_of(file: str | Path, column: str | None = None) -> list[str]:
    """The sentences of a file, one for each line of a .txt, or each row of a table.

    An empty line or cell is a sentence without words, so that the number of rows stays.

    Args:
        column: the column of a table that holds them (default: the only one that holds texts).

    Raises:
        InputError: the file cannot be read, or has no such column.
    """
    path = Path(file)
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    if path.suffix == ".txt":
        if column is not None:
            raise InputError(f"{path}: column: a text file has none; leave it out")
        try:
            return path.read_text(encoding="utf-8-sig").removesuffix("\n").split("\n") if path.stat().st_size else []
        except UnicodeDecodeError as error:
            line = path.read_bytes()[: error.start].count(b"\n") + 1
            raise InputError(f"{path}:{line}: no UTF-8: {error.reason} {error.object[error.start]:#04x}") from None
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    if path.suffix not in FORMATS:
        raise InputError(f"{path}: expected a .txt with a sentence in each line, or a table: {one_of(FORMATS)[7:]}")
    return _column(path, column)


def embed(
    embedder: Embedder, sentences: Sequence[str], batch_size: int = 64, done: Callable[[int], None] | None = None
) -> numpy.ndarray[Any, Any]:
    """The vectors of sentences (sentences, width), in their order, as float32.

    Sentences of like length share a batch, so that little is filled up; which ones do changes nothing else.

    Args:
        batch_size: how many sentences are embedded at once.
        done: told how many sentences each batch had.

    Raises:
        InputError: a sentence that the tokenizer makes no token of.
    """
    model, tokenizer, length, _ = embedder
    tokens = [tokenizer.encode(sentence, length) for sentence in sentences]
    for number, ids in enumerate(tokens):
        if not ids:
            raise InputError(f"sentence {number + 1}: {sentences[number]!r:.60} has no tokens, so there is nothing to embed")
    order = sorted(range(len(tokens)), key=lambda number: -len(tokens[number]))  # the longest first: memory runs out at once
    vectors = numpy.zeros((len(tokens), model.stack.width), dtype=numpy.float32)
    with torch.inference_mode():
        for start in range(0, len(order), batch_size):
            places = order[start : start + batch_size]
            inputs = batch_of([tokens[place] for place in places], tokenizer.padding, model.device)
            vectors[places] = model(**inputs).sentence_embedding.float().cpu().numpy()
            if done is not None:
                done(len(places))
    return vectors


def check_output(path: Path) -> Path:
    """`path`, if vectors can be written there.

    Raises:
        InputError: an ending that means nothing, or no such folder.
    """
    if path.suffix not in ENDINGS:
        raise InputError(f"{path}: vectors are written as {' or '.join(ENDINGS)}")
    if not path.parent.is_dir():
        raise InputError(f"{path}: there is no folder {path.parent}")
    return path


def write(vectors: numpy.ndarray[Any, Any], path: Path) -> Path:
    """Writes vectors as `.npy`, or as the column `embedding` of a `.parquet`, in one step.

    Raises:
        InputError, ZooError: it cannot be written.
    """
    beside = check_output(path).with_name(f".{path.name}.unfinished")
    try:
        with beside.open("wb") as file:
            if path.suffix == ".npy":
                numpy.save(file, vectors)
            else:
                arrow: Any = require("pyarrow", "train", "parquet")
                values = arrow.array(vectors.ravel())
                column = arrow.FixedSizeListArray.from_arrays(values, vectors.shape[1])
                require("pyarrow.parquet", "train", "parquet").write_table(arrow.table({"embedding": column}), file)
        os.replace(beside, path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise ZooError(f"{path}: cannot be written: {error.strerror or error}") from None
    return path


def _column(path: Path, column: str | None) -> list[str]:
    place = str(path)
    try:
        rows = read_table(Hub.Config(path=place, text_column=column or "text", streaming=True), place)["train"]
        table = [dict(row) for row in rows]
    except ZooError as error:
        raise InputError(str(error)) from None
    except Exception as error:  # whatever reads the table raises whatever it likes
        cause = error.__cause__ or error
        raise InputError(f"{path}: cannot be read: {' '.join(str(cause).split())[:200] or type(cause).__name__}") from None
    names = list(table[0]) if table else []
    if column is None:
        texts = [name for name in names if any(isinstance(row[name], str) for row in table)]
        if len(texts) != 1:
            raise InputError(
                f"{path}: say which column to embed; {'its columns are ' + ', '.join(names) if names else 'it is empty'}"
            )
        column = texts[0]
    if table and column not in names:
        raise InputError(f"{path}: there is no column {column!r}; its columns are {', '.join(names)}")
    for number, row in enumerate(table):
        if row[column] is not None and not isinstance(row[column], str):
            raise InputError(f"{path}: column {column!r} of row {number + 1} holds {row[column]!r:.40}, which is no text")
    return [row[column] or "" for row in table]


def _pooling(folder: Path) -> dict[str, Any]:
    """The fields of the head that sentence-transformers' files say, if there are any."""
    values = _json(folder / "1_Pooling" / "config.json")
    if not isinstance(values, Mapping):
        return {}
    modes = [
        name.removeprefix("pooling_mode_") for name, on in values.items() if name.startswith("pooling_mode_") and on is True
    ]
    if len(modes) != 1 or modes[0] not in POOLS:
        asked = " and ".join(modes) or "nothing"
        raise ConfigError(
            f"{folder}/1_Pooling/config.json: it asks for {asked}; expected {one_of(POOLS)}, or say head.pool=mean"
        )
    steps = _json(folder / "modules.json")
    kinds = [str(step.get("type", "")) for step in steps if isinstance(step, Mapping)] if isinstance(steps, list) else []
    return {"pool": POOLS[modes[0]], "normalize": not kinds or any(kind.endswith("Normalize") for kind in kinds)}


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _data_of(folder: Path) -> Any:
    from zoo.config.source import read_yaml

    run = read_yaml(folder / CONFIG) if (folder / CONFIG).is_file() else None
    return run.get("data") if isinstance(run, Mapping) else None


__all__ = ["Embedder", "check_output", "embed", "open_embedder", "sentences_of", "write"]
