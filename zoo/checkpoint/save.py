"""A model into a folder: ours, or one that another library opens. Each file appears whole or not at all."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from zoo.checkpoint import rules
from zoo.checkpoint.family import Family
from zoo.checkpoint.locate import FORMAT, families
from zoo.checkpoint.sharded import whole_parameters
from zoo.errors import ConfigError, UnknownNameError, WeightsError, did_you_mean
from zoo.model.base import Model


def save_model(model: Model, folder: Path) -> Path:
    """See `zoo.save`."""
    from zoo import __version__

    values = {"format": FORMAT, "version": __version__, "model": model.config.plain()}
    parameters = whole_parameters(model)
    return folder if parameters is None else write_folder(folder, values, parameters)  # None: another process writes


def export_model(model: Model, folder: Path, format: str) -> Path:
    """See `zoo.export`."""
    family, values = family_for(model.config, format)
    parameters = dict(model.named_parameters())
    table = family.table(model.config, parameters)
    left = sorted(set(parameters) - {name for entry in table for name in entry.ours})
    if left:
        raise ConfigError(f"{format} has no tensors for {', '.join(left[:10])}")
    return write_folder(folder, values, rules.write(table, parameters), family.files)


def family_for(config: Any, library: str) -> tuple[Family, dict[str, Any]]:
    """The family of a library that has such a model, and its config there.

    Raises:
        UnknownNameError: no such library.
        ConfigError: none of its families has; the message gives the reason of the nearest one.
    """
    libraries = sorted({family.library for family in families()})
    if library not in libraries:
        raise UnknownNameError(
            f"format: {library!r} is not supported; expected {' or '.join(libraries)}{did_you_mean(library, libraries)}"
        )
    reasons = []
    for family in families():
        if family.library == library and family.assembly == config.type:
            try:
                return family, family.write_config(config)
            except ConfigError as error:
                reasons.append(str(error))
    raise ConfigError(max(reasons, key=_reached, default=f"type: {library} has no model of type {config.type!r}"))


SIDES = {"encoder": 0, "decoder": 10}
"""How far a check has come that has reached a side."""


def _reached(reason: str) -> float:
    """How far the check that gave this reason came, which goes from the embedding over the stack to the head.

    A family whose stack or attention is of another type altogether is not the nearest one. Of an encoder and a decoder the
    first is checked first, and what both share after them.
    """
    place = reason.partition(":")[0]
    side, _, rest = place.partition(".")
    if side in SIDES:
        return SIDES[side] + _reached(rest) + 0.1 * place.count(".")
    if place in ("stack", "type"):
        return 0
    inside = "." in place and not place.endswith(".attention")
    order = {"embedding": 0, "stack": 2, "head": 4, "share_embeddings": 20, "decoder_input": 20, "padding": 20}
    return order.get(side, 0) + inside


def write_folder(
    folder: Path, values: Mapping[str, Any], tensors: Mapping[str, Tensor], files: tuple[str, str] = Family.files
) -> Path:
    """Writes the config and the tensors; what stood there before stays until the new file is whole."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        plain = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
        _replace(folder / files[1], lambda path: save_file(plain, path, metadata={"format": "pt"}))
        text = json.dumps(values, indent=2) + "\n"
        _replace(folder / files[0], lambda path: path.write_text(text, encoding="utf-8"))
    except (OSError, NotImplementedError) as error:
        if isinstance(error, NotImplementedError):
            raise WeightsError("a model on the meta device has no weights to save") from None
        raise WeightsError(f"{folder}: cannot be written: {error.strerror or error}") from None
    return folder


def _replace(path: Path, write: Any) -> None:
    """Writes beside `path` and renames, which is one step for whoever reads."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
