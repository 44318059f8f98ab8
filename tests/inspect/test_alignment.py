"""Where a decoder looks while it writes: the model's own weights, letters of several bytes, a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import zoo
from tests.training.pair_helpers import MODEL
from zoo.data.tokenizer import ByteTokenizer
from zoo.errors import InputError
from zoo.inspect.alignment import alignment, by_letter, letter_maps, letters
from zoo.inspect.picture import over_tokens

TOKENIZER = ByteTokenizer()


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    return zoo.build(MODEL)


def inputs() -> tuple[dict[str, Any], torch.Tensor]:
    ids = torch.tensor([TOKENIZER.encode("5. März", 32), [*TOKENIZER.encode("5. Mai", 32), 256, 256]])
    return {"input_ids": ids, "attention_mask": (ids != 256).long()}, torch.tensor([[*b"03-05", 258], [*b"05-05", 258]])


def test_maps_are_those_of_the_model(model: Any) -> None:
    read, written = inputs()
    expected = model(**read, labels=written, output_attentions=True)
    seen = alignment(model.train(), read, written)
    assert model.training and model.decoder.training  # as they were
    assert seen.layers == (0, 1) and seen.heads == (0, 1)
    assert all(torch.equal(*both) for both in zip(seen.maps, expected.cross_attentions, strict=True))
    assert not seen.maps[0].requires_grad and seen.maps[0].shape == (2, 2, 6, 10)
    assert torch.allclose(seen.maps[0].sum(-1), torch.ones(2, 2, 6)) and float(seen.maps[0][1, ..., -2:].abs().max()) == 0
    last = alignment(model, read, written, layers=[-1], heads=[1])
    assert (last.layers, last.heads) == ((1,), (1,)) and torch.equal(last.maps[0], expected.cross_attentions[1][:, [1]])
    mean = alignment(model, read, written, layers=[0], heads="mean")
    assert mean.heads is None and torch.equal(mean.maps[0], expected.cross_attentions[0].mean(1, keepdim=True))


def test_any_stack_of_a_model_can_be_looked_at(model: Any) -> None:
    read, written = inputs()
    given = {**read, "decoder_input_ids": model.eval().shifted(written)}
    expected = model(**given, output_attentions=True)
    for at, theirs in (
        ("encoder.stack.**.attention", expected.encoder_attentions),
        ("decoder.stack.**.attention", expected.decoder_attentions),
        ("decoder.stack.**.cross_attention", expected.cross_attentions),
    ):
        seen = zoo.attend(model, given, at=at)
        assert seen.maps and all(torch.equal(*both) for both in zip(seen.maps, theirs, strict=True)), at
    assert zoo.attend(model, given, at="encoder.stack.**.attention", rollout=True).rollout.shape == (2, 10, 10)
    with pytest.raises(InputError, match=r"no attention at 'stack.*'; `at` can be one of encoder.stack.\*\*.attention, decod"):
        zoo.attend(model, given)


def test_what_is_not_there(model: Any) -> None:
    read, written = inputs()
    with pytest.raises(InputError, match="layers: 2 is none of 0 to 1"):
        alignment(model, read, written, layers=[2])
    with pytest.raises(InputError, match="heads: 5 is none of 0 to 1"):
        alignment(model, read, written, heads=[5])
    with pytest.raises(InputError, match="expected numbers or 'mean', got 'all'"):
        alignment(model, read, written, heads="all")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="needs a model of type 'encoder-decoder', and this is 'transformer'"):
        alignment(zoo.build("gpt-mini"), read, written)


def test_letters_of_several_bytes() -> None:
    ids = TOKENIZER.encode("a ä漢🙂", 32)
    found = letters(TOKENIZER, ids)
    assert found == [
        ("<start>", [0]), ("a", [1]), (" ", [2]), ("ä", [3, 4]), ("漢", [5, 6, 7]), ("🙂", [8, 9, 10, 11]), ("<end>", [12]),
    ]  # fmt: skip
    broken = letters(TOKENIZER, [0xE6, 0xBC, 97, 0xC3])  # what a model may write
    assert [place for _, places in broken for place in places] == [0, 1, 2, 3]
    assert TOKENIZER.token(97) == "a" and TOKENIZER.token(256) == "<padding>" and TOKENIZER.token(259) == "<mask>"


def test_maps_by_letter() -> None:
    weights = torch.rand(4, 5).softmax(-1)
    found = by_letter(weights, [[0], [1, 2], [3]], [[0, 1], [2], [3, 4]])
    assert found.shape == (3, 3) and torch.allclose(found.sum(1), torch.ones(3))
    assert found[0, 0] == weights[0, 0] + weights[0, 1] and found[1, 1] == (weights[1, 2] + weights[2, 2]) / 2


def test_a_picture(model: Any, tmp_path: Path) -> None:
    read, written = inputs()
    seen = alignment(model, read, written, heads="mean")
    columns, rows = (letters(TOKENIZER, ids[0].tolist()) for ids in (read["input_ids"], written))
    maps = letter_maps(seen, [places for _, places in rows], [places for _, places in columns])
    assert [title for title, _ in maps] == ["layer 0, mean of heads", "layer 1, mean of heads"]
    assert all(weights.shape == (6, 9) and torch.allclose(weights.sum(1), torch.ones(6)) for _, weights in maps)
    names = {"keys": [name for name, _ in columns], "named": ("written", "read")}
    path = over_tokens(maps, [name for name, _ in rows], tmp_path / "seen.svg", **names)
    assert path.stat().st_size > 10_000
