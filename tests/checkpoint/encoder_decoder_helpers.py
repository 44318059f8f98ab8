"""Tiny encoder-decoders of transformers, and texts for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

import zoo

SIDES = {
    "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 3, "decoder_attention_heads": 3,
    "encoder_ffn_dim": 40, "decoder_ffn_dim": 40, "d_model": 24, "vocab_size": 31, "max_position_embeddings": 20,
}  # fmt: skip
SIZES: dict[str, dict[str, Any]] = {
    "Bart": {**SIDES, "pad_token_id": 1, "decoder_start_token_id": 2},
    "Marian": {
        **SIDES, "pad_token_id": 30, "decoder_start_token_id": 30, "activation_function": "swish", "scale_embedding": True,
    },
}  # fmt: skip
STATES = ("encoder_hidden_states", "decoder_hidden_states")
MAPS = ("encoder_attentions", "decoder_attentions", "cross_attentions")
SINES = "SinusoidalPositionalEmbedding"


def save(cls: str, folder: Path, redraw: Callable[..., Any], kernel: str = "sdpa", **fields: Any) -> Any:
    """A model of transformers in float64, redrawn, that has saved itself into the folder."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    kind = getattr(transformers, cls)
    sizes = SIZES["Marian" if cls.startswith("Marian") else "Bart"]
    config = kind.config_class(**{**sizes, **fields})
    config._attn_implementation = kernel
    torch.manual_seed(0)
    model = redraw(kind(config).double()).eval()
    for module in model.modules():  # what is not learned stays
        if type(module).__name__.endswith(SINES):
            module.weight.data.copy_(module.create_weight())
    model.save_pretrained(folder)
    return model


def learned(theirs: Any) -> int:
    """How many numbers of a model of theirs are learned and used."""
    tables = {name for name, module in theirs.named_modules() if type(module).__name__.endswith(SINES)}
    unused = [] if theirs.config.tie_word_embeddings else ["model.shared.weight", "shared.weight"]
    known = {name: each for name, each in theirs.named_parameters() if name.removesuffix(".weight") not in tables}
    return sum(each.numel() for name, each in known.items() if name not in unused)


def inputs(theirs: Any, tokens: int = 9) -> Iterator[dict[str, Any]]:
    """Texts to read and to write: plain, padded in every way, with labels, and with nothing to write where that is allowed."""
    config, generator = theirs.config, torch.Generator().manual_seed(3)
    words, others = config.vocab_size, getattr(config, "decoder_vocab_size", None) or config.vocab_size

    def drawn(number: int, length: int) -> torch.Tensor:
        ids = torch.randint(0, number - 1, (3, length), generator=generator)
        return ids + (ids >= config.pad_token_id)

    read, write = drawn(words, tokens), drawn(others, tokens - 2)
    yield {"input_ids": read, "decoder_input_ids": write}
    for length, of_decoder in ((tokens, False), (tokens - 2, True)):
        place, end = torch.arange(length), torch.tensor([length, length // 2, 1])[:, None]
        holes = torch.rand(3, length, generator=generator) > 0.4
        holes[:, 0] = True
        for real in (place < end, holes, place >= length - end):
            filled = {"decoder_attention_mask" if of_decoder else "attention_mask": real.long()}
            name = "decoder_input_ids" if of_decoder else "input_ids"
            filled[name] = (write if of_decoder else read).masked_fill(~real, config.pad_token_id)
            yield {"input_ids": read, "decoder_input_ids": write, **filled}
    if hasattr(theirs, "lm_head"):
        yield {"input_ids": read, "labels": write.masked_fill(torch.rand(write.shape, generator=generator) < 0.3, -100)}
    if config.model_type == "bart":
        yield {"input_ids": read.masked_fill(torch.arange(tokens) > 5, config.pad_token_id)}


@torch.no_grad()
def agree(ours: Any, theirs: Any, bound: float = 1e-12, tokens: int = 9, more: tuple[str, ...] = STATES) -> None:
    """Every output that both have is equal within `bound` of the largest, on every kind of text."""
    asked = {"output_hidden_states": more == STATES, "output_attentions": more == MAPS}
    for batch in inputs(theirs, tokens):
        if more == MAPS and not batch.get("decoder_attention_mask", torch.ones(1, 1))[:, 0].all():
            continue  # what a token gives that sees nothing but padding is nobody's definition where weights are asked for
        own, other = ours(**batch, **asked)._asdict(), theirs(**batch, **asked, return_dict=True)
        answers = [name for name in ("logits", "last_hidden_state", "encoder_last_hidden_state") if other.get(name) is not None]
        assert len(answers) == 2
        compared = [(name, own[name], other[name]) for name in answers]
        for name in more:
            assert len(own[name]) == len(other[name]) > 0
            compared += [(name, *each) for each in zip(own[name], other[name])]
        for name, mine, others in compared:
            assert mine.shape == others.shape, name
            assert (mine - others).abs().max() <= bound * max(1.0, float(others.abs().max())), (name, [*batch])


def given_and_given_back(theirs: Any, folder: Path, out: Path) -> Any:
    """A folder of theirs is read and written again; ours, and what they open, agree with theirs all the way."""
    ours = zoo.load(folder)
    agree(ours, theirs)
    assert ours.num_parameters() == learned(theirs) and not ours.training
    assert {entry.status for entry in ours.load_report.entries} <= {"renamed", "ignored"}
    zoo.export(ours, out)
    back, info = type(theirs).from_pretrained(out, output_loading_info=True, dtype=torch.float64)
    sines = {name for name in info["missing_keys"] if name.endswith("embed_positions.weight")}  # which are made there
    assert info["missing_keys"] - sines == set() and not info["unexpected_keys"] and not info["mismatched_keys"]
    agree(ours, back.eval())
    again = zoo.load(out)
    assert again.config == ours.config
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), ours.state_dict().values()))
    return ours
