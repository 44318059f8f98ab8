"""Tiny decoders of ours, and of transformers with the same weights."""

from __future__ import annotations

from typing import Any

import torch

import zoo

VOCABULARY, WIDTH, HEADS, LENGTH = 61, 24, 3, 64
GPT2: dict[str, Any] = {
    "type": "transformer",
    "embedding": {"type": "tokens", "vocabulary": VOCABULARY, "position": {"type": "learned", "length": LENGTH}, "norm": None},
    "stack": {
        "type": "uniform",
        "width": WIDTH,
        "depth": 2,
        "final_norm": {"type": "layer-norm", "eps": 1e-5},
        "block": {
            "order": "pre",
            "norm": {"type": "layer-norm", "eps": 1e-5},
            "attention": {"type": "full", "heads": HEADS, "causal": True},
            "feedforward": {"type": "mlp", "hidden": 40, "activation": "gelu-tanh"},
        },
    },
    "head": {"type": "language-model", "tied": True},
}
CHANGES: dict[str, dict[str, Any]] = {
    "learned": {},
    "rotary": {
        "embedding.position": None,
        "stack.block.attention.position": "rotary",
        "stack.block.attention.heads": 6,
        "stack.block.attention.kv_heads": 2,
    },
    "alibi": {"embedding.position": None, "stack.block.attention.position": "alibi"},
    "none": {"embedding.position": None},
}
"""Decoders that know places in different ways."""


@torch.no_grad()
def decoder(changes: dict[str, Any] | None = None, dtype: Any = "float64", scale: float = 0.3, seed: int = 1) -> Any:
    """A tiny decoder, every parameter redrawn, in eval mode."""
    model = zoo.build(GPT2, changes, dtype=dtype)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.add_((noise * scale).to(parameter.dtype))
    return model.eval()


@torch.no_grad()
def pair(family: str, folder: Any, layers: int = 2) -> tuple[Any, Any]:
    """A tiny model of transformers, every parameter redrawn, and ours from its folder; neither names what ends a text."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    none = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    if family == "gpt2":
        sizes = {
            "vocab_size": VOCABULARY,
            "n_positions": LENGTH,
            "n_embd": WIDTH,
            "n_layer": layers,
            "n_head": HEADS,
            "n_inner": 40,
        }
        theirs: Any = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, **none))
    else:
        sizes = {
            "vocab_size": VOCABULARY, "hidden_size": WIDTH, "num_hidden_layers": layers, "num_attention_heads": 6,
            "num_key_value_heads": 2, "head_dim": 4, "intermediate_size": 40, "max_position_embeddings": LENGTH,
        }  # fmt: skip
        if family == "mistral":
            theirs = transformers.MistralForCausalLM(transformers.MistralConfig(**sizes, **none, sliding_window=5))
        else:
            theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, **none))
    theirs = theirs.double().eval()
    generator = torch.Generator().manual_seed(1)
    for parameter in theirs.parameters():
        parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.3)
    theirs.save_pretrained(folder)
    return zoo.load(folder, dtype="float64"), theirs


def prompts(rows: int, longest: int = 9, seed: int = 3, padding: int = 60) -> dict[str, torch.Tensor]:
    """Random prompts of uneven lengths, padded on the left; the first row is the longest."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, 60, (rows, longest), generator=generator)
    lengths = torch.randint(1, longest + 1, (rows,), generator=generator)
    lengths[0] = longest
    mask = (torch.arange(longest) >= longest - lengths[:, None]).long()
    return {"input_ids": ids.masked_fill(mask == 0, padding), "attention_mask": mask}


class Letters:
    """A tokenizer of one letter for each token; those of several letters stand where they are given."""

    def __init__(self, several: dict[int, str] | None = None) -> None:
        self.several = several or {}

    def decode(self, ids: list[int]) -> str:
        return "".join(self.several.get(each, chr(64 + each)) for each in ids)
