"""Blocks that run as one compiled call when texts are written give what they give in the ordinary way; or are not run so."""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from generation_helpers import CHANGES, decoder, prompts
from torch import Tensor

import zoo
from zoo import kernel
from zoo.feedforward.mlp import MLP
from zoo.kernel.activation import IN_C

step: Any = sys.modules["zoo.kernel.step"]
pytestmark = [
    pytest.mark.skipif(step.functions() is None, reason="no AVX-512 in this processor, or no compiler"),
    pytest.mark.filterwarnings("ignore:position .* is beyond"),
]
NEW = 20
SMALL = {
    "encoder.stack.width": 24, "decoder.stack.width": 24, "encoder.stack.depth": 2, "decoder.stack.depth": 2,
    "encoder.embedding.vocabulary": 61, "decoder.embedding.vocabulary": 61,
    "encoder.stack.block.attention.heads": 3, "decoder.stack.block.attention.heads": 3,
    "decoder.stack.block.cross_attention.heads": 2, "encoder.stack.block.feedforward.hidden": 40,
    "decoder.stack.block.feedforward.hidden": 50,
}  # fmt: skip
BLOCKS: dict[str, dict[str, Any]] = {
    "post": {"stack.block.order": "post"},
    "branch": {"stack.block.order": "branch"},
    "parallel": {"stack.block.order": "parallel"},
    "one norm": {"stack.block.order": "parallel", "stack.block.shared_norm": True},
    "rms": {"stack.block.norm": "rms-norm", "stack.final_norm": "rms-norm"},
    "gated": {"stack.block.feedforward": {"type": "gated", "bias": False}},
    "no bias": {"stack.block.attention.bias": False, "stack.block.attention.output_bias": False},
    "one key": {"stack.block.attention.kv_heads": 1},
    "large heads": {"stack.block.attention.head_size": 64, "stack.block.attention.scale": 0.1},
    "larger heads": {"stack.block.attention.head_size": 136},
    "interleaved": {
        "embedding.position": None, "stack.block.attention.position": {"type": "rotary", "order": "interleaved"},
    },
    "a part is turned": {
        "embedding.position": None, "stack.block.attention.position": {"type": "rotary", "fraction": 0.5},
    },
    "relative": {"embedding.position": None, "stack.position": {"type": "relative-bucket", "buckets": 8, "distance": 12}},
    **{name: {"stack.block.feedforward.activation": name} for name in IN_C},
}  # fmt: skip
OTHERS: dict[str, dict[str, Any]] = {
    "layer scale": {"stack.block.layer_scale": 0.5},
    "normed queries": {"stack.block.attention.qk_norm": "rms-norm"},
    "normed heads": {"stack.block.attention.output_norm": "rms-norm"},
    "normed hidden": {"stack.block.feedforward.norm": "layer-norm"},
    "another activation": {"stack.block.feedforward.activation": "tanh"},
    "windows": {"stack.block.attention": {"type": "local", "window": 4}},
    "experts": {
        "stack.block.feedforward": {
            "type": "mixture-of-experts",
            "experts": 4,
            "top_k": 2,
            "expert": {"type": "mlp", "hidden": 20},
        }
    },
    "heads too large": {"stack.block.attention.head_size": 264},
}


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """How many rows each program was run for."""
    rows: list[int] = []
    run = step.Program.run

    def counted(self: Any, x: Tensor, looks: Any) -> Tensor:
        rows.append(x.shape[0])
        result: Tensor = run(self, x, looks)
        return result

    monkeypatch.setattr(step.Program, "run", counted)
    yield rows


def check(model: Any, given: dict[str, Tensor], **options: Any) -> None:
    """The scores of each step are as close to those in float64 as they are in the ordinary way."""
    settings: dict[str, Any] = {"max_new_tokens": NEW, "min_new_tokens": NEW, "output_logits": True, **options}
    ours = model.generate(**given, **settings, return_dict_in_generate=True)
    with kernel.plain():
        plain = model.generate(**given, **settings, return_dict_in_generate=True)
    assert torch.equal(ours.sequences, plain.sequences)
    mine, ordinary = (torch.stack(each.logits).double() for each in (ours, plain))
    exact = torch.stack(model.double().generate(**given, **settings, return_dict_in_generate=True).logits).double()
    model.float()
    floor, largest = (ordinary - exact).abs().max().item(), exact.abs().max().item()
    # the noise floor is 3e-7 to 9e-5 of the largest score, from case to case; ours was at most 1.6 times as far off
    assert (mine - exact).abs().max().item() <= 3 * max(floor, 1e-7 * largest)


@pytest.mark.parametrize("name", [*CHANGES, *BLOCKS])
def test_decoders(name: str, runs: list[int]) -> None:
    model = decoder({**CHANGES, **BLOCKS}[name], dtype="float32")
    check(model, prompts(5))
    assert len(runs) >= NEW - 3 and set(runs) == {5}


@pytest.mark.parametrize("name", OTHERS)
def test_what_no_instruction_does_is_done_in_the_ordinary_way(name: str, runs: list[int]) -> None:
    check(decoder(OTHERS[name], dtype="float32"), prompts(2))
    assert not runs


def test_blocks_of_two_kinds(runs: list[int]) -> None:
    """Where not the whole stack can run so, those blocks do that can."""
    model = decoder({"stack.pattern": [{}, {"attention": {"type": "local", "window": 4}}], "stack.depth": 3}, dtype="float32")
    check(model, prompts(2))
    assert 2 * (NEW - 3) <= len(runs) <= 2 * NEW


