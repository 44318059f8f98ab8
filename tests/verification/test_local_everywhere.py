"""One override makes the attention of any preset local, and verification finds it in exactly the layers where it is."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import zoo
from zoo.config.resolve import merge_overrides, validate
from zoo.verification.shrink import shrink

WINDOW = 3
LOCAL = {"type": "local", "window": WINDOW}


def attentions(fields: Any, path: str = "") -> dict[str, str]:
    """The type of every attention in a config, by its path."""
    if isinstance(fields, list):
        fields = {str(number): each for number, each in enumerate(fields)}
    found = {}
    for name, value in (fields if isinstance(fields, dict) else {}).items():
        here = f"{path}.{name}".lstrip(".")
        if name == "attention" and isinstance(value, dict) and "type" in value:
            found[here] = value["type"]
        found |= attentions(value, here)
    return found


PRESETS = {name: attentions(zoo.get_config(name).model_dump()) for name in zoo.list_models()}
FULL = [name for name, kinds in PRESETS.items() if "full" in kinds.values()]
PLAIN = [name for name in FULL if PRESETS[name] == {"stack.block.attention": "full"}]


def test_what_is_not_full_is_of_another_kind_by_design() -> None:
    assert len(PLAIN) > 35 and all(PRESETS.values())
    assert {name for name, kinds in PRESETS.items() if set(kinds.values()) == {"local"}} >= {"mistral-7b", "longformer-base"}


@pytest.mark.parametrize("name", FULL)
def test_one_override_for_each_stack_makes_a_preset_local(name: str) -> None:
    """At full size; the weights are the same."""
    change = {path: LOCAL for path, kind in PRESETS[name].items() if kind == "full"}
    full, local = (zoo.build(name, overrides, device="meta") for overrides in ({}, change))
    assert "full" not in attentions(local.config.model_dump()).values()
    assert {n: p.shape for n, p in local.named_parameters()} == {n: p.shape for n, p in full.named_parameters()}


@torch.no_grad()
def redrawn(model: Any) -> Any:
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model.eval()


@pytest.mark.parametrize("name", PLAIN)
def test_it_gives_what_full_attention_gives_within_a_mask(name: str) -> None:
    """Small, with the same weights."""
    fields = shrink(zoo.get_config(name)).model_dump()
    full = redrawn(zoo.build(validate(fields), dtype="float64"))
    local = zoo.build(validate(merge_overrides(fields, {"stack.block.attention": LOCAL})), dtype="float64").eval()
    local.load_state_dict(full.state_dict())
    embedding, causal = local.config.embedding, local.config.stack.block.attention.causal
    given: dict[str, Any] = {"input_ids": torch.arange(2, 22).expand(2, -1)}
    if embedding.type == "patch":
        given = {"pixel_values": torch.randn(2, embedding.channels, *embedding.image_size, dtype=torch.float64)}
    found = local(**given)
    place = torch.arange(found.last_hidden_state.shape[1])
    apart = place - place[:, None]
    band = (apart.abs() <= WINDOW) & ((apart <= 0) | (not causal))
    wanted = full(**given, attention_mask=band[None, None])
    for answer, expected, unmasked in zip(found, wanted, full(**given)):
        if isinstance(answer, torch.Tensor):
            assert torch.allclose(answer, expected, rtol=0.0, atol=1e-12 * max(1.0, float(expected.detach().abs().max())))
            assert not torch.allclose(answer, unmasked)
    found.last_hidden_state.pow(2).sum().backward()
    assert all(parameter.grad is not None for parameter in local.stack.parameters())


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("vit-tiny", "transformers"), ("vit-tiny", "timm"), ("deit-small", "transformers"), ("deit3-small", "timm"),
        ("bert-tiny", "transformers"), ("roberta-base", "transformers"), ("distilbert-base", "transformers"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("layer", [0, 1])
def test_verification_names_exactly_the_layer_that_is_local(name: str, reference: str, layer: int) -> None:
    pattern = [{"attention": LOCAL} if number == layer else {} for number in range(2)]
    report = zoo.verify(name, {"stack.pattern": pattern}, tiny=True, reference=reference, gradients=False, training=False)
    assert report.first_divergence == f"stack.layers.{layer}.attention"
    (found,) = report.comparisons
    own = {each.name for each in found.layers if each.own > 1e-10}
    assert own == {f"stack.layers.{layer}.attention", f"stack.layers.{layer}"}
    assert all("local" in text or "window" in text for text in found.exchanged) and found.exchanged
    assert all("stack" in text for text in found.exchanged)
