"""Training: run configs, the Lightning module, the run's folder.

`ZooModule` and `DataModule`, for a Lightning script of one's own, are imported from here.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zoo.training.data_module import DataModule as DataModule
    from zoo.training.module import ZooModule as ZooModule

_HOME = {"DataModule": "zoo.training.data_module", "ZooModule": "zoo.training.module"}


def __getattr__(name: str) -> object:
    if name in _HOME:  # imported when asked for, since they import Lightning
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'zoo.training' has no attribute {name!r}")
