"""Texts written from a source equal those of transformers, token for token; the encoder runs once."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch

import zoo
from zoo.errors import InputError
from zoo.generation.output import GenerateOutput

transformers = pytest.importorskip("transformers")
VOCABULARY = 61
ENDS: list[Any] = [None, 5, list(range(3, 12)), list(range(3, 30)), [7, 9, 21]]
"""So many tokens of 61 end a text that some rows end at once, some later, and some never."""
FAMILIES = ("bart", "marian", "t5")


@torch.no_grad()
def pair(family: str, folder: Path) -> tuple[Any, Any]:
    """A tiny model of transformers, every parameter redrawn, and ours from its folder; neither names what ends a text."""
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    if family == "t5":
        theirs: Any = transformers.T5ForConditionalGeneration(
            transformers.T5Config(
                vocab_size=VOCABULARY, d_model=24, d_kv=5, d_ff=40, num_layers=2, num_heads=3, relative_attention_num_buckets=8,
                relative_attention_max_distance=20, decoder_start_token_id=0, pad_token_id=0,
            )
        )  # fmt: skip
    else:
        sizes = {
            "vocab_size": VOCABULARY, "d_model": 24, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 3,
            "decoder_attention_heads": 2, "encoder_ffn_dim": 40, "decoder_ffn_dim": 36, "max_position_embeddings": 40,
        }  # fmt: skip
        if family == "bart":
            theirs = transformers.BartForConditionalGeneration(
                transformers.BartConfig(**sizes, pad_token_id=1, decoder_start_token_id=2, forced_eos_token_id=None)
            )
        else:
            theirs = transformers.MarianMTModel(
                transformers.MarianConfig(**sizes, pad_token_id=60, decoder_start_token_id=60, scale_embedding=True)
            )
    theirs = theirs.double().eval()
    generator = torch.Generator().manual_seed(1)
    for parameter in theirs.parameters():
        if parameter.requires_grad:  # sines and cosines stay what they are
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.3)
    theirs.save_pretrained(folder)
    for name in ("eos_token_id", "forced_eos_token_id", "bos_token_id"):
        setattr(theirs.generation_config, name, None)
    return zoo.load(folder, dtype="float64"), theirs


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, Any]]:
    folder = tmp_path_factory.mktemp("references")
    return {family: pair(family, folder / family) for family in FAMILIES}


def sources(rows: int, longest: int = 9, seed: int = 3, padding: int = 0) -> dict[str, torch.Tensor]:
    """Random sources of uneven lengths, padded on the right; the first row is the longest."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(2, 60, (rows, longest), generator=generator)
    lengths = torch.randint(1, longest + 1, (rows,), generator=generator)
    lengths[0] = longest
    mask = (torch.arange(longest) < lengths[:, None]).long()
    return {"input_ids": ids.masked_fill(mask == 0, padding), "attention_mask": mask}


