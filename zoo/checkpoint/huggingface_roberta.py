"""Hugging Face's RoBERTa, both ways: BERT with positions counted behind padding and heads of its own."""

from __future__ import annotations

from zoo.checkpoint.huggingface_bert import OTHER_HEAD, HuggingFaceBert
from zoo.checkpoint.rules import Rule, module_rules


class HuggingFaceRoberta(HuggingFaceBert):
    """`RobertaModel` and the models with a head that are built on it."""

    model_type = "roberta"
    class_name = "Roberta"
    padding = 1
    count = "unpadded"
    architectures = {
        end: head for end, head in HuggingFaceBert.architectures.items() if head not in ("pretraining", "next-sentence")
    }
    prefix = "roberta."
    heads = ("lm_head.", "classifier.", "qa_outputs.")
    ignored = {
        "roberta.embeddings.position_ids": "a table of 0, 1, 2, ...",
        "roberta.pooler.dense.*": OTHER_HEAD,
        "lm_head.decoder.weight": f"a copy of the embedding, or {OTHER_HEAD}",
        "lm_head.bias": f"a copy of the scores' other bias, or {OTHER_HEAD}",
        "lm_head.decoder.bias": f"a copy of the scores' other bias, or {OTHER_HEAD}",
        "lm_head.dense.*": OTHER_HEAD,
        "lm_head.layer_norm.*": OTHER_HEAD,
        "classifier.*": OTHER_HEAD,
        "qa_outputs.*": OTHER_HEAD,
    }
    language = ("lm_head.dense", "lm_head.layer_norm", "lm_head.decoder", "lm_head.bias")
    taps = (
        *((theirs.replace("bert.", "roberta."), ours) for theirs, ours in HuggingFaceBert.taps if not theirs.startswith("cls")),
        ("lm_head", "head"),
    )

    def _classifier_rules(self, pooler: str, kind: str | None) -> list[Rule]:
        if kind == "classifier":
            return [*module_rules("classifier.dense", "head.dense"), *module_rules("classifier.out_proj", "head.output")]
        return super()._classifier_rules(pooler, kind)

    def _language_activation(self, activation: str) -> str:
        return "gelu"  # whatever the blocks have

    def _dense_dropout(self, head_dropout: float) -> float:
        return head_dropout

    def _choice_dropout(self, dropout: float, head_dropout: float) -> float:
        return dropout
