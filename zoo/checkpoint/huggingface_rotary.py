"""What Hugging Face's configs say of rotary positions, in today's spelling and that of version 4."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from zoo.checkpoint.family import Wanted
from zoo.checkpoint.fields import Fields
from zoo.errors import ConfigError, one_of

KINDS = ("default", "linear", "dynamic", "llama3", "yarn")
KNOWN = {
    "rope_type", "type", "rope_theta", "factor", "original_max_position_embeddings", "partial_rotary_factor",
    "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate", "low_freq_factor",
    "high_freq_factor", "finetuned",
}  # fmt: skip
"""Keys beside those that a kind reads are ignored there too."""
NAMES = ("rope_theta", "partial_rotary_factor")


def read_rotary(
    fields: Fields, length: int, head_size: int, share: float | None = None, names: tuple[str, str] = NAMES, theta: float = 1e4
) -> dict[str, Any]:
    """Our position for their fields: `rope_parameters`, or `rope_scaling` and `rope_theta`.

    Args:
        length: how many places the model was trained on.
        head_size: of which the reference cannot turn a share, unless it says which `share` an absent field means.
        names: what theta and the share are called beside `rope_scaling`.
        theta: what an absent field means.
    """
    partial = share is not None
    parameters, scaling = fields.take("rope_parameters", None), fields.take("rope_scaling", None)
    theta, given = fields.take(names[0], theta), fields.take(names[1], 1.0 if share is None else share)
    first = fields.take("original_max_position_embeddings", None)
    for name, value in {"rope_parameters": parameters, "rope_scaling": scaling}.items():
        if value is not None and not isinstance(value, Mapping):
            raise fields.error(name, f"expected a mapping, got {value!r:.60}")
    known = {} if given is None else {"partial_rotary_factor": given}
    rope = Fields({**known, **(scaling or parameters or {})}, fields.place, {})
    unknown = sorted(set(rope.values) - KNOWN)
    if unknown:
        raise fields.error("rope_parameters", f"not supported: {', '.join(unknown)}")
    kind = rope.take("rope_type", rope.take("type", "default"))
    if kind not in KINDS:
        raise fields.error("rope_type", f"{kind!r} is not supported; expected {one_of(KINDS)}")
    position = {"type": "rotary", "theta": float(rope.number("rope_theta", theta, whole=False)), "length": length}
    if kind == "default" and not partial:
        return position  # of which the whole head is turned, whatever the share
    turned = rope.number("partial_rotary_factor", 1.0, whole=False)
    if partial:
        position["fraction"] = float(turned)
    elif int(head_size * turned) != head_size:
        raise fields.error("partial_rotary_factor", f"{turned!r} is not supported: whole heads are turned")
    if kind == "default":
        return position
    if kind == "dynamic":
        return {**position, "scaling": {"type": kind, "factor": _number(rope, "factor"), "length": length}}
    if kind == "linear":
        return {**position, "scaling": {"type": kind, "factor": _number(rope, "factor")}}
    if first is not None:
        rope.values["original_max_position_embeddings"] = first  # which overrules the one within
    first = rope.number("original_max_position_embeddings", length)
    return {**position, "scaling": {"type": kind, "length": first, **_seldom_and_often(rope, kind, length / max(first, 1))}}


def _seldom_and_often(rope: Fields, kind: str, ratio: float) -> dict[str, Any]:
    """What `llama3` and `yarn` say of the features between which is blended."""
    if kind == "llama3":
        slow, fast = _number(rope, "low_freq_factor"), _number(rope, "high_freq_factor")
        return {"factor": _number(rope, "factor"), "slow": slow, "fast": fast}
    given = {name: rope.take(theirs, None) for name, theirs in {"fast": "beta_fast", "slow": "beta_slow"}.items()}
    scaling: dict[str, Any] = {
        "factor": ratio if "factor" in rope.values and rope.values["factor"] is None else _number(rope, "factor"),
        "truncate": rope.take("truncate", True),
        **{name: value for name, value in given.items() if value},  # none and 0 mean the default
    }
    attention = rope.take("attention_factor", None)
    if attention is None and rope.take("mscale", None) and rope.take("mscale_all_dim", None):
        first, second = (_magnitude(scaling["factor"], _number(rope, name)) for name in ("mscale", "mscale_all_dim"))
        attention = first / second
    return scaling | ({} if attention is None else {"attention": attention})


def write_rotary(
    wanted: Wanted, position: Any, path: str = "stack.block.attention.position", partial: bool = False, order: str = "halves"
) -> dict[str, Any]:
    """`rope_parameters` and `max_position_embeddings` for our position, of which the family turns a share if `partial`."""
    wanted.part(path, position, "rotary")
    if not partial:
        wanted.expect(f"{path}.fraction", position.fraction, 1.0)
    wanted.expect(f"{path}.order", position.order, order)
    if position.length is None:
        raise ConfigError(f"{path}.length: {wanted.family} says how many places a model was trained on; set it")
    scaling = position.scaling
    rope: dict[str, Any] = {"rope_type": "default" if scaling is None else scaling.type, "rope_theta": position.theta}
    if partial:
        rope["partial_rotary_factor"] = position.fraction
    if scaling is not None:
        rope["factor"] = scaling.factor
    if scaling is not None and scaling.type == "dynamic":
        wanted.equal(f"{path}.scaling.length", scaling.length, f"{path}.length", position.length)
    if scaling is not None and scaling.type in ("llama3", "yarn"):
        rope["original_max_position_embeddings"] = scaling.length
    if scaling is not None and scaling.type == "llama3":
        rope |= {"low_freq_factor": scaling.slow or 1.0, "high_freq_factor": scaling.fast or 4.0}
    if scaling is not None and scaling.type == "yarn":
        known = {"beta_fast": scaling.fast, "beta_slow": scaling.slow, "attention_factor": scaling.attention}
        rope |= {name: value for name, value in known.items() if value is not None} | {"truncate": scaling.truncate}
    return {"max_position_embeddings": position.length, "rope_parameters": rope}


def _number(rope: Fields, name: str) -> float:
    return float(rope.number(name, whole=False))


def _magnitude(factor: float, share: float) -> float:
    """How much attention sharpens where texts are `factor` times longer; cosine and sine grow by the ratio of two such."""
    return 0.1 * share * math.log(factor) + 1.0 if factor > 1 else 1.0
