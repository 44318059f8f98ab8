"""Contrastive training: its losses, its bounds, and two processes that give what one gives."""

from __future__ import annotations

import math
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.utils.data
from torch import nn
from torch.nn import functional

import zoo
from zoo.errors import ConfigError, DataError
from zoo.task.contrastive import Contrastive
from zoo.task.gather import mean_over_all
from zoo.training import ZooModule

SMALL = {
    "vision": {
        "embedding": {"image_size": 8, "patch_size": 4, "channels": 1},
        "stack": {"width": 16, "depth": 1, "block": {"attention": {"heads": 2}, "feedforward": {"hidden": 24}}},
        "head": {"size": 6},
    },
    "text": {
        "embedding": {"vocabulary": 30, "position": {"length": 7}},
        "stack": {"width": 16, "depth": 1, "block": {"attention": {"heads": 2}, "feedforward": {"hidden": 24}}},
        "head": {"size": 6},
    },
}
ROWS = 7


def model(**overrides: Any) -> Any:
    torch.manual_seed(3)
    built = zoo.build("clip-vit-b32", {**SMALL, **overrides}, dtype="float64")
    for parameter in built.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.1)
    return built


def pairs(rows: int = ROWS) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(4)
    return {
        "input_ids": torch.randint(0, 30, (rows, 7), generator=generator),
        "pixel_values": torch.randn(rows, 1, 8, 8, generator=generator, dtype=torch.float64),
    }


def task(**fields: Any) -> Contrastive:
    return Contrastive(Contrastive.Config(**fields))


def test_the_softmax_loss_is_that_of_transformers() -> None:
    from transformers.models.clip.modeling_clip import image_text_contrastive_loss

    net = model()
    step = task().step(net, pairs())
    output = net(**pairs())
    assert step.loss.item() == pytest.approx(image_text_contrastive_loss(output.logits_per_text).item(), rel=1e-12)
    assert torch.equal(step.predictions[:, 0], output.logits_per_image.argmax(1))
    assert torch.equal(step.targets[:, 0], torch.arange(ROWS))


def test_the_sigmoid_loss_is_that_of_the_paper_and_of_transformers() -> None:
    """-1/n sum of log sigmoid(z (t x.y + b)), z being 1 for pairs and -1 for all else."""
    net = model(logit_bias=-1.5)
    loss = task(loss="sigmoid").step(net, pairs()).loss.item()
    scores = net(**pairs()).logits_per_text
    signs = 2 * torch.eye(ROWS, dtype=torch.float64) - 1
    total = sum(math.log(1 + math.exp(-float(signs[i, j] * scores[i, j]))) for i in range(ROWS) for j in range(ROWS))
    assert loss == pytest.approx(total / ROWS, rel=1e-12)
    theirs = -functional.logsigmoid(signs * scores).sum(-1).mean()  # as SiglipModel computes it
    assert loss == pytest.approx(theirs.item(), rel=1e-12)


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_the_loss_of_open_clip_is_the_same(loss: str) -> None:
    from open_clip.loss import ClipLoss, SigLipLoss

    net = model(logit_bias=-1.5)
    output = net(**pairs())
    theirs: Any = ClipLoss() if loss == "softmax" else SigLipLoss()
    given = (output.image_embeds, output.text_embeds, output.logit_scale)
    expected = theirs(*given) if loss == "softmax" else theirs(*given, output.logit_bias)
    # a bias of all scores changes no softmax
    assert task(loss=loss).step(net, pairs()).loss.item() == pytest.approx(float(expected.detach()), rel=1e-9)


@pytest.mark.parametrize(("fields", "before", "after"), [
    ({}, 7.0, math.log(100)), ({}, -3.0, 0.0), ({}, 4.6, 4.6), ({"largest_scale": 20}, 4.0, math.log(20)),
    ({"loss": "sigmoid"}, 7.0, 7.0), ({"loss": "sigmoid", "largest_scale": 10}, 7.0, math.log(10)),
])  # fmt: skip
def test_the_scale_is_bounded_as_published(fields: dict[str, Any], before: float, after: float) -> None:
    net = model()
    nn.init.constant_(net.logit_scale, before)
    task(**fields).after_step(net)
    assert net.logit_scale.item() == pytest.approx(after)


