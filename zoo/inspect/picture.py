"""Pictures of attention, over an image or over tokens: labelled, in colours that everybody can tell apart."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from zoo.errors import InputError, ZooError, one_of
from zoo.extras import require
from zoo.inspect.attention import Attended

FORMATS = (".png", ".pdf", ".svg")
COLOURS = "viridis"
INK, QUIET, MARK = "#222222", "#444444", "#D55E00"
TITLE, LABEL, SMALL = 12, 10, 9
"""Sizes of letters in points, at the size that the picture is saved in."""
SIDE = 1.75
"""Inches of the longer side of an image."""


class Panel(NamedTuple):
    """One map of a picture."""

    title: str
    values: Tensor
    """(rows, columns): shares of attention."""
    top: float
    """What the brightest colour stands for."""
    bar: bool = True
    """Whether a bar beside it explains the colours."""
    windows: Any = None
    """How the layer cuts its grid into windows, whose borders are drawn; None for no such borders."""


def over_image(
    attended: Attended, shown: Tensor, path: str | Path, *, token: int | None = None, title: str = "", example: int = 0
) -> Path:
    """Draws how much attention each patch of an image gets, over the image and beside it.

    The heads of one layer share a scale of colours, so that they can be compared; other maps have their own.

    Args:
        attended: what `zoo.attend` gave.
        shown: the image (height, width, channels), from 0 to 1.
        path: of a .png, .pdf or .svg file, which appears whole or not at all.
        token: whose attention; 0 is the class token where there is one. None takes the mean over all tokens.
        title: what stands above.
        example: which one of the batch.

    Raises:
        InputError: the tokens form no grid, or there is no such token.
        ZooError: the file cannot be written.
    """
    grid, prefix = attended.grid, attended.prefix
    if grid is None:
        raise InputError("the tokens of this model form no grid that could be laid over an image")
    rows = []
    several = attended.grids or (grid,) * len(attended.maps)
    windows = attended.windows or (None,) * len(attended.maps)
    for layer, weights, own, cut in zip(attended.layers, attended.maps, several, windows):
        here = _merged(token, prefix, grid, own or grid)
        heads = [_patches(one, here, prefix, own or grid) for one in weights[example]]
        top, wrap = max(float(values.max()) for values in heads), _wrap(len(heads))
        panels = [
            Panel(_named(attended, layer, head), values, top, (head + 1) % wrap == 0 or head + 1 == len(heads), cut)
            for head, values in enumerate(heads)
        ]
        rows += [panels[start : start + wrap] for start in range(0, len(panels), wrap)]
    if attended.rollout is not None:
        values = _patches(attended.rollout[example], token, prefix, grid)
        rows.append([Panel("rollout, all layers", values, float(values.max()))])
    places = _placed(rows)
    high, wide = (SIDE * side / max(shown.shape[:2]) for side in shown.shape[:2])
    lines, columns = (max(place[axis] for place in [(0, 0), *places]) + 1 for axis in (0, 1))
    figure, axes = _page(lines, columns, high + 0.6, wide + 0.75, 0.6)
    patch = None if token is None or token < prefix else divmod(token - prefix, grid[1])
    axes[0][0].imshow(_pixels(shown), interpolation=_smooth(shown))
    axes[0][0].set_title("image", fontsize=LABEL, color=INK)
    if patch is not None:
        for row, column in [(0, 0), *places]:
            _frame(axes[row][column], patch, grid, shown)
    for (row, column), panel in places.items():
        _draw_over(axes[row][column], panel, shown, figure)
        if panel.windows is not None:
            _borders(axes[row][column], panel.windows, shown)
    figure.suptitle(title, fontsize=TITLE, color=INK)
    return write(figure, Path(path))


def over_tokens(
    maps: Sequence[tuple[str, Tensor]],
    tokens: Sequence[str],
    path: str | Path,
    *,
    keys: Sequence[str] | None = None,
    title: str = "",
    named: tuple[str, str] = ("from", "to"),
) -> Path:
    """Draws attention between tokens as heat maps: a row for each token that attends, a column for each it attends to.

    Args:
        maps: a title and the weights (tokens, keys) for each heat map, from any model; see `token_maps`.
        tokens: what the rows are called.
        path: of a .png, .pdf or .svg file, which appears whole or not at all.
        keys: what the columns are called (default: as the rows).
        title: what stands above.
        named: what stands at the rows and below the columns.

    Raises:
        InputError: no maps, or labels that do not fit them.
        ZooError: the file cannot be written.
    """
    keys = tokens if keys is None else keys
    if not maps:
        raise InputError("there are no maps to draw")
    for name, weights in maps:
        if tuple(weights.shape) != (len(tokens), len(keys)):
            raise InputError(f"{name}: a map of {tuple(weights.shape)} for {len(tokens)} tokens and {len(keys)} keys")
    longest = max(len(tokens), len(keys))
    cell, font = (0.22, SMALL) if longest <= 24 else (0.16, 7) if longest <= 60 else (0.1, 5)
    step = math.ceil(longest / 120)  # more labels than that would lie on each other
    down, across = [_word(word) for word in tokens], [_word(word) for word in keys]
    margin = [0.0085 * font * max(map(len, words), default=1) + 0.1 for words in (down, across)]
    high, wide = cell * len(tokens) + margin[1] + 0.55, cell * len(keys) + margin[0] + 1.25
    columns = min(math.ceil(math.sqrt(len(maps))), max(1, int(20 / wide)))
    figure, axes = _page(math.ceil(len(maps) / columns), columns, high, wide, 0.5)
    for number, (name, weights) in enumerate(maps):
        here = axes[number // columns][number % columns]
        here.set_axis_on()
        drawn = here.imshow(weights.detach().float().cpu().numpy() * 100, cmap=COLOURS, vmin=0.0, interpolation="nearest")
        here.set_xticks(range(0, len(keys), step), across[::step], rotation=90, fontsize=font, color=INK)
        here.set_yticks(range(0, len(tokens), step), down[::step], fontsize=font, color=INK)
        here.tick_params(length=0)
        here.spines[:].set_visible(False)
        here.set_title(name, fontsize=LABEL, color=INK)
        here.set_ylabel(named[0], fontsize=SMALL, color=QUIET)
        here.set_xlabel(named[1], fontsize=SMALL, color=QUIET)
        _bar(figure, drawn, here, "% of attention")
    figure.suptitle(title, fontsize=TITLE, color=INK)
    return write(figure, Path(path))


def token_maps(attended: Attended, example: int = 0) -> list[tuple[str, Tensor]]:
    """The maps that `zoo.attend` gave, with titles, for `over_tokens`."""
    named = [
        (_named(attended, layer, head), weights)
        for layer, maps in zip(attended.layers, attended.maps)
        for head, weights in enumerate(maps[example])
    ]
    return named if attended.rollout is None else [*named, ("rollout, all layers", attended.rollout[example])]


def write(figure: Any, path: Path) -> Path:
    """Writes a figure beside `path` and renames it, so that no half of a picture is ever there."""
    check_path(path)
    require("matplotlib.backends.backend_agg", "train", "pictures of attention").FigureCanvasAgg(figure)
    temporary = None
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}.", suffix=path.suffix)
        os.close(handle)
        temporary = Path(name)
        figure.savefig(temporary, dpi=200, facecolor="white", bbox_inches="tight", pad_inches=0.08)
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        os.replace(temporary, path)
    except OSError as error:
        raise ZooError(f"{path}: cannot be written: {error.strerror or error}") from None
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
    return path


def check_path(path: Path) -> None:
    """Raises a ZooError where no picture can be written; called before anything is computed too."""
    if path.suffix.lower() not in FORMATS:
        raise ZooError(f"{path}: expected the name of a picture, with {one_of(FORMATS)} at its end")
    if path.is_dir():
        raise ZooError(f"{path}: cannot be written: a folder is there")
    if not path.parent.is_dir():
        raise ZooError(f"{path}: cannot be written: there is no folder {path.parent}")


def _placed(rows: list[list[Panel]]) -> dict[tuple[int, int], Panel]:
    """Row and column of each panel; the image stands in the first row and column."""
    if all(len(row) == 1 for row in rows):  # one map for each layer: as on lines of text
        columns = min(len(rows) + 1, 4 if len(rows) < 8 else 5)
        return {divmod(number + 1, columns): row[0] for number, row in enumerate(rows)}
    rollout = [row[0] for row in rows if row[0].title.startswith("rollout")]
    layers = [row for row in rows if not row[0].title.startswith("rollout")]
    first = 2 if rollout and len(layers) == 1 else 1
    places = {(number, first + head): panel for number, row in enumerate(layers) for head, panel in enumerate(row)}
    return places | {((0, 1) if first == 2 else (1, 0)): panel for panel in rollout}


def _wrap(heads: int, most: int = 6) -> int:
    """How many heads of a layer stand side by side: as many on each line, as far as that works out."""
    return math.ceil(heads / math.ceil(heads / most))


def _page(rows: int, columns: int, high: float, wide: float, title: float) -> tuple[Any, Any]:
    """A figure with places of so many inches; without pyplot, which keeps figures and asks for a screen."""
    make = require("matplotlib.figure", "train", "pictures of attention").Figure
    figure = make(figsize=(max(columns * wide, 3.4), rows * high + title), layout="constrained", facecolor="white")
    axes = figure.subplots(rows, columns, squeeze=False)
    for each in axes.flat:
        each.set_axis_off()
    return figure, axes


def _draw_over(axes: Any, panel: Panel, shown: Tensor, figure: Any) -> None:
    drawn = _overlaid(axes, panel.values * 100, panel.top * 100, shown)
    axes.set_title(panel.title, fontsize=LABEL, color=INK)
    _below(axes, f"{float(panel.values.sum()) * 100:.0f} % on patches")
    if panel.bar:
        _bar(figure, drawn, axes, "% per patch")


def _overlaid(axes: Any, values: Tensor, top: float, shown: Tensor) -> Any:
    """Values (rows, columns) from 0 to `top` as colours over an image."""
    # the image below in middle greys, so that the colours above it stay apart
    axes.imshow(0.3 + 0.5 * _pixels(shown).mean(-1), cmap="gray", vmin=0.0, vmax=1.0, interpolation=_smooth(shown))
    return axes.imshow(
        values.detach().float().cpu().numpy(),
        cmap=COLOURS,
        vmin=0.0,
        vmax=top or 1.0,
        alpha=0.72,
        interpolation="bilinear" if min(values.shape) >= 8 else "nearest",
        extent=(-0.5, shown.shape[1] - 0.5, shown.shape[0] - 0.5, -0.5),
    )


def _below(axes: Any, text: str) -> None:
    axes.text(0.5, -0.03, text, transform=axes.transAxes, ha="center", va="top", fontsize=SMALL, color=QUIET)


def _frame(axes: Any, patch: tuple[int, int], grid: tuple[int, int], shown: Tensor) -> None:
    """Frames the patch whose attention is drawn."""
    rectangle = require("matplotlib.patches", "train", "pictures of attention").Rectangle
    high, wide = shown.shape[0] / grid[0], shown.shape[1] / grid[1]
    corner = (patch[1] * wide - 0.5, patch[0] * high - 0.5)
    for colour, width in (("white", 2.6), (MARK, 1.3)):
        axes.add_patch(rectangle(corner, wide, high, fill=False, edgecolor=colour, linewidth=width, zorder=5))


def _borders(axes: Any, windows: Any, shown: Tensor) -> None:
    """Lines between the windows of a layer; those that were shifted stand between those that were not."""
    for axis, draw in ((0, axes.axhline), (1, axes.axvline)):
        length, side, shift = windows.grid[axis], windows.window[axis], windows.shift[axis]
        for place in range(shift % side or side, length, side):
            draw(place * shown.shape[axis] / length - 0.5, color="white", linewidth=0.8, alpha=0.8, zorder=4)


def _merged(token: int | None, prefix: int, grid: tuple[int, int], own: tuple[int, int]) -> int | None:
    """The token of a layer's own grid into which a token of the first grid was merged."""
    if token is None or token < prefix or own == grid:
        return token
    row, column = divmod(token - prefix, grid[1])
    merged = math.ceil(grid[0] / own[0])
    return prefix + row // merged * own[1] + column // merged


