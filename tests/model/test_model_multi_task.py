"""One stack for many tasks: each path against a transformer of its own, images in front of texts, decoding, errors, files."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

import zoo
from tests.model.multi_task_helpers import MODEL, inputs_of, model_of, transformer_of
from zoo.errors import ConfigError, InputError, UnknownNameError, ZooError

EXACT = {"rtol": 0.0, "atol": 1e-12}


def test_each_path_is_the_transformer_of_its_parts() -> None:
    model, given = model_of(), inputs_of()
    seen = model(given["pixel_values"], task="recognise", output_hidden_states=True, output_attentions=True)
    alone = transformer_of(model, "recognise")(given["pixel_values"], output_hidden_states=True, output_attentions=True)
    assert torch.equal(seen.logits, alone.logits)
    for ours, theirs in zip((*seen.hidden_states, *seen.attentions), (*alone.hidden_states, *alone.attentions)):
        assert torch.equal(ours, theirs)
    mask = torch.ones_like(given["input_ids"])
    mask[0, :3] = 0
    single = transformer_of(model, "write")
    assert single.config.stack.blocks()[1].attention.causal
    for more in ({}, {"attention_mask": mask}, {"attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp(min=0)}):
        read = model(given["input_ids"], task="write", **more)
        torch.testing.assert_close(read.logits, single(given["input_ids"], **more).logits, **EXACT)
    routed = model(given["input_ids"], task="write", output_router_logits=True)
    assert len(routed.router_logits) == 1 and routed.router_logits[0].shape == (21, 4)


def test_packed_texts_do_not_see_each_other() -> None:
    model, ids = model_of(), inputs_of()["input_ids"]
    packed = model(torch.cat([ids[:1], ids[1:2]], 1), sequence_ids=torch.tensor([[0] * 7 + [1] * 7]), task="write").logits
    torch.testing.assert_close(packed[:, 7:], model(ids[1:2], task="write").logits, **EXACT)


def test_only_the_path_of_the_task_is_run_and_learns() -> None:
    model, given = model_of().train(), inputs_of()
    run: list[str] = []
    for name, module in model.named_modules():
        module.register_forward_hook(lambda module, inputs, output, name=name: run.append(name))
    output = model(given["pixel_values"], task="recognise")
    (output.logits.square().sum() + output.router_loss).backward()
    assert "embeddings.image" in run and "heads.digit" in run and "stack.layers.1.feedforward" in run
    assert not [name for name in run if name.startswith(("embeddings.text", "heads.words"))]
    idle = {name.split(".")[1] for name, each in model.named_parameters() if each.grad is None}
    assert idle == {"text"}


def test_an_image_in_front_of_a_text_is_seen_by_it_and_sees_itself() -> None:
    model, given = model_of(), inputs_of()
    before = model(**given, task="caption", output_attentions=True)
    assert before.logits.shape == (3, 7, 260) and before.last_hidden_state.shape == (3, 4 + 7, 16)
    for weights in before.attentions:
        assert bool((weights[:, :, :4, :4] > 0).all()) and bool((weights[:, :, :4, 4:] == 0).all())
        assert bool((weights[:, :, 4:, :4] > 0).all()) and bool((weights[:, :, 4:, 4:].triu(1) == 0).all())
    other = {name: value.clone() for name, value in given.items()}
    other["input_ids"][:, 4] += 1
    changed = model(**other, task="caption")
    torch.testing.assert_close(changed.last_hidden_state[:, :8], before.last_hidden_state[:, :8], **EXACT)
    assert not torch.allclose(changed.logits[:, 4:], before.logits[:, 4:])
    other["pixel_values"][:, :, -1, -1] += 1.0
    assert not torch.allclose(model(**other, task="caption").last_hidden_state[:, 0], before.last_hidden_state[:, 0])


def test_padding_of_captions_changes_nothing() -> None:
    model, given = model_of(), inputs_of()
    mask = torch.ones(3, 7, dtype=torch.long)
    mask[1, 5:] = 0
    whole = model(**given, attention_mask=mask, task="caption").logits
    short = model(given["input_ids"][1:2, :5], pixel_values=given["pixel_values"][1:2], task="caption").logits
    torch.testing.assert_close(whole[1:2, :5], short, **EXACT)
    asked = torch.zeros(3, 7, dtype=torch.bool)
    asked[1, 2:4] = True
    torch.testing.assert_close(
        model(**given, task="caption", score_mask=asked, attention_mask=mask).logits, short[0, 2:4], **EXACT
    )


@pytest.mark.parametrize("task", ["write", "caption"])
def test_cached_decoding_is_full_decoding(task: str) -> None:
    model, given = model_of(), inputs_of()
    image = {"pixel_values": given["pixel_values"]} if task == "caption" else {}
    ids = given["input_ids"]
    mask = torch.ones_like(ids)
    mask[0, :2] = 0
    places = (mask.cumsum(1) - 1).clamp(min=0)
    whole = model(ids, **image, attention_mask=mask, position_ids=places, task=task).logits
    cache = model.new_cache(task=task)
    first = model(ids[:, :4], **image, attention_mask=mask[:, :4], position_ids=places[:, :4], past_key_values=cache, task=task)
    then = model(ids[:, 4:6], position_ids=places[:, 4:6], past_key_values=cache, task=task)
    last = model(ids[:, 6:], attention_mask=mask, position_ids=places[:, 6:], past_key_values=cache, task=task)
    stepped = torch.cat([each.logits for each in (first, then, last)], 1)
    torch.testing.assert_close(stepped[mask.bool()], whole[mask.bool()], **EXACT)


def test_captions_are_written_greedily_from_their_image() -> None:
    model, given = model_of(), inputs_of(tokens=2)
    written = model.generate(given["input_ids"], pixel_values=given["pixel_values"], task="caption", max_new_tokens=6)
    ids = given["input_ids"]
    for _ in range(6):
        scores = model(ids, pixel_values=given["pixel_values"], task="caption").logits[:, -1]
        ids = torch.cat([ids, scores.argmax(-1, keepdim=True)], 1)
    assert torch.equal(written, ids)
    swapped = model.generate(given["input_ids"], pixel_values=-given["pixel_values"], task="caption", max_new_tokens=6)
    assert not torch.equal(swapped, written)
    padded = torch.nn.functional.pad(given["input_ids"], (2, 0))
    mask = torch.nn.functional.pad(torch.ones_like(given["input_ids"]), (2, 0))
    again = model.generate(padded, mask, pixel_values=given["pixel_values"], task="caption", max_new_tokens=6)
    assert torch.equal(again[:, 2:], written)
    beams = model.generate(
        given["input_ids"], pixel_values=given["pixel_values"], task="caption", max_new_tokens=4, num_beams=3
    )
    assert beams.shape == (3, 6)
    text = model.generate(given["input_ids"], task="write", max_new_tokens=5)
    assert torch.equal(text, transformer_of(model, "write").generate(given["input_ids"], max_new_tokens=5))


def test_a_given_prefix_sees_itself() -> None:
    model, ids = model_of(), inputs_of()["input_ids"]
    lengths = torch.tensor([4, 1, 7])
    maps = model(ids, task="write", prefix_lengths=lengths, output_attentions=True).attentions
    for row, length in enumerate(lengths.tolist()):
        assert bool((maps[0][row, :, :length, :length] > 0).all())
        assert bool((maps[0][row, :, :, length:].triu(1 - length) == 0).all())
    plain = model(ids, task="write").logits
    torch.testing.assert_close(model(ids, task="write", prefix_lengths=torch.ones(3, dtype=torch.long)).logits, plain, **EXACT)
    longer = torch.cat([ids, plain[:, -1:].argmax(-1)], 1)
    written = model.generate(ids, task="write", prefix_lengths=torch.full((3,), 7), max_new_tokens=2)
    first = model(ids, task="write", prefix_lengths=torch.full((3,), 7)).logits[:, -1].argmax(-1)
    longer = torch.cat([ids, first[:, None]], 1)
    second = model(longer, task="write", prefix_lengths=torch.full((3,), 7)).logits[:, -1].argmax(-1)
    assert torch.equal(written, torch.cat([longer, second[:, None]], 1))


def test_gradient_checkpointing_gives_the_same_gradients() -> None:
    found = []
    for again in (False, True):
        model, given = model_of().train(), inputs_of()
        model.gradient_checkpointing(again)
        output = model(**given, task="caption")
        (output.logits.logsumexp(-1).mean() + output.router_loss).backward()
        found.append({name: each.grad for name, each in model.named_parameters() if each.grad is not None})
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, **EXACT)


def test_a_saved_model_is_the_same_model(tmp_path: Path) -> None:
    model, given = model_of(), inputs_of()
    zoo.save(model, tmp_path / "saved")
    loaded = zoo.load(tmp_path / "saved")
    assert loaded.config == model.config and loaded.config.plain()["tasks"]["caption"]["from"] == ["image", "text"]
    for task, own in (("recognise", ["pixel_values"]), ("write", ["input_ids"]), ("caption", ["pixel_values", "input_ids"])):
        some = {name: given[name] for name in own}
        assert torch.equal(loaded(**some, task=task).logits, model(**some, task=task).logits)
    copied = copy.deepcopy(model)
    with torch.no_grad():
        copied.stack.final_norm.weight.zero_()
    assert not torch.equal(copied(given["input_ids"], task="write").logits, model(given["input_ids"], task="write").logits)
    assert copied.train().route("write").training and not copied.eval().route("write").training


def test_counts() -> None:
    model = model_of()
    expert = 3 * 16 * 16 + 2 * 16 + 16
    assert model.num_parameters() - model.num_parameters(active=True) == 2 * expert
    parts = [model.embeddings["text"], model.stack, model.heads["words"]]
    assert model.route("write").num_parameters() == sum(each.numel() for part in parts for each in part.parameters())
    assert zoo.cost(MODEL).parameters == model.num_parameters()
    assert zoo.cost(model).flops == zoo.cost(transformer_of(model, "recognise")).flops
    names = set(dict(model.named_parameters()))
    assert {"embeddings.text.table", "heads.digit.output.weight", "stack.layers.0.attention.query.weight"} <= names


def test_compiled_paths_give_the_same() -> None:
    model, given = model_of(), inputs_of()
    expected = model(**given, task="caption").logits
    model.route("write").compile(fullgraph=True, backend="eager")
    text = model(given["input_ids"], task="write").logits
    model.compile(backend="eager")
    torch.testing.assert_close(model(**given, task="caption").logits, expected, **EXACT)
    torch.testing.assert_close(text, transformer_of(model, "write")(given["input_ids"]).logits, **EXACT)


def test_an_added_task_keeps_what_the_others_say(tmp_path: Path) -> None:
    model, given = model_of(), inputs_of()
    zoo.save(model, tmp_path / "saved")
    more = {
        "embeddings.large": {"type": "patch", "image_size": 16, "patch_size": 8, "channels": 1, "class_token": False},
        "heads.parity": {"type": "classifier", "classes": 2, "pool": "mean"},
        "tasks.parity": {"from": "large", "to": "parity"},
    }
    for grown in (zoo.load(tmp_path / "saved", more), zoo.build(MODEL, more, weights=tmp_path / "saved").eval()):
        fresh = {entry.name.rpartition(".")[0] for entry in grown.load_report.of("re-initialised")}
        assert fresh == {"embeddings.large", "embeddings.large.position", "heads.parity.output"}
        assert torch.equal(grown(**given, task="caption").logits, model(**given, task="caption").logits)
        assert grown(torch.randn(2, 1, 16, 16).double(), task="parity").logits.shape == (2, 2)


def call(**named: Any) -> Any:
    return model_of()(**named)


IMAGE, IDS = inputs_of()["pixel_values"], inputs_of()["input_ids"]


@pytest.mark.parametrize(
    ("named", "kind", "words"),
    [
        ({"pixel_values": IMAGE}, InputError, "task is missing: say which path to run, one of recognise, caption, write"),
        ({"task": "recognize", "pixel_values": IMAGE}, UnknownNameError, "unknown task 'recognize'; did you mean 'recognise'?"),
        (
            {"task": "recognise", "input_ids": IDS},
            InputError,
            "input_ids: task 'recognise' reads pixel_values; input_ids is for caption, write",
        ),
        ({"task": "caption", "input_ids": IDS}, InputError, "pixel_values is missing: task 'caption' reads"),
        ({"task": "caption", "pixel_values": IMAGE}, InputError, "input_ids is missing: task 'caption' reads"),
        ({"task": "caption", "pixel_values": IMAGE[:2], "input_ids": IDS}, InputError, "3 input_ids, 2 pixel_values"),
        ({"task": "caption", "pixel_values": IMAGE, "input_ids": IDS, "sequence_ids": IDS}, InputError, "sequence_ids: task"),
        (
            {"task": "caption", "pixel_values": IMAGE, "input_ids": IDS, "attention_mask": torch.ones(3, 11)},
            InputError,
            "attention_mask: expected shape (3, 7) (batch, tokens), got (3, 11)",
        ),
        ({"task": "write", "input_ids": IDS, "atention_mask": IDS}, InputError, "did you mean 'attention_mask'?"),
        (
            {"task": "write", "input_ids": IDS, "prefix_lengths": IDS},
            InputError,
            "prefix_lengths: expected whole numbers of sha",
        ),
        ({"task": "recognise", "pixel_values": IMAGE, "prefix_lengths": IDS}, InputError, "task 'recognise' is not causal"),
        (
            {"task": "recognise", "pixel_values": IMAGE, "use_cache": True},
            InputError,
            "use_cache: task 'recognise' is not caus",
        ),
    ],
)
def test_calls_that_do_not_fit(named: dict[str, Any], kind: type[ZooError], words: str) -> None:
    with pytest.raises(kind) as caught:
        call(**named)
    assert words in str(caught.value)


def test_a_cache_is_of_one_task() -> None:
    model, given = model_of(), inputs_of()
    cache = model(given["input_ids"], task="write", use_cache=True).past_key_values
    with pytest.raises(InputError, match="they are not of task 'caption'"):
        model(**given, task="caption", past_key_values=cache)
    with pytest.raises(InputError, match="read at once"):
        model.generate(given["input_ids"], pixel_values=given["pixel_values"], task="caption", prefill_chunk_size=2)
    with pytest.raises(InputError, match="generate: a model of texts is needed"):
        model.route("recognise").generate(given["pixel_values"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"tasks.more": {"from": "imag", "to": "digit"}},
            "tasks.more.from: there is no embedding 'imag'; did you mean 'image'?",
        ),
        ({"tasks.more": {"from": "image", "to": "digits"}}, "tasks.more.to: there is no head 'digits'; did you mean 'digit'?"),
        (
            {"tasks.more": {"form": "image", "to": "digit"}},
            "tasks.more.form: unknown field of RouteConfig; did you mean 'from'?",
        ),
        ({"tasks.write.causal": False}, "tasks.write.causal: a token that sees those behind it sees what it is to guess"),
        ({"stack.block.attention.causal": True}, "attention.causal: the tasks say who sees later tokens"),
        ({"stack.padding": "skip"}, "stack.padding: task 'caption' is causal"),
        ({"stack.block.attention": {"type": "local", "window": 2}}, "task 'caption' is causal, which needs attention of type"),
        ({"heads.spare": {"type": "classifier", "classes": 2, "pool": "mean"}}, "heads.spare: no task leads through this"),
        ({"heads.digit.pool": "class-token"}, "heads.digit.pool: the embedding has no class token"),
        ({"heads.digit.clases": 3}, "heads.digit.clases: unknown field of head 'classifier'; did you mean 'classes'?"),
        ({"tasks.see": {"from": "image", "to": "words"}}, "heads.words: a head that scores tokens needs an embedding of type"),
        ({"tasks.caption.from": ["text", "text"]}, "tasks.caption.from: expected one embedding or several different ones"),
        (
            {"embeddings.other": {"type": "tokens", "vocabulary": 99}, "tasks.more": {"from": "other", "to": "words"}},
            "tasks.more.to: head 'words' scores the 260 tokens of task 'caption', and this one has 99",
        ),
        (
            {
                "embeddings.other": {"type": "tokens", "vocabulary": 260},
                "tasks.more": {"from": ["other", "text"], "to": "words"},
            },
            "tasks.more.from: two of these read input_ids",
        ),
    ],
)
def test_configs_that_do_not_fit(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        zoo.build(MODEL, change)
    assert words in str(caught.value)


def test_overrides_reach_parts_by_name() -> None:
    model = model_of({"heads.digit.classes": 3, "embeddings.text": {"type": "tokens", "padding": 256}})
    assert model.config.heads["digit"].classes == 3 and model.config.heads["digit"].pool.type == "mean"
    assert model.config.embeddings["text"].padding == 256 and model.config.embeddings["text"].vocabulary == 260
    other = model_of({"heads.digit": {"type": "projection", "pool": "mean"}})
    assert other(inputs_of()["pixel_values"], task="recognise").image_embeds.shape == (3, 16)
