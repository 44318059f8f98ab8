"""Which bytes are alive while a model runs on the meta device, and when they were the most."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

KINDS = ("activations", "gradients", "buffers")
"""What bytes are alive for: values of the model and its loss, gradients of parameters, what an engine gathers and sends."""


class Ledger(TorchDispatchMode):
    """Within it every storage that an operator makes counts until it is freed.

    A peak is kept for each phase of a step: the bytes of each kind at the moment when they were the most together.

    Args:
        known: tensors that do not count, such as the parameters.
    """

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()
        self.alive = dict.fromkeys(KINDS, 0)
        self.peaks: dict[str, dict[str, int]] = {}
        self.phase = "forward"
        self._held: dict[int, tuple[str, int]] = {}
        self._kept = [tensor.untyped_storage() for tensor in known]  # held, so that no other can come to have its number
        for storage in self._kept:
            self._held[storage._cdata] = ("parameters", 0)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = function(*args, **(kwargs or {}))
        for made in output if isinstance(output, (tuple, list)) else (output,):
            if isinstance(made, Tensor):
                self._see(made)
        return output

    def enter(self, phase: str) -> None:
        """A new phase begins, with what is alive now."""
        self.phase = phase
        self.add("buffers", 0)

    def add(self, kind: str, size: int) -> None:
        """Counts bytes that no operator makes, or with a negative number those that are freed."""
        self.alive[kind] += size
        peak = self.peaks.get(self.phase)
        if peak is None or sum(self.alive.values()) > sum(peak.values()):
            self.peaks[self.phase] = dict(self.alive)

    def is_gradient(self, tensor: Tensor) -> None:
        """These bytes are a parameter's gradient from now on."""
        number = tensor.untyped_storage()._cdata
        kind, size = self._held[number]
        if kind == "activations":
            self._held[number] = ("gradients", size)
            self.alive[kind] -= size
            self.alive["gradients"] += size

    def _see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._held:
            self._held[storage._cdata] = ("activations", storage.nbytes())
            self.add("activations", storage.nbytes())
            weakref.finalize(storage, self._free, storage._cdata)

    def _free(self, number: int) -> None:
        kind, size = self._held.pop(number)
        self.alive[kind] -= size
