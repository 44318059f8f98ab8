"""Stop strings, prompts as tokens, and text as it comes."""

from __future__ import annotations

import itertools
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from generation_helpers import Letters, decoder, pair, prompts

from zoo.data.tokenizer import ByteTokenizer, LibraryTokenizer
from zoo.errors import InputError
from zoo.generation.options import GenerationOptions
from zoo.generation.stopping import Stop
from zoo.generation.text import TextStream, padded, prompt_ids


def ended(tokenizer: Any, strings: Any, ids: list[int]) -> bool:
    stop = Stop(GenerationOptions(stop_strings=strings), tokenizer, torch.device("cpu"))
    return bool(stop(torch.tensor([ids]))[0])


SEVERAL = {30: "st", 31: "op", 32: "stop", 33: "opera", 34: "sto", 35: "pper", 36: "las", 37: "topper", 38: "pped", 39: "to"}


@pytest.mark.parametrize(
    "ids", [[30, 31], [32], [30, 33], [34, 35], [36, 37], [1, 2, 34, 48], [32, 32], [32, 9, 30, 31], [37, 32]]
)
def test_a_string_that_the_last_token_completes_ends_a_text(ids: list[int]) -> None:
    assert ended(Letters(SEVERAL), "stop", ids) and ended(Letters(SEVERAL), ["nothing", "stop"], ids)


@pytest.mark.parametrize("ids", [[32, 1], [30, 33, 1], [30], [34], [48, 31], [32, 30], [32, 9, 30]])
def test_a_string_that_is_past_or_unfinished_does_not(ids: list[int]) -> None:
    assert not ended(Letters(SEVERAL), "stop", ids)


def test_a_string_of_letters_of_several_tokens() -> None:
    tokenizer = ByteTokenizer()
    text = list("a caf\u00e9 \u20ac".encode())
    for size in range(1, len(text) + 1):
        said = bytes(text[:size])
        assert ended(tokenizer, "\u00e9", text[:size]) == (said.endswith("\u00e9".encode()))
        assert ended(tokenizer, "\u00e9 \u20ac", text[:size]) == (said.endswith("\u20ac".encode()))


@pytest.mark.parametrize("beams", [1, 3])
def test_stop_strings_end_texts_as_in_transformers(beams: int, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    choose = random.Random(3)
    words = ["".join(letters) for size in (1, 2) for letters in itertools.product("abcdefg", repeat=size)] + [
        "abc",
        "cab",
        "fgab",
    ]
    vocabulary = {word: number for number, word in enumerate([*words, "<pad>", "<end>"])}
    library = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    library.decoder = decoders.ByteLevel()
    theirs = PreTrainedTokenizerFast(tokenizer_object=library, pad_token="<pad>", eos_token="<end>")
    mine = LibraryTokenizer(library, {"pad_token": "<pad>", "eos_token": "<end>"})
    (model, other), early = pair("gpt2", tmp_path), 0
    for seed in range(25):
        strings = ["".join(choose.choices("abcdefg", k=choose.randint(1, 3))) for _ in range(choose.randint(1, 3))]
        texts = prompts(4, 6, seed=seed, padding=59)
        texts["input_ids"] = texts["input_ids"] % 59 + (texts["attention_mask"] == 0) * 59
        options = {"max_new_tokens": 8, "stop_strings": strings, "num_beams": beams, "pad_token_id": 59, "eos_token_id": 60}
        expected = other.generate(**texts, **options, tokenizer=theirs)
        for tokenizer in (mine, theirs, library):  # anything that decodes
            assert torch.equal(model.generate(**texts, **options, tokenizer=tokenizer), expected)
        early += bool((expected[:, 6:] == 59).any())
    assert early > 5


def test_what_fills_up_texts_that_stop() -> None:
    model, texts = decoder(), prompts(2, 4)
    tokenizer = Letters()
    stop = {"max_new_tokens": 6, "stop_strings": [chr(64 + each) for each in range(1, 30)]}
    with pytest.raises(InputError, match="pad_token_id: texts that stop before others are filled up"):
        model.generate(**texts, **stop, tokenizer=tokenizer)
    tokenizer.padding = 33  # type: ignore[attr-defined]
    found = model.generate(**texts, **stop, tokenizer=tokenizer)
    assert 33 in found[:, 4:] or found.shape[1] < 10


def byte_level() -> LibraryTokenizer:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: number for number, letter in enumerate(letters)}, merges=[]))
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 256), ("</s>", 257)])
    return LibraryTokenizer(tokenizer)


def metaspace() -> LibraryTokenizer:
    """As in Llama: words begin with a mark for the blank, which is left out at the beginning of a text."""
    from tokenizers import Tokenizer, decoders, models

    words = ["\u2581the", "\u2581cat", "\u2581sat", "s", "\u2581", "a", "<0xE2>", "<0x82>", "<0xAC>"]
    tokenizer = Tokenizer(models.BPE(vocab={word: number for number, word in enumerate(words)}, merges=[], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return LibraryTokenizer(tokenizer)


@pytest.mark.parametrize(
    "text", ["", "plain", "caf\u00e9 \u20ac5, \U0001f600!", "\u65e5\u672c\u8a9e", "x\ufffdy", "a\n\n b  c"]
)
@pytest.mark.parametrize("make", [ByteTokenizer, byte_level])
def test_text_comes_in_whole_letters(make: Any, text: str) -> None:
    tokenizer = make()
    before, ids = list(tokenizer.content("So: ").ids), tokenizer.content(text).ids
    stream = TextStream(tokenizer, before)
    pieces = [stream.add(each) for each in ids]
    assert "".join([*pieces, stream.end()]) == text
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces) and all(len(piece) <= 1 for piece in pieces)


def test_blanks_that_words_begin_with() -> None:
    stream = TextStream(metaspace(), [0, 1])
    assert [stream.add(each) for each in [2, 3, 4, 6, 7, 8, 0]] == [" sat", "s", " ", "", "", "\u20ac", " the"]
    first = TextStream(metaspace())
    assert [first.add(each) for each in [0, 1, 3]] == ["the", " cat", "s"]


def test_letters_that_are_never_finished() -> None:
    stream = TextStream(ByteTokenizer())
    assert [stream.add(each) for each in [97, 0xE2, 0x82]] == ["a", "", ""] and stream.end() == "\ufffd"
    noise = TextStream(ByteTokenizer())
    assert sum(bool(noise.add(0xFF)) for _ in range(40)) >= 4  # it goes on being said, and does not pile up


def test_prompts_have_no_end() -> None:
    assert prompt_ids(ByteTokenizer(), "ab") == [257, 97, 98]
    assert prompt_ids(ByteTokenizer(), "ab", start=7) == [7, 97, 98] and prompt_ids(ByteTokenizer(), "", start=7) == [7]
    tokenizer = byte_level()
    assert prompt_ids(tokenizer, "ab") == [256, *tokenizer.content("ab").ids]
    assert prompt_ids(metaspace(), "as") == [5, 3]
    for each in (ByteTokenizer(), tokenizer, metaspace()):
        with pytest.raises(InputError, match="the prompt is empty"):
            prompt_ids(each, "")


def test_padding_stands_on_the_left() -> None:
    inputs = padded([[1, 2, 3], [4]], 9)
    assert inputs["input_ids"].tolist() == [[1, 2, 3], [9, 9, 4]]
    assert inputs["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1]]
