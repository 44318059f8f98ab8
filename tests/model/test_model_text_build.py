"""Models of texts: sizes, fresh weights, types, compilers, checkpointing, and saving with every head."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from text_helpers import HEADS, SMALL, answers, far, text_model, words

import zoo
from zoo.checkpoint.save import family_for
from zoo.errors import ConfigError

PUBLISHED: list[tuple[str, Any, int]] = [
    ("bert-base", "pooler", 109_482_240),
    ("bert-base", "masked-language-model", 109_514_298),
    ("bert-base", "pretraining", 110_106_428),
    ("bert-large", "pooler", 335_141_888),
    ("bert-large", "masked-language-model", 335_174_458),
    ("bert-large", "pretraining", 336_226_108),
    ("all-minilm-l6-v2", "pooler", 22_713_216),
    ("roberta-base", "pooler", 124_645_632),
    ("roberta-large", "pooler", 355_359_744),
    ("distilbert-base", None, 66_362_880),
    ("longformer-base", "pooler", 148_659_456),
    ("longformer-base", "masked-language-model", 148_711_257),
]
TURC = {"bert-tiny": 4.4, "bert-mini": 11.2, "bert-small": 28.8, "bert-medium": 41.4}
"""Millions of parameters, of the models of Turc et al. 2019."""
LONGFORMER = {"vocab_size": 50265, "is_decoder": False}
PRESETS = [
    *TURC,
    "bert-base",
    "bert-large",
    "roberta-base",
    "roberta-large",
    "distilbert-base",
    "longformer-base",
    "all-minilm-l6-v2",
]


@pytest.mark.parametrize(("name", "head", "count"), PUBLISHED)
def test_published_parameter_counts(name: str, head: Any, count: int) -> None:
    assert zoo.build(name, {"head": head}, device="meta").num_parameters() == count
    if head in ("pooler", None):  # that is what the preset itself has
        assert zoo.build(name, device="meta").num_parameters() == count


@pytest.mark.parametrize("name", TURC)
def test_the_small_berts(name: str) -> None:
    assert round(zoo.build(name, device="meta").num_parameters() / 1e6, 1) == TURC[name]


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_what_transformers_builds_of_its_config(name: str) -> None:
    import transformers

    config = zoo.get_config(name)
    _family, values = family_for(config, "transformers")
    kind = getattr(transformers, values["architectures"][0])
    with torch.device("meta"):
        theirs = kind(kind.config_class.from_dict(values))
    assert zoo.build(name, device="meta").num_parameters() == theirs.num_parameters()


@pytest.mark.parametrize(
    ("name", "others"),
    [
        ("bert-base", {}),
        ("distilbert-base", {}),
        ("roberta-base", {"max_position_embeddings": 514, "type_vocab_size": 1, "layer_norm_eps": 1e-5}),
        ("longformer-base", {"max_position_embeddings": 4098, "type_vocab_size": 1, "layer_norm_eps": 1e-5, **LONGFORMER}),
    ],
)
def test_a_base_model_has_the_published_config(name: str, others: dict[str, Any]) -> None:
    """transformers' defaults are the published configs, but for RoBERTa's and Longformer's, which are those of BERT."""
    import transformers

    _family, values = family_for(zoo.get_config(name), "transformers")
    kind = getattr(transformers, values["architectures"][0]).config_class
    expected = {**kind().to_dict(), **others, "architectures": values["architectures"]}
    assert values == {field: expected[field] for field in values}


def test_every_preset_of_texts_is_counted() -> None:
    texts = [name for name in zoo.list_models() if getattr(zoo.get_config(name).embedding, "type", None) == "tokens"]
    assert set(PRESETS) <= set(texts)


@pytest.mark.parametrize("head", HEADS)
def test_a_saved_head_loads_bit_equal(tmp_path: Path, head: str) -> None:
    model = text_model("bert-tiny", {"head": HEADS[head]})
    loaded = zoo.load(zoo.save(model, tmp_path / "m"))
    assert loaded.config == model.config
    state = model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in loaded.state_dict().items())
    ids = words(2, 3, 7) if head == "multiple-choice" else words(2, 7)
    found = answers(loaded(ids))
    assert all(torch.equal(value, found[name]) for name, value in answers(model(ids)).items())
    assert json.loads((tmp_path / "m" / "config.json").read_text())["model"] == model.config.plain()


