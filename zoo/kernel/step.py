"""One token of each text through a block, or a stack of them, in a single call, as when texts are written token by token.

There the products take as long as reading their weights, and all else, some forty operators a block of a few thousand numbers
each, costs what calling them costs: on a 2-core server with AVX-512 2.2 ms of 21 for a token of GPT-2 where weights are small,
and 6 where they are not, since reading them drives everything else out of the processor's caches.

So a block whose parts all say what they do to a token (`record`) is written down as a `Program`, a list of three kinds of
instructions: a norm, a product with what follows it, and attention. That happens within `kernel.repeated()` alone, once
`zoo.kernel.few_rows` has prepared the weights; then one call does it all, in float32. What a part looks at beside the tokens
(keys and values, masks, angles) is given anew in each step, as `Look`s.

A block is computed in the ordinary way where a part does not say what it does, which a part of a user or a part with another
one inside it need not; where its class inherits that, but not the forward pass that it describes; where anything is hooked
to it; and in other types than float32, with gradients, or with more rows than `few_rows` is for.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor

from zoo.kernel import few_rows
from zoo.kernel.activation import IN_C
from zoo.kernel.compiled import library
from zoo.kernel.packed import bare, hooked
from zoo.kernel.switch import fast, product_dtype, repetition

LARGEST, TRIES = 256, 8
"""Features of a head, and in how many steps a block's weights are to be prepared at the latest."""
_KINDS, _HOWS = ("norm", "product", "attend"), ("put", "add", "multiply")


class Unrecorded(Exception):
    """A block cannot be written down, or not yet."""

    def __init__(self, later: bool = False) -> None:
        self.later = later


class Look(NamedTuple):
    """What one attention looks at in one step."""

    keys: Tensor
    """(texts, key heads, room, head_size): of the texts that are written, with room for the token's own."""
    values: Tensor
    number: int
    """How many keys there are, the token's own included."""
    first: int = 0
    """Where they begin."""
    own: bool = True
    """Whether they are of the texts that are written: then the token's own key and value are put in at the end."""
    scores: Tensor | None = None
    """(texts or 1, heads or 1, 1, number), float32, added to the scores."""
    angles: tuple[Tensor, Tensor] | None = None
    """Cosine and sine by which features are turned: (rows or 1, 1, 1, turned / 2)."""


Places = tuple[int, int]
"""Where something lies, and how many numbers of each row."""


