"""A picture of which experts the tokens of each task choose."""

from __future__ import annotations

from pathlib import Path

from zoo.extras import require
from zoo.inspect.experts import Experts
from zoo.inspect.picture import INK, LABEL, QUIET, SMALL, TITLE, check_path, write

SHADES = "Blues"
CELL = 0.5
"""Inches of the side of a cell."""


def draw_experts(experts: Experts, path: str | Path, title: str = "") -> Path:
    """Draws for each layer with experts a row of shades for each task: what share of its tokens each expert is chosen by.

    All layers share a scale, at which a line marks what share each expert would have if all were chosen alike.

    Args:
        path: of a .png, .pdf or .svg file, which appears whole or not at all.
        title: what stands above.

    Raises:
        ZooError: the file cannot be written.
    """
    path = Path(path)
    check_path(path)
    figures = require("matplotlib.figure", "train", "pictures of experts")
    widest = max(table.shape[1] for table in experts.shares)
    lines, tasks = len(experts.layers), len(experts.tasks)
    names = [f"{task}  " for task in experts.tasks]
    margin = 0.085 * max(map(len, names)) + 0.2
    size = (max(widest * CELL + margin + 1.1, 4.5), lines * (tasks * CELL * 0.8 + 0.75) + 0.7)
    figure = figures.Figure(figsize=size, layout="constrained", facecolor="white")
    top = max(float(table.max()) for table in experts.shares) * 100 or 100.0
    drawn = None
    panels = figure.subplots(lines, 1, squeeze=False)[:, 0]
    for axes, layer, table in zip(panels, experts.layers, experts.shares):
        shares = table.double().numpy() * 100
        drawn = axes.imshow(shares, cmap=SHADES, vmin=0.0, vmax=top, aspect="auto", interpolation="nearest")
        for row, values in enumerate(shares):
            for column, value in enumerate(values):
                colour = "white" if value > 0.6 * top else INK
                axes.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=SMALL, color=colour)
        axes.set_xticks(range(table.shape[1]), [str(number) for number in range(table.shape[1])], fontsize=SMALL, color=INK)
        axes.set_yticks(range(tasks), experts.tasks, fontsize=LABEL, color=INK)
        axes.set_xticks([number - 0.5 for number in range(1, table.shape[1])], minor=True)
        axes.set_yticks([number - 0.5 for number in range(1, tasks)], minor=True)
        axes.grid(which="minor", color="white", linewidth=2)
        axes.tick_params(which="both", length=0)
        axes.spines[:].set_visible(False)
        axes.set_title(named(layer), fontsize=LABEL, color=INK, loc="left")
    bar = figure.colorbar(drawn, ax=list(panels), fraction=0.03, pad=0.02)
    bar.outline.set_visible(False)
    bar.set_label("% of the tokens", fontsize=SMALL, color=QUIET)
    bar.ax.tick_params(labelsize=SMALL, length=0, labelcolor=QUIET)
    below = "expert"
    if len({(table.shape[1], each) for table, each in zip(experts.shares, experts.top_k)}) == 1:
        even = 100 * experts.top_k[0] / experts.shares[0].shape[1]
        below = f"expert (a token meets {experts.top_k[0]}; if all were chosen alike, each by {even:.3g} %)"
        bar.ax.axhline(even, color=INK, linewidth=1.5)
    panels[-1].set_xlabel(below, fontsize=SMALL, color=QUIET)
    figure.suptitle(title, fontsize=TITLE, color=INK)
    return write(figure, path)


def named(layer: str) -> str:
    """What a layer with experts is called: `layer 1` for `stack.layers.1.feedforward`; else its name."""
    parts = layer.split(".")
    plain = parts[:2] == ["stack", "layers"] and parts[3:] == ["feedforward"]
    return f"layer {parts[2]}" if plain else layer


__all__ = ["draw_experts", "named"]
