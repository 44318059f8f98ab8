"""Keys and values of earlier tokens, so that decoding computes each token once."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from zoo.errors import InputError

LEAST = 64
"""How many tokens there is room for at first where nobody says how many will come."""


class LayerCache:
    """The keys and values of one layer, (batch, key heads, tokens, head_size) each, in memory that is taken in advance.

    What an attention needs no more is dropped: with `keep` only the last tokens stay, and memory stays as it is.

    Args:
        capacity: for how many tokens there is room at once; more is taken when more come.
    """

    def __init__(self, capacity: int | None = None) -> None:
        self.capacity = capacity
        self.across: tuple[Tensor, Tensor] | None = None  # keys and values of another sequence, which stay as they are
        self.seen = 0  # tokens that ever came
        self._buffers: tuple[Tensor, Tensor] | None = None
        self._first = self._end = 0  # of what is kept, in the buffers

    def extend(self, key: Tensor, value: Tensor, keep: int | None = None) -> tuple[Tensor, Tensor]:
        """Adds the keys and values of new tokens.

        Args:
            key, value: (batch, key heads, tokens, head_size), of the tokens that follow those kept.
            keep: how many earlier tokens a new one looks at; None: at all.

        Returns:
            The keys and values of the earlier tokens (of the last `keep`) and of the new ones. They are views, which
            hold until more is added.
        """
        tokens = key.shape[2]
        old = self._end - self._first
        if self._buffers is not None and self._buffers[0].shape[0] != key.shape[0]:
            raise InputError(f"past_key_values: of {self._buffers[0].shape[0]} texts, but these are {key.shape[0]}")
        if keep is not None and old > keep:
            self._first, old = self._end - keep, keep
        self.seen += tokens
        if torch.is_grad_enabled() and (key.requires_grad or value.requires_grad or self._differentiable()):
            return self._joined(key, value)
        if keep is not None and tokens > keep:  # more than will ever be looked at again: only the last are kept
            whole = self._all(key, value)
            self._first = self._end = 0
            first = whole[0].shape[2] - keep
            self._write(whole[0][:, :, first:], whole[1][:, :, first:], keep)
            return whole
        self._write(key, value, keep)
        buffers = self._held()
        return buffers[0], buffers[1]

    def room(self, rows: int) -> tuple[Tensor, Tensor, int, int] | None:
        """The memory of keys and values, (rows, key heads, room, head_size), and where what is kept begins and ends, if there
        is room for one more token, which the caller may put in place himself and then counts by `grown`."""
        if self._buffers is None or self._buffers[0].shape[0] != rows or self._buffers[0].dtype != torch.float32:
            return None
        full = self._end >= self._buffers[0].shape[2]
        return None if full or self._differentiable() else (*self._buffers, self._first, self._end)

    def grown(self) -> None:
        """Counts one more token, whose key and value are in place."""
        self.seen += 1
        self._end += 1

    def change(self, function: Callable[[Tensor], Tensor]) -> None:
        """Replaces what is kept, keys and values, by what `function` makes of each: rows chosen, repeated or moved."""
        if self._buffers is not None:
            held = [function(each) for each in self._held()]
            self._buffers, self._first, self._end = None, 0, 0
            self._write(held[0], held[1], None)

    def crop(self, tokens: int) -> None:
        """Forgets the newest tokens, so that `tokens` have been seen.

        Raises:
            InputError: tokens that would be needed again have been dropped.
        """
        drop = self.seen - tokens
        if drop < 0 or (drop > 0 and self._end - drop <= self._first and tokens > 0) or (drop and self._dropped()):
            raise InputError(f"past_key_values: cannot go back from {self.seen} to {tokens} tokens")
        self.seen, self._end = tokens, self._end - drop

    @property
    def memory(self) -> int:
        """Bytes taken."""
        return sum(each.numel() * each.element_size() for each in (*(self._buffers or ()), *(self.across or ())))

    def _dropped(self) -> bool:
        return self.seen > self._end - self._first

    def _differentiable(self) -> bool:
        return self._buffers is not None and self._buffers[0].requires_grad

    def _held(self) -> tuple[Tensor, Tensor]:
        assert self._buffers is not None
        key, value = (each[:, :, self._first : self._end] for each in self._buffers)
        return key, value

    def _all(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        if self._end == self._first:
            return key, value
        old = self._held()
        return torch.cat([old[0].to(key.dtype), key], 2), torch.cat([old[1].to(value.dtype), value], 2)

    def _joined(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """With gradients nothing may be overwritten."""
        self._buffers = self._all(key, value)
        self._first, self._end = 0, self._buffers[0].shape[2]
        return self._buffers

    def _write(self, key: Tensor, value: Tensor, keep: int | None) -> None:
        tokens, old = key.shape[2], self._end - self._first
        if self._buffers is None or self._end + tokens > self._buffers[0].shape[2] or self._buffers[0].dtype != key.dtype:
            self._make_room(key, value, old + tokens, keep)
        assert self._buffers is not None
        for buffer, new in zip(self._buffers, (key, value)):
            buffer[:, :, self._end : self._end + tokens] = new
        self._end += tokens

    def _make_room(self, key: Tensor, value: Tensor, needed: int, keep: int | None) -> None:
        """Moves what is kept to the front, of larger buffers if need be."""
        if keep is not None:
            room = max(needed, 2 * keep, LEAST)  # what is kept moves once in `keep` tokens
            if self.capacity is not None and needed <= self.capacity:
                room = min(room, self.capacity)
        else:
            room = max(needed, self.capacity or 0, LEAST)
            if self._buffers is not None and room == needed:
                room += room // 2  # grows by half, so that it seldom does
        held = self._held() if self._end > self._first else None
        same = self._buffers is not None and self._buffers[0].shape[2] >= room and self._buffers[0].dtype == key.dtype
        fresh = []
        for number, new in enumerate((key, value)):
            if same and self._buffers is not None:
                buffer = self._buffers[number]
            else:
                buffer = new.new_empty(*new.shape[:2], room, new.shape[3])
            if held is not None:
                buffer[:, :, : held[number].shape[2]] = held[number].clone() if same else held[number]
            fresh.append(buffer)
        self._buffers = (fresh[0], fresh[1])
        self._end, self._first = self._end - self._first, 0


class Cache:
    """The keys and values of all layers, and which of the tokens are real. The forward passes write into it.

    Args:
        layers: how many layers there are.
        capacity: for how many tokens there is room at once; more is taken when more come.
    """

    def __init__(self, layers: int, capacity: int | None = None) -> None:
        self.layers = [LayerCache(capacity) for _ in range(layers)]
        self.real: Tensor | None = None
        """(batch, tokens), true where a token seen is none of padding; None where all are real."""
        self.across: Tensor | None = None
        """(batch / several, 1, 1, others), what may be attended to of another sequence; None where all of it may."""
        self.several = 1
        """How many rows, one after another, share a row of the other sequence, as the beams of a text do."""
        self.front = 0
        """How many of the tokens seen stand in front of the text, such as the patches of an image."""

    def __len__(self) -> int:
        """How many tokens of each text have been seen, padding included."""
        return self.layers[0].seen

    def __bool__(self) -> bool:
        return True

    def get_seq_length(self) -> int:
        """The same, as transformers calls it."""
        return len(self)

    @property
    def memory(self) -> int:
        """Bytes taken."""
        return sum(layer.memory for layer in self.layers)

    def choose(self, rows: Tensor) -> None:
        """Goes on with these rows, (rows,) whole numbers, in this order; some may come twice, some not at all."""
        for layer in self.layers:
            layer.change(lambda kept: kept.index_select(0, rows))
        self.real = None if self.real is None else self.real.index_select(0, rows)
        if self.layers[0].across is not None:
            self._choose_across(rows, self.layers[0].across[0].shape[0])

    def _choose_across(self, rows: Tensor, number: int) -> None:
        """What is kept of another sequence is repeated only where rows that share it are not neighbours of equal number."""
        origin = rows // self.several
        chosen, counts = origin.unique_consecutive(return_counts=True)
        even = len(chosen) > 0 and bool((counts == counts[0]).all())
        chosen, self.several = (chosen, int(counts[0])) if even else (origin, 1)
        if len(chosen) == number and bool((chosen == torch.arange(number, device=rows.device)).all()):
            return
        for layer in self.layers:
            if layer.across is not None:
                layer.across = layer.across[0].index_select(0, chosen), layer.across[1].index_select(0, chosen)
        self.across = None if self.across is None else self.across.index_select(0, chosen)

    def crop(self, tokens: int) -> None:
        """Forgets the newest tokens, so that `tokens` have been seen.

        Raises:
            InputError: tokens that would be needed again have been dropped.
        """
        for layer in self.layers:
            layer.crop(tokens)
        self.real = None if self.real is None else self.real[:, :tokens]