SHAPES: dict[str, dict[str, tuple[int, ...]]] = {
    "none": {},
    "pooler": {"pooler_output": (24,)},
    "masked-language-model": {"logits": (7, 61)},
    "untied": {"logits": (7, 61)},
    "pretraining": {"prediction_logits": (7, 61), "seq_relationship_logits": (2,)},
    "next-sentence": {"logits": (2,)},
    "classifier": {"logits": (5,)},
    "token-classifier": {"logits": (7, 5)},
    "span": {"start_logits": (7,), "end_logits": (7,)},
    "sentence-embedding": {"sentence_embedding": (24,)},
}


@pytest.mark.parametrize("batch", [2, 1, 0])
@pytest.mark.parametrize("head", SHAPES)
def test_what_a_head_gives(head: str, batch: int) -> None:
    found = answers(text_model("bert-tiny", {"head": HEADS[head]})(words(batch, 7)))
    assert {name: tuple(value.shape) for name, value in found.items()} == {
        name: (batch, *shape) for name, shape in {"last_hidden_state": (7, 24), **SHAPES[head]}.items()
    }


@pytest.mark.parametrize("batch", [2, 1, 0])
def test_choices(batch: int) -> None:
    """The choices of a question are scored like texts of their own."""
    model, ids = text_model("bert-tiny", {"head": "multiple-choice"}), words(batch, 3, 7)
    mask = torch.ones(batch, 3, 7).long()
    mask[:, 1, 4:] = 0
    segments, positions = (torch.arange(7) > 3).long().expand(batch, 3, 7), torch.arange(7).flip(0).expand(batch, 3, 7)
    options = {"token_type_ids": segments, "position_ids": positions, "attention_mask": mask}
    found = model(ids, **options).logits
    assert found.shape == (batch, 3)
    for choice in range(3):
        alone = model(ids[:, choice : choice + 1], **{name: value[:, choice : choice + 1] for name, value in options.items()})
        assert far(alone.logits, found[:, choice : choice + 1]) < 1e-12
    for wrong in (mask.transpose(0, 1), mask[:, :2]) if batch == 2 else ():
        with pytest.raises(zoo.errors.InputError, match="attention_mask: expected shape"):
            model(ids, attention_mask=wrong)
    with pytest.raises(zoo.errors.InputError, match="needs texts of shape"):
        model(ids[:, 0])


@pytest.mark.parametrize("kind", [torch.int32, torch.int16, torch.uint8])
def test_ids_of_other_whole_types(kind: torch.dtype) -> None:
    model, ids = text_model("roberta-base"), words(2, 7)
    given = {"token_type_ids": ids * 0, "position_ids": torch.arange(7).expand(2, -1), "sequence_ids": ids > 30}
    for names in ((), ("token_type_ids", "position_ids"), ("sequence_ids",)):
        chosen = {name: given[name] for name in names}
        found = model(ids.to(kind), **{name: value.to(kind) for name, value in chosen.items()})
        expected = model(ids, **{name: value.long() for name, value in chosen.items()})
        assert far(found.last_hidden_state, expected.last_hidden_state) == 0


CALLS: dict[str, dict[str, Any]] = {
    "plain": {},
    "padded": {"attention_mask": torch.tensor([[1, 1, 1, 1, 0, 0, 0], [0, 1, 1, 1, 1, 0, 1], [0] * 7])},
    "scores": {"attention_mask": torch.zeros(3, 1, 7, 7, dtype=torch.float64).masked_fill(torch.eye(7) > 0, -torch.inf)},
    "packed": {"sequence_ids": torch.tensor([[1, 1, 2, 2, 2, 2, 3]] * 3)},
    "segments": {"token_type_ids": torch.zeros(3, 7).long(), "position_ids": torch.arange(7).flip(0).expand(3, -1)},
    "states": {
        "output_hidden_states": True,
        "output_attentions": True,
        "attention_mask": torch.tensor([[1] * 5 + [0] * 2] * 3),
    },
}  # fmt: skip


