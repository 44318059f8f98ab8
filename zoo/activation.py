"""The config field that names an activation."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator
from pydantic_core import PydanticCustomError

from zoo.config.base import literal
from zoo.errors import did_you_mean, one_of
from zoo.kernel.activation import ACTIVATIONS


def _known(name: str) -> str:
    if name not in ACTIVATIONS:
        hint = did_you_mean(name, ACTIVATIONS) or f"; expected {one_of(ACTIVATIONS)}"
        raise PydanticCustomError("config", literal(f"unknown activation {name!r}{hint}"))
    return name


Activation = Annotated[str, AfterValidator(_known)]
"""The name of an activation that the kernel has."""
