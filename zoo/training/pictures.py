"""Pictures of a training: its curve, and what the model says to single images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from zoo.extras import require

BLUE, ORANGE, GREEN, RED, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#555555"
"""Okabe and Ito's colours, which colour-blind people tell apart too."""
CURVES = {
    "loss": "loss (cross-entropy)",
    "accuracy": "accuracy (%)",
    "exact_match": "exact match (%)",
    "bits_per_byte": "bits per byte",
}
"""What stands at the axes."""


def learning_curve(rows: Sequence[Mapping[str, float]], final: Mapping[str, float], path: Path, title: str = "") -> Path:
    """Draws loss and accuracy, or what a task has instead, over the epochs into a PNG, those of the test part beside them.

    Args:
        rows: one mapping per epoch, as in metrics.csv.
        final: figures of the whole run; `test_loss` and `test_accuracy` are drawn.
    """
    figure = _figure(9.0, 3.8)
    other = next((name for name in ("bits_per_byte", "exact_match") if f"test_{name}" in final), "accuracy")
    share = CURVES[other].endswith("(%)")
    for axes, name in zip(figure.subplots(1, 2), ("loss", other)):
        scale = 100.0 if name == other and share else 1.0
        for stage, colour, line in (("train", BLUE, "-"), ("validation", ORANGE, "--")):
            points = [(row["epoch"], row[f"{stage}_{name}"] * scale) for row in rows if f"{stage}_{name}" in row]
            if points:
                what = "training" if stage == "train" else stage
                axes.plot(*zip(*points), line, color=colour, label=what, linewidth=1.8, marker="o" if len(points) < 3 else "")
        value = final.get(f"test_{name}")
        if value is not None and rows:
            text = f"{value * scale:.2f} %" if scale > 1 else f"{value:.3f}"
            axes.plot(rows[-1]["epoch"], value * scale, "D", color=GREEN, markersize=7, label=f"test, at the end: {text}")
        axes.set(xlabel="epoch", ylabel=CURVES[name])
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.xaxis.get_major_locator().set_params(integer=True)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False)
    figure.suptitle(title)
    return _write(figure, path)


def prediction_grid(images: Tensor, logits: Tensor, labels: Tensor, path: Path, title: str = "", columns: int = 8) -> Path:
    """Draws images with the predicted class and its probability; what is wrong is framed, crossed and corrected.

    Args:
        images: (number, 1, height, width), any range; logits: (number, classes); labels: (number,).
    """
    rows = -(-len(images) // columns)
    figure = _figure(columns * 1.15, rows * 1.5 + 0.6)
    confidence, predicted = logits.softmax(-1).max(-1)
    for place, axes in enumerate(figure.subplots(rows, columns, squeeze=False).flat):
        axes.set(xticks=[], yticks=[])
        if place >= len(images):
            axes.set_axis_off()
            continue
        axes.imshow(images[place, 0].numpy(), cmap="gray_r", interpolation="nearest")
        right = int(predicted[place]) == int(labels[place])
        text = f"{int(predicted[place])}  ({float(confidence[place]):.0%})".replace("%", " %")
        if right:
            axes.set_title(text, fontsize=9, color=GREY)
        else:
            axes.set_title(f"✗ {text}\nit is {int(labels[place])}", fontsize=9, color=RED, fontweight="bold")
        for spine in axes.spines.values():
            spine.set(linewidth=0.6 if right else 3.0, color=GREY if right else RED, linestyle="-" if right else "--")
    figure.suptitle(title, fontsize=11)
    return _write(figure, path)


def _figure(width: float, height: float) -> Any:
    # without pyplot, which keeps figures in a global list and asks for a screen
    return require("matplotlib.figure", "train", "pictures").Figure(figsize=(width, height), layout="constrained")


def _write(figure: Any, path: Path) -> Path:
    canvas = require("matplotlib.backends.backend_agg", "train", "pictures").FigureCanvasAgg
    figure.set_dpi(150)
    canvas(figure).print_png(str(path))
    return path
