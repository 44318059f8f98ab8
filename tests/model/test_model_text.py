"""Models of texts: padding, masks, texts packed into a row, and whatever a caller may do wrong."""

from __future__ import annotations

import importlib
import math
from typing import Any

import pytest
import torch
from text_helpers import HEADS, answers, far, text_model, words
from torch import Tensor

import zoo
from zoo.errors import InputError
from zoo.layout import Layout

PRESETS = ["bert-tiny", "roberta-base", "distilbert-base"]
PADDING = {"bert-tiny": 0, "roberta-base": 1, "distilbert-base": 0}
Z = torch.zeros


def counted(real: Tensor, preset: str) -> Tensor:
    """The positions of the real tokens, as if padding were not there."""
    return (real.cumsum(-1) - 1).clamp(min=0) + (PADDING[preset] + 1 if preset == "roberta-base" else 0)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("side", ["right", "left", "holes", "other row"])
def test_padding_has_no_influence(preset: str, side: str) -> None:
    """The real tokens of a padded batch are those of the same texts alone, whatever stands in the padding."""
    model, ids = text_model(preset), words(4, 12)
    real = torch.ones(4, 12, dtype=torch.bool)
    if side == "right":
        real[0, 7:] = real[1, 1:] = False
    elif side == "left":
        real[0, :7] = real[1, :11] = False
    elif side == "holes":
        real[0, 3:5] = real[1, ::2] = real[2, 1:11] = False
    else:
        real[2] = False
    padded = ids.masked_fill(~real, PADDING[preset])
    mask, positions = real.long(), counted(real, preset)
    output = model(padded, attention_mask=mask, position_ids=positions).last_hidden_state
    for row in range(4):
        if real[row].any():
            alone = model(ids[row][real[row]][None]).last_hidden_state[0]
            assert far(output[row][real[row]], alone) < 1e-12
    other = model(torch.where(real, ids, words(4, 12, seed=9)), attention_mask=mask, position_ids=positions)
    assert far(other.last_hidden_state[real], output[real]) < 1e-12
    if side == "right" or preset == "roberta-base":  # which counts its positions itself
        assert far(model(padded, attention_mask=mask).last_hidden_state[real], output[real]) < 1e-12


@pytest.mark.parametrize("head", [name for name in HEADS if name != "multiple-choice"])
def test_a_batch_of_one_equals_the_padded_batch(head: str) -> None:
    model, ids = text_model("bert-tiny", {"head": HEADS[head]}), words(3, 10)
    lengths = [10, 6, 1]
    mask = torch.arange(10) < torch.tensor(lengths)[:, None]
    together = answers(model(ids * mask, attention_mask=mask.long()))
    for row, length in enumerate(lengths):
        for name, alone in answers(model(ids[row : row + 1, :length])).items():
            found = together[name][row : row + 1]
            assert far(found[:, :length] if found.shape[1:2] == (10,) else found, alone) < 1e-12, name


def empty_masks(dtype: torch.dtype) -> dict[str, Tensor]:
    """Masks of four tokens whose first row is all padding."""
    real = torch.tensor([[0, 0, 0, 0], [1, 1, 0, 1]])
    square = real.bool()[:, None, None].expand(2, 1, 4, 4)
    lowest = torch.zeros(2, 1, 4, 4, dtype=dtype).masked_fill(~square, -math.inf)
    return {"tokens": real, "square": square, "scores": lowest, "lowest float64": lowest.double().clamp(min=-1.7e308)}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["tokens", "square", "scores", "lowest float64"])
