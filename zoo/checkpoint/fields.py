"""Reading another library's config exhaustively: each field is used, checked or ignored for a reason."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zoo.errors import ConfigError, one_of

_NEEDED = object()


class Fields:
    """The fields of a config that is not ours; every one has to be accounted for.

    Args:
        values: the config as read.
        place: what an error calls it.
        ignored: fields without influence on what the model computes, each with the reason.
    """

    def __init__(self, values: Mapping[str, Any], place: str, ignored: Mapping[str, str]) -> None:
        self.values, self.place = dict(values), place
        self.left = set(self.values) - set(ignored)

    def take(self, name: str, default: Any = _NEEDED) -> Any:
        """The value of a field; `default` is what the reference means where it is absent."""
        self.left.discard(name)
        value = self.values.get(name, default)
        if value is _NEEDED:
            raise self.error(name, "missing")
        return value

    def number(self, name: str, default: Any = _NEEDED, whole: bool = True) -> Any:
        """A number, as `take`."""
        value = self.take(name, default)
        if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
            raise self.error(name, f"expected a {'whole ' if whole else ''}number, got {value!r}")
        return value

    def size(self, name: str, default: int) -> Any:
        """A height and a width, or one number for both, as `take`."""
        value = self.take(name, default)
        sides = value if isinstance(value, (list, tuple)) else [value, value]
        if len(sides) != 2 or not all(isinstance(side, int) and not isinstance(side, bool) and side > 0 for side in sides):
            raise self.error(name, f"expected a whole number above 0 or two, got {value!r:.60}")
        return value

    def flag(self, name: str, default: Any = _NEEDED) -> bool:
        """A truth value, as `take`."""
        value = self.take(name, default)
        if not isinstance(value, bool):
            raise self.error(name, f"expected true or false, got {value!r}")
        return value

    def choice(self, name: str, choices: Mapping[Any, Any], default: Any = _NEEDED) -> Any:
        """What the value stands for among `choices`."""
        value = self.take(name, default)
        if not isinstance(value, (str, bool, int, float, type(None))) or value not in choices:
            raise self.error(name, f"{value!r} is not supported; expected {one_of(choices)}")
        return choices[value]

    def require(self, name: str, *allowed: Any, why: str) -> None:
        """Checks a field whose other values we do not support."""
        if name in self.values and self.take(name) not in allowed:
            raise self.error(name, f"{self.values[name]!r} is not supported: {why}")

    def finish(self) -> None:
        """Refuses whatever has not been accounted for."""
        if self.left:
            shown = ", ".join(f"{name}={self.values[name]!r:.60}" for name in sorted(self.left))
            raise ConfigError(f"{self.place}: not supported: {shown}")

    def error(self, name: str, message: str) -> ConfigError:
        return ConfigError(f"{self.place}: {name}: {message}")


ACTIVATIONS = {
    "gelu": "gelu", "gelu_python": "gelu", "gelu_new": "gelu-tanh", "gelu_pytorch_tanh": "gelu-tanh",
    "gelu_python_tanh": "gelu-tanh", "gelu_fast": "gelu-tanh", "gelu_accurate": "gelu-tanh",
    "quick_gelu": "quick-gelu", "relu": "relu", "silu": "silu", "swish": "silu",
    "tanh": "tanh", "sigmoid": "sigmoid", "linear": "identity",
}  # fmt: skip
"""Hugging Face's names of activations. The ways to write the tanh approximation differ by less than 1e-10."""

WRITTEN_ACTIVATIONS = {
    "gelu": "gelu", "gelu-tanh": "gelu_pytorch_tanh", "quick-gelu": "quick_gelu", "relu": "relu", "silu": "silu",
    "tanh": "tanh", "sigmoid": "sigmoid", "identity": "linear",
}  # fmt: skip
"""What we write for ours."""

