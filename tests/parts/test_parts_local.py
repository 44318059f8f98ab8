"""Local attention against all weights written out: windows, global tokens, masks, texts, positions, and the cache."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import zoo
from zoo import kernel
from zoo.cache import Cache
from zoo.config import Slot
from zoo.errors import ConfigError, InputError
from zoo.kernel.local_band import BLOCK
from zoo.layout import Layout
from zoo.registry import make

WIDTH = 24
Make = Callable[..., Any]
KINDS: dict[str, dict[str, Any]] = {
    "two-sided": {},
    "causal": {"causal": True},
    "grouped": {"heads": 6, "kv_heads": 2},
    "one kv head, causal": {"heads": 3, "kv_heads": 1, "causal": True},
    "norms": {"qk_norm": "rms-norm", "output_norm": "layer-norm"},
    "no biases": {"bias": False, "output_bias": False, "scale": 0.7},
    "head size": {"heads": 2, "head_size": 5},
    "rotary": {"position": "rotary", "head_size": 6},
    "rotary, causal, grouped": {"position": "rotary", "heads": 4, "kv_heads": 2, "causal": True},
    "alibi": {"position": "alibi"},
    "alibi, causal": {"position": "alibi", "causal": True},
    "zeros": {"padding": "zero"},
    "global tokens": {"global_tokens": 2},
    "global tokens, causal": {"global_tokens": 2, "causal": True},
    "projections": {"global_tokens": 1, "global_projections": True},
    "projections, grouped": {"global_projections": True, "heads": 6, "kv_heads": 2, "padding": "zero"},
    "projections, norms, causal": {"global_tokens": 2, "global_projections": True, "qk_norm": "rms-norm", "causal": True},
}


@pytest.fixture
def local(redraw: Make) -> Make:
    """A function that builds the part in float64, redrawn, in eval mode."""

    def build(window: int = 3, **fields: Any) -> Any:
        config = Slot("attention").validate({"type": "local", "heads": 3, "window": window, **fields})
        module = make(config, width=WIDTH).double()
        for parameter in module.parameters():
            torch.nn.init.zeros_(parameter)
        return redraw(module).eval()

    return build


def dense(part: Any, x: Tensor, layout: Layout, which: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The output and the weights of the part, all pairs of tokens written out."""

    def heads(linear: Any, norm: Any = None) -> Tensor:
        y = linear(x).unflatten(-1, (-1, part.head_size)).transpose(1, 2)
        return y if norm is None else norm(y)

    def repeated(y: Tensor) -> Tensor:
        return y.repeat_interleave(part.heads // part.kv_heads, 1)

    def weights_of(query: Tensor, key: Tensor) -> Tensor:
        scores = query @ repeated(key).mT * part.scale + added
        return (scores.masked_fill(~allowed, -1e30).softmax(-1)) * allowed

    tokens = x.shape[1]
    apart = torch.arange(tokens) - torch.arange(tokens)[:, None]
    allowed = (apart.abs() <= part.window)[None, None]
    if which is not None:
        allowed = allowed | which[:, None, None, :] | which[:, None, :, None]
    if part.causal:
        allowed = allowed & (apart <= 0)
    if layout.texts is not None:
        allowed = allowed & (layout.texts[:, None, :, None] == layout.texts[:, None, None, :])
    added = torch.zeros(1, dtype=torch.float64)
    if layout.mask is not None and layout.mask.dtype == torch.bool:
        allowed = allowed & layout.mask
    elif layout.mask is not None:
        allowed = allowed & (layout.mask > -math.inf)
        added = layout.mask.clamp(min=-1e9)
    query, key, value = heads(part.query, part.query_norm), heads(part.key, part.key_norm), heads(part.value)
    if part.position is not None:
        query, key = part.position.turned(query, key, layout)
        if part.position.relative:
            slopes = torch.tensor([2 ** (-8 * (head + 1) / 2) for head in range(2)] + [2 ** (-8 / 4)]).double()  # of 3 heads
            added = added - slopes[:, None, None] * apart.abs()
    weights = weights_of(query, key)
    mixed = weights @ repeated(value)
    if which is not None and part.global_query is not None:
        own = weights_of(heads(part.global_query, part.query_norm), heads(part.global_key, part.key_norm))
        rows = which[:, None, :, None]
        weights, mixed = torch.where(rows, own, weights), torch.where(rows, own @ repeated(heads(part.global_value)), mixed)
    if part.zeroes_padding and layout.real is not None:
        real = layout.real[:, None, :, None]
        weights, mixed = weights * real, mixed * real
    joined = mixed.transpose(1, 2).flatten(2)
    return part.output(joined if part.output_norm is None else part.output_norm(joined)), weights


def close(a: Tensor, b: Tensor) -> None:
    assert a.shape == b.shape and a.isfinite().all()
    assert (a - b).abs().max() <= 1e-12 * max(1.0, float(b.detach().abs().max()))


def agree(part: Any, x: Tensor, layout: Layout, which: Tensor | None = None) -> None:
    """Output, gradients and weights of the part are those of `dense`, by the kernel and where weights are asked for."""
    wanted, weights = dense(part, x, layout, which)
    direction = torch.randn_like(wanted)
    parameters = list(part.parameters())
    expected = torch.autograd.grad((wanted * direction).sum(), parameters, allow_unused=True, materialize_grads=True)
    for asked in (False, True):
        found, seen = part(x, layout._replace(shared={}), weights=asked)
        close(found, wanted)
        assert (seen is not None) is asked
        for a, b in zip(
            torch.autograd.grad((found * direction).sum(), parameters, allow_unused=True, materialize_grads=True), expected
        ):
            assert (a - b).abs().max() <= 1e-11 * max(1.0, float(b.abs().max()))
    assert seen is not None
    close(seen, weights)
    with kernel.plain():
        close(part(x, layout._replace(shared={}))[0], wanted)


def given(part: Any, x: Tensor, kind: str) -> tuple[Layout, Tensor | None]:
    """What a call may say, and which tokens are global then."""
    batch, tokens = x.shape[:2]
    real = torch.rand(batch, tokens) < 0.7
    real[:, 0] = True
    layout, which = Layout(), torch.zeros(batch, tokens, dtype=torch.bool)
    which[:, : part.global_tokens] = True
    if kind in ("holes", "holes and global tokens"):
        layout = layout._replace(mask=real[:, None, None], real=real)
    elif kind == "scores":
        layout = layout._replace(
            mask=torch.randn(batch, 1, tokens, tokens).double().masked_fill(~real[:, None, None], -math.inf)
        )
    elif kind == "each head":
        layout = layout._replace(mask=torch.rand(1, part.heads, tokens, tokens) < 0.7)
    if kind in ("texts", "texts with holes"):
        layout = layout._replace(texts=(torch.rand(batch, tokens) < 0.15).cumsum(1))
    if kind == "texts with holes":
        layout = layout._replace(mask=real[:, None, None], real=real)
    if "global" in kind or (part.global_tokens and "texts" in kind):
        which = torch.rand(batch, tokens) < 0.15
        which[-1] = False  # rows have different numbers of them
        which = which if layout.real is None else which & layout.real
        layout = layout._replace(global_tokens=which)
    return layout, which if which.any() else None


CALLS = ["plain", "holes", "scores", "each head", "texts", "texts with holes", "global tokens", "holes and global tokens"]


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("kind", KINDS)
def test_local_attention(local: Make, kind: str, call: str) -> None:
    part = local(**KINDS[kind])
    if "global" in call and kind.startswith("alibi"):
        return  # refused: see below
    for tokens in (1, 7, BLOCK + 6):
        x = torch.randn(3, tokens, WIDTH, dtype=torch.float64)
        agree(part, x, *given(part, x, call))


@pytest.mark.parametrize("window", [0, 1, 8, BLOCK - 1, BLOCK, BLOCK + 1, 200])
@pytest.mark.parametrize("causal", [False, True])
def test_any_window_and_length(local: Make, window: int, causal: bool) -> None:
    part = local(window, causal=causal)
    for tokens in (1, 2, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 3):
        x = torch.randn(1, tokens, WIDTH, dtype=torch.float64)
        agree(part, x, Layout())


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("position", [None, "rotary", "alibi"])
def test_a_window_that_reaches_all_is_full_attention(local: Make, causal: bool, position: str | None) -> None:
    part = local(40, causal=causal, position=position)
    fields = {"type": "full", "heads": 3, "causal": causal, "position": position}
    full = make(Slot("attention").validate(fields), width=WIDTH).double()
    full.load_state_dict(part.state_dict())
    x, real = torch.randn(2, 41, WIDTH, dtype=torch.float64), torch.rand(2, 41) < 0.6
    real[:, 0] = True
    for layout in (Layout(), Layout(mask=real[:, None, None], real=real)):
        for found, wanted in zip(part(x, layout, weights=True), full(x, layout, weights=True)):
            close(found, wanted)


def test_no_token_is_influenced_from_beyond_its_window(local: Make) -> None:
    for causal in (False, True):
        part = local(3, causal=causal)
        x = torch.randn(1, 150, WIDTH, dtype=torch.float64, requires_grad=True)
        for place in (0, BLOCK - 1, BLOCK, BLOCK + 6, 149):
            (gradient,) = torch.autograd.grad(part(x, Layout())[0][0, place].sum(), x)
            seen = gradient[0].abs().sum(1).nonzero()[:, 0].tolist()
            assert seen == list(range(max(place - 3, 0), place + 1 if causal else min(place + 4, 150)))


def test_padding_gets_zeros_only_where_asked(local: Make) -> None:
    x, real = torch.randn(2, 9, WIDTH, dtype=torch.float64), torch.arange(9)[None] < torch.tensor([[9], [4]])
    layout = Layout(mask=real[:, None, None], real=real)
    for padding in ("compute", "zero"):
        part = local(padding=padding)
        found, seen = part(x, layout, weights=True)
        mixed_nothing = torch.allclose(found[1, 4:], part.output.bias.expand(5, -1))
        assert mixed_nothing is (padding == "zero") and bool(seen[1, :, 5].any()) is (padding == "compute")


@pytest.mark.parametrize(
    "kind", [kind for kind, fields in KINDS.items() if fields.get("causal") and "global" not in str(fields)]
)
@pytest.mark.parametrize("window", [0, 1, 5, 40])
def test_a_cache_goes_on_as_the_whole(local: Make, kind: str, window: int) -> None:
    """Some tokens at once, then single ones; padded on the left; what is kept is a window, whatever came."""
    part, tokens = local(window, **KINDS[kind]), 90
    x, real = torch.randn(2, tokens, WIDTH, dtype=torch.float64), torch.arange(tokens)[None] >= torch.tensor([[0], [3]])
    wanted = dense(part, x, Layout(mask=real[:, None, None], real=real))[0].detach()
    for weights in (False, True):
        cache, start, memory = Cache(1), 0, set()
        with torch.no_grad():
            for count in (70, 2, 7, *[1] * 11):
                end = start + count
                layout = Layout(
                    past=start, cache=cache.layers[0], mask=real[:, None, None, :end], real=real[:, start:end], shared={}
                )
                found, seen = part(x[:, start:end], layout, weights=weights)
                close(found, wanted[:, start:end])
                assert seen is None or seen.shape[-1] == min(start, window) + count
                start = end
                held = [each.untyped_storage().nbytes() for each in cache.layers[0]._buffers]
                assert sum(held) == cache.layers[0].memory  # no view of something larger
                memory.add(sum(held))
        key_heads = KINDS[kind].get("kv_heads", 3)
        assert len(memory) == 1 and max(memory) <= 2 * 2 * key_heads * part.head_size * 8 * max(2 * window, 64)


def test_dropout_acts_in_training_alone(local: Make) -> None:
    part, x = local(dropout=0.5, global_tokens=1), torch.randn(1, 40, WIDTH, dtype=torch.float64)
    assert torch.equal(part(x, Layout())[0], part(x, Layout())[0])
    part.train()
    assert not torch.equal(part(x, Layout())[0], part(x, Layout())[0])
    all_dropped = local(dropout=1.0, global_tokens=1).train()
    for weights in (False, True):
        close(all_dropped(x, Layout(), weights=weights)[0], all_dropped.output.bias.expand(1, 40, -1))


def test_the_weights_can_be_replaced(local: Make) -> None:
    """What comes out of the hook point is what mixes the values, own projections of global tokens included."""
    part, x = local(global_tokens=1, global_projections=True), torch.randn(1, 20, WIDTH, dtype=torch.float64)
    wanted = part(x, Layout())[0]
    handle = part.pattern.register_forward_hook(lambda module, args, output: None)
    close(part(x, Layout())[0], wanted)
    handle.remove()
    part.pattern.register_forward_hook(lambda module, args, output: torch.zeros_like(output))
    close(part(x, Layout())[0], part.output.bias.expand(1, 20, -1))


def test_global_tokens_of_a_call_are_counted_once_for_all_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Tensor] = []
    count = kernel.chosen_tokens
    monkeypatch.setattr(kernel, "chosen_tokens", lambda which: calls.append(which) or count(which))
    model = zoo.build("longformer-base", SMALL)
    model(torch.randint(2, 61, (2, 30)), global_attention_mask=torch.arange(30)[None].expand(2, -1) % 9 == 0)
    assert len(calls) == 1


