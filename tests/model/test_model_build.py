"""Building: sizes, devices, types, modes, fresh weights, copies, compilers and checkpointing."""

from __future__ import annotations

import copy
import io
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch

import zoo
from zoo.errors import ConfigError

Make = Callable[..., Any]

PUBLISHED = {
    "vit-tiny": (5_717_416, 5_561_472),
    "vit-small": (22_050_664, 21_813_504),
    "vit-base": (86_567_656, 86_389_248),
    "vit-large": (304_326_632, 304_351_232),
}
HUGE = 632_045_800
TIMM = {
    "vit-tiny-384": "vit_tiny_patch16_384",
    "vit-small-384": "vit_small_patch16_384",
    "vit-base-384": "vit_base_patch16_384",
    "vit-large-384": "vit_large_patch16_384",
    "vit-small-patch32": "vit_small_patch32_224",
    "vit-base-patch32": "vit_base_patch32_224",
    "vit-large-patch32": "vit_large_patch32_224",
    "vit-small-patch32-384": "vit_small_patch32_384",
    "vit-base-patch32-384": "vit_base_patch32_384",
    "vit-large-patch32-384": "vit_large_patch32_384",
    "vit-huge": "vit_huge_patch14_224",
    "deit3-small": "deit3_small_patch16_224",
    "vit-base-registers": "vit_base_patch16_reg4_gap_256",
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_parameter_counts(name: str) -> None:
    classifier, pooler = PUBLISHED[name]
    assert zoo.build(name, device="meta").num_parameters() == classifier
    assert zoo.build(name, {"head": "pooler"}, device="meta").num_parameters() == pooler


@pytest.mark.parametrize("name", TIMM)
def test_parameter_counts_of_timm(name: str) -> None:
    import timm

    with torch.device("meta"):
        theirs = timm.create_model(TIMM[name], num_classes=1000)
    count = zoo.build(name, device="meta").num_parameters()
    assert count == sum(parameter.numel() for parameter in theirs.parameters())
    assert name != "vit-huge" or count == HUGE


def test_parameter_count_of_deit() -> None:
    from transformers import DeiTConfig, DeiTForImageClassification

    config = DeiTConfig(hidden_size=384, num_attention_heads=6, intermediate_size=1536, num_labels=1000)
    with torch.device("meta"):
        theirs = DeiTForImageClassification(config)
    assert zoo.build("deit-small", device="meta").num_parameters() == theirs.num_parameters()


def test_every_preset_is_counted() -> None:
    named = {name for name in zoo.list_models("*it*") if not name.startswith(("clip", "switch"))}
    assert named == {*PUBLISHED, *TIMM, "deit-small"}


@pytest.mark.parametrize("name", zoo.list_models())
def test_every_preset_builds_without_memory(name: str) -> None:
    model = zoo.build(name, device="meta")
    assert all(parameter.is_meta for parameter in model.parameters()) and not list(model.buffers())
    assert model.device.type == "meta" and model.dtype == torch.float32


def test_modes(tiny: dict[str, Any], tmp_path: Any) -> None:
    model = zoo.build(tiny)
    assert all(module.training for module in model.modules())
    zoo.save(model, tmp_path / "m")
    assert not any(module.training for module in zoo.load(tmp_path / "m").modules())
    assert all(module.training for module in zoo.build(tiny, weights=tmp_path / "m").modules())
    assert all(parameter.requires_grad and parameter.is_leaf for parameter in zoo.load(tmp_path / "m").parameters())


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16", torch.bfloat16, torch.float64])
@pytest.mark.parametrize("device", [None, "cpu", "meta", torch.device("cpu")])
def test_types_and_devices(tiny: dict[str, Any], dtype: Any, device: Any) -> None:
    model = zoo.build(tiny, dtype=dtype, device=device)
    expected = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    assert {parameter.dtype for parameter in model.parameters()} == {expected} == {model.dtype}
    assert model.device.type == ("cpu" if device is None else torch.device(device).type)


def test_torchs_own_defaults_are_followed(tiny: dict[str, Any]) -> None:
    torch.set_default_dtype(torch.float64)
    try:
        assert zoo.build(tiny).dtype == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    with torch.device("meta"):
        assert zoo.build(tiny).device.type == "meta"


@pytest.mark.parametrize("dtype", ["float23", "int64", torch.int32, 3, "Tensor", "nn", torch.complex64, ["float32"]])
def test_a_wrong_type_is_named(tiny: dict[str, Any], dtype: Any) -> None:
    with pytest.raises(ConfigError, match=r"dtype: .* is no floating type"):
        zoo.build(tiny, dtype=dtype)


@pytest.mark.parametrize("device", ["gpu", "cpuu", "", 3.5, ["cpu"], "cuda:x", "cuda:99", "xpu:7"])
def test_a_wrong_device_is_named(tiny: dict[str, Any], device: Any) -> None:
    with pytest.raises(ConfigError, match="device: "):
        zoo.build(tiny, device=device)


def test_fresh_weights_have_the_deviations_of_the_config() -> None:
    init = {"std": 0.05, "position_std": 0.5, "token_std": 0.25}
    model = zoo.build("vit-tiny", {"stack.depth": 2, "init": init, "embedding.registers": 8, "stack.block.layer_scale": 0.125})
    for name, parameter in model.named_parameters():
        value = parameter.detach().double()
        if "norm" in name or name.endswith("bias"):
            assert torch.equal(value, torch.full_like(value, 1.0 if "norm" in name and name.endswith("weight") else 0.0)), name
        elif name.endswith("scale.weight"):
            assert torch.equal(value, torch.full_like(value, 0.125))
        else:
            std = 0.5 if "position" in name else 0.25 if "token" in name else 0.05
            size = value.numel()
            assert abs(value.std() / std - 1) < 5 / math.sqrt(2 * size) + 1e-3, name
            assert abs(value.mean()) < 5 * std / math.sqrt(size), name
            assert value.abs().max() <= 2.0


def test_wide_distributions_are_cut_at_two() -> None:
    model = zoo.build("vit-tiny", {"stack.depth": 1, "init.std": 1.0})
    weight = model.stack.layers[0].feedforward.up.weight.detach()
    assert 1.9 < weight.abs().max() <= 2.0 and abs(weight.std() - 0.8796) < 0.01


def test_uniform_patches(tiny: dict[str, Any]) -> None:
    embedding = zoo.build(tiny, {"init.patches": "uniform"}).embedding
    bound = (3 * 8 * 8) ** -0.5
    for tensor in (embedding.weight, embedding.bias):
        assert 0.7 * bound < tensor.detach().abs().max() <= bound
    assert abs(embedding.weight.detach().std() * math.sqrt(3) / bound - 1) < 0.05


def test_seeds_are_reproducible(tiny: dict[str, Any]) -> None:
    def draw(seed: int, **kind: Any) -> dict[str, Any]:
        torch.manual_seed(seed)
        return zoo.build(tiny, **kind).state_dict()

    assert all(torch.equal(a, b) for a, b in zip(draw(7).values(), draw(7).values()))
    assert not torch.equal(draw(7)["stack.layers.0.attention.query.weight"], draw(8)["stack.layers.0.attention.query.weight"])
    model = zoo.build(tiny)
    torch.manual_seed(7)
    model.initialize_weights()
    assert all(torch.equal(a, b) for a, b in zip(draw(7).values(), model.state_dict().values()))


def same(a: Any, b: Any, x: Any) -> bool:
    """Whether two models give the same."""
    return torch.equal(a(x).logits, b(x).logits)


def test_copies(model_of: Make, images: Make) -> None:
    model, x = model_of(), images()
    with torch.no_grad():
        model(x)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(buffer, weights_only=False)):
        assert other.config == model.config and same(model, other, x)
        with torch.no_grad():
            next(other.parameters()).add_(1.0)
        assert not same(model, other, x)