HUGGING_FACE_IGNORED = {
    "architectures": "read beside the fields",
    "model_type": "read beside the fields",
    "transformers_version": "who wrote the file",
    "_name_or_path": "where it came from",
    "name_or_path": "where it came from",
    "_commit_hash": "where it came from",
    "dtype": "the tensors carry their type",
    "torch_dtype": "the tensors carry their type",
    "initializer_range": "read beside the fields",
    "id2label": "read beside the fields",
    "label2id": "the inverse of id2label",
    "num_labels": "read beside the fields",
    "problem_type": "the loss is the task's",
    "finetuning_task": "a note",
    "return_dict": "the form of the output",
    "output_hidden_states": "an argument of the call here",
    "output_attentions": "an argument of the call here",
    "use_cache": "an argument of the call here",
    "attn_implementation": "which kernel computes, not what",
    "_attn_implementation": "which kernel computes, not what",
    "_attn_implementation_autoset": "which kernel computes, not what",
    "torchscript": "how the model is exported",
    "chunk_size_feed_forward": "splits a product without changing it",
    "gradient_checkpointing": "memory of training",
}


TEXT_IGNORED = {
    **dict.fromkeys(
        ("bos_token_id", "eos_token_id", "eos_token_ids", "sep_token_id", "cls_token_id", "mask_token_id", "unk_token_id",
         "tokenizer_class"),
        "read by the tokenizer and by generation",
    ),
    **dict.fromkeys(
        ("max_length", "min_length", "do_sample", "early_stopping", "num_beams", "num_beam_groups", "diversity_penalty",
         "temperature", "top_k", "top_p", "typical_p", "repetition_penalty", "length_penalty", "no_repeat_ngram_size",
         "encoder_no_repeat_ngram_size", "bad_words_ids", "num_return_sequences", "output_scores", "return_dict_in_generate",
         "forced_bos_token_id", "forced_eos_token_id", "remove_invalid_values", "exponential_decay_length_penalty",
         "suppress_tokens", "begin_suppress_tokens", "decoder_start_token_id", "prefix", "task_specific_params"),
        "an argument of generation",
    ),
    **dict.fromkeys(
        ("directionality", "pooler_fc_size", "pooler_num_attention_heads", "pooler_num_fc_layers", "pooler_size_per_head",
         "pooler_type", "output_past", "_num_labels", "use_bfloat16", "xla_device", "tf_legacy_loss", "language", "name"),
        "written into old files, read by no code",
    ),
}  # fmt: skip
"""Fields of texts without influence on what the model computes."""


def text_fields(values: Mapping[str, Any], place: str) -> Fields:
    """The fields of a model that reads texts, without those that every old config has and that change nothing.

    Raises:
        ConfigError: one of those that would change something, such as other positions.
    """
    fields = Fields(values, place, {**HUGGING_FACE_IGNORED, **TEXT_IGNORED})
    fields.require("position_embedding_type", "absolute", why="only learned positions that are added to the tokens")
    for name, value in {"add_cross_attention": False, "cross_attention_hidden_size": None, "is_encoder_decoder": False}.items():
        fields.require(name, value, why="this model has no encoder to attend to")
    fields.require("tie_encoder_decoder", False, why="this model has no encoder to share weights with")
    fields.require("pruned_heads", {}, None, why="heads of different number in each layer")
    return fields


def labels(values: Mapping[str, Any], default: int = 2) -> tuple[int, list[str] | None]:
    """How many classes a Hugging Face config has, and their names if they have any.

    As there, a number of another count than the names overrules them.
    """
    names, count = values.get("id2label"), values.get("num_labels")
    if names is not None and not isinstance(names, Mapping):
        raise ConfigError(f"id2label: expected names by number, got {names!r:.60}")
    if count is not None and (isinstance(count, bool) or not isinstance(count, int)):
        raise ConfigError(f"num_labels: expected a whole number, got {count!r:.60}")
    if names is None or (count is not None and count != len(names)):
        return (default if count is None else count), None
    try:
        ordered = [str(name) for _, name in sorted(names.items(), key=lambda item: int(item[0]))]
    except ValueError:
        raise ConfigError(f"id2label: expected numbers as keys, got {one_of(names)[7:]}") from None
    plain = ordered == [f"LABEL_{number}" for number in range(len(ordered))]
    return len(ordered), None if plain else ordered


def names_of(family: str, head: Any) -> dict[str, Any]:
    """The classes of a head of ours as a Hugging Face config says them.

    Raises:
        ConfigError: a head without classes, which they do not have.
    """
    if head.classes == 0:
        raise ConfigError(f"head.classes: {family} has no classifier with 0 classes; use `head: none`")
    names = head.labels or [f"LABEL_{number}" for number in range(head.classes)]
    return {
        "id2label": {str(number): name for number, name in enumerate(names)},
        "label2id": {name: number for number, name in enumerate(names)},
    }
