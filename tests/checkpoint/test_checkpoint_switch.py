"""Hugging Face's Switch Transformers: loading, exporting, which layers are sparse, and every field honoured or refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from bert_helpers import edit, given_and_given_back, rewrite
from t5_helpers import SIZES, agree, inputs, save

import zoo
from zoo.checkpoint.save import family_for
from zoo.errors import ConfigError, WeightsError, ZooError

Make = Callable[..., Any]
START = "SwitchTransformers"
GENERATION, ENCODER = f"{START}ForConditionalGeneration", f"{START}EncoderModel"
SPARSE = {"num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 2, "num_experts": 3, "expert_capacity": 4}


@pytest.fixture
def saved(redraw: Make, tmp_path: Path) -> Make:
    """A function that makes a model of transformers, in float64, and the folder that it saved itself into.

    Its routers are computed in float32, and ours then too.
    """

    def make(cls: str = GENERATION, **fields: Any) -> tuple[Any, Path]:
        folder = tmp_path / f"hf-{len(list(tmp_path.iterdir()))}"
        given = {"num_decoder_layers": 2, **SPARSE, **fields}
        return save(cls, folder, redraw, **given), folder

    return make


@pytest.mark.parametrize("cls", [GENERATION, f"{START}Model", ENCODER])
@pytest.mark.parametrize("bias", [False, True])
def test_a_folder_of_theirs_gives_their_outputs_and_is_given_back(saved: Make, tmp_path: Path, cls: str, bias: bool) -> None:
    theirs, folder = saved(cls, router_bias=bias)
    given_and_given_back(theirs, folder, tmp_path / "out", agree)


HONOURED: dict[str, list[Any]] = {
    "vocab_size": [40],
    "d_model": [15],
    "d_kv": [8],
    "d_ff": [33],
    "num_layers": [3, 5],
    "num_decoder_layers": [1, 3],
    "num_heads": [1, 4],
    "relative_attention_num_buckets": [4],
    "relative_attention_max_distance": [128],
    "dropout_rate": [0.0, 0.25],
    "layer_norm_epsilon": [0.5],
    "initializer_factor": [0.5],
    "dense_act_fn": ["gelu", "gelu_new", "silu"],
    "pad_token_id": [3],
    "decoder_start_token_id": [4],
    "num_experts": [1, 2, 5],
    "expert_capacity": [1, 2, 64],
    "router_bias": [True],
    "router_jitter_noise": [0.0, 0.25],
    "router_aux_loss_coef": [0.0, 0.5],
    "router_z_loss_coef": [0.0, 0.5],
    "num_sparse_encoder_layers": [0, 2],
    "num_sparse_decoder_layers": [0, 1],
    "encoder_sparse_step": [0, 1, 2],
    "decoder_sparse_step": [0, 2],
}
WITHOUT_INFLUENCE = {
    "architectures", "model_type", "transformers_version", "_name_or_path", "dtype", "label2id", "id2label", "problem_type",
    "return_dict", "output_hidden_states", "output_attentions", "chunk_size_feed_forward", "bos_token_id", "eos_token_id",
    "is_encoder_decoder", "is_decoder", "use_cache", "add_cross_attention", "add_router_probs", "router_ignore_padding_tokens",
}  # fmt: skip


@pytest.mark.parametrize(("field", "value"), [(field, value) for field, values in HONOURED.items() for value in values])
def test_every_field_is_honoured_both_ways(saved: Make, tmp_path: Path, field: str, value: Any) -> None:
    theirs, folder = saved(**{field: value})
    ours = zoo.load(folder)
    agree(ours, theirs)
    again = zoo.load(zoo.export(ours, tmp_path / "out"))
    assert again.config == ours.config
    agree(again, theirs)
    back = opened_as_written(tmp_path / "out")
    agree(ours, back)
    if not field.startswith("num_sparse"):  # which say it together with the steps
        assert getattr(back.config, field) == value


def opened_as_written(folder: Path) -> Any:
    import transformers

    name = json.loads((folder / "config.json").read_text())["architectures"][0]
    return getattr(transformers, name).from_pretrained(folder, dtype=torch.float64).eval()


def test_no_field_of_theirs_is_untested() -> None:
    import transformers

    known = {*HONOURED, *SIZES, *WITHOUT_INFLUENCE, "router_dtype", "tie_word_embeddings"}
    assert set(transformers.SwitchTransformersConfig().to_dict()) <= known, "transformers has a new field"


def test_absent_fields_mean_what_they_mean_there() -> None:
    import transformers

    from zoo.checkpoint.huggingface_switch import HuggingFaceSwitch
    from zoo.config.resolve import validate

    values = transformers.SwitchTransformersConfig().to_dict()
    shown = {"model_type": "switch_transformers", "architectures": [f"{START}Model"]}
    absent, stated = (HuggingFaceSwitch().read_config({**each, **shown}, []) for each in ({}, values))
    assert validate(absent) == validate(stated)


@pytest.mark.parametrize(("layers", "number"), [(1, 0), (1, 1), (4, 0), (4, 1), (4, 2), (4, 3), (4, 4), (5, 2), (6, 2), (4, 9)])
def test_the_same_layers_have_experts(saved: Make, layers: int, number: int) -> None:
    """None asked for gives one all the same where there are two layers or more, as there."""
    theirs, folder = saved(num_layers=layers, num_sparse_encoder_layers=number)
    blocks = zoo.load(folder).config.encoder.stack.blocks()
    assert [block.feedforward.type == "mixture-of-experts" for block in blocks] == [
        block.is_sparse for block in theirs.encoder.block
    ]


def test_experts_overflow_in_the_order_of_each_text(saved: Make) -> None:
    """A capacity of one leaves most tokens without an expert; padding counts."""
    theirs, folder = saved(expert_capacity=1, num_experts=2)
    ours, wide = zoo.load(folder), zoo.load(folder, {"encoder.stack.pattern": None})
    agree(ours, theirs, tokens=40)
    batch = next(inputs(theirs))
    assert (ours(**batch).logits - wide(**batch).logits).abs().max() > 1e-3


@torch.no_grad()
def test_the_routers_say_the_same(saved: Make) -> None:
    from transformers.models.switch_transformers.modeling_switch_transformers import (
        load_balancing_loss_func,
        router_z_loss_func,
    )

    from zoo.model.routing import balance_loss, z_loss

    theirs, folder = saved(num_layers=4, num_sparse_encoder_layers=2)
    ours = zoo.load(folder)
    for batch in inputs(theirs):
        mine, value = (each(**batch, output_router_logits=True) for each in (ours, theirs))
        for side in ("encoder", "decoder"):
            own, other = getattr(mine, f"{side}_router_logits"), value[f"{side}_router_logits"]
            assert len(own) == len(other) == 2
            assert all(torch.equal(a, b.flatten(0, 1)) for a, b in zip(own, other))
    scores = torch.cat([each[:1] for each in value["encoder_router_logits"]], 1)  # of one text, as theirs weighs texts alike
    theirs_balance = load_balancing_loss_func(scores.softmax(-1), scores.argmax(-1))
    assert balance_loss([scores[0]], 1) == pytest.approx(float(theirs_balance), rel=1e-5)
    assert z_loss([scores[0]]) == pytest.approx(float(router_z_loss_func(scores)), rel=1e-5)


def test_losses_of_both_sides_are_added_in_training(saved: Make) -> None:
    theirs, folder = saved(router_jitter_noise=0.0, dropout_rate=0.0, router_aux_loss_coef=0.5, router_z_loss_coef=0.25)
    ours, batch = zoo.load(folder), next(inputs(theirs))
    assert ours(**batch).router_loss is None
    both = ours.train()(**batch).router_loss
    read = ours.encoder(batch["input_ids"])
    alone = ours(encoder_outputs=read.last_hidden_state, decoder_input_ids=batch["decoder_input_ids"]).router_loss
    assert both > alone > 0.5 and (both - alone - read.router_loss).abs() < 1e-5


@pytest.mark.parametrize("cls", [GENERATION, ENCODER])
def test_dropout_and_jitter_draw_the_same(saved: Make, cls: str) -> None:
    """In float32, where their router multiplies by its noise what the experts are given, too."""
    theirs, folder = saved(cls, dropout_rate=0.0, router_jitter_noise=0.25)
    ours, theirs = zoo.load(folder, dtype="float32").train(), theirs.float().train()
    for batch in inputs(theirs):
        torch.manual_seed(5)
        mine = ours(**batch).last_hidden_state
        torch.manual_seed(5)
        value = theirs(**batch, **({} if cls == ENCODER else {"output_hidden_states": True}))
        value = value.last_hidden_state if cls == ENCODER else value.decoder_hidden_states[-1]
        assert (mine - value).abs().max() < 1e-4 * value.abs().max()


def test_a_file_of_the_hub(saved: Make) -> None:
    theirs, folder = saved()
    edit(
        folder, feed_forward_proj="relu", is_gated_act=False, batch_prioritized_routing=False, router_type="tokens_masked",
        output_past=True, n_positions=512, router_dtype="float32", add_router_probs=False, task_specific_params={},
    )  # fmt: skip

    def more(tensors: dict[str, Any]) -> None:
        for name in ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"):
            tensors[name] = tensors["shared.weight"].clone()

    rewrite(folder, more)
    ours = zoo.load(folder)
    agree(ours, theirs)
    assert len(ours.load_report.of("ignored")) == 3
    edit(folder, architectures=[ENCODER])
    agree(zoo.load(folder), opened_as_written(folder))


@pytest.mark.parametrize(("field", "value", "words"), [
    ("architectures", ["SwitchTransformersTop1Router"], "SwitchTransformersTop1Router is not supported"),
    ("new_option", 3, "not supported: new_option=3"),
    ("tie_word_embeddings", False, "tie_word_embeddings: False is not supported: both stacks and the scores share"),
    ("router_dtype", "bfloat16", "router_dtype: 'bfloat16' is not supported"),
    ("router_type", "experts_masked", "router_type"),
    ("batch_prioritized_routing", True, "batch_prioritized_routing"),
    ("is_gated_act", True, "is_gated_act: True is not supported: their layers have no gates"),
    ("feed_forward_proj", "gated-gelu", "feed_forward_proj: 'gated-gelu' is not supported: dense_act_fn says otherwise"),
    ("dense_act_fn", "mish", "dense_act_fn: 'mish' is not supported"),
    ("num_experts", 0, "experts"),
    ("expert_capacity", None, "expert_capacity: expected a whole number"),
    ("router_jitter_noise", 1.5, "jitter"),
    ("encoder_sparse_step", "two", "encoder_sparse_step: expected a whole number"),
])  # fmt: skip
def test_what_is_not_supported_is_refused_by_name(saved: Make, field: str, value: Any, words: str) -> None:
    _, folder = saved()
    edit(folder, **{field: value})
    with pytest.raises(ZooError, match=words):
        zoo.load(folder)


def test_a_lost_expert_is_named(saved: Make) -> None:
    _, folder = saved()
    gone = "encoder.block.1.layer.1.mlp.experts.expert_2.wo.weight"
    rewrite(folder, lambda tensors: {name: value for name, value in tensors.items() if name != gone})
    with pytest.raises(WeightsError, match=f"missing: {gone}"):
        zoo.load(folder)


@pytest.mark.parametrize(("overrides", "place"), [
    ({"decoder.head.tied": False}, r"decoder\.head\.tied"),
    ({"decoder.head.scale": None}, r"decoder\.head\.scale"),
    ({"share_embeddings": False}, "share_embeddings"),
    ({"encoder.stack.block.attention.bias": True}, r"encoder\.stack\.block\.attention\.bias"),
    ({"encoder.stack.block.feedforward.type": "gated"}, r"feedforward"),
    ({"encoder.stack.block.feedforward.hidden": 1000}, r"feedforward"),
])  # fmt: skip
def test_what_transformers_cannot_say_is_refused_with_our_field(overrides: dict[str, Any], place: str) -> None:
    with pytest.raises(ConfigError, match=place):
        family_for(zoo.get_config("switch-base-8", overrides), "transformers")


@pytest.mark.parametrize(("change", "place"), [
    ({"top_k": 2}, "top_k"),
    ({"normalise": True}, "normalise"),
    ({"capacity": None}, "capacity"),
    ({"shared": {"type": "mlp", "hidden": 8}}, "shared"),
    ({"experts": 4}, "num_experts"),
    ({"expert": {"type": "gated", "hidden": 3072, "bias": False, "dropout": 0.1}}, "feedforward"),
    ({"expert": {"type": "mlp", "hidden": 99, "activation": "relu", "bias": False, "dropout": 0.1}}, "feedforward"),
])  # fmt: skip
def test_another_mixture_is_refused(change: dict[str, Any], place: str) -> None:
    fields = zoo.get_config("switch-base-8").plain()
    fields["encoder"]["stack"]["pattern"][1]["feedforward"].update(change)
    with pytest.raises(ConfigError, match=place):
        family_for(zoo.get_config(fields), "transformers")


def test_experts_in_other_layers_are_refused() -> None:
    fields = zoo.get_config("switch-base-8").plain()
    pattern = fields["encoder"]["stack"]["pattern"]
    fields["encoder"]["stack"]["pattern"] = pattern[::-1]
    with pytest.raises(
        ConfigError, match=r"stack\.pattern: .* has no model with experts in the layers 0, 2, 4, 6, 8, 10 alone"
    ):
        family_for(zoo.get_config(fields), "transformers")
