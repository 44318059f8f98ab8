"""How to decode: the options of `generate`, and what they must not contradict."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, ValidationError

from zoo.config import Config, Problem
from zoo.config.base import Count, PositiveInt, raise_problems
from zoo.config.messages import found
from zoo.errors import InputError, did_you_mean

Positive = Annotated[float, Field(gt=0)]
DEFAULT_NEW = 20
"""How many tokens are generated where nobody says how many."""
SAMPLING = ("temperature", "top_k", "top_p", "min_p", "seed")
BEAMS = ("length_penalty", "early_stopping")


class GenerationOptions(Config):
    """The options of `Model.generate`, named and meant as in transformers. Unknown or contradicting ones are errors."""

    model_config = ConfigDict(strict=True)

    max_new_tokens: PositiveInt | None = None
    """How many tokens are generated at most (default: 20, or fewer where the model has no positions for them)."""
    max_length: PositiveInt | None = None
    """The same with the prompt counted in, its padding too."""
    min_new_tokens: Count = 0
    """No `eos_token_id` is chosen before so many tokens."""
    min_length: Count = 0
    """The same with the prompt counted in."""
    do_sample: bool = False
    """Whether tokens are drawn by their probabilities; otherwise the likeliest one is taken."""
    temperature: Positive = 1.0
    """What the scores are divided by: below 1 likely tokens become likelier."""
    top_k: Count = 50
    """Draws from so many of the likeliest tokens; 0 stands for all."""
    top_p: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Draws from the fewest tokens that have this probability together (Holtzman et al. 2019,
    https://arxiv.org/abs/1904.09751)."""
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    """Draws from the tokens that have this share of the likeliest one's probability."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] | list[Annotated[int, Field(ge=0, lt=2**63)]] | None = None
    """Row r of the result draws by the seed `seed` + r, or by the r-th of a list, whatever other rows there are (default:
    by `generator`, or torch's own)."""
    repetition_penalty: Positive = 1.0
    """The scores of tokens that stand in the prompt or were generated are divided by this, or multiplied where they are
    negative (Keskar et al. 2019, https://arxiv.org/abs/1909.05858)."""
    no_repeat_ngram_size: Count = 0
    """No run of so many tokens comes twice, the prompt counted in; 0 allows all."""
    bad_words_ids: Annotated[list[Annotated[list[Count], Field(min_length=1)]], Field(min_length=1)] | None = None
    """Runs of tokens that must not come; what would complete one is ruled out."""
    forced_bos_token_id: Count | None = None
    """The token that comes first behind a single one, such as the language to be written in."""
    forced_eos_token_id: Count | None = None
    """The token that comes last where a text becomes as long as it may."""
    suppress_tokens: Annotated[list[Count], Field(min_length=1)] | None = None
    """Tokens that are never chosen."""
    num_beams: PositiveInt = 1
    """How many continuations of each prompt are followed at once."""
    length_penalty: float = 1.0
    """What beams end with is their log-probability divided by their length to this power: above 0 favours longer ones."""
    early_stopping: bool | Literal["never"] = False
    """When a prompt's beams end: as soon as `num_beams` have come to an end (true); when those that go on can hardly become
    better at the length they have (false); or when they cannot at any length ("never")."""
    num_return_sequences: PositiveInt = 1
    """How many texts are returned for each prompt, one after another: the best beams, or so many samples."""
    eos_token_id: Count | Annotated[list[Count], Field(min_length=1)] | None = None
    """The token, or any of several, that ends a text."""
    pad_token_id: Count | None = None
    """Fills texts up that end before others (default: the first `eos_token_id`)."""
    stop_strings: Annotated[str, Field(min_length=1)] | list[Annotated[str, Field(min_length=1)]] | None = None
    """A text ends as soon as any of these stands at its end, or in the last token; needs a `tokenizer`."""
    prefill_chunk_size: PositiveInt | None = None
    """How many tokens of the prompt are read at once, so that long ones need less memory (default: all)."""
    use_cache: Literal[True] = True
    """Keys and values are always kept."""
    return_dict_in_generate: bool = False
    """Whether to return a `GenerateOutput` instead of the token ids alone."""
    output_scores: bool = False
    """Whether it holds the scores that tokens were chosen by."""
    output_logits: bool = False
    """Whether it holds the scores as the model gave them."""

    @classmethod
    def label(cls) -> str:
        return "generate"

    @property
    def ends(self) -> tuple[int, ...]:
        """The tokens that end a text."""
        eos = self.eos_token_id
        return () if eos is None else (eos,) if isinstance(eos, int) else tuple(eos)

    @property
    def strings(self) -> tuple[str, ...]:
        """The texts that end a text."""
        stop = self.stop_strings
        return () if stop is None else (stop,) if isinstance(stop, str) else tuple(stop)


def options_of(given: Mapping[str, Any], arguments: Iterable[str], tools: Mapping[str, Any]) -> GenerationOptions:
    """The options of a call; None stands for an option that is not given.

    Args:
        arguments: what the call takes beside them.
        tools: those of them that are no data, by name: `tokenizer`, `streamer`, `generator`.

    Raises:
        InputError: an unknown option, a value that is none, or options that contradict each other.
    """
    known = (*arguments, *GenerationOptions.model_fields)
    for name in given:
        if name not in known:
            raise InputError(
                f"{name}: generate knows no such option{did_you_mean(name, known) or '; it knows ' + ', '.join(known)}"
            )
    try:
        options = GenerationOptions(**{name: value for name, value in given.items() if value is not None})
        raise_problems("generate", list(_contradictions(options, tools)))
    except ValidationError as error:
        (place, message), *_ = found(error)
        raise InputError(f"{place[0]}: {message}") from None
    return options


def _contradictions(options: GenerationOptions, tools: Mapping[str, Any]) -> Iterable[Problem]:
    named = [name for name, field in GenerationOptions.model_fields.items() if getattr(options, name) != field.default]
    beams = options.num_beams
    if options.max_new_tokens is not None and options.max_length is not None:
        yield ("max_length",), "say either this or max_new_tokens"
    for name in ("forced_bos_token_id", "forced_eos_token_id"):
        if getattr(options, name) in (options.suppress_tokens or ()):
            yield (name,), f"{getattr(options, name)} is one of suppress_tokens, so that no token would be left"
    if options.min_new_tokens and options.min_length:
        yield ("min_length",), "say either this or min_new_tokens"
    if options.min_new_tokens > (options.max_new_tokens or options.min_new_tokens):
        yield ("min_new_tokens",), f"{options.min_new_tokens} is more than max_new_tokens, {options.max_new_tokens}"
    if options.do_sample and beams > 1:
        yield ("do_sample",), f"num_beams={beams} follows the likeliest texts, and draws none; choose one of them"
    if not options.do_sample:
        for name in (*(name for name in SAMPLING if name in named), *(["generator"] if tools["generator"] is not None else [])):
            yield (name,), "without do_sample=True nothing is drawn"
    if options.seed is not None and tools["generator"] is not None:
        yield ("seed",), "say either this or generator"
    if beams == 1:
        yield from (((name,), "there are no beams; say num_beams") for name in BEAMS if name in named)
    if beams > 1 and tools["streamer"] is not None:
        yield ("streamer",), f"with num_beams={beams} no token is certain before the end"
    returned = options.num_return_sequences
    if returned > beams and not options.do_sample:
        what = f"there are {beams} beams" if beams > 1 else "the likeliest text is one; say do_sample=True or num_beams"
        yield ("num_return_sequences",), f"{returned} are wanted, and {what}"
    if options.strings and tools["tokenizer"] is None:
        yield ("stop_strings",), "what tokens stand for is known to the tokenizer: say tokenizer=..."
    for name in ("output_scores", "output_logits"):
        if getattr(options, name) and not options.return_dict_in_generate:
            yield (name,), "needs return_dict_in_generate=True"