@pytest.mark.parametrize("training", [False, True])
def test_a_row_of_nothing_but_padding_gives_zeros_and_never_nan(dtype: torch.dtype, kind: str, training: bool) -> None:
    model = text_model(dtype=dtype).train(training)
    mask, seen = empty_masks(dtype)[kind], []
    for layer in model.stack.layers:
        layer.attention.output.register_forward_pre_hook(lambda module, args: seen.append(args[0][0]))
    output = model(words(2, 4), attention_mask=mask, output_attentions=True)
    assert all(value.isfinite().all() for value in answers(output).values())
    assert {weights.dtype for weights in output.attentions} == {dtype}
    if kind != "lowest float64" or dtype != torch.float64:  # where that is not infinite, it is a score like any other
        assert all(not mixed.any() for mixed in seen) and all(not weights[0].any() for weights in output.attentions)
    sum(value.float().sum() for value in answers(output).values()).backward()
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("pool", ["mean", "max", "mean-max"])
def test_a_row_of_nothing_but_padding_is_pooled_to_zero(dtype: torch.dtype, pool: str) -> None:
    model = text_model("bert-tiny", {"head": {"type": "sentence-embedding", "pool": pool}}, dtype)
    found = model(words(2, 4), attention_mask=empty_masks(dtype)["tokens"]).sentence_embedding
    assert not found[0].any() and abs(found[1].double().norm() - 1) < 0.01
    found.float().sum().backward()
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("kind", ["tokens", "scores", "texts", "causal"])
def test_the_mask_is_prepared_once_in_a_forward_pass(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    kernel_attention = importlib.import_module("zoo.kernel.attention")  # by its name it is the function
    calls, ready = [], kernel_attention._ready
    monkeypatch.setattr(kernel_attention, "_ready", lambda *arguments: calls.append(1) or ready(*arguments))
    model = text_model("bert-tiny", {"stack.depth": 4, "stack.block.attention.causal": kind == "causal"})
    mask: dict[str, Any] = {
        "scores": {"attention_mask": empty_masks(torch.float64)["scores"]},
        "texts": {"sequence_ids": torch.tensor([[0, 0, 1, 1], [0, 1, 1, 1]])},
    }.get(kind, {"attention_mask": torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]])})
    for options in ({}, {"output_attentions": True}, {"output_hidden_states": True}):
        calls.clear()
        model(words(2, 4), **mask, **options)
        assert len(calls) == 1
    model.train().gradient_checkpointing()
    calls.clear()
    model(words(2, 4), **mask).last_hidden_state.sum().backward()
    assert len(calls) == 1
    calls.clear()
    model(words(2, 4))
    assert len(calls) == 0


def test_a_layer_with_a_mask_of_its_own_gets_it() -> None:
    """What the first layer prepared is not taken for the mask of another."""
    model, ids = text_model(), words(2, 6)
    mask = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 0]])
    own = torch.tensor([True] * 3 + [False] * 3)
    attend = model.stack.layers[1].attention.attend
    model.stack.layers[1].attention.attend = lambda q, k, v, layout, weights: attend(
        q, k, v, layout._replace(mask=layout.mask & own), True
    )
    output = model(ids, attention_mask=mask, output_attentions=[1])
    states = model(ids, attention_mask=mask, output_hidden_states=[1]).hidden_states[0]
    expected, _ = model.stack.layers[1](states, Layout(mask=own[None, None, None]))
    assert far(output.last_hidden_state, expected) < 1e-12 and not output.attentions[0][..., 3:].any()


def packed(preset: str, padding: bool) -> tuple[Tensor, Tensor, list[tuple[int, Tensor]]]:
    """Two rows of texts, which text each token belongs to, and where each text is; texts may be interrupted by others."""
    texts = torch.tensor([[3, 3, 3, 7, 7, 7, 7, 7, 1, 1, 1, 1], [0, 0, 5, 5, 5, 0, 0, 0, 8, 8, 0, 8]])
    ids = words(2, 12)
    if padding:
        ids[0, 9:] = PADDING[preset]
    places = [(row, texts[row] == text) for row in range(2) for text in texts[row].unique()]
    return ids, texts, places


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("causal", [False, True])
def test_packed_texts_equal_the_texts_alone(preset: str, causal: bool) -> None:
    model = text_model(preset, {"stack.block.attention.causal": causal, "head": "masked-language-model"})
    ids, texts, places = packed(preset, False)
    output = model(ids, sequence_ids=texts)
    for row, here in places:
        alone = model(ids[row][here][None])
        for name, value in answers(alone).items():
            assert far(getattr(output, name)[row][here], value[0]) < 1e-12


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("options", [{}, {"output_attentions": True, "output_hidden_states": True}], ids=str)
def test_nothing_leaks_between_packed_texts(preset: str, options: dict[str, Any]) -> None:
    """Other tokens in one text change no bit of the others, forward or backward."""
    model = text_model(preset)
    ids, texts, places = packed(preset, True)
    mask = torch.ones(2, 12, dtype=torch.long)
    mask[0, 9:] = 0
    before = model(ids, sequence_ids=texts, attention_mask=mask, **options)
    for row, here in places:
        changed = ids.clone()
        changed[row, here] = torch.where(ids[row, here] == PADDING[preset], ids[row, here], (ids[row, here] - 2 + 29) % 59 + 2)
        after = model(changed, sequence_ids=texts, attention_mask=mask, **options)
        others = torch.ones(2, 12, dtype=torch.bool)
        others[row, here] = False
        assert torch.equal(after.last_hidden_state[others], before.last_hidden_state[others])
        assert not torch.equal(after.last_hidden_state[~others], before.last_hidden_state[~others])
        for a, b in zip(after.hidden_states or (), before.hidden_states or (), strict=True):
            assert torch.equal(a[others], b[others])
        for weights in after.attentions or ():
            assert not weights[row][:, here][..., ~here].any() and not weights[row][:, ~here][..., here].any()
    states: list[Tensor] = []
    model.embedding.register_forward_hook(lambda module, args, output: states.append(output[0].retain_grad() or output[0]))
    row, here = places[1]
    model(ids, sequence_ids=texts, attention_mask=mask).last_hidden_state[row, here].square().sum().backward()
    others = torch.ones(2, 12, dtype=torch.bool)
    others[row, here] = False
    assert not states[0].grad[others].any() and states[0].grad[row, here].any()


