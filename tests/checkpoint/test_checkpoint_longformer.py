"""Hugging Face's Longformer: loading, exporting, and every field of its config honoured or refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from bert_helpers import OUTPUTS, edit, rewrite
from torch.nn import functional

import zoo
from zoo.errors import ConfigError, ZooError

Make = Callable[..., Any]
SIZES = {
    "vocab_size": 31, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 40,
    "max_position_embeddings": 40, "attention_window": 4,
}  # fmt: skip
CLASSES = [f"Longformer{end}" for end in ("Model", "ForMaskedLM", "ForSequenceClassification", "ForTokenClassification")]


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their softmax in float64, which they round to float32."""
    softmax = functional.softmax

    def unrounded(x: torch.Tensor, dim: int, dtype: Any = None) -> torch.Tensor:
        return softmax(x, dim=dim, dtype=None if x.dtype == torch.float64 else dtype)

    monkeypatch.setattr(functional, "softmax", unrounded)


@pytest.fixture
def saved(redraw: Make, tmp_path: Path, exact: None) -> Make:
    """A function that makes a model of theirs, in float64, and the folder that it saves itself into."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()

    def make(cls: str = "LongformerModel", options: dict[str, Any] | None = None, **fields: Any) -> tuple[Any, Path]:
        kind = getattr(transformers, cls)
        torch.manual_seed(0)
        model = redraw(kind(kind.config_class(**{**SIZES, **fields}), **(options or {})).double()).eval()
        folder = tmp_path / f"hf-{len(list(tmp_path.iterdir()))}"
        model.save_pretrained(folder)
        return model, folder

    return make


def inputs(theirs: Any) -> Iterator[dict[str, Any]]:
    """Texts of any length, padded in every way, with global tokens anywhere, segments and positions of the caller's."""
    config, generator = theirs.config, torch.Generator().manual_seed(3)
    most = config.max_position_embeddings - config.pad_token_id - 1
    words = torch.tensor([word for word in range(config.vocab_size) if word != config.pad_token_id])

    def drawn(tokens: int) -> torch.Tensor:
        return words[torch.randint(0, len(words), (3, tokens), generator=generator)]

    for tokens in sorted({min(each, most) for each in (1, 3, 8, 13, 30)}):
        ids, place = drawn(tokens), torch.arange(tokens)
        end = torch.tensor([[tokens], [max(tokens // 2, 1)], [1]])
        holes, few = (torch.rand(3, tokens, generator=generator) < share for share in (0.6, 0.1))
        holes[:, 0], few[:, 0] = True, True
        some, many = (torch.rand(3, tokens, generator=generator) < share for share in (0.1, 0.7))
        some[-1] = False
        for real in (None, place < end, place >= tokens - end, holes, few):
            given = {"input_ids": ids}
            if real is not None:
                given = {"input_ids": ids.masked_fill(~real, config.pad_token_id), "attention_mask": real.long()}
            yield given
            for chosen in (some, many, place == 0, place < 0, place >= 0):
                yield {**given, "global_attention_mask": chosen.expand(3, -1).long()}
        yield {"input_ids": ids.masked_fill(~holes, config.pad_token_id)}
        positions = torch.randint(0, config.max_position_embeddings, (3, tokens), generator=generator)
        yield {"input_ids": ids, "position_ids": positions, "global_attention_mask": some.long()}
        kinds = torch.randint(0, config.type_vocab_size, (3, tokens), generator=generator)
        yield {"input_ids": ids, "token_type_ids": kinds}


@torch.no_grad()
def agree(ours: Any, theirs: Any, bound: float = 1e-12, every: int = 1) -> None:
    """Every output that both have is equal within `bound` of the largest, on every kind of text (or on every fourth, ...)."""
    for batch in list(inputs(theirs))[::every]:
        own, other = ours(**batch)._asdict(), theirs(**batch, return_dict=True)
        answers = [name for name in OUTPUTS if other.get(name) is not None]
        assert answers
        for name in answers:
            assert own[name].shape == other[name].shape and own[name].isfinite().all()
            assert (own[name] - other[name]).abs().max() <= bound * max(1.0, float(other[name].abs().max())), name


@pytest.mark.parametrize("cls", CLASSES)
def test_a_folder_of_theirs_gives_their_outputs(saved: Make, cls: str) -> None:
    theirs, folder = saved(cls)
    ours = zoo.load(folder)
    agree(ours, theirs, every=1 if cls == "LongformerModel" else 4)
    assert ours.num_parameters() == theirs.num_parameters() and not ours.training
    assert {entry.status for entry in ours.load_report.entries} == {"renamed"}
    assert ours.config.stack.block.attention.global_tokens == (cls == "LongformerForSequenceClassification")


@pytest.mark.parametrize("cls", CLASSES)
def test_an_export_is_opened_by_transformers(saved: Make, tmp_path: Path, cls: str) -> None:
    import transformers

    _theirs, folder = saved(cls, pad_token_id=3, attention_window=[4, 8])
    ours = zoo.load(folder)
    zoo.export(ours, tmp_path / "out")
    back, info = getattr(transformers, cls).from_pretrained(tmp_path / "out", output_loading_info=True, dtype=torch.float64)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    agree(ours, back.eval(), every=5)
    again = zoo.load(tmp_path / "out")
    assert again.config == ours.config
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), ours.state_dict().values()))


@torch.no_grad()
def test_what_they_round_differs_by_no_more_than_that(saved: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs, folder = saved()
    monkeypatch.undo()
    ids = torch.randint(2, 31, (2, 13))
    difference = (zoo.load(folder)(ids).last_hidden_state - theirs(ids).last_hidden_state).abs().max()
    assert 1e-10 < difference < 1e-6


def test_a_body_without_its_pooler(saved: Make, tmp_path: Path) -> None:
    theirs, folder = saved(options={"add_pooling_layer": False})
    ours = zoo.load(folder)
    assert ours.config.head is None
    agree(ours, theirs, every=5)
    zoo.export(ours, tmp_path / "out")
    assert zoo.load(tmp_path / "out").config == ours.config


@torch.no_grad()
def test_a_classifier_sees_all_from_its_first_token_unless_a_call_says_otherwise(saved: Make) -> None:
    theirs, folder = saved("LongformerForSequenceClassification", num_labels=3)
    ours, ids = zoo.load(folder), torch.randint(2, 31, (2, 20))
    first = torch.zeros(2, 20, dtype=torch.long)
    first[:, 0] = 1
    by_itself, said = ours(ids).logits, ours(ids, global_attention_mask=first).logits
    none = ours(ids, global_attention_mask=0 * first).logits
    assert torch.allclose(by_itself, said, rtol=0.0, atol=1e-12) and not torch.allclose(by_itself, none)
    assert torch.allclose(theirs(ids).logits, by_itself, rtol=0.0, atol=1e-12)
    body = zoo.load(folder, {"head": None})  # as there, the body alone leaves it to the call
    assert body.config.stack.block.attention.global_tokens == 0
    for given in ({}, {"global_attention_mask": first}):
        wanted = theirs.longformer(ids, **given).last_hidden_state
        assert torch.allclose(body(ids, **given).last_hidden_state, wanted, rtol=0.0, atol=1e-12)


@torch.no_grad()
def test_it_computes_what_full_attention_does_where_a_text_is_short(saved: Make) -> None:
    _, folder = saved(attention_window=16)
    ours, full = zoo.load(folder), zoo.load(folder, {"stack.block.attention.type": "full"})
    ids = torch.randint(2, 31, (2, 9))
    assert torch.allclose(ours(ids).last_hidden_state, full(ids).last_hidden_state, rtol=0.0, atol=1e-12)
    assert not torch.allclose(*(model(torch.arange(2, 31)[None]).last_hidden_state for model in (ours, full)))


HONOURED: dict[str, list[Any]] = {
    "attention_window": [8, [4, 4], [8, 4], [4, 12], 32],
    "vocab_size": [37, 5, 3],
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
    "pad_token_id": [0, 3],
    "tie_word_embeddings": [False],
    "id2label": [{0: "a", 1: "b", 2: "c"}, {0: "only"}],
}
WITHOUT_INFLUENCE = {
    "architectures", "model_type", "transformers_version", "_name_or_path", "dtype", "label2id", "problem_type", "return_dict",
    "output_hidden_states", "output_attentions", "chunk_size_feed_forward", "bos_token_id", "eos_token_id", "sep_token_id",
    "onnx_export",
}  # fmt: skip
FIELDS = [
    ("LongformerForSequenceClassification" if number % 2 or field == "id2label" else "LongformerForMaskedLM", field, value)
    for field, values in HONOURED.items()
    for number, value in enumerate(values)
]


@pytest.mark.parametrize(("cls", "field", "value"), FIELDS)
def test_every_field_is_honoured(saved: Make, cls: str, field: str, value: Any) -> None:
    theirs, folder = saved(cls, **{field: value})
    assert field in json.loads((folder / "config.json").read_text()) or field == "tie_word_embeddings"
    ours = zoo.load(folder)
    agree(ours, theirs, 1e-9 if value == "gelu_new" else 1e-12, every=7)  # their tanh approximations differ by 1e-10
    unused = theirs.config.vocab_size if value is False else 0
    assert ours.num_parameters() == theirs.num_parameters() - unused  # a second bias of their scores, which nothing reads


def test_no_field_of_theirs_is_untested() -> None:
    import transformers

    fields = set(transformers.LongformerConfig().to_dict())
    assert fields <= set(HONOURED) | WITHOUT_INFLUENCE | {"is_encoder_decoder"}, "transformers has a new field"


@pytest.mark.parametrize("name", ["attention_window", "vocab_size", "num_hidden_layers", "type_vocab_size", "layer_norm_eps"])
def test_an_absent_field_is_their_default(saved: Make, name: str) -> None:
    import transformers

    default = getattr(transformers.LongformerConfig(), name)
    assert name != "attention_window" or default == 512
    _, folder = saved(**({name: default} if name != "vocab_size" else {"vocab_size": default, "hidden_size": 3}))
    edit(folder, **{name: ...})
    with_default = zoo.load(folder).config
    edit(folder, **{name: default})
    assert zoo.load(folder).config == with_default


@pytest.mark.parametrize("cls", CLASSES)
def test_every_dropout_is_in_its_place(saved: Make, cls: str) -> None:
    """One of them at 1, which leaves nothing to chance, and train mode."""
    names = ("hidden_dropout_prob", "attention_probs_dropout_prob")
    for chosen in names:
        theirs, folder = saved(cls, **{name: float(name == chosen) for name in names})
        agree(zoo.load(folder).train(), theirs.train(), every=7)


PUBLISHED = {
    "attention_mode": "longformer", "attention_window": [4, 4], "bos_token_id": 0, "eos_token_id": 2, "sep_token_id": 2,
    "gradient_checkpointing": False, "ignore_attention_mask": False, "transformers_version": ...,
}  # fmt: skip
"""What the file of longformer-base-4096 says beside the sizes."""


def test_the_published_file_loads(saved: Make) -> None:
    theirs, folder = saved("LongformerForMaskedLM")
    edit(folder, **PUBLISHED, tie_word_embeddings=...)
    agree(zoo.load(folder), theirs, every=5)
    edit(folder, architectures=...)
    assert zoo.load(folder, {"head": None}).config.head is None


def test_files_without_the_prefix_and_with_a_table_of_positions(saved: Make) -> None:
    theirs, folder = saved()
    rewrite(folder, lambda tensors: tensors.update({"embeddings.position_ids": torch.arange(40)[None]}))
    agree(zoo.load(folder), theirs, every=9)
    rewrite(folder, lambda tensors: {f"longformer.{name}": value for name, value in tensors.items()})
    agree(zoo.load(folder), theirs, every=9)


def test_a_missing_projection_is_an_error(saved: Make) -> None:
    _, folder = saved()
    rewrite(folder, lambda tensors: tensors.pop("encoder.layer.1.attention.self.key_global.weight"))
    with pytest.raises(ZooError, match=r"missing: longformer\.encoder\.layer\.1\.attention\.self\.key_global\.weight"):
        zoo.load(folder)


REFUSED: dict[str, Any] = {
    "is_decoder": True,
    "attention_mode": "n2",
    "ignore_attention_mask": True,
    "attention_dilation": [1, 2],
    "autoregressive": True,
    "position_embedding_type": "relative_key",
    "add_cross_attention": True,
    "is_encoder_decoder": True,
    "tie_encoder_decoder": True,
    "pruned_heads": {"0": [1]},
    "quantization_config": {"load_in_8bit": True},
    "auto_map": {"AutoModel": "modeling.Own"},
    "embedding_size": 12,
    "num_key_value_heads": 1,
    "rope_theta": 10000.0,
}


@pytest.mark.parametrize("field", REFUSED)
def test_a_field_that_is_not_supported_is_refused_by_name(saved: Make, field: str) -> None:
    _, folder = saved()
    edit(folder, **{field: REFUSED[field]})
    with pytest.raises(ConfigError, match=field):
        zoo.load(folder)


@pytest.mark.parametrize("end", ["ForQuestionAnswering", "ForMultipleChoice"])
def test_models_that_look_for_separators_are_refused_by_name(saved: Make, end: str) -> None:
    """They choose global tokens by what the tokens are."""
    _, folder = saved()
    edit(folder, architectures=[f"Longformer{end}"])
    with pytest.raises(ConfigError, match=f"architectures: Longformer{end} is not supported; expected one of LongformerModel"):
        zoo.load(folder)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("attention_window", 5, "attention_window: expected an even number above 0"),
        ("attention_window", 0, "attention_window"),
        ("attention_window", -4, "attention_window"),
        ("attention_window", "4", "attention_window"),
        ("attention_window", True, "attention_window"),
        ("attention_window", None, "attention_window"),
        ("attention_window", [4], r"attention_window: .* or one for each layer, got \[4\]"),
        ("attention_window", [4, 5], "attention_window"),
        ("attention_window", [4, [4]], "attention_window"),
        ("hidden_size", "24", "hidden_size: expected a whole number"),
        ("hidden_size", 25, "width 25 is not divisible by 3 heads"),
        ("num_hidden_layers", "x", "num_hidden_layers: expected a whole number"),
        ("num_hidden_layers", 0, "attention_window: .* or one for each layer"),
        ("hidden_act", "mish", "hidden_act: 'mish' is not supported"),
        ("vocab_size", 30, "word_embeddings"),
        ("max_position_embeddings", 2, r"embedding\.(count|position.length)"),
        ("pad_token_id", None, r"embedding\.count"),
        ("type_vocab_size", 0, "token_type_embeddings"),
        ("architectures", ["LongformerForPreTraining"], "architectures: LongformerForPreTraining is not supported"),
    ],
)
def test_a_broken_field_is_refused(saved: Make, field: str, value: Any, words: str) -> None:
    _, folder = saved()
    edit(folder, **{field: value})
    with pytest.raises(ZooError, match=words):
        zoo.load(folder)


