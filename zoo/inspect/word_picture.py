"""Pictures of which patches of an image answer which word of a text."""

from __future__ import annotations

import math
from pathlib import Path

from torch import Tensor

from zoo.errors import InputError
from zoo.inspect.picture import INK, LABEL, SIDE, TITLE, _bar, _below, _overlaid, _page, _pixels, _smooth, _word, write
from zoo.inspect.words import Answered

WRAP = 5
"""How many panels stand side by side at most."""


def over_words(answered: Answered, shown: Tensor, path: str | Path, *, title: str = "") -> Path:
    """Draws how relevant each patch of an image is: to a text as a whole, and to each of its words.

    The words share a scale of colours, so that they can be compared; the whole text has its own. Below stand the cosine
    with the whole text, and for each word how much of it is lost without the word.

    Args:
        answered: what `zoo.inspect.words.answers` gave.
        shown: the image (height, width, channels), from 0 to 1.
        path: of a .png, .pdf or .svg file, which appears whole or not at all.
        title: what stands above.

    Raises:
        InputError: more words than can be drawn.
        ZooError: the file cannot be written.
    """
    if len(answered.words) > 60:
        raise InputError(f"the text has {len(answered.words)} words; a picture has room for 60")
    high, wide = (SIDE * side / max(shown.shape[:2]) for side in shown.shape[:2])
    panels = len(answered.maps) + 1
    columns = min(WRAP, math.ceil(panels / math.ceil(panels / WRAP)))
    rows = math.ceil(panels / columns)
    figure, axes = _page(rows, columns, high + 0.75, wide + 0.75, 0.6)
    axes[0][0].imshow(_pixels(shown), interpolation=_smooth(shown))
    axes[0][0].set_title("image", fontsize=LABEL, color=INK)
    tops = [float(answered.maps[0].max()), *[float(answered.maps[1:].max())] * len(answered.words)]
    for number, (values, top, cosine) in enumerate(zip(answered.maps, tops, answered.cosines.tolist())):
        place = number + 1
        here = axes[place // columns][place % columns]
        drawn = _overlaid(here, values, top, shown)
        name = "whole text" if number == 0 else f"\u201c{_word(answered.words[number - 1])}\u201d"
        here.set_title(name, fontsize=LABEL, color=INK)
        _below(here, f"cosine {cosine:.3f}" if number == 0 else f"{-cosine + 0.0:+.3f} without it")
        if number == 0 or place % columns == columns - 1 or place == panels - 1:
            _bar(figure, drawn, here, "relevance")
    figure.suptitle(title, fontsize=TITLE, color=INK)
    return write(figure, Path(path))


__all__ = ["over_words"]
