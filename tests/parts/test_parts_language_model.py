"""The head that scores the next token, against a few lines of plain torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import zoo
from zoo import registry
from zoo.config import Slot
from zoo.errors import ConfigError, InputError
from zoo.layout import Layout
from zoo.registry import make

WIDTH, VOCABULARY = 24, 31
Make = Callable[..., Any]


def close(a: Tensor, b: Tensor) -> None:
    """Equal shapes and values within 1e-12 of the largest."""
    assert a.shape == b.shape and a.dtype == b.dtype
    assert (a - b).abs().max() <= 1e-12 * max(1.0, float(b.detach().abs().max()))


def numbers(*shape: int, seed: int = 4) -> Tensor:
    """Random numbers in float64, of the width."""
    return torch.randn(*shape, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def fresh(**fields: Any) -> Any:
    """The head with the weights that a model would start with."""
    with torch.device("meta"):
        head = make(Slot("head").validate({"type": "language-model", **fields}), width=WIDTH, vocabulary=VOCABULARY)
    head = head.double().to_empty(device="cpu")
    initializer = Slot("initializer").validate({"type": "truncated-normal", "std": 0.5})
    registry.part("initializer", "truncated-normal")(initializer)(head)
    return head


@pytest.mark.parametrize("scale", [None, 0.25])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_scores(redraw: Make, tied: bool, bias: bool, scale: float | None) -> None:
    head, x, table = redraw(fresh(tied=tied, bias=bias, scale=scale)), numbers(2, 7), numbers(VOCABULARY, seed=5)
    shapes = {name: tuple(value.shape) for name, value in head.named_parameters()}
    expected = {**({} if tied else {"weight": (VOCABULARY, WIDTH)}), **({"bias": (VOCABULARY,)} if bias else {})}
    assert shapes == expected
    vectors = table if tied else head.weight
    scores = torch.einsum("btw,vw->btv", x * (1.0 if scale is None else scale), vectors)
    if bias:
        scores = scores + head.bias
    assert set(head(x, Layout(table=table))) == {"logits"}
    close(head(x, Layout(table=table))["logits"], scores)
    close(head.scores(x, Layout(table=table)), scores)


def test_a_tied_head_teaches_the_embedding(redraw: Make) -> None:
    head, x = redraw(fresh(bias=True)), numbers(2, 7)
    table = nn.Parameter(numbers(VOCABULARY, seed=5))
    (found,) = torch.autograd.grad(head(x, Layout(table=table))["logits"].sum(), table)
    close(found, x.sum((0, 1)).expand(VOCABULARY, WIDTH))
    with pytest.raises(InputError, match="this embedding has none"):
        head(x, Layout())
    assert torch.isfinite(fresh(tied=False)(x, Layout())["logits"]).all()


def test_fresh_heads() -> None:
    head = fresh(tied=False, bias=True)
    assert 0.4 < head.weight.std() < 0.6 and not head.bias.any()


MODEL: dict[str, Any] = {
    "type": "transformer",
    "embedding": {"type": "tokens", "vocabulary": VOCABULARY, "position": {"type": "learned", "length": 16}},
    "stack": {
        "width": WIDTH,
        "depth": 2,
        "block": {"norm": "layer-norm", "attention": {"heads": 2, "causal": True}, "feedforward": "mlp"},
    },
    "head": "language-model",
}


def test_in_a_model(redraw: Make) -> None:
    model = redraw(zoo.build(MODEL, dtype="float64")).eval()
    ids = torch.randint(0, VOCABULARY, (2, 7))
    output = model(ids)
    close(output.logits, output.last_hidden_state @ model.embedding.table.T)
    some = torch.rand(2, 7) < 0.5
    close(model(ids, score_mask=some).logits, output.logits[some])
    later = ids.clone()
    later[:, 4:] = (later[:, 4:] + 1) % VOCABULARY
    close(model(later).logits[:, :4], output.logits[:, :4])
    free = zoo.build(MODEL, {"head": {"tied": False, "bias": True}})
    assert free.num_parameters() == model.num_parameters() + VOCABULARY * (WIDTH + 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"head.scale": 0}, r"head\.scale: expected greater than 0"),
        ({"head.tide": True}, r"head\.tide: .*; did you mean 'tied'\?"),
        (
            {"embedding": {"type": "patch", "image_size": 8, "patch_size": 4}},
            r"head: a head that scores tokens needs an embedding of type 'tokens'",
        ),
    ],
)
def test_errors_name_the_place(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        zoo.build(MODEL, change)
