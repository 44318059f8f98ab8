"""Hugging Face's Falcon: both architectures, rotary or alibi; loading, exporting, every field honoured or refused."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from bert_helpers import edit, given_and_given_back, rewrite
from parallel_helpers import WITHOUT_INFLUENCE, agree, check_absent, check_broken, check_field, opened, save
from safetensors.torch import load_file, save_file

import zoo
from zoo.checkpoint.huggingface_falcon import ALIBI, HuggingFaceFalcon
from zoo.errors import ConfigError, ZooError
from zoo.layout import Layout
from zoo.registry import make

Make = Callable[..., Any]
ENDS = ("Model", "ForCausalLM", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering")
NEW = {"new_decoder_architecture": True, "num_kv_heads": 2}
POSITION = "stack.block.attention.position"
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "7b": {},
    "40b": NEW,
    "40b, one norm": {**NEW, "num_ln_in_parallel_attn": 1},
    "40b, one head of keys": {**NEW, "num_kv_heads": 1},
    "40b, as many": {**NEW, "num_kv_heads": None},
    "heads of keys": {"multi_query": False},
    "sequential": {"parallel_attn": False},
    "rw": {"parallel_attn": False, "multi_query": False, "bias": True, "alibi": True},
    "7b, alibi and biases": {"alibi": True, "bias": True},
    "40b, alibi": {**NEW, "alibi": True},
}


@pytest.fixture
def saved(redraw: Make, tmp_path: Path) -> Make:
    """A function that makes a model of transformers, in float64, and the folder that it saved itself into."""

    def make(end: str = "ForCausalLM", **fields: Any) -> tuple[Any, Path]:
        folder = tmp_path / f"hf-{len(list(tmp_path.iterdir()))}"
        return save(f"Falcon{end}", folder, redraw, **fields), folder

    return make


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_gives_their_outputs_and_is_given_back(saved: Make, tmp_path: Path, architecture: str) -> None:
    theirs, folder = saved(**ARCHITECTURES[architecture])
    given_and_given_back(theirs, folder, tmp_path / "out", agree)


@pytest.mark.parametrize("alibi", [False, True])
@pytest.mark.parametrize("end", ENDS)
def test_every_head(saved: Make, tmp_path: Path, end: str, alibi: bool) -> None:
    theirs, folder = saved(end, alibi=alibi)
    given_and_given_back(theirs, folder, tmp_path / "out", agree)


def test_each_architecture_has_the_parts_that_its_fields_say(saved: Make) -> None:
    found = {name: zoo.load(saved("Model", **fields)[1]).config.stack.block for name, fields in ARCHITECTURES.items()}
    assert {name for name, block in found.items() if block.order == "pre"} == {"sequential", "rw"}
    assert {name for name, block in found.items() if not block.shared_norm} == {
        "40b", "40b, one head of keys", "40b, as many", "40b, alibi", "sequential", "rw",
    }  # fmt: skip
    assert {name: block.attention.kv_heads for name, block in found.items()} == {
        **dict.fromkeys(ARCHITECTURES, 1), **dict.fromkeys(("40b", "40b, one norm", "40b, alibi"), 2),
        **dict.fromkeys(("heads of keys", "rw", "40b, as many"), None),
    }  # fmt: skip


HONOURED: dict[str, list[Any]] = {
    "vocab_size": [37, 6],
    "hidden_size": [36],
    "num_hidden_layers": [1, 3],
    "num_attention_heads": [3, 1, 12],
    "num_ln_in_parallel_attn": [1],
    "layer_norm_epsilon": [1e-3, 0.5],
    "initializer_range": [0.5],
    "hidden_dropout": [0.3],
    "attention_dropout": [0.3],
    "num_kv_heads": [2],
    "alibi": [True, None],
    "new_decoder_architecture": [True],
    "multi_query": [False],
    "parallel_attn": [False],
    "bias": [True],
    "max_position_embeddings": [7, 64],
    "pad_token_id": [0, 30],
    "ffn_hidden_size": [None, 1],
    "activation": ["relu", "gelu_pytorch_tanh"],
    "tie_word_embeddings": [False],
    "classifier_dropout": [0.3],
    "rope_parameters": [
        {"rope_type": "default", "rope_theta": 100.0}, {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.5},
        {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 8},
    ],
    "id2label": [{0: "a", 1: "b", 2: "c"}, {0: "only"}],
}  # fmt: skip


@pytest.mark.parametrize(("field", "value"), [(field, value) for field, values in HONOURED.items() for value in values])
def test_every_field_is_honoured_both_ways(saved: Make, tmp_path: Path, field: str, value: Any) -> None:
    end = "ForSequenceClassification" if field in ("id2label", "pad_token_id", "alibi") else "ForCausalLM"
    end = "ForTokenClassification" if "dropout" in field else end
    theirs, folder = saved(end, **{field: value})
    ours = check_field(theirs, folder, tmp_path / "out")
    if end == "ForTokenClassification":
        assert ours.config.head.dropout == (0.0 if field == "attention_dropout" else value)


@pytest.mark.parametrize(("fields", "expected"), [
    ({}, (0.2, None, 0.0)),  # where nothing drops them
    ({"alibi": True}, (0.2, None, 0.3)),
    ({"parallel_attn": False}, (0.2, 0.3, 0.0)),
    ({"parallel_attn": False, "alibi": True}, (0.2, 0.3, 0.3)),
])  # fmt: skip
def test_dropouts_stand_where_theirs_act(saved: Make, tmp_path: Path, fields: dict[str, Any], expected: Any) -> None:
    _, folder = saved(hidden_dropout=0.2, attention_dropout=0.3, **fields)
    for place in (folder, tmp_path / "out"):
        block = zoo.load(place).config.stack.block
        assert (block.dropout, block.attention_output_dropout, block.attention.dropout) == expected
        zoo.export(zoo.load(place), tmp_path / "out")


def test_no_field_of_theirs_is_untested() -> None:
    from transformers import FalconConfig

    assert set(FalconConfig().to_dict()) <= {*HONOURED, *WITHOUT_INFLUENCE}, "transformers has a new field"


@pytest.mark.parametrize("fields", [{}, {"alibi": True}])
@pytest.mark.parametrize("end", ["ForCausalLM", "ForTokenClassification"])
def test_what_an_absent_field_means(end: str, fields: dict[str, Any]) -> None:
    from transformers import FalconConfig

    if fields:
        whole = json.loads(FalconConfig(**fields).to_json_string(use_diff=False)) | {"architectures": [f"Falcon{end}"]}
        bare = {name: whole[name] for name in ("alibi", "architectures", "model_type")}
        assert HuggingFaceFalcon().read_config(bare, ()) == HuggingFaceFalcon().read_config(whole, ())
        return
    check_absent(HuggingFaceFalcon(), FalconConfig(), f"Falcon{end}")


def test_what_was_published_loads(saved: Make) -> None:
    """The 7B model's own config has these fields, and its file a copy of the embedding."""
    theirs, folder = saved()
    edit(
        folder, apply_residual_connection_post_layernorm=False, auto_map={"AutoConfig": "configuration_falcon.FalconConfig"},
        rope_parameters=..., rope_theta=10000.0, rope_scaling=None, torch_dtype="float64", dtype=..., ffn_hidden_size=40,
    )  # fmt: skip
    rewrite(folder, lambda t: {**t, "lm_head.weight": t["transformer.word_embeddings.weight"].clone()})
    ours = zoo.load(folder)
    assert ours.config.head.tied and len(ours.load_report.of("ignored")) == 1
    agree(ours, theirs)
    edit(folder, n_embed=24, hidden_size=5)
    agree(zoo.load(folder), theirs)


