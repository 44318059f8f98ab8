"""Hugging Face's Mixtral, both ways: a Mistral whose feed-forwards are mixtures of experts."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any, ClassVar

from zoo.checkpoint.family import Wanted
from zoo.checkpoint.fields import Fields
from zoo.checkpoint.huggingface_llama import LAYER
from zoo.checkpoint.huggingface_mistral import HuggingFaceMistral
from zoo.checkpoint.rules import Rule, Stacked, rule

SPARSE = f"{LAYER}.block_sparse_moe"
EXPERT = {"w1": "gate", "w2": "down", "w3": "up"}
"""The layers of an expert, theirs and ours."""


class HuggingFaceMixtral(HuggingFaceMistral):
    """`MixtralModel` and the models with a head that are built on it."""

    model_type = "mixtral"
    class_name = "Mixtral"
    feedforward = "mixture-of-experts"
    defaults: ClassVar[Mapping[str, Any]] = {
        "vocab_size": 32000, "intermediate_size": 14336, "max_position_embeddings": 131072, "num_key_value_heads": 8,
        "rms_norm_eps": 1e-5, "rope_theta": 1e6, "sliding_window": None,
    }  # fmt: skip
    taps = (
        *(tap for tap in HuggingFaceMistral.taps if not tap[1].endswith("feedforward") and tap[1] != "stack.layers.{n}"),
        (f"{LAYER}.mlp.gate", "stack.layers.{n}.feedforward.router"),
        (f"{LAYER}.mlp", "stack.layers.{n}.feedforward"),
        (LAYER, "stack.layers.{n}"),
    )

    def read_feedforward(self, fields: Fields) -> dict[str, Any]:
        fields.take("output_router_logits", None)  # an argument of the call here
        experts = fields.number("num_experts", fields.number("num_local_experts", 8))
        return {
            "type": "mixture-of-experts",
            "experts": experts,
            "top_k": fields.number("num_experts_per_tok", 2),
            "expert": super().read_feedforward(fields),
            "balance": fields.number("router_aux_loss_coef", 0.001, whole=False),
            "jitter": fields.number("router_jitter_noise", 0.0, whole=False),
        }

    def write_feedforward(self, wanted: Wanted, feedforward: Any) -> tuple[Any, dict[str, Any]]:
        place = "stack.block.feedforward"
        wanted.part(f"{place}.expert", feedforward.expert, "gated")
        if feedforward.routing == "softmax-then-top-k":  # otherwise the shares of those chosen are the same anyway
            wanted.expect(f"{place}.normalise", feedforward.normalise, True)
        for name, value in {"shared": None, "router_bias": False, "precision": "softmax", "capacity": None}.items():
            wanted.expect(f"{place}.{name}", getattr(feedforward, name), value)
        wanted.training_only(f"{place}.z_loss", feedforward.z_loss)
        return feedforward.expert, {
            "num_local_experts": feedforward.experts,
            "num_experts_per_tok": feedforward.top_k,
            "router_aux_loss_coef": feedforward.balance,
            "router_jitter_noise": feedforward.jitter,
        }

    def rules(self, config: Any, names: Collection[str] = ()) -> Iterable[Rule]:
        ours, experts = "stack.layers.{n}.feedforward", range(config.stack.block.feedforward.experts)
        return [
            *(each for each in super().rules(config, names) if ".mlp." not in each.theirs[0]),
            rule(f"{SPARSE}.gate.weight", f"{ours}.router.weight"),
            *(
                Rule(
                    tuple(f"{SPARSE}.experts.{expert}.{theirs}.weight" for expert in experts),
                    (f"{ours}.experts.{name}.weight",),
                    Stacked(),
                )
                for theirs, name in EXPERT.items()
            ),
        ]
