"""Padding left out: real tokens stay what they are, and nothing of padding is computed."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import zoo
from zoo.errors import ConfigError

TEXT: dict[str, Any] = {
    "embedding.vocabulary": 50,
    "stack.width": 32,
    "stack.block.attention.heads": 4,
    "stack.block.feedforward.hidden": 48,
    "embedding.dropout": 0.0,
    "stack.block.dropout": 0.0,
    "stack.block.attention.dropout": 0.0,
}
MASK = torch.ones(5, 20, dtype=torch.long)
MASK[0, 11:] = 0  # on the right
MASK[1, :7] = 0  # on the left
MASK[2, 5:9] = 0  # a hole
MASK[4] = 0  # nothing but padding
IDS = torch.randint(1, 50, (5, 20), generator=torch.Generator().manual_seed(0))


def both(**change: Any) -> tuple[Any, Any]:
    torch.manual_seed(0)
    plain = zoo.build("bert-tiny", {**TEXT, **change}, dtype="float64")
    skipping = zoo.build("bert-tiny", {**TEXT, **change, "stack.padding": "skip"}, dtype="float64")
    skipping.load_state_dict(plain.state_dict())
    return plain, skipping


@pytest.mark.parametrize("change", [{}, {"stack.block.attention.causal": True}, {"stack.block.attention.kv_heads": 2}])
def test_real_tokens_and_gradients_are_the_same(change: dict[str, Any]) -> None:
    real = MASK.bool() if not change.get("stack.block.attention.causal") else MASK.bool() & (MASK[:, :1] == 1)
    direction = torch.randn(5, 20, 32, dtype=torch.float64) * real[..., None]
    gradients = []
    for model in both(**change):
        output = model(IDS, attention_mask=MASK).last_hidden_state
        (output * direction).sum().backward()
        gradients.append((output[real], [parameter.grad for parameter in model.parameters() if parameter.grad is not None]))
    (first, wanted), (second, found) = gradients
    assert float((first - second).abs().max()) <= 1e-12
    assert all(float((a - b).abs().max()) <= 1e-10 for a, b in zip(wanted, found, strict=True))


def test_padding_is_zero_and_costs_nothing() -> None:
    _, skipping = both()
    rows = []
    for layer in skipping.stack.layers:
        layer.feedforward.register_forward_pre_hook(lambda module, args: rows.append(args[0].shape[:2].numel()))
    output = skipping(IDS, attention_mask=MASK).last_hidden_state
    assert not output[~MASK.bool()].any()
    assert set(rows) == {int(MASK.sum())}


@pytest.mark.parametrize("asked", [{"output_hidden_states": True}, {"output_attentions": [0]}])
def test_what_needs_whole_batches_is_computed_whole(asked: dict[str, Any]) -> None:
    plain, skipping = (model.eval() for model in both())
    first, second = (model(IDS, attention_mask=MASK, **asked) for model in (plain, skipping))
    assert torch.equal(first.last_hidden_state, second.last_hidden_state)
    with zoo.capture(skipping, "stack.layers.0.attention.pattern") as seen:
        skipping(IDS, attention_mask=MASK)
    assert seen["stack.layers.0.attention.pattern"].shape == (5, 4, 20, 20)


def test_without_padding_nothing_changes() -> None:
    plain, skipping = (model.eval() for model in both())
    for mask in (None, torch.ones(5, 20)):
        assert torch.equal(
            plain(IDS, attention_mask=mask).last_hidden_state, skipping(IDS, attention_mask=mask).last_hidden_state
        )


def test_an_attention_that_cannot_leave_padding_out(monkeypatch: pytest.MonkeyPatch) -> None:
    from zoo.attention.full import FullAttention

    monkeypatch.setattr(FullAttention, "skips_padding", False)
    with pytest.raises(ConfigError, match=r"stack\.padding: attention 'full' cannot leave padding out; use padding: compute"):
        zoo.build("bert-tiny", {"stack.padding": "skip"})
