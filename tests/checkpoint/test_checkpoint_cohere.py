"""Hugging Face's Cohere, the plan of PaLM: loading, exporting, every field honoured or refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bert_helpers import edit, given_and_given_back
from parallel_helpers import WITHOUT_INFLUENCE, agree, check_absent, check_broken, check_field, save

import zoo
from zoo.checkpoint.huggingface_cohere import HuggingFaceCohere
from zoo.errors import ConfigError

Make = Callable[..., Any]
ROTARY = "stack.block.attention.position"


@pytest.fixture
def saved(redraw: Make, tmp_path: Path) -> Make:
    """A function that makes a model of transformers, in float64, and the folder that it saved itself into."""

    def make(end: str = "ForCausalLM", **fields: Any) -> tuple[Any, Path]:
        folder = tmp_path / f"hf-{len(list(tmp_path.iterdir()))}"
        return save(f"Cohere{end}", folder, redraw, **fields), folder

    return make


@pytest.mark.parametrize("end", ["Model", "ForCausalLM"])
def test_a_folder_of_theirs_gives_their_outputs_and_is_given_back(saved: Make, tmp_path: Path, end: str) -> None:
    theirs, folder = saved(end)
    given_and_given_back(theirs, folder, tmp_path / "out", agree)


HONOURED: dict[str, list[Any]] = {
    "vocab_size": [37],
    "hidden_size": [36],
    "intermediate_size": [50, 1],
    "logit_scale": [1.0, 0.3],
    "num_hidden_layers": [1, 3],
    "num_attention_heads": [3, 12],
    "num_key_value_heads": [1, None],
    "hidden_act": ["relu", "gelu"],
    "max_position_embeddings": [7, 64],
    "initializer_range": [0.5],
    "layer_norm_eps": [1e-3, 0.5],
    "pad_token_id": [3, None],
    "tie_word_embeddings": [False],
    "attention_bias": [True],
    "attention_dropout": [0.3],
    "use_qk_norm": [None],
    "head_dim": [6, 10],
    "rope_parameters": [
        {"rope_type": "default", "rope_theta": 100.0}, {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.5},
    ],
}  # fmt: skip


@pytest.mark.parametrize(("field", "value"), [(field, value) for field, values in HONOURED.items() for value in values])
def test_every_field_is_honoured_both_ways(saved: Make, tmp_path: Path, field: str, value: Any) -> None:
    theirs, folder = saved(**{field: value})
    ours = check_field(theirs, folder, tmp_path / "out")
    assert field != "attention_dropout" or ours.config.stack.block.attention.dropout == value


def test_no_field_of_theirs_is_untested() -> None:
    from transformers import CohereConfig

    assert set(CohereConfig().to_dict()) <= {*HONOURED, *WITHOUT_INFLUENCE, "id2label"}, "transformers has a new field"


def test_what_an_absent_field_means() -> None:
    from transformers import CohereConfig

    check_absent(HuggingFaceCohere(), CohereConfig(), "CohereForCausalLM")


@pytest.mark.parametrize(("fields", "words"), [
    ({"use_qk_norm": True}, "use_qk_norm: True is not supported"),
    ({"logit_scale": None}, "logit_scale: expected a number"),
    ({"logit_scale": 0}, "head.scale"),
    ({"num_key_value_heads": 4}, "6 heads cannot share 4"),
    ({"layer_types": []}, "layer_types"),
    ({"vocab_size": 30}, "embed_tokens"),
    ({"architectures": ["CohereForSequenceClassification"]}, "is not supported; expected"),
])  # fmt: skip
def test_a_broken_or_unknown_field_is_refused_by_name(saved: Make, fields: dict[str, Any], words: str) -> None:
    check_broken(saved()[1], fields, words)


SMALL = {
    "embedding.vocabulary": 31, "stack.width": 24, "stack.depth": 2, "stack.block.attention.heads": 6,
    "stack.block.attention.head_size": 4, "stack.block.feedforward.hidden": 40,
}  # fmt: skip


@pytest.mark.parametrize(("overrides", "place"), [
    ({"stack.block.norm.bias": True, "stack.final_norm.bias": True}, "norm.bias"),
    ({"stack.block.shared_norm": False}, "shared_norm"),
    ({"stack.block.feedforward.bias": True}, "feedforward.bias"),
    ({"stack.block.feedforward": "mlp"}, "stack.block.feedforward"),
    ({"stack.block.attention.output_bias": True}, "output_bias"),
    ({f"{ROTARY}.order": "halves"}, "position.order"),
    ({f"{ROTARY}.fraction": 0.5}, "position.fraction"),
    ({"stack.block.attention.qk_norm": "layer-norm"}, "qk_norm"),
])  # fmt: skip
def test_what_transformers_cannot_say_is_refused_with_our_field(overrides: dict[str, Any], place: str) -> None:
    with pytest.raises(ConfigError, match=place):
        HuggingFaceCohere().write_config(zoo.get_config("palm-8b", {**SMALL, **overrides}))


def test_palm_is_written_as_it_is(saved: Make) -> None:
    values = HuggingFaceCohere().write_config(zoo.get_config("palm-540b"))
    assert (values["head_dim"], values["num_key_value_heads"], values["logit_scale"]) == (256, 1, 18432**-0.5)
    _, folder = saved()
    edit(folder, rope_parameters=..., rope_theta=50.0, rope_scaling=None)
    assert zoo.load(folder).config.stack.block.attention.position.theta == 50.0