@pytest.mark.parametrize("rows", [1, 2, 9, 64, 65])
def test_numbers_of_rows(rows: int, runs: list[int]) -> None:
    check(decoder(dtype="float32"), prompts(rows))
    assert bool(runs) == (rows <= 64)


@pytest.mark.parametrize("name", ["t5-small", "flan-t5-small", "bart-base", "transformer-base"])
@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"do_sample": True, "seed": 1}], ids=["greedy", "beams", "drawn"])
def test_texts_from_a_source(name: str, options: dict[str, Any], runs: list[int]) -> None:
    torch.manual_seed(0)
    model = zoo.build(name, SMALL).eval()
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape)
    given = prompts(4)
    given = {key: value.flip(1) for key, value in given.items()}  # padded on the right
    check(model, given, **options)
    assert len(runs) >= NEW - 4


def test_long_texts_and_little_room(runs: list[int]) -> None:
    """The memory of keys grows on the way, and keys are scored in pieces."""
    model = decoder({"embedding.position": None, "stack.block.attention.position": "rotary",
                     "stack.block.attention.heads": 6}, dtype="float32")  # fmt: skip
    given = prompts(2, longest=50)
    with kernel.repeated(), torch.no_grad():
        one = model(**given, use_cache=True)
        cache, mask = one.past_key_values, given["attention_mask"]
        for number in range(150):
            mask = torch.nn.functional.pad(mask, (0, 1), value=1)
            ids = torch.full((2, 1), number % 60)
            last = model(ids, attention_mask=mask, past_key_values=cache).logits
    ids = torch.cat([given["input_ids"], (torch.arange(150) % 60).expand(2, -1)], 1)
    with torch.no_grad():
        whole = model(ids, attention_mask=mask).logits
    assert len(runs) > 140 and len(cache) == 200
    assert (last[:, -1] - whole[:, -1]).abs().max() <= 2e-6 * whole.abs().max()  # 1.5e-7 measured


def test_a_row_that_may_look_at_nothing(runs: list[int]) -> None:
    """It gets zeros from the attention, and what is not a number in another row stays there."""
    model = decoder(dtype="float32")
    given, steps = prompts(3), []
    for plain in (False, True):
        with kernel.repeated(), torch.no_grad():
            cache = model(**given, use_cache=True).past_key_values
            for number in range(6):
                mask = torch.ones(3, len(cache) + 1, dtype=torch.int64)
                mask[0] = 0
                if number == 4:
                    cache.layers[1]._buffers[0][1] = math.nan
                with kernel.plain() if plain else contextlib.nullcontext():
                    last = model(torch.full((3, 1), 5), attention_mask=mask, past_key_values=cache).logits
        steps.append(last)
    assert len(runs) >= 4
    assert torch.equal(steps[0].isnan(), steps[1].isnan())
    assert steps[0].isnan().any(-1).flatten().tolist() == [False, True, False]
    assert torch.allclose(steps[0], steps[1], rtol=0.0, atol=1e-5, equal_nan=True)  # 1e-6 measured, of values up to 4


class Doubled(MLP):
    """Inherits what an MLP says of itself, and does something else."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def test_parts_that_do_something_else(runs: list[int]) -> None:
    model = decoder(dtype="float32")
    model.stack.layers[0].feedforward.__class__ = Doubled
    check(model, prompts(2))
    assert len(runs) >= NEW - 3  # the other block
    del runs[:]
    seen = []
    for layer in model.stack.layers:
        layer.feedforward_norm.register_forward_hook(lambda module, given, made: seen.append(made) or made * 1.5)
    check(model, prompts(2))
    assert not runs and len(seen) >= 4 * NEW


def test_hidden_states_and_weights_are_those_of_the_ordinary_way(runs: list[int]) -> None:
    model = decoder(dtype="float32")
    with kernel.repeated(), torch.no_grad():
        cache = model(torch.arange(6)[None], use_cache=True).past_key_values
        for number in range(4):
            wanted = number == 3
            given = {"output_hidden_states": wanted, "output_attentions": wanted}
            last = model(torch.tensor([[7]]), past_key_values=cache, **given)
    whole = model(torch.tensor([[0, 1, 2, 3, 4, 5, 7, 7, 7, 7]]), output_hidden_states=True, output_attentions=True)
    assert runs
    for mine, theirs in zip(last.hidden_states, whole.hidden_states):
        assert (mine[:, -1] - theirs[:, -1]).abs().max() <= 2e-5  # 1.8e-6 measured
    for mine, theirs in zip(last.attentions, whole.attentions):
        assert (mine[..., -1, :] - theirs[..., -1, :]).abs().max() <= 2e-6  # 1.2e-7 measured


@pytest.mark.parametrize("what", ["float64", "bfloat16", "autocast", "gradients", "plain", "not repeated"])
def test_other_calls_are_ordinary(what: str, runs: list[int]) -> None:
    model = decoder(dtype="float32" if what in ("autocast", "gradients", "plain", "not repeated") else what)
    contexts: dict[str, Any] = {
        "autocast": torch.autocast("cpu", torch.bfloat16), "gradients": torch.enable_grad(), "plain": kernel.plain(),
    }  # fmt: skip
    repeated = contextlib.nullcontext() if what == "not repeated" else kernel.repeated()
    with torch.no_grad(), contexts.get(what, contextlib.nullcontext()), repeated:
        cache = model(torch.arange(6)[None], use_cache=True).past_key_values
        for _ in range(4):
            model(torch.tensor([[7]]), past_key_values=cache)
    assert not runs