@pytest.mark.parametrize("alone", [True, False])
def test_alibi_counts_real_tokens_and_rounds_as_theirs(saved: Make, alone: bool) -> None:
    """Places from 256 on share what they are rounded to; with padding, slots and places differ."""
    theirs, folder = saved(alibi=True, multi_query=alone, num_attention_heads=12 if alone else 6)
    ours = zoo.load(folder)
    agree(ours, theirs, tokens=300)
    other = zoo.load(folder, {f"{POSITION}.rounding": "float32"})
    with pytest.raises(AssertionError):
        agree(other, theirs, tokens=300)
    if not alone:
        agree(other, theirs, tokens=40)  # where slopes of this many heads, and places, are whole in bfloat16


def test_alibi_over_a_cache_with_padding(saved: Make) -> None:
    theirs, folder = saved(alibi=True)
    ours = zoo.load(folder)
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 31, (3, 14), generator=generator)
    mask = torch.ones(3, 14, dtype=torch.long)
    mask[1, :4], mask[2, 3:6] = 0, 0
    with torch.no_grad():
        expected, past = theirs(ids, attention_mask=mask).logits, None
        for start, end in ((0, 9), (9, 12), (12, 13), (13, 14)):
            answer = ours(ids[:, start:end], attention_mask=mask[:, :end], past_key_values=past, use_cache=True)
            past, real = answer.past_key_values, mask[:, :end].cumsum(1)[:, start:] > 0
            assert (answer.logits - expected[:, start:end])[real].abs().max() < 1e-12


