"""Calling a model: outputs, chosen layers, masks, and everything that it cannot honour."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import zoo
from zoo.errors import InputError

Make = Callable[..., Any]


def close(a: Tensor, b: Tensor) -> None:
    """Equal within 1e-12."""
    assert a.shape == b.shape and (a - b).abs().max() <= 1e-12 * max(1.0, float(b.detach().abs().max()))


def test_outputs(model_of: Make, images: Make) -> None:
    model, x = model_of(), images()
    output = model(x)
    assert output._fields[:3] == ("last_hidden_state", "pooler_output", "logits")
    assert output.last_hidden_state.shape == (2, 17, 24) and output.logits.shape == (2, 5)
    assert {name for name, value in output._asdict().items() if value is not None} == {"last_hidden_state", "logits"}
    assert torch.equal(model(pixel_values=x).logits, output.logits)
    bare = model_of({"head": None})
    assert bare(x).logits is None and bare(x).last_hidden_state.shape == (2, 17, 24)


def test_all_hidden_states(model_of: Make, images: Make) -> None:
    model, x = model_of(), images()
    output = model(x, output_hidden_states=True)
    assert len(output.hidden_states) == 3
    embedded, layout = model.embedding(x)
    close(output.hidden_states[0], embedded)
    for number, layer in enumerate(model.stack.layers):
        close(output.hidden_states[number + 1], layer(output.hidden_states[number], layout)[0])
    close(model.stack.final_norm(output.hidden_states[-1]), output.last_hidden_state)


@pytest.mark.parametrize("choice", [[0], [2, 0], [-1], [-1, -3, 1], (1,), [1, 1], range(2), {0}])
def test_chosen_hidden_states(model_of: Make, images: Make, choice: Any) -> None:
    model, x = model_of(), images()
    every = model(x, output_hidden_states=True).hidden_states
    found = model(x, output_hidden_states=choice).hidden_states
    assert len(found) == len(choice) and all(torch.equal(a, every[n]) for a, n in zip(found, choice))


@pytest.mark.parametrize("choice", [[0], [1, 0], [-1], [-2, 1]])
def test_chosen_attentions(model_of: Make, images: Make, choice: list[int]) -> None:
    model, x = model_of(), images()
    every = model(x, output_attentions=True).attentions
    assert len(every) == 2 and every[0].shape == (2, 3, 17, 17)
    found = model(x, output_attentions=choice).attentions
    assert all(torch.equal(a, every[n]) for a, n in zip(found, choice)) and len(found) == len(choice)


def test_attention_weights_sum_to_one_and_reproduce_the_output(model_of: Make, images: Make) -> None:
    model, x = model_of(), images()
    output = model(x, output_attentions=True, output_hidden_states=True)
    for layer, weights, before, after in zip(
        model.stack.layers, output.attentions, output.hidden_states, output.hidden_states[1:]
    ):
        close(weights.sum(-1), torch.ones(2, 3, 17, dtype=torch.float64))
        assert weights.min() >= 0
        value = layer.attention.value(layer.attention_norm(before)).unflatten(-1, (3, 8)).transpose(1, 2)
        mixed = before + layer.attention.output((weights @ value).transpose(1, 2).flatten(2))
        close(mixed + layer.feedforward(layer.feedforward_norm(mixed)), after)
    assert torch.equal(model(x).logits, output.logits)


@pytest.mark.parametrize("empty", [False, None, [], ()])
def test_nothing_asked_for_is_none(model_of: Make, images: Make, empty: Any) -> None:
    output = model_of()(images(), output_hidden_states=empty, output_attentions=empty)
    assert output.hidden_states is None and output.attentions is None


@pytest.mark.parametrize(("name", "last"), [("output_hidden_states", 2), ("output_attentions", 1)])
@pytest.mark.parametrize("index", [3, -4, 99])
def test_a_layer_that_is_not_there_is_named(model_of: Make, images: Make, name: str, last: int, index: int) -> None:
    with pytest.raises(InputError, match=f"{name}: {index} is none of 0 to {last}"):
        model_of()(images(), **{name: [0, index]})


@pytest.mark.parametrize("choice", ["all", 1, [0.5], ["0"], [None], 2.0])
def test_a_choice_that_is_none_is_an_input_error(model_of: Make, images: Make, choice: Any) -> None:
    with pytest.raises(InputError, match="output_hidden_states"):
        model_of()(images(), output_hidden_states=choice)


def test_a_masked_token_has_no_influence(model_of: Make, images: Make) -> None:
    model, x = model_of(), images()
    mask = torch.ones(2, 17, dtype=torch.long)
    close(model(x, attention_mask=mask).logits, model(x).logits)
    mask[:, 6] = 0  # the patch at row 1, column 1
    before = model(x, attention_mask=mask, output_attentions=True)
    changed = x.clone()
    changed[:, :, 8:16, 8:16] += 1.0
    after = model(changed, attention_mask=mask)
    close(after.logits, before.logits)
    assert not torch.allclose(model(changed).logits, model(x).logits)
    assert not torch.allclose(before.logits, model(x).logits)
    assert all(not weights[..., 6].any() for weights in before.attentions)
    close(model(x, attention_mask=mask.bool()).logits, before.logits)


@pytest.mark.parametrize("pool", ["mean", "max", "mean-max"])
def test_masked_tokens_are_not_pooled(model_of: Make, images: Make, pool: str) -> None:
    model, x = model_of({"head.pool": pool}), images()
    mask = torch.ones(2, 17, dtype=torch.long)
    mask[:, 6] = 0
    changed = x.clone()
    changed[:, :, 8:16, 8:16] += 1.0
    close(model(changed, attention_mask=mask).logits, model(x, attention_mask=mask).logits)


def test_a_whole_row_of_masked_tokens_gives_no_nan(model_of: Make, images: Make) -> None:
    model = model_of()
    output = model(images(), attention_mask=torch.tensor([[0] * 17, [1] * 17]))
    assert output.logits.isfinite().all()
    output.logits.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("shape", [(2, 16), (1, 17), (17,), (2, 1, 1, 16), (3, 1, 17, 17)])
def test_a_mask_of_another_shape_is_refused(model_of: Make, images: Make, shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"attention_mask: expected shape \(2, 17\)"):
        model_of()(images(), attention_mask=torch.ones(shape))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"pixel_valus": 1}, "pixel_valus: this model cannot honour such an argument; did you mean 'pixel_values'"),
        ({"input_ids": torch.ones(1, 1)}, "input_ids: this model cannot honour"),
        ({"use_cache": True}, "use_cache: tokens of this model depend"),
        ({"output_attention": True}, "output_attention: this model cannot honour"),
        ({"past_key_values": ()}, "past_key_values"),
        ({}, "pixel_values is missing"),
        ({"pixel_values": None}, "pixel_values is missing"),
    ],
)
def test_an_argument_that_cannot_be_honoured_is_named(
    model_of: Make, images: Make, arguments: dict[str, Any], words: str
) -> None:
    inputs = () if not arguments or arguments.get("pixel_values", 0) is None else ({} or images(),)
    with pytest.raises(InputError, match=words):
        model_of()(*inputs, **arguments)


def test_inputs_given_wrongly(model_of: Make, images: Make) -> None:
    model, x = model_of(), images()
    with pytest.raises(InputError, match="2 inputs given by position"):
        model(x, x)
    with pytest.raises(InputError, match="given twice"):
        model(x, pixel_values=x)
    assert torch.equal(model(x, use_cache=None).logits, model(x).logits)


@pytest.mark.parametrize(
    ("shape", "dtype", "words"),
    [
        ((2, 1, 32, 32), torch.float64, "expected 3 channels, got 1"),
        ((2, 3, 32, 40), torch.float64, r"expected images of \(32, 32\), got \(32, 40\); interpolate_pos_encoding=True"),
        ((3, 32, 32), torch.float64, "expected floats of shape"),
        ((2, 3, 32, 32), torch.uint8, "expected floats of shape .* got .*uint8"),
        ((2, 3, 32, 32), torch.complex64, "expected floats"),
    ],
)
def test_wrong_images_are_refused(model_of: Make, shape: tuple[int, ...], dtype: torch.dtype, words: str) -> None:
    with pytest.raises(InputError, match=words):
        model_of()(torch.zeros(shape, dtype=dtype))


@pytest.mark.parametrize("value", [3, "image.png", [[1.0]], None])
def test_what_is_no_tensor_is_refused(model_of: Make, value: Any) -> None:
    with pytest.raises(InputError, match="pixel_values"):
        model_of()(value)


@pytest.mark.parametrize("size", [(40, 24), (64, 64), (16, 16), (37, 45)])
def test_other_sizes_when_asked(model_of: Make, images: Make, size: tuple[int, int]) -> None:
    model, flexible, x = model_of(), model_of({"embedding.flexible": True}), images(size=size)
    asked = model(x, interpolate_pos_encoding=True)
    assert asked.last_hidden_state.shape[1] == 1 + (size[0] // 8) * (size[1] // 8)
    assert torch.equal(flexible(x).logits, asked.logits)


def test_images_smaller_than_a_patch_are_refused(model_of: Make, images: Make) -> None:
    with pytest.raises(InputError, match="smaller than one patch"):
        model_of()(images(size=(7, 32)), interpolate_pos_encoding=True)
    with pytest.raises(InputError, match="not a multiple of the patch size"):
        model_of({"embedding.edges": "refuse"})(images(size=(33, 32)), interpolate_pos_encoding=True)


def test_an_empty_batch_works(model_of: Make, images: Make) -> None:
    assert model_of()(images(batch=0)).logits.shape == (0, 5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_smaller_types(model_of: Make, images: Make, dtype: torch.dtype, tiny: dict[str, Any]) -> None:
    exact, x = model_of(), images()
    model = zoo.build(tiny, dtype=dtype).eval()
    model.load_state_dict({name: value.to(dtype) for name, value in exact.state_dict().items()})
    output = model(x.to(torch.float32), output_hidden_states=True, output_attentions=True)
    assert {t.dtype for t in (output.logits, output.last_hidden_state, *output.hidden_states, *output.attentions)} == {dtype}
    bound = {torch.bfloat16: 0.1, torch.float16: 0.02, torch.float32: 1e-5}[dtype]
    assert (output.logits.double() - exact(x).logits).norm() < bound * exact(x).logits.norm()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(model_of: Make, images: Make, dtype: torch.dtype) -> None:
    model, x = model_of(dtype="float32"), images(dtype=torch.float32)
    expected = model(x).logits
    with torch.autocast("cpu", dtype):
        found = model(x).logits
    assert found.dtype == dtype and (found.float() - expected).norm() < 0.1 * expected.norm()
