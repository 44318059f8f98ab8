"""Around the choice of tokens: padding, rows that end, chunks, caches, seeds, streams, models in training."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from generation_helpers import CHANGES, LENGTH, decoder, prompts

from zoo.generation import sampling
from zoo.generation.steps import Steps

ENDS = list(range(30))


def slowly(model: Any, texts: dict[str, torch.Tensor], new: int) -> torch.Tensor:
    """Greedy decoding of each row alone, with a whole forward pass for each token."""
    rows = []
    for ids, mask in zip(texts["input_ids"], texts["attention_mask"].bool()):
        row = ids[mask][None]
        for _ in range(new):
            row = torch.cat([row, model(row).logits[:, -1].argmax(-1, keepdim=True)], 1)
        rows.append(row[0, -new:])
    return torch.stack(rows)


@pytest.mark.parametrize("chunk", [None, 1, 4], ids=str)
@pytest.mark.parametrize("kind", CHANGES)
def test_each_row_of_a_padded_batch_is_as_alone(kind: str, chunk: int | None) -> None:
    model, texts = decoder(CHANGES[kind]), prompts(5, 9, seed=4)
    found = model.generate(**texts, max_new_tokens=7, prefill_chunk_size=chunk)
    assert torch.equal(found[:, :9], texts["input_ids"])
    with torch.no_grad():
        assert torch.equal(found[:, 9:], slowly(model, texts, 7))


@pytest.mark.parametrize("padding", ["compute", "skip"])
def test_positions_counted_behind_the_padding_token(padding: str) -> None:
    """Where positions of real tokens begin behind that of padding, they do so in generation too."""
    changes = {"embedding.padding": 1, "embedding.count": "unpadded", "stack.padding": padding}
    model, texts = decoder(changes), prompts(4, 6, seed=8, padding=1)
    texts["input_ids"][texts["attention_mask"].bool() & (texts["input_ids"] == 1)] = 2
    found = model.generate(**texts, max_new_tokens=5)
    expected = slowly(model, texts, 5)
    same = (expected != 1).cumprod(1).bool()  # once the model says padding itself, it is none for us and is for a forward pass
    assert bool(same[:, 0].any()) and torch.equal(found[:, 6:][same], expected[same])


@pytest.mark.parametrize("beams", [1, 3])
def test_rows_that_have_ended_cost_nothing_and_change_nothing(monkeypatch: pytest.MonkeyPatch, beams: int) -> None:
    model, texts, read = decoder(), prompts(8, 9, seed=5), []
    options = {"max_new_tokens": 14, "num_beams": beams, "eos_token_id": ENDS[::2], "pad_token_id": 60}
    call = Steps.call
    monkeypatch.setattr(Steps, "call", lambda self, ids, **named: (read.append(len(ids)), call(self, ids, **named))[1])
    found = model.generate(**texts, **options, repetition_penalty=1.3)
    dropped = sum(read)
    assert read[0] == 8 and read[1] <= 8 * beams and read[-1] < 8 * beams
    read.clear()
    whole = model.generate(**texts, **options, repetition_penalty=1.3, return_dict_in_generate=True)
    assert torch.equal(found, whole.sequences)
    assert set(read[1:]) == {8 * beams} and dropped < sum(read)


def test_seldom_looking_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a device that is waited for, several tokens come before anybody looks whether all texts have ended."""
    model = decoder()

    def all_of_them() -> list[torch.Tensor]:
        found = []
        for seed in range(8):
            for ends in (ENDS, ENDS[::3]):
                options = {"max_new_tokens": 13, "eos_token_id": ends, "pad_token_id": 60}
                found.append(model.generate(**prompts(3, 5, seed=seed), **options))
                kept = {"return_dict_in_generate": True, "output_scores": True}
                output = model.generate(**prompts(3, 5, seed=seed), **options, **kept)
                assert len(output.scores) == output.sequences.shape[1] - 5 and torch.equal(output.sequences, found[-1])
        return found

    expected = all_of_them()
    assert len({each.shape[1] for each in expected}) > 3

    monkeypatch.setattr(sampling, "ALWAYS", ())
    for patience in (2, 5, 16):
        monkeypatch.setattr(sampling, "PATIENCE", patience)
        assert all(torch.equal(one, other) for one, other in zip(all_of_them(), expected))


