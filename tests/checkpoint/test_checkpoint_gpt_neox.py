"""Hugging Face's GPT-NeoX: loading, exporting, every field honoured or refused, old and new spellings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from bert_helpers import edit, given_and_given_back, rewrite
from parallel_helpers import WITHOUT_INFLUENCE, agree, check_absent, check_broken, check_field, opened, save

import zoo
from zoo.checkpoint.huggingface_gpt_neox import HuggingFaceGPTNeoX
from zoo.errors import ConfigError

Make = Callable[..., Any]
ENDS = ("Model", "ForCausalLM", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering")
ROTARY = "stack.block.attention.position"


@pytest.fixture
def saved(redraw: Make, tmp_path: Path) -> Make:
    """A function that makes a model of transformers, in float64, and the folder that it saved itself into."""

    def make(end: str = "ForCausalLM", **fields: Any) -> tuple[Any, Path]:
        folder = tmp_path / f"hf-{len(list(tmp_path.iterdir()))}"
        return save(f"GPTNeoX{end}", folder, redraw, **fields), folder

    return make


@pytest.mark.parametrize("parallel", [True, False])
@pytest.mark.parametrize("end", ENDS)
def test_a_folder_of_theirs_gives_their_outputs_and_is_given_back(
    saved: Make, tmp_path: Path, end: str, parallel: bool
) -> None:
    theirs, folder = saved(end, use_parallel_residual=parallel)
    given_and_given_back(theirs, folder, tmp_path / "out", agree)
    assert zoo.load(folder).config.stack.block.order == ("parallel" if parallel else "pre")


def rope(**fields: Any) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 0.5, **fields}


HONOURED: dict[str, list[Any]] = {
    "vocab_size": [37, 6],
    "hidden_size": [36],
    "intermediate_size": [50, 1],
    "num_hidden_layers": [1, 3],
    "num_attention_heads": [2, 1],
    "hidden_act": ["relu", "gelu_pytorch_tanh", "silu"],
    "max_position_embeddings": [7, 64],
    "initializer_range": [0.5],
    "layer_norm_eps": [1e-3, 0.5],
    "pad_token_id": [0, 30],
    "tie_word_embeddings": [True],
    "attention_dropout": [0.3],
    "hidden_dropout": [0.3],
    "classifier_dropout": [0.3],
    "use_parallel_residual": [False],
    "attention_bias": [False],
    "rope_parameters": [
        rope(), rope(partial_rotary_factor=1.0), rope(partial_rotary_factor=0.26), rope(rope_type="linear", factor=2.5),
        rope(rope_type="dynamic", factor=2.5), rope(rope_type="yarn", factor=4.0, original_max_position_embeddings=8),
        rope(rope_type="llama3", factor=4.0, low_freq_factor=0.5, high_freq_factor=4.0, original_max_position_embeddings=8),
    ],
    "id2label": [{0: "a", 1: "b", 2: "c"}, {0: "only"}],
}  # fmt: skip


@pytest.mark.parametrize(("field", "value"), [(field, value) for field, values in HONOURED.items() for value in values])
def test_every_field_is_honoured_both_ways(saved: Make, tmp_path: Path, field: str, value: Any) -> None:
    end = "ForTokenClassification" if field == "classifier_dropout" else "ForSequenceClassification"
    theirs, folder = saved("ForCausalLM" if field in ("vocab_size", "tie_word_embeddings") else end, **{field: value})
    ours = check_field(theirs, folder, tmp_path / "out")
    if field == "classifier_dropout":
        assert ours.config.head.dropout == value
    if field == "hidden_dropout":
        assert (ours.config.embedding.dropout, ours.config.stack.block.dropout) == (value, value)
    if field == "attention_dropout":
        assert ours.config.stack.block.attention.dropout == value


def test_the_fast_gelu_of_the_20b_model_is_the_tanh_approximation(saved: Make) -> None:
    """Up to a constant that is rounded at the tenth digit."""
    theirs, folder = saved(hidden_act="gelu_fast")
    ours = zoo.load(folder)
    assert ours.config.stack.block.feedforward.activation == "gelu-tanh"
    agree(ours, theirs, 1e-9)


def test_no_field_of_theirs_is_untested() -> None:
    from transformers import GPTNeoXConfig

    assert set(GPTNeoXConfig().to_dict()) <= {*HONOURED, *WITHOUT_INFLUENCE}, "transformers has a new field"


@pytest.mark.parametrize("end", ["ForCausalLM", "ForTokenClassification"])
def test_what_an_absent_field_means(end: str) -> None:
    from transformers import GPTNeoXConfig

    check_absent(HuggingFaceGPTNeoX(), GPTNeoXConfig(), f"GPTNeoX{end}")


def test_what_version_4_wrote_loads(saved: Make) -> None:
    """Pythia's own config has these fields, and its file these tensors."""
    theirs, folder = saved(rope_parameters=rope(rope_theta=50.0))
    edit(
        folder, rope_parameters=..., rotary_pct=0.5, rotary_emb_base=50, torch_dtype="float64", dtype=..., attention_bias=...,
        attention_probs_dropout_prob=0, hidden_dropout_prob=0, rope_scaling=None,
    )  # fmt: skip
    tables = {f"gpt_neox.layers.{n}.attention.bias": torch.ones(1, 1, 4, 4, dtype=torch.bool) for n in range(2)}
    tables |= {f"gpt_neox.layers.{n}.attention.masked_bias": torch.tensor(-1e9) for n in range(2)}
    tables |= {f"gpt_neox.layers.{n}.attention.rotary_emb.inv_freq": torch.ones(2) for n in range(2)}
    rewrite(folder, lambda t: {**t, **tables})
    ours = zoo.load(folder)
    assert ours.config.stack.block.attention.position.fraction == 0.5
    agree(ours, theirs)
    assert len(ours.load_report.of("ignored")) == 6
    edit(folder, rotary_pct=...)
    assert zoo.load(folder).config.stack.block.attention.position.fraction == 0.25
    agree(zoo.load(folder), opened(folder, "GPTNeoXForCausalLM"))