def _bar(figure: Any, drawn: Any, axes: Any, label: str) -> None:
    bar = figure.colorbar(drawn, cax=axes.inset_axes((1.03, 0.0, 0.045, 1.0)))  # as high as the map
    bar.locator = require("matplotlib.ticker", "train", "pictures of attention").MaxNLocator(nbins=5, steps=[1, 2, 5, 10])
    bar.update_ticks()
    bar.ax.tick_params(labelsize=SMALL, colors=QUIET, length=2)
    bar.outline.set_visible(False)
    bar.set_label(label, fontsize=SMALL, color=QUIET)


def _patches(weights: Tensor, token: int | None, prefix: int, grid: tuple[int, int]) -> Tensor:
    """What a token (or all of them, on average) gives to each patch (rows, columns)."""
    tokens, keys = weights.shape
    if keys != prefix + grid[0] * grid[1]:
        raise InputError(f"a map of {keys} keys cannot be laid over {grid[0]} x {grid[1]} patches")
    if token is not None and not 0 <= token < tokens:
        raise InputError(f"token: {token} is none of 0 to {tokens - 1}")
    row = weights.mean(0) if token is None else weights[token]
    return row[prefix:].reshape(grid)


def _named(attended: Attended, layer: int, head: int) -> str:
    return f"layer {layer}, {'mean of heads' if attended.heads is None else f'head {attended.heads[head]}'}"


def _smooth(shown: Tensor) -> str:
    return "nearest" if max(shown.shape[:2]) < 100 else "antialiased"


def _pixels(shown: Tensor) -> Any:
    """(height, width, 3)"""
    return shown.float().cpu().clamp(0.0, 1.0).expand(-1, -1, 3).numpy()


def _word(token: str) -> str:
    """A token as a label: what cannot be seen made visible, and not too long."""
    text = token.replace("\n", "\u23ce").replace("\t", "\u21e5").replace(" ", "\u2423").replace("$", r"\$") or "\u2205"
    return text if len(text) <= 16 else f"{text[:15]}\u2026"
