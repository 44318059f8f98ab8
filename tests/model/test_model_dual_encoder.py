"""Two towers side by side: any image tower with any text tower, called with both inputs or one of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import zoo
from zoo.errors import ConfigError, InputError

SMALL = {
    "vision.embedding.image_size": 8, "vision.embedding.patch_size": 4, "vision.stack.width": 16, "vision.stack.depth": 1,
    "vision.stack.block.attention.heads": 2, "vision.head.size": 6, "text.embedding.vocabulary": 40, "text.stack.width": 24,
    "text.stack.depth": 2, "text.stack.block.attention.heads": 2, "text.head.size": 6,
}  # fmt: skip


def model(**overrides: Any) -> Any:
    return zoo.build("clip-vit-b32", {**SMALL, **overrides}).eval()


def ids(*rows: list[int]) -> torch.Tensor:
    return torch.tensor(rows or [[1, 2, 39, 3], [4, 39, 5, 6], [7, 8, 9, 39]])


def tower(preset: str, overrides: dict[str, Any], **head: Any) -> dict[str, Any]:
    return zoo.get_config(preset, {**overrides, "head": {"type": "projection", **head}}).model_dump()


IMAGES: dict[str, dict[str, Any]] = {
    "vit": tower("vit-tiny", {"embedding.image_size": 32, "stack.depth": 1}, size=6, pool="class-token"),
    "swin": tower("swin-tiny", {
        "embedding.image_size": 32, "stack.width": 12,
        "stack.stages": [{"depth": 2, "heads": 3}, {"depth": 1, "heads": 6}],
    }, size=6, pool="mean"),
}  # fmt: skip
TEXTS: dict[str, dict[str, Any]] = {
    "clip": zoo.get_config("clip-vit-b32", SMALL).text.model_dump(),  # type: ignore[attr-defined]
    "bert": tower("bert-tiny", {"embedding.vocabulary": 40}, size=6, pool="class-token"),
    "gpt2": tower("gpt2", {"embedding.vocabulary": 40, "stack.depth": 1, "stack.width": 24, "stack.block.attention.heads": 2},
                  size=6, pool="last-token"),
}  # fmt: skip


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("image", IMAGES)
def test_any_image_tower_goes_with_any_text_tower(tmp_path: Path, image: str, text: str) -> None:
    fields = {"type": "dual-encoder", "vision": IMAGES[image], "text": TEXTS[text]}
    both = zoo.build(fields).eval()
    pixels = torch.randn(2, 3, 32, 32)
    output = both(ids(), pixels)
    assert output.logits_per_text.shape == (3, 2) and output.logits_per_image.shape == (2, 3)
    alone = zoo.build(IMAGES[image]).eval()
    alone.load_state_dict(both.vision.state_dict())
    expected = torch.nn.functional.normalize(alone(pixels).image_embeds)
    assert torch.allclose(output.image_embeds, expected, atol=1e-6)
    again = zoo.load(zoo.save(both, tmp_path / "both"))
    assert again.config == both.config and torch.equal(again(ids(), pixels).logits_per_text, output.logits_per_text)
    loss = both.train()(ids(), pixels).logits_per_text.sum()
    loss.backward()
    assert all(parameter.grad is not None for name, parameter in both.named_parameters())


@torch.no_grad()
def test_one_input_is_enough_for_its_vectors() -> None:
    both, pixels = model(), torch.randn(2, 3, 8, 8)
    whole = both(input_ids=ids(), pixel_values=pixels)
    texts, images = both(ids()), both(pixel_values=pixels)
    assert torch.equal(texts.text_embeds, whole.text_embeds) and texts.image_embeds is None and texts.logits_per_text is None
    assert torch.equal(images.image_embeds, whole.image_embeds) and images.text_model_output is None
    assert torch.equal(both.scores(texts.text_embeds, images.image_embeds), whole.logits_per_text)
    assert torch.allclose(whole.text_embeds.norm(dim=1), torch.ones(3))
    assert torch.allclose(whole.logits_per_image, whole.image_embeds @ whole.text_embeds.T * whole.logit_scale, atol=1e-5)


@torch.no_grad()
def test_outputs_of_the_towers_are_carried() -> None:
    both = model()
    output = both(ids(), torch.randn(2, 3, 8, 8), output_hidden_states=True, output_attentions=[-1])
    text, vision = output.text_model_output, output.vision_model_output
    assert text.last_hidden_state.shape == (3, 4, 24) and vision.last_hidden_state.shape == (2, 5, 16)
    assert len(text.hidden_states) == 3 and len(vision.hidden_states) == 2
    assert len(text.attentions) == 1 and vision.attentions[0].shape == (2, 2, 5, 5)
    assert torch.equal(text.pooler_output, text.text_embeds) and torch.equal(vision.pooler_output, vision.image_embeds)


@torch.no_grad()
def test_a_bias_of_the_scores() -> None:
    plain, biased = model(), model(logit_bias=-10.0)
    biased.load_state_dict({**plain.state_dict(), "logit_bias": torch.tensor([-3.0])})
    pixels = torch.randn(2, 3, 8, 8)
    assert torch.allclose(biased(ids(), pixels).logits_per_text, plain(ids(), pixels).logits_per_text - 3.0)
    assert model(logit_bias=-10.0).logit_bias.item() == -10.0


@torch.no_grad()
@pytest.mark.parametrize(("end", "rows", "places"), [
    (None, [[1, 39, 2, 3], [5, 4, 3, 2], [7, 9, 9, 1], [39, 39, 39, 39]], [1, 0, 1, 0]),  # the highest, and the first of these
    (7, [[1, 7, 2, 3], [7, 39, 3, 7], [1, 2, 3, 4], [1, 2, 3, 7]], [1, 0, 0, 3]),  # 7, and the first token where there is none
])  # fmt: skip
def test_a_text_is_pooled_where_it_ends(end: int | None, rows: list[list[int]], places: list[int]) -> None:
    both = model(**{"text.head.pool.id": end})
    output = both(ids(*rows)).text_model_output
    picked = output.last_hidden_state[torch.arange(4), torch.tensor(places)]
    assert torch.equal(output.text_embeds, both.text.head.output(picked))


@torch.no_grad()
def test_what_stands_behind_the_end_changes_nothing() -> None:
    both = model(**{"text.head.pool.id": 7})
    first, other, short = both(ids([1, 2, 7, 3, 4])), both(ids([1, 2, 7, 7, 7])), both(ids([1, 2, 7]))
    assert torch.allclose(first.text_embeds, other.text_embeds, atol=1e-6)
    assert torch.allclose(first.text_embeds, short.text_embeds, atol=1e-6)
    masked = both(ids([1, 2, 7, 3, 4]), attention_mask=torch.tensor([[1, 1, 1, 0, 0]]))
    assert torch.allclose(first.text_embeds, masked.text_embeds, atol=1e-6)


@torch.no_grad()
def test_images_of_another_size_on_demand() -> None:
    both, large = model(), torch.randn(2, 3, 16, 12)
    with pytest.raises(InputError, match="expected images of"):
        both(pixel_values=large)
    assert both(pixel_values=large, interpolate_pos_encoding=True).vision_model_output.last_hidden_state.shape == (2, 13, 16)


@pytest.mark.parametrize(("arguments", "words"), [
    ({}, "input_ids is missing: this model reads input_ids, pixel_values"),
    ({"pixel_value": 1}, "did you mean 'pixel_values'"),
    ({"position_ids": torch.zeros(1, 4, dtype=torch.long), "pixel_values": torch.zeros(1, 3, 8, 8)}, "given without input_ids"),
    ({"pixel_values": torch.zeros(1, 3, 8, 8), "attention_mask": torch.ones(1, 4)}, "attention_mask: it is of texts"),
    ({"input_ids": torch.zeros(1, 4, dtype=torch.long), "interpolate_pos_encoding": True}, "given without pixel_values"),
    ({"input_ids": torch.full((1, 4), 40)}, "input_ids: 40 is none of 0 to 39"),
    ({"input_ids": torch.zeros(1, 4, dtype=torch.long), "use_cache": True}, "use_cache"),
])  # fmt: skip
def test_an_input_that_does_not_fit_is_refused(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        model()(**arguments)


def test_it_writes_no_texts() -> None:
    with pytest.raises(InputError, match="generate: a model of texts is needed, and this one reads images beside texts"):
        model().generate(ids())
    with pytest.raises(InputError, match="use_cache"):
        model().new_cache()


@pytest.mark.parametrize(("overrides", "words"), [
    ({"text.head.size": 7}, "text.head.size: vectors of size 7 cannot be compared with those of images, of 512"),
    ({"text.head": None}, "text.head: a tower needs a head of type 'projection', and this is none"),
    ({"vision.head": {"type": "classifier"}}, "vision.head: a tower needs a head of type 'projection'"),
    ({"vision.embedding": {"type": "tokens", "vocabulary": 9}}, "vision.embedding: this tower is to read pixel_values"),
    ({"text.head.pool.id": 49408}, "text.head.pool.id: 49408 is none of the vocabulary's 0 to 49407"),
    ({"vision.head.pool": "end-of-text"}, "vision.head.pool: only texts have a token that ends them"),
    ({"text.head.bias": True, "text.head.size": None}, "text.head.bias"),
    ({"text.stack.block.attention.heads": 7}, "text.stack.block.attention.heads"),
    ({"size": 3}, "size: unknown field of model 'dual-encoder'"),
])  # fmt: skip
def test_what_cannot_be_compared_is_refused(overrides: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        zoo.get_config("clip-vit-b32", overrides)


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_types(dtype: str) -> None:
    both = zoo.build("clip-vit-b32", SMALL, dtype=dtype).eval()
    output = both(ids(), torch.randn(2, 3, 8, 8))
    assert output.logits_per_text.dtype == getattr(torch, dtype) and torch.isfinite(output.logits_per_text).all()


def test_cost_and_hook_points_of_both_towers() -> None:
    part = zoo.cost("clip-vit-b32")
    assert part.parameters == 151_277_313 and part.flops > zoo.cost("vit-base-patch32").flops
    both = model()
    names = zoo.hook_points(both, "*.stack.layers.0.attention")
    assert names == ["vision.stack.layers.0.attention", "text.stack.layers.0.attention"]
    with zoo.capture(both, "text.stack.layers.1.attention.pattern") as seen:
        both(ids(), torch.randn(2, 3, 8, 8))
    assert seen["text.stack.layers.1.attention.pattern"].shape == (3, 2, 4, 4)
