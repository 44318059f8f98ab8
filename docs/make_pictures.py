"""Draws the pictures of the documentation from what zoo itself measures.

Run it from the root of the repository: `python docs/make_pictures.py`. It needs the extras `train` and
`verify`, no network, and about a minute.
"""

from __future__ import annotations

import math
import re
from pathlib import Path

import matplotlib
import torch

matplotlib.use("Agg")

from matplotlib import pyplot
from matplotlib.axes import Axes

import zoo
from zoo.verification.report import TOLERANCE, Layer

PICTURES = Path(__file__).parent / "pictures"
LAYER, DEPTH = 5, 12
ZERO = 1e-18
"""Where a difference of exactly zero is drawn on the logarithmic axis."""

# blue, vermilion and grey of Okabe and Ito, which every kind of colour vision tells apart
BLUE, VERMILION, GREY = "#0072B2", "#D55E00", "#8A8A8A"


def exchanged() -> list[Layer]:
    """What `zoo.verify` finds in ViT-Ti with one feed-forward exchanged, module by module."""
    pattern = [{"feedforward": "gated"} if layer == LAYER else {} for layer in range(DEPTH)]
    torch.manual_seed(0)  # of the exchanged part's fresh weights
    report = zoo.verify("vit-tiny", {"stack.pattern": pattern}, reference="transformers", gradients=False, training=False)
    inner = re.compile(r"stack\.layers\.\d+")  # a whole block repeats what its modules say
    return [layer for layer in report.layers if not inner.fullmatch(layer.name) and layer.name != "logits"]


def draw_exchange(layers: list[Layer], path: Path) -> None:
    """One part exchanged, the rest equal: each module's difference, alone and within the model."""
    place = next(number for number, layer in enumerate(layers) if layer.diverges)
    steps = range(len(layers))
    figure, axes = pyplot.subplots(figsize=(9.6, 4.4), dpi=160, layout="constrained")
    axes.axhline(TOLERANCE, color=GREY, linewidth=1, linestyle=(0, (5, 4)), zorder=1)
    axes.text(len(layers) - 0.4, TOLERANCE * 1.6, "tolerance", color="#555555", fontsize=9, ha="right", va="bottom")
    axes.plot(
        steps, [max(layer.float64, ZERO) for layer in layers], color=GREY, linewidth=1.2, marker="o", markersize=4,
        markerfacecolor="white", zorder=2, label="in the running model: all behind the change moves",
    )  # fmt: skip
    alone = [(step, layer) for step, layer in zip(steps, layers) if step != place]
    axes.scatter(
        [step for step, _ in alone], [max(layer.own, ZERO) for _, layer in alone], s=26, color=BLUE, zorder=3,
        label="alone, given the reference's own input: the rest is equal",
    )  # fmt: skip
    axes.scatter([place], [layers[place].own], s=110, marker="D", color=VERMILION, zorder=4, label="the exchanged part")
    axes.annotate(
        f"feed-forward of layer {LAYER}:\nmlp exchanged for gated", (place, layers[place].own), xytext=(place - 1.6, 3e-3),
        ha="right", va="center", fontsize=10, color=VERMILION, arrowprops={"arrowstyle": "-", "color": VERMILION, "shrinkB": 6},
    )  # fmt: skip
    _name_axes(axes, layers)
    axes.legend(loc="center right", bbox_to_anchor=(1.0, 0.28), frameon=False, fontsize=9.5)
    figure.savefig(path, facecolor="white")
    pyplot.close(figure)


def _name_axes(axes: Axes, layers: list[Layer]) -> None:
    axes.set_yscale("log")
    axes.set_ylim(ZERO / 12, 40)
    ticks = [1e0, 1e-4, 1e-8, 1e-12, 1e-16]
    axes.set_yticks([*ticks, ZERO], [*(f"$10^{{{round(math.log10(tick))}}}$" for tick in ticks), "equal"])
    axes.minorticks_off()
    first = {int(match[1]): number for number, layer in reversed(list(enumerate(layers)))
             if (match := re.match(r"stack\.layers\.(\d+)\.", layer.name))}  # fmt: skip
    for number, start in first.items():
        if number % 2:
            axes.axvspan(start - 0.5, start + 3.5, color="#F3F5F7", zorder=0, linewidth=0)
    axes.set_xticks([-0.6, *(start + 1.5 for start in first.values()), len(layers) - 1.5], ["embed", *map(str, first), "head"])
    axes.tick_params(axis="x", length=0)
    axes.set_xlim(-1.8, len(layers) + 0.2)
    axes.set_xlabel("layer of ViT-Ti (norm, attention, norm, feed-forward each)")
    axes.set_ylabel("difference from Hugging Face's ViT\n(float64, share of the largest value)")
    axes.spines[["top", "right"]].set_visible(False)


def main() -> None:
    """Draws all pictures."""
    PICTURES.mkdir(exist_ok=True)
    draw_exchange(exchanged(), PICTURES / "exchange.png")


if __name__ == "__main__":
    main()
