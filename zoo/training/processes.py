"""The processes of one training: the first, which the user started, speaks and writes for all of them.

Lightning starts the others by running the same command once more, with LOCAL_RANK in their environment; torchrun and SLURM
start all of them, and say by RANK or SLURM_PROCID which is which.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from zoo.errors import ConfigError, ZooError
from zoo.extras import require
from zoo.training.folder import LAST, Claim, claim, state_of
from zoo.training.swap import FORMER

PATIENCE = 10.0  # seconds in which the first process may end before another one speaks itself
MOMENT = 1.0  # seconds in which it notices that another one is gone
GONE = "another process of this training ended without a word; it may have been killed, for memory perhaps"
SPOKEN = ".spoken"


def rank() -> int:
    """Which process of a training this is; 0 is the first."""
    number = int(require("lightning.pytorch.utilities", "train", "training").rank_zero_only.rank)
    if number == 0 and "RANK" not in os.environ and not _connected():  # so far, Lightning counts those of this machine alone
        number = int(os.environ.get("NODE_RANK", os.environ.get("GROUP_RANK", "0")))
    return number


def claimed(folder: Path, config: Any, overwrite: bool, resume: bool) -> Claim:
    """What the first process claims, for all of them; see `claim`."""
    if rank() == 0:
        place = claim(folder, config, overwrite, resume)
    else:
        work = folder.with_name(f"{folder.name}.new") if state_of(folder) == "finished" else folder
        # the first process may be about to put back what a kill left beside its place
        saved = any((work / name).exists() for name in (LAST, f".{LAST}{FORMER}"))
        place = Claim(folder, work, work / LAST if resume and saved else None)
    if _connected():  # not the first training of these processes, so that the folder may look otherwise by now
        places = [place]
        torch.distributed.broadcast_object_list(places, 0)
        place = places[0]
    return place


@contextmanager
def together(folder: Path) -> Iterator[None]:
    """Within it, what one process raises ends them all and is said once.

    Args:
        folder: of the run, in which a process that fails leaves its message for the first one.
    """
    number = rank()
    if number == 0:
        _words(folder)  # those of a former training are of no interest
        (folder / SPOKEN).unlink(missing_ok=True)
    in_main_thread = threading.current_thread() is threading.main_thread()
    if number and in_main_thread:
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the first ends the others
    try:
        yield
        if _connected():
            atexit.unregister(_leave)
            atexit.register(_leave)  # else torch's threads may crash the process when it ends
    except BaseException as error:
        if number:
            _end(folder, number, error)
        _speaks(folder)
        words = _words(folder)
        lost = isinstance(error, RuntimeError) and _connected() and _is_loss(error)
        if lost and _started_by_launcher():
            _go_on()
        if _connected() and _is_gloo():
            _leave()  # the others notice, and end
        if "find_unused_parameters" in str(error):
            what = "some parameters had no part in the loss of a step, as those of other tasks have none"
            raise ConfigError(f"trainer.strategy: {what}; use ddp_find_unused_parameters_true") from None
        if lost:
            raise ZooError(words or GONE) from None
        raise
    finally:
        if number and in_main_thread:
            signal.signal(signal.SIGINT, before)


def end_others(trainer: Any) -> None:
    """Ends the other processes of a training that failed, where they would not notice by themselves."""
    launcher = trainer.strategy.launcher
    if rank() == 0 and launcher is not None and not (_connected() and _is_gloo()):
        launcher.kill(signal.SIGKILL)


def _end(folder: Path, number: int, error: BaseException) -> None:
    """Ends a process that is not the first, in which `error` was raised."""
    words = str(error) if isinstance(error, ZooError) else f"{type(error).__name__}: {error}"
    consequence = isinstance(error, (RuntimeError, SystemExit)) and _is_loss(error)
    if not consequence and not isinstance(error, (SystemExit, KeyboardInterrupt)) and folder.is_dir():
        _note(folder, number).write_text(words, encoding="utf-8")
    if _connected() and _is_gloo():
        # The first process notices at once, and says why. An exit code other than 0 would make Lightning kill it.
        if consequence:
            _go_on()
            _stand_in(folder)
        os._exit(0)
    parent, deadline = os.getppid(), time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if os.getppid() != parent:
            os._exit(1)
        time.sleep(0.05)
    print(f"zoo: {words}", file=sys.__stderr__, flush=True)
    os._exit(1)  # upon which Lightning ends all


def _stand_in(folder: Path) -> None:
    """Speaks, as one of those that are left, where the first process is the one that is gone."""
    parent, deadline = os.getppid(), time.monotonic() + MOMENT
    while time.monotonic() < deadline and not (folder / SPOKEN).exists() and os.getppid() == parent:
        time.sleep(0.01)
    if (_started_by_launcher() or os.getppid() != parent) and _speaks(folder):
        print(f"zoo: {_words(folder) or GONE}", file=sys.__stderr__, flush=True)


def _speaks(folder: Path) -> bool:
    """Takes the right to tell what happened; of those that stand in for the first process at most one has it."""
    try:
        (folder / SPOKEN).touch(exist_ok=False)
    except FileExistsError:
        return False
    except OSError:  # the folder is gone, or the disk is full
        return rank() == 0
    return True


def _go_on() -> None:
    """A launcher tells all to end when one is gone; this process, which ends too, still has to say why."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _started_by_launcher() -> bool:
    """Whether torchrun or SLURM started all processes, so that none is the child of another."""
    return "RANK" in os.environ or "SLURM_PROCID" in os.environ


def _words(folder: Path) -> str | None:
    """What a process that failed has to say, if one did."""
    notes = sorted(folder.glob(_note(folder, "*").name))
    words = [note.read_text(encoding="utf-8") for note in notes]
    for note in notes:
        note.unlink(missing_ok=True)
    return words[0] if words else None


def _note(folder: Path, number: Any) -> Path:
    return folder / f".process-{number}"


def _leave() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _connected() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1


def _is_gloo() -> bool:
    return torch.distributed.get_backend() == "gloo"


def _is_loss(error: BaseException) -> bool:
    """Whether an error tells that another process is gone."""
    words = str(error).lower()
    return isinstance(error, torch.distributed.DistError) or any(word in words for word in ("gloo", "connection", "nccl"))


__all__ = ["claimed", "end_others", "rank", "together"]