def test_a_cache_is_continued() -> None:
    model, texts = decoder(), prompts(3, 8, seed=6)
    first = model.generate(**texts, max_new_tokens=4, return_dict_in_generate=True)
    assert len(first.past_key_values) == 8 + 4 - 1
    more = torch.randint(1, 60, (3, 2), generator=torch.Generator().manual_seed(1))
    longer = torch.cat([first.sequences, more], 1)
    mask = torch.nn.functional.pad(texts["attention_mask"], (0, 6), value=1)
    expected = model.generate(longer, mask, max_new_tokens=5)
    several = model.generate(longer, mask, max_new_tokens=5, num_beams=2, past_key_values=first.past_key_values)
    assert torch.equal(several, model.generate(longer, mask, max_new_tokens=5, num_beams=2))
    assert torch.equal(model.generate(longer, mask, max_new_tokens=5, past_key_values=first.past_key_values), expected)
    assert len(first.past_key_values) == 8 + 6 + 5 - 1


def test_memory_of_the_cache_is_taken_once() -> None:
    model = decoder()
    output = model.generate(prompts(1, 5)["input_ids"], max_new_tokens=50, return_dict_in_generate=True)
    kept = output.past_key_values
    assert kept.memory == 2 * 2 * 24 * 8 * max(64, 5 + 50 - 1)  # two layers, keys and values, width 24, 8 bytes


def test_memory_of_a_window_stays_the_same() -> None:
    changes = {**CHANGES["rotary"], "stack.block.attention": {"type": "local", "window": 40}}
    model, texts = decoder(changes), prompts(2, 9)
    kept = {}
    for new in (60, 120, 480):
        output = model.generate(**texts, max_new_tokens=new, return_dict_in_generate=True)
        kept[new] = output.past_key_values.memory
        assert len(output.past_key_values) == 9 + new - 1
    assert kept[120] == kept[480] <= 2 * kept[60]
    short = decoder({**CHANGES["rotary"], "stack.block.attention": {"type": "local", "window": 4}})
    with torch.no_grad():
        assert torch.equal(short.generate(**texts, max_new_tokens=20)[:, 9:], slowly(short, texts, 20))


def test_seeds() -> None:
    """Row r draws by seed + r, whatever other rows there are, when they end, and how long the text may become."""
    model, texts = decoder(scale=0.1), prompts(4, 7, seed=9)
    options = {"do_sample": True, "eos_token_id": ENDS[:8], "pad_token_id": 60, "top_k": 0}
    found = model.generate(**texts, **options, max_new_tokens=9, seed=40)
    assert torch.equal(found, model.generate(**texts, **options, max_new_tokens=9, seed=[40, 41, 42, 43]))
    assert not torch.equal(found, model.generate(**texts, **options, max_new_tokens=9, seed=41))
    shorter = model.generate(**texts, **options, max_new_tokens=4, seed=40)
    assert torch.equal(shorter, found[:, : shorter.shape[1]])
    for row in range(4):
        ids = texts["input_ids"][row][texts["attention_mask"][row].bool()][None]
        alone = model.generate(ids, **options, max_new_tokens=9, seed=40 + row)[0, ids.shape[1] :]
        assert torch.equal(alone, found[row, 7 : 7 + len(alone)]) and bool((found[row, 7 + len(alone) :] == 60).all())
    several = model.generate(texts["input_ids"][:1], **options, max_new_tokens=9, seed=40, num_return_sequences=3)
    assert torch.equal(several[0], found[0, : several.shape[1]]) and len({tuple(row) for row in several.tolist()}) == 3
    torch.manual_seed(3)
    one = model.generate(**texts, **options, max_new_tokens=9)
    torch.manual_seed(3)
    assert torch.equal(one, model.generate(**texts, **options, max_new_tokens=9))
    assert not torch.equal(one, model.generate(**texts, **options, max_new_tokens=9))


def test_streamed_tokens_are_those_returned() -> None:
    model, texts = decoder(), prompts(6, 9, seed=5)
    options = {"max_new_tokens": 12, "eos_token_id": ENDS[::2], "pad_token_id": 60}
    steps: list[torch.Tensor] = []
    found = model.generate(**texts, **options, streamer=steps.append)
    assert torch.equal(torch.stack(steps, 1), found[:, 9:])
    assert torch.equal(found, model.generate(**texts, **options))

    class Streamer:
        def __init__(self) -> None:
            self.got: list[torch.Tensor] = []
            self.ended = 0

        def put(self, tokens: torch.Tensor) -> None:
            self.got.append(tokens)

        def end(self) -> None:
            self.ended += 1

    streamer = Streamer()
    assert torch.equal(found, model.generate(**texts, **options, streamer=streamer))
    assert torch.equal(streamer.got[0], texts["input_ids"]) and torch.equal(torch.stack(streamer.got[1:], 1), found[:, 9:])
    assert streamer.ended == 1


