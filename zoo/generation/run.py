"""From a prompt to a text: what `Model.generate` does."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from zoo import kernel
from zoo.cache import Cache
from zoo.errors import InputError
from zoo.generation.beam import search
from zoo.generation.options import GenerationOptions, options_of
from zoo.generation.output import GenerateOutput
from zoo.generation.prompt import Prompt, prompt_of
from zoo.generation.sampling import Kept, chances, decode
from zoo.generation.scores import processors_of
from zoo.generation.source import Source, SourceSteps
from zoo.generation.steps import Steps
from zoo.generation.stopping import Stop, filling

ARGUMENTS = (
    "input_ids", "attention_mask", "position_ids", "past_key_values", "logits_processor", "tokenizer", "streamer", "generator",
)  # fmt: skip
"""What `generate` takes beside the options."""
SOURCE_ARGUMENTS = (
    "input_ids", "attention_mask", "decoder_input_ids", "decoder_attention_mask", "encoder_outputs", "past_key_values",
    "logits_processor", "tokenizer", "streamer", "generator", "decoder_start_token_id",
)  # fmt: skip
"""The same of a model that writes from a source."""


def generate(
    model: Any,
    input_ids: Any,
    attention_mask: Any = None,
    *,
    position_ids: Any = None,
    past_key_values: Cache | None = None,
    logits_processor: Sequence[Any] | None = None,
    tokenizer: Any = None,
    streamer: Any = None,
    generator: torch.Generator | None = None,
    given: Mapping[str, Any],
    source: Source | None = None,
) -> Tensor | GenerateOutput:
    """See `zoo.model.base.Model.generate`; `given` are the options.

    Args:
        source: what a decoder's texts are written from; `model` is the decoder then.
    """
    arguments = ARGUMENTS if source is None else SOURCE_ARGUMENTS
    options = options_of(given, arguments, {"tokenizer": tokenizer, "streamer": streamer, "generator": generator})
    if options.strings and not callable(getattr(tokenizer, "decode", None)):
        raise InputError(f"tokenizer: expected something that can decode token ids, got {type(tokenizer).__name__}")
    if past_key_values is not None and not isinstance(past_key_values, Cache):
        raise InputError(f"past_key_values: expected what an earlier call gave, got {type(past_key_values).__name__}")
    prompt = prompt_of(model, input_ids, attention_mask, position_ids, past_key_values, options)
    # what comes back may be used where gradients are recorded, which tensors of inference mode may not
    lasting = options.return_dict_in_generate or past_key_values is not None
    whole = model if source is None else source.model
    with torch.no_grad() if lasting else torch.inference_mode(), _evaluating(whole), kernel.repeated():
        own = list(logits_processor or ())
        found = _decoded(model, prompt, options, past_key_values, own, tokenizer, streamer, generator, source)
    return found if options.return_dict_in_generate else found.sequences.clone()


def _decoded(
    model: Any,
    prompt: Prompt,
    options: GenerationOptions,
    past: Cache | None,
    own: list[Any],
    tokenizer: Any,
    streamer: Any,
    generator: torch.Generator | None,
    source: Source | None,
) -> GenerateOutput:
    beams, samples = options.num_beams > 1, options.num_return_sequences
    several = len(prompt.ids) * (options.num_beams if beams else samples)
    fill = filling(options, tokenizer, several)
    start = prompt.ids.shape[1]
    chance = chances(options, several, prompt.new, generator, prompt.ids.device)
    if past is not None and several > len(prompt.ids):
        past = copy.deepcopy(past)  # its rows are multiplied, which is not for the caller to see
    cache = model.new_cache(start + prompt.new - 1) if past is None else past
    if source is None:
        steps = Steps(model, cache)
    else:
        steps = SourceSteps(model, cache, source.read(), source.table)
    put = _put(streamer, prompt.ids)
    scores = steps.read(prompt, options.prefill_chunk_size)
    processors = processors_of(options, start, prompt.real, own, start + prompt.new)
    stop = Stop(options, tokenizer, prompt.ids.device)
    ids = prompt.ids
    if not beams and samples > 1:
        rows = torch.arange(len(ids), device=ids.device).repeat_interleave(samples)
        ids, scores = ids[rows], scores[rows]
        steps.choose(rows)
        processors.choose(rows)
    if beams and not fill and options.ends:
        fill = options.ends[0]  # beams that padding of number 0 would fill up are filled so by transformers
    tokens = torch.nn.functional.pad(ids, (0, prompt.new), value=fill or 0)
    kept = Kept([] if options.output_scores else None, [] if options.output_logits else None)
    drops = not options.return_dict_in_generate and not own and past is None
    if beams:
        sequences, worth = search(steps, tokens, start, scores, processors, stop, options, kept=kept, drops=drops)
    else:
        sequences = decode(
            steps, tokens, start, scores, processors, stop, fill=fill, chance=chance, kept=kept, streamer=put, drops=drops
        )
    if streamer is not None and hasattr(streamer, "end"):
        streamer.end()
    return GenerateOutput(
        sequences,
        sequences_scores=worth if beams else None,
        scores=None if kept.scores is None else tuple(kept.scores),
        logits=None if kept.logits is None else tuple(kept.logits),
        past_key_values=None if beams else steps.cache,
    )


def _put(streamer: Any, ids: Tensor) -> Any:
    """The function that takes new tokens: the streamer itself, or its `put`, which is given the prompts first.

    Raises:
        InputError: it is neither.
    """
    if streamer is None or not hasattr(streamer, "put"):
        if streamer is not None and not callable(streamer):
            raise InputError(f"streamer: expected a function, or an object with put and end, got {type(streamer).__name__}")
        return streamer
    streamer.put(ids.cpu())
    return streamer.put


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    """Decoding has no dropout. A model in training goes on with it afterwards, each of its modules as it was."""
    training = {module for module in model.modules() if module.training}
    if not training:
        yield
        return
    model.eval()
    try:
        yield
    finally:
        model.train(model in training)
        for module in model.modules():
            module.training = module in training
