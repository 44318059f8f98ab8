"""Tiny decoders of transformers whose blocks may be parallel or have experts, and texts for them."""

from __future__ import annotations

import inspect
import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from bert_helpers import OUTPUTS, edit

import zoo
from zoo.errors import ZooError
from zoo.verification.reference import ROUNDING, Float64

SIZES: dict[str, dict[str, Any]] = {
    "Falcon": {
        "vocab_size": 31, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 6, "ffn_hidden_size": 40,
        "max_position_embeddings": 20,
    },
    "GPTJ": {"vocab_size": 31, "n_embd": 24, "n_layer": 2, "n_head": 3, "n_positions": 20, "rotary_dim": 4},
    "GPTNeoX": {
        "vocab_size": 31, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 40,
        "max_position_embeddings": 20,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5},
    },
    "Mixtral": {
        "vocab_size": 31, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 3,
        "intermediate_size": 40, "max_position_embeddings": 20, "num_local_experts": 4, "experts_implementation": "eager",
    },
    "Cohere": {
        "vocab_size": 31, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 3,
        "intermediate_size": 40, "max_position_embeddings": 20,
    },
}  # fmt: skip
TOKENS = 9
WITHOUT_INFLUENCE = {
    "architectures", "model_type", "transformers_version", "_name_or_path", "dtype", "label2id", "problem_type", "return_dict",
    "output_hidden_states", "output_attentions", "chunk_size_feed_forward", "use_cache", "bos_token_id", "eos_token_id",
    "is_encoder_decoder", "is_decoder",
}  # fmt: skip
"""Fields of all their configs that change nothing of what a model computes."""


def family_of(cls: str) -> str:
    """The start of a class's name."""
    return next(family for family in SIZES if cls.startswith(family))


def save(cls: str, folder: Path, redraw: Callable[..., Any], **fields: Any) -> Any:
    """A model of transformers in float64, redrawn, that has saved itself into the folder and was opened again."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    kind = getattr(transformers, cls)
    padding = {"pad_token_id": 5} if cls.endswith("SequenceClassification") else {}
    config = kind.config_class(**{**SIZES[family_of(cls)], **padding, **fields})
    config._attn_implementation = kernel(kind)
    torch.manual_seed(0)
    redraw(kind(config).double()).eval().save_pretrained(folder)
    return opened(folder, cls)


def kernel(kind: Any) -> str:
    """Their fastest kernel: of Falcon's two the only one that adds alibi once."""
    return "sdpa" if kind._supports_sdpa else "eager"


def opened(folder: Path, cls: str) -> Any:
    """What transformers itself makes of a folder."""
    import transformers

    kind = getattr(transformers, cls)
    model = kind.from_pretrained(folder, dtype=torch.float64, attn_implementation=kernel(kind)).eval()
    model.config._experts_implementation = "eager"  # of those that have some: the only one that takes float64
    return model


def inputs(theirs: Any, tokens: int = TOKENS) -> Iterator[dict[str, Any]]:
    """Texts for a model of theirs: plain, padded in every way, with positions of the caller's."""
    config, generator = theirs.config, torch.Generator().manual_seed(3)
    padding = getattr(config, "pad_token_id", None)
    rows = 1 if padding is None and "Sequence" in type(theirs).__name__ else 3
    places = "position_ids" in inspect.signature(theirs.forward).parameters  # some drop them without a word
    shape = (rows, tokens)
    words = torch.tensor([word for word in range(config.vocab_size) if word != padding])
    ids = words[torch.randint(0, len(words), shape, generator=generator)]
    yield {"input_ids": ids}
    place, end = torch.arange(tokens), torch.tensor([tokens, tokens // 2, 1])[:rows, None]
    holes = torch.rand(shape, generator=generator) > 0.4
    holes[:, 0] = holes[:, -1] = True
    for real in (place < end, holes, place >= tokens - end):
        yield {"input_ids": ids.masked_fill(~real, padding or 0), "attention_mask": real.long()}
        counted = (real.cumsum(1) - 1).clamp(min=0)
        if places:
            yield {"input_ids": ids.masked_fill(~real, padding or 0), "attention_mask": real.long(), "position_ids": counted}
        yield {"input_ids": ids.masked_fill(~real, padding or 0)}
    length = config.max_position_embeddings if config.model_type == "gptj" else 3000
    if places:
        yield {"input_ids": ids, "position_ids": torch.randint(0, length, shape, generator=generator)}
    if config.model_type == "gptj":
        yield {"input_ids": ids, "token_type_ids": words[torch.randint(0, len(words), shape, generator=generator)]}


@torch.no_grad()
def agree(ours: Any, theirs: Any, bound: float = 1e-12, tokens: int = TOKENS) -> None:
    """Every output that both have is equal within `bound` of the largest, on every kind of text.

    What a row gives before its first real token is nobody's definition. Theirs are kept from rounding to float32 on the way,
    as GPT-J and Cohere do whatever type they have.
    """
    theirs.config._experts_implementation = "eager"
    for batch in inputs(theirs, tokens):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of positions beyond the trained ones
            own = ours(**batch)._asdict()
            with Float64(everywhere=type(theirs).__name__.startswith(ROUNDING)):
                other = theirs(**batch, return_dict=True)
        answers = [name for name in OUTPUTS if torch.is_tensor(other.get(name)) and name != "aux_loss"]
        assert answers
        real = batch.get("attention_mask", torch.ones_like(batch["input_ids"])).cumsum(1) > 0
        for name in answers:
            assert own[name].shape == other[name].shape
            given, expected = own[name], other[name]
            if given.shape[:2] == real.shape:
                given, expected = given[real], expected[real]
            assert (given - expected).abs().max() <= bound * max(1.0, float(expected.abs().max())), (name, [*batch])


def check_field(theirs: Any, folder: Path, out: Path) -> Any:
    """A folder of theirs with an unusual field: read, written, and read again; gives ours."""
    ours = zoo.load(folder)
    agree(ours, theirs)
    assert ours.num_parameters() == theirs.num_parameters()
    again = zoo.load(zoo.export(ours, out))
    assert again.config == ours.config
    agree(again, theirs)
    return ours


def check_absent(reader: Any, config: Any, cls: str) -> None:
    """What each absent field means, one after another, and all of them, against a config that states all."""
    whole = json.loads(config.to_json_string(use_diff=False)) | {"architectures": [cls]}
    expected = reader.read_config(whole, ())
    for name in set(whole) - {"model_type", "architectures"}:
        assert reader.read_config({key: value for key, value in whole.items() if key != name}, ()) == expected, name
    assert reader.read_config({"model_type": whole["model_type"], "architectures": whole["architectures"]}, ()) == expected


def check_broken(folder: Path, fields: dict[str, Any], words: str) -> None:
    """A field that is refused by name."""
    edit(folder, **fields)
    with pytest.raises(ZooError, match=words):
        zoo.load(folder)
