"""Guessing the next token: windows of long texts, rows that are shared, the loss, bits per byte, compressors, runs."""

from __future__ import annotations

import bz2
import json
import lzma
import math
import random
import re
import zlib
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional
from typer.testing import CliRunner

import zoo
from zoo.cli.app import app
from zoo.data.byte_pairs import BytePairs
from zoo.data.text_files import TextFiles
from zoo.data.tokenizer import ByteTokenizer, FileTokenizer, LibraryTokenizer
from zoo.data.windows import boundaries, windows
from zoo.errors import ConfigError, DataError, InputError
from zoo.registry import make
from zoo.task.bits_per_byte import BitsPerByte
from zoo.task.causal_language import CausalLanguage
from zoo.task.compression import references
from zoo.task.masked_language import IGNORED
from zoo.training.evaluate import evaluate
from zoo.training.module import ZooModule
from zoo.training.predict import predict
from zoo.training.run import resolve_run, train

MODEL: dict[str, Any] = {
    "type": "transformer",
    "embedding": {"type": "tokens", "vocabulary": 300, "position": {"type": "learned", "length": 48}},
    "stack": {
        "width": 16,
        "depth": 2,
        "final_norm": "rms-norm",
        "block": {
            "norm": "rms-norm",
            "attention": {"heads": 2, "causal": True},
            "feedforward": {"type": "gated", "hidden": 32},
        },
    },
    "head": "language-model",
}
SMALL: dict[str, Any] = {
    "model": MODEL,
    "task": "causal-language",
    "optimizer": {"lr": 1e-2, "warmup": 0.1},
    "trainer": {"max_epochs": 2, "accelerator": "cpu"},
}
HARD = ["", "a", "  two  blanks ", "ünïcödé → 漢字 🙂\ttabs\n", "🙂" * 30, "The generator returns a value. " * 9]
"""Texts with letters of several bytes, blanks at the ends, and more tokens than a window has."""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text file of 240 lines: sentences of a small grammar, some of them long, some with letters of several bytes."""
    things, ways = ("function", "modülé", "generator", "iterator"), ("returns", "raises", "yields")
    lines = [
        f"The {things[n % 4]} number_{n} {ways[n % 3]} a value" + (", and then another one" * (n % 9)) + "." for n in range(240)
    ]
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "texts.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def fields(corpus: Path, **more: Any) -> dict[str, Any]:
    data = {"path": str(corpus / "texts.txt"), "tokenizer": "bpe", "vocabulary": 300, "length": 48, "batch_size": 16}
    return {"type": "text-files", "pack": True, **data, **more}


def text_files(corpus: Path, **more: Any) -> TextFiles:
    return make(TextFiles.Config.model_validate(fields(corpus, **more)))


def task_for(data: Any) -> CausalLanguage:
    task: CausalLanguage = make(CausalLanguage.Config())
    task.adapt(data)
    return task


@pytest.fixture(scope="module")
def finished(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A small run that is finished."""
    folder = tmp_path_factory.mktemp("run") / "run"
    return train({**SMALL, "data": fields(corpus, validation=0.2), "folder": str(folder)}, progress=False)


# Windows


def tokenizers(corpus: Path) -> list[Any]:
    return [ByteTokenizer(), *(text_files(corpus, tokenizer=kind).tokenizer for kind in ("bpe", "wordpiece"))]


@pytest.mark.parametrize("kind", [0, 1, 2])
@pytest.mark.parametrize("length", [3, 8, 1000])
def test_every_token_and_every_byte_is_guessed_once(corpus: Path, kind: int, length: int) -> None:
    tokenizer = tokenizers(corpus)[kind]
    start, end = boundaries(tokenizer)
    for text in HARD:
        found = windows(tokenizer, text, length)
        assert all(2 <= len(window.ids) == len(window.sizes) <= length for window in found)
        assert all(len(window.ids) == length for window in found[:-1])
        guessed = [token for window in found for token in window.ids[1:]]
        assert [found[0].ids[0], *guessed] == [start, *tokenizer.content(text).ids, end]
        assert all(before.ids[-1] == after.ids[0] for before, after in pairwise(found))
        assert sum(size for window in found for size in window.sizes[1:]) == len(text.encode("utf-8"))
        assert all(window.sizes[0] == 0 for window in found) and all(size >= 0 for each in found for size in each.sizes)
        (first,) = windows(tokenizer, text, length, rest=False)
        assert first == found[0]
    if kind < 2:  # word pieces are lower case
        assert all(tokenizer.decode(list(tokenizer.content(text).ids)) == text for text in HARD)