def equal(found: Any, expected: Any) -> None:
    """Two outputs agree, states and attention weights too."""
    for a, b in zip(found, expected, strict=True):
        assert (a is None) is (b is None)
        for one, other in zip(a or (), b or ()) if isinstance(b, tuple) else ((a, b),):
            assert one is None or far(one, other) < 1e-12


@pytest.mark.parametrize("call", ["padded", "packed", "states"])
def test_compile(call: str) -> None:
    model, ids = text_model("roberta-base", {"head": "masked-language-model", "stack.depth": 1}), words(3, 7)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    equal(compiled(ids, **CALLS[call]), model(ids, **CALLS[call]))


def test_compile_for_any_size() -> None:
    """One graph for all numbers of texts and tokens."""
    model = text_model("bert-tiny", {"stack.depth": 2})
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager", dynamic=True)
    with torch._dynamo.config.patch(error_on_recompile=True), torch.no_grad():
        for batch, tokens in ((3, 7), (5, 11), (2, 30)):
            mask = torch.ones(batch, tokens).long()
            mask[1, tokens // 2 :] = 0
            equal(compiled(words(batch, tokens), attention_mask=mask), model(words(batch, tokens), attention_mask=mask))


@pytest.mark.parametrize("call", CALLS)
def test_export_of_torch(call: str) -> None:
    model, ids = text_model("roberta-base", {"head": "masked-language-model"}), words(3, 7)
    program = torch.export.export(model, (ids,), CALLS[call])
    equal(program.module()(ids, **CALLS[call]), model(ids, **CALLS[call]))


def test_export_of_torch_for_any_number_of_texts() -> None:
    model, ids = text_model("roberta-base"), words(3, 7)
    sizes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("tokens", min=2, max=30)}
    inputs = {"input_ids": ids, "attention_mask": torch.ones(3, 7).long()}
    wrapped = Named(model)
    program = torch.export.export(wrapped, tuple(inputs.values()), dynamic_shapes=(sizes, sizes))
    other, mask = words(5, 11), torch.ones(5, 11).long()
    mask[2, 6:] = 0
    assert far(program.module()(other, mask), wrapped(other, mask)) < 1e-12


