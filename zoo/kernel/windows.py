"""Attention within the windows of a grid: cutting the grid up, moving it, and what is added to the scores.

A window has few tokens (49 or 144), so its products are too small for the fused operator to gain anything: all windows of a
batch are plain batched products with a softmax between them, as `window_attention` does for up to `SMALL` tokens. What
depends on nothing but sizes, such as which tokens of a moved grid are neighbours, is made once for each of the last sizes;
what depends on a weight, a table of biases, is kept while that weight stays as it is and needs no gradient.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Hashable
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.kernel.attention import attention
from zoo.kernel.switch import fast, product_dtype
from zoo.kernel.weights import attention_weights

APART = -100.0
"""What is added to the score of two tokens that only the movement brought into one window: the references' number."""
SMALL = 256  # tokens of a window up to which plain products are taken
LEAST = math.log(torch.finfo(torch.float32).tiny * SMALL)
"""Scores so far below the highest of their token leave weights below the least normal number, and are taken for minus infinity.

Processors are slow on such weights: on one core of an AVX-512 server, with 128 windows of 49 tokens and 3 heads, the softmax
took 2.4 ms instead of 1.0, and the product behind it 6.2 instead of 0.9.
"""
SIZES = 32  # of grids, and the windows they are cut into, that are remembered
KEPT, LARGEST = 8, 2**21  # tables that are remembered for one weight, and their elements, unless one alone has more


class Windows(NamedTuple):
    """How a grid of tokens is cut into windows."""

    grid: tuple[int, int]
    """Rows and columns."""
    window: tuple[int, int]
    """Rows and columns of a window."""
    shift: tuple[int, int] = (0, 0)
    """By how many rows and columns the windows stand further down and to the right."""
    pad_first: bool = True
    """Whether the grid is filled up to whole windows before it is moved, or behind it."""

    @property
    def padded(self) -> tuple[int, int]:
        """Rows and columns of the grid, filled up to whole windows."""
        (rows, columns), (high, wide) = self.grid, self.window
        return rows + -rows % high, columns + -columns % wide

    @property
    def counts(self) -> tuple[int, int]:
        """How many windows stand below and beside each other."""
        return self.padded[0] // self.window[0], self.padded[1] // self.window[1]

    @property
    def plain(self) -> bool:
        """Whether the grid is whole windows where it stands."""
        return self.padded == self.grid and self.shift == (0, 0)

    def moved(self, x: Tensor) -> Tensor:
        """(batch, tokens, size) -> (batch, padded tokens, size): filled up with zeros on the right and below, and moved."""
        if self.plain:
            return x
        if self._gathered(x):
            return x.index_select(1, _remembered(_order, (self, -1), x.device))
        x = x.unflatten(1, self.grid)
        if self.pad_first:
            x = self._rolled(self._filled(x), -1)
        else:
            x = self._filled(self._rolled(x, -1))
        return x.flatten(1, 2)

    def back(self, x: Tensor) -> Tensor:
        """(batch, padded tokens, size) -> (batch, tokens, size): the tokens where they came from."""
        if self.plain:
            return x
        if self._gathered(x):
            return x.index_select(1, _remembered(_order, (self, 1), x.device))
        x = x.unflatten(1, self.padded)
        if self.pad_first:
            x = self._cropped(self._rolled(x, 1))
        else:
            x = self._rolled(self._cropped(x), 1)
        return x.flatten(1, 2)

    def cut(self, x: Tensor) -> Tensor:
        """(batch, heads, padded tokens, size) -> (batch, windows, heads, tokens of a window, size)"""
        (down, along), (high, wide) = self.counts, self.window
        x = x.unflatten(2, (down, high, along, wide)).permute(0, 2, 4, 1, 3, 5, 6)
        return x.flatten(4, 5).flatten(1, 2)

    def joined(self, x: Tensor) -> Tensor:
        """(batch, windows, heads, tokens of a window, size) -> (batch, heads, padded tokens, size)"""
        x = x.unflatten(3, self.window).unflatten(1, self.counts).permute(0, 1, 4, 2, 5, 3, 6)
        return x.flatten(1, 4).transpose(1, 2)  # heads side by side in memory, as the projection behind it reads them

    def _gathered(self, x: Tensor) -> bool:
        """Whether a grid of whole windows is moved in one step: half the time of two, but slower where gradients come back."""
        return self.padded == self.grid and not torch.compiler.is_compiling() and not torch.is_grad_enabled() and fast()

    def _filled(self, x: Tensor) -> Tensor:
        below, right = (new - old for new, old in zip(self.padded, self.grid))
        return F.pad(x, (0, 0, 0, right, 0, below)) if below or right else x

    def _cropped(self, x: Tensor) -> Tensor:
        return x if self.padded == self.grid else x[:, : self.grid[0], : self.grid[1]]

    def _rolled(self, x: Tensor, direction: int) -> Tensor:
        return x if self.shift == (0, 0) else x.roll((direction * self.shift[0], direction * self.shift[1]), (1, 2))


