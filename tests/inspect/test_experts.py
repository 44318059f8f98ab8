"""Which experts tokens choose: counted by hand, without padding, step by step; tables and pictures of it."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import zoo
from tests.model.multi_task_helpers import MODEL, model_of
from zoo.cli import main
from zoo.errors import ZooError
from zoo.inspect.expert_picture import draw_experts, named
from zoo.inspect.experts import Choices, Experts
from zoo.training.evaluate import evaluate

LAYER = "stack.layers.1.feedforward"


def by_hand(logits: torch.Tensor, real: torch.Tensor, top_k: int = 2) -> torch.Tensor:
    """The share of the tokens that choose each expert, one token after another."""
    counts = torch.zeros(logits.shape[-1], dtype=torch.float64)
    for row, counted in zip(logits, real.flatten().tolist()):
        if counted:
            counts[row.argsort(descending=True)[:top_k]] += 1
    return counts / int(real.sum())


def test_shares_are_those_of_the_tokens_that_are_no_padding() -> None:
    model, choices = model_of(), Choices()
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(0, 256, (5, 9), generator=generator)
    images = torch.randn(5, 1, 8, 8, generator=generator, dtype=torch.float64)
    mask = (torch.arange(9) < torch.tensor([9, 2, 5, 9, 1])[:, None]).long()
    with choices.watching(model), torch.no_grad():
        scores = model(ids, task="write", attention_mask=mask, output_router_logits=True).router_logits[0]
        model(ids, task="write")  # another call in the same step does not count
        choices.belong_to("write")
        seen = model(images, task="recognise", output_router_logits=True).router_logits[0]
        choices.belong_to("recognise")
        for _ in range(2):
            model(ids[:2], task="write", attention_mask=mask[:2])
            choices.belong_to("again")
    model(ids, task="write")
    choices.belong_to("write")  # nobody watches any more
    found = choices.shares()
    assert found is not None and (found.layers, found.top_k) == ([LAYER], [2])
    assert found.tasks == ["write", "recognise", "again"] and found.tokens == [26, 20, 22]
    (shares,) = found.shares
    assert shares.shape == (3, 4)
    torch.testing.assert_close(shares.sum(1), torch.full((3,), 2.0, dtype=torch.float64))
    torch.testing.assert_close(shares[0], by_hand(scores, mask))
    torch.testing.assert_close(shares[1], by_hand(seen, torch.ones(20)))
    plain = found.plain()
    assert plain["tokens"]["write"] == 26 and plain["shares"][LAYER]["write"] == [round(x, 6) for x in shares[0].tolist()]


def test_a_model_without_experts_is_left_alone() -> None:
    model, choices = zoo.build("vit-tiny"), Choices()
    with choices.watching(model):
        assert not any(module._forward_hooks for module in model.modules())
    assert choices.shares() is None


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with experts that nobody has trained."""
    torch.manual_seed(0)
    place = tmp_path_factory.mktemp("sparse") / "model"
    zoo.save(zoo.build(copy.deepcopy(MODEL)), place)
    return place


def test_an_evaluation_says_which_experts_were_chosen(folder: Path) -> None:
    model = zoo.load(folder).route("recognise")
    found = evaluate(model, "digits", "classification").experts
    assert found is not None and found.tasks == ["classification"] and found.tokens == [599 * 4]
    assert found.shares[0].sum().item() == pytest.approx(2)
    assert not any(module._forward_hooks for module in model.modules())


def some(layers: int = 2, experts: int = 8) -> Experts:
    generator = torch.Generator().manual_seed(0)
    shares = [torch.rand(3, experts, generator=generator).softmax(-1) * 2 for _ in range(layers)]
    names = [f"stack.layers.{2 * number + 1}.feedforward" for number in range(layers)]
    return Experts(names, ["recognise", "write", "dates"], shares, [2] * layers, [10, 20, 30])


def test_a_picture(tmp_path: Path) -> None:
    text = draw_experts(some(1, 3), tmp_path / "experts.svg", title="which experts").read_text(encoding="utf-8")
    assert text.startswith("<?xml") and len(text) > 5000
    assert draw_experts(some(), tmp_path / "experts.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(ZooError, match=r"experts.txt: expected the name of a picture"):
        draw_experts(some(), tmp_path / "experts.txt")
    assert named(LAYER) == "layer 1" and named("text.stack.layers.1.feedforward") == "text.stack.layers.1.feedforward"


def call(capsys: pytest.CaptureFixture[str], *words: Any) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as caught:
        main([str(word) for word in words])
    printed = capsys.readouterr()
    return int(caught.value.code or 0), printed.out, printed.err


def test_mistakes_are_one_line(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = call(capsys, "experts", folder)
    assert code == 1 and out == "" and "belongs to no run, so say on what to measure it" in err and err.count("\n") == 1
    zoo.save(zoo.build("vit-tiny", {"embedding.image_size": 8, "embedding.patch_size": 4, "embedding.channels": 1,
                                    "head.classes": 10, "stack.depth": 1}), tmp_path / "dense")  # fmt: skip
    code, out, err = call(capsys, "experts", tmp_path / "dense", "--data", "digits")
    assert code == 1 and "no layer of this model has experts" in err and err.count("\n") == 1
    code, out, err = call(capsys, "experts", folder, "-o", tmp_path / "a.txt")
    assert code == 1 and "expected the name of a picture" in err


def test_a_table_and_json(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = {"type": "multi-task", "tasks": {"recognise": "digits"}}
    task = {"type": "multi-task", "tasks": {"recognise": "classification"}}
    (folder.parent / "config.yaml").write_text(json.dumps({"data": data, "task": task}), encoding="utf-8")
    code, out, _ = call(capsys, "experts", folder.parent, "-o", tmp_path / "experts.png")
    assert code == 0 and "layer 1: % of the tokens" in out and "recognise" in out and "2396" in out
    assert (tmp_path / "experts.png").is_file() and str(tmp_path) in out
    code, out, _ = call(capsys, "experts", folder.parent, "--json")
    found = json.loads(out)
    assert found["tokens"] == {"recognise": 2396} and sum(found["shares"][LAYER]["recognise"]) == pytest.approx(2, abs=1e-4)
