"""Hugging Face's Switch Transformers, both ways: a T5 of which some layers have a mixture of experts."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from zoo.checkpoint.clip import WantedTower
from zoo.checkpoint.family import Wanted
from zoo.checkpoint.fields import ACTIVATIONS, WRITTEN_ACTIVATIONS, Fields
from zoo.checkpoint.huggingface_clip import tower_taps
from zoo.checkpoint.huggingface_t5 import DECODER_TAPS, HuggingFaceT5
from zoo.checkpoint.huggingface_t5_stacks import (
    HuggingFaceT5Encoder,
    check_class,
    check_feedforward,
    first_class,
    is_kind,
    layer_rules,
    read_layers,
    t5_fields,
    words,
    write_layers,
)
from zoo.checkpoint.rules import Rule, Stacked, rule
from zoo.errors import ConfigError

KINDS = {"switch_transformers": "SwitchTransformers"}
DEFAULTS = {"vocab_size": 32128, "d_model": 768, "d_ff": 2048, "num_layers": 12, "num_heads": 12}
"""What absent fields mean there."""
SPARSE = "mixture-of-experts"
MIXTURE = {
    "num_experts": "experts", "expert_capacity": "capacity", "router_bias": "router_bias", "router_jitter_noise": "jitter",
    "router_aux_loss_coef": "balance", "router_z_loss_coef": "z_loss",
}  # fmt: skip
"""Fields of theirs, and of our mixture."""


def _taps(taps: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
    """T5's, by what the feed-forwards are called here."""
    return tuple((theirs.replace("DenseReluDense", "mlp"), ours) for theirs, ours in taps)


class HuggingFaceSwitch(HuggingFaceT5):
    """`SwitchTransformersForConditionalGeneration` and `SwitchTransformersModel`."""

    model_type = "switch_transformers"
    kinds = KINDS

    def tapped(self, config: Any) -> tuple[tuple[str, str], ...]:
        return tower_taps(config, {"encoder": _taps(HuggingFaceT5Encoder.taps), "decoder": _taps(DECODER_TAPS)})

    def read_side(self, fields: Fields, kind: str, side: str) -> dict[str, Any]:
        return read_sparse(fields, side)

    def write_side(self, wanted: WantedTower, config: Any, side: str) -> dict[str, Any]:
        return write_sparse(wanted, config, side)

    def side_rules(self, config: Any, side: str) -> list[Rule]:
        return [*layer_rules(side), *sparse_rules(config, side)]

    def read_scaled(self, fields: Fields, kind: str) -> bool:
        fields.require("tie_word_embeddings", True, why="both stacks and the scores share the vectors of tokens")
        return True

    def write_scores(self, wanted: Wanted, head: Any) -> dict[str, bool]:
        if head is not None:
            wanted.expect("decoder.head.tied", head.tied, True)
            wanted.expect("decoder.head.scale", head.scale is not None, True)
        return {"tie_word_embeddings": True}


