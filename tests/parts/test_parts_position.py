"""Positions inside of attention: rotary against its formula and transformers, alibi, long texts, types, devices."""

from __future__ import annotations

import copy
import math
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

import zoo
from zoo.errors import ConfigError, InputError
from zoo.layout import Layout
from zoo.position.alibi import AlibiPosition, slopes
from zoo.position.rotary import RotaryPosition, attention_factor, frequencies

SMALL: dict[str, Any] = {
    "embedding.vocabulary": 61, "stack.width": 24, "stack.depth": 2, "stack.block.attention.heads": 6,
    "stack.block.attention.kv_heads": 3, "stack.block.feedforward.hidden": 40,
    "stack.block.attention.position.length": 12,
}  # fmt: skip
ROTARY = "stack.block.attention.position"
ALIBI = {"stack.block.attention.position": {"type": "alibi", "length": 12}}
LEARNED = {"embedding.position": {"type": "learned", "length": 12}, "stack.block.attention.position": None}
SCALINGS: dict[str, dict[str, Any]] = {
    "linear": {"type": "linear", "factor": 2.5},
    "llama3": {"type": "llama3", "factor": 8.0, "length": 64},
    "llama3, other bounds": {"type": "llama3", "factor": 3.3, "length": 100, "slow": 0.4, "fast": 7.0},
    "yarn": {"type": "yarn", "factor": 4.0, "length": 64},
    "yarn, other bounds": {"type": "yarn", "factor": 9.0, "length": 40, "slow": 0.3, "fast": 5.0, "attention": 0.7},
    "yarn, not rounded": {"type": "yarn", "factor": 3.0, "length": 50, "fast": 6.0, "truncate": False},
    "yarn, shorter": {"type": "yarn", "factor": 0.5, "length": 64},
}


def rotary(head_size: int = 8, **fields: Any) -> RotaryPosition:
    return RotaryPosition(RotaryPosition.Config.model_validate(fields), head_size=head_size, heads=2)


def model(overrides: dict[str, Any] | None = None, seed: int = 0, **options: Any) -> Any:
    torch.manual_seed(seed)
    return zoo.build("llama-2-7b", {**SMALL, **(overrides or {})}, **options).eval()