ATTENTION_POOL = {"type": "attention", "attention": {"heads": 3}, "norm": {"eps": 1e-6}, "feedforward": {"ratio": 2}}


@pytest.mark.parametrize("pool", ["mean", "max", "mean-max", ATTENTION_POOL], ids=str)
def test_packed_texts_are_never_pooled_into_one(pool: Any) -> None:
    model = text_model("bert-tiny", {"head": {"type": "sentence-embedding", "pool": pool}})
    with pytest.raises(InputError, match="sequence_ids: texts packed into a row cannot be pooled into one vector"):
        model(words(1, 4), sequence_ids=torch.tensor([[1, 1, 2, 2]]))


def test_positions_of_packed_texts_start_anew() -> None:
    texts = torch.tensor([[4, 4, 4, 2, 2, 4, 9]])
    _, layout = text_model("bert-tiny").embedding(words(1, 7), sequence_ids=texts)
    assert layout.positions.tolist() == [[0, 1, 2, 0, 1, 3, 0]]
    ids = words(1, 7)
    ids[0, 1] = ids[0, 6] = 1
    _, layout = text_model("roberta-base").embedding(ids, sequence_ids=texts)
    assert layout.positions.tolist() == [[2, 1, 3, 2, 3, 4, 1]]
    _, layout = text_model("roberta-base").embedding(ids)
    assert layout.positions.tolist() == [[2, 1, 3, 4, 5, 6, 1]]


@pytest.mark.parametrize("kind", ["true and false", "scores", "scores of heads", "one for all", "numbers"])
def test_masks_of_four_dimensions_are_theirs(kind: str) -> None:
    import transformers

    from zoo.checkpoint.save import family_for, rules

    model, ids, generator = text_model(), words(3, 8), torch.Generator().manual_seed(1)
    family, values = family_for(model.config, "transformers")
    config = transformers.BertConfig.from_dict(values)
    config._attn_implementation = "sdpa"
    theirs = transformers.BertModel(config).double().eval()
    parameters = dict(model.named_parameters())
    written = rules.write(family.table(model.config, parameters), parameters)
    theirs.load_state_dict({name.removeprefix("bert."): value for name, value in written.items()})
    allowed = (torch.rand(3, 1, 8, 8, generator=generator) > 0.4) | torch.eye(8, dtype=torch.bool)
    masks = {
        "true and false": allowed,
        "scores": torch.zeros(3, 1, 8, 8, dtype=torch.float64).masked_fill(~allowed, torch.finfo(torch.float64).min),
        "scores of heads": torch.randn(3, 3, 8, 8, generator=generator, dtype=torch.float64),
        "one for all": allowed[:1],
        "numbers": allowed,
    }
    expected = theirs(ids, attention_mask=masks[kind].expand(3, -1, -1, -1))
    output = model(ids, attention_mask=masks[kind].long() if kind == "numbers" else masks[kind])
    assert far(output.last_hidden_state, expected.last_hidden_state) < 1e-12
    assert far(output.pooler_output, expected.pooler_output) < 1e-12
    plain = model(ids).last_hidden_state
    assert far(output.last_hidden_state, plain) > 1e-3


def test_padding_gets_no_gradient_as_theirs_gets_none(tmp_path: Any) -> None:
    """Padding that nobody masks: its vector, and RoBERTa's position of it, are left alone in training."""
    import transformers

    for preset, cls in (("bert-tiny", "BertModel"), ("roberta-base", "RobertaModel"), ("distilbert-base", "DistilBertModel")):
        model, ids = text_model(preset), words(2, 9)
        ids[0, 5:] = PADDING[preset]
        theirs = getattr(transformers, cls).from_pretrained(zoo.export(model, tmp_path / preset), dtype=torch.float64).eval()
        for each in (model, theirs):
            each(ids).last_hidden_state.square().sum().backward()
        pairs = {"word_embeddings": model.embedding.table, "position_embeddings": model.embedding.position.table}
        for name, ours in pairs.items():
            assert far(ours.grad, getattr(theirs.embeddings, name).weight.grad) < 1e-12
        assert not model.embedding.table.grad[PADDING[preset]].any()