class HuggingFaceSwitchEncoder(HuggingFaceT5Encoder):
    """`SwitchTransformersEncoderModel`."""

    model_type = "switch_transformers"
    taps = _taps(HuggingFaceT5Encoder.taps)

    def recognises(self, values: Mapping[str, Any]) -> bool:
        return is_kind(values, KINDS) and first_class(values).endswith("EncoderModel")

    def read_config(self, values: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
        check_class(values, self.model_type, KINDS[self.model_type], "EncoderModel")
        fields = t5_fields(values, self.model_type)
        model = read_sparse(fields, "encoder")
        others = ("num_decoder_layers", "num_sparse_decoder_layers", "decoder_sparse_step", "tie_word_embeddings")
        for name in (*others, "pad_token_id"):
            fields.take(name, None)
        fields.finish()
        return model

    def write_config(self, config: Any) -> dict[str, Any]:
        wanted = WantedTower("Hugging Face's SwitchTransformersEncoderModel")
        values = write_sparse(wanted, config, "encoder")
        wanted.part("head", config.head, None)
        return {"architectures": ["SwitchTransformersEncoderModel"], "model_type": self.model_type, **values}

    def rules(self, config: Any, names: Collection[str] = ()) -> Iterable[Rule]:
        return [rule(words(names), "embedding.table"), *layer_rules("encoder"), *sparse_rules(config, "encoder")]


def read_sparse(fields: Fields, side: str) -> dict[str, Any]:
    """Our fields for the transformer of a side."""
    name = fields.take("dense_act_fn", "relu")
    activation = fields.choice("dense_act_fn", ACTIVATIONS, "relu")
    fields.require("feed_forward_proj", name, why="dense_act_fn says otherwise")  # read by no code
    fields.require("is_gated_act", False, why="their layers have no gates")
    fields.require("router_dtype", "float32", why="routers are computed in float32")
    fields.require("router_type", "tokens_masked", None, why="tokens choose their experts")
    fields.require("batch_prioritized_routing", False, why="experts take tokens in the order of the text")
    for each in ("router_ignore_padding_tokens", "add_router_probs"):
        fields.take(each, None)  # read by no layer
    model = read_layers(fields, DEFAULTS, side, {"type": "mlp", "activation": activation})
    stack = model["stack"]
    mixture = {
        "type": SPARSE, "top_k": 1, "routing": "softmax-then-top-k", "normalise": False, "precision": "router",
        "experts": fields.number("num_experts", 8),
        "capacity": fields.number("expert_capacity", 64),
        "router_bias": fields.flag("router_bias", False),
        "jitter": fields.number("router_jitter_noise", 0.01, whole=False),
        "balance": fields.number("router_aux_loss_coef", 0.001, whole=False),
        "z_loss": fields.number("router_z_loss_coef", 0.001, whole=False),
        "expert": stack["block"]["feedforward"],
    }  # fmt: skip
    number, depth = fields.number(f"num_sparse_{side}_layers", 3), stack["depth"]
    step = fields.number(f"{side}_sparse_step", depth // number if number > 0 else depth)
    sparse = _sparse(step, depth)
    if step == 1:
        stack["block"]["feedforward"] = mixture
    elif any(sparse):
        step = next(each for each in range(2, step + 1) if _sparse(each, depth) == sparse)  # of those that mean the same
        stack["pattern"] = [{"feedforward": mixture} if layer == 1 else {} for layer in range(min(step, depth))]
    return model


def write_sparse(wanted: WantedTower, config: Any, side: str) -> dict[str, Any]:
    """Their fields for our transformer of a side.

    Raises:
        ConfigError: theirs is another one.
    """
    values = write_layers(wanted, config, side)
    stack, blocks = config.stack, config.stack.blocks()
    path = "stack.block.feedforward"
    for block in blocks:
        if block.model_copy(update={"feedforward": blocks[0].feedforward}) != blocks[0]:
            raise ConfigError(f"stack.pattern: {wanted.family} has no model whose layers differ in more than the feedforward")
        wanted.part(path, block.feedforward, "mlp", SPARSE)
    mixtures = [block.feedforward for block in blocks if block.feedforward.type == SPARSE]
    dense = [block.feedforward for block in blocks if block.feedforward.type != SPARSE]
    for each in [*dense, *(mixture.expert for mixture in mixtures)]:
        check_feedforward(wanted, path, each, stack.block.dropout, "mlp")
        wanted.equal(path, each, "the other layers", (dense or [mixtures[0].expert])[0])
    for mixture in mixtures:
        wanted.equal(path, mixture, "the other layers", mixtures[0])
    inner = (dense or [mixtures[0].expert])[0]
    if mixtures:
        values |= _write_mixture(wanted, path, mixtures[0])
    return {
        **values,
        "d_ff": inner.inner(stack.width),
        "dense_act_fn": {**WRITTEN_ACTIVATIONS, "gelu-tanh": "gelu_new"}[inner.activation],
        f"num_sparse_{side}_layers": len(mixtures),
        f"{side}_sparse_step": _step(wanted, [block.feedforward.type == SPARSE for block in blocks]),
    }


def _write_mixture(wanted: Wanted, path: str, mixture: Any) -> dict[str, Any]:
    for name, value in {"top_k": 1, "routing": "softmax-then-top-k", "normalise": False, "shared": None}.items():
        wanted.expect(f"{path}.{name}", getattr(mixture, name), value)
    # in whatever precision: float32 has the same
    if mixture.capacity is None:
        raise ConfigError(f"{path}.capacity: {wanted.family} has experts that take so many tokens of a text; set it")
    return {theirs: getattr(mixture, ours) for theirs, ours in MIXTURE.items()}


def _sparse(step: int, depth: int) -> list[bool]:
    """Which layers have experts: the second one, and each that is so many layers on; all where that is one, none for zero."""
    return [step > 0 and (layer % step == 1 or step == 1) for layer in range(depth)]


def _step(wanted: Wanted, sparse: list[bool]) -> int:
    """With which step just these layers have experts."""
    for step in range(len(sparse) + 2):
        if sparse == _sparse(step, len(sparse)):
            return step
    where = ", ".join(str(layer) for layer, each in enumerate(sparse) if each)
    raise ConfigError(f"stack.pattern: {wanted.family} has no model with experts in the layers {where} alone")


def sparse_rules(config: Any, side: str) -> list[Rule]:
    """The rules for the feed-forwards of a side, with experts or without."""
    found = []
    for layer, block in enumerate(config.stack.blocks()):
        theirs = f"{side}.block.{layer}.layer.{2 if side == 'decoder' else 1}.mlp"
        ours, names = f"stack.layers.{layer}.feedforward", {"wi": "up", "wo": "down"}
        if block.feedforward.type != SPARSE:
            found += [rule(f"{theirs}.{name}.weight", f"{ours}.{own}.weight") for name, own in names.items()]
            continue
        found += [rule(f"{theirs}.router.classifier.{kind}", f"{ours}.router.{kind}") for kind in ("weight", "bias")]
        for name, own in names.items():
            each = tuple(f"{theirs}.experts.expert_{expert}.{name}.weight" for expert in range(block.feedforward.experts))
            found.append(Rule(each, (f"{ours}.experts.{own}.weight",), Stacked()))
    return found
