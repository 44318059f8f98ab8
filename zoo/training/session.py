"""One training from beginning to end: claims the folder, lets Lightning train, keeps what came out."""

from __future__ import annotations

import errno
import json
import logging
import signal
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console

from zoo.errors import ConfigError, DataError, ZooError
from zoo.extras import require
from zoo.registry import make
from zoo.training.folder import BEST, LAST, RESULT, Claim, reason, what_is_left, write_metrics
from zoo.training.processes import claimed, end_others, rank, together
from zoo.training.sharding import is_sharded
from zoo.training.trainer import check_resumed, make_trainer

TALKERS = ("torch.distributed.tensor._redistribute",)  # warns of its own ways to gather what is divided twice


class TrainingResult(NamedTuple):
    """What a training gave."""

    folder: Path
    """Where everything is: `model/` for `zoo.load`, last.ckpt, metrics.csv, curve.png, config.yaml, ..."""
    metrics: dict[str, float]
    """The figures: `test_accuracy` on the examples kept out, `train_loss`, `epochs`, `seconds`, ..."""


def run(
    config: Any, *, overwrite: bool = False, resume: bool = False, progress: bool = True, console: Console | None = None
) -> TrainingResult:
    """Trains by a run's config.

    Args:
        overwrite: replace a run that is in the folder; a finished one stays until the new one is.
        resume: go on with the unfinished run in the folder, from its last.ckpt.
        progress: show how far it is, on `console` (default: the terminal's error output).

    Raises:
        ConfigError: the folder is taken, or the fields do not describe a run.
        DataError: the examples cannot be learned from.
        ZooError: the loss or a weight is no number any more, the disk is full, or the training was interrupted.
    """
    from zoo.api import save

    lightning = require("lightning", "train", "training")
    require("tensorboard", "train", "training")
    place = claimed(Path(config.folder or "runs/unnamed"), config, overwrite, resume)
    started = time.perf_counter()
    with together(place.work), _quiet(), lightning.pytorch.utilities.seed.isolate_rng():
        lightning.seed_everything(config.seed, workers=True, verbose=False)
        with _disk_errors(place):
            try:
                trainer, module = _fit(config, place, progress and rank() == 0, console)
            except (ConfigError, DataError):
                if rank() == 0 and not torch.distributed.is_initialized():  # else another process may have words for us there
                    place.abandon()
                raise
            if trainer.is_global_zero or is_sharded(module.model):  # each process has a share of it to give
                save(module.model, place.work / "model")
            if trainer.is_global_zero:
                trainer.datamodule.data.keep(place.work / "model")
        if not trainer.is_global_zero:  # the first process tests what came out, and tells the others
            return TrainingResult(*trainer.strategy.broadcast(None))
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        metrics |= {"epochs": trainer.current_epoch, "steps": trainer.global_step}
        metrics |= {"parameters": module.model.num_parameters(), "seconds": round(time.perf_counter() - started, 1)}
        with _disk_errors(place):
            result = _keep(config, place, metrics)
        return TrainingResult(*trainer.strategy.broadcast(tuple(result)))


def _fit(config: Any, place: Claim, progress: bool, console: Console | None) -> tuple[Any, Any]:
    from zoo.training.checkpoint_file import CheckpointFile
    from zoo.training.data_module import DataModule
    from zoo.training.module import ZooModule

    if place.checkpoint is not None:
        check_resumed(config.trainer, place.checkpoint)
    module, data = ZooModule.from_run(config), make(config.data)
    if place.checkpoint is not None:
        data.recall(place.work)
    if rank() == 0:
        data.keep(place.work)
    if module.model.load_report is not None and progress and not place.checkpoint:
        (console or Console(stderr=True)).print(str(module.model.load_report), highlight=False, soft_wrap=True)
    plugins = config.trainer.get("plugins") or []
    trainer = make_trainer(
        {name: value for name, value in config.trainer.items() if name != "plugins"},
        plugins=[CheckpointFile(), *(plugins if isinstance(plugins, (list, tuple)) else [plugins])],
        callbacks=list(_callbacks(config, data.has("validation"), place, progress, console)),
        logger=list(_loggers(place.work)),
        default_root_dir=place.work,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
    )
    interrupt = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit(module, DataModule(data, config.seed), ckpt_path=place.checkpoint, weights_only=True)
    except (KeyboardInterrupt, SystemExit):
        if rank():
            raise
        raise ZooError(_interrupted(place, trainer)) from None
    except require("lightning.pytorch.utilities.exceptions", "train", "training").MisconfigurationException as error:
        raise ConfigError(f"trainer: {' '.join(str(error).split())}") from None
    except BaseException:
        end_others(trainer)
        raise
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, interrupt)  # Lightning leaves it ignored after an interrupt
    return trainer, module


