"""Attention within windows, stages and feature maps, against computations of their own."""

from __future__ import annotations

import copy
import itertools
import pickle
from typing import Any

import pytest
import torch

import zoo
import zoo.kernel.windows as windows
from zoo import kernel
from zoo.config.resolve import merge_overrides, validate
from zoo.errors import ConfigError, InputError
from zoo.layout import Layout
from zoo.registry import part

PUBLISHED = {
    "swin-tiny": (28_288_354, 27_519_354),
    "swin-small": (49_606_258, 48_837_258),
    "swin-base": (87_768_224, 86_743_224),
    "swin-large": (196_532_476, 194_995_476),
}
"""Parameters with the classifier, and of the body alone (Hugging Face's and timm's, and the paper's table in millions)."""
POOLER = {"type": "pooler", "pool": "mean", "projection": False}
TINY = {
    "embedding.image_size": 48, "embedding.patch_size": 4, "stack.width": 12, "stack.block.attention.window": 3,
    "stack.stages": [{"depth": 2, "heads": 3}, {"depth": 2, "heads": 3}, {"depth": 2, "heads": 6}], "head.classes": 5,
    "stack.drop_path": 0.0,
}  # fmt: skip


def swin(**overrides: Any) -> Any:
    torch.manual_seed(0)
    model = zoo.build("swin-tiny", {**TINY, **{name.replace("__", "."): value for name, value in overrides.items()}})
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return model.eval()


def attention(**fields: Any) -> Any:
    torch.manual_seed(1)
    config = part("attention", "window").Config(**{"heads": 2, "window": (3, 2), "position": "relative-2d", **fields})
    made = part("attention", "window")(config, width=8).double()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter)
    return made.eval()