@pytest.mark.parametrize("heads", [1, 2, 3, 6, 8, 12, 16, 20, 71, 128])
def test_alibi_is_theirs_bit_for_bit(heads: int) -> None:
    """Slopes, places and products, in bfloat16, of 3,000 places and of padding."""
    from transformers.models.falcon.modeling_falcon import build_alibi_tensor

    mask = (torch.rand(2, 3000, generator=torch.Generator().manual_seed(0)) > 0.1).long()
    theirs = build_alibi_tensor(mask, heads, torch.float64).reshape(2, heads, 1, 3000) / 8**0.5
    kind = zoo.get_config("falcon-7b", {POSITION: ALIBI}).stack.block.attention.position
    position = make(kind, head_size=8, heads=heads)
    places = position.key_places(Layout(mask=mask[:, None, None].bool()), 3000, mask.device)
    ours = position.bias(places[:, -1:], places)
    assert torch.equal(ours, theirs)


def test_of_eager_and_sdpa_the_one_that_adds_alibi_once_is_right(saved: Make) -> None:
    theirs, folder = saved(alibi=True)
    kind = type(theirs)
    eager = kind.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager").eval()
    ids = torch.arange(12)[None]
    with torch.no_grad():
        found = [(model(ids).logits - zoo.load(folder)(ids).logits).abs().max() for model in (theirs, eager)]
    assert found[0] < 1e-12 and found[1] > 1e-3


@pytest.mark.parametrize(("fields", "words"), [
    ({"hidden_size": 25}, "hidden_size: 25 is no multiple of the 6 heads"),
    ({**NEW, "parallel_attn": False}, "parallel_attn: False is not supported where new_decoder_architecture"),
    ({**NEW, "num_ln_in_parallel_attn": 3}, "num_ln_in_parallel_attn: 3 is not supported"),
    ({"num_ln_in_parallel_attn": 2}, "2 norms need new_decoder_architecture"),
    ({"multi_query": False, "num_kv_heads": 2}, "num_kv_heads: expected 6, as many as heads"),
    ({**NEW, "num_kv_heads": 4}, "6 heads cannot share 4"),
    ({"apply_residual_connection_post_layernorm": True}, "apply_residual_connection_post_layernorm: True is not supported"),
    ({"bias": "x"}, "bias: 'x' is not supported; expected"),
    ({"activation": "xielu"}, "activation: 'xielu' is not supported"),
    ({"rope_parameters": {"rope_type": "longrope"}}, "rope_type: 'longrope' is not supported"),
    ({"layer_norm_epsilon": None}, "layer_norm_epsilon: expected a number"),
    ({"vocab_size": 30}, "word_embeddings"),
    ({"bias": True}, "missing"),
    ({"quantization_config": {}}, "quantization_config"),
])  # fmt: skip
def test_a_broken_or_unknown_field_is_refused_by_name(saved: Make, fields: dict[str, Any], words: str) -> None:
    check_broken(saved()[1], fields, words)


SMALL = {
    "embedding.vocabulary": 31, "stack.width": 24, "stack.depth": 2, "stack.block.attention.heads": 6,
    "stack.block.feedforward.hidden": 40,
}  # fmt: skip


