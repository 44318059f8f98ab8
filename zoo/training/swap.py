"""Folders that are whole or not there: written beside their place, then put into it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

FORMER = ".former"  # ends the name of a folder that another is about to replace


def swap_in(fresh: Path, goal: Path) -> None:
    """Puts the folder or file `fresh` where `goal` is, and removes what was there.

    No folder replaces another in one step. A kill between the two renames leaves the former one under a name of its
    own, and `restore` puts it back.
    """
    former = _former(goal)
    remove(former)
    if goal.is_dir() or (fresh.is_dir() and goal.exists()):
        os.rename(goal, former)
    os.replace(fresh, goal)
    remove(former)


def restore(folder: Path) -> None:
    """Undoes what a kill left half done in a folder where `swap_in` was used."""
    for former in folder.glob(f".*{FORMER}"):
        goal = folder / former.name[1 : -len(FORMER)]
        if goal.exists():
            remove(former)
        else:
            os.rename(former, goal)


def remove(path: Path) -> None:
    """Removes a file or a whole folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _former(goal: Path) -> Path:
    return goal.with_name(f".{goal.name}{FORMER}")


__all__ = ["FORMER", "remove", "restore", "swap_in"]