def by_pairs(made: Any, x: torch.Tensor, grid: tuple[int, int], prefix: int, mask: torch.Tensor | None) -> torch.Tensor:
    """The same one token and one head at a time: which places a token sees, and what is added to each score."""
    config, (rows, columns), (high, wide) = made.config, grid, made.config.window
    plan = config.windows(grid)
    (down, along), padded = plan.shift, plan.padded
    filled = torch.zeros(len(x), padded[0], padded[1], x.shape[2], dtype=x.dtype)
    filled[:, :rows, :columns] = x[:, prefix:].unflatten(1, grid)
    tokens = torch.cat([x[:, :prefix], filled.flatten(1, 2)], 1)
    query, key, value = (getattr(made, name)(tokens).unflatten(-1, (made.heads, -1)) for name in ("query", "key", "value"))
    table = None if made.position is None else made.position.table.unflatten(0, (2 * high - 1, 2 * wide - 1))
    places = list(itertools.product(range(padded[0]), range(padded[1])))
    found = torch.zeros_like(query)
    for number in range(prefix + len(places)):
        seen: list[tuple[int, Any]] = [(other, 0.0) for other in range(prefix)]
        for other, (row, column) in enumerate(places):
            if number < prefix:
                if row < rows and column < columns:
                    seen.append((prefix + other, 0.0))
                continue
            here = places[number - prefix]
            moved = [((at - by) % length) for at, by, length in zip(here, (down, along), padded)]
            away = [((at - by) % length) for at, by, length in zip((row, column), (down, along), padded)]
            if (moved[0] // high, moved[1] // wide) != (away[0] // high, away[1] // wide):
                continue
            apart = [a - b for a, b in zip(moved, away)]
            bias = 0.0 if table is None else table[apart[0] + high - 1, apart[1] + wide - 1]
            wrapped = any(
                (at < by) != (to < by) for at, to, by in zip(here, (row, column), (down, along))
            )  # one of the two came round the edge
            seen.append((prefix + other, bias + (windows.APART if wrapped else 0.0)))
        for batch in range(len(x)):
            scores = torch.stack([
                (query[batch, number] * key[batch, other]).sum(-1) * made.scale + bias for other, bias in seen
            ])  # fmt: skip
            if mask is not None:
                real = torch.ones(padded, dtype=torch.bool)
                real[:rows, :columns] = mask[batch, prefix:].view(grid)
                allowed = torch.cat([mask[batch, :prefix], real.flatten()])
                scores = scores.masked_fill(~allowed[[other for other, _ in seen]][:, None], -torch.inf)
            weights = scores.softmax(0)
            for weight, (other, _) in zip(weights, seen):
                found[batch, number] += weight[:, None] * value[batch, other]
    output = made.output(found.flatten(2))
    patches = output[:, prefix:].unflatten(1, padded)[:, :rows, :columns].flatten(1, 2)
    return torch.cat([output[:, :prefix], patches], 1)


@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("position", ["relative-2d", None])
@pytest.mark.parametrize(
    ("grid", "prefix", "masked"), [((6, 4), 0, False), ((7, 5), 0, False), ((7, 3), 2, True), ((2, 2), 1, False)]
)
def test_each_token_sees_its_window(shift: bool, position: Any, grid: Any, prefix: int, masked: bool) -> None:
    made = attention(shift=shift, position=position, small="shift")
    x = torch.randn(2, prefix + grid[0] * grid[1], 8, dtype=torch.float64)
    mask = torch.rand(x.shape[:2]) > 0.3 if masked else None
    if mask is not None:
        mask[:, 0] = True
    layout = Layout(prefix=prefix, grid=grid, shared={}, mask=None if mask is None else mask[:, None, None])
    ours, _ = made(x, layout)
    assert (ours - by_pairs(made, x, grid, prefix, mask)).abs().max() < 1e-12
    again, weights = made(x, layout, weights=True)
    assert (ours - again).abs().max() < 1e-12 and weights.shape == (2, 2, x.shape[1], x.shape[1])
    whole = grid == (6, 4) and not masked
    assert (weights.sum(-1) <= 1 + 1e-12).all() and (not whole or (weights.sum(-1) - 1).abs().max() < 1e-12)


@pytest.mark.parametrize("small", ["still", "still-axis", "shift"])
def test_small_grids_shift_as_asked(small: str) -> None:
    config = part("attention", "window").Config(heads=1, window=(4, 6), shift=True, small=small)
    expected = {"still": (0, 0), "still-axis": (2, 0), "shift": (2, 3)}
    assert config.windows((8, 6)).shift == expected[small]
    assert config.windows((9, 7)).shift == (2, 3)


@pytest.mark.parametrize("fields", [{}, {"shift": True, "small": "shift"}, {"kv_heads": 1}, {"qk_norm": "layer-norm"}])
def test_gradients_are_those_of_finite_differences(fields: dict[str, Any]) -> None:
    made = attention(**fields)
    x = torch.randn(1, 12, 8, dtype=torch.float64, requires_grad=True)
    tensors = (x, made.position.table, made.key.weight)

    def call(x: torch.Tensor, table: torch.Tensor, weight: torch.Tensor) -> Any:
        values = {"position.table": table, "key.weight": weight}
        return torch.func.functional_call(made, values, (x, Layout(grid=(4, 3))))[0]

    assert torch.autograd.gradcheck(call, tensors)


def test_a_token_that_may_see_nothing_gets_zeros() -> None:
    made = attention()
    mask = torch.ones(1, 1, 1, 24, dtype=torch.bool)
    mask[..., [0, 1, 4, 5, 8, 9]] = False  # all of the first window
    x = torch.randn(1, 24, 8, dtype=torch.float64)
    found, _ = made(x, Layout(grid=(6, 4), mask=mask))
    assert (found[0, 0] - made.output.bias).abs().max() < 1e-12 and found.isfinite().all()


def test_nothing_is_made_again_for_a_size_that_was_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither indices nor regions in training, and no biases in inference; what is remembered is bounded."""
    model, x = swin(), torch.randn(1, 3, 50, 46)
    made: list[str] = []
    for name in ("_index", "_regions"):
        function = getattr(windows, name)
        monkeypatch.setattr(windows, name, lambda *a, name=name, function=function: made.append(name) or function(*a))
    windows._last.cache_clear()
    model(x).logits.sum().backward()
    assert made
    made.clear()
    model(x)
    assert not made
    gathered: list[int] = []
    index = windows.window_index
    monkeypatch.setattr(kernel, "window_index", lambda *a: gathered.append(1) or index(*a))
    with torch.no_grad():
        first = model(x).logits
        assert len(gathered) == 6
        assert torch.equal(model(x).logits, first) and len(gathered) == 6
        for side in range(48, 100, 4):
            model(torch.randn(1, 3, side, side))
    kept = [layer.attention.position.kept for layer in model.stack.layers]
    assert all(0 < len(each.tables) <= windows.KEPT for each in kept)
    assert windows._last.cache_info().currsize <= windows.SIZES


def test_remembered_biases_are_never_stale() -> None:
    model, x = swin(), torch.randn(1, 3, 48, 48)
    table = model.stack.layers[0].attention.position.table
    with torch.inference_mode():
        before = model(x).logits
    for change in (lambda: table.data.mul_(2.0), lambda: table.data.view(-1)[3:4].add_(1.0), lambda: model.double()):
        change()
        given = x.to(model.dtype)
        with torch.inference_mode():
            after = model(given).logits
            with kernel.plain():
                assert torch.allclose(model(given).logits, after, atol=1e-5)
        assert not torch.equal(before.to(after.dtype), after)
        before = after
    model(x.double()).logits.sum().backward()  # what was made in inference is of use in training
    assert table.grad is None or table.grad.isfinite().all()
    assert model.stack.layers[0].attention.position.table.grad is not None


def test_copies_share_nothing() -> None:
    model, x = swin(), torch.randn(1, 3, 48, 48)
    with torch.no_grad():
        model(x)
        twin = copy.deepcopy(model)
        assert twin.stack.layers[0].attention.position.kept.tables == {}
        assert torch.equal(twin(x).logits, model(x).logits)
    assert pickle.loads(pickle.dumps(model.stack.layers[0].attention.position.kept)).tables == {}


def test_one_model_takes_sizes_from_call_to_call() -> None:
    """Each as if it were the first; a grid smaller than a window too."""
    model = swin()
    sizes = [(48, 48), (4, 4), (50, 33), (12, 96), (7, 5), (48, 48)]
    images = [torch.randn(1, 3, *size) for size in sizes]
    with torch.no_grad():
        fresh = [swin()(x).logits for x in images]
        for x, expected in zip(images, fresh):
            assert torch.equal(model(x).logits, expected)


def test_windows_and_full_attention_take_turns_in_a_plain_transformer() -> None:
    """ViTDet: windows with biases, every second layer attending to all; class and register tokens go with all windows."""
    window = {"attention": {"type": "window", "window": 2, "position": "relative-2d"}}
    overrides = {"stack.depth": 4, "stack.pattern": [window, {}], "embedding.image_size": 48, "embedding.registers": 2}
    model = zoo.build("vit-tiny", overrides).eval()
    kinds = [type(layer.attention).__name__ for layer in model.stack.layers]
    assert kinds == ["WindowAttention", "FullAttention"] * 2
    x = torch.randn(2, 3, 48, 48)
    output = model(x, output_attentions=[0, 1])
    far = output.attentions[0][:, :, 3, 11]  # the first patch and the last of 3 x 3, in other windows
    assert (far == 0).all() and (output.attentions[1][:, :, 3, 11] > 0).all()
    assert (output.attentions[0][:, :, 3, :3] > 0).all() and (output.attentions[0][:, :, :3] > 0).all()
    mask = torch.ones(2, 12)
    mask[:, 5] = 0
    changed = x.clone()
    changed[:, :, :16, 32:] += 1.0  # the masked patch
    a, b = (model(each, attention_mask=mask).logits for each in (x, changed))
    assert torch.allclose(a, b, atol=1e-6) and not torch.allclose(model(x).logits, a, atol=1e-4)


def test_full_attention_in_a_stage() -> None:
    full = {"block": {"attention": {"type": "full", "position": None}}}
    model = swin(stack__stages=[*TINY["stack.stages"][:2], {**TINY["stack.stages"][2], **full}])
    assert [type(layer.attention).__name__ for layer in model.stack.layers][4:] == ["FullAttention"] * 2
    assert model(torch.randn(1, 3, 40, 56)).logits.shape == (1, 5)
    stored = model.config.plain()
    assert stored["stack"]["stages"][2]["block"]["attention"]["scale"] is None  # defaults included
    assert validate(stored) == model.config
    changed = zoo.get_config("swin-tiny", {"stack.stages": {"2": full}})
    assert changed.stack.stages[2].depth == 6 and changed.stack.stages[2].heads == 12
    assert {block.attention.type for block in changed.stack.blocks()[4:10]} == {"full"}
    wider = merge_overrides(changed.model_dump(), {"stack.stages": {"2": {"heads": 24}}})
    assert {block.attention.heads for block in validate(wider).stack.blocks()[4:10]} == {24}


@pytest.mark.parametrize(("model", "overrides", "message"), [
    ("swin-tiny", {"embedding.class_token": True}, "class or register tokens"),
    ("swin-tiny", {"embedding.patch_dropout": 0.5}, "form none"),
    ("swin-tiny", {"stack.stages": {"1": {"heads": 5}}}, "not divisible by 5 heads"),
    ("swin-tiny", {"stack.stages": {"1": {"block": {"attention": {"widnow": 5}}}}}, "did you mean 'window'"),
    ("swin-tiny", {"stack.stages": {"4": {"depth": 2}}}, "only 4 entries"),
    ("swin-tiny", {"stack.stages": {"3": {"block": {"attention": "full"}}}}, "use attention 'window', or position: none"),
    ("swin-tiny", {"stack.stages": []}, "stages"),
    ("swin-tiny", {"stack.block.attention.causal": True}, "no order"),
    ("swin-tiny", {"stack.block.attention.position": "rotary"}, "relative-2d"),
    ("swin-tiny", {"stack.block.attention.window": 0}, "window"),
    ("vit-tiny", {"stack.block.attention.position": "relative-2d"}, "use attention 'window'"),
    ("bert-tiny", {"stack.block.attention": {"type": "window"}}, "form none"),
    ("vit-tiny", {"head": {"type": "feature-maps", "features": ["stage13"]}}, "no feature map"),
    ("bert-tiny", {"head": {"type": "feature-maps", "features": ["stage1"]}}, "it has none"),
])  # fmt: skip
def test_what_cannot_be_is_refused(model: str, overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        zoo.get_config(model, overrides)


def test_calls_that_cannot_be_are_refused() -> None:
    model, x = swin(), torch.randn(1, 3, 48, 48)
    for given, message in [
        ({"attention_mask": torch.ones(1, 144)}, "attention_mask"), ({"features": ["stage9"]}, "did you mean"),
        ({"features": "stage1"}, "list of names"), ({"use_cache": True}, "use_cache"),
    ]:  # fmt: skip
        with pytest.raises(InputError, match=message):
            model(x, **given)


def test_feature_maps_are_states_as_images() -> None:
    model, x = zoo.build("vit-tiny", {"stack.depth": 3, "embedding.image_size": [48, 64]}).eval(), torch.randn(2, 3, 48, 64)
    output = model(x, features=["stage3", "stage1"], output_hidden_states=[1])
    assert list(output.feature_maps) == ["stage1", "stage3"] and len(output.hidden_states) == 1
    for name, each in output.feature_maps.items():
        assert each.map.shape == (2, 192, 3, 4) and each.stride == (16, 16) and each.channels == 192
        state = model(x, output_hidden_states=[int(name[-1])]).hidden_states[0][:, 1:]
        assert torch.equal(each.map.flatten(2).mT, state)
    head = {"type": "feature-maps", "features": ["stage1", "stage3"], "norm": "layer-norm"}
    torch.manual_seed(0)
    backbone = zoo.build("swin-tiny", {**{k: v for k, v in TINY.items() if k != "head.classes"}, "head": head})
    maps = backbone(torch.randn(1, 3, 50, 34)).feature_maps
    assert {name: tuple(each.map.shape) for name, each in maps.items()} == {"stage1": (1, 12, 13, 9), "stage3": (1, 48, 4, 3)}
    assert list(backbone(torch.randn(1, 3, 48, 48), features=["stage3"]).feature_maps) == ["stage3"]


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_numbers_of_parameters(name: str) -> None:
    whole, body = PUBLISHED[name]
    assert zoo.build(name, device="meta").num_parameters() == whole
    assert zoo.build(name, {"head": POOLER}, device="meta").num_parameters() == body


@pytest.mark.parametrize(("name", "side", "window"), [("swin-base-384", 384, 12), ("swin-large-384", 384, 12)])
def test_windows_of_twelve_add_to_the_tables_alone(name: str, side: int, window: int) -> None:
    model, small = (zoo.build(each, device="meta") for each in (name, name.removesuffix("-384")))
    heads = sum(layer.attention.heads for layer in model.stack.layers)
    assert model.num_parameters() - small.num_parameters() == heads * (23**2 - 13**2)
    assert model.config.embedding.image_size == (side, side)
    assert all(layer.attention.config.window == (window, window) for layer in model.stack.layers)


def test_it_compiles_and_exports_as_one_graph() -> None:
    model, x = swin(), torch.randn(1, 3, 48, 48)
    with torch.no_grad():
        expected = model(x).logits
        # for this size alone: what other tests compiled before would have it try all sizes, for half a minute
        compiled = torch.compile(model, fullgraph=True, backend="eager", dynamic=False)
        assert torch.allclose(compiled(x).logits, expected, atol=1e-5)
        exported = torch.export.export(model, (x,)).module()
        assert torch.allclose(exported(x).logits, expected, atol=1e-5)


def test_gradient_checkpointing_changes_nothing() -> None:
    model, x = swin().train(), torch.randn(2, 3, 50, 46)
    model(x).logits.square().sum().backward()
    expected = {name: each.grad.clone() for name, each in model.named_parameters()}
    model.zero_grad()
    model.gradient_checkpointing()
    model(x).logits.square().sum().backward()
    for name, each in model.named_parameters():
        assert torch.allclose(each.grad, expected[name], rtol=1e-4, atol=1e-5), name


def test_halves_and_autocast_stay_near() -> None:
    model, x = swin(), torch.randn(2, 3, 50, 46)
    with torch.no_grad():
        expected = model(x).logits
        with torch.autocast("cpu", torch.bfloat16):
            mixed = model(x).logits
        half = model.bfloat16()(x.bfloat16()).logits
    scale = expected.abs().max()
    assert (mixed - expected).abs().max() < 0.05 * scale and (half - expected).abs().max() < 0.1 * scale
