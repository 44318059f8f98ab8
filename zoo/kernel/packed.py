"""Weights kept in the layout that the matrix library wants, for inference on the CPU.

torch hands a weight to the matrix library as it lies in memory, and the library lays it out anew each time;
under bfloat16 autocast it is also converted in every call. Without gradients a weight seldom changes, so
`product` keeps the prepared weight beside the module. Measured on a 2-core AVX-512 server with bfloat16 tiles
(394 rows, 768 -> 3072 features): float32 5.9 -> 5.3 ms, bfloat16 with its conversion 1.4 -> 0.8 ms; preparing
costs 0.45 ms, less than the product itself. A whole ViT-B/16 forward in
float32 gained 2 to 10 % from run to run.

The rule. A prepared weight is made when
  - gradients are off, `fast()` holds, everything is on the CPU, in float32 or in bfloat16 autocast;
  - the module is exactly `Linear` with contiguous parameters, and nothing is hooked to it;
  - it is float32, and one of the compiled ways is worth it, whose layouts are right for any number of rows: with more than 64
    rows `zoo.kernel.tiles`, with fewer `zoo.kernel.few_rows`, with one only within `kernel.repeated()`; or else
  - there are 4 to 2048 rows (below, reading the weight is all of the time; above, the library's own layout
    costs nothing) and at least 2**20 weights in float32, 2**15 in bfloat16, 3 x 2**18 with up to 32 rows. Smaller
    float32 products gain nothing that pays for the checks (394 rows: 768 -> 768 0.99 of the plain speed, 192 -> 768
    0.90; larger ones 1.04 to 1.08, and 1.2 to 1.9 with 4 to 64 rows). Up to 16 rows oneDNN's own layout is best (the
    48 products of GPT-2 for 8 rows, which read 340 MB: 18.0 ms, MKL's 19.7, plain 31.7); 512 -> 512 features for 4 or 8
    rows lose by it (0.07 ms each, plain 0.05);
  - the same module met the same number of rows in the call before (these layouts depend on it).
One prepared weight is kept per module, or per group of modules that read one input (query, key, value), where
they form one product. Another number of rows in between, such as a prompt before tokens are generated one at a time,
is computed the plain way and leaves it alone. When another number has come often enough in a row, the weight is prepared
anew, and the next change takes twice as often; what was not used in 256 calls is freed. So a varying workload ends as
the plain call.

Memory: at most one more copy of the weights (float32; one and a half for the tiles, half in bfloat16). `zoo.kernel.plain()` or
ZOO_KERNEL=plain turns it off; `Linear.forget()`, `.train()`, `.to()` and loading a state dict free it.

It must never be stale. It is used only if every weight is the same object, at the same version (torch counts
each operation that writes to it), address and shape as when it was prepared. Writing through `weight.data`
does not count as a version; against that at least one element of every row is compared on every call (some
microseconds), which sees whatever writes whole weights or whole rows (an average of weights, an old-style
optimiser, pruning). A write of a few elements through `.data` or a numpy view is the one thing it can miss:
write under `torch.no_grad()` instead, or call `forget()`. Within `kernel.repeated()`, where one caller computes the
same model again and again (a token at a time), elements are compared the first time only.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from zoo.kernel import few_rows, tiles
from zoo.kernel.switch import fast, product_dtype, repetition

if TYPE_CHECKING:
    from typing_extensions import Self

ROWS = range(4, 2049)
WEIGHTS, WEIGHTS_BFLOAT16, WEIGHTS_FEW = 2**20, 2**15, 3 * 2**18
FEW, FEWER = 32, 16  # rows
UNUSED = 256  # calls


Compiled = tiles.Weight | few_rows.Weight
"""Layouts of our own, which are right for any number of rows."""


def layout(rows: int, outputs: int, inputs: int) -> type[Compiled] | None:
    """The layout of our own that is the fastest for about so many rows; None where the library's are."""
    if tiles.worth_it_prepared(rows, outputs, inputs):
        return tiles.Weight
    return few_rows.Weight if few_rows.worth_it(rows, outputs * inputs) else None


def multiply(x: Tensor, weight: Compiled, bias: Tensor | None = None, out: Tensor | None = None) -> Tensor | None:
    """(rows, inputs) -> (rows, outputs); None where the numbers are such that torch has to do it."""
    return (few_rows if isinstance(weight, few_rows.Weight) else tiles).multiply(x, weight, bias, out)  # type: ignore[arg-type]