SMALL = {
    "embedding.vocabulary": 61, "embedding.position.length": 80, "stack.width": 24, "stack.depth": 2,
    "stack.block.attention.heads": 3, "stack.block.attention.window": 4, "stack.block.feedforward.hidden": 40,
}  # fmt: skip


@torch.no_grad()
def test_global_tokens_are_found_when_traced() -> None:
    """A graph cannot count them; it gives the same for any choice."""
    model = zoo.build("longformer-base", SMALL, dtype="float64").eval()
    ids = torch.randint(2, 61, (2, 30))
    real, chosen = torch.arange(30)[None] < torch.tensor([[30], [20]]), torch.rand(2, 30) < 0.2
    exported = torch.export.export(
        model, (), {"input_ids": ids, "attention_mask": real, "global_attention_mask": chosen}
    ).module()
    for which in (chosen, ~chosen, torch.zeros_like(chosen)):
        found = exported(input_ids=ids, attention_mask=real, global_attention_mask=which)
        wanted = model(ids, attention_mask=real, global_attention_mask=which)
        close(found.last_hidden_state, wanted.last_hidden_state)


@pytest.mark.parametrize(
    ("fields", "layout", "words"),
    [
        ({}, {"mask": torch.ones(1, 2, 9, 9, dtype=torch.bool)}, "attention_mask: for 2 heads, but there are 3"),
        ({"position": "alibi"}, {"global_tokens": torch.ones(1, 9, dtype=torch.bool)}, "do not reach beyond the window"),
        ({"global_tokens": 1}, {"texts": torch.zeros(1, 9)}, "say by global_attention_mask which tokens"),
        ({"global_tokens": 1, "causal": True}, {"cache": Cache(1).layers[0]}, "use_cache: what is kept is a window"),
    ],
)
def test_wrong_calls(local: Make, fields: dict[str, Any], layout: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        local(**fields)(torch.randn(1, 9, WIDTH, dtype=torch.float64), Layout(**layout))


def test_another_sequence_has_no_neighbours(local: Make) -> None:
    x = torch.randn(1, 9, WIDTH, dtype=torch.float64)
    with pytest.raises(InputError, match="no neighbours; use 'full'"):
        local()(x, Layout(), memory=x)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"window": -1}, "window"),
        ({"window": None}, "window"),
        ({"window": 2.5}, "window"),
        ({"global_tokens": -1}, "global_tokens"),
        ({"padding": "skip"}, "padding: .*'compute' or 'zero'"),
        ({"global_projections": True, "position": "rotary"}, r"global_projections: they know no positions"),
        ({"global_tokens": 1, "position": "alibi"}, r"global_tokens: 'alibi' positions do not reach beyond the window"),
    ],
    ids=str,
)
def test_wrong_configs(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        zoo.get_config("bert-tiny", {"stack.block.attention": {"type": "local", "window": 4, **fields}})


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (torch.ones(2, 8, dtype=torch.long), r"expected 0 and 1 of shape \(2, 9\)"),
        (torch.ones(2, 9), "of torch.float32"),
        ([[1] * 9] * 2, "got list"),
    ],
)
def test_a_wrong_global_attention_mask(mask: Any, words: str) -> None:
    ids = torch.randint(2, 61, (2, 9))
    with pytest.raises(InputError, match=f"global_attention_mask: .*{words}"):
        zoo.build("longformer-base", SMALL)(ids, global_attention_mask=mask)
    with pytest.raises(InputError, match="global_attention_mask: this model has no local attention"):
        zoo.build("bert-tiny")(ids, global_attention_mask=torch.ones(2, 9, dtype=torch.long))