class Named(torch.nn.Module):
    """A model with a signature of its own, as an export for any size wants it."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        states: torch.Tensor = self.model(ids, attention_mask=mask).last_hidden_state
        return states


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("overrides", [{}, {"stack.block.dropout": 0.3, "stack.block.attention.dropout": 0.3}], ids=str)
def test_gradient_checkpointing(call: str, overrides: dict[str, Any]) -> None:
    still = {"stack.block.attention.dropout": 0.0, "head": "pretraining"}
    model, ids = text_model("bert-tiny", {**still, **overrides}).train(), words(3, 7)

    def gradients() -> dict[str, torch.Tensor]:
        torch.manual_seed(5)
        model.zero_grad()
        output = model(ids, **CALLS[call])
        (output.prediction_logits.square().sum() + output.seq_relationship_logits.square().sum()).backward()
        return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}

    plain, calls = gradients(), []
    handle = model.stack.layers[0].register_forward_pre_hook(lambda *_: calls.append(1))
    model.gradient_checkpointing()
    again = gradients()
    handle.remove()
    assert len(calls) == 2, "the block was not computed again"
    assert all((plain[name] - again[name]).abs().max() <= 1e-12 * plain[name].abs().max().clamp(min=1) for name in plain)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_gradients_of_single_examples() -> None:
    """torch.func sees no value, so that nothing may look at any."""
    from torch.func import functional_call, grad, vmap

    model, ids, mask = text_model("roberta-base"), words(3, 7), CALLS["padded"]["attention_mask"]
    parameters = dict(model.named_parameters())

    def loss(parameters: Any, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        output = functional_call(model, parameters, (ids[None],), {"attention_mask": mask[None]})
        value: torch.Tensor = output.pooler_output.square().sum()
        return value

    found = vmap(grad(loss), (None, 0, 0))(parameters, ids, mask)
    model.zero_grad()
    model(ids, attention_mask=mask).pooler_output.square().sum().backward()
    assert all(far(value.sum(0), parameters[name].grad) < 1e-12 for name, value in found.items())


@pytest.mark.parametrize("name", PRESETS)
def test_nothing_is_computed_on_the_meta_device(name: str) -> None:
    model = zoo.build(name, device="meta")
    output = model(torch.zeros(2, 9, dtype=torch.long, device="meta"), attention_mask=torch.ones(2, 9, device="meta"))
    assert output.last_hidden_state.is_meta and output.last_hidden_state.shape == (2, 9, model.config.stack.width)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("call", ["padded", "scores", "states"])
def test_smaller_types(dtype: torch.dtype, call: str) -> None:
    exact = text_model("bert-tiny", {"head": "masked-language-model"})
    model, ids = copy.deepcopy(exact).to(dtype), words(3, 7)
    output, expected = model(ids, **CALLS[call]), exact(ids, **CALLS[call])
    states = (*(output.hidden_states or ()), *(output.attentions or ()), output.logits, output.last_hidden_state)
    assert {value.dtype for value in states} == {dtype}
    bound = {torch.bfloat16: 0.1, torch.float16: 0.02, torch.float32: 1e-5}[dtype]
    assert (output.logits.double() - expected.logits).norm() < bound * expected.logits.norm()


@pytest.mark.parametrize("call", ["padded", "scores", "states", "packed"])
def test_autocast(call: str) -> None:
    model, ids = text_model("bert-tiny", {"head": "masked-language-model"}, dtype="float32"), words(3, 7)
    expected = model(ids, **CALLS[call]).logits
    for training in (False, True):
        with torch.autocast("cpu", torch.bfloat16):
            found = model.train(training)(ids, **CALLS[call]).logits
        assert found.dtype == torch.bfloat16
        assert training or (found.float() - expected).norm() < 0.1 * expected.norm()


def test_fresh_weights() -> None:
    model = zoo.build(
        "roberta-base", {**SMALL, "stack.width": 96, "embedding.vocabulary": 3000, "head": "masked-language-model"}
    )
    for name, parameter in model.named_parameters():
        value = parameter.detach()
        if "norm" in name or name.endswith("bias"):
            assert torch.equal(value, torch.full_like(value, float("norm" in name and name.endswith("weight")))), name
        else:
            assert abs(value.std() / 0.02 - 1) < 0.1 or name == "embedding.segment", name
    assert not model.embedding.table[1].any() and not model.embedding.position.table[1].any()
    assert model.embedding.table[0].any() and model.embedding.position.table[0].any()
    model = zoo.build("bert-tiny", SMALL)
    assert not model.embedding.table[0].any() and model.embedding.position.table[0].any()


@pytest.mark.parametrize(
    ("overrides", "words_of_it"),
    [
        ({"stack.block.attention.heads": 5}, "width 24 is not divisible by 5 heads"),
        ({"embedding.padding": 61}, "embedding.padding: 61 is none of the vocabulary's 0 to 60"),
        ({"embedding.count": "unpadded", "embedding.padding": None}, "needs to know which token is `padding`"),
        ({"embedding.count": "unpadded", "embedding.padding": 39}, "first token of a text has position 40 already"),
        ({"embedding.position.length": None}, "a table for texts needs a length"),
        ({"embedding.vocabulary": 0}, "embedding.vocabulary"),
        ({"embedding.segments": -1}, "embedding.segments"),
        ({"head": {"type": "token-classifier", "classes": 2, "labels": ["a"]}}, "1 names for 2 classes"),
        ({"head": {"type": "pretraining", "language": "span"}}, "expected a head of type 'masked-language-model'"),
        ({"head": {"type": "masked-language-model", "activation": "gelo"}}, "did you mean 'gelu'"),
    ],
)
def test_a_config_that_is_none(overrides: dict[str, Any], words_of_it: str) -> None:
    with pytest.raises(ConfigError, match=words_of_it):
        zoo.get_config("bert-tiny", {**SMALL, **overrides})


def test_a_head_that_scores_tokens_needs_tokens() -> None:
    with pytest.raises(ConfigError, match="needs an embedding of type 'tokens'"):
        zoo.get_config("vit-tiny", {"head": "masked-language-model"})
