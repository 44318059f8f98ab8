"""The embedding of tokens and the heads for texts against a few lines of plain torch."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from zoo import registry
from zoo.config import Slot
from zoo.embedding.tokens import TokenEmbedding
from zoo.errors import InputError
from zoo.head.sentence_embedding import SentenceEmbedding
from zoo.layout import Layout
from zoo.registry import make

WIDTH, VOCABULARY = 24, 31
Make = Callable[..., Any]


def close(a: Tensor, b: Tensor) -> None:
    """Equal shapes and values within 1e-12 of the largest."""
    assert a.shape == b.shape and a.dtype == b.dtype
    assert (a - b).abs().max() <= 1e-12 * max(1.0, float(b.detach().abs().max()))


@pytest.fixture
def part(redraw: Make) -> Make:
    """A function that builds a part in float64, redrawn, in eval mode."""

    def build(kind: str, fields: dict[str, Any], **context: Any) -> Any:
        with torch.device("meta"):
            module = make(Slot(kind).validate(fields), width=WIDTH, **context)
        module = module.double().to_empty(device="cpu")
        for parameter in module.parameters():
            nn.init.zeros_(parameter)
        return redraw(module).eval()

    return build


def tokens(part: Make, **fields: Any) -> TokenEmbedding:
    """A token embedding with learned positions and a norm, unless `fields` say otherwise."""
    plain = {"position": {"type": "learned", "length": 20}, "norm": {"type": "layer-norm", "eps": 1e-12}}
    embedding: TokenEmbedding = part("embedding", {"type": "tokens", "vocabulary": VOCABULARY, **plain, **fields})
    return embedding


def words(*shape: int) -> Tensor:
    """Random tokens without those from 0 to 4."""
    return torch.randint(5, VOCABULARY, shape, generator=torch.Generator().manual_seed(2))


def normed(x: Tensor, norm: Any) -> Tensor:
    """Layer normalisation, written out."""
    mean, variance = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, correction=0)
    result: Tensor = (x - mean) / (variance + norm.eps).sqrt() * norm.weight + norm.bias
    return result


def test_tokens_segments_and_positions_are_added_and_normed(part: Make) -> None:
    embedding, ids = tokens(part, segments=3), words(2, 7)
    segments, positions = torch.randint(0, 3, (2, 7)), torch.randint(0, 20, (2, 7))
    table, place, kind = embedding.table, embedding.position.table, embedding.segment
    x, layout = embedding(ids)
    close(x, normed(table[ids] + place[:7] + kind[0], embedding.norm))
    assert layout.positions is None and layout.texts is None and layout.table is table and layout.prefix == 0
    close(embedding(ids, segments)[0], normed(table[ids] + place[:7] + kind[segments], embedding.norm))
    close(embedding(ids, None, positions)[0], normed(table[ids] + place[positions] + kind[0], embedding.norm))
    close(embedding(ids, position_ids=positions[:1])[0], normed(table[ids] + place[positions[:1]] + kind[0], embedding.norm))


def test_what_is_left_out_is_not_there(part: Make) -> None:
    ids = words(2, 7)
    bare = tokens(part, position=None, norm=None)
    assert [name for name, _ in bare.named_parameters()] == ["table"]
    close(bare(ids)[0], bare.table[ids])
    assert torch.equal(bare(ids, token_type_ids=torch.zeros_like(ids))[0], bare(ids)[0])
    with pytest.raises(InputError, match="token_type_ids: 1 is none of 0 to 0"):
        bare(ids, token_type_ids=torch.ones_like(ids))


def test_fixed_positions_of_texts(part: Make) -> None:
    ids, positions = words(2, 7), torch.randint(0, 50, (2, 7))
    embedding = tokens(part, position="sinusoidal", norm=None)
    table = embedding.position.at(Layout(), 50)
    close(embedding(ids)[0], embedding.table[ids] + table[:7])
    close(embedding(ids, position_ids=positions)[0], embedding.table[ids] + table[positions])


@pytest.mark.parametrize("padding", [0, 1, 4])
def test_positions_that_pass_over_padding(part: Make, padding: int) -> None:
    embedding, ids = tokens(part, padding=padding, count="unpadded"), words(3, 6)
    ids[0, 4:], ids[1, :2], ids[2, 2] = padding, padding, padding
    first = padding + 1
    expected = [
        [first, first + 1, first + 2, first + 3, padding, padding],
        [padding, padding, first, first + 1, first + 2, first + 3],
        [first, first + 1, padding, first + 2, first + 3, first + 4],
    ]
    x, layout = embedding(ids)
    assert layout.positions.tolist() == expected
    close(x, normed(embedding.table[ids] + embedding.position.table[torch.tensor(expected)], embedding.norm))


def test_dropout_is_of_the_normed_sum(part: Make) -> None:
    embedding, ids = tokens(part, dropout=0.5), words(1, 20)
    whole = embedding(ids)[0]
    dropped = embedding.train()(ids)[0]
    kept = dropped != 0
    assert 0.3 < kept.double().mean() < 0.7
    close(dropped[kept], 2 * whole[kept])


def test_choices_become_rows(part: Make) -> None:
    embedding, ids = tokens(part, segments=2), words(2, 3, 5)
    segments, texts = torch.randint(0, 2, (2, 3, 5)), torch.tensor([1, 1, 2, 2, 2]).expand(2, 3, 5)
    x, layout = embedding(ids, segments, None, texts)
    assert layout.choices == 3 and layout.texts.shape == (6, 5) and x.shape == (6, 5, WIDTH)
    close(x, embedding(ids.flatten(0, 1), segments.flatten(0, 1), None, texts.flatten(0, 1))[0])


def layout(table: Tensor | None = None, real: Tensor | None = None, choices: int | None = None) -> Layout:
    """What a head may need to know of the tokens."""
    return Layout(table=table, real=real, choices=choices)


def states(*shape: int) -> Tensor:
    """Random numbers in float64, of the width."""
    return torch.randn(*shape, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(4))


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": lambda x: x * 0.5 * (1 + torch.erf(x / math.sqrt(2))),
    "relu": lambda x: x.clamp(min=0),
    "tanh": torch.tanh,
}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("activation", ["gelu", "relu"])
def test_masked_language_model(part: Make, tied: bool, activation: str) -> None:
    norm = Slot("norm").validate({"type": "layer-norm", "eps": 0.25})
    fields = {"type": "masked-language-model", "tied": tied, "activation": activation}
    head, x = part("head", fields, vocabulary=VOCABULARY, norm=norm), states(2, 7)
    table = states(VOCABULARY)
    assert head.norm.eps == 0.25 and (head.weight is None) is tied
    hidden = normed(ACTIVATIONS[activation](x @ head.dense.weight.T + head.dense.bias), head.norm)
    expected = hidden @ (table if tied else head.weight).T + head.bias
    close(head(x, layout(table))["logits"], expected)
    if tied:
        with pytest.raises(InputError, match="this embedding has none"):
            head(x, layout())


def test_a_norm_of_its_own(part: Make) -> None:
    own = {"type": "masked-language-model", "norm": {"type": "rms-norm", "eps": 0.5}}
    head = part("head", own, vocabulary=VOCABULARY, norm=Slot("norm").validate({"type": "layer-norm", "eps": 0.25}))
    assert type(head.norm).__name__ == "RMSNorm" and head.norm.eps == 0.5


def first_token(head: Any, x: Tensor, activation: str = "tanh") -> Tensor:
    """The first token, the linear layer of a head, its activation."""
    result: Tensor = ACTIVATIONS[activation](x[:, 0] @ head.dense.weight.T + head.dense.bias)
    return result


@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_heads_of_the_first_token(part: Make, activation: str) -> None:
    x = states(6, 7)
    head = part("head", {"type": "next-sentence", "activation": activation})
    close(head(x, layout())["logits"], first_token(head, x, activation) @ head.output.weight.T + head.output.bias)
    head = part("head", {"type": "classifier", "classes": 5, "dense": activation, "dense_dropout": 0.9, "dropout": 0.9})
    close(head(x, layout())["logits"], first_token(head, x, activation) @ head.output.weight.T + head.output.bias)
    head = part("head", {"type": "multiple-choice", "activation": activation})
    scores = first_token(head, x, activation) @ head.output.weight.T + head.output.bias
    close(head(x, layout(choices=3))["logits"], scores.reshape(2, 3))
    close(head(x, layout(choices=2))["logits"], scores.reshape(3, 2))


def test_heads_of_every_token(part: Make) -> None:
    x = states(2, 7)
    head = part("head", {"type": "token-classifier", "classes": 5})
    close(head(x, layout())["logits"], x @ head.output.weight.T + head.output.bias)
    head = part("head", {"type": "span"})
    both = x @ head.output.weight.T + head.output.bias
    found = head(x, layout())
    close(found["start_logits"], both[..., 0])
    close(found["end_logits"], both[..., 1])
    assert all(value.is_contiguous() for value in found.values())


def test_pretraining_is_both_heads(part: Make) -> None:
    norm = Slot("norm").validate("layer-norm")
    head, x, table = part("head", {"type": "pretraining"}, vocabulary=VOCABULARY, norm=norm), states(2, 7), states(VOCABULARY)
    found = head(x, layout(table))
    assert set(found) == {"prediction_logits", "seq_relationship_logits"}
    close(found["prediction_logits"], head.language(x, layout(table))["logits"])
    close(found["seq_relationship_logits"], head.sentence(x, layout())["logits"])


def test_sentence_embedding(part: Make) -> None:
    head, x = part("head", {"type": "sentence-embedding"}), states(2, 7)
    real = torch.tensor([[1, 1, 1, 0, 0, 0, 0], [1, 0, 1, 1, 1, 1, 1]]).bool()
    assert isinstance(head, SentenceEmbedding) and not list(head.parameters())
    mean = torch.stack([x[0][real[0]].mean(0), x[1][real[1]].mean(0)])
    close(head(x, layout(real=real))["sentence_embedding"], mean / mean.norm(dim=-1, keepdim=True))
    close(head(x, layout())["sentence_embedding"], functional.normalize(x.mean(1), dim=-1))
    plain = part("head", {"type": "sentence-embedding", "normalize": False})
    close(plain(x, layout(real=real))["sentence_embedding"], mean)
    first = part("head", {"type": "sentence-embedding", "pool": "class-token"})
    close(first(x, layout(real=real))["sentence_embedding"], functional.normalize(x[:, 0], dim=-1))


@pytest.mark.parametrize("name", ["token-classifier", "span", "multiple-choice", "classifier"])
def test_dropout_stands_before_the_scores(part: Make, name: str) -> None:
    head = part("head", {"type": name, "dropout": 1.0}).train()
    scores = torch.cat([value.flatten() for value in head(states(6, 7), layout(choices=3)).values()])
    bias = head.output.bias.detach()
    assert all(any(torch.equal(score, each) for each in bias) for score in scores.detach()[:20])


@pytest.mark.parametrize("name", ["masked-language-model", "pretraining"])
def test_fresh_heads(name: str) -> None:
    with torch.device("meta"):
        head = make(Slot("head").validate(name), width=WIDTH, vocabulary=VOCABULARY, norm=None)
    head = head.to_empty(device="cpu")
    registry.part("initializer", "truncated-normal")(Slot("initializer").validate({"type": "truncated-normal", "std": 0.5}))(
        head
    )
    language = getattr(head, "language", head)
    assert not language.bias.any() and not language.dense.bias.any() and 0.4 < language.dense.weight.std() < 0.6
    assert torch.equal(language.norm.weight, torch.ones(WIDTH))
