"""Decoders: published sizes and configs, and stacks of local and full layers that are only YAML."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from text_helpers import far, words

import zoo
from zoo.checkpoint.save import family_for
from zoo.errors import ConfigError

PUBLISHED = {
    "gpt2": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
    "distilgpt2": 81_912_576,
    "llama-2-7b": 6_738_415_616,
    "llama-3-8b": 8_030_261_248,
    "llama-3.2-1b": 1_235_814_400,
    "mistral-7b": 7_241_732_096,
    "qwen2.5-0.5b": 494_032_768,
    "falcon-7b": 6_921_720_704,
    "falcon-40b": 41_303_293_952,
    "gpt-j-6b": 6_050_882_784,
    "gpt-neox-20b": 20_554_567_680,
    "pythia-70m": 70_426_624,
    "pythia-410m": 405_334_016,
    "palm-8b": 8_632_012_800,
    "palm-62b": 62_495_662_080,
    "palm-540b": 540_356_474_880,
    "mixtral-8x7b": 46_702_792_704,
}
GPT2 = {"vocab_size": 50257, "n_positions": 1024, "activation_function": "gelu_pytorch_tanh", "layer_norm_epsilon": 1e-5}
LLAMA = {"vocab_size": 32000, "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "hidden_act": "silu",
         "rms_norm_eps": 1e-5, "head_dim": 128, "tie_word_embeddings": False}  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {
    "gpt2": {**GPT2, "n_embd": 768, "n_layer": 12, "n_head": 12},
    "gpt2-medium": {**GPT2, "n_embd": 1024, "n_layer": 24, "n_head": 16},
    "gpt2-large": {**GPT2, "n_embd": 1280, "n_layer": 36, "n_head": 20},
    "gpt2-xl": {**GPT2, "n_embd": 1600, "n_layer": 48, "n_head": 25},
    "distilgpt2": {**GPT2, "n_embd": 768, "n_layer": 6, "n_head": 12},
    "llama-2-7b": {**LLAMA, "intermediate_size": 11008, "num_key_value_heads": 32, "max_position_embeddings": 4096,
                   "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
    "llama-3-8b": {**LLAMA, "vocab_size": 128256, "intermediate_size": 14336, "num_key_value_heads": 8,
                   "max_position_embeddings": 8192, "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}},
    "llama-3.2-1b": {**LLAMA, "vocab_size": 128256, "hidden_size": 2048, "num_hidden_layers": 16, "head_dim": 64,
                     "intermediate_size": 8192, "num_key_value_heads": 8, "max_position_embeddings": 131072,
                     "tie_word_embeddings": True, "rope_parameters": {
                         "rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0, "low_freq_factor": 1.0,
                         "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}},
    "mistral-7b": {**LLAMA, "intermediate_size": 14336, "num_key_value_heads": 8, "max_position_embeddings": 32768,
                   "sliding_window": 4096, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
    "qwen2.5-0.5b": {"vocab_size": 151936, "hidden_size": 896, "num_hidden_layers": 24, "num_attention_heads": 14,
                     "num_key_value_heads": 2, "intermediate_size": 4864, "rms_norm_eps": 1e-6, "hidden_act": "silu",
                     "max_position_embeddings": 32768, "tie_word_embeddings": True, "use_sliding_window": False,
                     "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0}},
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_parameter_counts(name: str) -> None:
    """Ours, and what transformers builds of our config; nothing is allocated."""
    import transformers

    _, values = family_for(zoo.get_config(name), "transformers")
    kind = getattr(transformers, values["architectures"][0])
    with torch.device("meta"):
        theirs = kind(kind.config_class.from_dict(values))
    theirs.tie_weights()
    assert zoo.build(name, device="meta").num_parameters() == PUBLISHED[name] == theirs.num_parameters()


@pytest.mark.parametrize("name", CONFIGS)
def test_a_preset_says_what_its_published_config_says(name: str) -> None:
    _, values = family_for(zoo.get_config(name), "transformers")
    assert {field: values[field] for field in CONFIGS[name]} == CONFIGS[name]


def test_every_decoder_of_a_reference_is_counted() -> None:
    configs = {name: zoo.get_config(name) for name in zoo.list_models()}
    heads = {name: getattr(getattr(config, "head", None), "type", None) for name, config in configs.items()}
    assert {name for name, head in heads.items() if head == "language-model"} - {"gpt-mini"} == set(PUBLISHED)


GEMMA_LIKE = """
extends: llama-2-7b
embedding: {vocabulary: 61}
stack:
  width: 24
  depth: 13
  block:
    attention:
      heads: 4
      kv_heads: 2
      head_size: 8
      qk_norm: {type: rms-norm, precision: float32}
      position: {theta: 1000.0, length: 64}
    feedforward: {hidden: 40, activation: gelu-tanh}
  pattern:
    - &local {attention: {type: local, window: 3, position: {theta: 50.0}}}
    - *local
    - *local
    - *local
    - *local
    - {}
