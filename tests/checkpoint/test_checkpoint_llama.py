"""Hugging Face's Llama, Mistral and Qwen2: loading, exporting, every field honoured or refused, old and new spellings."""

from __future__ import annotations

import json
import random
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from bert_helpers import edit, given_and_given_back, opened, rewrite
from decoder_helpers import ENDS, SIZES, TOKENS, agree, family_of, inputs, save, shard
from safetensors.torch import load_file, save_file

import zoo
from zoo.checkpoint.huggingface_llama import HuggingFaceLlama
from zoo.checkpoint.huggingface_mistral import HuggingFaceMistral, HuggingFaceQwen2
from zoo.errors import ConfigError, WeightsError, ZooError

Make = Callable[..., Any]
FAMILIES = ("Llama", "Mistral", "Qwen2")
CLASSES = [f"{family}{end}" for family in FAMILIES for end in ENDS]


@pytest.fixture
def saved(redraw: Make, tmp_path: Path) -> Make:
    """A function that makes a model of transformers, in float64, and the folder that it saved itself into."""

    def make(cls: str = "LlamaForCausalLM", **fields: Any) -> tuple[Any, Path]:
        folder = tmp_path / f"hf-{len(list(tmp_path.iterdir()))}"
        return save(cls, folder, redraw, **fields), folder

    return make


@pytest.mark.parametrize("cls", CLASSES)
def test_a_folder_of_theirs_gives_their_outputs_and_is_given_back(saved: Make, tmp_path: Path, cls: str) -> None:
    theirs, folder = saved(cls)
    given_and_given_back(theirs, folder, tmp_path / "out", agree)


ALL: dict[str, list[Any]] = {
    "vocab_size": [37, 6],
    "hidden_size": [36],
    "intermediate_size": [50, 1],
    "num_hidden_layers": [1, 3],
    "num_attention_heads": [12, 3],
    "num_key_value_heads": [1, 6, 2],
    "head_dim": [4, 6, 10],
    "hidden_act": ["relu", "gelu", "gelu_pytorch_tanh"],
    "max_position_embeddings": [7, 64],
    "initializer_range": [0.5],
    "rms_norm_eps": [1e-3, 0.5],
    "pad_token_id": [0, 3, 30],
    "tie_word_embeddings": [True],
    "attention_dropout": [0.3, 0],
    "classifier_dropout": [0.3],
    "rope_parameters": [
        {"rope_type": "default", "rope_theta": 100.0},
        {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.5},
    ],
    "id2label": [{0: "a", 1: "b", 2: "c"}, {0: "only"}],
}
HONOURED: dict[str, dict[str, list[Any]]] = {
    "Llama": {**ALL, "attention_bias": [True], "mlp_bias": [True], "pretraining_tp": [2]},
    "Mistral": {**ALL, "sliding_window": [None, 1, 2, 20, 4096], "hidden_size": [36, 39]},
    "Qwen2": {
        **ALL, "use_sliding_window": [False], "sliding_window": [None, 1, 2, 20], "max_window_layers": [0, 2, 28],
        "layer_types": [["sliding_attention", "full_attention"], ["full_attention"] * 2, ["sliding_attention"] * 2],
    },
}  # fmt: skip
WITHOUT_INFLUENCE = {
    "architectures", "model_type", "transformers_version", "_name_or_path", "dtype", "label2id", "problem_type", "return_dict",
    "output_hidden_states", "output_attentions", "chunk_size_feed_forward", "use_cache", "bos_token_id", "eos_token_id",
}  # fmt: skip
FIELDS = [
    (f"{family}{'ForSequenceClassification' if number % 2 or field == 'id2label' else 'ForCausalLM'}", field, value)
    for family, fields in HONOURED.items()
    for field, values in fields.items()
    for number, value in enumerate(values)
    if family != "Qwen2" or field not in ("vocab_size", "intermediate_size", "hidden_act", "initializer_range", "rms_norm_eps")
]


@pytest.mark.parametrize(("cls", "field", "value"), FIELDS)
def test_every_field_is_honoured_both_ways(saved: Make, tmp_path: Path, cls: str, field: str, value: Any) -> None:
    theirs, folder = saved(cls, **{field: value})
    ours = zoo.load(folder)
    agree(ours, theirs)
    assert ours.num_parameters() == theirs.num_parameters()
    again = zoo.load(zoo.export(ours, tmp_path / "out"))
    assert again.config == ours.config
    agree(again, theirs)