class Source:
    """One weight as it was when it was prepared."""

    __slots__ = ("address", "live", "sample", "shape", "version", "weight")

    def __init__(self, weight: Tensor) -> None:
        self.weight = weakref.ref(weight)
        self.version, self.address, self.shape = weight._version, weight.data_ptr(), weight.shape
        # The view keeps the storage alive, so that no other weight can come to lie at this address. Compared
        # as integers, because a not-a-number differs from itself. One step less than a row (or column) is long
        # walks through every row and through all columns by turns; of many matrices in one, rows alone are enough.
        flat = weight.detach().view(-1).view(torch.int32)
        self.live = flat[:: max((min(weight.shape) if weight.dim() == 2 else weight.shape[-1]) - 1, 1)]
        self.sample = self.live.clone()

    def unchanged(self, weight: Tensor, compare: bool = True) -> bool:
        return (
            self.weight() is weight
            and weight._version == self.version
            and weight.data_ptr() == self.address
            and weight.shape == self.shape
            and weight.is_contiguous()
            and (not compare or torch.equal(self.live, self.sample))
        )


class Prepared:
    """What a `Linear` remembers: the last number of rows, how often it came, and the prepared weight, of which rows.

    A layout that is right for any number of rows stands in their place.
    """

    __slots__ = ("compared", "dtype", "made_for", "missed", "outputs", "patience", "rows", "seen", "sources", "weight")

    def __init__(self) -> None:
        self.rows: int | type[Compiled] = 0
        self.dtype, self.seen, self.patience = torch.float32, 0, 2
        self.made_for: tuple[int | type[Compiled], torch.dtype] = (0, torch.float32)
        self.missed = 0
        self.sources: tuple[Source, ...] = ()
        self.weight: Tensor | Compiled | None = None
        self.outputs = 0
        self.compared: object = None

    def holds(self, weights: list[Tensor], rows: int | type[Compiled], dtype: torch.dtype) -> bool:
        """Whether the prepared weight is of these weights as they are now; prepares it when it is time to."""
        if (rows, dtype) != (self.rows, self.dtype):
            self.rows, self.dtype, self.seen = rows, dtype, 0
        if self.weight is not None and (rows, dtype) == self.made_for:
            here = repetition()
            compare = here is None or self.compared is not here
            same = (source.unchanged(weight, compare) for source, weight in zip(self.sources, weights))
            if len(weights) == len(self.sources) and all(same):
                self.missed, self.compared = 0, here
                return True
            self.weight, self.sources, self.seen = None, (), 1
        self.seen += 1
        self.missed += 1
        if self.seen < self.patience:
            if self.missed >= UNUSED:
                self.weight, self.sources = None, ()
            return False
        if self.weight is not None:
            self.patience *= 2
        self._prepare(weights, rows, dtype)
        return True

    def _prepare(self, weights: list[Tensor], rows: int | type[Compiled], dtype: torch.dtype) -> None:
        self.made_for, self.missed = (rows, dtype), 0
        self.sources = tuple(Source(weight) for weight in weights)
        joined = torch.cat([weight.detach() for weight in weights]) if len(weights) > 1 else weights[0].detach()
        if not isinstance(rows, int):
            self.weight = rows(joined)
        elif dtype == torch.float32 and rows > FEWER:
            self.weight = torch.ops.mkl._mkl_reorder_linear_weight(joined, rows)
        else:
            self.weight = torch.ops.mkldnn._reorder_linear_weight(joined.to(dtype), rows)
        self.outputs = joined.shape[0]