head: {tied: true}
"""
LAYERS = ["local"] * 5 + ["full"] + ["local"] * 5 + ["full", "local"]


@pytest.fixture
def gemma_like(tmp_path: Path) -> Any:
    (tmp_path / "mine.yaml").write_text(GEMMA_LIKE)
    return redrawn(zoo.build(tmp_path / "mine.yaml", dtype="float64"))


@torch.no_grad()
def redrawn(model: Any) -> Any:
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.3)
    return model.eval()


def test_five_local_layers_and_a_full_one_are_yaml(gemma_like: Any) -> None:
    blocks = gemma_like.config.stack.blocks()
    assert [block.attention.type for block in blocks] == LAYERS
    assert [block.attention.position.theta for block in blocks] == [50.0 if kind == "local" else 1000.0 for kind in LAYERS]
    assert all(block.attention.qk_norm.type == "rms-norm" and block.attention.kv_heads == 2 for block in blocks)


@torch.no_grad()
def test_it_is_full_attention_under_bands(gemma_like: Any) -> None:
    """Layer by layer with full attention, to which the mask of each is given."""
    changes = [{"attention": {"type": "full", "position": {"theta": 50.0}}}] * 5 + [{}]
    twin = zoo.build(gemma_like.config, {"stack.pattern": changes}, dtype="float64").eval()
    assert {layer.attention.__class__.__name__ for layer in twin.stack.layers} == {"FullAttention"}
    twin.load_state_dict(gemma_like.state_dict())
    ids, place = words(2, 17), torch.arange(17)
    real = torch.rand(2, 17, generator=torch.Generator().manual_seed(1)) > 0.2
    band = place[:, None] - place <= 3
    for mask in (None, real):
        x, layout = twin.embedding(ids)
        allowed = torch.ones(2, 1, 1, 17, dtype=torch.bool) if mask is None else mask[:, None, None]
        for layer, kind in zip(twin.stack.layers, LAYERS):
            seen = allowed & band if kind == "local" else allowed.expand(2, 1, 17, 17)
            x, _ = layer(x, layout._replace(mask=seen, shared={}))
        expected = twin.head(twin.stack.final_norm(x), layout)["logits"]
        found = gemma_like(ids, attention_mask=mask).logits
        assert far(found, expected) < 1e-12
    assert far(gemma_like(ids).logits, twin(ids).logits) > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("chunks", [[1] * 23, [9, 1, 1, 8, 4], [2, 21]], ids=str)
@pytest.mark.parametrize("padded", [False, True])
def test_it_decodes_over_a_cache_as_in_one_forward(gemma_like: Any, chunks: list[int], padded: bool) -> None:
    ids = words(3, 23)
    real = torch.arange(23) >= (torch.tensor([[0], [2], [1]]) if padded else torch.zeros(3, 1))
    places = (real.cumsum(1) - 1).clamp(min=0)
    given = {"attention_mask": real, "position_ids": places} if padded else {}
    whole = gemma_like(ids, **given).logits
    past, found, start = gemma_like.new_cache(), [], 0
    for size in chunks:
        end = start + size
        now = {"attention_mask": real[:, :end], "position_ids": places[:, start:end]} if padded else {}
        found.append(gemma_like(ids[:, start:end], past_key_values=past, **now).logits)
        start = end
    assert far(torch.cat(found, 1), whole) < 1e-12


@torch.no_grad()
def test_its_local_layers_keep_a_window_alone(gemma_like: Any) -> None:
    past, sizes = gemma_like.new_cache(), []
    for tokens in [1] * 70 + [5, 60] * 3:  # room for 64 is taken at first
        gemma_like(words(1, tokens), past_key_values=past, position_ids=torch.zeros(1, tokens, dtype=torch.long))
        sizes.append([layer.memory for layer in past.layers])
    for number, kind in enumerate(LAYERS):
        grown = sizes[-1][number] > 2 * sizes[0][number]
        assert grown is (kind == "full")


def test_it_generates_and_comes_back_from_a_folder(gemma_like: Any, tmp_path: Path) -> None:
    again = zoo.load(zoo.save(gemma_like, tmp_path / "saved"))
    assert again.config == gemma_like.config
    ids = words(2, 5)
    found = again.generate(ids, max_new_tokens=12)
    expected = ids
    with torch.no_grad():
        for _ in range(12):
            following = gemma_like(expected).logits[:, -1].argmax(-1)
            expected = torch.cat([expected, following[:, None]], 1)
    assert torch.equal(found, expected)


def test_such_a_stack_of_a_reference_equals_it() -> None:
    """Qwen2 has stacks of local and full layers; only with one theta."""
    local = {"attention": {"type": "local", "window": 3}}
    small = {
        "embedding.vocabulary": 61, "stack.width": 24, "stack.depth": 7, "stack.block.attention.heads": 6,
        "stack.block.attention.kv_heads": 3, "stack.block.feedforward.hidden": 40, "stack.pattern": [local] * 5 + [{}],
    }  # fmt: skip
    report = zoo.verify(zoo.get_config("qwen2.5-0.5b", small), reference="transformers", training=False, gradients=False)
    assert report.passed and not report.comparisons[0].exchanged, str(report)
    assert "over a cache, padded on the left" in report.comparisons[0].cases
    two = {**small, "stack.pattern": [{"attention": {**local["attention"], "position": {"theta": 50.0}}}] * 5 + [{}]}
    with pytest.raises(ConfigError, match=r"stack.pattern: .* has no model whose layers differ"):
        zoo.verify(zoo.get_config("qwen2.5-0.5b", two), reference="transformers")
