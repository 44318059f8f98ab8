"""An encoder and a decoder that looks at its tokens: what both give, whose vectors tokens have, masks, caches, and errors."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from text_helpers import far, words

import zoo
from zoo.errors import ConfigError, InputError

NORM = {"type": "layer-norm", "eps": 1e-5}
ACROSS = "decoder.stack.layers.{}.cross_attention"


def side(decodes: bool, **changes: Any) -> dict[str, Any]:
    attention: dict[str, Any] = {"type": "full", "heads": 3}
    block: dict[str, Any] = {
        "order": "pre", "norm": NORM, "feedforward": {"type": "mlp", "hidden": 40},
        "attention": {**attention, "causal": decodes},
    }  # fmt: skip
    if decodes:
        block["cross_attention"] = attention
    return {
        "type": "transformer",
        "embedding": {"type": "tokens", "vocabulary": 61, "padding": 0, "position": {"type": "learned", "length": 30}},
        "stack": {"type": "uniform", "width": 24, "depth": 2, "final_norm": NORM, "block": block},
        "head": "language-model" if decodes else None,
        **changes,
    }


def fields(**changes: Any) -> dict[str, Any]:
    return {"type": "encoder-decoder", "start": 1, "encoder": side(False), "decoder": side(True), **changes}


@torch.no_grad()
def model(overrides: dict[str, Any] | None = None, **changes: Any) -> Any:
    """In float64, redrawn, in eval mode."""
    built = zoo.build(fields(**changes), overrides, dtype="float64")
    generator = torch.Generator().manual_seed(1)
    for parameter in built.parameters():
        parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.3)
    return built.eval()


READ, WRITTEN = words(3, 9), words(3, 7, seed=4)
MASK = (torch.arange(9) < torch.tensor([[9], [4], [1]])).long()
KINDS: dict[str, dict[str, Any]] = {
    "pre": {},
    "post": {f"{name}.stack.block.order": "post" for name in ("encoder", "decoder")},
    "branch": {f"{name}.stack.block.order": "branch" for name in ("encoder", "decoder")},
    "grouped": {"decoder.stack.block.cross_attention.kv_heads": 1, "decoder.stack.block.attention.kv_heads": 1},
    "qk norm": {"decoder.stack.block.cross_attention.qk_norm": NORM, "decoder.stack.block.cross_attention.output_norm": NORM},
    "layer scale": {"decoder.stack.block.layer_scale": 0.1},
    "rotary": {
        f"{name}.{field}": value
        for name in ("encoder", "decoder")
        for field, value in {"embedding.position": None, "stack.block.attention.position": "rotary"}.items()
    },
    "alibi": {"decoder.embedding.position": None, "decoder.stack.block.attention.position": "alibi"},
    "relative buckets": {
        f"{name}.{field}": value
        for name in ("encoder", "decoder")
        for field, value in {"embedding.position": None, "stack.position": {"type": "relative-bucket", "buckets": 6}}.items()
    },
    "sines": {f"{name}.embedding.position": "sinusoidal" for name in ("encoder", "decoder")},
    "local encoder": {"encoder.stack.block.attention": {"type": "local", "window": 2}},
    "narrow heads": {"decoder.stack.block.cross_attention.heads": 5, "decoder.stack.block.cross_attention.head_size": 4},
    "more layers": {"encoder.stack.depth": 1, "decoder.stack.depth": 3},
}  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_decoding_over_a_cache_equals_the_whole_forward(kind: str) -> None:
    """The encoder is read once; later calls are given nothing of it, or its outputs and its mask again."""
    ours = model(KINDS[kind])
    whole = ours(READ, attention_mask=MASK, decoder_input_ids=WRITTEN)
    encoded = ours.encoder(READ, attention_mask=MASK)
    for given in ({}, {"encoder_outputs": encoded, "attention_mask": MASK}):
        past, found = None, []
        for number, part in enumerate(WRITTEN.split([3, 1, 1, 2], 1)):
            first = {"input_ids": READ, "attention_mask": MASK} if number == 0 else given
            output = ours(**first, decoder_input_ids=part, past_key_values=past, use_cache=True)
            past = output.past_key_values
            found.append(output.logits)
            assert (output.encoder_last_hidden_state is None) is (number > 0 and not given)
        assert far(torch.cat(found, 1), whole.logits) < 1e-12
        assert len(past) == 7 and past.layers[0].across[0].shape[2] == 9


@torch.no_grad()
def test_the_decoder_is_a_transformer_that_looks_at_the_encoder() -> None:
    """The assembly adds nothing to its two sides."""
    ours = model()
    encoded = ours.encoder(READ, attention_mask=MASK)
    written = ours.decoder(WRITTEN, encoder_hidden_states=encoded.last_hidden_state, encoder_attention_mask=MASK)
    both = ours(READ, attention_mask=MASK, decoder_input_ids=WRITTEN)
    assert torch.equal(both.logits, written.logits) and torch.equal(both.last_hidden_state, written.last_hidden_state)
    assert torch.equal(both.encoder_last_hidden_state, encoded.last_hidden_state)
    for outputs in (encoded, encoded.last_hidden_state):
        again = ours(encoder_outputs=outputs, attention_mask=MASK, decoder_input_ids=WRITTEN)
        assert torch.equal(again.logits, both.logits)
        assert torch.equal(again.encoder_last_hidden_state, encoded.last_hidden_state)


@torch.no_grad()
def test_cross_attention_by_hand() -> None:
    """Queries of the written tokens, keys and values of the read ones."""
    ours = model()
    tokens = ours.encoder(READ, attention_mask=MASK).last_hidden_state
    part, seen = ours.decoder.stack.layers[0].cross_attention, {}
    handle = part.register_forward_hook(lambda module, given, out: seen.update(x=given[0], y=out[0]))
    ours(READ, attention_mask=MASK, decoder_input_ids=WRITTEN)
    handle.remove()
    query, key, value = (
        layer(x).unflatten(-1, (3, 8)).transpose(1, 2)
        for layer, x in ((part.query, seen["x"]), (part.key, tokens), (part.value, tokens))
    )
    scores = (query @ key.transpose(2, 3) / 8**0.5).masked_fill(MASK[:, None, None] == 0, -torch.inf)
    assert far(seen["y"], part.output((scores.softmax(-1) @ value).transpose(1, 2).flatten(2))) < 1e-12


@torch.no_grad()
def test_what_is_masked_changes_nothing() -> None:
    ours = model()
    other = READ.masked_fill(MASK == 0, 7)
    given = {"attention_mask": MASK, "decoder_input_ids": WRITTEN}
    assert torch.equal(ours(READ, **given).logits, ours(other, **given).logits)
    short = ours(READ[1:2, :4], decoder_input_ids=WRITTEN[1:2]).logits  # the same text without its padding
    assert far(ours(READ, **given).logits[1:2], short) < 1e-12
    real = (torch.arange(7) != 2).long().expand(3, -1)
    changed = WRITTEN.clone()
    changed[:, 2] = 5
    first, second = (ours(READ, decoder_input_ids=ids, decoder_attention_mask=real).logits for ids in (WRITTEN, changed))
    keep = [0, 1, 3, 4, 5, 6]
    assert torch.equal(first[:, keep], second[:, keep]) and not torch.equal(first[:, 2], second[:, 2])


@torch.no_grad()
def test_a_mask_of_scores_is_the_encoders_alone() -> None:
    """The decoder may then look at all of its tokens."""
    ours = model()
    scores = torch.zeros(3, 1, 9, 9, dtype=torch.float64).masked_fill(MASK[:, None, None] == 0, -torch.inf)
    encoded = ours.encoder(READ, attention_mask=MASK)
    expected = ours(encoder_outputs=encoded, decoder_input_ids=WRITTEN).logits
    assert far(ours(READ, attention_mask=scores, decoder_input_ids=WRITTEN).logits, expected) < 1e-12


@torch.no_grad()
def test_no_token_sees_those_behind_it() -> None:
    ours, changed = model(), WRITTEN.clone()
    changed[:, 4:] = 9
    first, second = (ours(READ, decoder_input_ids=ids).logits for ids in (WRITTEN, changed))
    assert torch.equal(first[:, :4], second[:, :4]) and not torch.equal(first[:, 4:], second[:, 4:])


@torch.no_grad()
@pytest.mark.parametrize("padding", [None, 3])
def test_labels_are_shifted(padding: int | None) -> None:
    ours = model(padding=padding)
    labels = torch.tensor([[7, 8, -100, -100], [5, -100, 6, 4]])
    filled = 0 if padding is None else padding
    expected = torch.tensor([[1, 7, 8, filled], [1, 5, filled, 6]])
    assert torch.equal(ours.shifted(labels), expected)
    assert torch.equal(ours(READ[:2], labels=labels).logits, ours(READ[:2], decoder_input_ids=expected).logits)
    both = ours(READ[:2], labels=labels, decoder_input_ids=WRITTEN[:2])  # what is given counts
    assert torch.equal(both.logits, ours(READ[:2], decoder_input_ids=WRITTEN[:2]).logits)


@torch.no_grad()
def test_given_positions() -> None:
    """Of either side; a text that is filled up on the left gives what it gives alone when its positions are counted."""
    ours = model()
    counted = torch.arange(9)[None], torch.arange(7)[None]
    given = ours(READ, position_ids=counted[0], decoder_input_ids=WRITTEN, decoder_position_ids=counted[1])
    assert torch.equal(given.logits, ours(READ, decoder_input_ids=WRITTEN).logits)
    moved = ours(READ, decoder_input_ids=WRITTEN, decoder_position_ids=counted[1] + 1)
    assert torch.equal(moved.encoder_last_hidden_state, given.encoder_last_hidden_state)
    assert far(moved.logits, given.logits) > 1e-3
    real = torch.arange(7) >= torch.tensor([[0], [2], [5]])
    places = (real.cumsum(1) - 1).clamp(min=0)
    padded = ours(READ, decoder_input_ids=WRITTEN, decoder_attention_mask=real, decoder_position_ids=places).logits
    for row, first in enumerate((0, 2, 5)):
        alone = ours(READ[row : row + 1], decoder_input_ids=WRITTEN[row : row + 1, first:]).logits
        assert far(padded[row : row + 1, first:], alone) < 1e-12


def test_padding_of_labels_is_the_start_where_there_is_none() -> None:
    ours = model({"decoder.embedding.padding": None})
    assert ours.shifted(torch.tensor([[-100, 5]])).tolist() == [[1, 1]]


@torch.no_grad()
def test_what_is_read_is_written_again() -> None:
    ours = model(decoder_input="shifted")
    assert torch.equal(ours(READ).logits, ours(READ, decoder_input_ids=ours.shifted(READ)).logits)


def test_shared_vectors() -> None:
    """One table for both sides and the scores, or one for each."""
    shared, apart = model(share_embeddings=True), model()
    assert shared.decoder.embedding.table is None
    assert apart.num_parameters() - shared.num_parameters() == 61 * 24
    shared(READ, decoder_input_ids=WRITTEN).logits.sum().backward()
    gradient = shared.encoder.embedding.table.grad
    assert gradient.abs().sum(1).gt(0).sum() == 61  # by the scores all of them
    own = apart.state_dict()
    table = shared.encoder.embedding.table.detach()
    tables = {f"{name}.embedding.table": table for name in ("encoder", "decoder")}
    apart.load_state_dict({name: tables.get(name, shared.state_dict().get(name)) for name in own})
    with torch.no_grad():
        first, second = (each(READ, decoder_input_ids=WRITTEN).logits for each in (shared, apart))
    assert torch.equal(first, second)
    with pytest.raises(InputError, match="vectors of another embedding, which are missing; call the whole model"):
        shared.decoder(WRITTEN, encoder_hidden_states=torch.zeros(3, 9, 24, dtype=torch.float64))


def test_untied_scores_beside_shared_vectors() -> None:
    ours = model({"decoder.head.tied": False}, share_embeddings=True)
    ours(READ, decoder_input_ids=WRITTEN).logits.sum().backward()
    assert ours.decoder.head.weight.shape == (61, 24)
    unused = sorted(set(range(61)) - set(READ.flatten().tolist()) - set(WRITTEN.flatten().tolist()))
    assert unused and not ours.encoder.embedding.table.grad[unused].any()


@torch.no_grad()
def test_separate_vocabularies(tmp_path: Path) -> None:
    ours = model({"encoder.embedding.vocabulary": 100})
    ids = torch.full((3, 5), 99)
    assert ours(ids, decoder_input_ids=WRITTEN).logits.shape == (3, 7, 61)
    with pytest.raises(InputError, match="input_ids: 99 is none of 0 to 60"):
        ours(ids, decoder_input_ids=ids)
    for name in ("share_embeddings", "decoder_input"):
        value: Any = True if name == "share_embeddings" else "shifted"
        with pytest.raises(ConfigError, match=f"{name}: the encoder reads other tokens than the decoder"):
            zoo.get_config(ours.config, {name: value})


IMAGES = {
    "vit": zoo.get_config("vit-tiny", {
        "embedding.image_size": 32, "stack.depth": 1, "stack.width": 24, "stack.block.attention.heads": 3, "head": None,
    }),
    "swin": zoo.get_config("swin-tiny", {
        "embedding.image_size": 32, "stack.width": 12, "stack.stages": [{"depth": 1, "heads": 3}, {"depth": 1, "heads": 3}],
        "head": None,
    }),
}  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize("kind", IMAGES)
def test_images_are_read_and_texts_are_written(tmp_path: Path, kind: str) -> None:
    ours = model(encoder=IMAGES[kind].model_dump())
    pixels = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    output = ours(pixels, decoder_input_ids=WRITTEN, output_attentions=[-1] if kind == "vit" else False, use_cache=True)
    tokens = 5 if kind == "vit" else 16
    assert output.logits.shape == (3, 7, 61) and output.encoder_last_hidden_state.shape == (3, tokens, 24)
    assert torch.equal(
        ours(pixel_values=pixels, labels=WRITTEN).logits, ours(pixels, decoder_input_ids=ours.shifted(WRITTEN)).logits
    )
    again = ours(decoder_input_ids=WRITTEN[:, :1], past_key_values=output.past_key_values).logits
    longer = ours(pixels, decoder_input_ids=torch.cat([WRITTEN, WRITTEN[:, :1]], 1)).logits
    assert far(again, longer[:, -1:]) < 1e-12
    with pytest.raises(InputError, match="pixel_values is missing: this model reads it, or encoder_outputs"):
        ours(decoder_input_ids=WRITTEN)
    opened = zoo.load(zoo.save(ours, tmp_path / "saved"))
    assert opened.config == ours.config and torch.equal(opened(pixels, decoder_input_ids=WRITTEN).logits, output.logits)


def test_gradient_checkpointing_gives_the_same_gradients() -> None:
    for kind in ("pre", "relative buckets"):
        ours = model(KINDS[kind], share_embeddings=True).train()
        found = []
        for enable in (False, True):
            ours.gradient_checkpointing(enable)
            ours.zero_grad()
            ours(READ, attention_mask=MASK, labels=WRITTEN).logits.square().sum().backward()
            found.append([parameter.grad.clone() for parameter in ours.parameters()])
        assert all(far(*pair) < 1e-12 for pair in zip(*found)) and any(gradient.any() for gradient in found[0])
        with pytest.raises(InputError, match="use_cache: gradient checkpointing computes blocks twice"):
            ours(READ, decoder_input_ids=WRITTEN, use_cache=True)


def test_gradients_reach_every_parameter() -> None:
    """By what the decoder looks at, also over a cache."""
    ours = model()
    first = ours(READ, decoder_input_ids=WRITTEN[:, :3], use_cache=True)
    second = ours(decoder_input_ids=WRITTEN[:, 3:], past_key_values=first.past_key_values)
    torch.cat([first.logits, second.logits], 1).square().sum().backward()
    found = [parameter.grad.clone() for parameter in ours.parameters()]
    assert all(gradient is not None for gradient in found)
    ours.zero_grad()
    ours(READ, decoder_input_ids=WRITTEN).logits.square().sum().backward()
    assert all(far(*pair) < 1e-10 for pair in zip(found, (parameter.grad for parameter in ours.parameters())))


@torch.no_grad()
def test_hidden_states_and_attention_weights() -> None:
    ours = model({"encoder.stack.depth": 3})
    given: dict[str, Any] = {"attention_mask": MASK, "decoder_input_ids": WRITTEN}
    output = ours(READ, **given, output_hidden_states=True, output_attentions=True)
    assert [each.shape for each in output.encoder_hidden_states] == [(3, 9, 24)] * 4
    assert [each.shape for each in output.decoder_hidden_states] == [(3, 7, 24)] * 3
    assert [each.shape for each in output.encoder_attentions] == [(3, 3, 9, 9)] * 3
    assert [each.shape for each in output.decoder_attentions] == [(3, 3, 7, 7)] * 2
    assert [each.shape for each in output.cross_attentions] == [(3, 3, 7, 9)] * 2
    for weights in output.cross_attentions:
        assert far(weights.sum(-1), torch.ones(3, 3, 7)) < 1e-12 and not weights[1, ..., 4:].any()
    assert far(ours.decoder.stack.final_norm(output.decoder_hidden_states[-1]), output.last_hidden_state) < 1e-12
    assert torch.equal(ours(READ, **given).logits, output.logits)
    last = ours(READ, **given, output_attentions=[-1])
    assert len(last.cross_attentions) == len(last.encoder_attentions) == 1 and last.decoder_hidden_states is None
    assert torch.equal(last.cross_attentions[0], output.cross_attentions[-1])
    encoded = ours.encoder(READ, attention_mask=MASK, output_hidden_states=True)
    again = ours(encoder_outputs=encoded, **given)
    assert len(again.encoder_hidden_states) == 4 and again.encoder_attentions is None


@torch.no_grad()
def test_scores_of_some_tokens_alone() -> None:
    ours = model()
    whole = ours(READ, decoder_input_ids=WRITTEN).logits
    assert far(ours(READ, decoder_input_ids=WRITTEN, logits_to_keep=2).logits, whole[:, -2:]) < 1e-12
    mask = WRITTEN % 2 == 0
    assert far(ours(READ, decoder_input_ids=WRITTEN, score_mask=mask).logits, whole[mask]) < 1e-12


@torch.no_grad()
@pytest.mark.parametrize("kind", ["pre", "grouped", "relative buckets"])
def test_beams_share_what_they_look_at(kind: str) -> None:
    """Rows of one text stay neighbours, so that its keys and values are kept once; other rows take theirs along."""
    ours = model(KINDS[kind])
    whole = ours(READ, attention_mask=MASK, decoder_input_ids=WRITTEN).logits
    cache = ours(READ, attention_mask=MASK, decoder_input_ids=WRITTEN[:, :4], use_cache=True).past_key_values
    steps: list[tuple[list[int], int, int]] = [  # rows that go on, how many share one, how many are kept
        ([0, 0, 1, 1, 2, 2], 2, 3),
        ([1, 0, 2, 2, 5, 4], 2, 3),
        ([2, 3, 4, 5], 2, 2),
        ([3, 0, 1], 1, 3),
        ([2, 0], 1, 2),
    ]
    rows = torch.arange(3)
    for chosen, several, kept in steps:
        cache.choose(torch.tensor(chosen))
        rows = rows[chosen]
        assert cache.several == several and all(layer.across[0].shape[0] == kept for layer in cache.layers)
        for weights in (False, True):
            trial = copy.deepcopy(cache)
            output = ours(decoder_input_ids=WRITTEN[rows, 4:6], past_key_values=trial, output_attentions=weights)
            assert far(output.logits, whole[rows, 4:6]) < 1e-12
            given = ours(decoder_input_ids=WRITTEN[rows, 4:6], past_key_values=copy.deepcopy(cache), attention_mask=MASK[rows])
            assert torch.equal(given.logits, output.logits) or weights


@torch.no_grad()
def test_a_cache_goes_back() -> None:
    ours = model()
    whole = ours(READ, decoder_input_ids=WRITTEN).logits
    cache = ours(READ, decoder_input_ids=WRITTEN, use_cache=True).past_key_values
    cache.crop(3)
    assert far(ours(decoder_input_ids=WRITTEN[:, 3:], past_key_values=cache).logits, whole[:, 3:]) < 1e-12
    assert cache.memory >= 2 * 2 * 3 * 9 * 24 * 8


GIVEN: dict[str, Any] = {"input_ids": READ, "decoder_input_ids": WRITTEN}
TOKENS = torch.zeros(3, 9, 24, dtype=torch.float64)
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"input_ids": READ}, "decoder_input_ids is missing: give what the decoder has written so far, or labels; or use generate"),
    ({"decoder_input_ids": WRITTEN}, "input_ids is missing: this model reads it, or encoder_outputs"),
    ({**GIVEN, "encoder_outputs": TOKENS}, "encoder_outputs: given beside input_ids, which it was made of"),
    ({"encoder_outputs": 3, "decoder_input_ids": WRITTEN}, r"encoder_outputs: expected what model\.encoder"),
    ({"encoder_outputs": TOKENS[:2], "decoder_input_ids": WRITTEN}, r"encoder_hidden_states: expected shape \(3, tokens, 24\)"),
    ({"encoder_outputs": TOKENS[..., :5], "decoder_input_ids": WRITTEN}, r"encoder_hidden_states: expected shape"),
    ({"encoder_outputs": TOKENS[0], "decoder_input_ids": WRITTEN}, "encoder_hidden_states: expected vectors of shape"),
    ({**GIVEN, "attention_mask": MASK[:, :5]}, r"attention_mask: expected shape \(3, 9\)"),
    ({"encoder_outputs": TOKENS, "decoder_input_ids": WRITTEN, "attention_mask": MASK[:, :5]},
     r"encoder_attention_mask: expected shape \(3, 9\), got \(3, 5\)"),
    ({**GIVEN, "attention_mask": "all"}, "attention_mask: expected a tensor"),
    ({**GIVEN, "decoder_attention_mask": MASK}, r"attention_mask: expected shape \(3, 7\)"),
    ({**GIVEN, "decoder_input_ids": WRITTEN.double()}, "input_ids: expected whole numbers"),
    ({**GIVEN, "decoder_input_ids": WRITTEN + 60}, "input_ids: .* is none of 0 to 60"),
    ({"input_ids": READ, "labels": WRITTEN.double()}, "labels: expected whole numbers of shape"),
    ({"input_ids": READ, "labels": [1, 2]}, "labels: expected whole numbers of shape"),
    ({**GIVEN, "past_key_values": 3}, "past_key_values: expected what an earlier call gave"),
    ({**GIVEN, "encoder_input_ids": READ}, "encoder_input_ids: this model cannot honour such an argument"),
    ({**GIVEN, "decoder_token_type_ids": WRITTEN}, "token_type_ids: .* none of 0 to 0"),
    ({**GIVEN, "global_attention_mask": MASK}, "global_attention_mask"),
    ({**GIVEN, "output_attentions": [5]}, "output_attentions: 5 is none of 0 to 1"),
    ({**GIVEN, "logits_to_keep": -1}, "logits_to_keep: expected 0 or more, got -1"),
]  # fmt: skip


@pytest.mark.parametrize(("given", "message"), WRONG)
def test_wrong_inputs_are_refused_in_a_line(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        model()(**given)
    assert "\n" not in str(error.value)


@torch.no_grad()
def test_a_cache_of_other_texts_is_refused() -> None:
    ours = model()
    cache = ours(READ, decoder_input_ids=WRITTEN, use_cache=True).past_key_values
    with pytest.raises(InputError, match="past_key_values: of 3 texts, but these are 2"):
        ours(decoder_input_ids=WRITTEN[:2], past_key_values=cache)
    with pytest.raises(InputError, match="encoder_hidden_states: of 4 tokens, but the past_key_values are of 9"):
        ours(READ[:, :4], decoder_input_ids=WRITTEN, past_key_values=cache)
    with pytest.raises(InputError, match="encoder_attention_mask: expected shape"):
        ours(decoder_input_ids=WRITTEN, past_key_values=cache, attention_mask=MASK[:, :4])


def test_a_transformer_alone_looks_at_nothing_else() -> None:
    with pytest.raises(InputError, match="encoder_hidden_states: no block of this model attends to another sequence"):
        model().encoder(READ, encoder_hidden_states=TOKENS)


MISFITS: list[tuple[dict[str, Any], str]] = [
    ({"encoder.head": "pooler"}, "encoder.head: an encoder has none, and this is 'pooler'"),
    ({"decoder.stack.block.cross_attention": None}, "decoder.stack.block.cross_attention: missing"),
    ({"decoder.stack.block.attention.causal": False}, "decoder.stack.block.attention.causal: .* use true"),
    ({"decoder.stack.block.cross_attention.causal": True}, "decoder.stack.block.cross_attention.causal: .* use false"),
    ({"decoder.stack.block.cross_attention.position": "rotary"}, "cross_attention.position: .* use none"),
    (
        {"decoder.stack.block.cross_attention": {"type": "local", "window": 2}},
        "'local' attends to its own tokens only; use 'full'",
    ),
    ({"decoder.stack.block.cross_attention.heads": 5}, "cross_attention.heads: width 24 is not divisible by 5 heads"),
    ({"decoder.stack.block.order": "parallel"}, "decoder.stack.block.cross_attention: in parallel order there is no place"),
    ({"decoder.stack.width": 48}, "decoder.stack.width: 48 is not the encoder's width 24"),
    ({"decoder.stack.padding": "skip"}, "decoder.stack.padding: .* use padding: compute"),
    ({"start": 61}, "start: 61 is none of the decoder's tokens, 0 to 60"),
    ({"padding": 99}, "padding: 99 is none of the decoder's tokens, 0 to 60"),
    ({"start": -1}, "start"),
    ({"decoder": zoo.get_config("vit-tiny").model_dump()}, "decoder.embedding: a decoder reads tokens"),
    (
        {"encoder": zoo.get_config("clip-vit-b32").model_dump()},
        "encoder.type: it is a 'transformer', and this is 'dual-encoder'",
    ),
]


@pytest.mark.parametrize(("overrides", "message"), MISFITS)
def test_sides_that_do_not_fit_are_refused(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        whole = {name: value for name, value in overrides.items() if name in ("encoder", "decoder")}
        zoo.get_config({**fields(), **whole}, {name: value for name, value in overrides.items() if name not in whole})


def test_a_model_without_a_start_is_refused() -> None:
    lacking = {name: value for name, value in fields().items() if name != "start"}
    with pytest.raises(ConfigError, match="start"):
        zoo.get_config(lacking)


@torch.no_grad()
def test_cross_attention_is_watched_and_replaced() -> None:
    ours, name = model(), f"{ACROSS.format(0)}.pattern"
    whole = ours(READ, decoder_input_ids=WRITTEN, output_attentions=True)
    assert name in zoo.hook_points(ours, "**.pattern")
    with zoo.capture(ours, name) as seen:
        output = ours(READ, decoder_input_ids=WRITTEN)
    assert far(output.logits, whole.logits) < 1e-12
    (pattern,) = [seen[key] for key in seen]
    assert far(pattern, whole.cross_attentions[0]) < 1e-12
    uniform = lambda weights: torch.full_like(weights, 1 / weights.shape[-1])  # noqa: E731
    with zoo.intervene(ours, {name: uniform}):
        changed = ours(READ, decoder_input_ids=WRITTEN, output_attentions=True)
    assert far(changed.cross_attentions[0], torch.full((3, 3, 7, 9), 1 / 9, dtype=torch.float64)) < 1e-12
    assert far(changed.logits, whole.logits) > 1e-3
    assert far(ours(READ, decoder_input_ids=WRITTEN).logits, whole.logits) < 1e-12


def test_what_it_costs() -> None:
    ours = model(share_embeddings=True).float()
    cost = zoo.cost(ours, tokens=16)
    parts = {part.name: part for part in cost.walk()}
    assert cost.parameters == ours.num_parameters() and parts["decoder.embedding"].parameters == 30 * 24
    across = parts[ACROSS.format(0)]
    assert across.parameters == 4 * (24 * 24 + 24)
    assert across.flops == 2 * (4 * 16 * 24 * 24 + 2 * 16 * 16 * 24)
    assert zoo.cost(ours, inputs={"input_ids": READ, "decoder_input_ids": WRITTEN}).flops > 0


def test_it_is_shown(run: Any) -> None:
    shown = run("-m", "zoo", "show", "bart-base")
    assert shown.returncode == 0 and "139,420,416" in shown.stdout and "encoder-decoder" in shown.stdout


@torch.no_grad()
def test_saved_and_loaded(tmp_path: Path) -> None:
    ours = model(share_embeddings=True, padding=3)
    folder = zoo.save(ours, tmp_path / "saved")
    again = zoo.load(folder)
    assert again.config == ours.config and not again.training
    assert torch.equal(again(**GIVEN).logits, ours(**GIVEN).logits)
    longer = zoo.load(folder, {"decoder.embedding.position.length": 40})
    assert longer(READ, decoder_input_ids=words(3, 40)).logits.shape == (3, 40, 61)
    assert torch.equal(longer(**GIVEN).logits, ours(**GIVEN).logits)
    bare = zoo.load(folder, {"decoder.head": None})
    assert bare(**GIVEN).logits is None
    assert torch.equal(bare(**GIVEN).last_hidden_state, ours(**GIVEN).last_hidden_state)


def test_fresh_weights_follow_the_recipe_of_each_side() -> None:
    ours = zoo.build(
        fields(), {"encoder.init": {"type": "normal", "std": 0.5}, "decoder.init": {"type": "normal", "std": 0.01}}
    )
    assert ours.encoder.embedding.table.std() > 0.4 and ours.decoder.embedding.table.std() < 0.02
    assert not ours.encoder.embedding.table[0].any()
    assert ours.decoder.stack.layers[0].cross_attention.query.weight.std() < 0.02
    assert torch.equal(ours.decoder.stack.layers[1].cross_attention_norm.weight, torch.ones(24))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_other_types_are_near(dtype: str) -> None:
    ours = model()
    with torch.no_grad():
        expected = ours(**GIVEN, attention_mask=MASK).logits
        found = ours.to(getattr(torch, dtype))(**GIVEN, attention_mask=MASK).logits
    assert far(found.double(), expected) < (1e-5 if dtype == "float32" else 0.1)


def test_sources_of_padding_alone_give_finite_values_and_gradients() -> None:
    ours = model().train()
    nothing = MASK.clone()
    nothing[0] = 0
    output = ours(READ, attention_mask=nothing, decoder_input_ids=WRITTEN)
    output.logits.square().sum().backward()
    assert output.logits.isfinite().all() and all(each.grad.isfinite().all() for each in ours.parameters())