@pytest.mark.parametrize("case", ["copy", "other scores"])
def test_scores_are_tied_where_theirs_are(saved: Make, case: str) -> None:
    _, folder = saved(tie_word_embeddings=True)
    other = torch.randn(31, 24, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    rewrite(folder, lambda t: {**t, "embed_out.weight": t["gpt_neox.embed_in.weight"].clone() if case == "copy" else other})
    ours = zoo.load(folder)
    assert ours.config.head.tied is (case == "copy")
    agree(ours, opened(folder, "GPTNeoXForCausalLM"))


@pytest.mark.parametrize(("fields", "words"), [
    ({"hidden_size": 25}, "hidden_size: 25 is no multiple of the 3 heads"),
    ({"num_attention_heads": 0}, "24 is no multiple of the 0 heads"),
    ({"hidden_act": "xielu"}, "hidden_act: 'xielu' is not supported"),
    ({"use_parallel_residual": 1}, "use_parallel_residual: expected true or false"),
    ({"rope_parameters": rope(partial_rotary_factor=0.125)}, "1 of a head's 8 features cannot be turned in pairs"),
    ({"rope_parameters": rope(partial_rotary_factor="x")}, "partial_rotary_factor: expected a number"),
    ({"rope_parameters": rope(partial_rotary_factor=0)}, "fraction"),
    ({"rope_parameters": rope(rope_type="longrope")}, "rope_type: 'longrope' is not supported"),
    ({"layer_norm_eps": "x"}, "layer_norm_eps: expected a number"),
    ({"vocab_size": 30}, "embed_in"),
    ({"quantization_config": {"bits": 4}}, "quantization_config"),
    ({"architectures": ["GPTNeoXForMaskedLM"]}, "GPTNeoXForMaskedLM is not supported; expected"),
])  # fmt: skip
def test_a_broken_or_unknown_field_is_refused_by_name(saved: Make, fields: dict[str, Any], words: str) -> None:
    check_broken(saved()[1], fields, words)


SMALL = {
    "embedding.vocabulary": 31, "stack.width": 24, "stack.depth": 2, "stack.block.attention.heads": 3,
    "stack.block.feedforward.hidden": 40,
}  # fmt: skip


@pytest.mark.parametrize(("overrides", "place"), [
    ({"stack.block.norm": "rms-norm", "stack.final_norm": "rms-norm"}, "stack.block.norm"),
    ({"stack.final_norm.eps": 1e-3}, "stack.final_norm"),
    ({"stack.block.order": "post"}, "stack.block.order"),
    ({"stack.block.shared_norm": True}, "shared_norm"),
    ({"stack.block.feedforward": "gated"}, "stack.block.feedforward"),
    ({"stack.block.feedforward.bias": False}, "feedforward.bias"),
    ({"stack.block.attention.output_bias": False}, "output_bias"),
    ({"stack.block.attention.kv_heads": 1}, "kv_heads"),
    ({"stack.block.attention.head_size": 16}, "head_size"),
    ({"stack.block.attention.scale": 1.0}, "scale"),
    ({"stack.block.attention": {"type": "local", "window": 3}}, "stack.block.attention"),
    ({f"{ROTARY}.order": "interleaved"}, "position.order"),
    ({f"{ROTARY}.length": None}, "position.length"),
    ({ROTARY: "alibi"}, "attention.position"),
    ({"embedding.padding": 3}, "embedding.padding"),
    ({"embedding.segment_vectors": "tokens"}, "segment_vectors"),
    ({"head.bias": True}, "head.bias"),
    ({"stack.pattern": [{}, {"feedforward": {"hidden": 8}}]}, "stack.pattern"),
])  # fmt: skip
def test_what_transformers_cannot_say_is_refused_with_our_field(overrides: dict[str, Any], place: str) -> None:
    with pytest.raises(ConfigError, match=place):
        HuggingFaceGPTNeoX().write_config(zoo.get_config("gpt-neox-20b", {**SMALL, **overrides}))