def test_bytes_of_tokens_are_those_of_the_text(corpus: Path) -> None:
    tokenizer = text_files(corpus).tokenizer
    for text in ("The generator  returns, a value.", "é → 漢"):
        ids, sizes = tokenizer.content(text)
        if text.isascii():
            assert list(sizes) == [len(tokenizer.decode([token])) for token in ids]
        ends = [len(tokenizer.decode(list(ids[: place + 1])).encode("utf-8", errors="replace")) for place in range(len(ids))]
        complete = [place for place, end in enumerate(ends) if "\ufffd" not in tokenizer.decode(list(ids[: place + 1]))]
        assert complete and all(sum(sizes[: place + 1]) == ends[place] for place in complete)


def test_a_tokenizer_with_one_boundary_uses_it_twice() -> None:
    library = pytest.importorskip("tokenizers")
    tokenizer = library.Tokenizer(library.models.WordLevel({"<|endoftext|>": 0, "a": 1, "[UNK]": 2}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = library.pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["<|endoftext|>"])
    found = windows(LibraryTokenizer(tokenizer), "a a b", 10)
    assert found == [([0, 1, 1, 2, 0], [0, 1, 2, 2, 0])]
    bare = ByteTokenizer()
    bare.start = None
    assert boundaries(bare) == (258, 258)
    bare.start, bare.end = 7, None
    assert boundaries(bare) == (7, 7)


def test_a_tokenizer_without_boundaries_is_an_error(corpus: Path) -> None:
    data = text_files(corpus)
    data.tokenizer.start = data.tokenizer.end = None
    with pytest.raises(DataError, match=r"^data 'text-files': tokenizer: it has neither a start nor an end token, so that no"):
        task_for(data)


def test_merges_are_left_out_at_random(corpus: Path) -> None:
    tokenizer = text_files(corpus).tokenizer
    pairs, text = BytePairs(tokenizer), HARD[3] + HARD[5]
    assert all(pairs.content(each, 0.0).ids == list(tokenizer.content(each).ids) for each in HARD)
    assert pairs.content(text, 1.0).sizes == [1] * len(text.encode("utf-8"))
    random.seed(1)
    some = [pairs.content(text, 0.3) for _ in range(20)]
    assert all(tokenizer.decode(each.ids) == text and sum(each.sizes) == len(text.encode("utf-8")) for each in some)
    assert len({tuple(each.ids) for each in some}) == 20 and all(
        len(each.ids) > len(tokenizer.content(text).ids) for each in some
    )
    for other in (ByteTokenizer(), text_files(corpus, tokenizer="wordpiece").tokenizer):
        with pytest.raises(DataError, match=r"^tokenizer: merges can be left out of byte pairs alone, such as those of 'bpe'$"):
            BytePairs(other)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("streaming", [False, True])
def test_merges_are_left_out_in_training_alone(corpus: Path, streaming: bool, workers: int) -> None:
    data = text_files(corpus, streaming=streaming, workers=workers, batch_size=64)
    make(CausalLanguage.Config(merge_dropout=0.3)).adapt(data)

    def tokens(part: Any, seed: int = 0) -> list[int]:
        return [token for batch in data.loader(part, seed=seed) for token in batch["input_ids"].flatten().tolist()]

    plain = text_files(corpus, batch_size=64)
    task_for(plain)
    assert sorted(tokens("test")) == sorted(
        token for each in plain.loader("test") for token in each["input_ids"].flatten().tolist()
    )
    assert tokens("train") == tokens("train") != tokens("train", seed=1)  # it follows from the seed
    loader = data.loader("train")
    first, second = (sorted(token for batch in loader for token in batch["input_ids"].flatten().tolist()) for _ in range(2))
    assert first != second  # and from the epoch
    sizes = sum(int(batch["token_bytes"].sum()) for batch in data.loader("train"))
    assert sizes == sum(len(text.encode("utf-8")) for text in data.texts("train"))


# Rows and targets


@pytest.mark.parametrize("tokenizer", ["bytes", "bpe"])
@pytest.mark.parametrize("batch_size", [1, 16])
def test_a_part_is_guessed_whole_and_once(corpus: Path, tokenizer: str, batch_size: int) -> None:
    data = text_files(corpus, tokenizer=tokenizer, batch_size=batch_size)
    task, model = task_for(data), zoo.build(MODEL).eval()
    steps = [task.step(model, batch) for batch in data.loader("test")]
    texts = list(data.texts("test"))
    wanted = [token for text in texts for token in [*data.tokenizer.content(text).ids, boundaries(data.tokenizer)[1]]]
    assert sorted(torch.cat([step.targets for step in steps]).tolist()) == sorted(wanted)
    assert sum(float(step.predictions[:, 1].sum()) for step in steps) == sum(len(text.encode("utf-8")) for text in texts)


def test_the_cost_of_a_text_by_hand(corpus: Path) -> None:
    data = text_files(corpus, length=20)
    task, model = task_for(data), zoo.build(MODEL).eval()
    costs, size = 0.0, 0
    for text in data.texts("test"):
        for window in windows(data.tokenizer, text, 20):
            ids = torch.tensor([list(window.ids)])
            scores = model(ids).logits[0, :-1].log_softmax(-1)
            costs -= float(scores.gather(1, ids[0, 1:, None]).detach().sum())
        size += len(text.encode("utf-8"))
    found = evaluate(model, data.config, task.config).metrics
    tokens = sum(len(data.tokenizer.content(text).ids) + 1 for text in data.texts("test"))
    assert found["loss"] == pytest.approx(costs / tokens, rel=1e-5)
    assert found["bits_per_byte"] == pytest.approx(costs / math.log(2) / size, rel=1e-5)


ATTENTIONS = [{"type": "full"}, {"type": "full", "position": "rotary"}, {"type": "local", "window": 5}]


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_no_text_sees_another_one(corpus: Path, attention: dict[str, Any]) -> None:
    data = text_files(corpus, length=120)
    change = {"embedding.position.length": 120, "stack.block.attention": attention}
    task, model = task_for(data), zoo.build(MODEL, change, dtype="float64").eval()
    batch = next(iter(data.loader("train")))
    texts, ids = batch["sequence_ids"], batch["input_ids"]
    row = int(texts.amax(1).argmax())
    assert int(texts[row].max()) >= 2

    def costs(tokens: torch.Tensor) -> dict[int, torch.Tensor]:
        """What each text of the row costs, by its number."""
        alone = {name: value[row : row + 1] for name, value in {**batch, "input_ids": tokens}.items()}
        found = task.step(model, alone).predictions[:, 0]
        of = texts[row][:-1][(texts[row][1:] == texts[row][:-1]) & (texts[row][1:] >= 0)]
        assert len(found) == len(of)
        return {number: found[of == number] for number in range(int(texts[row].max()) + 1)}

    before = costs(ids)
    changed = ids.clone()
    changed[row][texts[row] == 1] = (changed[row][texts[row] == 1] + 7) % 300
    after = costs(changed)
    assert not torch.allclose(before[1], after[1])
    assert all(torch.equal(before[number], after[number]) for number in before if number != 1)
    loose = task.step(model, {"input_ids": ids[row : row + 1]})  # as one text, which it is not
    assert len(loose.targets) > sum(map(len, before.values()))


@pytest.mark.parametrize("attention", [*ATTENTIONS, {"type": "local", "window": 30}])
def test_no_token_sees_one_behind_it(attention: dict[str, Any]) -> None:
    change = {"stack.block.attention": attention}
    task, model = make(CausalLanguage.Config()), zoo.build(MODEL, change, dtype="float64").eval()
    ids = torch.randint(0, 300, (3, 20))
    before = task.step(model, {"input_ids": ids}).predictions[:, 0].view(3, 19)
    changed = ids.clone()
    changed[:, 12] = (changed[:, 12] + 1) % 300
    after = task.step(model, {"input_ids": changed}).predictions[:, 0].view(3, 19)
    assert torch.equal(before[:, :11], after[:, :11]) and bool((before[:, 11:] != after[:, 11:]).all())


def test_truncated_texts_are_counted_as_far_as_they_are_read(corpus: Path) -> None:
    data = text_files(corpus, pack=False, length=24)
    task, model = task_for(data), zoo.build(MODEL).eval()
    whole = cut = 0
    for batch, text in zip(text_files_one_by_one(data), data.texts("test")):
        step, content = task.step(model, batch), data.tokenizer.content(text)
        read = list(content.ids[:23])
        end = [data.tokenizer.end] if len(content.ids) < 23 else []
        assert step.targets.tolist() == [*read, *end]
        assert int(step.predictions[:, 1].sum()) == sum(content.sizes[:23])
        whole, cut = whole + bool(end), cut + (not end)
    assert whole and cut


def text_files_one_by_one(data: Any) -> Any:
    """Batches of one text each."""
    split = data.split("test")
    return (data.collate([split[number]]) for number in range(len(split)))


def test_labels_are_shifted_inside(corpus: Path) -> None:
    task, model = make(CausalLanguage.Config()), zoo.build(MODEL).eval()
    ids = torch.randint(0, 300, (3, 12))
    labels = ids.clone()
    labels[0, :5], labels[1, 9:], labels[2] = IGNORED, IGNORED, IGNORED
    labels[1, 3] = 7  # need not be the token that stands there
    step = task.step(model, {"input_ids": ids, "labels": labels})
    logits = model(ids).logits
    loss = functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED)
    assert step.loss.item() == pytest.approx(loss.item(), abs=1e-6)
    assert step.targets.tolist() == labels[:, 1:][labels[:, 1:] != IGNORED].tolist()
    assert step.predictions.shape == (len(step.targets), 2) and bool(step.predictions[:, 1].isnan().all())
    metric = BitsPerByte()
    metric.update(step.predictions, step.targets)
    assert math.isnan(float(metric.compute()))
    theirs = pytest.importorskip("transformers.loss.loss_utils").ForCausalLMLoss(logits, labels, 300)
    assert step.loss.item() == pytest.approx(theirs.item(), abs=1e-6)
    nothing = task.step(model, {"input_ids": ids, "labels": torch.full_like(ids, IGNORED)})
    assert nothing.loss.item() == 0.0 and len(nothing.targets) == 0 and nothing.predictions.shape == (0, 2)
    nothing.loss.backward()


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_neither_seen_nor_guessed(side: str) -> None:
    task, model = make(CausalLanguage.Config()), zoo.build(MODEL, {"embedding.position": None}).eval()
    ids, mask = torch.randint(5, 300, (2, 9)), torch.ones(2, 9, dtype=torch.long)
    hidden = slice(0, 4) if side == "left" else slice(5, 9)
    ids[1, hidden], mask[1, hidden] = 0, 0
    step = task.step(model, {"input_ids": ids, "attention_mask": mask})
    alone = [task.step(model, {"input_ids": row[real.bool()][None]}) for row, real in zip(ids, mask)]
    assert step.targets.tolist() == [token for each in alone for token in each.targets.tolist()]
    assert torch.allclose(step.predictions[:, 0], torch.cat([each.predictions[:, 0] for each in alone]), atol=1e-5)