SMALL = {
    "embedding.vocabulary": 31, "embedding.position.length": 40, "stack.width": 24, "stack.depth": 2,
    "stack.block.attention": {"heads": 3, "window": 4}, "stack.block.feedforward.hidden": 40,
}  # fmt: skip


@pytest.mark.parametrize(
    ("overrides", "place"),
    [
        ({"stack.block.attention.causal": True}, "stack.block.attention.causal"),
        ({"stack.block.attention.global_projections": False}, "stack.block.attention.global_projections"),
        ({"stack.block.attention.padding": "compute"}, "stack.block.attention.padding"),
        ({"stack.block.attention.global_tokens": 1}, "stack.block.attention.global_tokens"),
        ({"stack.block.attention.window": 1}, "stack.block.attention.window: .* windows of 2 and more"),
        ({"stack.pattern": [{}, {"attention": {"window": 3}}]}, "stack.pattern"),
        ({"stack.pattern": [{}, {"attention": {"type": "full"}}]}, "stack.pattern"),
        ({"stack.pattern": [{}, {"dropout": 0.7}]}, "stack.pattern"),
        ({"stack.block.attention.kv_heads": 1}, "kv_heads"),
        ({"stack.block.attention.scale": 3.0}, "scale"),
        ({"stack.block.attention.qk_norm": "layer-norm"}, "qk_norm"),
        ({"embedding.count": "all"}, "embedding.count|Bert"),
        ({"head": "span"}, "head"),
        ({"head": {"type": "classifier", "dense": "tanh", "classes": 3}}, "stack.block.attention.global_tokens"),
        ({"head": {"type": "pooler", "activation": "relu"}}, "head.activation"),
    ],
    ids=str,
)
def test_what_transformers_cannot_say_is_refused_with_our_field(tmp_path: Path, overrides: dict[str, Any], place: str) -> None:
    model = zoo.build(zoo.get_config("longformer-base", SMALL), overrides)
    with pytest.raises(ConfigError, match=place):
        zoo.export(model, tmp_path / "out", "transformers")
    assert not (tmp_path / "out").exists()