@pytest.mark.parametrize("family", HONOURED)
def test_no_field_of_theirs_is_untested(family: str) -> None:
    import transformers

    fields = set(getattr(transformers, f"{family}Config")().to_dict())
    assert fields <= {*HONOURED[family], *WITHOUT_INFLUENCE, "is_encoder_decoder"}, "transformers has a new field"


@pytest.mark.parametrize("family", FAMILIES)
def test_what_an_absent_field_means(family: str) -> None:
    """The defaults of the class, one after another, against a config that states all of them."""
    import transformers

    kind = getattr(transformers, f"{family}Config")
    reader = {"Llama": HuggingFaceLlama, "Mistral": HuggingFaceMistral, "Qwen2": HuggingFaceQwen2}[family]()
    whole = json.loads(kind().to_json_string(use_diff=False)) | {"architectures": [f"{family}ForCausalLM"]}
    expected = reader.read_config(whole, ())
    for name in set(whole) - {"model_type", "architectures"}:
        assert reader.read_config({key: value for key, value in whole.items() if key != name}, ()) == expected, name
    least = {"model_type": whole["model_type"], "architectures": whole["architectures"]}
    assert reader.read_config(least, ()) == expected


ROPES: list[dict[str, Any]] = [
    {"type": "linear", "factor": 2.0},
    {"rope_type": "linear", "factor": 3},
    {"type": "dynamic", "factor": 2.0},
    {"rope_type": "dynamic", "factor": 3.7},
    {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
    {
        "rope_type": "llama3",
        "factor": 3.3,
        "low_freq_factor": 0.3,
        "high_freq_factor": 7,
        "original_max_position_embeddings": 8,
    },
    {"rope_type": "llama3", "factor": 3.3, "low_freq_factor": 0.3, "high_freq_factor": 7},
    {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8, "finetuned": True},
    {"rope_type": "yarn", "factor": 4.0},
    {"rope_type": "yarn", "factor": None, "original_max_position_embeddings": 8},
    {"rope_type": "yarn", "factor": 4.0, "attention_factor": 0.7, "beta_fast": 3, "beta_slow": 0.5, "truncate": False},
    {"rope_type": "yarn", "factor": 40.0, "mscale": 0.7, "mscale_all_dim": 1.3},
    {"rope_type": "yarn", "factor": 0.5, "mscale": 1.0},
    {"rope_type": "default"},
]
"""Without theta, and as old as their first key."""


@pytest.mark.parametrize("spelling", ["old", "new"])
@pytest.mark.parametrize("rope", ROPES, ids=lambda rope: "-".join(map(str, rope.values())))
def test_every_kind_of_rotary_scaling_in_both_spellings(
    saved: Make, tmp_path: Path, rope: dict[str, Any], spelling: str
) -> None:
    """Texts end before the trained length, beyond it, and far beyond it."""
    theta = 50.0
    _, folder = saved(head_dim=10)
    if spelling == "old":
        edit(folder, rope_parameters=..., rope_scaling=rope, rope_theta=theta, torch_dtype="float64", dtype=...)
    else:
        kind = rope.get("rope_type", rope.get("type"))
        rest = {name: value for name, value in rope.items() if name not in ("type", "rope_type")}
        edit(folder, rope_parameters={**rest, "rope_type": kind, "rope_theta": theta})
    ours = zoo.load(folder, dtype="float64")
    assert zoo.load(zoo.export(ours, tmp_path / "out")).config == ours.config
    for place in (folder, tmp_path / "out"):
        theirs = opened(place, "LlamaForCausalLM")
        rotary = theirs.model.rotary_emb
        for batch in (each for tokens in (TOKENS, 33) for each in inputs(theirs, tokens)):
            # one that has seen nothing before: theirs remembers the longest text
            rotary.inv_freq, rotary.max_seq_len_cached = rotary.original_inv_freq.clone(), rotary.original_max_seq_len
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                own, other = ours(**batch).logits, theirs(**batch).logits
            assert (own - other).abs().max() <= 1e-12 * max(1.0, float(other.abs().max()))


def test_a_top_level_original_length_overrules_the_one_within(saved: Make) -> None:
    _, folder = saved()
    rope = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
    edit(folder, rope_parameters=None, rope_scaling=rope, original_max_position_embeddings=8)
    ours = zoo.load(folder)
    assert ours.config.stack.block.attention.position.scaling.length == 8
    agree(ours, opened(folder, "LlamaForCausalLM"))


BROKEN_ROPES: list[tuple[dict[str, Any], str]] = [
    ({"rope_type": "longrope", "factor": 2.0}, "rope_type: 'longrope' is not supported; expected"),
    ({"rope_type": "proportional"}, "rope_type: 'proportional'"),
    ({"rope_type": None}, "rope_type: None"),
    ({"rope_type": ["linear"]}, "rope_type"),
    ({"rope_type": "linear"}, "factor: missing"),
    ({"rope_type": "linear", "factor": "2"}, "factor: expected a number"),
    ({"rope_type": "linear", "factor": 0}, "scaling.factor"),
    ({"rope_type": "linear", "factor": 2.0, "partial_rotary_factor": 0.5}, "partial_rotary_factor: 0.5 is not supported"),
    ({"rope_type": "llama3", "factor": 2.0}, "low_freq_factor: missing"),
    ({"rope_type": "llama3", "factor": 2.0, "low_freq_factor": 0, "high_freq_factor": 4}, "scaling.slow"),
    ({"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 0}, "scaling.length"),
    ({"rope_type": "yarn", "factor": 2.0, "truncate": "x"}, "truncate"),
    ({"rope_type": "default", "mrope_section": [1, 1, 2]}, "rope_parameters: not supported: mrope_section"),
    ({"full_attention": {"rope_type": "default"}}, "rope_parameters: not supported: full_attention"),
    ({"rope_type": "default", "rope_theta": None}, "rope_theta"),
    ({"rope_type": "default", "rope_theta": -1}, "theta"),
]


@pytest.mark.parametrize(("rope", "words"), BROKEN_ROPES, ids=[words for _, words in BROKEN_ROPES])
def test_a_rotary_scaling_that_is_not_supported_is_refused_by_name(saved: Make, rope: dict[str, Any], words: str) -> None:
    _, folder = saved()
    for names in ({"rope_parameters": rope}, {"rope_parameters": ..., "rope_scaling": rope}):
        edit(folder, **names)
        with pytest.raises(ConfigError, match=words):
            zoo.load(folder)


def test_heads_that_cannot_be_turned_are_refused(saved: Make) -> None:
    _, folder = saved()
    for fields, words in (
        ({"head_dim": 5}, "5 of a head's 5 features cannot be turned in pairs"),
        ({"head_dim": 2, "rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "'dynamic' needs more than two features"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "rope_theta": 1}}, "where theta is 1"),
        ({"rope_parameters": []}, "rope_parameters: expected a mapping"),
        ({"hidden_size": 25}, "hidden_size: 25 is no multiple of the 6 heads, as Llama needs it"),
    ):
        edit(folder, **{"head_dim": 4, "rope_parameters": {}, "hidden_size": 24, **fields})
        with pytest.raises(ConfigError, match=words):
            zoo.load(folder)


OLD = {
    "torch_dtype": "float64", "dtype": ..., "rope_parameters": ..., "rope_theta": 10000.0, "rope_scaling": None,
    "max_length": 40, "transformers_version": "4.31.0.dev0", "_name_or_path": "x", "use_cache": True, "tokenizer_class": "x",
    "temperature": 0.9, "top_p": 0.6, "is_decoder": False, "attn_implementation": "sdpa", "return_dict": True,
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_what_version_4_wrote_loads(saved: Make, family: str) -> None:
    cls = f"{family}ForCausalLM"
    theirs, folder = saved(cls)
    drop = {"Llama": ("mlp_bias", "attention_bias", "head_dim"), "Mistral": ("head_dim",), "Qwen2": ("layer_types",)}[family]
    edit(folder, **OLD, **dict.fromkeys(drop, ...), **({"pretraining_tp": 1} if family == "Llama" else {}))
    frequencies = {f"model.layers.{n}.self_attn.rotary_emb.inv_freq": 1 / 100 ** torch.arange(0, 1, 0.5) for n in range(2)}
    rewrite(folder, lambda t: {**t, **frequencies})
    ours = zoo.load(folder)
    agree(ours, theirs)
    assert {entry.detail for entry in ours.load_report.of("ignored")} == {"computed from theta"}


@pytest.mark.parametrize("files", ["shards", "bin", "bare", "bfloat16"])
@pytest.mark.parametrize("cls", ["LlamaForCausalLM", "LlamaForQuestionAnswering", "Qwen2Model"])
def test_files_of_every_kind(saved: Make, cls: str, files: str) -> None:
    theirs, folder = saved(cls)
    if files == "shards":
        shard(folder)
    elif files == "bin":
        torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
    elif files == "bare":
        rewrite(
            folder, lambda t: {name.removeprefix("model.").removeprefix("transformer."): value for name, value in t.items()}
        )
    else:
        rewrite(folder, lambda t: {name: value.bfloat16() for name, value in t.items()})
        edit(folder, dtype="bfloat16")
        assert zoo.load(folder).dtype == torch.bfloat16
        theirs = opened(folder, cls)
    agree(zoo.load(folder, dtype="float64"), theirs)


def test_two_names_for_one_tensor_are_an_error(saved: Make) -> None:
    _, folder = saved("LlamaForQuestionAnswering")
    rewrite(folder, lambda t: {**t, "model.norm.weight": t["transformer.norm.weight"].clone()})
    with pytest.raises(WeightsError, match="two sources for one tensor"):
        zoo.load(folder)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("case", ["as it is", "copy", "other scores", "scores alone"])
def test_scores_are_tied_where_theirs_are(saved: Make, case: str, tied: bool) -> None:
    """Whatever a file holds twice, equal or not, is read as transformers itself reads it."""
    _, folder = saved("Qwen2ForCausalLM", tie_word_embeddings=tied)
    table, scores = "model.embed_tokens.weight", "lm_head.weight"
    drawn = torch.randn(31, 24, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    changes: dict[str, Callable[[dict[str, Any]], Any]] = {
        "as it is": lambda t: t,
        "copy": lambda t: {**t, scores: t[table].clone()},
        "other scores": lambda t: {**t, scores: drawn},
        "scores alone": lambda t: {**{name: value for name, value in t.items() if name != table}, scores: drawn},
    }
    rewrite(folder, changes[case])
    if case == "scores alone" and not tied:
        with pytest.raises(WeightsError, match=r"missing: model\.embed_tokens\.weight"):
            zoo.load(folder)
        return
    ours = zoo.load(folder)
    assert ours.config.head.tied is (tied and case != "other scores")
    agree(ours, opened(folder, "Qwen2ForCausalLM"))


def test_a_negative_padding_token_counts_from_the_end(saved: Make) -> None:
    theirs, folder = saved(pad_token_id=None)
    edit(folder, pad_token_id=-1)
    assert zoo.load(folder).config.embedding.padding == 30
    agree(zoo.load(folder), theirs)


@pytest.mark.parametrize(
    ("cls", "fields", "words"),
    [
        ("LlamaForCausalLM", {"sliding_window": 4}, "sliding_window"),
        ("LlamaForCausalLM", {"layer_types": ["full_attention"] * 2}, "layer_types"),
        ("LlamaForCausalLM", {"quantization_config": {"bits": 4}}, "quantization_config"),
        ("LlamaForCausalLM", {"auto_map": {}}, "auto_map"),
        ("LlamaForCausalLM", {"attention_bias": 1}, "attention_bias: expected true or false"),
        ("LlamaForCausalLM", {"hidden_act": "xielu"}, "hidden_act: 'xielu' is not supported"),
        ("LlamaForCausalLM", {"num_key_value_heads": 4}, "6 heads cannot share 4 heads"),
        ("LlamaForCausalLM", {"num_key_value_heads": 0}, "kv_heads"),
        ("LlamaForCausalLM", {"head_dim": "4"}, "head_dim: expected a whole number"),
        ("LlamaForCausalLM", {"rms_norm_eps": "x"}, "rms_norm_eps"),
        ("LlamaForCausalLM", {"vocab_size": 30}, "embed_tokens"),
        ("LlamaForCausalLM", {"pad_token_id": 31}, "padding: 31"),
        ("LlamaForSequenceClassification", {"pad_token_id": -1}, "pool.padding"),
        ("LlamaForTokenClassification", {"token_classification_bias": False}, "token_classification_bias"),
        ("LlamaForQuestionAnswering", {"num_labels": 3}, "num_labels: a model that finds answers has 2, not 3"),
        ("LlamaForCausalLM", {"architectures": ["MistralForCausalLM"]}, "architectures: MistralForCausalLM is not supported"),
        ("MistralForCausalLM", {"attention_bias": True}, "attention_bias"),
        ("MistralForCausalLM", {"layer_types": ["full_attention"] * 2}, "layer_types"),
        ("MistralForCausalLM", {"sliding_window": 0}, "sliding_window: expected 1 or more, got 0"),
        ("MistralForCausalLM", {"sliding_window": "x"}, "sliding_window: expected a whole number"),
        ("Qwen2ForCausalLM", {"layer_types": ["full_attention"]}, "layer_types: expected"),
        ("Qwen2ForCausalLM", {"layer_types": ["full_attention", "chunked_attention"]}, "layer_types: expected"),
        ("Qwen2ForCausalLM", {"use_sliding_window": False}, "'sliding_attention' needs use_sliding_window"),
        ("Qwen2ForCausalLM", {"max_window_layers": None}, "max_window_layers"),
        ("Qwen2ForCausalLM", {"mlp_bias": True}, "mlp_bias"),
        ("LlamaForCausalLM", {"model_type": "gemma"}, "'gemma' are not supported; expected .*llama, mistral, qwen2"),
    ],
)
def test_a_broken_or_unknown_field_is_refused_by_name(saved: Make, cls: str, fields: dict[str, Any], words: str) -> None:
    _, folder = saved(cls)
    edit(folder, **fields)
    with pytest.raises(ZooError, match=words):
        zoo.load(folder)


WINDOWED: dict[str, Any] = {"type": "local", "window": 3}


@pytest.mark.parametrize(
    ("family", "overrides", "place"),
    [
        (HuggingFaceLlama, {"stack.block.norm": "layer-norm", "stack.final_norm": "layer-norm"}, "stack.block.norm"),
        (HuggingFaceLlama, {"stack.final_norm.eps": 1e-3}, "stack.final_norm"),
        (HuggingFaceLlama, {"stack.block.order": "parallel"}, "stack.block.order"),
        (HuggingFaceLlama, {"stack.block.feedforward": "mlp"}, "stack.block.feedforward"),
        (HuggingFaceLlama, {"stack.block.attention.output_bias": True}, "output_bias"),
        (HuggingFaceLlama, {"stack.block.attention.scale": 1.0}, "attention.scale"),
        (HuggingFaceLlama, {"stack.block.attention.position": "alibi"}, "attention.position"),
        (HuggingFaceLlama, {"stack.block.attention.position": None}, "attention.position"),
        (HuggingFaceLlama, {"stack.block.attention.position.fraction": 0.5}, "position.fraction"),
        (HuggingFaceLlama, {"stack.block.attention.position.order": "interleaved"}, "position.order"),
        (HuggingFaceLlama, {"stack.block.attention.position.length": None}, "position.length"),
        (
            HuggingFaceLlama,
            {"stack.block.attention.position.scaling": {"type": "dynamic", "factor": 2.0, "length": 3}},
            "position.scaling.length",
        ),
        (HuggingFaceLlama, {"stack.block.attention.causal": False}, "causal"),
        (HuggingFaceLlama, {"stack.block.attention.qk_norm": "rms-norm"}, "qk_norm"),
        (HuggingFaceLlama, {"embedding.position": {"type": "learned", "length": 9}}, "embedding.position"),
        (HuggingFaceLlama, {"head.bias": True}, "head.bias"),
        (HuggingFaceLlama, {"stack.block.attention": WINDOWED}, "stack.block.attention"),
        (HuggingFaceLlama, {"stack.width": 20, "stack.block.attention.head_size": 4}, "stack.width: 20 is no multiple"),
        (HuggingFaceLlama, {"stack.pattern": [{}, {"feedforward": {"hidden": 8}}]}, "stack.pattern"),
        (
            HuggingFaceLlama,
            {"head": {"type": "classifier", "bias": False, "pool": {"type": "last-token", "padding": 3}}},
            "head.pool.padding",
        ),
        (HuggingFaceMistral, {"stack.pattern": [{}, {"attention": WINDOWED}]}, "stack.pattern"),
        (HuggingFaceMistral, {"stack.block.attention.bias": True}, "attention.bias"),
        (HuggingFaceMistral, {"stack.block.feedforward.bias": True}, "feedforward.bias"),
        (HuggingFaceQwen2, {"stack.block.attention.bias": False}, "attention.bias"),
        (
            HuggingFaceQwen2,
            {
                "stack.block.attention.bias": True,
                "stack.pattern": [{"attention": WINDOWED}, {"attention": {**WINDOWED, "window": 4}}],
            },
            "stack.pattern",
        ),
    ],
)
def test_what_transformers_cannot_say_is_refused_with_our_field(family: Any, overrides: dict[str, Any], place: str) -> None:
    small = {
        "embedding.vocabulary": 31, "stack.width": 24, "stack.depth": 2, "stack.block.attention.heads": 6,
        "stack.block.attention.kv_heads": 3, "stack.block.feedforward.hidden": 40,
    }  # fmt: skip
    config = zoo.get_config("llama-2-7b", {**small, **overrides})
    with pytest.raises(ConfigError, match=place):
        family().write_config(config)


@pytest.mark.parametrize(
    ("preset", "values"),
    [
        ("llama-2-7b", {"max_position_embeddings": 4096, "num_key_value_heads": 32, "rms_norm_eps": 1e-5}),
        ("mistral-7b", {"max_position_embeddings": 32768, "num_key_value_heads": 8, "sliding_window": 4096}),
        ("qwen2.5-0.5b", {"num_key_value_heads": 2, "use_sliding_window": False, "tie_word_embeddings": True}),
        ("llama-3.2-1b", {"head_dim": 64, "tie_word_embeddings": True, "rope_parameters": {
            "rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0, "original_max_position_embeddings": 8192,
            "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        }}),
    ],
)  # fmt: skip
def test_a_preset_says_what_its_published_config_says(preset: str, values: dict[str, Any]) -> None:
    from zoo.checkpoint.save import family_for

    _, written = family_for(zoo.get_config(preset), "transformers")
    assert {name: written[name] for name in values} == values


@pytest.mark.parametrize("seed", range(2))
def test_mutated_folders(saved: Make, tmp_path: Path, seed: int) -> None:
    """Every one loads to the right shapes or is one of zoo's errors."""
    draw = random.Random(seed)
    contents = []
    for cls in ("GPT2LMHeadModel", "LlamaForQuestionAnswering", "Qwen2ForCausalLM", "MistralForSequenceClassification"):
        _, folder = saved(cls, tie_word_embeddings=draw.random() < 0.5)
        contents.append((json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")))
    rope = {"rope_type": "yarn", "factor": 2.0, "beta_fast": 3}
    strange = (None, 0, -1, 1, 3, 2.5, "x", "silu", True, [], [1], {}, {"0": "a"}, rope, 10**12, 10**30, -0.5)
    for number in range(60):
        values, tensors = (dict(each) for each in draw.choice(contents))
        place = tmp_path / f"broken-{number}"
        place.mkdir()
        if number % 3 == 0:
            key = draw.choice(sorted({*values, "rope_scaling", "rope_theta", "layer_types", "sliding_window", "n_inner"}))
            values[key] = draw.choice(strange)
        elif number % 3 == 1:
            key = draw.choice(sorted(rope))
            values["rope_parameters"] = {**rope, key: draw.choice(strange)}
        else:
            name = draw.choice(sorted(tensors))
            value = tensors.pop(name)
            other = draw.choice(
                (
                    None,
                    value[None],
                    value.flatten()[1:],
                    value.int(),
                    value.reshape(-1),
                    value.half(),
                    value.mT if value.ndim > 1 else value,
                )
            )
            new = (name, name + "x", name[1:], f"model.{name}", f"transformer.{name}", "lm_head.weight")
            tensors |= {} if other is None else {draw.choice(new): other.contiguous()}
        (place / "config.json").write_text(json.dumps(values))
        save_file(tensors, place / "model.safetensors")
        try:
            model = zoo.load(place)
        except ZooError as error:
            assert len(str(error)) > 10
            continue
        finally:
            shutil.rmtree(place, ignore_errors=True)
        shapes = {name: parameter.shape for name, parameter in zoo.build(model.config, device="meta").named_parameters()}
        assert {name: parameter.shape for name, parameter in model.named_parameters()} == shapes


def test_every_family_is_here() -> None:
    assert {family_of(cls) for cls in CLASSES} == set(SIZES) - {"GPT2"}