def test_labels_of_classes_play_no_role() -> None:
    task, model = make(CausalLanguage.Config()), zoo.build(MODEL).eval()
    batch = {"input_ids": torch.randint(0, 300, (2, 9)), "token_bytes": torch.ones(2, 9, dtype=torch.long)}
    step = task.step(model, {**batch, "labels": torch.tensor([0, 1])})
    assert torch.equal(step.loss, task.step(model, batch).loss)


def test_batches_that_do_not_fit() -> None:
    task, model = make(CausalLanguage.Config()), zoo.build(MODEL)
    ids = torch.randint(0, 300, (2, 7))
    with pytest.raises(DataError, match="is a mapping with 'input_ids'"):
        task.step(model, (ids, ids))
    with pytest.raises(DataError, match=r"^labels: expected shape \(2, 7\), as input_ids, got \(2, 6\)$"):
        task.step(model, {"input_ids": ids, "labels": ids[:, 1:]})


# What does not fit


TWO_SIDED = "a token that sees those behind it sees what it is to guess; this has to be true"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model.stack.block.attention.causal": False}, rf"^model\.stack\.block\.attention\.causal: {TWO_SIDED}$"),
        (
            {"model.stack.pattern": [{}, {"attention": {"causal": False}}]},
            rf"^model\.stack\.pattern\.1\.attention\.causal: {TWO_SIDED}$",
        ),
        ({"model.head": "pooler"}, r"^model\.head: task 'causal-language' needs a head of type 'language-model', and this is"),
        ({"model.head": None}, r"model\.head: .*'language-model', and this is none$"),
        ({"data": "digits"}, r"data: task 'causal-language' needs texts, and data 'digits' have none"),
        ({"data.vocabulary": 301}, r"model\.embedding\.vocabulary: data 'pydoc' have 301 token ids, not 300"),
        (
            {"data.tokenizer": "bytes", "task.merge_dropout": 0.1},
            r"task\.merge_dropout: tokenizer 'bytes' has no merges; choose",
        ),
        ({"task.merge_dropout": 1.0}, r"task\.merge_dropout: expected less than 1"),
        ({"task": {"type": "causal-language", "share": 0.1}}, r"task\.share: unknown field of task 'causal-language'"),
    ],
)
def test_runs_that_do_not_fit(change: dict[str, Any], message: str) -> None:
    run = {**SMALL, "data": {"type": "pydoc", "tokenizer": "bpe", "vocabulary": 300, "length": 40}}
    assert resolve_run(run).task.type == "causal-language"
    with pytest.raises(ConfigError, match=message):
        resolve_run(run, change)


