"""Wrong use is one clear line, before anything is computed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from generation_helpers import CHANGES, GPT2, Letters, decoder, prompts

import zoo
from zoo.errors import InputError
from zoo.generation.options import GenerationOptions

IDS = torch.ones(2, 5, dtype=torch.long)
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"max_new_token": 3}, "max_new_token: generate knows no such option; did you mean 'max_new_tokens'?"),
    ({"temprature": 3}, "temprature: generate knows no such option; did you mean 'temperature'?"),
    ({"prefill_chunk": 3}, "did you mean 'prefill_chunk_size'"),
    ({"zzz": 3}, "zzz: generate knows no such option; it knows input_ids, attention_mask"),
    ({"max_new_tokens": 0}, "max_new_tokens: expected greater than 0, got 0"),
    ({"max_new_tokens": True}, "max_new_tokens: true is no value for this field"),
    ({"max_new_tokens": "5"}, "max_new_tokens: expected a valid integer, got '5'"),
    ({"max_new_tokens": 3, "max_length": 8}, "max_length: say either this or max_new_tokens"),
    ({"max_length": 5}, "max_length: 5 leaves no room for a token behind a prompt of 5 tokens"),
    ({"max_new_tokens": 3, "min_new_tokens": 4}, "min_new_tokens: 4 is more than max_new_tokens, 3"),
    ({"temperature": 0.0, "do_sample": True}, "temperature: expected greater than 0, got 0.0"),
    ({"temperature": 0.5}, "temperature: without do_sample=True nothing is drawn"),
    ({"top_k": 5}, "top_k: without do_sample=True"),
    ({"top_p": 0.5}, "top_p: without do_sample=True"),
    ({"min_p": 0.5}, "min_p: without do_sample=True"),
    ({"seed": 1}, "seed: without do_sample=True"),
    ({"generator": torch.Generator()}, "generator: without do_sample=True"),
    ({"seed": 1, "generator": torch.Generator(), "do_sample": True}, "seed: say either this or generator"),
    ({"seed": [1, 2, 3], "do_sample": True}, "seed: 3 seeds for 2 rows"),
    ({"seed": -1, "do_sample": True}, "seed"),
    ({"top_p": 1.5, "do_sample": True}, "top_p: expected less than or equal to 1, got 1.5"),
    ({"top_k": -1, "do_sample": True}, "top_k: expected greater than or equal to 0, got -1"),
    ({"do_sample": True, "num_beams": 2}, "do_sample: num_beams=2 follows the likeliest texts"),
    ({"do_sample": 1}, "do_sample: expected a valid boolean, got 1"),
    ({"length_penalty": 2.0}, "length_penalty: there are no beams; say num_beams"),
    ({"early_stopping": True}, "early_stopping: there are no beams"),
    ({"early_stopping": "always", "num_beams": 2}, "early_stopping"),
    ({"num_return_sequences": 2}, "num_return_sequences: 2 are wanted, and the likeliest text is one"),
    ({"num_return_sequences": 3, "num_beams": 2}, "num_return_sequences: 3 are wanted, and there are 2 beams"),
    ({"streamer": print, "num_beams": 2}, "streamer: with num_beams=2 no token is certain before the end"),
    ({"streamer": 5}, "streamer: expected a function, or an object with put and end, got int"),
    ({"eos_token_id": 61}, "eos_token_id: 61 is none of the model's tokens, 0 to 60"),
    ({"eos_token_id": [3, 99]}, "eos_token_id: 99 is none of the model's tokens"),
    ({"eos_token_id": []}, "eos_token_id"),
    ({"eos_token_id": -1}, "eos_token_id"),
    ({"pad_token_id": 61}, "pad_token_id: 61 is none of the model's tokens"),
    ({"stop_strings": "x"}, "stop_strings: what tokens stand for is known to the tokenizer"),
    ({"stop_strings": "", "tokenizer": Letters()}, "stop_strings"),
    ({"stop_strings": ["x"], "tokenizer": 5}, "tokenizer: expected something that can decode token ids, got int"),
    ({"output_scores": True}, "output_scores: needs return_dict_in_generate=True"),
    ({"use_cache": False}, "use_cache: false is no value for this field of generate"),
    ({"past_key_values": ()}, "past_key_values: expected what an earlier call gave, got tuple"),
    ({"attention_mask": torch.ones(2, 4)}, r"attention_mask: expected 0 and 1 of shape \(2, 5\), as input_ids, got \(2, 4\)"),
    ({"attention_mask": [1]}, "attention_mask: expected 0 and 1 of shape"),
    ({"attention_mask": torch.tensor([[1] * 5, [1, 1, 1, 1, 0]])}, "row 1 ends with padding, .* pad on the left"),
    ({"position_ids": torch.ones(2, 4).long()}, r"position_ids: expected whole numbers of shape \(2, 5\)"),
    ({"max_new_tokens": 61}, r"a prompt of 5 tokens \+ max_new_tokens=61 exceeds .* table of 64 positions; at most 60 new"),
    ({"max_length": 66}, "exceeds the model's table of 64 positions"),
    ({"position_ids": torch.full((2, 5), 64)}, "the prompt ends at position 64, beyond the model's table of 64 positions"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "message"), WRONG, ids=lambda value: "-".join(value) if isinstance(value, dict) else "")
def test_wrong_options(options: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = decoder()
    monkeypatch.setattr(type(model), "forward", lambda *_, **__: pytest.fail("something was computed"))
    with pytest.raises(InputError, match=message) as caught:
        model.generate(IDS, **options)
    assert "\n" not in str(caught.value)


BEYOND: list[tuple[Any, str]] = [
    (torch.ones(2, 0, dtype=torch.long), "there is nothing to continue"),
    (torch.ones(0, 4, dtype=torch.long), "there is nothing to continue"),
    (torch.ones(5, dtype=torch.long), r"expected whole numbers of shape \(batch, tokens\), got \(5,\)"),
    (torch.ones(1, 5), "expected whole numbers"),
    ([[1, 2]], "expected a tensor, got list"),
    (torch.full((1, 5), 61), "61 is none of 0 to 60"),
    (torch.full((1, 5), -1), "-1 is none of 0 to 60"),
    (torch.ones(1, 65, dtype=torch.long), "the prompt ends at position 64, beyond the model's table of 64 positions"),
]


@pytest.mark.parametrize(("ids", "message"), BEYOND, ids=str)
def test_wrong_prompts(ids: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        decoder().generate(ids, max_new_tokens=3)


def test_models_that_continue_nothing() -> None:
    def error(model: Any, ids: Any = IDS) -> str:
        with pytest.raises(InputError) as caught:
            model.generate(ids, max_new_tokens=3)
        return str(caught.value)

    assert "only causal attention can be continued" in error(zoo.build(GPT2, {"stack.block.attention.causal": False}))
    assert "scores the next token, such as 'language-model', and this is none" in error(zoo.build(GPT2, {"head": None}))
    for head in ({"type": "token-classifier", "classes": 61}, "pooler", {"type": "classifier", "classes": 3}):
        assert f"and this is {head if isinstance(head, str) else head['type']!r}".replace("'", "") in error(
            zoo.build(GPT2, {"head": head})
        ).replace("'", "")
    tiny = {"embedding.image_size": 32, "stack.depth": 1, "head.classes": 3}
    assert "a model of texts is needed, and this one reads pixel_values" in error(zoo.build("vit-tiny", tiny))


def test_a_cache_that_holds_all_tokens() -> None:
    model = decoder()
    past = model.generate(IDS, max_new_tokens=1, return_dict_in_generate=True).past_key_values
    with pytest.raises(InputError, match="past_key_values: of 5 tokens; input_ids holds these and at least one more, not 5"):
        model.generate(IDS, max_new_tokens=1, past_key_values=past)


def test_options_that_are_none_are_not_given() -> None:
    model, texts = decoder(), prompts(2, 4)
    empty = dict.fromkeys(GenerationOptions.model_fields)
    assert torch.equal(model.generate(**texts, **empty), model.generate(**texts))


def test_names_are_those_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    known = set(vars(transformers.GenerationConfig())) | {"prefill_chunk_size"}
    assert set(GenerationOptions.model_fields) - known == {"seed"}
    defaults = transformers.GenerationConfig._get_default_generation_params()
    for name, field in GenerationOptions.model_fields.items():
        if name in defaults and name != "max_length":
            assert field.default == defaults[name], name


def test_every_option_is_explained() -> None:
    from zoo.config.docs import field_docs

    explained = field_docs(GenerationOptions)
    assert [name for name in GenerationOptions.model_fields if not explained.get(name)] == []


def test_alike_models_without_a_table_have_no_end() -> None:
    assert decoder(CHANGES["rotary"]).generate(IDS[:1], max_new_tokens=80).shape[1] == 85
