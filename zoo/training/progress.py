"""One line that shows how far a training is."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from zoo.extras import require

lightning: Any = require("lightning", "train", "training")


class ProgressLine(lightning.Callback):
    """A bar over all epochs with the latest figures; where there is no terminal, a line now and then."""

    def __init__(self, title: str, console: Console | None = None) -> None:
        self.title, self.console = title, console or Console(stderr=True)
        self.bar: Progress | None = None

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        epochs = trainer.max_epochs if trainer.max_epochs and trainer.max_epochs > 0 else None
        if not self.console.is_terminal:
            return
        self.bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TextColumn("epochs"),
            TimeElapsedColumn(),
            TextColumn("[dim]left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}"),
            console=self.console,
        )
        self.task = self.bar.add_task(self.title, total=epochs, completed=trainer.current_epoch, figures="")
        self.bar.start()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.bar is not None and trainer.num_training_batches:
            share = (batch_idx + 1) / trainer.num_training_batches
            self.bar.update(self.task, completed=trainer.current_epoch + min(share, 0.999))

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        done, last = trainer.current_epoch + 1, trainer.max_epochs or 0
        if self.bar is not None:
            self.bar.update(self.task, completed=done, figures=figures(trainer.callback_metrics))
        elif done == 1 or done == last or done % max(1, last // 10) == 0:
            line = f"{self.title}: epoch {done} of {last}  {figures(trainer.callback_metrics)}"
            self.console.print(line, soft_wrap=True, highlight=False)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self._close()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self._close()

    def _close(self) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None


def figures(metrics: Any) -> str:
    """`loss 0.153  accuracy 98.7 %  (validation)` from what Lightning has logged so far."""
    stage = "validation" if "validation_loss" in metrics else "train"
    words = []
    for name, value in metrics.items():
        if name.startswith(f"{stage}_"):
            label = name.removeprefix(f"{stage}_")
            share = label.rpartition("/")[2] in ("accuracy", "exact_match")
            number = f"{float(value) * 100:.1f} %" if share else f"{float(value):.3f}"
            words.append(f"{label} {number}")
    return f"{'  '.join(words)}  ({stage})" if words else ""
