"""The folder of a run: what lies in it, who may write there, and what was running."""

from __future__ import annotations

import csv
import json
import platform
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml

from zoo.config.source import read_yaml
from zoo.errors import ConfigError
from zoo.training.swap import remove, restore

CONFIG, RESULT, LAST, BEST = "config.yaml", "result.json", "last.ckpt", "best.ckpt"
UNFINISHED = ".unfinished"  # ends the name of a checkpoint that is being written
PACKAGES = ("torch", "lightning", "timm", "torchmetrics", "scikit-learn", "numpy", "transformer-zoo")


class Claim(NamedTuple):
    """The right to write a run's folder."""

    goal: Path
    """Where the run will lie."""
    work: Path
    """Where it is written: the goal itself, or beside it while a finished run is still there."""
    checkpoint: Path | None
    """What an unfinished run is resumed from."""

    def abandon(self) -> None:
        """Gives the folder up where nothing worth keeping came into it: a run that never began blocks no other one."""
        if self.checkpoint is None and not (self.work / LAST).exists():
            shutil.rmtree(self.work, ignore_errors=True)

    def finish(self) -> Path:
        """Puts what was written in its place; only now the former run goes."""
        if self.work != self.goal:
            old = self.goal.with_name(f"{self.goal.name}.old")
            self.goal.rename(old)
            self.work.rename(self.goal)
            shutil.rmtree(old)
        return self.goal


def claim(folder: Path, config: Any, overwrite: bool = False, resume: bool = False) -> Claim:
    """The right to write a run into `folder`.

    Raises:
        ConfigError: a run is there and neither flag says what to do with it, something else is
            there, or there is nothing to resume or it began with another config.
    """
    state = state_of(folder)
    if state == "foreign":
        raise ConfigError(f"folder: {folder} holds files that are no run of zoo; choose another one: folder=PATH")
    if resume:
        return _resumed(folder, state, config)
    if state == "finished" and not overwrite:
        raise ConfigError(f"folder: {folder} holds a finished run; replace it with --overwrite, or choose folder=PATH")
    if state == "unfinished" and not overwrite:
        raise ConfigError(
            f"folder: {folder} holds an unfinished run; go on with --resume, start it anew with --overwrite, "
            "or choose folder=PATH"
        )
    work = folder.with_name(f"{folder.name}.new") if state == "finished" else folder
    if state_of(work) == "foreign":
        raise ConfigError(f"folder: {work}, where the new run would be written, holds files that are no run of zoo")
    try:
        if state_of(work) != "empty":
            shutil.rmtree(work)
        work.mkdir(parents=True, exist_ok=True)
        write_config(work / CONFIG, config)
        (work / "environment.json").write_text(json.dumps(environment(), indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"folder: {work} cannot be written: {error.strerror or error}") from None
    return Claim(folder, work, None)


def state_of(folder: Path) -> str:
    """What a folder holds: `empty` (or it is not there), a `finished` or `unfinished` run, or something `foreign`."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return "empty"
    if not (folder / CONFIG).is_file():
        return "foreign"
    return "finished" if (folder / RESULT).is_file() else "unfinished"


def write_config(path: Path, config: Any) -> None:
    """Writes the whole config, defaults included, as a run's YAML file."""
    text = yaml.safe_dump(config.plain(), sort_keys=False, allow_unicode=True, width=120)
    path.write_text(f"# The whole config of this run: zoo train {CONFIG} folder=PATH\n{text}", encoding="utf-8")


def write_metrics(folder: Path) -> list[dict[str, float]]:
    """Joins the logs of all attempts into `metrics.csv`, one row per epoch; gives the rows."""
    rows: dict[int, dict[str, float]] = {}
    for log in sorted((folder / "logs").glob("attempt-*/metrics.csv"), key=lambda path: int(path.parent.name[8:])):
        started = False
        for entry in csv.DictReader(log.read_text(encoding="utf-8").splitlines()):
            values = {name: float(value) for name, value in entry.items() if value not in ("", None)}
            epoch = int(values.pop("epoch", -1)) + 1
            if epoch == 0 or not values.keys() - {"step"}:
                continue
            if not started:  # what an earlier attempt did beyond its last checkpoint was done again
                rows, started = {past: row for past, row in rows.items() if past < epoch}, True
            rows.setdefault(epoch, {"epoch": epoch}).update(values)
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    with (folder / "metrics.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows.values())
    return list(rows.values())


def environment() -> dict[str, Any]:
    """What the run runs with: versions, machine, and the revision of the code around it, if any."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "packages": dict(_versions(PACKAGES)),
        "git": _revision(),
    }


def reason(error: BaseException) -> str:
    """What the system said, from an error or from the one that caused it."""
    while error is not None:
        if isinstance(error, OSError) and error.strerror:
            return error.strerror
        before = error.__cause__ or error.__context__
        if before is None:
            break
        error = before
    return " ".join(str(error).split())[:160] or type(error).__name__


def what_is_left(checkpoint: Path) -> str:
    """What a run can go on from."""
    if checkpoint.exists():
        return f"the former {checkpoint.name} is whole, so make room and go on with --resume"
    return "nothing was saved before; make room and start anew"


def _resumed(folder: Path, state: str, config: Any) -> Claim:
    beside = folder.with_name(f"{folder.name}.new")
    work = beside if state == "finished" and state_of(beside) == "unfinished" else folder
    if state_of(work) != "unfinished":
        raise ConfigError(f"folder: {folder} holds {'a finished run' if state == 'finished' else 'no run'}, nothing to resume")
    before, now = _of_all_processes(read_yaml(work / CONFIG)), _of_all_processes(config.plain())
    for name in sorted(before.keys() | now.keys()):
        if name not in ("trainer", "folder") and before.get(name) != now.get(name):
            raise ConfigError(f"{name}: not what the unfinished run in {work} began with; resume it with the same config")
    for left in work.glob(f".*{UNFINISHED}"):
        remove(left)
    restore(work)
    # a run that ended before its first save goes on from its beginning
    return Claim(folder, work, work / LAST if (work / LAST).exists() else None)


def _of_all_processes(config: Mapping[str, Any]) -> dict[str, Any]:
    """A run's config with the batch sizes of all processes together, which may be others as long as these are the same."""
    from zoo.training.trainer import shares

    number = shares(config.get("trainer") or {})

    def multiplied(value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        return {name: each * (number or 1) if name == "batch_size" else multiplied(each) for name, each in value.items()}

    return {**config, "data": multiplied(config.get("data"))}


def _versions(packages: Iterable[str]) -> Iterable[tuple[str, str]]:
    for package in packages:
        try:
            yield package, metadata.version(package)
        except metadata.PackageNotFoundError:
            continue


def _revision() -> Mapping[str, Any] | None:
    def ask(*words: str) -> str:
        answer = subprocess.run(["git", *words], capture_output=True, text=True, timeout=5, check=True)
        return answer.stdout.strip()

    try:
        return {"revision": ask("rev-parse", "HEAD"), "changed": bool(ask("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None