def words(*shape: int) -> Tensor:
    return torch.randint(0, 61, shape, generator=torch.Generator().manual_seed(3))


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def plain_speeds(size: int, theta: float, scaling: dict[str, Any] | None) -> list[float]:
    """By how much each pair turns from one place to the next, as the papers say it."""
    speeds = [theta ** (-2 * pair / size) for pair in range(size // 2)]
    if scaling is None:
        return speeds
    kind, factor = scaling["type"], scaling["factor"]
    if kind == "linear":
        return [speed / factor for speed in speeds]
    length, slow = scaling["length"], scaling.get("slow", 1.0)
    fast = scaling.get("fast", {"llama3": 4.0, "yarn": 32.0}[kind])
    if kind == "llama3":
        found = []
        for speed in speeds:
            turns = length * speed / (2 * math.pi)
            kept = min(max((turns - slow) / (fast - slow), 0.0), 1.0)
            found.append(kept * speed + (1 - kept) * speed / factor)
        return found
    # the pair that turns so many times within the length
    ends = [size * math.log(length / (2 * math.pi * turns)) / (2 * math.log(theta)) for turns in (fast, slow)]
    if scaling.get("truncate", True):
        ends = [math.floor(ends[0]), math.ceil(ends[1])]
    first, last = max(ends[0], 0), min(ends[1], size - 1)
    kept_of = [1 - min(max((pair - first) / (last - first), 0.0), 1.0) for pair in range(size // 2)]
    return [kept * speed + (1 - kept) * speed / factor for kept, speed in zip(kept_of, speeds)]


def plainly(x: Tensor, places: list[int], speeds: list[float], order: str, scale: float = 1.0) -> Tensor:
    """Pair by pair, a rotation in the plane, in float64."""
    found, size = x.clone(), 2 * len(speeds)
    for token, place in enumerate(places):
        for pair, speed in enumerate(speeds):
            one, two = (pair, pair + size // 2) if order == "halves" else (2 * pair, 2 * pair + 1)
            turn = complex(math.cos(place * speed), math.sin(place * speed)) * scale
            a, b = x[..., token, one], x[..., token, two]
            found[..., token, one] = a * turn.real - b * turn.imag
            found[..., token, two] = b * turn.real + a * turn.imag
    return found


@pytest.mark.parametrize("scaling", [None, *SCALINGS.values()], ids=["none", *SCALINGS])
@pytest.mark.parametrize("order", ["halves", "interleaved"])
@pytest.mark.parametrize(("head_size", "fraction"), [(8, 1.0), (10, 0.6), (2, 1.0), (16, 0.26)])
def test_the_formula(head_size: int, fraction: float, order: str, scaling: dict[str, Any] | None) -> None:
    part = rotary(head_size, fraction=fraction, order=order, theta=50.0, scaling=scaling)
    query, key = drawn(2, 4, 7, head_size), drawn(2, 2, 7, head_size, seed=1)
    places = [0, 3, 4, 5, 11, 2, 40]
    speeds = plain_speeds(int(head_size * fraction), 50.0, scaling)
    factor = 1.0
    if scaling is not None and scaling["type"] == "yarn":
        factor = scaling.get("attention", 0.1 * math.log(scaling["factor"]) + 1 if scaling["factor"] > 1 else 1.0)
    layouts = [Layout(positions=torch.tensor([places])), Layout(positions=torch.tensor([places] * 2), shared={})]
    for layout in layouts:
        for x, found in zip((query, key), part.turned(query, key, layout)):
            # angles are of float32, to about 1e-7 of themselves
            assert (found - plainly(x, places, speeds, order, factor)).abs().max() < 3e-5
            assert found.dtype == torch.float64 and torch.equal(found[..., 2 * len(speeds) :], x[..., 2 * len(speeds) :])


@pytest.mark.parametrize("end", [5, 20, 21, 57, 400])
def test_dynamic_scaling_follows_the_length(end: int) -> None:
    """Raises theta for texts beyond the first length, by their own length, and only there."""
    part, size, theta, factor, length = rotary(theta=50.0, scaling=DYNAMIC), 8, 50.0, 2.5, 20
    x, places = drawn(1, 2, 3, 8), [end - 1, 0, 3]
    longer = 1.0 if end <= length else factor * end / length - (factor - 1)
    speeds = plain_speeds(size, theta * longer ** (size / (size - 2)), None)
    found, _ = part.turned(x, x, Layout(positions=torch.tensor([places])))
    assert (found - plainly(x, places, speeds, "halves")).abs().max() < 1e-4
    again, _ = part.turned(x, x, Layout(positions=torch.tensor([[0, 1, 2]])))  # what was before leaves no trace
    assert (again - plainly(x, [0, 1, 2], plain_speeds(size, theta, None), "halves")).abs().max() < 1e-6


DYNAMIC = {"type": "dynamic", "factor": 2.5, "length": 20}
HEADS = [2, 6, 8, 64, 128]


@pytest.mark.parametrize("head_size", HEADS)
@pytest.mark.parametrize("scaling", [*SCALINGS.values(), DYNAMIC], ids=[*SCALINGS, "dynamic"])
@pytest.mark.parametrize("theta", [50.0, 10000.0, 500000.0])
def test_frequencies_are_those_of_transformers_bit_by_bit(theta: float, scaling: dict[str, Any], head_size: int) -> None:
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    kind = scaling["type"]
    if kind == "dynamic" and head_size == 2:
        return  # which we refuse
    names = {
        "factor": "factor", "length": "original_max_position_embeddings", "attention": "attention_factor",
        "truncate": "truncate", "slow": "low_freq_factor" if kind == "llama3" else "beta_slow",
        "fast": "high_freq_factor" if kind == "llama3" else "beta_fast",
    }  # fmt: skip
    bounds = {"slow": 1.0, "fast": 4.0} if kind == "llama3" else {}
    rope = {names[name]: value for name, value in {**bounds, **scaling}.items() if name != "type"}
    rope |= {"rope_type": kind, "rope_theta": theta}
    config = LlamaConfig(hidden_size=2 * head_size, num_attention_heads=2, max_position_embeddings=20, rope_parameters=rope)
    part = rotary(head_size, theta=theta, scaling=scaling)
    expected, factor = ROPE_INIT_FUNCTIONS[kind](config, device="cpu")
    assert torch.equal(frequencies(part.config, head_size), expected) and attention_factor(part.config.scaling) == factor
    places = torch.arange(57)
    longest, _ = ROPE_INIT_FUNCTIONS[kind](config, device="cpu", seq_len=torch.tensor(57))
    angles = places[:, None].float() * longest
    cosine, sine = part.tables(Layout(), drawn(1, 1, 57, head_size).float())
    assert torch.equal(cosine[0, 0], angles.cos() * factor) and torch.equal(sine[0, 0], angles.sin() * factor)


def test_layouts_of_features_as_in_transformers() -> None:
    """Halves as in Llama, pairs side by side of a share of the features as in GPT-J."""
    from transformers.models.gptj import modeling_gptj as gptj
    from transformers.models.llama import modeling_llama as llama

    query, key = drawn(2, 3, 9, 10).float(), drawn(2, 3, 9, 10, seed=1).float()
    part = rotary(10)
    cosine, sine = (torch.cat([table, table], -1)[0, 0][None].expand(2, -1, -1) for table in part.tables(Layout(), query))
    for found, expected in zip(part.turned(query, key, Layout()), llama.apply_rotary_pos_emb(query, key, cosine, sine)):
        assert torch.equal(found, expected)
    part = rotary(10, fraction=0.6, order="interleaved")
    sine, cosine = gptj.create_sinusoidal_positions(9, 6)[None].expand(2, -1, -1).chunk(2, dim=-1)
    expected = gptj.apply_rotary_pos_emb(query.transpose(1, 2)[..., :6], sine, cosine).transpose(1, 2)
    found = part.turned(query, key, Layout())[0]
    assert (found[..., :6] - expected).abs().max() < 1e-6 and torch.equal(found[..., 6:], query[..., 6:])


def test_scores_depend_on_the_distance_alone() -> None:
    part, query, key = rotary(theta=30.0), drawn(1, 2, 6, 8), drawn(1, 2, 6, 8, seed=1)
    scores = []
    for start in (0, 17):
        turned = part.turned(query, key, Layout(past=start))
        scores.append(turned[0] @ turned[1].mT)
    assert (scores[0] - scores[1]).abs().max() < 1e-5
    assert (scores[0] - query @ key.mT).abs().max() > 0.1


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"fraction": 0.1}, "fraction: 0 of a head's 4 features cannot be turned in pairs"),
        ({"fraction": 0.75}, "fraction: 3 of a head's 4"),
        ({"theta": 0}, "theta"),
        ({"scaling": {"type": "linear"}}, "factor"),
        ({"scaling": {"type": "linear", "factor": -1.0}}, "factor"),
        ({"scaling": {"type": "linear", "factor": 2.0, "length": 5}}, "'linear' has no such field; its fields are factor"),
        ({"scaling": {"type": "llama3", "factor": 2.0}}, "'llama3' needs to know how many places"),
        ({"scaling": {"type": "llama3", "factor": 2.0, "length": 5, "truncate": False}}, "truncate: 'llama3' has no such"),
        ({"scaling": {"type": "ntk", "factor": 2.0}}, "scaling.type"),
        ({"scaling": {"type": "yarn", "factor": 2.0, "length": 5}, "theta": 1.0}, "where theta is 1"),
        ({"scaling": {"type": "dynamic", "factor": 2.0, "length": 5}, "fraction": 0.5}, "needs more than two features"),
    ],
)
def test_configs_that_cannot_be_are_refused_with_their_place(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=rf"position.*{words}"):
        zoo.get_config("llama-2-7b", {**SMALL, ROTARY: fields})


@pytest.mark.parametrize("heads", [1, 2, 3, 5, 6, 7, 8, 12, 16, 31, 71])
def test_slopes_are_those_of_transformers(heads: int) -> None:
    """Theirs grow with the key; in a row of scores that is the same up to a constant."""
    from transformers.models.bloom.modeling_bloom import build_alibi_tensor

    theirs = build_alibi_tensor(torch.ones(1, 9, dtype=torch.long), heads, torch.float32).reshape(1, heads, 1, 9)
    part = AlibiPosition(AlibiPosition.Config(), head_size=4, heads=heads)
    at = torch.arange(9)[None]
    found = part.bias(at, at)
    assert found.shape == (1, heads, 9, 9) and found.dtype == torch.float32
    expected = (theirs - theirs.mT).tril()
    assert (found.tril() - expected).abs().max() <= 1e-6 and torch.equal(found, found.mT)
    assert len(slopes(heads)) == heads and len(set(slopes(heads))) == heads


def test_the_slopes_of_the_paper() -> None:
    assert slopes(8) == tuple(2.0**-number for number in range(1, 9))
    assert slopes(6) == pytest.approx([0.25, 0.0625, 0.015625, 0.00390625, 0.5, 0.125])


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("position", ["alibi", "rotary"])
def test_inside_of_attention(position: str, causal: bool) -> None:
    """The whole of attention by hand, three query heads for each key; values are not turned."""
    overrides = {ROTARY: {"type": position}, "stack.block.attention.causal": causal}
    part = model(overrides, dtype="float64").stack.layers[0].attention
    x, rows = drawn(2, 7, 24), torch.arange(7)
    query, key, value = (function(x).unflatten(-1, (-1, 4)).transpose(1, 2) for function in (part.query, part.key, part.value))
    if position == "rotary":
        speeds = plain_speeds(4, 10000.0, None)
        query, key = (plainly(each, list(range(7)), speeds, "halves") for each in (query, key))
    key, value = key.repeat_interleave(2, 1), value.repeat_interleave(2, 1)
    scores = query @ key.mT / 2
    if position == "alibi":
        steep = torch.tensor(slopes(6), dtype=torch.float64)
        scores = scores - steep[:, None, None] * (rows[:, None] - rows).abs()
    if causal:
        scores = scores.masked_fill(rows[None] > rows[:, None], -math.inf)
    expected = part.output((scores.softmax(-1) @ value).transpose(1, 2).flatten(2))
    found, seen = part(x, Layout(shared={}), weights=True)
    assert (found - expected).abs().max() < 1e-6 and (seen - scores.softmax(-1)).abs().max() < 1e-6
    assert (part(x, Layout())[0] - expected).abs().max() < 1e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_tables_stay_in_float32(dtype: torch.dtype) -> None:
    """Whatever becomes of the model: places far away are told apart by numbers that bfloat16 does not have."""
    for part in (rotary(), rotary().to(dtype), rotary().to(dtype).float(), copy.deepcopy(rotary().to(dtype))):
        assert not list(part.buffers()) and not list(part.parameters())
        layout = Layout(positions=torch.tensor([[1000, 1001, 4097]]), shared={})
        x = drawn(1, 2, 3, 8)
        exact = part._angles(layout, 3, x.device)
        assert exact.dtype == torch.float32 and torch.equal(exact, rotary()._angles(layout, 3, x.device))
        cosine, _ = part.tables(layout, x.to(dtype))
        assert torch.equal(cosine, exact[:, None].cos().to(dtype))  # rounded once, at the end
    changed, fresh, ids = model().to(dtype), model(dtype=dtype), words(2, 9)
    fresh.load_state_dict(changed.state_dict())
    assert torch.equal(changed(ids).logits, fresh(ids).logits) and changed(ids).logits.dtype == dtype


@torch.no_grad()
def test_tables_stay_in_float32_under_autocast() -> None:
    part, x = rotary(), drawn(1, 2, 3, 8)
    layout = Layout(positions=torch.tensor([[1000, 1001, 4097]]))
    with torch.autocast("cpu", torch.bfloat16):
        for table, exact in zip(part.tables(layout, x.bfloat16()), part.tables(layout, x.float())):
            assert table.dtype == torch.float32 and torch.equal(table, exact)
        turned = part.turned(x.bfloat16(), x.bfloat16(), layout)[0]
    assert turned.dtype == torch.bfloat16
    exact = plainly(x.bfloat16().double(), [1000, 1001, 4097], plain_speeds(8, 1e4, None), "halves")
    assert (turned - exact).abs().max() < 0.02
    bias = AlibiPosition(AlibiPosition.Config(), head_size=4, heads=3).to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        assert bias.bias(torch.arange(3)[None], torch.arange(3)[None]).dtype == torch.float32


def beyond(overrides: dict[str, Any], *batches: dict[str, Any]) -> list[str]:
    """What a model warns of, over these calls."""
    whole = model(overrides)
    with warnings.catch_warnings(record=True) as caught, torch.no_grad():
        warnings.simplefilter("always")
        for batch in batches:
            whole(**batch)
    return [str(each.message) for each in caught]


TEXT = "position 12 is beyond the 12 places that this model was trained on"
PATTERN = {"stack.pattern": [{"attention": {"type": "local", "window": 3, "position": {"theta": 100.0}}}, {}]}


@pytest.mark.parametrize("overrides", [{}, ALIBI, PATTERN, {f"{ROTARY}.scaling": DYNAMIC}], ids=str)
def test_exactly_one_warning_beyond_the_trained_length(overrides: dict[str, Any]) -> None:
    short, long = {"input_ids": words(2, 12)}, {"input_ids": words(2, 13)}
    assert beyond(overrides, short, short) == []
    assert beyond(overrides, short, long, long, {"input_ids": words(1, 40)}) == [TEXT]
    assert beyond({**SMALL, ROTARY: {"length": None}}, long) == [] == beyond({ROTARY: "alibi"}, long)


def test_places_that_are_given_or_follow_a_cache_count() -> None:
    ids = words(1, 3)
    assert beyond({}, {"input_ids": ids, "position_ids": torch.tensor([[3, 11, 0]])}) == []
    assert beyond({}, {"input_ids": ids, "position_ids": torch.tensor([[3, 12, 0]])}) == [TEXT]
    for overrides in ({}, ALIBI):
        whole = model(overrides)
        with warnings.catch_warnings(record=True) as caught, torch.no_grad():
            warnings.simplefilter("always")
            past = whole(words(1, 11), use_cache=True).past_key_values
            for step in range(4):
                whole(words(1, 1), past_key_values=past)
                assert len(caught) == (step > 0)
        assert str(caught[0].message) == TEXT


def test_beyond_the_trained_length_as_the_reference(tmp_path: Any) -> None:
    """Three times as long as it was trained, for each way to scale; theirs is asked afresh, as it remembers."""
    import transformers

    for scaling in (None, DYNAMIC | {"length": 12}, SCALINGS["llama3"], SCALINGS["yarn, not rounded"], SCALINGS["linear"]):
        ours = model({f"{ROTARY}.scaling": scaling}, dtype="float64")
        folder = tmp_path / str(scaling and scaling["type"])
        zoo.export(ours, folder)
        theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
        with torch.no_grad(), pytest.warns(UserWarning, match="position 35 is beyond the 12 places"):
            found = ours(words(2, 36)).logits
        with torch.no_grad():
            expected = theirs(words(2, 36)).logits
        assert (found - expected).abs().max() < 1e-12 * max(1.0, float(expected.abs().max()))


def test_a_position_beyond_a_learned_table_is_an_error() -> None:
    whole = model(LEARNED)
    with pytest.raises(InputError, match="position 12 is beyond the table of 12 learned positions"):
        whole(words(1, 13))
    with pytest.raises(InputError, match="position 40 is beyond the table of 12"):
        whole(words(1, 2), position_ids=torch.tensor([[0, 40]]))
    with pytest.raises(InputError, match="position_ids: -1 is no position"):
        whole(words(1, 2), position_ids=torch.tensor([[0, -1]]))
    past = whole(words(1, 12), use_cache=True).past_key_values
    with pytest.raises(InputError, match="position 12 is beyond the table of 12"):
        whole(words(1, 1), past_key_values=past)


@pytest.mark.parametrize("overrides", [{}, {f"{ROTARY}.scaling": DYNAMIC}, ALIBI, LEARNED], ids=str)
@torch.no_grad()
def test_built_on_the_meta_device_and_then_given_weights(tmp_path: Any, overrides: dict[str, Any]) -> None:
    source, ids = model(overrides), words(2, 9)
    expected, folder = source(ids).logits, zoo.save(source, tmp_path / "model")
    with torch.device("meta"):  # whatever a caller's default is
        inside = zoo.build("llama-2-7b", {**SMALL, **overrides}, device="meta").eval()
    for empty in (inside, model(overrides, device="meta")):
        assert empty(ids.to("meta")).logits.is_meta
        empty.load_state_dict(source.state_dict(), assign=True)
        assert torch.equal(empty(ids).logits, expected)
    made = model(overrides, device="meta").to_empty(device="cpu")
    made.load_state_dict(source.state_dict())
    assert torch.equal(made(ids).logits, expected) and torch.equal(zoo.load(folder)(ids).logits, expected)


@pytest.mark.parametrize("overrides", [{}, {f"{ROTARY}.scaling": DYNAMIC}, ALIBI], ids=str)
def test_traced_first_and_run_afterwards(overrides: dict[str, Any]) -> None:
    """Nothing of a trace stays behind in the model, and nothing is said of it."""
    expected, ids = model(overrides)(words(2, 9)).logits, words(2, 9)
    whole = model(overrides)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*was assigned during export.*")
        exported = torch.export.export(whole, (ids,), strict=False)
    assert torch.equal(exported.module()(ids).logits, expected) and torch.equal(whole(ids).logits, expected)
    compiled = torch.compile(model(overrides), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(ids).logits, expected) and torch.equal(compiled(ids).logits, expected)


def test_gradients_pass_through() -> None:
    for position in (rotary(4, order="interleaved"), rotary(4), rotary(8, fraction=0.5)):
        x = drawn(1, 2, 3, round(position.size / position.config.fraction))
        assert torch.autograd.gradcheck(lambda q, position=position: position.turned(q, q, Layout())[0], (x.requires_grad_(),))
