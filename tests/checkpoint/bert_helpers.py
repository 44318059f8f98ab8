"""Texts for BERT and its kin, and comparing with transformers on them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

import zoo
from zoo.output import TransformerOutput

SIZES: dict[str, dict[str, Any]] = {
    "Bert": {
        "vocab_size": 31, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 40,
        "max_position_embeddings": 20,
    },
    "DistilBert": {
        "vocab_size": 31, "dim": 24, "n_layers": 2, "n_heads": 3, "hidden_dim": 40, "max_position_embeddings": 20,
    },
}  # fmt: skip
SIZES["Roberta"] = SIZES["Bert"]
ENDS = (
    "Model", "ForMaskedLM", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering", "ForMultipleChoice",
)  # fmt: skip
CLASSES = [
    *(f"{family}{end}" for family in SIZES for end in ENDS), "BertForPreTraining", "BertForNextSentencePrediction",
]  # fmt: skip
OUTPUTS = [name for name in TransformerOutput._fields if name not in ("hidden_states", "attentions")]


def family_of(cls: str) -> str:
    """The start of a class's name."""
    return next(family for family in ("DistilBert", "Roberta", "Bert") if cls.startswith(family))


def inputs(theirs: Any) -> Iterator[dict[str, Any]]:
    """Texts for a model of theirs: plain, padded in every way, of several segments, with positions of the caller's."""
    config, generator = theirs.config, torch.Generator().manual_seed(3)
    first = config.pad_token_id + 1 if config.model_type == "roberta" else 0
    tokens = min(9, config.max_position_embeddings - first)
    shape = (3, 2, tokens) if "MultipleChoice" in type(theirs).__name__ else (3, tokens)
    words = [word for word in range(config.vocab_size) if word != config.pad_token_id]
    ids = torch.tensor(words)[torch.randint(0, len(words), shape, generator=generator)]
    yield {"input_ids": ids}
    place, end = torch.arange(tokens), torch.tensor([tokens, max(tokens // 2, 1), 1]).view(3, *[1] * (len(shape) - 1))
    holes = torch.rand(shape, generator=generator) > 0.4
    holes[..., 0] = True
    left = [] if getattr(config, "is_decoder", False) else [place >= tokens - end]
    for real in ((place < end).expand(shape), holes, *(each.expand(shape) for each in left)):
        padding = 0 if config.pad_token_id is None else config.pad_token_id
        yield {"input_ids": ids.masked_fill(~real, padding), "attention_mask": real.long()}
        yield {"input_ids": ids.masked_fill(~real, padding)}
    positions = torch.randint(0, config.max_position_embeddings, shape, generator=generator)
    if type(theirs).__name__ != "DistilBertForMultipleChoice":  # which passes three-dimensional positions on as they are
        yield {"input_ids": ids, "position_ids": positions}
    kinds = getattr(config, "type_vocab_size", 0)
    if kinds:
        yield {"input_ids": ids, "token_type_ids": torch.randint(0, kinds, shape, generator=generator)}


@torch.no_grad()
def agree(ours: Any, theirs: Any, bound: float = 1e-12) -> None:
    """Every output that both have is equal within `bound` of the largest, on every kind of text."""
    for batch in inputs(theirs):
        own, other = ours(**batch)._asdict(), theirs(**batch, return_dict=True)
        answers = [name for name in OUTPUTS if other.get(name) is not None]
        assert answers
        for name in answers:
            assert own[name].shape == other[name].shape
            assert (own[name] - other[name]).abs().max() <= bound * max(1.0, float(other[name].abs().max())), name


def edit(folder: Path, **values: Any) -> None:
    """Changes fields of a folder's config; `...` removes one."""
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), **values}
    path.write_text(json.dumps({name: value for name, value in config.items() if value is not ...}))


def rewrite(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Changes the tensors of a folder; `change` works on them in place, or returns others."""
    tensors = load_file(folder / "model.safetensors")
    changed = change(tensors)
    tensors = changed if isinstance(changed, dict) else tensors
    save_file({name: value.contiguous() for name, value in tensors.items()}, folder / "model.safetensors")


def opened(folder: Path, cls: str) -> Any:
    """What transformers itself makes of a folder."""
    import transformers

    return getattr(transformers, cls).from_pretrained(folder, dtype=torch.float64, attn_implementation="sdpa").eval()


def given_and_given_back(theirs: Any, folder: Path, out: Path, agree: Callable[[Any, Any], None]) -> None:
    """A folder of theirs is read and written again; ours, and what they open, agree with theirs all the way."""
    ours = zoo.load(folder)
    agree(ours, theirs)
    assert ours.num_parameters() == theirs.num_parameters() and not ours.training
    assert {entry.status for entry in ours.load_report.entries} == {"renamed"}
    zoo.export(ours, out)
    back, info = type(theirs).from_pretrained(out, output_loading_info=True, dtype=torch.float64)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    agree(ours, back.eval())
    again = zoo.load(out)
    assert again.config == ours.config
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), ours.state_dict().values()))
