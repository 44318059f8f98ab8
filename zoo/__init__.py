"""zoo: a configurable model zoo for transformers.

>>> import zoo
>>> model = zoo.build("vit-tiny", {"head.classes": 10})

Everything here is imported on first use, so `import zoo` costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zoo.api import attend as attend
    from zoo.api import build as build
    from zoo.api import capture as capture
    from zoo.api import cost as cost
    from zoo.api import export as export
    from zoo.api import get_config as get_config
    from zoo.api import hook_points as hook_points
    from zoo.api import intervene as intervene
    from zoo.api import load as load
    from zoo.api import plan as plan
    from zoo.api import save as save
    from zoo.api import train as train
    from zoo.api import verify as verify
    from zoo.presets import list_models as list_models
    from zoo.registry import list_components as list_components
    from zoo.registry import register as register

__version__ = "0.1.0"

_HOME = {
    "attend": "zoo.api",
    "build": "zoo.api",
    "capture": "zoo.api",
    "cost": "zoo.api",
    "export": "zoo.api",
    "get_config": "zoo.api",
    "hook_points": "zoo.api",
    "intervene": "zoo.api",
    "load": "zoo.api",
    "plan": "zoo.api",
    "save": "zoo.api",
    "train": "zoo.api",
    "verify": "zoo.api",
    "list_models": "zoo.presets",
    "list_components": "zoo.registry",
    "register": "zoo.registry",
}
__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> object:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'zoo' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
