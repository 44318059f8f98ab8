"""A checkpoint with full attention becomes a model with local attention, for longer texts; the load report says so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from bert_helpers import SIZES

import zoo
from zoo.errors import InputError, WeightsError

Make = Callable[..., Any]
TINY = {
    "embedding.vocabulary": 31, "stack.width": 24, "stack.depth": 2, "stack.block.attention.heads": 3,
    "stack.block.feedforward.hidden": 40,
}  # fmt: skip
PRESETS = {"bert-base": ("BertModel", 0), "roberta-base": ("RobertaModel", 2), "distilbert-base": ("DistilBertModel", 0)}
TEXT = 18  # tokens; the checkpoints have 20 positions, of which RoBERTa's first two are no token's


def local(name: str, folder: Path, window: int, length: int | None = None, **fields: Any) -> Any:
    """The preset with the checkpoint's sizes, a window, and a longer table of positions."""
    attention = {"heads": 3, "type": "local", "window": window, **fields}
    given = {**TINY, "stack.block.attention": attention, "embedding.position.length": length or 20}
    given.pop("stack.block.attention.heads")
    if name == "roberta-base":
        given |= {"embedding.segments": 2}
    return zoo.build(name, given, weights=folder, dtype="float64").eval()


def said(model: Any) -> dict[str, tuple[str, str]]:
    """What became of each tensor that was not plainly taken over."""
    return {each.name: (each.status, each.detail) for each in model.load_report.entries if each.status != "renamed"}


@pytest.fixture
def checkpoint(saved: Make) -> Make:
    """A function that makes a tiny folder of a preset's family."""

    def make(name: str) -> Path:
        eps = {} if name == "distilbert-base" else {"layer_norm_eps": 1e-5 if name == "roberta-base" else 1e-12}
        folder: Path = saved(PRESETS[name][0], **eps)[1]
        return folder

    return make


@pytest.mark.parametrize("name", PRESETS)
@torch.no_grad()
def test_a_full_checkpoint_becomes_a_local_one(checkpoint: Make, name: str) -> None:
    folder, first = checkpoint(name), PRESETS[name][1]
    full, model = zoo.load(folder), local(name, folder, window=50, length=50)
    assert SIZES["Bert"]["max_position_embeddings"] == 20
    assert said(model) == {
        "embedding.position.table": ("resized", f"{20 - first} positions copied again and again to {50 - first}")
    }
    assert f"embedding.position.table  {20 - first} positions copied again and again" in str(model.load_report)
    before, after = full.embedding.position.table, model.embedding.position.table
    for place in range(50):
        trained = place if place < first else (place - first) % (20 - first) + first
        assert torch.equal(after[place], before[trained])
    ids, real = torch.randint(2, 31, (2, TEXT)), torch.arange(TEXT) < torch.tensor([[TEXT], [7]])
    for mask in (None, real):
        for answer, wanted in zip(model(ids, attention_mask=mask), full(ids, attention_mask=mask)):
            assert answer is None or torch.allclose(answer, wanted, rtol=0.0, atol=1e-12)
    longer = torch.randint(2, 31, (2, 50 - first))
    assert model(longer).last_hidden_state.isfinite().all()
    with pytest.raises(InputError, match="position 49 is beyond the table of 20 learned positions"):
        full(longer)
    with pytest.raises(InputError, match="position 50 is beyond the table of 50 learned positions"):
        model(torch.cat([longer, longer[:, :1]], 1))


@pytest.mark.parametrize("name", PRESETS)
@torch.no_grad()
def test_it_sees_what_the_full_model_sees_within_a_mask(checkpoint: Make, name: str) -> None:
    folder = checkpoint(name)
    ids, place = torch.randint(2, 31, (2, TEXT)), torch.arange(TEXT)
    band = (place - place[:, None]).abs() <= 3
    found, wanted = local(name, folder, window=3, length=50)(ids), zoo.load(folder)(ids, attention_mask=band[None, None])
    assert torch.allclose(found.last_hidden_state, wanted.last_hidden_state, rtol=0.0, atol=1e-12)
    assert not torch.allclose(found.last_hidden_state, zoo.load(folder)(ids).last_hidden_state)


@torch.no_grad()
def test_copied_positions_repeat_what_was_trained(checkpoint: Make) -> None:
    """A text that repeats itself with the period of the table looks alike everywhere but near its ends."""
    model = local("bert-base", checkpoint("bert-base"), window=3, length=100)
    found = model(torch.randint(2, 31, (1, 20)).repeat(1, 5)).last_hidden_state[0]
    assert torch.allclose(found[20:40], found[40:60], rtol=0.0, atol=1e-12) and torch.allclose(
        found[40:60], found[60:80], rtol=0.0, atol=1e-12
    )
    assert not torch.allclose(found[20], found[21])


@torch.no_grad()
def test_projections_of_global_tokens_start_as_the_others(checkpoint: Make) -> None:
    """So nothing changes yet, whichever tokens are global; each is a tensor of its own."""
    folder = checkpoint("bert-base")
    model = local("bert-base", folder, window=50, global_projections=True, global_tokens=1)
    new = {name: detail for name, (status, detail) in said(model).items() if status == "re-initialised"}
    assert len(new) == 2 * 3 * 2 and set(said(model)) == set(new)
    assert new["stack.layers.1.attention.global_key.bias"] == "new here, as stack.layers.1.attention.key.bias"
    ids, chosen = torch.randint(2, 31, (2, TEXT)), torch.arange(TEXT)[None].expand(2, -1) % 5 == 0
    wanted = zoo.load(folder)(ids).last_hidden_state
    for given in ({}, {"global_attention_mask": chosen}):
        assert torch.allclose(model(ids, **given).last_hidden_state, wanted, rtol=0.0, atol=1e-12)
    part = model.stack.layers[0].attention
    part.global_query.weight.zero_()
    assert part.query.weight.any() and not torch.allclose(model(ids).last_hidden_state, wanted)


@torch.no_grad()
def test_one_layer_alone_and_a_folder_of_our_own(checkpoint: Make, tmp_path: Path) -> None:
    folder = checkpoint("bert-base")
    change = {"stack.pattern": [{}, {"attention": {"type": "local", "window": 2}}], "embedding.position.length": 30}
    model = zoo.load(folder, change)
    assert set(said(model)) == {"embedding.position.table"}
    zoo.save(model, tmp_path / "own")
    again, ids = zoo.load(tmp_path / "own"), torch.randint(2, 31, (2, 30))
    assert torch.equal(again(ids).last_hidden_state, model(ids).last_hidden_state)
    longest = zoo.load(tmp_path / "own", {"embedding.position.length": 70})
    assert said(longest)["embedding.position.table"] == ("resized", "30 positions copied again and again to 70")


def test_a_shorter_table_is_refused(checkpoint: Make) -> None:
    """Cutting positions off loses what was trained; nobody means that by a longer window."""
    with pytest.raises(WeightsError, match=r"embedding\.position\.table: \[20, 24\] cannot become \[10, 24\]"):
        local("bert-base", checkpoint("bert-base"), window=3, length=10)