def test_state_dict(model_of: Make, images: Make, tiny: dict[str, Any]) -> None:
    model, x = model_of(), images()
    other = zoo.build(tiny, dtype="float64").eval()
    assert not same(model, other, x)
    assert str(other.load_state_dict(model.state_dict())) == "<All keys matched successfully>"
    assert same(model, other, x)
    assert not {p.data_ptr() for p in model.parameters()} & {p.data_ptr() for p in other.parameters()}
    assert set(model.state_dict()) == {name for name, _ in model.named_parameters()}


def test_share_memory(model_of: Make, images: Make) -> None:
    model, x = model_of(), images()
    before = model(x).logits
    model.share_memory()
    assert all(p.is_shared() for p in model.parameters()) and torch.equal(model(x).logits, before)


COMPILED: list[dict[str, Any]] = [
    {},
    {"head": "pooler"},
    {"stack.block": {"feedforward": "gated", "norm": "rms-norm"}, "head.pool": "mean"},
]


@pytest.mark.parametrize("overrides", COMPILED, ids=str)
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compile(model_of: Make, images: Make, overrides: dict[str, Any], backend: str) -> None:
    model, x = model_of(overrides), images()
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            for found, expected in zip(compiled(x), model(x)):
                assert (found is None) is (expected is None)
                assert found is None or (found - expected).abs().max() < 1e-12


@pytest.mark.parametrize("overrides", COMPILED, ids=str)
def test_export_of_torch(model_of: Make, images: Make, overrides: dict[str, Any]) -> None:
    model, x = model_of(overrides), images()
    program = torch.export.export(model, (x,))
    for found, expected in zip(program.module()(x), model(x)):
        assert found is None or (found - expected).abs().max() < 1e-12


def gradients(model: Any, x: Any) -> dict[str, Any]:
    """The gradients of a scalar of all outputs."""
    torch.manual_seed(5)
    model.zero_grad()
    (model(x).logits ** 2).sum().backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize(
    "overrides", [{}, {"stack.block.dropout": 0.3, "stack.drop_path": 0.3, "embedding.dropout": 0.1}], ids=str
)
def test_gradient_checkpointing(model_of: Make, images: Make, overrides: dict[str, Any]) -> None:
    model, x = model_of(overrides).train(), images()
    plain = gradients(model, x)
    calls: list[int] = []
    model.stack.layers[0].register_forward_pre_hook(lambda *_: calls.append(1))
    model.gradient_checkpointing()
    again = gradients(model, x)
    assert len(calls) == 2, "the block was not computed again"
    assert all((plain[name] - again[name]).abs().max() <= 1e-12 * plain[name].abs().max().clamp(min=1) for name in plain)
    model.gradient_checkpointing(False)
    calls.clear()
    gradients(model, x)
    assert len(calls) == 1


def test_gradients_reach_every_parameter(model_of: Make, images: Make) -> None:
    model = model_of({"embedding.registers": 2, "stack.block.layer_scale": 0.5, "stack.block.attention.qk_norm": "rms-norm"})
    for name, gradient in gradients(model, images()).items():
        assert name.endswith("key.bias") or gradient.abs().max() > 1e-9, name