class Kept:
    """Tables made from one weight, the last few of them, for as long as the weight stays as it is.

    They are neither copied nor pickled with the module that has them.
    """

    def __init__(self) -> None:
        self.weight: Tensor | None = None  # as it was, and where and at which version
        self.state: tuple[Any, ...] = ()
        self.tables: OrderedDict[Hashable, Tensor] = OrderedDict()

    def of(self, weight: Tensor, name: Hashable, make: Callable[[], Tensor]) -> Tensor:
        """The table of this name; made afresh where the weight needs its gradient, or nobody can tell that it is the same."""
        if torch.compiler.is_compiling() or (torch.is_grad_enabled() and weight.requires_grad):
            return make()
        if not fast() or weight.is_meta or type(weight) not in (Tensor, torch.nn.Parameter) or weight.is_inference():
            return make()
        if not self._holds(weight):
            self.weight, self.state = weight.detach().clone(), _state(weight)
            self.tables.clear()
        if name not in self.tables:
            with torch.inference_mode(False), torch.no_grad():  # so that others may use it in training, or for a gradient
                self.tables[name] = make()
            while len(self.tables) > 1 and (len(self.tables) > KEPT or sum(map(Tensor.numel, self.tables.values())) > LARGEST):
                self.tables.popitem(last=False)
        self.tables.move_to_end(name)
        return self.tables[name]

    def _holds(self, weight: Tensor) -> bool:
        """Whether the weight is as it was; its values are compared too, but not on a device, which would have to be awaited."""
        if self.weight is None or self.state != _state(weight):
            return False
        return weight.device.type != "cpu" or torch.equal(self.weight, weight)

    def __deepcopy__(self, memory: Any) -> Kept:
        return Kept()

    def __reduce__(self) -> tuple[Any, ...]:
        return Kept, ()


def _state(weight: Tensor) -> tuple[Any, ...]:
    return weight._version, weight.data_ptr(), weight.dtype, weight.device


def window_index(window: tuple[int, int], device: torch.device) -> Tensor:
    """(tokens of a window)^2 whole numbers, row by row: which entry of a table belongs to a query and a key.

    The table has an entry for each distance, from 1 - height to height - 1 rows, and for each of these from 1 - width to
    width - 1 columns, as the query's place minus the key's.
    """
    return _remembered(_index, window, device)


def regions(windows: Windows, like: Tensor) -> Tensor | None:
    """(windows, 1, tokens, tokens), of the type of `like`: `APART` where a query and a key were apart before the
    windows moved, and 0 elsewhere; None if they did not move."""
    if windows.shift == (0, 0):
        return None
    return _remembered(_regions, (windows.padded, windows.window, windows.shift, like.dtype), like.device)


def real_places(windows: Windows, device: torch.device) -> Tensor | None:
    """(padded tokens,), true for tokens of the moved grid that are no filling; None where there is no filling."""
    if windows.padded == windows.grid:
        return None
    return _remembered(_real_places, windows, device)


def window_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scores: Tensor | None,
    scale: float,
    dropout: float = 0.0,
    masked: bool = False,
) -> Tensor:
    """(batch, windows, heads, tokens, size) x 2 of (batch, windows, key heads, key tokens, size) -> as query.

    scores: what is added to the scaled scores, (batch or 1, windows or 1, heads or 1, tokens or 1, key tokens). masked:
    whether some of it may be minus infinity; a token that may attend to nothing gets zeros. Fewer key heads than query heads
    are shared by groups of query heads. dropout: of the weights; the caller passes 0 outside training.
    """
    if masked or key.shape[3] > SMALL:
        batch, number = query.shape[:2]
        if scores is not None:
            scores = scores.expand(batch, number, -1, -1, -1).flatten(0, 1)
        inputs = (each.flatten(0, 1) for each in (query, key, value))
        return attention(*inputs, mask=scores, scale=scale, dropout=dropout).unflatten(0, (batch, number))
    value = _shared(value, query.shape[2])
    weights = _weights(query, key, scores, scale)
    return (F.dropout(weights, dropout) if dropout > 0.0 else weights) @ value


