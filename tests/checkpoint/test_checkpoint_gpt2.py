"""Hugging Face's GPT-2: loading, exporting, every field of its config honoured or refused, and files of old versions."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from bert_helpers import edit, given_and_given_back, opened, rewrite
from decoder_helpers import ENDS, agree, inputs, save, shard
from safetensors.torch import load_file

import zoo
from zoo.checkpoint.huggingface_gpt2 import HuggingFaceGPT2
from zoo.errors import ConfigError, InputError, WeightsError, ZooError

Make = Callable[..., Any]
CLASSES = [f"GPT2{'LMHeadModel' if end == 'ForCausalLM' else end}" for end in ENDS]
LANGUAGE = "GPT2LMHeadModel"


@pytest.fixture
def saved(redraw: Make, tmp_path: Path) -> Make:
    """A function that makes a model of transformers, in float64, and the folder that it saved itself into."""

    def make(cls: str = LANGUAGE, **fields: Any) -> tuple[Any, Path]:
        folder = tmp_path / f"hf-{len(list(tmp_path.iterdir()))}"
        return save(cls, folder, redraw, **fields), folder

    return make


@pytest.mark.parametrize("cls", CLASSES)
def test_a_folder_of_theirs_gives_their_outputs_and_is_given_back(saved: Make, tmp_path: Path, cls: str) -> None:
    theirs, folder = saved(cls)
    given_and_given_back(theirs, folder, tmp_path / "out", agree)


HONOURED: dict[str, list[Any]] = {
    "vocab_size": [37, 6],
    "n_embd": [36, 33],
    "n_layer": [1, 3],
    "n_head": [1, 12, 24],
    "n_positions": [12, 9],
    "n_inner": [50, 1, None],
    "activation_function": ["relu", "gelu", "gelu_new", "silu"],
    "resid_pdrop": [0.25, 0],
    "embd_pdrop": [0.25, 0],
    "attn_pdrop": [0.25, 0],
    "layer_norm_epsilon": [1e-3, 0.5],
    "initializer_range": [0.5],
    "scale_attn_weights": [False],
    "scale_attn_by_inverse_layer_idx": [True],
    "reorder_and_upcast_attn": [True],
    "tie_word_embeddings": [False],
    "pad_token_id": [0, 3],
    "classifier_dropout": [0.3],
    "id2label": [{0: "a", 1: "b", 2: "c"}, {0: "only"}],
}
WITHOUT_INFLUENCE = {
    "architectures", "model_type", "transformers_version", "_name_or_path", "dtype", "label2id", "problem_type", "return_dict",
    "output_hidden_states", "output_attentions", "chunk_size_feed_forward", "use_cache", "bos_token_id", "eos_token_id",
    "summary_type", "summary_use_proj", "summary_activation", "summary_proj_to_labels", "summary_first_dropout",
}  # fmt: skip
FIELDS = [
    (
        LANGUAGE if field not in ("pad_token_id", "id2label") and number % 2 == 0 else "GPT2ForSequenceClassification",
        field,
        value,
    )
    for field, values in HONOURED.items()
    for number, value in enumerate(values)
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


@pytest.mark.parametrize("weights", [True, False])
@pytest.mark.parametrize("layers", [1, 3])
def test_both_scales_of_attention(saved: Make, tmp_path: Path, weights: bool, layers: int) -> None:
    fields = {"scale_attn_weights": weights, "scale_attn_by_inverse_layer_idx": True, "n_layer": layers}
    theirs, folder = saved(**fields)
    ours = zoo.load(folder)
    agree(ours, theirs)
    agree(zoo.load(zoo.export(ours, tmp_path / "out")), theirs)
    if layers > 1:
        values = json.loads((tmp_path / "out" / "config.json").read_text())
        assert {name: values[name] for name in fields} == fields


def test_no_field_of_theirs_is_untested() -> None:
    import transformers

    fields = set(transformers.GPT2Config().to_dict())
    assert fields <= {*HONOURED, *WITHOUT_INFLUENCE, "add_cross_attention", "is_encoder_decoder"}, (
        "transformers has a new field"
    )


@pytest.mark.parametrize("cls", CLASSES)
def test_every_dropout_is_in_its_place(saved: Make, cls: str) -> None:
    """One of them at 1, which leaves nothing to chance, and train mode."""
    names = ("resid_pdrop", "embd_pdrop", "attn_pdrop", "classifier_dropout")
    for chosen in names:
        theirs, folder = saved(cls, **{name: float(name == chosen) for name in names})
        agree(zoo.load(folder).train(), theirs.train())


def old_config(**others: Any) -> dict[str, Any]:
    """What the config of a GPT-2 on the Hub, of 2019, says beside its sizes."""
    values: dict[str, Any] = {
        "n_ctx": 20, "n_special": 0, "predict_special_tokens": True, "output_past": True, "_num_labels": 1,
        "id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}, "summary_type": "cls_index", "summary_use_proj": True,
        "summary_activation": None, "summary_first_dropout": 0.1, "summary_proj_to_labels": True, "torch_dtype": "float32",
        "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}}, "gradient_checkpointing": False,
        "is_decoder": False, "finetuning_task": None, "pruned_heads": {}, "torchscript": False, "use_bfloat16": False,
        "n_inner": ..., "scale_attn_weights": ..., "scale_attn_by_inverse_layer_idx": ..., "reorder_and_upcast_attn": ...,
        "tie_word_embeddings": ..., "pad_token_id": ..., "add_cross_attention": ..., "dtype": ..., "transformers_version": ...,
    }  # fmt: skip
    return {**values, **others}


@pytest.mark.parametrize("files", ["one", "shards", "bin"])
def test_a_file_of_the_hub(saved: Make, files: str) -> None:
    """No prefix, the buffers of the mask, and no scores, which are tied."""
    theirs, folder = saved()
    table = torch.ones(1, 1, 20, 20, dtype=torch.float64).tril()
    rewrite(
        folder,
        lambda tensors: {
            **{name.removeprefix("transformer."): value for name, value in tensors.items()},
            **{f"h.{layer}.attn.bias": table + layer for layer in range(2)},
            **{f"h.{layer}.attn.masked_bias": torch.tensor(-1e4 * (layer + 1)).double() for layer in range(2)},
        },
    )
    edit(folder, **old_config())
    if files == "shards":
        shard(folder)
    if files == "bin":
        torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
    ours = zoo.load(folder)
    agree(ours, theirs)
    agree(ours, opened(folder, LANGUAGE))
    assert {entry.name: entry.detail for entry in ours.load_report.of("ignored")} == {
        f"h.{layer}.attn.{name}": why
        for layer in range(2)
        for name, why in (
            ("bias", "a table of which token sees which"),
            ("masked_bias", "a number that stands for minus infinity"),
        )
    }
    assert zoo.load(folder, {"head": None}).load_report.of("re-initialised") == []


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_the_type_of_the_file_stays(saved: Make, dtype: str) -> None:
    _, folder = saved()
    kind = getattr(torch, dtype)
    rewrite(folder, lambda tensors: {name: value.to(kind) for name, value in tensors.items()})
    edit(folder, dtype=dtype)
    assert zoo.load(folder).dtype == kind
    agree(zoo.load(folder, dtype="float64"), opened(folder, LANGUAGE))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("case", ["as it is", "copy", "other scores", "scores alone"])
def test_scores_are_tied_where_theirs_are(saved: Make, case: str, tied: bool) -> None:
    """Whatever a file holds twice, equal or not, is read as transformers itself reads it."""
    _, folder = saved(tie_word_embeddings=tied)
    table, scores = "transformer.wte.weight", "lm_head.weight"
    drawn = torch.randn(31, 24, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    changes: dict[str, Callable[[dict[str, Any]], Any]] = {
        "as it is": lambda t: t,
        "copy": lambda t: {**t, scores: t[table].clone()},
        "other scores": lambda t: {**t, scores: drawn},
        "scores alone": lambda t: {**{name: value for name, value in t.items() if name != table}, scores: drawn},
    }
    rewrite(folder, changes[case])
    if case == "scores alone" and not tied:
        with pytest.raises(WeightsError, match=r"missing: transformer\.wte\.weight"):
            zoo.load(folder)
        return
    ours = zoo.load(folder)
    assert ours.config.head.tied is (tied and case != "other scores")
    agree(ours, opened(folder, LANGUAGE))


def test_scores_that_are_missing_are_an_error(saved: Make) -> None:
    _, folder = saved(tie_word_embeddings=False)
    rewrite(folder, lambda t: {name: value for name, value in t.items() if name != "lm_head.weight"})
    with pytest.raises(WeightsError, match=r"missing: lm_head.weight"):
        zoo.load(folder)


def test_a_missing_transposition_would_be_seen(saved: Make) -> None:
    """The output projection is square: its shape tells nothing."""
    theirs, folder = saved()
    ours = zoo.load(folder)
    own = ours.stack.layers[1].attention.output.weight
    assert torch.equal(own, theirs.transformer.h[1].attn.c_proj.weight.T) and not torch.equal(own, own.T)
    assert own.is_contiguous()


def test_another_head_of_the_file_is_read_and_a_new_one_drawn(saved: Make) -> None:
    theirs, folder = saved()
    batch = next(iter(inputs(theirs)))
    body = zoo.load(folder, {"head": None})
    assert torch.equal(body(**batch).last_hidden_state, zoo.load(folder)(**batch).last_hidden_state)
    assert not body.load_report.of("re-initialised")
    report = zoo.load(folder, {"head": {"type": "classifier", "pool": "last-token", "classes": 4}}).load_report
    assert {entry.name for entry in report.of("re-initialised")} == {"head.output.weight", "head.output.bias"}
    _, folder = saved("GPT2Model")
    assert not zoo.load(folder, {"head": "language-model"}).load_report.of("re-initialised")


@torch.no_grad()
def test_a_classifier_takes_the_last_token_that_is_no_padding(saved: Make) -> None:
    theirs, folder = saved("GPT2ForSequenceClassification", pad_token_id=7)
    ours = zoo.load(folder)
    ids = torch.tensor([[1, 2, 7, 7], [7, 7, 1, 2], [7, 1, 7, 3], [7, 7, 7, 7]])
    for mask in (None, torch.ones_like(ids), (ids != 7).long()):
        if mask is not None:
            mask[3, 0] = 1
        expected = theirs(ids, attention_mask=mask).logits
        assert (ours(ids, attention_mask=mask).logits - expected).abs().max() < 1e-12


def test_a_position_beyond_the_table_is_an_error(saved: Make) -> None:
    _, folder = saved(n_positions=12)
    model = zoo.load(folder)
    with pytest.raises(InputError, match="position 12 is beyond the table of 12"):
        model(torch.ones(1, 13, dtype=torch.long))
    with pytest.raises(InputError, match="position 12"):
        model(torch.ones(1, 1, dtype=torch.long), position_ids=torch.tensor([[12]]))
    with pytest.raises(InputError, match="token_type_ids: 31 is none of 0 to 30"):
        model(torch.ones(1, 1, dtype=torch.long), token_type_ids=torch.tensor([[31]]))


REFUSED: dict[str, Any] = {
    "add_cross_attention": True,
    "is_encoder_decoder": True,
    "tie_encoder_decoder": True,
    "position_embedding_type": "relative_key",
    "pruned_heads": {"0": [1]},
    "quantization_config": {"load_in_8bit": True},
    "auto_map": {"AutoModel": "modeling.Own"},
    "rope_theta": 10000.0,
    "num_key_value_heads": 1,
    "multi_query": True,
    "token_classification_bias": False,
}


@pytest.mark.parametrize("field", REFUSED)
def test_a_field_that_is_not_supported_is_refused_by_name(saved: Make, field: str) -> None:
    _, folder = saved()
    edit(folder, **{field: REFUSED[field]})
    with pytest.raises(ConfigError, match=field):
        zoo.load(folder)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("n_embd", "24", "n_embd: expected a whole number"),
        ("n_embd", 25, "width 25 is not divisible by 3 heads"),
        ("n_embd", 0, "width"),
        ("n_head", 0, "heads"),
        ("n_layer", 0, "depth"),
        ("n_layer", True, "n_layer"),
        ("n_inner", 0, "hidden"),
        ("n_inner", "x", "n_inner: expected a whole number"),
        ("n_positions", 0, "length"),
        ("n_positions", 21, "wpe.weight"),
        ("vocab_size", 30, "wte.weight"),
        ("activation_function", "mish", "activation_function: 'mish' is not supported"),
        ("layer_norm_epsilon", None, "layer_norm_epsilon"),
        ("attn_pdrop", 2, "dropout"),
        ("scale_attn_weights", 1, "scale_attn_weights: expected true or false"),
        ("scale_attn_by_inverse_layer_idx", "x", "scale_attn_by_inverse_layer_idx"),
        ("tie_word_embeddings", None, "tie_word_embeddings"),
        ("initializer_range", "x", "std"),
        ("architectures", ["GPT2DoubleHeadsModel"], "architectures: GPT2DoubleHeadsModel is not supported"),
        ("architectures", "GPT2Model", "architectures: expected a list"),
        ("model_type", "codegen", "'codegen' are not supported; expected .*gpt2"),
    ],
)
def test_a_broken_field_is_refused(saved: Make, field: str, value: Any, words: str) -> None:
    _, folder = saved()
    edit(folder, **{field: value})
    with pytest.raises(ZooError, match=words):
        zoo.load(folder)


def test_a_config_without_a_type_is_known_by_its_class(saved: Make) -> None:
    theirs, folder = saved()
    edit(folder, model_type=...)
    agree(zoo.load(folder), theirs)
    edit(folder, hidden_size=24, num_attention_heads=6)  # the names of all models overrule its own
    assert zoo.load(folder).config.stack.block.attention.heads == opened(folder, LANGUAGE).config.n_head == 6


@pytest.mark.parametrize(
    ("overrides", "place"),
    [
        ({"stack.block.norm": "rms-norm", "stack.final_norm": "rms-norm"}, "stack.block.norm"),
        ({"stack.block.norm.eps": 1e-3}, "stack.final_norm"),
        ({"stack.final_norm": None}, "stack.final_norm"),
        ({"stack.block.order": "post"}, "stack.block.order"),
        ({"stack.block.order": "parallel"}, "stack.block.order"),
        ({"stack.block.layer_scale": 0.1}, "stack.block.layer_scale"),
        ({"stack.block.feedforward": "gated"}, "stack.block.feedforward"),
        ({"stack.block.feedforward.bias": False}, "feedforward.bias"),
        ({"stack.block.attention.kv_heads": 1}, "kv_heads"),
        ({"stack.block.attention.scale": 3.0}, "stack.block.attention.scale"),
        ({"stack.block.attention.bias": False}, "attention.bias"),
        ({"stack.block.attention.head_size": 5}, "head_size"),
        ({"stack.block.attention.qk_norm": "layer-norm"}, "qk_norm"),
        ({"stack.block.attention.causal": False}, "causal"),
        ({"stack.block.attention.position": "rotary"}, "attention.position"),
        ({"stack.pattern": [{}, {"dropout": 0.2}]}, "stack.pattern"),
        ({"stack.pattern": [{}, {"attention": {"scale": 0.3}}]}, "stack.block.attention.scale"),
        ({"embedding.position": None}, "embedding.position"),
        ({"embedding.position": "sinusoidal"}, "embedding.position"),
        ({"embedding.norm": "layer-norm"}, "embedding.norm"),
        ({"embedding.padding": 3}, "embedding.padding"),
        ({"embedding.segments": 2, "embedding.segment_vectors": "own"}, "embedding.segments"),
        ({"head.bias": True}, "head.bias"),
        ({"head": "masked-language-model"}, "head"),
        ({"head": {"type": "classifier", "pool": "mean", "bias": False}}, "head.pool"),
        ({"head": {"type": "classifier", "pool": "last-token"}}, "head.bias"),
    ],
)
def test_what_transformers_cannot_say_is_refused_with_our_field(tmp_path: Path, overrides: dict[str, Any], place: str) -> None:
    small = {"embedding.vocabulary": 31, "stack.width": 24, "stack.depth": 2, "stack.block.attention.heads": 3}
    model = zoo.build("gpt2", {**small, **overrides})
    with pytest.raises(ConfigError, match=place):
        HuggingFaceGPT2().write_config(model.config)
    with pytest.raises(ConfigError, match="Hugging Face's"):  # the nearest of the families
        zoo.export(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()
