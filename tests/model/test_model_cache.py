"""Decoding over a cache gives what a whole forward gives."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from text_helpers import far, text_model, words

from zoo.cache import LayerCache
from zoo.errors import InputError

DECODER: dict[str, Any] = {
    "stack.block.attention.causal": True,
    "head": "language-model",
    "embedding.segments": 0,
    "embedding.padding": None,
}


def decoder(**overrides: Any) -> Any:
    return text_model("bert-tiny", {**DECODER, **overrides})


KINDS: dict[str, dict[str, Any]] = {
    "learned": {},
    "sinusoidal": {"embedding.position": "sinusoidal"},
    "grouped": {"stack.block.attention.heads": 4, "stack.block.attention.kv_heads": 2},
    "multi-query": {"stack.block.attention.heads": 4, "stack.block.attention.kv_heads": 1},
    "rotary": {"embedding.position": None, "stack.block.attention.heads": 4, "stack.block.attention.position": "rotary"},
    "alibi": {"embedding.position": None, "stack.block.attention.position": "alibi"},
}


@pytest.mark.parametrize("chunks", [[1] * 17, [17], [9, 8], [1, 5, 1, 7, 3], [16, 1]], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_a_cached_step_equals_the_whole_forward(kind: str, chunks: list[int]) -> None:
    model, ids = decoder(**KINDS[kind]), words(3, 17)
    with torch.no_grad():
        whole = model(ids).logits
        past, found = None, []
        for part in ids.split(chunks, 1):
            output = model(part, past_key_values=past, use_cache=True)
            past = output.past_key_values
            found.append(output.logits)
    assert far(torch.cat(found, 1), whole) < 1e-12
    assert len(past) == 17 == past.get_seq_length()


@pytest.mark.parametrize("remembered", [True, False])
def test_left_padding(remembered: bool) -> None:
    """Each row gives what it gives alone, with positions counted from its own first token."""
    model, ids, lengths = decoder(), words(3, 12), [12, 7, 1]
    real = torch.arange(12) >= 12 - torch.tensor(lengths)[:, None]
    places = (real.cumsum(1) - 1).clamp(min=0)
    new = words(3, 4, seed=9)
    with torch.no_grad():
        first = model(ids, attention_mask=real, position_ids=places, use_cache=True)
        past, steps = first.past_key_values, [first.logits[:, -1:]]
        mask = real
        for part, width in zip(new.split([1, 3], 1), (1, 3)):
            mask = torch.cat([mask, mask.new_ones(3, width)], 1)
            at = torch.tensor(lengths)[:, None] + len(past) - 12 + torch.arange(width)
            given = {} if remembered else {"attention_mask": mask}
            steps.append(model(part, past_key_values=past, position_ids=at, **given).logits)
        found = torch.cat(steps, 1)
        for row, length in enumerate(lengths):
            alone = model(torch.cat([ids[row : row + 1, 12 - length :], new[row : row + 1]], 1)).logits
            assert far(found[row], alone[0, length - 1 :]) < 1e-12


def test_gradients_flow_through_a_cache() -> None:
    model, ids = decoder(), words(2, 9)
    expected = torch.autograd.grad(model(ids).logits.square().sum(), model.embedding.table)[0]
    first = model(ids[:, :5], use_cache=True)
    rest = model(ids[:, 5:], past_key_values=first.past_key_values)
    loss = first.logits.square().sum() + rest.logits.square().sum()
    assert far(torch.autograd.grad(loss, model.embedding.table)[0], expected) < 1e-12


@torch.no_grad()
def test_rows_are_chosen_and_tokens_forgotten() -> None:
    model, ids = decoder(), words(3, 8)
    past = model(ids[:, :6], use_cache=True).past_key_values
    rows = torch.tensor([2, 2, 0, 1])
    branch = copy.deepcopy(past)
    branch.choose(rows)
    assert far(model(ids[rows, 6:], past_key_values=branch).logits, model(ids[rows]).logits[:, 6:]) < 1e-12
    past.crop(4)
    assert len(past) == 4
    assert far(model(ids[:, 4:], past_key_values=past).logits, model(ids).logits[:, 4:]) < 1e-12
    with pytest.raises(InputError, match="cannot go back from 8 to 9"):
        past.crop(9)


@torch.no_grad()
def test_only_the_last_logits() -> None:
    model, ids = decoder(), words(2, 6)
    assert torch.equal(model(ids, logits_to_keep=2).logits, model(ids).logits[:, -2:])
    assert model(ids, logits_to_keep=0).logits.shape[1] == 6 == model(ids, logits_to_keep=99).logits.shape[1]
    with pytest.raises(InputError, match="logits_to_keep: expected 0 or more"):
        model(ids, logits_to_keep=-1)
    with pytest.raises(InputError, match="scores each token by itself, and this is 'pooler'"):
        decoder(head="pooler")(ids, logits_to_keep=1)


def test_wrong_use_is_one_clear_line() -> None:
    model, ids = decoder(), words(2, 6)
    with pytest.raises(InputError, match="only causal attention can be continued"):
        text_model()(ids, use_cache=True)
    with pytest.raises(InputError, match="expected what an earlier call gave, got tuple"):
        model(ids, past_key_values=())
    past = model(ids, use_cache=True).past_key_values
    with pytest.raises(InputError, match="of 2 texts, but these are 1"):
        model(ids[:1], past_key_values=copy.copy(past))
    with pytest.raises(InputError, match="of 2 layers, but this model has 3"):
        decoder(**{"stack.depth": 3})(ids, past_key_values=past)
    with pytest.raises(InputError, match="position 40 is beyond the table of 40"):
        model(words(2, 40), past_key_values=model(ids[:, :1], use_cache=True).past_key_values)
    with pytest.raises(InputError, match=r"attention_mask: expected shape \(2, 7\)"):
        model(ids[:, :1], past_key_values=model(ids, use_cache=True).past_key_values, attention_mask=torch.ones(2, 1))
    with pytest.raises(InputError, match="gradient checkpointing"):
        trained = decoder().train()
        trained.gradient_checkpointing()
        trained(ids, use_cache=True)


@torch.no_grad()
@pytest.mark.parametrize("keep", [1, 3, 40])
@pytest.mark.parametrize("capacity", [None, 5])
def test_a_window_keeps_its_memory(keep: int, capacity: int | None) -> None:
    """What is returned always ends with all that a window needs, and memory stays the same once it is full."""
    generator = torch.Generator().manual_seed(0)
    key = torch.randn(2, 3, 700, 4, generator=generator)
    cache, start, sizes = LayerCache(capacity), 0, []
    for width in [7, 1, 1, 90, *[1] * 200, 11, *[2] * 150]:
        end = start + width
        found, value = cache.extend(key[:, :, start:end], -key[:, :, start:end], keep=keep)
        kept = min(keep, start) + width
        assert torch.equal(found, key[:, :, end - kept : end]) and torch.equal(value, -found)
        start = end
        sizes.append(cache.memory)
    assert cache.seen == start and sizes[-1] == sizes[len(sizes) // 2]
    assert cache.memory <= 2 * 2 * 3 * 4 * 4 * max(64, 2 * keep + 90)


@torch.no_grad()
def test_memory_is_taken_in_advance() -> None:
    cache, key = LayerCache(200), torch.randn(1, 1, 1, 8)
    addresses = {cache.extend(key, key)[0].data_ptr() for _ in range(200)}
    assert len(addresses) == 1 and cache.memory == 2 * 200 * 8 * 4
    cache.extend(key, key)
    assert cache.memory > 2 * 200 * 8 * 4