def window_weights(query: Tensor, key: Tensor, scores: Tensor | None, scale: float) -> Tensor:
    """(batch, windows, heads, tokens, key tokens): the weights with which `window_attention` mixes the values."""
    if scores is not None:
        scores = scores.expand(query.shape[0], query.shape[1], -1, -1, -1).flatten(0, 1)
    found = attention_weights(query.flatten(0, 1), key.flatten(0, 1), mask=scores, scale=scale)
    return found.unflatten(0, query.shape[:2])


def _weights(query: Tensor, key: Tensor, scores: Tensor | None, scale: float) -> Tensor:
    key = _shared(key, query.shape[2])
    if torch.is_grad_enabled() or not fast() or product_dtype(query, key, *([] if scores is None else [scores])) is None:
        products = (query * scale) @ key.mT
        products = products if scores is None else products + scores
        return (_settled(products) if _moved(products, scores) else products).softmax(-1)
    inputs = query.flatten(0, 2), key.flatten(0, 2).mT
    products = torch.baddbmm(query.new_empty(1, 1, 1), *inputs, beta=0, alpha=scale).view(*query.shape[:4], -1)
    products = products if scores is None else products.add_(scores)
    products = _settled(products) if _moved(products, scores) else products
    return torch.softmax(products, -1, out=products)


def _moved(products: Tensor, scores: Tensor | None) -> bool:
    """Whether some scores may be so low that they are settled first: where windows differ, and on a processor."""
    if scores is None or scores.shape[1] == 1 or products.dtype != torch.float32 or products.device.type != "cpu":
        return False
    return not torch.is_autocast_enabled("cpu")  # weights are rounded to half precision then, and small ones to zero


def _settled(products: Tensor) -> Tensor:
    """The scores, below the highest of their token, those that leave nothing being minus infinity. It changes what it is given
    where no gradients are recorded."""
    highest = products.detach().amax(-1, keepdim=True)
    if torch.is_grad_enabled():
        return F.threshold(products - highest, LEAST, -math.inf)
    below: Tensor = torch.threshold_(products.sub_(highest), LEAST, -math.inf)
    return below


def _shared(x: Tensor, heads: int) -> Tensor:
    return x if x.shape[2] == heads else x.repeat_interleave(heads // x.shape[2], dim=2)


def _remembered(function: Callable[..., Any], sizes: Any, device: torch.device) -> Tensor:
    """What a function of sizes gives; made anew while something watches the operators, for which it must be made."""
    found: Tensor = _last(function, sizes, device) if fast() else function(sizes, device)
    return found


@lru_cache(SIZES)
def _last(function: Callable[..., Tensor], sizes: Any, device: torch.device) -> Tensor:
    with torch.inference_mode(False), torch.no_grad():
        return function(sizes, device)


def _order(sizes: tuple[Windows, int], device: torch.device) -> Tensor:
    windows, direction = sizes
    place = torch.arange(windows.grid[0] * windows.grid[1], device=device)
    return windows._rolled(place.view(1, *windows.grid, 1), direction).flatten()


def _index(window: tuple[int, int], device: torch.device) -> Tensor:
    rows, columns = (torch.arange(side, device=device) for side in window)
    down = (rows[:, None] - rows[None] + window[0] - 1) * (2 * window[1] - 1)
    along = columns[:, None] - columns[None] + window[1] - 1
    return (down[:, None, :, None] + along[None, :, None, :]).flatten()


def _regions(sizes: tuple[Any, ...], device: torch.device) -> Tensor:
    padded, window, shift, dtype = sizes
    axes = []
    for length, moved in zip(padded, shift):  # what came round the edge stands in the last rows
        place = torch.arange(length, device=device)
        axes.append((place >= length - moved) if moved else torch.zeros_like(place, dtype=torch.bool))
    region = axes[0][:, None].long() * 2 + axes[1][None]
    plan = Windows(padded, window)
    cut = plan.cut(region.flatten()[None, None, :, None])[0, :, :, :, 0]
    return (cut[:, :, :, None] != cut[:, :, None, :]).to(dtype) * APART


def _real_places(windows: Windows, device: torch.device) -> Tensor:
    ones = torch.ones(1, windows.grid[0] * windows.grid[1], 1, dtype=torch.bool, device=device)
    return windows.moved(ones)[0, :, 0]