@pytest.mark.parametrize(("overrides", "place"), [
    ({"stack.block.attention.kv_heads": 2, "stack.block.order": "pre", "stack.block.shared_norm": False}, "kv_heads"),
    ({"stack.block.attention.bias": True}, "output_bias"),
    ({"stack.block.feedforward.bias": True}, "feedforward.bias"),
    ({"stack.block.feedforward": "gated"}, "stack.block.feedforward"),
    ({"stack.block.norm.bias": False, "stack.final_norm.bias": False}, "norm.bias"),
    ({"stack.block.order": "branch", "stack.block.shared_norm": False}, "stack.block.order"),
    ({f"{POSITION}.fraction": 0.5}, "position.fraction"),
    ({POSITION: {"type": "alibi", "length": 9}}, "position.form"),
    ({POSITION: {**ALIBI, "rounding": "float32", "length": 9}}, "position.rounding"),
    ({POSITION: {**ALIBI, "scaled": False, "length": 9}}, "position.scaled"),
    ({POSITION: {**ALIBI, "count": "all", "length": 9}}, "position.count"),
    ({POSITION: ALIBI}, "position.length"),
    ({POSITION: None}, "attention.position"),
    ({"head.bias": True}, "head.bias"),
    ({"embedding.norm": "layer-norm"}, "embedding.norm"),
])  # fmt: skip
def test_what_transformers_cannot_say_is_refused_with_our_field(overrides: dict[str, Any], place: str) -> None:
    with pytest.raises(ConfigError, match=place):
        HuggingFaceFalcon().write_config(zoo.get_config("falcon-7b", {**SMALL, **overrides}))


def test_what_alibi_cannot_do_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"position\.count: local attention numbers all tokens"):
        zoo.get_config("falcon-7b", {**SMALL, "stack.block.attention": {"type": "local", "window": 3, "position": ALIBI}})
    with pytest.raises(ConfigError, match=r"position\.form: a key's own place says nothing"):
        zoo.get_config("falcon-7b", {**SMALL, "stack.block.attention": {"causal": False, "position": ALIBI}})


def test_a_folder_in_bfloat16(saved: Make) -> None:
    """Opened by transformers and by ours from the same bytes."""
    _, folder = saved(alibi=True, new_decoder_architecture=True, num_kv_heads=3)
    rewrite(folder, lambda t: {name: value.bfloat16() for name, value in t.items()})
    edit(folder, dtype="bfloat16")
    assert zoo.load(folder).dtype == torch.bfloat16
    agree(zoo.load(folder, dtype="float64"), opened(folder, "FalconForCausalLM"))


@pytest.mark.parametrize("seed", range(2))
def test_mutated_folders(saved: Make, redraw: Make, tmp_path: Path, seed: int) -> None:
    """Of all parallel families: every one loads to the right shapes or is one of zoo's errors."""
    draw, contents = random.Random(seed), []
    for number, cls in enumerate(("FalconForCausalLM", "GPTJForCausalLM", "GPTNeoXForQuestionAnswering", "CohereModel")):
        folder = tmp_path / f"whole-{number}"
        save(cls, folder, redraw)
        contents.append((json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")))
    strange = (None, 0, -1, 1, 3, 2.5, "x", "silu", True, [], [1], {}, {"0": "a"}, 10**12, 10**30, -0.5)
    for number in range(60):
        values, tensors = (dict(each) for each in draw.choice(contents))
        place = tmp_path / f"broken-{number}"
        place.mkdir()
        if number % 2 == 0:
            values[draw.choice(sorted({*values, "rope_scaling", "rotary_pct", "n_inner", "n_embed"}))] = draw.choice(strange)
        else:
            name = draw.choice(sorted(tensors))
            value = tensors.pop(name)
            others = (None, value[None], value.flatten()[1:], value.int(), value.reshape(-1), value.half())
            other = draw.choice(others)
            tensors |= {} if other is None else {draw.choice((name, name + "x", name[1:], "lm_head.weight")): other}
        (place / "config.json").write_text(json.dumps(values))
        save_file({name: value.contiguous() for name, value in tensors.items()}, place / "model.safetensors")
        try:
            model = zoo.load(place)
        except ZooError as error:
            assert len(str(error)) > 10
            continue
        finally:
            shutil.rmtree(place, ignore_errors=True)
        shapes = {name: parameter.shape for name, parameter in zoo.build(model.config, device="meta").named_parameters()}
        assert {name: parameter.shape for name, parameter in model.named_parameters()} == shapes