IDS = words(2, 9)
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "none": ({}, "input_ids is missing"),
    "ids too large": ({"input_ids": IDS + 59}, r"input_ids: \d+ is none of 0 to 60"),
    "negative ids": ({"input_ids": IDS - 61}, r"input_ids: -\d+ is none of 0 to 60"),
    "float ids": ({"input_ids": IDS.float()}, "input_ids: expected whole numbers of shape .* got .* of torch.float32"),
    "complex ids": ({"input_ids": IDS.to(torch.complex64)}, "input_ids: expected whole numbers"),
    "truth values": ({"input_ids": IDS > 5}, "input_ids: expected whole numbers"),
    "a list": ({"input_ids": IDS.tolist()}, "input_ids: expected a tensor, got list"),
    "one text": ({"input_ids": IDS[0]}, r"input_ids: expected whole numbers of shape \(batch, tokens\), got \(9,\)"),
    "four dimensions": ({"input_ids": IDS[None, None]}, "input_ids: expected whole numbers"),
    "no tokens": ({"input_ids": IDS[:, :0]}, r"input_ids: a text has at least one token, got shape \(2, 0\)"),
    "a long text": ({"input_ids": words(1, 41)}, "position 4. is beyond the table of 40 learned positions"),
    "short segments": ({"input_ids": IDS, "token_type_ids": Z(2, 8).long()}, r"token_type_ids: expected shape \(2, 9\)"),
    "one row of segments": ({"input_ids": IDS, "token_type_ids": Z(1, 9).long()}, "token_type_ids: expected shape"),
    "an unknown segment": ({"input_ids": IDS, "token_type_ids": Z(2, 9).long() + 2}, "token_type_ids: 2 is none of 0 to"),
    "float segments": ({"input_ids": IDS, "token_type_ids": Z(2, 9)}, "token_type_ids: expected whole numbers"),
    "short positions": ({"input_ids": IDS, "position_ids": Z(2, 8).long()}, r"position_ids: expected shape \(2, 9\)"),
    "flat positions": ({"input_ids": IDS, "position_ids": torch.arange(9)}, "position_ids: expected shape"),
    "float positions": ({"input_ids": IDS, "position_ids": Z(2, 9)}, "position_ids: expected whole numbers"),
    "listed positions": ({"input_ids": IDS, "position_ids": [0] * 9}, "position_ids: expected a tensor, got list"),
    "a position beyond": ({"input_ids": IDS, "position_ids": Z(2, 9).long() + 40}, "position 40 is beyond the table of 40"),
    "negative positions": ({"input_ids": IDS, "position_ids": Z(2, 9).long() - 1}, "position_ids: -1 is no position"),
    "short mask": ({"input_ids": IDS, "attention_mask": Z(2, 8)}, r"attention_mask: expected shape \(2, 9\)"),
    "listed mask": ({"input_ids": IDS, "attention_mask": [[1] * 9] * 2}, "attention_mask: expected a tensor .* got list"),
    "complex mask": ({"input_ids": IDS, "attention_mask": Z(2, 9) + 1j}, "attention_mask: expected .* got torch.complex64"),
    "mask of three": ({"input_ids": IDS, "attention_mask": Z(2, 9, 9)}, "attention_mask: expected shape"),
    "mask of keys": ({"input_ids": IDS, "attention_mask": Z(2, 1, 9, 8)}, "attention_mask: expected shape"),
    "mask of heads": ({"input_ids": IDS, "attention_mask": Z(2, 2, 9, 9)}, "attention_mask: for 2 heads, but there are 3"),
    "short packing": ({"input_ids": IDS, "sequence_ids": Z(2, 8).long()}, "sequence_ids: expected shape"),
    "float packing": ({"input_ids": IDS, "sequence_ids": Z(2, 9)}, "sequence_ids: expected whole numbers"),
    "scores and packing": (
        {"input_ids": IDS, "sequence_ids": Z(2, 9).long(), "attention_mask": Z(2, 1, 9, 9)}, "scores cannot be given beside",
    ),
    "images": ({"pixel_values": Z(2, 3, 8, 8)}, "pixel_values: this model cannot honour such an argument"),
    "images as ids": ({"input_ids": Z(2, 3, 8, 8)}, "input_ids: expected whole numbers"),
    "labels": ({"input_ids": IDS, "labels": IDS}, "labels: this model cannot honour such an argument"),
    "vectors": ({"inputs_embeds": Z(2, 9, 24)}, "inputs_embeds: this model cannot honour such an argument"),
    "a slip": ({"input_ids": IDS, "token_types_ids": IDS}, "did you mean 'token_type_ids'"),
}  # fmt: skip


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("name", WRONG)
def test_a_mistake_is_one_clear_line(preset: str, name: str) -> None:
    inputs, words_of_it = WRONG[name]
    with pytest.raises(InputError, match=words_of_it) as caught:
        text_model(preset)(**inputs)
    assert "\n" not in str(caught.value)


def test_positions_that_nothing_reads_are_refused() -> None:
    ids = words(2, 5)
    bare = text_model(overrides={"embedding.position": None})
    with pytest.raises(InputError, match="position_ids: the tokens of this model have no positions"):
        bare(ids, position_ids=torch.zeros_like(ids))