def test_a_trainer_bounds_the_scale_after_each_step(tmp_path: Path) -> None:
    import lightning

    module = ZooModule(model(logit_scale=4.7).float(), task="contrastive", optimizer={"name": "sgd", "lr": 1e-9, "warmup": 0})
    nn.init.constant_(module.model.logit_scale, 6.0)
    batch = {name: value.float() if value.is_floating_point() else value for name, value in pairs().items()}
    trainer = lightning.Trainer(
        max_steps=1, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(module, torch.utils.data.DataLoader([batch], batch_size=None))
    assert module.model.logit_scale.item() == pytest.approx(math.log(100), rel=1e-5)
    assert 0 <= trainer.callback_metrics["train_recall"].item() <= 1


def test_pairs_are_learned() -> None:
    net, batch = model().float(), {**pairs(), "pixel_values": pairs()["pixel_values"].float()}
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        step = task().step(net, batch)
        step.loss.backward()
        optimizer.step()
    assert step.loss.item() < 0.1 and torch.equal(step.predictions, step.targets)


def test_what_is_no_pair_is_refused() -> None:
    net = model()
    with pytest.raises(DataError, match="7 images and 0 texts"):
        task().step(net, {"pixel_values": pairs()["pixel_values"]})
    with pytest.raises(DataError, match="7 images and 3 texts"):
        task().step(net, {**pairs(), "input_ids": pairs()["input_ids"][:3]})
    with pytest.raises(DataError, match="mapping"):
        task().step(net, [1, 2])
    with pytest.raises(ConfigError, match="needs a model of type 'dual-encoder', and this is 'transformer'"):
        zoo.training.run.resolve_run({"type": "train", "model": "vit-tiny", "data": "digits", "task": "contrastive"})


def test_sentences_of_training_are_none_of_those_that_are_measured() -> None:
    from zoo.data.captioned_digits import HELD_OUT, LENGTH, PHRASINGS, CaptionedDigits
    from zoo.data.tokenizer import ByteTokenizer

    data = CaptionedDigits(CaptionedDigits.Config(validation=0.1))
    assert not set(PHRASINGS) & set(HELD_OUT) and len(set(PHRASINGS)) == 62 and len(HELD_OUT) == 8
    said = {name: {tuple(row.tolist()) for row in data.sentences(name).flatten(0, 1)} for name in ("train", "test")}
    assert not said["train"] & said["test"] and len(said["train"]) == 62 * 48 * 2 * 10 and len(said["test"]) == 8 * 2 * 10
    assert data.sentences("test").shape == (16, 10, LENGTH) and torch.equal(data.prompts, data.sentences("validation"))
    test = data.split("test")
    batch = test[torch.arange(599)]
    words = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    for ids, label in zip(batch["input_ids"], batch["labels"].tolist()):
        text = ByteTokenizer().decode(ids.tolist())
        assert (words[label] in text) != (str(label) in text)
        assert tuple(ids.tolist()) in said["test"] and ids[-1] == ByteTokenizer.end
    pixels, rows = data.split("train").tensors["pixel_values"], data.rows
    assert len(pixels) == 1078 and not set(rows["train"].tolist()) & set(rows["test"].tolist())


def test_another_sentence_is_drawn_each_time() -> None:
    from zoo.data.captioned_digits import CaptionedDigits

    data = CaptionedDigits(CaptionedDigits.Config())
    batch = data.split("train")[torch.arange(50)]
    first, second = data.augment(batch), data.augment(batch)
    assert not torch.equal(first["input_ids"], second["input_ids"]) and torch.equal(
        first["pixel_values"], batch["pixel_values"]
    )
    table = data.sentences("train")
    for ids, label in zip(first["input_ids"], batch["labels"].tolist()):
        assert (table[:, label] == ids).all(1).any()


@pytest.mark.parametrize(("change", "words"), [
    ({"model": "vit-tiny", "task": "contrastive"}, "which need a model of type 'dual-encoder'"),
    ({"model.text.embedding.vocabulary": 259}, "model.text.embedding.vocabulary: .*260 token ids, not 259"),
    ({"model.text.embedding.position": {"type": "learned", "length": 20}}, "model.text.embedding.position.length: .*not 20"),
    ({"model.vision.embedding.channels": 3}, "model.vision.embedding.channels: .*1 channel, not 3"),
    ({"data": "digits"}, "task.zero_shot: data 'digits' have no sentences for classes"),
])  # fmt: skip
def test_data_that_do_not_fit_are_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        zoo.training.run.resolve_run("clip-mini-digits", change)


def test_images_are_classified_by_each_phrasing() -> None:
    net = model().eval()
    prompts = torch.randint(0, 30, (4, 3, 7))
    images = net(**pairs()).image_embeds.detach()
    from zoo.task.contrastive import classified

    found = classified(net, prompts, images)
    assert found.shape == (ROWS, 5)
    every = [net(input_ids=prompts[phrasing]).text_embeds for phrasing in range(4)]
    for phrasing, texts in enumerate(every):
        assert torch.equal(found[:, phrasing + 1], (images @ texts.T).argmax(1))
    together = functional.normalize(sum(every), dim=-1)
    assert torch.equal(found[:, 0], (images @ together.T).argmax(1))
    whole = task(zero_shot=True)
    whole.prompts = prompts
    labels = torch.arange(ROWS) % 3
    step = whole.step(net, {**pairs(), "labels": labels})
    assert torch.equal(step.predictions[:, 2:], found) and torch.equal(step.targets[:, 1], labels)
    said = labels[step.predictions[:, 0]]
    assert torch.equal(step.predictions[:, 1], said) and torch.equal(step.targets[:, 2], labels)
    metrics = whole.metrics(net)
    for metric in metrics.values():
        metric.update(step.predictions, step.targets)
    right = (found == labels[:, None]).float()
    assert metrics["class_recall"].compute().item() == pytest.approx((said == labels).float().mean().item())
    assert metrics["accuracy"].compute().item() == pytest.approx(right[:, 0].mean().item())
    assert metrics["phrasing_accuracy"].compute().item() == pytest.approx(right[:, 1:].mean().item())
    assert metrics["recall"].compute().item() == pytest.approx(
        (step.predictions[:, 0] == torch.arange(ROWS)).float().mean().item()
    )


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_shipped_run_reads_digits_by_sentences_it_never_saw(tmp_path: Path, seed: int) -> None:
    result = zoo.train("clip-mini-digits", {"seed": seed, "folder": str(tmp_path / "run")}, progress=False)
    assert min(result.metrics["test_accuracy"], result.metrics["test_phrasing_accuracy"]) >= 0.95


def gradients(net: Any, fields: dict[str, Any], batch: dict[str, Any]) -> dict[str, Any]:
    net.zero_grad()
    task(**fields).step(net, batch).loss.backward()
    return {name: None if each.grad is None else each.grad.clone() for name, each in net.named_parameters()}


LOSSES: list[dict[str, Any]] = [{}, {"loss": "sigmoid"}]


def one_of_two(rank: int, first: int) -> None:
    """What each of the two processes does: its own rows, gradients averaged as DDP does."""
    torch.distributed.init_process_group("gloo")
    for fields in LOSSES:
        net = model(logit_bias=-1.5)
        rows = slice(0, first) if rank == 0 else slice(first, ROWS)
        wrapped = nn.parallel.DistributedDataParallel(Wrapped(net, fields))
        step = wrapped({name: value[rows] for name, value in pairs().items()})
        step.backward()
        found = {name: each.grad for name, each in net.named_parameters()}
        loss = step.detach().clone()
        torch.distributed.all_reduce(loss)
        if rank == 0:
            torch.save({"loss": loss / 2, "gradients": found}, Path(sys.argv[1]) / f"{fields.get('loss', 'softmax')}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


class Wrapped(nn.Module):
    """The loss as a module, so that DDP averages gradients."""

    def __init__(self, net: Any, fields: dict[str, Any]) -> None:
        super().__init__()
        self.net, self.task = net, task(**fields)

    def forward(self, batch: Any) -> Any:
        return mean_over_all(self.task.step(self.net, batch))


@pytest.mark.slow
@pytest.mark.parametrize("first", [4, 5])
def test_two_processes_give_the_gradients_of_one(tmp_path: Path, first: int) -> None:
    """With the whole batch, in float64, however unevenly the rows are divided."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    root = Path(__file__).parents[2]
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    both = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.training.test_contrastive", str(tmp_path), str(first)], cwd=root, text=True,
            env={**os.environ, **common, "PYTHONPATH": str(root), "RANK": rank}, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for rank in ("0", "1")
    ]  # fmt: skip
    said = [process.communicate(timeout=120)[0] for process in both]
    assert all(process.returncode == 0 for process in both), "\n".join(said)
    for fields in LOSSES:
        net = model(logit_bias=-1.5)
        expected = gradients(net, fields, pairs())
        found = torch.load(tmp_path / f"{fields.get('loss', 'softmax')}.pt", weights_only=True)
        assert found["loss"].item() == pytest.approx(task(**fields).step(net, pairs()).loss.item(), rel=1e-10)
        largest = max(float(each.abs().max()) for each in expected.values())
        assert set(found["gradients"]) == set(expected)
        for name, gradient in expected.items():
            assert (found["gradients"][name] - gradient).abs().max() <= 1e-10 * largest, name
        alone = gradients(net, fields, {name: value[:first] for name, value in pairs().items()})
        assert any((alone[name] - each).abs().max() > 1e-3 * largest for name, each in expected.items())


if __name__ == "__main__":
    one_of_two(int(os.environ["RANK"]), int(sys.argv[2]))
