"""Tiny decoders of transformers and texts for them."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from bert_helpers import OUTPUTS

SIZES: dict[str, dict[str, Any]] = {
    "GPT2": {"vocab_size": 31, "n_embd": 24, "n_layer": 2, "n_head": 3, "n_positions": 20},
    "Llama": {
        "vocab_size": 31, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 3,
        "intermediate_size": 40, "max_position_embeddings": 20,
    },
}  # fmt: skip
SIZES["Mistral"] = {**SIZES["Llama"], "sliding_window": 4}
SIZES["Qwen2"] = {**SIZES["Llama"], "use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1}
ENDS = ("Model", "ForCausalLM", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering")
TOKENS = 9


def family_of(cls: str) -> str:
    """The start of a class's name."""
    return next(family for family in SIZES if cls.startswith(family))


def save(cls: str, folder: Path, redraw: Callable[..., Any], **fields: Any) -> Any:
    """A model of transformers in float64, redrawn, that has saved itself into the folder."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    kind = getattr(transformers, cls)
    padding = {"pad_token_id": 5} if cls.endswith("SequenceClassification") else {}
    config = kind.config_class(**{**SIZES[family_of(cls)], **padding, **fields})
    config._attn_implementation = "sdpa"
    torch.manual_seed(0)
    model = redraw(kind(config).double()).eval()
    model.save_pretrained(folder)
    return model


def inputs(theirs: Any, tokens: int = TOKENS) -> Iterator[dict[str, Any]]:
    """Texts for a model of theirs: plain, padded in every way, with positions and masks of the caller's."""
    config, generator = theirs.config, torch.Generator().manual_seed(3)
    rows = 1 if config.pad_token_id is None and "Sequence" in type(theirs).__name__ else 3
    shape, padding = (rows, tokens), config.pad_token_id
    words = torch.tensor([word for word in range(config.vocab_size) if word != padding])
    ids = words[torch.randint(0, len(words), shape, generator=generator)]
    yield {"input_ids": ids}
    place, end = torch.arange(tokens), torch.tensor([tokens, tokens // 2, 1])[:rows, None]
    holes = torch.rand(shape, generator=generator) > 0.4
    holes[:, 0] = holes[:, -1] = True
    for real in (place < end, holes, place >= tokens - end):
        yield {"input_ids": ids.masked_fill(~real, padding or 0), "attention_mask": real.long()}
        counted = (real.cumsum(1) - 1).clamp(min=0)
        yield {"input_ids": ids.masked_fill(~real, padding or 0), "attention_mask": real.long(), "position_ids": counted}
        yield {"input_ids": ids.masked_fill(~real, padding or 0)}
    length = config.max_position_embeddings if config.model_type == "gpt2" else 3000
    yield {"input_ids": ids, "position_ids": torch.randint(0, length, shape, generator=generator)}
    yield {"input_ids": ids, "position_ids": torch.arange(tokens)[None] + length - tokens}
    allowed = (torch.rand(rows, 1, tokens, tokens, generator=generator) > 0.3) | torch.eye(tokens, dtype=torch.bool)
    if config.model_type == "gpt2":
        # a mask of every pair is taken as it is there, while ours stays causal
        yield {"input_ids": ids, "attention_mask": allowed.tril()}
        yield {"input_ids": ids, "token_type_ids": words[torch.randint(0, len(words), shape, generator=generator)]}


@torch.no_grad()
def agree(ours: Any, theirs: Any, bound: float = 1e-12, tokens: int = TOKENS) -> None:
    """Every output that both have is equal within `bound` of the largest, on every kind of text."""
    for batch in inputs(theirs, tokens):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of positions beyond the trained ones
            own, other = ours(**batch)._asdict(), theirs(**batch, return_dict=True)
        answers = [name for name in OUTPUTS if torch.is_tensor(other.get(name))]
        assert answers
        for name in answers:
            assert own[name].shape == other[name].shape
            assert (own[name] - other[name]).abs().max() <= bound * max(1.0, float(other[name].abs().max())), (name, [*batch])


def shard(folder: Path) -> None:
    """Divides the tensors of a folder among two files and an index."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    names, where = sorted(tensors), {}
    for number, part in enumerate((names[::2], names[1::2])):
        file = f"model-{number + 1:05d}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, folder / file, metadata={"format": "pt"})
        where |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    (folder / "model.safetensors").unlink()