def cases(number: int, beams: tuple[int, ...], padding: int) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Random sources and options, the same every time."""
    choose, found = random.Random(11), []
    for index in range(number):
        new = choose.choice([2, 3, 8, 14])
        options: dict[str, Any] = {"max_new_tokens": new, "pad_token_id": padding, "num_beams": choose.choice(beams)}
        ends = choose.choice(ENDS)
        options |= {} if ends is None else {"eos_token_id": ends}
        if choose.random() < 0.3:
            options["repetition_penalty"] = choose.choice([1.5, 0.7, 3.0])
        if choose.random() < 0.3:
            options["no_repeat_ngram_size"] = choose.choice([1, 2, 3])
        if choose.random() < 0.3:
            options["min_new_tokens" if choose.random() < 0.5 else "min_length"] = choose.randint(1, new)
        if choose.random() < 0.3:
            options["forced_bos_token_id"] = choose.randint(30, 59)  # it ends no text
        if choose.random() < 0.3:
            options["forced_eos_token_id"] = choose.randint(30, 59)
        if choose.random() < 0.3:
            options["bad_words_ids"] = [[choose.randint(2, 59)], [choose.randint(2, 59), choose.randint(2, 59)]]
        if choose.random() < 0.3:
            options["suppress_tokens"] = [choose.randint(2, 29)]
        if options["num_beams"] > 1:
            options["length_penalty"] = choose.choice([-1.0, 0.0, 1.0, 2.0])
            options["early_stopping"] = choose.choice([True, False, "never"])
            options["num_return_sequences"] = choose.randint(1, options["num_beams"])
        given = sources(choose.choice([1, 8, 8]), choose.choice([1, 4, 9, 20]), index, padding)
        if choose.random() < 0.3:
            ids = torch.randint(2, 59, (len(given["input_ids"]), 3), generator=torch.Generator().manual_seed(index))
            given["decoder_input_ids"] = ids
        found.append((given, options))
    return found


@pytest.mark.parametrize("beams", [(1,), (2, 4, 5)], ids=["greedy", "beam"])
@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_equal_those_of_transformers(both: dict[str, Any], family: str, beams: tuple[int, ...]) -> None:
    ours, theirs = both[family]
    rows = early = 0
    for index, (given, options) in enumerate(cases(40, beams, theirs.config.pad_token_id)):
        found = ours.generate(**given, **options)
        expected = theirs.generate(**given, **options)
        assert torch.equal(found, expected), (index, options)
        rows += len(given["input_ids"])
        prompt = 1 + given["decoder_input_ids"].shape[1] if "decoder_input_ids" in given else 1
        early += found.shape[1] < prompt + options["max_new_tokens"] or "eos_token_id" in options
    assert rows >= 200 and early >= 10  # texts did end before others, so that the ends were tried


@pytest.mark.parametrize("family", FAMILIES)
def test_no_mask_means_what_it_means_in_transformers(both: dict[str, Any], family: str) -> None:
    ours, theirs = both[family]
    padding = theirs.config.pad_token_id
    ids = sources(8, padding=padding)["input_ids"]
    options = {"max_new_tokens": 6, "pad_token_id": padding}
    assert torch.equal(ours.generate(ids, **options), theirs.generate(ids, **options))


def test_the_encoder_runs_once_and_beams_share_what_it_gave(both: dict[str, Any]) -> None:
    ours, _ = both["bart"]
    runs, keys = [], []
    across = ours.decoder.stack.layers[0].cross_attention.key
    handles = [
        ours.encoder.register_forward_hook(lambda module, given, output: runs.append(1)),
        across.register_forward_hook(lambda module, given, output: keys.append(len(output))),
    ]
    try:
        ours.generate(**sources(3), max_new_tokens=7, num_beams=4, pad_token_id=1)
    finally:
        for handle in handles:
            handle.remove()
    assert runs == [1] and keys == [3]  # of three sources, not of twelve beams


def test_rows_that_have_ended_leave_the_batch(both: dict[str, Any]) -> None:
    ours, _ = both["t5"]
    sizes: list[int] = []
    handle = ours.decoder.register_forward_pre_hook(lambda module, given: sizes.append(len(given[0])))
    try:
        ours.generate(**sources(8), max_new_tokens=20, pad_token_id=0, eos_token_id=list(range(3, 45)))
    finally:
        handle.remove()
    assert sizes[0] == 8 and sizes[-1] <= 4


def test_what_the_encoder_gave_and_a_cache_stand_for_the_source(both: dict[str, Any]) -> None:
    ours, _ = both["bart"]
    given = sources(3, padding=1)
    whole = ours.generate(**given, max_new_tokens=8, pad_token_id=1)
    with torch.no_grad():
        seen = ours.encoder(**given)
    mask = given["attention_mask"]
    assert torch.equal(ours.generate(encoder_outputs=seen, attention_mask=mask, max_new_tokens=8), whole)
    cache = ours.new_cache()
    half = ours.generate(**given, max_new_tokens=4, past_key_values=cache)
    rest = ours.generate(decoder_input_ids=half, max_new_tokens=4, past_key_values=cache)
    assert torch.equal(rest, whole)


def test_images_are_described() -> None:
    encoder = zoo.build("vit-tiny", {"head": None, "stack.depth": 1}).config.model_dump()
    decoder = zoo.build("gpt-mini", {"stack.depth": 1, "stack.width": encoder["stack"]["width"]}).config.model_dump()
    decoder["stack"]["block"]["cross_attention"] = {"type": "full", "heads": 2}
    model = zoo.build({"type": "encoder-decoder", "encoder": encoder, "decoder": decoder, "start": 0}).eval()
    pictures = torch.randn(2, 3, 224, 224)
    texts = model.generate(pictures, max_new_tokens=5)
    assert texts.shape == (2, 6) and torch.equal(texts, model.generate(pixel_values=pictures, max_new_tokens=5))


def test_drawn_texts_depend_on_their_seed_alone(both: dict[str, Any]) -> None:
    ours, _ = both["t5"]
    given = sources(4)
    drawn = ours.generate(**given, do_sample=True, seed=3, max_new_tokens=9)
    assert not torch.equal(drawn, ours.generate(**given, do_sample=True, seed=4, max_new_tokens=9))
    alone = {name: value[2:3] for name, value in given.items()}
    assert torch.equal(drawn[2:3], ours.generate(**alone, do_sample=True, seed=5, max_new_tokens=9))
    several = ours.generate(
        **given, do_sample=True, seed=3, max_new_tokens=9, num_return_sequences=2, return_dict_in_generate=True
    )
    assert isinstance(several, GenerateOutput) and several.sequences.shape == (8, 10)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "input_ids is missing: this model writes from what it reads, or from encoder_outputs"),
        ({"input_ids": 3}, "input_ids: expected a batch, got int"),
        ({"min_length": 2, "min_new_tokens": 1}, "min_length: say either this or min_new_tokens"),
        ({"forced_eos_token_id": 4, "suppress_tokens": [4]}, "forced_eos_token_id: 4 is one of suppress_tokens"),
        ({"decoder_start_token_id": 61}, "decoder_start_token_id: 61 is none of the decoder's tokens, 0 to 60"),
        ({"decoder_input_ids": torch.tensor([[4]])}, "decoder_input_ids: 1 texts, but there are 2 sources"),
        ({"encoder_outputs": torch.zeros(2, 3, 24)}, "encoder_outputs: given beside input_ids"),
        ({"encoder_outputs": "text"}, "encoder_outputs: expected what model.encoder"),
        ({"num_beam": 3}, "num_beam: generate knows no such option; did you mean 'num_beams'"),
        ({"past_key_values": 3}, "past_key_values: expected what an earlier call gave"),
        ({"max_new_tokens": 50}, "exceeds the model's table of 40 positions"),
    ],
)
def test_mistakes_are_told(both: dict[str, Any], given: dict[str, Any], message: str) -> None:
    ours, _ = both["bart"]
    ids = {"input_ids": sources(2)["input_ids"]} if given else {}
    with pytest.raises(InputError) as told:
        ours.generate(**{**ids, **given})
    assert message in str(told.value)
