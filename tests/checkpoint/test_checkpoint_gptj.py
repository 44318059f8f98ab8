"""Hugging Face's GPT-J: loading, exporting, every field honoured or refused, old files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from bert_helpers import edit, given_and_given_back, rewrite
from parallel_helpers import WITHOUT_INFLUENCE, agree, check_absent, check_broken, check_field, opened, save

import zoo
from zoo.checkpoint.huggingface_gptj import HuggingFaceGPTJ, share
from zoo.errors import ConfigError

Make = Callable[..., Any]
ENDS = ("Model", "ForCausalLM", "ForSequenceClassification", "ForQuestionAnswering")
ROTARY = "stack.block.attention.position"


@pytest.fixture
def saved(redraw: Make, tmp_path: Path) -> Make:
    """A function that makes a model of transformers, in float64, and the folder that it saved itself into."""

    def make(end: str = "ForCausalLM", **fields: Any) -> tuple[Any, Path]:
        folder = tmp_path / f"hf-{len(list(tmp_path.iterdir()))}"
        return save(f"GPTJ{end}", folder, redraw, **fields), folder

    return make


@pytest.mark.parametrize("end", ENDS)
def test_a_folder_of_theirs_gives_their_outputs_and_is_given_back(saved: Make, tmp_path: Path, end: str) -> None:
    theirs, folder = saved(end)
    given_and_given_back(theirs, folder, tmp_path / "out", agree)


HONOURED: dict[str, list[Any]] = {
    "vocab_size": [37, 6],
    "n_positions": [9, 64],
    "n_embd": [36],
    "n_layer": [1, 3],
    "n_head": [2, 1],
    "rotary_dim": [2, 6, 8],
    "n_inner": [50, 1, None],
    "activation_function": ["relu", "gelu"],
    "resid_pdrop": [0.3],
    "embd_pdrop": [0.3],
    "attn_pdrop": [0.3],
    "layer_norm_epsilon": [1e-3, 0.5],
    "initializer_range": [0.5],
    "pad_token_id": [0, 30],
    "tie_word_embeddings": [True],
    "id2label": [{0: "a", 1: "b", 2: "c"}, {0: "only"}],
}


@pytest.mark.parametrize(("field", "value"), [(field, value) for field, values in HONOURED.items() for value in values])
def test_every_field_is_honoured_both_ways(saved: Make, tmp_path: Path, field: str, value: Any) -> None:
    end = "ForCausalLM" if field in ("vocab_size", "tie_word_embeddings") else "ForSequenceClassification"
    theirs, folder = saved(end, **{field: value})
    ours = check_field(theirs, folder, tmp_path / "out")
    stack = ours.config.stack
    dropouts = {"resid": stack.block.dropout, "embd": ours.config.embedding.dropout, "attn": stack.block.attention.dropout}
    assert {name: dropout for name, dropout in dropouts.items() if dropout} == (
        {field.partition("_")[0]: value} if "pdrop" in field else {}
    )


def test_no_field_of_theirs_is_untested() -> None:
    from transformers import GPTJConfig

    assert set(GPTJConfig().to_dict()) <= {*HONOURED, *WITHOUT_INFLUENCE}, "transformers has a new field"


def test_what_an_absent_field_means() -> None:
    from transformers import GPTJConfig

    check_absent(HuggingFaceGPTJ(), GPTJConfig(), "GPTJForCausalLM")


def test_what_version_4_wrote_loads(saved: Make) -> None:
    """The published file has these fields and tensors."""
    theirs, folder = saved()
    edit(
        folder, rotary=True, scale_attn_weights=True, gradient_checkpointing=False, summary_type="cls_index", n_ctx=20,
        summary_use_proj=True, summary_proj_to_labels=True, summary_first_dropout=0.1, summary_activation=None,
        tokenizer_class="GPT2Tokenizer", torch_dtype="float64", dtype=...,
        task_specific_params={"text-generation": {"do_sample": True}},
    )  # fmt: skip
    tables = {f"transformer.h.{n}.attn.bias": torch.ones(1, 1, 4, 4, dtype=torch.bool) for n in range(2)}
    tables |= {f"transformer.h.{n}.attn.masked_bias": torch.tensor(-1e9) for n in range(2)}
    rewrite(folder, lambda t: {**t, **tables})
    ours = zoo.load(folder)
    agree(ours, theirs)
    assert len(ours.load_report.of("ignored")) == 4


def test_the_scores_bias_is_read_where_the_table_is_tied(saved: Make) -> None:
    theirs, folder = saved(tie_word_embeddings=True)
    ours = zoo.load(folder)
    assert ours.config.head.tied and ours.head.bias.abs().max() > 0 and ours.head.weight is None
    agree(ours, theirs)


def test_names_that_all_their_models_know_overrule_its_own(saved: Make) -> None:
    _, folder = saved()
    edit(folder, hidden_size=24, n_embd=7, num_hidden_layers=2, n_layer=9, num_attention_heads=3, n_head=1)
    agree(zoo.load(folder), opened(folder, "GPTJForCausalLM"))


def test_every_number_of_turned_features_is_a_share() -> None:
    for head_size in range(2, 300):
        for size in range(2, head_size + 1, 2):
            assert int(head_size * share(size, head_size)) == size and share(size, head_size) <= 1


@pytest.mark.parametrize(("fields", "words"), [
    ({"n_embd": 25}, "n_embd: 25 is no multiple of the 3 heads"),
    ({"rotary_dim": 3}, "3 of a head's 8 features cannot be turned in pairs"),
    ({"rotary_dim": 10}, "fraction"),
    ({"rotary_dim": 0}, "fraction"),
    ({"rotary_dim": None}, "rotary_dim: expected a whole number, got None"),
    ({"activation_function": "xielu"}, "activation_function: 'xielu' is not supported"),
    ({"rope_parameters": {"rope_theta": 1e4}}, "not supported: rope_parameters"),
    ({"n_inner": "x"}, "n_inner: expected a whole number"),
    ({"add_cross_attention": True}, "add_cross_attention: True is not supported"),
    ({"vocab_size": 30}, "wte"),
    ({"architectures": ["GPTJForTokenClassification"]}, "GPTJForTokenClassification is not supported; expected"),
])  # fmt: skip
def test_a_broken_or_unknown_field_is_refused_by_name(saved: Make, fields: dict[str, Any], words: str) -> None:
    check_broken(saved()[1], fields, words)


SMALL = {"embedding.vocabulary": 31, "stack.width": 24, "stack.depth": 2, "stack.block.attention.heads": 3}


@pytest.mark.parametrize(("overrides", "place"), [
    ({"stack.block.norm.bias": False, "stack.final_norm.bias": False}, "norm.bias"),
    ({"stack.block.shared_norm": False}, "shared_norm"),
    ({"stack.block.order": "pre", "stack.block.shared_norm": False}, "stack.block.order"),
    ({"stack.block.feedforward.bias": False}, "feedforward.bias"),
    ({"stack.block.attention.bias": True}, "attention.bias"),
    ({"stack.block.attention.kv_heads": 1}, "kv_heads"),
    ({f"{ROTARY}.order": "halves"}, "position.order"),
    ({f"{ROTARY}.theta": 100.0}, "position.theta"),
    ({f"{ROTARY}.length": None}, "position.length"),
    ({f"{ROTARY}.scaling": {"type": "linear", "factor": 2.0}}, "position.scaling"),
    ({ROTARY: None}, "attention.position"),
    ({"embedding.segment_vectors": "own"}, "segment_vectors"),
    ({"head.bias": False}, "head.bias"),
    ({"head": {"type": "token-classifier", "classes": 3}}, "head"),
])  # fmt: skip
def test_what_transformers_cannot_say_is_refused_with_our_field(overrides: dict[str, Any], place: str) -> None:
    with pytest.raises(ConfigError, match=place):
        HuggingFaceGPTJ().write_config(zoo.get_config("gpt-j-6b", {**SMALL, **overrides}))