class Preparing(torch.nn.Module):
    """A module that prepares weights, and frees what it prepared when they may change. It is neither copied nor pickled."""

    memory: ClassVar[type[Any]]
    """What remembers it."""

    @property
    def prepared(self) -> Any:
        return self.__dict__["_prepared"]

    def forget(self) -> None:
        """Free what was prepared; it is prepared anew when calls repeat again."""
        self.__dict__["_prepared"] = self.memory()

    def train(self, mode: bool = True) -> Self:
        self.forget()
        return super().train(mode)

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        self.forget()
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.forget()
        super()._load_from_state_dict(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_prepared"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.forget()


def worth_it(x: Tensor, *modules: torch.nn.Module) -> bool:
    """Whether weights of this size gain by being prepared: the cheapest of the questions, asked first."""
    if torch.is_grad_enabled() or not AVAILABLE:
        return False
    numbers = sum([module.weight.numel() for module in modules if isinstance(module, torch.nn.Linear)])
    if numbers < WEIGHTS_BFLOAT16 and x.numel() < tiles.WORK // WEIGHTS_BFLOAT16 * x.shape[-1]:
        return False
    if _own_layout(x, numbers) is not None:
        return True
    least = WEIGHTS_BFLOAT16 if torch.is_autocast_enabled("cpu") else WEIGHTS
    if least > WEIGHTS_FEW and x.numel() <= FEW * x.shape[-1]:
        least = WEIGHTS_FEW
    return numbers >= least and x.numel() >= ROWS.start * x.shape[-1]


def _own_layout(x: Tensor, weights: int) -> type[Compiled] | None:
    """The layout of our own for so many weights, if they are float32. One row is worth it where it comes again and again."""
    columns = max(x.shape[-1], 1)
    rows = x.numel() // columns
    return layout(rows, weights // columns, columns) if rows > 1 or repetition() is not None else None


def bare(module: torch.nn.Module) -> bool:
    """Whether calling the module is the product alone: exactly our class, and nothing hooked to it."""
    from zoo.kernel.linear import Linear

    return type(module) is Linear and not hooked(module) and module._parameters.get("weight") is not None


def hooked(module: torch.nn.Module) -> bool:
    """Whether calling a module does more, or something else, than its class says."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or _HOOKS._global_forward_hooks
        or _HOOKS._global_forward_pre_hooks
        or _HOOKS._global_backward_hooks
        or _HOOKS._global_backward_pre_hooks
        or "forward" in module.__dict__
    )


_HOOKS = torch.nn.modules.module


def again(x: Tensor, modules: tuple[Any, ...]) -> Tensor | None:
    """`product`, where it was asked before within `kernel.repeated()` and answered for few rows: what was asked then about
    weights and modules still holds, and asking again takes up to half as long as the product.
    """
    here = repetition()
    known = None if here is None else here.get(modules)
    if known is None:
        return None
    weight, bias = known
    columns = weight.shape[1]
    usual = type(x) is Tensor and x.dtype is torch.float32 and x.shape[-1] == columns
    if not usual or x.numel() > few_rows.MOST * columns or torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
        return None
    return few_rows.multiply(x.reshape(-1, columns), weight, bias).view(*x.shape[:-1], -1)


def product(x: Tensor, modules: tuple[Any, ...]) -> Tensor | None:
    """(..., inputs) -> (..., sum of the modules' outputs) through a prepared weight, a fresh tensor.

    None where the rule above does not want one; the caller then computes the plain way.
    """
    weights, biases = [module.weight for module in modules], [module.bias for module in modules]
    return _product(x, weights, biases, modules[0].prepared, modules)


def by_table(x: Tensor, weight: Tensor, bias: Tensor | None, memory: Prepared) -> Tensor | None:
    """Few rows by a weight that belongs to no `Linear`, such as the vectors of all tokens, where one caller multiplies by it
    again and again (`kernel.repeated`); None for the ordinary way.
    """
    if torch.compiler.is_compiling() or repetition() is None or torch.is_grad_enabled():
        return None
    y = again(x, (memory,))
    few = 0 < x.numel() <= few_rows.MOST * weight.shape[-1] and weight.numel() >= WEIGHTS_FEW
    return _product(x, [weight], [bias], memory, (memory,)) if y is None and few else y


def _product(x: Tensor, weights: list[Any], biases: list[Any], memory: Prepared, name: tuple[Any, ...]) -> Tensor | None:
    columns = weights[0].shape[-1]
    if x.dim() < 2 or x.shape[-1] != columns or not fast():
        return None
    rows = x.numel() // columns
    if len({bias is None for bias in biases}) > 1:
        return None
    dtype = product_dtype(x, *weights, *(bias for bias in biases if bias is not None))
    if dtype is None or any(w.dtype != torch.float32 or w.is_inference() or not w.is_contiguous() for w in weights):
        return None
    own = _own_layout(x, sum(weight.numel() for weight in weights)) if dtype == torch.float32 else None
    if own is None and rows not in ROWS:
        return None
    if not memory.holds(weights, own or rows, dtype):
        return None
    bias = biases[0] if len(biases) == 1 else None if biases[0] is None else torch.cat(biases)
    if own is not None:
        here = repetition()
        if here is not None and own is few_rows.Weight:
            here[name] = memory.weight, bias
        y = multiply(x.reshape(-1, columns), memory.weight, bias)  # type: ignore[arg-type]
        return None if y is None else y.view(*x.shape[:-1], -1)
    if dtype == torch.float32 and rows > FEWER:
        # The original weight is asked for its size only, since the rows are those it was prepared for.
        size = weights[0].new_empty(1).expand(memory.outputs, columns)
        y = torch.ops.mkl._mkl_linear(x, memory.weight, size, None, rows)
        return y if bias is None else y.add_(bias)
    bias = None if bias is None else bias.to(dtype)
    return torch.ops.mkldnn._linear_pointwise(x.to(dtype), memory.weight, bias, "none", [], "")


AVAILABLE = (
    torch.backends.mkl.is_available()
    and torch.backends.mkldnn.is_available()
    and hasattr(torch.ops.mkl, "_mkl_linear")
    and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
)
