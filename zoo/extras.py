"""Optional packages: imported when used, and named with the command that installs them."""

from __future__ import annotations

import importlib
from types import ModuleType

from zoo.errors import MissingExtraError


def require(module: str, extra: str, purpose: str) -> ModuleType:
    """Imports `module`, which the extra `extra` installs.

    Raises:
        MissingExtraError: when the package is not there; the message is one line with the mend.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        if error.name is not None and error.name.partition(".")[0] != package:
            raise  # the package is there but broken: its own message says more than ours would
        raise MissingExtraError(
            f"{purpose} needs {package}, which is not installed: pip install 'transformer-zoo[{extra}]'"
        ) from None
