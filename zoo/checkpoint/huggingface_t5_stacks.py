"""The stacks of Hugging Face's T5, the encoder alone and those of a whole model, both ways."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any, ClassVar

from zoo.checkpoint.clip import WantedTower
from zoo.checkpoint.family import Family, Wanted
from zoo.checkpoint.fields import ACTIVATIONS, HUGGING_FACE_IGNORED, TEXT_IGNORED, WRITTEN_ACTIVATIONS, Fields
from zoo.checkpoint.rules import Rule, rule
from zoo.errors import ConfigError, one_of

KINDS = {"t5": "T5", "mt5": "MT5"}
"""The start of the names of classes, by `model_type`: the two have the same layers, and other defaults."""
DEFAULTS: dict[str, dict[str, Any]] = {
    "t5": {
        "vocab_size": 32128, "d_model": 512, "d_ff": 2048, "num_layers": 6, "num_heads": 8, "feed_forward_proj": "relu",
    },
    "mt5": {
        "vocab_size": 250112, "d_model": 512, "d_ff": 1024, "num_layers": 8, "num_heads": 6, "feed_forward_proj": "gated-gelu",
    },
}  # fmt: skip
"""What absent fields mean there."""
WITHOUT_INFLUENCE = (
    "n_positions", "classifier_dropout", "is_encoder_decoder", "is_decoder", "add_cross_attention",
    "cross_attention_hidden_size",
)  # fmt: skip
"""Fields that no layer of a model without a classifier reads."""
TABLES = ("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
"""The vectors of tokens, which files hold under the first name, or several times."""
UNUSED = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
PRECISION = "float32-mean"


class HuggingFaceT5Encoder(Family):
    """`T5EncoderModel`, and mT5's."""

    library = "transformers"
    model_type = "t5"
    heads = ("",)  # no name carries a prefix
    ignored = {
        "encoder.embed_tokens.weight": "a copy of the embedding",
        "shared.weight": "a copy of the embedding",
        "decoder.*": "of the decoder, which this model does not have",
        "lm_head.weight": "of the decoder, which this model does not have",
    }
    taps: ClassVar[tuple[tuple[str, str], ...]] = (
        ("encoder.embed_tokens", "embedding"),
        ("encoder.block.{n}.layer.0.layer_norm", "stack.layers.{n}.attention_norm"),
        ("encoder.block.{n}.layer.0.SelfAttention", "stack.layers.{n}.attention"),
        ("encoder.block.{n}.layer.1.layer_norm", "stack.layers.{n}.feedforward_norm"),
        ("encoder.block.{n}.layer.1.DenseReluDense", "stack.layers.{n}.feedforward"),
        ("encoder.block.{n}", "stack.layers.{n}"),
        ("encoder.final_layer_norm", "stack.final_norm"),
    )

    def recognises(self, values: Mapping[str, Any]) -> bool:
        return is_kind(values) and first_class(values).endswith("EncoderModel")

    def read_config(self, values: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
        kind = kind_of(values)
        check_class(values, kind, KINDS[kind], "EncoderModel")
        fields = t5_fields(values, kind)
        model = read_stack(fields, kind, "encoder")
        for name in ("num_decoder_layers", "tie_word_embeddings", "scale_decoder_outputs", "pad_token_id"):
            fields.take(name, None)
        fields.finish()
        return model

    def write_config(self, config: Any) -> dict[str, Any]:
        wanted = WantedTower("Hugging Face's T5EncoderModel")
        values = write_stack(wanted, config, "encoder")
        wanted.part("head", config.head, None)
        return {"architectures": ["T5EncoderModel"], "model_type": "t5", **values}

    def rules(self, config: Any, names: Collection[str] = ()) -> Iterable[Rule]:
        return [rule(words(names), "embedding.table"), *stack_rules(config, "encoder")]


def is_kind(values: Mapping[str, Any], kinds: Mapping[str, str] = KINDS) -> bool:
    """Whether a `config.json` with these values is one of these kinds."""
    kind = values.get("model_type")
    return (isinstance(kind, str) and kind in kinds) or (kind is None and first_class(values).startswith(tuple(kinds.values())))


def kind_of(values: Mapping[str, Any], kinds: Mapping[str, str] = KINDS) -> str:
    """The `model_type`, or what the name of the class says in its stead."""
    named = next((kind for kind, start in kinds.items() if first_class(values).startswith(start)), next(iter(kinds)))
    return str(values.get("model_type") or named)


def first_class(values: Mapping[str, Any]) -> str:
    """The class that a `config.json` names; an empty one where there is none."""
    listed = values.get("architectures")
    return str(listed[0]) if isinstance(listed, list) and listed else ""


def check_class(values: Mapping[str, Any], kind: str, start: str, *ends: str) -> str:
    """The end of the name of the class, which has to be one of these; the first where none is named.

    Raises:
        ConfigError: another class.
    """
    listed = values.get("architectures")
    if listed and not isinstance(listed, list):
        raise ConfigError(f"{kind}: architectures: expected a list, got {listed!r:.60}")
    known = {f"{start}{end}": end for end in ends}
    name = first_class(values) or next(iter(known))
    old = {f"{start}WithLMHeadModel": f"{start}ForConditionalGeneration"}  # as it was called until 2020
    if old.get(name, name) not in known:
        raise ConfigError(f"{kind}: architectures: {name} is not supported; expected {one_of(known)}")
    return known[old.get(name, name)]


def t5_fields(values: Mapping[str, Any], place: str) -> Fields:
    """The fields of a model, without those that change nothing."""
    fields = Fields(values, place, {**HUGGING_FACE_IGNORED, **TEXT_IGNORED})
    for name in WITHOUT_INFLUENCE:
        fields.take(name, None)
    fields.require("tie_encoder_decoder", False, why="the layers of the two stacks have weights of their own")
    fields.require("pruned_heads", {}, None, why="heads of different number in each layer")
    return fields


def read_stack(fields: Fields, kind: str, side: str) -> dict[str, Any]:
    """Our fields for the transformer of a side."""
    defaults = DEFAULTS[kind]
    gated, activation = _read_activation(fields, defaults["feed_forward_proj"])
    return read_layers(fields, defaults, side, {"type": "gated" if gated else "mlp", "activation": activation})


def read_layers(fields: Fields, defaults: Mapping[str, Any], side: str, feedforward: dict[str, Any]) -> dict[str, Any]:
    """Our fields for the transformer of a side, whose feed-forwards say these as well."""
    width, heads = fields.number("d_model", defaults["d_model"]), fields.number("num_heads", defaults["num_heads"])
    head_size, dropout = fields.number("d_kv", 64), fields.number("dropout_rate", 0.1, whole=False)
    depth = fields.number("num_layers", defaults["num_layers"])
    if side == "decoder" and fields.take("num_decoder_layers", None) is not None:
        depth = fields.number("num_decoder_layers")
    attention = {
        "type": "full", "heads": heads, "head_size": None if heads * head_size == width else head_size, "scale": 1.0,
        "bias": False, "output_bias": False, "dropout": dropout,
    }  # fmt: skip
    norm = {"type": "rms-norm", "eps": fields.number("layer_norm_epsilon", 1e-6, whole=False), "precision": PRECISION}
    hidden = fields.number("d_ff", defaults["d_ff"])
    block = {
        "type": "residual", "order": "pre", "norm": norm, "dropout": dropout,
        "attention": {**attention, "causal": side == "decoder"},
        "cross_attention": attention if side == "decoder" else None,
        "feedforward": {**feedforward, "hidden": hidden, "bias": False, "dropout": dropout},
    }  # fmt: skip
    vocabulary = fields.number("vocab_size", defaults["vocab_size"])
    return {
        "type": "transformer",
        "init": {"type": "fan-in", "factor": fields.number("initializer_factor", 1.0, whole=False)},
        "embedding": {"type": "tokens", "vocabulary": vocabulary, "dropout": dropout},
        "stack": {
            "type": "uniform",
            "width": width,
            "depth": depth,
            "position": {
                "type": "relative-bucket",
                "buckets": fields.number("relative_attention_num_buckets", 32),
                "distance": fields.number("relative_attention_max_distance", 128),
            },
            "final_norm": norm,
            "dropout": dropout,
            "block": block,
        },
    }


def write_stack(wanted: WantedTower, config: Any, side: str) -> dict[str, Any]:
    """Their fields for our transformer of a side.

    Raises:
        ConfigError: theirs is another one.
    """
    for block in config.stack.blocks() if config.stack.type == "uniform" else []:
        if block.feedforward.type not in ("mlp", "gated"):  # a model of another family
            wanted.part("stack", block.feedforward, "mlp", "gated")
    values = write_layers(wanted, config, side)
    wanted.expect("stack.pattern", config.stack.pattern, None)
    feedforward = config.stack.block.feedforward
    check_feedforward(wanted, "stack.block.feedforward", feedforward, config.stack.block.dropout, "mlp", "gated")
    return {**values, "d_ff": feedforward.inner(config.stack.width), **_write_activation(feedforward)}


def write_layers(wanted: WantedTower, config: Any, side: str) -> dict[str, Any]:
    """The same, of everything but the feed-forwards, and where layers may differ in these."""
    embedding, stack = config.embedding, config.stack
    if getattr(getattr(stack, "position", None), "type", None) != "relative-bucket":
        # of another kind altogether, so that what else is in the way is of no interest
        wanted.part("stack", stack.position if stack.type == "uniform" else stack, "relative-bucket")
    wanted.part("embedding", embedding, "tokens")
    for name, value in {
        "segments": 0, "segment_vectors": "own", "padding": None, "count": "all", "norm": None, "position": None,
    }.items():  # fmt: skip
        wanted.expect(f"embedding.{name}", getattr(embedding, name), value)
    wanted.expect("embedding.scale", embedding.scale, None, 1.0)
    wanted.part("stack", stack, "uniform")
    block = stack.block
    wanted.part("stack.block", block, "residual")
    wanted.expect("stack.block.order", block.order, "pre")
    wanted.expect("stack.block.layer_scale", block.layer_scale, None)
    wanted.part("stack.block.norm", block.norm, "rms-norm")  # in whatever precision: float32 has the same
    wanted.equal("stack.final_norm", stack.final_norm, "stack.block.norm", block.norm)
    wanted.part("stack.block.cross_attention", block.cross_attention, "full" if side == "decoder" else None)
    head_size = _check_attention(wanted, "attention", block.attention, stack.width, side == "decoder")
    if side == "decoder":
        across, path = block.cross_attention, "stack.block.cross_attention"
        size = _check_attention(wanted, "cross_attention", across, stack.width, False)
        wanted.equal(f"{path}.heads", across.heads, "stack.block.attention.heads", block.attention.heads)
        wanted.equal(f"{path}.head_size", size, "stack.block.attention.head_size", head_size)
    _check_training(wanted, config)
    return {
        "vocab_size": embedding.vocabulary,
        "d_model": stack.width,
        "d_kv": head_size,
        "num_layers": stack.depth,
        "num_heads": block.attention.heads,
        "relative_attention_num_buckets": stack.position.buckets,
        "relative_attention_max_distance": stack.position.distance,
        "dropout_rate": block.dropout,
        "layer_norm_epsilon": block.norm.eps,
        "initializer_factor": getattr(config.init, "factor", 1.0),
    }


def check_feedforward(wanted: Wanted, path: str, feedforward: Any, dropout: float, *types: str) -> None:
    """Raises where a feed-forward is none of these types as theirs has it."""
    wanted.part(path, feedforward, *types)
    wanted.expect(f"{path}.bias", feedforward.bias, False)
    wanted.expect(f"{path}.norm", feedforward.norm, None)
    wanted.training_only(f"{path}.dropout", feedforward.dropout, dropout)


def stack_rules(config: Any, side: str) -> list[Rule]:
    """The rules for the stack of a side."""
    gated = config.stack.block.feedforward.type == "gated"
    dense = f"{side}.block.{{n}}.layer.{2 if side == 'decoder' else 1}.DenseReluDense"
    names = {"wi_0": "gate", "wi_1" if gated else "wi": "up", "wo": "down"}
    inner = [
        rule(f"{dense}.{theirs}.weight", f"stack.layers.{{n}}.feedforward.{ours}.weight") for theirs, ours in names.items()
    ]
    return [*layer_rules(side), *inner]


def layer_rules(side: str) -> list[Rule]:
    """The same, of everything but the feed-forwards."""
    theirs, ours = f"{side}.block.{{n}}.layer", "stack.layers.{n}"
    attentions = {"SelfAttention": "attention"} | ({"EncDecAttention": "cross_attention"} if side == "decoder" else {})
    found = [
        rule(f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight", "stack.position.table"),
        rule(f"{side}.final_layer_norm.weight", "stack.final_norm.weight"),
    ]
    for number, (their_name, name) in enumerate(attentions.items()):
        found.append(rule(f"{theirs}.{number}.layer_norm.weight", f"{ours}.{name}_norm.weight"))
        for letter, part in {"q": "query", "k": "key", "v": "value", "o": "output"}.items():
            found.append(rule(f"{theirs}.{number}.{their_name}.{letter}.weight", f"{ours}.{name}.{part}.weight"))
    return [*found, rule(f"{theirs}.{len(attentions)}.layer_norm.weight", f"{ours}.feedforward_norm.weight")]


def words(names: Collection[str], *others: str) -> str:
    """Under which name a file has the vectors of tokens."""
    return next((name for name in (*TABLES, *others) if name in names), TABLES[0])


def differ(names: Any, first: str, second: str) -> bool:
    """Whether a file holds two tensors with these names and they are not equal."""
    if not isinstance(names, Mapping) or first not in names or second not in names:
        return False
    one, other = names[first], names[second]
    return one.shape != other.shape or not bool((one.fetch(first) == other.fetch(second)).all())


def _read_activation(fields: Fields, default: str) -> tuple[bool, str]:
    """Whether the feed-forward is gated, and our activation; two fields that follow from the first overrule it."""
    spelling = fields.take("feed_forward_proj", default)
    parts = spelling.split("-") if isinstance(spelling, str) else []
    if len(parts) not in (1, 2) or (len(parts) == 2 and parts[0] != "gated"):
        raise fields.error("feed_forward_proj", f"expected an activation, or one behind 'gated-', got {spelling!r:.60}")
    name = fields.take("dense_act_fn", "gelu_new" if spelling == "gated-gelu" else parts[-1])
    if not isinstance(name, str) or name not in ACTIVATIONS:
        place = "dense_act_fn" if "dense_act_fn" in fields.values else "feed_forward_proj"
        raise fields.error(place, f"{name!r:.60} is not supported; expected {one_of(ACTIVATIONS)}")
    return fields.flag("is_gated_act", parts[0] == "gated"), ACTIVATIONS[name]


def _write_activation(feedforward: Any) -> dict[str, Any]:
    names = {**WRITTEN_ACTIVATIONS, "gelu-tanh": "gelu_new"}
    if feedforward.type == "mlp":
        return {"feed_forward_proj": names[feedforward.activation]}
    names |= {"gelu-tanh": "gelu", "gelu": "gelu_python"}  # behind "gated-", theirs means the approximation by "gelu"
    return {"feed_forward_proj": f"gated-{names[feedforward.activation]}"}


def _check_attention(wanted: Wanted, name: str, attention: Any, width: int, causal: bool) -> int:
    """The size of a head of an attention that theirs has too."""
    place = f"stack.block.{name}"
    wanted.part(place, attention, "full")
    for field, allowed in {
        "kv_heads": (None, attention.heads), "bias": (False,), "output_bias": (False,), "qk_norm": (None,),
        "output_norm": (None,), "position": (None,), "causal": (causal,),
    }.items():  # fmt: skip
        wanted.expect(f"{place}.{field}", getattr(attention, field), *allowed)
    head_size: int = attention.head_size or width // attention.heads
    wanted.expect(f"{place}.scale", attention.scale or head_size**-0.5, 1.0)
    return head_size


def _check_training(wanted: Wanted, config: Any) -> None:
    """Warns of chance that theirs has otherwise: one share everywhere."""
    stack, block = config.stack, config.stack.block
    given = {
        "embedding.dropout": config.embedding.dropout,
        "stack.dropout": stack.dropout,
        "stack.block.attention_output_dropout": block.attention_output_dropout,
        "stack.block.attention.dropout": block.attention.dropout,
        "stack.block.cross_attention.dropout": getattr(block.cross_attention, "dropout", None),
    }
    for path, value in given.items():
        wanted.training_only(path, block.dropout if value is None else value, block.dropout)
    wanted.training_only("stack.drop_path", stack.drop_path)
