"""What a command is doing, shown while it takes its time."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def telling(quiet: bool = False) -> Iterator[Callable[[str], None]]:
    """Gives a function that shows its message beside a spinner; silent if `quiet` or not at a terminal."""
    if quiet or not sys.stderr.isatty():
        yield lambda message: None
        return
    from rich.console import Console

    with Console(stderr=True).status("starting") as status:
        yield lambda message: status.update(message)