class Program:
    """What a block does to one token.

    Args:
        width: numbers of a token.
    """

    def __init__(self, width: int) -> None:
        self.tokens: Places = (0, width)
        self.layer: int | None = None
        """Which block of a stack is being written down; None where it is a single block."""
        self.looks: list[tuple[Callable[..., Look | None], int | None]] = []
        self._size, self._steps = 0, []  # type: tuple[int, list[_Instruction]]
        self._held: list[Any] = []  # whose memory the instructions point at
        self._array: Any = None

    def write(self, part: Any, *arguments: Any, **named: Any) -> Any:
        """Lets a part write down what it does, by its method `record`.

        Raises:
            Unrecorded: nobody knows what it does.
        """
        own = vars(type(part)).get("record")  # a class that inherits it may do something else
        if own is None or hooked(part):
            raise Unrecorded
        return own(part, self, *arguments, **named)

    def refuse(self) -> NoReturn:
        """Says that a part does what no instruction does."""
        raise Unrecorded

    def untouched(self, *parts: Any) -> None:
        """Makes sure that nothing is hooked to parts which do nothing here."""
        if any(map(hooked, parts)):
            raise Unrecorded

    def place(self, size: int) -> Places:
        """A new place of so many numbers for each row."""
        self._size += size
        return self._size - size + 1, size

    def norm(self, at: Places, to: Places, weight: Tensor, bias: Tensor | None, eps: float, centred: bool, add: bool) -> None:
        """Puts a layer norm (`centred`) or root-mean-square norm there, or adds it."""
        pointers = self._pointers(weight, bias, at[1])
        self._step("norm", at, to, pointers, how=_HOWS.index("add" if add else "put"), centred=int(centred), number=eps)

    def product(
        self, at: Places, to: Places, *modules: Any, activation: str = "identity", add: bool = False, multiply: bool = False
    ) -> None:
        """Puts the activation of the modules' joint product there, adds it or multiplies by it."""
        if activation not in IN_C:
            raise Unrecorded
        weight, bias = (repetition() or {}).get(modules) or _small(modules)
        if weight.shape != (to[1], at[1]):
            raise Unrecorded
        self._held += [weight, bias]
        pointers = (weight.memory.data_ptr(), None if bias is None else bias.data_ptr())
        how = _HOWS.index("multiply" if multiply else "add" if add else "put")
        self._step("product", at, to, pointers, how=how, activation=IN_C.index(activation))

    def attend(
        self, at: Places, to: Places, look: Callable[..., Look | None], part: Any, turned: int = 0, interleaved: bool = False
    ) -> None:
        """Puts there what the queries of an attention, in the place together with the keys and values of its own, find.

        Args:
            look: what gives the `Look` of each step, from the tokens, the layer and what `step` is given; None for the
                ordinary way.
            part: the attention, of which these are read: heads, kv_heads, head_size and scale.
            turned: features of a head that are turned, in pairs that lie side by side (`interleaved`) or in two halves.
        """
        if part.head_size > LARGEST:
            raise Unrecorded
        shapes = {"heads": part.heads, "shared": part.heads // part.kv_heads, "size": part.head_size}
        turns = {"turned": turned, "interleaved": int(interleaved)}
        self._step("attend", at, to, (None, None), look=len(self.looks), number=part.scale, **shapes, **turns)
        self.looks.append((look, self.layer))

    def _pointers(self, weight: Tensor, bias: Tensor | None, size: int) -> tuple[int, int | None]:
        for each in (weight,) if bias is None else (weight, bias):
            if product_dtype(each) != torch.float32 or each.shape != (size,) or not each.is_contiguous():
                raise Unrecorded
        self._held += [weight, bias]
        return weight.data_ptr(), None if bias is None else bias.data_ptr()

    def _step(self, kind: str, at: Places, to: Places, pointers: tuple[Any, Any], **more: Any) -> None:
        known = {"from_": at[0], "to": to[0], "inputs": at[1], "outputs": to[1], "weight": pointers[0], "bias": pointers[1]}
        self._steps.append(_Instruction(kind=_KINDS.index(kind), **known, **more))

    def run(self, x: Tensor, looks: Sequence[Look]) -> Tensor:
        """(rows, 1, width) -> (rows, 1, width), a new tensor."""
        rows, threads = x.shape[0], torch.get_num_threads()
        if self._array is None:
            self._array = (_Instruction * len(self._steps))(*self._steps)
        here = repetition()
        assert here is not None
        space = here.get("space")
        if space is None or space.numel() < rows * self._size:
            space = here["space"] = torch.empty(rows * self._size)
        y = x.clone(memory_format=torch.contiguous_format)
        seen = (_Look * len(looks))(*(_look(look, rows) for look in looks))
        functions()(self._array, len(self._steps), seen, rows, y.data_ptr(), space.data_ptr(), threads)
        return y


def step(owner: Any, x: Tensor, *given: Any) -> Tensor | None:
    """One token of each text through a block, or a stack: (rows, 1, width) -> the same; None for the ordinary way.

    Args:
        given: what its attentions' looks are made from.
    """
    here = None if torch.compiler.is_compiling() else repetition()
    if here is None:
        return None
    rows = x.shape[0]
    usual = type(x) is Tensor and x.dtype is torch.float32 and x.shape[1] == 1 and 0 < rows <= few_rows.MOST
    if not usual or torch.is_grad_enabled() or torch.is_autocast_enabled("cpu") or not fast():
        return None
    program = here.get(owner, 0)
    if isinstance(program, int):
        program = here[owner] = _recorded(owner, x, given, program)
        if isinstance(program, int):
            return None
    if program is None:
        return None
    looks = []
    for find, layer in program.looks:
        look = find(x, layer, *given)
        if look is None:
            return None
        looks.append(look)
    return program.run(x, looks)


def _recorded(owner: Any, x: Tensor, given: Sequence[Any], tries: int) -> Program | int | None:
    """What it does, or how often that was asked in vain; None where asking again is no use."""
    if tries >= TRIES or x.device.type != "cpu" or functions() is None:
        return None
    program = Program(x.shape[-1])
    try:
        program.write(owner, *given)
    except Unrecorded as reason:
        return tries + 1 if reason.later else None
    return program


def to_add(mask: Tensor, texts: int, heads: int, number: int, shared: dict[Any, Any] | None) -> Tensor | None:
    """A mask of one token, true where it may attend or a float, as scores to be added: (texts or 1, heads or 1, 1, number).

    None where it has another shape.

    Args:
        shared: what the layers of one forward pass share.
    """
    if mask.ndim != 4 or mask.shape[0] not in (1, texts) or mask.shape[1] not in (1, heads) or mask.shape[2:] != (1, number):
        return None
    known = None if shared is None else shared.get(("to_add", mask.shape))
    if known is None or known[0] is not mask:
        if mask.dtype == torch.bool:
            scores = torch.zeros(mask.shape).masked_fill_(~mask, -math.inf)
        else:
            scores = mask.to(torch.float32).contiguous()
        known = mask, scores
        if shared is not None:
            shared["to_add", mask.shape] = known
    scored: Tensor = known[1]
    return scored


def _small(modules: tuple[Any, ...]) -> tuple[few_rows.Weight, Tensor | None]:
    """The joint weight and bias of linear layers that are too small for `zoo.kernel.packed`, and so not prepared by it."""
    if not all(map(bare, modules)):
        raise Unrecorded
    weights, biases = [module.weight for module in modules], [module.bias for module in modules if module.bias is not None]
    if product_dtype(*weights, *biases) != torch.float32 or (biases and len(biases) < len(weights)):
        raise Unrecorded
    if sum(weight.numel() for weight in weights) >= few_rows.WEIGHTS:
        raise Unrecorded(later=True)
    return few_rows.Weight(torch.cat(weights)), torch.cat(biases) if biases else None


class _Instruction(ctypes.Structure):
    """As in step.c."""

    _fields_ = (
        *((name, ctypes.c_long) for name in ("kind", "from_", "to", "inputs", "outputs")),
        *((name, ctypes.c_void_p) for name in ("weight", "bias")),
        *((name, ctypes.c_long) for name in ("how", "activation", "centred", "look", "heads", "shared", "size", "turned")),
        ("interleaved", ctypes.c_long),
        ("number", ctypes.c_double),
    )


class _Look(ctypes.Structure):
    """As in step.c."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("keys", "values")),
        *((name, ctypes.c_long) for name in ("text", "head", "number", "several")),
        ("scores", ctypes.c_void_p),
        *((name, ctypes.c_long) for name in ("scores_text", "scores_head", "own")),
        *((name, ctypes.c_void_p) for name in ("cosine", "sine")),
        ("angles", ctypes.c_long),
    )


def _look(look: Look, rows: int) -> _Look:
    keys, values, number, first, own, scores, angles = look
    text, head, size, _ = keys.stride()
    begin = first * size * 4
    seen = (keys.data_ptr() + begin, values.data_ptr() + begin, text, head, number, rows // keys.shape[0])
    added = (None, 0, 0) if scores is None else (scores.data_ptr(), *_strides(scores))
    turns = (None, None, 0) if angles is None else (angles[0].data_ptr(), angles[1].data_ptr(), _strides(angles[0])[0])
    return _Look(*seen, *added, int(own), *turns)


def _strides(tensor: Tensor) -> tuple[int, int]:
    """Of the first two dimensions; nothing where there is one for all."""
    first, second = tensor.shape[:2]
    return (tensor.stride(0) if first > 1 else 0), (tensor.stride(1) if second > 1 else 0)


@lru_cache
def functions() -> Any:
    """The compiled function, or None."""
    found = library("step", "-mavx512f")
    if found is None:
        return None
    number, address = ctypes.c_long, ctypes.c_void_p
    found.zoo_step.argtypes = [address, number, address, number, address, address, ctypes.c_int]
    found.zoo_step.restype = None
    return found.zoo_step
