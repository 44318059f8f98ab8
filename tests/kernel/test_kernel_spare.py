"""Memory of gradients is used again once nobody holds it, and not before."""

from __future__ import annotations

import gc
import weakref

import torch
from torch import nn

from zoo.config.base import Slot
from zoo.kernel.spare import LEAST, Spare
from zoo.registry import make

NUMBERS = LEAST // 4


def test_memory_is_used_again_once_nobody_holds_it() -> None:
    spare, weight = Spare(), nn.Parameter(torch.empty(4, NUMBERS // 4))
    first, second = spare.like(weight), spare.like(weight)
    assert first.shape == weight.shape and first.is_contiguous() and not first.requires_grad
    places = {first.data_ptr(), second.data_ptr()}
    assert len(places) == 2
    del second
    third = spare.like(weight)
    assert {first.data_ptr(), third.data_ptr()} == places
    for hold in (
        lambda x: x[1:, 3],
        lambda x: x.numpy(),
        lambda x: x.detach(),
        lambda x: torch.tensor([]).set_(x.untyped_storage()),
    ):
        third.fill_(3.0)
        held, place = hold(third), third.data_ptr()  # whoever looks at a part of it
        del third
        third = spare.like(weight)
        third.fill_(4.0)
        assert third.data_ptr() != place and (held == 3.0).all()
        del held
        again = spare.like(weight)
        assert again.data_ptr() == place
        del again


def test_what_is_small_or_no_usual_tensor_is_new() -> None:
    spare = Spare()
    for weight in (torch.empty(NUMBERS - 1), torch.empty(NUMBERS, device="meta")):
        assert spare.like(weight).device == weight.device and not spare.free
    assert spare.like(torch.empty(NUMBERS, dtype=torch.bfloat16).repeat(2)).dtype == torch.bfloat16


def test_memory_goes_with_who_kept_it() -> None:
    spare = Spare()
    tensor = spare.like(torch.empty(NUMBERS))
    del tensor
    (space,) = spare.free[LEAST]
    gone = weakref.ref(space)
    del space
    assert gone() is not None
    tensor = spare.like(torch.empty(NUMBERS))
    del spare
    assert gone() is not None
    tensor.fill_(1.0)
    del tensor
    gc.collect()
    assert gone() is None


def test_steps_of_experts() -> None:
    """Gradients lie where those of the step before lay, unless somebody kept these."""
    expert = {"type": "gated", "hidden": 1024, "bias": False}
    config = {"type": "mixture-of-experts", "experts": 4, "top_k": 2, "expert": expert}
    module = make(Slot("feedforward").validate(config), width=256)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.05)
    weight, x, found, places = module.experts.up.weight, torch.randn(1, 30, 256), [], []
    assert weight.numel() * 4 == LEAST
    for keep in (False, False, True, False, False):
        module.zero_grad(set_to_none=True)
        module(x).square().sum().backward()
        places.append(weight.grad.data_ptr())
        found.append(weight.grad.clone())
        if keep:
            kept = weight.grad
    assert all(torch.equal(each, found[0]) for each in found) and torch.equal(kept, found[0])
    assert kept.data_ptr() not in places[3:]
    module(x).square().sum().backward()  # added to what is there
    assert torch.allclose(weight.grad, 2 * found[0])
    module.zero_grad(set_to_none=True)
    assert any(module.experts.prepared.spare.free.values())
    module.eval()
    assert not module.experts.prepared.spare.free
