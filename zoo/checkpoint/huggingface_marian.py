"""Hugging Face's Marian, the first transformer with norms behind its branches and sines as positions, both ways."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch

from zoo.checkpoint.family import Wanted
from zoo.checkpoint.fields import Fields
from zoo.checkpoint.huggingface_bart import HuggingFaceBart
from zoo.checkpoint.huggingface_encoder_decoder import SIDES
from zoo.errors import WeightsError
from zoo.layout import Layout
from zoo.position.sinusoidal import SinusoidalPosition

POSITIONS = "model.{}.embed_positions.weight"
LENGTH = 1024
"""How many positions a model has whose config does not say."""


class HuggingFaceMarian(HuggingFaceBart):
    """`MarianModel` and `MarianMTModel`."""

    model_type = "marian"
    class_name = "Marian"
    language = "MTModel"
    unused_shared = False
    ignored = {**HuggingFaceBart.ignored, **{POSITIONS.format(name): "a table of sines and cosines" for name in SIDES}}
    defaults = {"vocab_size": 58101, "pad_token_id": 58100, "decoder_start_token_id": 58100}
    embedding_norm = False
    decoder_input = "given"
    embedding_tap = "model.{0}.embed_tokens < model.{0}.layers.0"

    def check_tensors(self, names: Collection[str], model: Mapping[str, Any]) -> None:
        """Files of version 4 and bare models hold their positions, which ours computes."""
        plain = self.plain_names(names)
        for name in SIDES:
            stored = plain.get(POSITIONS.format(name))
            if stored is None or not isinstance(names, Mapping):
                continue
            table = names[stored].fetch(stored)
            part = SinusoidalPosition(SinusoidalPosition.Config(order="halves"), width=table.shape[-1])
            expected = part.at(Layout(), table.shape[0])
            allowed = max(1e-6, torch.finfo(table.dtype).eps)
            if not bool(((table.to(expected.dtype) - expected).abs() <= allowed).all()):
                raise WeightsError(f"{self.model_type}: {stored}: expected sines and cosines of positions, found another table")

    def _vocabularies(self, fields: Fields) -> tuple[int, int]:
        words = fields.number("vocab_size", self.defaults["vocab_size"])
        others = fields.take("decoder_vocab_size", None)
        return words, fields.number("decoder_vocab_size") if others else words

    def _shares(self, fields: Fields, vocabularies: tuple[int, int]) -> bool:
        shares = fields.flag("share_encoder_decoder_embeddings", True)
        if shares and vocabularies[0] != vocabularies[1]:
            what = f"{vocabularies[1]} is not vocab_size, {vocabularies[0]}, although embeddings are shared"
            raise fields.error("decoder_vocab_size", what)
        return shares

    def _read_position(self, length: int) -> dict[str, Any]:
        return {"type": "sinusoidal", "order": "halves", "length": length}

    def _write_tables(self, wanted: Wanted, config: Any) -> dict[str, Any]:
        head, shares = config.decoder.head, config.share_embeddings
        if head is not None and shares:
            wanted.expect("decoder.head.tied", head.tied, True)
        return {
            "decoder_vocab_size": config.decoder.embedding.vocabulary,
            "share_encoder_decoder_embeddings": shares,
            "tie_word_embeddings": head is None or head.tied,
        }

    def _write_length(self, position: Any) -> int:
        return position.length or LENGTH

    def _check_position(self, wanted: Wanted, position: Any) -> None:
        wanted.part("embedding.position", position, "sinusoidal")
        for name, value in {"order": "halves", "base": 10000.0}.items():
            wanted.expect(f"embedding.position.{name}", getattr(position, name), value)
