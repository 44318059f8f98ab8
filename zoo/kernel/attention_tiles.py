"""Attention in bfloat16 on a processor's tiles (Intel's AMX), without gradients, or the forward pass of one with them.

torch's operator lays out keys and values for general products, calls these for each block, and takes its time over small
things between them. Here 32 queries at a time meet all keys, in one function from queries to results. What is computed is the
same: products of bfloat16 numbers added up in float32, exponentials in float32, which are rounded to bfloat16 for the second
product. Against float64 both are off by 1.9e-4 on average, of normal numbers, 197 tokens.

Measured on a 2-core server with tiles, milliseconds: torch's operator, and this:

    8 x 3 heads of 197 tokens, 64 numbers each               0.60   0.31
    4 x 12 heads of 128 tokens                               0.44   0.28
    2 x 12 heads of 256 tokens, causal                       0.63   0.30
    12 heads of 1024 tokens, causal                          3.5    1.9
    16 heads of 2048 tokens, 128 numbers each                34     25

The rule: `product_dtype` is bfloat16, there is no mask, no dropout and nothing to differentiate, as many heads of keys as of
queries, 32 to 256 numbers in each, in 32s, at least 16 queries, at most 2048 keys (they are kept in the cache), and 2**20
multiplications in all; on Linux with GNU's compiler and OpenMP (`zoo.kernel.compiled`). ZOO_KERNEL=torch does without.
"""

from __future__ import annotations

import ctypes
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from zoo.kernel import tiles
from zoo.kernel.compiled import library
from zoo.kernel.switch import fast, product_dtype

TOKENS, KEYS, SIZES, WORK = 16, 2048, range(32, 257, 32), 2**20


@lru_cache
def functions() -> Any:
    """The compiled functions, or None; asked for the first time when the first attention is worth it."""
    found = library("attention_tiles", *tiles.OPTIONS)
    if found is None or found.zoo_tiles_enable() != 0:
        return None
    number, address, switch, real = ctypes.c_long, ctypes.c_void_p, ctypes.c_int, ctypes.c_float
    found.zoo_tiles_attention.argtypes = [number] * 5 + [address] * 4 + [number * 12, real, switch, switch]
    return found


def attention(query: Tensor, key: Tensor, value: Tensor, causal: bool, scale: float) -> Tensor | None:
    """(batch, heads, tokens, head_size) x 2 of (batch, heads, key tokens, head_size) -> as query, in bfloat16.

    None where it is not to be computed this way. causal: token i attends to the keys up to the i-th.
    """
    if torch.compiler.is_compiling() or not _worth_it(query, key, value) or not 0 < scale < float("inf") or not fast():
        return None
    if product_dtype(query, key, value) != torch.bfloat16 or functions() is None:
        return None
    examples, heads, tokens, size = query.shape
    given = [each.to(torch.bfloat16) for each in (query, key, value)]
    y = given[0].new_empty(examples, tokens, heads, size).transpose(1, 2)
    addresses = [each.data_ptr() for each in (*given, y)]
    strides = (ctypes.c_long * 12)(*(stride for each in (*given, y) for stride in each.stride()[:3]))
    sizes = examples, heads, tokens, key.shape[2], size
    done = functions().zoo_tiles_attention(*sizes, *addresses, strides, scale, causal, torch.get_num_threads())
    return y if done == tiles.DONE else None


def _worth_it(query: Tensor, key: Tensor, value: Tensor) -> bool:
    if query.dim() != 4 or key.shape != value.shape or key.dim() != 4 or any(t.stride(-1) != 1 for t in (query, key, value)):
        return False
    if torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad):
        return False
    tokens, size = query.shape[2:]
    same = key.shape[:2] == query.shape[:2] and key.shape[3] == size
    few = tokens < TOKENS or not 0 < key.shape[2] <= KEYS or query.numel() * key.shape[2] < WORK
    return same and size in SIZES and not few