def test_a_two_sided_model_of_ones_own_is_refused_too() -> None:
    assert ZooModule(zoo.build(MODEL), task="causal-language").task.best == ("bits_per_byte", "min")
    two_sided = zoo.build(MODEL, {"stack.block.attention.causal": False})
    for start in (
        lambda: ZooModule(two_sided, task="causal-language"),
        lambda: evaluate(two_sided, "pydoc", "causal-language"),
    ):
        with pytest.raises(ConfigError, match=rf"stack\.block\.attention\.causal: {TWO_SIDED}$"):
            start()


# Figures


def test_bits_per_byte_sums_over_batches() -> None:
    metric = BitsPerByte()
    for costs, sizes in (([1.0, 2.0], [3, 0]), ([0.5], [4])):
        metric.update(torch.tensor([costs, sizes]).T, torch.zeros(len(costs)))
    assert float(metric.compute()) == pytest.approx(3.5 / math.log(2) / 7)
    metric.reset()
    for _ in range(10_000):  # a sum in float32 would lose digits
        metric.update(torch.tensor([[0.1, 1.0]] * 100), torch.zeros(100))
    assert float(metric.compute()) == pytest.approx(0.1 / math.log(2), rel=1e-6)


def test_compressors_by_hand(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("".join(f"The generator number {n} returns a välue.\n" for n in range(200)))
    (tmp_path / "test.txt").write_text("The generator number 7 yields a välue.\nnothing of this sort\n")
    data = make(TextFiles.Config(path=str(tmp_path / "train.txt"), test_path=str(tmp_path / "test.txt")))
    known, new = ((tmp_path / name).read_bytes() for name in ("train.txt", "test.txt"))
    found = references(data, "test")
    for name, compress in (("zlib", lambda x: zlib.compress(x, 9)), ("bz2", bz2.compress), ("lzma", _lzma)):
        assert found[f"{name}_bits_per_byte"] == 8 * (len(compress(known + new)) - len(compress(known))) / (len(new) - 2)
    alone = 8 * len(zlib.compress(new, 9)) / len(new)
    assert found["zlib_bits_per_byte"] < 0.8 * alone  # the training text does help
    stream = make(TextFiles.Config(path=str(tmp_path / "train.txt"), test_path=str(tmp_path / "test.txt"), streaming=True))
    assert references(stream, "test") == {}


def _lzma(content: bytes) -> bytes:
    return lzma.compress(content, preset=9 | lzma.PRESET_EXTREME)


def test_a_run_is_compared_with_compressors(finished: Any, corpus: Path) -> None:
    folder, metrics = finished.folder, finished.metrics
    compressed = references(text_files(corpus, validation=0.2), "test")
    assert compressed and {name: metrics[f"test_{name}"] for name in compressed} == compressed
    assert 0 < metrics["test_bits_per_byte"] < math.log2(300)
    for source in (folder, folder / "model", folder / "last.ckpt"):
        again = evaluate(source).metrics
        assert again["bits_per_byte"] == pytest.approx(metrics["test_bits_per_byte"], abs=1e-6)
        assert again["loss"] == pytest.approx(metrics["test_loss"], abs=1e-6)
    header, *rows = (folder / "metrics.csv").read_text().splitlines()
    assert {"train_bits_per_byte", "validation_bits_per_byte"} <= set(header.split(","))
    column = [float(row.split(",")[header.split(",").index("validation_bits_per_byte")]) for row in rows]
    assert column[-1] < column[0]
    best = evaluate(folder / "best.ckpt", split="validation").metrics["bits_per_byte"]
    assert best == pytest.approx(min(column), abs=1e-5)
    assert (folder / "curve.png").stat().st_size > 10_000
    shown = CliRunner().invoke(app, ["eval", str(folder)])
    assert shown.exit_code == 0 and all(name in shown.output for name in ("bits_per_byte", *compressed))


def test_the_command_line_prints_bits_per_byte_beside_compressors(corpus: Path, tmp_path: Path) -> None:
    run = {**SMALL, "data": fields(corpus), "folder": str(tmp_path / "run")}
    (tmp_path / "run.yaml").write_text(json.dumps(run))
    shown = CliRunner().invoke(app, ["train", str(tmp_path / "run.yaml"), "trainer.max_epochs=1"])
    words = " ".join(shown.output.split())
    pattern = r"bits_per_byte \d\.\d+ on the examples kept out; zlib bits per byte \d\.\d+; bz2 bits .*; lzma bits per byte \d"
    assert shown.exit_code == 0 and re.search(pattern, words), shown.output


# What comes next


def test_the_likeliest_next_tokens(finished: Any) -> None:
    texts = ["The generator number", "", "The"]
    model, tokenizer = zoo.load(finished.folder / "model"), FileTokenizer(finished.folder / "model", "")
    answers = list(predict(finished.folder, texts))
    for text, found in zip(texts, answers, strict=True):
        ids = torch.tensor([[tokenizer.start, *tokenizer.content(text).ids]])
        shares = model(ids).logits[0, -1].softmax(-1).topk(5)
        assert found.name == text and [share for _, share in found.answers] == pytest.approx(shares.values.tolist(), abs=1e-5)
        first = tokenizer.decode([int(shares.indices[0])])
        assert found.answers[0][0] in (first, repr(first), tokenizer.token(int(shares.indices[0])))
    shown = CliRunner().invoke(app, ["predict", str(finished.folder), texts[0], "--top", "3", "--json"])
    (answer,) = json.loads(shown.output)
    assert answer["input"] == texts[0] and len(answer["answers"]) == 3
    assert [each["class"] for each in answer["answers"]] == [name for name, _ in answers[0].answers[:3]]


def test_what_has_no_next_token(finished: Any) -> None:
    with pytest.raises(InputError, match=r"these are \d+ tokens, and the model reads 48$"):
        list(predict(finished.folder, ["value " * 100]))
    with pytest.raises(ConfigError, match="say what the next token is asked of, such as 'A list of'"):
        list(predict(finished.folder))


# The shipped run


def words(text: str) -> str:
    return f" {' '.join(re.findall(r'[a-z0-9_]+', text.casefold()))} "


def test_no_paragraph_that_is_kept_out_is_trained_on() -> None:
    config = resolve_run("gpt-mini-pydoc").data
    data: Any = make(config)
    parts = {name: [words(text) for text in data.texts(name)] for name in ("train", "validation", "test")}
    assert len(parts["train"]) > 1000 and len(parts["test"]) > 200
    trained = "\n".join(parts["train"])
    assert not [text for text in parts["test"] + parts["validation"] if text in trained]
    everything = [text for part in parts.values() for text in part]
    assert len(set(everything)) == len(everything)


def test_the_shipped_runs_fit_together() -> None:
    full, local = (resolve_run(name) for name in ("gpt-mini-pydoc", "gpt-mini-pydoc-local"))
    assert (full.model.stack.block.attention.type, local.model.stack.block.attention.type) == ("full", "local")
    assert local.data == full.data and local.optimizer == full.optimizer and local.trainer == full.trainer


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt-mini-pydoc", "gpt-mini-pydoc-local"])
def test_the_shipped_run_needs_fewer_bits_than_asked_for(name: str, tmp_path: Path) -> None:
    result = train(name, {"folder": str(tmp_path / "run")}, progress=False)
    assert result.metrics["test_bits_per_byte"] <= 2.3
    assert 2.5 < result.metrics["test_zlib_bits_per_byte"] < 2.9
    (found,) = predict(result.folder, ["Return the length of the"])
    assert len(found.answers) == 5