def test_a_model_in_training_decodes_as_in_evaluation() -> None:
    model, texts = decoder({"stack.block.dropout": 0.5}), prompts(2, 6)
    expected = model.generate(**texts, max_new_tokens=6)
    model.train()
    model.stack.layers[0].eval()
    before = [module.training for module in model.modules()]
    assert torch.equal(model.generate(**texts, max_new_tokens=6), expected)
    assert [module.training for module in model.modules()] == before
    with pytest.raises(ValueError, match="stop here"):
        model.generate(**texts, max_new_tokens=6, streamer=stop_here)
    assert [module.training for module in model.modules()] == before


def stop_here(tokens: torch.Tensor) -> None:
    raise ValueError("stop here")


def test_what_is_returned_may_be_trained_on() -> None:
    model, texts = decoder(), prompts(2, 6)
    found = model.generate(**texts, max_new_tokens=4)
    model(found).logits.sum().backward()
    assert model.embedding.table.grad is not None
    output = model.generate(**texts, max_new_tokens=4, return_dict_in_generate=True)
    assert model(found[:, :1], past_key_values=output.past_key_values).logits.requires_grad


def test_own_processors() -> None:
    model, texts, seen = decoder(), prompts(2, 6), []

    def only_seven(tokens: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        seen.append(tokens.shape[1])
        return torch.full_like(scores, -torch.inf).index_fill(1, torch.tensor([7]), 0.0)

    found = model.generate(**texts, max_new_tokens=3, logits_processor=[only_seven])
    assert bool((found[:, 6:] == 7).all()) and seen == [6, 7, 8]
    drawn = model.generate(**texts, max_new_tokens=3, logits_processor=[only_seven], do_sample=True, temperature=3.0)
    assert torch.equal(drawn, found)


def test_as_many_tokens_as_there_are_positions() -> None:
    model = decoder()
    ids = prompts(1, 10)["input_ids"]
    assert model.generate(ids, max_new_tokens=LENGTH - 10 + 1).shape[1] == LENGTH + 1  # the last one is not read again
    assert model.generate(ids).shape[1] == 10 + 20 and model.generate(ids, max_length=13).shape[1] == 13
    assert model.generate(torch.ones(1, LENGTH - 3, dtype=torch.long)).shape[1] == LENGTH + 1
    assert model.generate(torch.ones(1, LENGTH, dtype=torch.int32), max_new_tokens=1).shape[1] == LENGTH + 1


def test_rotary_models_run_past_their_trained_length() -> None:
    changes = {**CHANGES["rotary"], "stack.block.attention.position": {"type": "rotary", "length": 8}}
    model, texts = decoder(changes), prompts(2, 6)
    with pytest.warns(UserWarning, match="8"):
        found = model.generate(**texts, max_new_tokens=9)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        assert torch.equal(found[:, 6:], slowly(model, texts, 9))


def test_padding_is_read_off_the_tokens() -> None:
    """As in transformers: where padding is named, ends no text, and there is no mask."""
    model, texts = decoder(), prompts(3, 7, padding=60)
    expected = model.generate(**texts, max_new_tokens=5)
    assert torch.equal(model.generate(texts["input_ids"], max_new_tokens=5, pad_token_id=60), expected)
    ended = model.generate(texts["input_ids"], max_new_tokens=5, pad_token_id=60, eos_token_id=60)
    assert not torch.equal(ended, expected)


def test_a_compiled_model_writes_the_same_and_is_compiled_few_times() -> None:
    """However long the text becomes."""
    model, texts = decoder(CHANGES["learned"]), prompts(2, 6, seed=3)
    wanted = model.generate(**texts, max_new_tokens=20)
    graphs = []

    def note(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    model.compile(backend=note, dynamic=True)
    assert torch.equal(model.generate(**texts, max_new_tokens=20), wanted)
    before = len(graphs)
    assert before > 0
    model.generate(**texts, max_new_tokens=20)
    assert len(graphs) == before < 20