def _callbacks(config: Any, validated: bool, place: Claim, progress: bool, console: Console | None) -> Iterator[Any]:
    from zoo.training.progress import ProgressLine

    library = require("lightning.pytorch.callbacks", "train", "training")
    if config.averaging is not None:
        yield library.EMAWeightAveraging(decay=config.averaging)
    common = {"dirpath": place.work, "enable_version_counter": False}
    yield library.ModelCheckpoint(filename=Path(LAST).stem, save_on_train_epoch_end=True, **common)
    if config.save_every is not None:
        yield library.ModelCheckpoint(filename=Path(LAST).stem, every_n_train_steps=config.save_every, **common)
    if validated:
        figure, mode = make(config.task).best
        best = {"monitor": f"validation_{figure}", "mode": mode}
        yield library.ModelCheckpoint(filename=Path(BEST).stem, save_weights_only=True, **best, **common)
    if progress:
        yield ProgressLine(place.goal.name, console)


def _loggers(folder: Path) -> Iterator[Any]:
    library = require("lightning.pytorch.loggers", "train", "training")
    where = {"save_dir": folder, "name": "logs", "version": f"attempt-{len(list(folder.glob('logs/attempt-*')))}"}
    yield library.CSVLogger(**where, flush_logs_every_n_steps=1)
    yield library.TensorBoardLogger(**where, default_hp_metric=False)


def _keep(config: Any, place: Claim, metrics: dict[str, float]) -> TrainingResult:
    """Writes the model's figures on the test part, the curve and who woke which expert; last of all, that it is finished."""
    from zoo.inspect.expert_picture import draw_experts
    from zoo.training.evaluate import evaluate
    from zoo.training.pictures import learning_curve

    # what is measured is what was saved, read back
    tested = evaluate(place.work / "model", config.data, config.task)
    metrics |= {f"test_{name}": value for name, value in tested.metrics.items()}
    rows = write_metrics(place.work)
    learning_curve(rows, metrics, place.work / "curve.png", title=place.goal.name)
    if tested.experts is not None:
        draw_experts(tested.experts, place.work / "experts.png", title=f"{place.goal.name}: which experts each task wakes")
    (place.work / RESULT).write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    return TrainingResult(place.finish(), metrics)


@contextmanager
def _disk_errors(place: Claim) -> Iterator[None]:
    """One line for a disk that is full or cannot be written; other errors of the system are not ours to explain."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO):
            raise
        raise ZooError(f"{place.work} cannot be written: {reason(error)}; {what_is_left(place.work / LAST)}") from None


def _interrupted(place: Claim, trainer: Any) -> str:
    if not (place.work / LAST).exists():
        return f"interrupted before the first save: {place.work} holds no state; start again with --overwrite or --resume"
    write_metrics(place.work)
    return (
        f"interrupted in epoch {trainer.current_epoch + 1} of {trainer.max_epochs}: {place.work / LAST} holds the state "
        "of the last save; go on with --resume"
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences what Lightning tells about itself; errors pass."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric", "lightning", *TALKERS)]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        # few batches, no worker processes, a scheduler's own deprecation: nothing that a user of a run can mend
        warnings.filterwarnings("ignore", module=r"(lightning|torch|tensorboard)\..*")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels):
                logger.setLevel(level)
