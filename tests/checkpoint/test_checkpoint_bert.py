"""Hugging Face's BERT, RoBERTa and DistilBERT: loading, exporting, and every field of their configs honoured or refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from bert_helpers import CLASSES, agree, edit, family_of, opened

import zoo
from zoo.checkpoint.fields import ACTIVATIONS
from zoo.errors import ConfigError, ZooError

Make = Callable[..., Any]


@pytest.mark.parametrize("cls", CLASSES)
def test_a_folder_of_theirs_gives_their_outputs(saved: Make, cls: str) -> None:
    theirs, folder = saved(cls)
    ours = zoo.load(folder)
    agree(ours, theirs)
    assert ours.num_parameters() == theirs.num_parameters() and not ours.training
    assert {entry.status for entry in ours.load_report.entries} == {"renamed"}


@pytest.mark.parametrize("cls", CLASSES)
def test_an_export_is_opened_by_transformers(saved: Make, tmp_path: Path, cls: str) -> None:
    import transformers

    _theirs, folder = saved(cls, pad_token_id=3)
    ours = zoo.load(folder)
    zoo.export(ours, tmp_path / "out")
    back, info = getattr(transformers, cls).from_pretrained(tmp_path / "out", output_loading_info=True, dtype=torch.float64)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    agree(ours, back.eval())
    again = zoo.load(tmp_path / "out")
    assert again.config == ours.config
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), ours.state_dict().values()))


@pytest.mark.parametrize("cls", ["BertModel", "RobertaModel"])
def test_a_body_without_its_pooler(saved: Make, tmp_path: Path, cls: str) -> None:
    theirs, folder = saved(cls, {"add_pooling_layer": False})
    ours = zoo.load(folder)
    assert ours.config.head is None
    agree(ours, theirs)
    zoo.export(ours, tmp_path / "out")
    assert zoo.load(tmp_path / "out").config == ours.config


BOTH: dict[str, list[Any]] = {
    "vocab_size": [37, 5, 2],
    "hidden_size": [36, 33],
    "num_hidden_layers": [1, 3],
    "num_attention_heads": [1, 12, 24],
    "intermediate_size": [50, 1],
    "hidden_act": ["relu", "gelu_new", "silu"],
    "hidden_dropout_prob": [0.25, 0],
    "attention_probs_dropout_prob": [0.25, 0],
    "max_position_embeddings": [7, 3],
    "type_vocab_size": [1, 3],
    "initializer_range": [0.5],
    "layer_norm_eps": [1e-3, 0.5],
    "is_decoder": [True],
    "classifier_dropout": [None, 0.3],
    "tie_word_embeddings": [False],
    "id2label": [{0: "a", 1: "b", 2: "c"}, {0: "only"}],
}
HONOURED: dict[str, dict[str, list[Any]]] = {
    "Bert": {**BOTH, "pad_token_id": [None, 1, 30]},
    "Roberta": {**BOTH, "pad_token_id": [0, 3]},
    "DistilBert": {
        "vocab_size": [37, 5, 2],
        "dim": [36, 33],
        "n_layers": [1, 3],
        "n_heads": [1, 12, 24],
        "hidden_dim": [50, 1],
        "activation": ["relu", "gelu_new", "silu"],
        "dropout": [0.25, 0],
        "attention_dropout": [0.25, 0],
        "max_position_embeddings": [7, 1],
        "sinusoidal_pos_embds": [True],
        "initializer_range": [0.5],
        "qa_dropout": [0.3],
        "seq_classif_dropout": [0.1, 0.3],
        "pad_token_id": [None, 1, 30],
        "tie_word_embeddings": [False],
        "id2label": [{0: "a", 1: "b", 2: "c"}, {0: "only"}],
    },
}
WITHOUT_INFLUENCE = {
    "architectures", "model_type", "transformers_version", "_name_or_path", "dtype", "label2id", "problem_type", "return_dict",
    "output_hidden_states", "output_attentions", "chunk_size_feed_forward", "use_cache", "bos_token_id", "eos_token_id",
}  # fmt: skip
REFUSED_UNLESS_FALSE = {"add_cross_attention", "is_encoder_decoder"}
FIELDS = [
    (f"{family}{'ForSequenceClassification' if number % 2 or field == 'id2label' else 'ForMaskedLM'}", field, value)
    for family, fields in HONOURED.items()
    for field, values in fields.items()
    for number, value in enumerate(values)
]


@pytest.mark.parametrize(("cls", "field", "value"), FIELDS)
def test_every_field_is_honoured(saved: Make, cls: str, field: str, value: Any) -> None:
    theirs, folder = saved(cls, **{field: value})
    assert field in json.loads((folder / "config.json").read_text()) or field == "tie_word_embeddings"
    ours = zoo.load(folder)
    agree(ours, theirs, 1e-9 if value == "gelu_new" else 1e-12)  # their tanh approximations differ by 1e-10
    unused = theirs.config.vocab_size if value is False and not cls.startswith("Distil") and "Masked" in cls else 0
    assert ours.num_parameters() == theirs.num_parameters() - unused  # a second bias of their scores, which nothing reads


@pytest.mark.parametrize("family", HONOURED)
def test_no_field_of_theirs_is_untested(family: str) -> None:
    import transformers

    fields = set(getattr(transformers, f"{family}Config")().to_dict())
    known = set(HONOURED[family]) | WITHOUT_INFLUENCE | REFUSED_UNLESS_FALSE
    assert fields <= known, "transformers has a new field"


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_an_activation_is_theirs(saved: Make, name: str) -> None:
    theirs, folder = saved("BertForMaskedLM", hidden_act=name)
    agree(zoo.load(folder), theirs, 1e-9)


DROPOUTS = {
    "Bert": ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout"),
    "DistilBert": ("dropout", "attention_dropout", "qa_dropout", "seq_classif_dropout"),
}
DROPOUTS["Roberta"] = DROPOUTS["Bert"]


@pytest.mark.parametrize("cls", CLASSES)
def test_every_dropout_is_in_its_place(saved: Make, cls: str) -> None:
    """One of them at 1, which leaves nothing to chance, and train mode."""
    names = DROPOUTS[family_of(cls)]
    for chosen in names:
        theirs, folder = saved(cls, **{name: float(name == chosen) for name in names})
        agree(zoo.load(folder).train(), theirs.train())


OLD = {
    "_num_labels": 2, "architectures": ["BertModel"], "bad_words_ids": None, "bos_token_id": 5, "chunk_size_feed_forward": 0,
    "cross_attention_hidden_size": None, "decoder_start_token_id": None, "directionality": "bidi", "diversity_penalty": 0.0,
    "do_sample": False, "early_stopping": False, "encoder_no_repeat_ngram_size": 0, "eos_token_id": 6, "eos_token_ids": 0,
    "finetuning_task": None, "forced_bos_token_id": None, "gradient_checkpointing": False, "is_decoder": False,
    "is_encoder_decoder": False, "add_cross_attention": False, "language": "english", "length_penalty": 1.0, "max_length": 20,
    "min_length": 0, "name": "Bert", "no_repeat_ngram_size": 0, "num_beam_groups": 1, "num_beams": 1,
    "num_return_sequences": 1, "output_attentions": False, "output_hidden_states": False, "output_past": True,
    "output_scores": False, "pooler_fc_size": 768, "pooler_num_attention_heads": 12, "pooler_num_fc_layers": 3,
    "pooler_size_per_head": 128, "pooler_type": "first_token_transform", "prefix": None, "pruned_heads": {},
    "remove_invalid_values": False, "repetition_penalty": 1.0, "return_dict": False, "sep_token_id": None,
    "task_specific_params": None, "temperature": 1.0, "tf_legacy_loss": False, "tie_encoder_decoder": False,
    "tokenizer_class": None, "top_k": 50, "top_p": 1.0, "torch_dtype": "float32", "torchscript": False, "typical_p": 1.0,
    "use_bfloat16": False, "use_cache": True, "xla_device": None, "position_embedding_type": "absolute",
}  # fmt: skip
"""What transformers 2 to 4 wrote into every config of a text."""


@pytest.mark.parametrize("cls", ["BertModel", "RobertaModel", "DistilBertModel"])
def test_what_old_versions_wrote_into_every_config_loads(saved: Make, cls: str) -> None:
    theirs, folder = saved(cls)
    edit(folder, **{**OLD, "architectures": [cls]})
    agree(zoo.load(folder), theirs)
    agree(zoo.load(folder), opened(folder, cls))


REFUSED: dict[str, Any] = {
    "position_embedding_type": "relative_key",
    "add_cross_attention": True,
    "is_encoder_decoder": True,
    "tie_encoder_decoder": True,
    "cross_attention_hidden_size": 24,
    "pruned_heads": {"0": [1]},
    "quantization_config": {"load_in_8bit": True},
    "auto_map": {"AutoModel": "modeling.Own"},
    "embedding_size": 12,
    "num_key_value_heads": 1,
    "rope_theta": 10000.0,
    "attention_window": [4, 4],
    "head_dim": 8,
    "num_hidden_groups": 1,
    "per_layer_config": {"0": {"num_attention_heads": 1}},
    "adapters": {},
}


@pytest.mark.parametrize("cls", ["BertModel", "RobertaModel", "DistilBertModel"])
@pytest.mark.parametrize("field", REFUSED)
def test_a_field_that_is_not_supported_is_refused_by_name(saved: Make, cls: str, field: str) -> None:
    _, folder = saved(cls)
    edit(folder, **{field: REFUSED[field]})
    with pytest.raises(ConfigError, match=field):
        zoo.load(folder)


def test_what_distilbert_alone_refuses(saved: Make) -> None:
    for field, value in {"is_decoder": True, "tie_weights_": False, "hidden_act": "relu", "layer_norm_eps": 1e-5}.items():
        _, folder = saved("DistilBertModel")
        edit(folder, **{field: value})
        with pytest.raises(ConfigError, match=field):
            zoo.load(folder)


@pytest.mark.parametrize("kind", ["albert", "electra", "xlm-roberta", "camembert", "mobilebert", "deberta-v2", "modernbert"])
def test_another_family_is_refused_by_name(saved: Make, kind: str) -> None:
    _, folder = saved()
    edit(folder, model_type=kind)
    with pytest.raises(ConfigError, match=f"'{kind}' are not supported; expected .*bert"):
        zoo.load(folder)


@pytest.mark.parametrize(
    ("cls", "architecture"),
    [
        ("BertModel", "BertLMHeadModel"), ("RobertaModel", "RobertaForCausalLM"), ("BertModel", "RobertaModel"),
        ("RobertaModel", "RobertaForPreTraining"), ("DistilBertModel", "DistilBertForPreTraining"), ("BertModel", "Bert"),
    ],
)  # fmt: skip
def test_another_class_is_refused_by_name(saved: Make, cls: str, architecture: str) -> None:
    _, folder = saved(cls)
    edit(folder, architectures=[architecture])
    with pytest.raises(ConfigError, match=f"architectures: {architecture} is not supported"):
        zoo.load(folder)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("hidden_size", "24", "hidden_size: expected a whole number"),
        ("hidden_size", 24.0, "hidden_size: expected a whole number"),
        ("hidden_size", 0, "width"),
        ("hidden_size", 25, "width 25 is not divisible by 3 heads"),
        ("num_hidden_layers", True, "num_hidden_layers"),
        ("num_hidden_layers", 0, "depth"),
        ("num_attention_heads", 5, "width 24 is not divisible by 5 heads"),
        ("num_attention_heads", 0, "heads"),
        ("hidden_act", "mish", "hidden_act: 'mish' is not supported"),
        ("hidden_act", None, "hidden_act"),
        ("layer_norm_eps", "x", "layer_norm_eps"),
        ("layer_norm_eps", -1, "eps"),
        ("hidden_dropout_prob", 2, "dropout"),
        ("classifier_dropout", "x", "classifier_dropout"),
        ("initializer_range", "x", "std"),
        ("vocab_size", None, "vocab_size"),
        ("vocab_size", 30, "word_embeddings"),
        ("type_vocab_size", -1, "segments"),
        ("type_vocab_size", 0, "token_type_embeddings"),
        ("max_position_embeddings", 0, "length"),
        ("pad_token_id", -1, "padding"),
        ("pad_token_id", 31, "padding: 31 is none of the vocabulary's 0 to 30"),
        ("pad_token_id", "x", "padding"),
        ("is_decoder", 1, "is_decoder: expected true or false"),
        ("tie_word_embeddings", None, "tie_word_embeddings"),
        ("id2label", {"x": "a"}, "id2label: expected numbers as keys"),
        ("id2label", ["a", "b"], "id2label: expected names by number"),
        ("num_labels", "x", "num_labels: expected a whole number"),
        ("architectures", "BertModel", "architectures: expected a list"),
        ("architectures", [3], "architectures: 3 is not supported"),
        ("model_type", ["bert"], "not supported"),
    ],
)
def test_a_broken_field_is_refused(saved: Make, field: str, value: Any, words: str) -> None:
    _, folder = saved("BertForSequenceClassification")
    edit(folder, **{field: value})
    with pytest.raises(ZooError, match=words):
        zoo.load(folder)


@pytest.mark.parametrize(("field", "value"), [("pad_token_id", None), ("max_position_embeddings", 2), ("pad_token_id", 19)])
def test_positions_that_no_token_can_have_are_refused(saved: Make, field: str, value: Any) -> None:
    _, folder = saved("RobertaModel")
    edit(folder, **{field: value})
    with pytest.raises(ConfigError, match=r"embedding\.(count|position.length)"):
        zoo.load(folder)


def test_the_names_of_distilberts_fields_that_others_use_overrule_its_own(saved: Make) -> None:
    _, folder = saved("DistilBertModel")
    edit(folder, hidden_size=24, num_hidden_layers=2, num_attention_heads=6)
    assert zoo.load(folder).config.stack.block.attention.heads == opened(folder, "DistilBertModel").config.n_heads == 6
    agree(zoo.load(folder), opened(folder, "DistilBertModel"))


def test_answers_have_two_ends(saved: Make) -> None:
    for cls in ("BertForQuestionAnswering", "DistilBertForQuestionAnswering"):
        _, folder = saved(cls)
        edit(folder, num_labels=3)
        with pytest.raises(ConfigError, match="num_labels: a model that finds answers has 2, not 3"):
            zoo.load(folder)


def test_the_number_of_labels_overrules_their_names_as_it_does_there(saved: Make) -> None:
    """Files of 2019 have nine classes beside the names of two."""
    _, folder = saved("BertForTokenClassification", num_labels=9)
    edit(folder, num_labels=9, id2label={"0": "LABEL_0", "1": "LABEL_1"})
    ours = zoo.load(folder)
    assert ours.config.head.classes == 9 and ours.config.head.labels is None
    agree(ours, opened(folder, "BertForTokenClassification"))


@pytest.mark.parametrize("cls", ["BertForTokenClassification", "RobertaForSequenceClassification"])
def test_labels_are_read_and_written(saved: Make, tmp_path: Path, cls: str) -> None:
    _, folder = saved(cls, id2label={0: "O", 1: "é", 2: "B-PER"}, label2id={"O": 0, "é": 1, "B-PER": 2})
    ours = zoo.load(folder)
    assert ours.config.head.labels == ["O", "é", "B-PER"]
    zoo.export(ours, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["id2label"] == {"0": "O", "1": "é", "2": "B-PER"}


@pytest.mark.parametrize(
    ("overrides", "place"),
    [
        ({"stack.block.norm": "rms-norm", "embedding.norm": "rms-norm"}, "embedding.norm"),
        ({"stack.block.norm.eps": 1e-3}, "stack.block.norm"),
        ({"stack.block.order": "pre"}, "stack.block.order"),
        ({"stack.block.layer_scale": 0.1}, "stack.block.layer_scale"),
        ({"stack.block.feedforward": "gated"}, "stack.block.feedforward"),
        ({"stack.block.feedforward.bias": False}, "feedforward.bias"),
        ({"stack.block.feedforward.norm": "layer-norm"}, "feedforward.norm"),
        ({"stack.block.attention.kv_heads": 1}, "kv_heads"),
        ({"stack.block.attention.scale": 3.0}, "scale"),
        ({"stack.block.attention.bias": False}, "attention.bias"),
        ({"stack.block.attention.head_size": 5}, "head_size"),
        ({"stack.block.attention.qk_norm": "layer-norm"}, "qk_norm"),
        ({"stack.block.attention_output_dropout": 0.5}, "attention_output_dropout"),
        ({"stack.final_norm": "layer-norm"}, "stack.final_norm"),
        ({"stack.pattern": [{}, {"dropout": 0.2}]}, "stack.pattern"),
        ({"embedding.position": None}, "embedding.position"),
        ({"embedding.position": "sinusoidal"}, "embedding.position"),
        ({"embedding.norm": None}, "embedding.norm"),
        ({"embedding.norm.bias": False}, "embedding.norm.bias"),
        ({"embedding.count": "unpadded", "stack.block.order": "pre"}, "stack.block.order: Hugging Face's Roberta"),
        ({"embedding.segments": 0, "stack.block": {"attention_output_dropout": 0.0, "attention": {"causal": True}}}, "causal"),
        ({"head": "sentence-embedding"}, "head"),
        ({"head": {"type": "classifier", "classes": 3}}, "head.dense"),
        ({"head": {"type": "classifier", "dense": "tanh", "classes": 0}}, "head.classes"),
        ({"head": {"type": "classifier", "dense": "tanh", "pool": "mean"}}, "head.pool"),
        ({"head": {"type": "pooler", "size": 5}}, "head.size"),
        ({"head": {"type": "masked-language-model", "activation": "relu"}}, "head.activation"),
        ({"head": {"type": "masked-language-model", "norm": "rms-norm"}}, "head.norm"),
        ({"head": {"type": "next-sentence", "activation": "relu"}}, "head.activation"),
        ({"head": {"type": "pretraining", "sentence": {"activation": "relu"}}}, "head.sentence.activation"),
    ],
)
def test_what_transformers_cannot_say_is_refused_with_our_field(tmp_path: Path, overrides: dict[str, Any], place: str) -> None:
    small = {"embedding.vocabulary": 31, "stack.width": 24, "stack.block.attention.heads": 3}
    with pytest.raises(ConfigError, match=place):
        zoo.export(zoo.build("bert-tiny", {**small, **overrides}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_layer_without_a_counterpart_is_never_left_out(model_of: Make, tmp_path: Path) -> None:
    for library in ("transformers", "timm"):
        with pytest.raises(ConfigError, match=r"head\.dense"):
            zoo.export(model_of({"head.dense": "tanh"}), tmp_path / "out", library)
