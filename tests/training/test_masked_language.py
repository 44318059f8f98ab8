"""Guessing masked words: tokenizers that are trained, rows that are shared, masks, the loss, runs and what they answer."""

from __future__ import annotations

import hashlib
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional
from typer.testing import CliRunner

import zoo
from zoo.cli.app import app
from zoo.data.pydoc import Pydoc
from zoo.data.text import packed
from zoo.data.text_files import TextFiles
from zoo.data.tokenizer import ByteTokenizer, FileTokenizer
from zoo.data.tokenizer_training import train_tokenizer
from zoo.errors import ConfigError, DataError, InputError, ZooError
from zoo.registry import make
from zoo.task.masked_language import IGNORED, MaskedLanguage, drawn
from zoo.task.unigram import references
from zoo.training.evaluate import evaluate
from zoo.training.module import ZooModule
from zoo.training.predict import predict
from zoo.training.run import resolve_run, train, whole_model

SMALL: dict[str, Any] = {
    "model": {
        "extends": "bert-mini",
        "embedding": {"vocabulary": 300, "segments": 0, "position": {"length": 48}, "dropout": 0.0},
        "stack": {
            "width": 16,
            "depth": 1,
            "block": {"attention": {"heads": 2, "dropout": 0.1}, "feedforward": {"hidden": 32}, "dropout": 0.0},
        },
        "head": "masked-language-model",
    },
    "task": "masked-language",
    "optimizer": {"lr": 3e-3, "warmup": 0.1},
    "trainer": {"max_epochs": 2, "accelerator": "cpu"},
}

MODEL = whole_model(SMALL["model"])


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text file of 240 lines: sentences of a small grammar, some of them long."""
    things, ways = ("function", "module", "generator", "iterator"), ("returns", "raises", "yields")
    lines = [
        f"The {things[n % 4]} number_{n} {ways[n % 3]} a value" + (", and then another one" * (n % 9)) + "." for n in range(240)
    ]
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "texts.txt").write_text("\n".join(lines) + "\n")
    return folder


def fields(corpus: Path, **more: Any) -> dict[str, Any]:
    data = {"path": str(corpus / "texts.txt"), "tokenizer": "wordpiece", "vocabulary": 300, "length": 48, "batch_size": 16}
    return {"type": "text-files", "validation": 0.2, **data, **more}


def text_files(corpus: Path, **more: Any) -> TextFiles:
    return make(TextFiles.Config.model_validate(fields(corpus, **more)))


@pytest.fixture(scope="module")
def finished(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A small run that is finished."""
    folder = tmp_path_factory.mktemp("run") / "run"
    return train({**SMALL, "data": fields(corpus, pack=True), "folder": str(folder)}, progress=False)


# Tokenizers


SCRIPT = """
import hashlib, sys
from zoo.data.tokenizer_training import train_tokenizer
texts = open(sys.argv[1]).read().splitlines()
for kind in ("wordpiece", "bpe"):
    tokenizer = train_tokenizer(kind, lambda: texts, 300, "data")
    print(hashlib.sha256(tokenizer._tokenizer.to_str().encode()).hexdigest())
"""


def test_the_same_texts_give_the_same_tokenizer_in_every_process(corpus: Path) -> None:
    command = [sys.executable, "-c", SCRIPT, str(corpus / "texts.txt")]
    runs = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    found = {run.communicate(timeout=60)[0] for run in runs}
    assert len(found) == 1 and len(found.pop().split()) == 2


def test_a_tokenizer_is_trained_on_the_training_part_alone(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("alpha beta gamma\n" * 5 + "".join(f"alpha beta {n} gamma\n" for n in range(50)))
    (tmp_path / "test.txt").write_text("omega omega omega\n" * 50 + "quux\n" * 50)
    config = {"path": str(tmp_path / "train.txt"), "test_path": str(tmp_path / "test.txt"), "vocabulary": 300}
    for kind in ("wordpiece", "bpe"):
        tokenizer: Any = make(TextFiles.Config(**config, tokenizer=kind)).tokenizer
        vocabulary = tokenizer._tokenizer.get_vocab()
        assert "alpha" in vocabulary and not any("omega" in token or "quux" in token for token in vocabulary)
        assert "x" not in vocabulary or kind == "bpe"  # not even a letter that occurs there alone


def test_wordpiece_is_berts_and_opens_in_transformers(corpus: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = text_files(corpus).tokenizer
    assert (tokenizer.padding, tokenizer.start, tokenizer.end, tokenizer.mask, tokenizer.mask_text) == (0, 2, 3, 4, "[MASK]")
    assert tokenizer.vocabulary <= 300
    text = "The GENERATOR, a [MASK]: Übung!"
    tokenizer.save(tmp_path)
    for other in (
        transformers.PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json")),
        transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path),
    ):
        assert other(text).input_ids == tokenizer.encode(text, 100)
    assert (other.mask_token, other.pad_token_id, other.sep_token) == ("[MASK]", 0, "[SEP]")
    ids = tokenizer.encode(text, 100)
    assert (ids[0], ids[-1], ids.count(4)) == (2, 3, 1)
    assert tokenizer.encode("generator", 100) == tokenizer.encode("GENERATOR", 100)
    again = FileTokenizer(tmp_path, "data")
    assert again.encode(text, 100) == ids and again.mask == 4


def test_bpe_gives_texts_back(corpus: Path) -> None:
    tokenizer = text_files(corpus, tokenizer="bpe").tokenizer
    assert (tokenizer.start, tokenizer.padding, tokenizer.end, tokenizer.mask) == (0, 1, 2, 4)
    for text in ("The generator returns.", "ünïcödé → 漢字\ttabs  and spaces", ""):
        assert tokenizer.decode(tokenizer.encode(text, 1000)) == text
    masked = tokenizer.encode("The <mask> returns", 100)
    assert masked.count(4) == 1 and tokenizer.decode(masked) == "The returns"


def test_what_no_tokenizer_can_be_trained_on(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^data: tokenizer: there are no texts to train one on$"):
        train_tokenizer("wordpiece", lambda: ["", "  "], 100, "data")
    with pytest.raises(DataError, match=r"^data: vocabulary: the single characters of the texts are \d+ tokens, more than 20$"):
        train_tokenizer("wordpiece", lambda: ["abcdefghijklmnopqrstuvwxyz"], 20, "data")


@pytest.mark.parametrize("kind", ["bytes", "wordpiece", "bpe"])
def test_pieces_hold_the_whole_text_and_its_words(corpus: Path, kind: str) -> None:
    tokenizer = ByteTokenizer() if kind == "bytes" else text_files(corpus, tokenizer=kind).tokenizer
    text = "The generator number_3 yields a value, and then another one"
    (whole,) = tokenizer.pieces(text, 1000)
    pieces = tokenizer.pieces(text, 8)
    assert len(pieces) > 1 and all(len(piece.ids) == len(piece.words) <= 8 for piece in pieces)
    assert [token for piece in pieces for token in piece.ids[1:-1]] == list(whole.ids[1:-1])
    assert all(piece.ids[0] == tokenizer.start and piece.ids[-1] == tokenizer.end for piece in pieces)
    assert all((word == -1) == (place in (0, len(whole.ids) - 1)) for place, word in enumerate(whole.words))
    assert tokenizer.encode(text, 8) == list(pieces[0].ids)
    numbers = [word for word in whole.words if word >= 0]
    assert numbers == sorted(numbers) and numbers[0] == 0 and set(numbers) == set(range(numbers[-1] + 1))
    first = [token for token, word in zip(whole.ids, whole.words) if word == 0]
    assert tokenizer.decode(first).lower() == "the"


# Rows


def test_texts_share_rows_without_seeing_each_other(corpus: Path) -> None:
    data = text_files(corpus, pack=True, length=40)
    data.words = True
    batch = next(iter(data.loader("train")))
    ids, texts, mask, words = (batch[name] for name in ("input_ids", "sequence_ids", "attention_mask", "word_ids"))
    assert ids.shape[1] <= 40 and ids.shape == texts.shape == mask.shape == words.shape
    assert bool(((texts == -1) == (mask == 0)).all()) and float(mask.float().mean()) > 0.8
    loose = text_files(corpus, length=40)
    longer = [example for example in loose.split("train") if len(example["input_ids"]) == 40]
    assert longer  # which are cut there, and go on in another piece here
    tokens = sum(len(piece.ids) for text in data.texts("train") for piece in data.tokenizer.pieces(text, 40))
    assert sum(int(each["attention_mask"].sum()) for each in data.loader("train")) == tokens
    model = zoo.build(MODEL).eval()
    whole = model(input_ids=ids, attention_mask=mask, sequence_ids=texts).logits
    shared = [row for row in range(len(ids)) if int(texts[row].max()) > 0]
    for row, text in ((0, 0), (shared[0], 0), (shared[0], 1), (shared[-1], 1)):
        places = texts[row] == text
        alone = model(input_ids=ids[row][places][None]).logits[0]
        assert torch.allclose(whole[row][places], alone, atol=1e-5)


def test_packing_keeps_every_piece_whole() -> None:
    torch.manual_seed(0)
    sizes = [7, 3, 9, 1, 10, 4, 4, 2]
    examples = [
        {
            "input_ids": torch.arange(n) + 100 * n,
            "sequence_ids": torch.tensor([0] * (n // 2) + [1] * (n - n // 2) if n > 1 else [0]),
        }
        for n in sizes
    ]
    rows = packed(examples, 10)
    assert all(len(row["input_ids"]) <= 10 for row in rows) and len(rows) == 4  # 40 tokens, so that none is free
    pieces = [
        tuple(row["input_ids"][row["sequence_ids"] == number].tolist())
        for row in rows
        for number in range(int(row["sequence_ids"].max()) + 1)
    ]
    wanted = [tuple(e["input_ids"][e["sequence_ids"] == n].tolist()) for e in examples for n in e["sequence_ids"].unique()]
    assert sorted(pieces) == sorted(wanted)


def test_labels_and_shared_rows_exclude_each_other(tmp_path: Path) -> None:
    run = {**SMALL, "data": {"type": "docstrings", "tokenizer": "wordpiece", "vocabulary": 300, "length": 48, "pack": True}}
    with pytest.raises(ConfigError, match=r"data\.pack: texts that share a row cannot have labels"):
        resolve_run(run)


# Masks


def task_of(data: Any = None, **config: Any) -> MaskedLanguage:
    task: MaskedLanguage = make(MaskedLanguage.Config(**config))
    if data is not None:
        task.adapt(data)
    return task


@pytest.mark.parametrize("pack", [False, True])
def test_whole_words_are_masked_in_the_asked_shares(corpus: Path, pack: bool) -> None:
    data = text_files(corpus, pack=pack, batch_size=400)
    task = task_of(data, share=0.4, masked=0.5, random=0.3)
    model = zoo.build(MODEL)
    batch = next(iter(data.loader("train")))
    ids, words = batch["input_ids"], batch["word_ids"]
    torch.manual_seed(0)
    totals = torch.zeros(4)
    for _ in range(10):
        inputs, labels = task._masked(model, batch)
        guessed = labels != IGNORED
        assert torch.equal(labels[guessed], ids[guessed]) and not bool((guessed & (words < 0)).any())
        assert torch.equal(inputs["input_ids"][~guessed], ids[~guessed])
        hidden = guessed & (inputs["input_ids"] == 4)
        for row in range(0, len(ids), 7):
            texts = batch["sequence_ids"][row] if pack else torch.zeros_like(words[row])
            for text in texts.unique():
                for word in words[row][texts == text].unique():
                    places = (words[row] == word) & (texts == text)
                    assert word < 0 or int(guessed[row][places].sum()) in (0, int(places.sum()))
                    assert word < 0 or int(hidden[row][places].sum()) in (0, int(places.sum()))
        same = guessed & (inputs["input_ids"] == ids)
        assert not bool(torch.isin(inputs["input_ids"][guessed & ~hidden & ~same], torch.tensor([0, 2, 3, 4])).any())
        totals += torch.tensor([x.sum() for x in ((words >= 0), guessed, hidden, same)]).float()
    everything, guessed_all, hidden_all, same_all = totals.tolist()
    assert guessed_all / everything == pytest.approx(0.4, abs=0.02)
    assert hidden_all / guessed_all == pytest.approx(0.5, abs=0.03)
    assert same_all / guessed_all == pytest.approx(0.2, abs=0.03)


def test_masks_are_new_in_each_step_and_follow_from_torchs_seed(corpus: Path) -> None:
    data = text_files(corpus)
    task, model = task_of(data), zoo.build(MODEL).train()
    batch = next(iter(data.loader("train")))

    def labels(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return task._masked(model, batch)[1]

    assert torch.equal(labels(1), labels(1)) and not torch.equal(labels(1), labels(2))
    more = task_of(data, training_share=1.0)._masked(model, batch)[1]
    assert int((more != IGNORED).sum()) == int((batch["word_ids"] >= 0).sum())
    measured = task_of(data, training_share=1.0)._masked(model.eval(), batch)[1]
    assert int((measured != IGNORED).sum()) < 0.4 * int((batch["word_ids"] >= 0).sum())


def test_in_evaluation_masks_follow_from_the_text_alone(corpus: Path) -> None:
    model, found = zoo.build(MODEL).eval(), []
    for more in ({"batch_size": 1}, {"batch_size": 5}, {"batch_size": 50}, {"batch_size": 50, "length": 47}):
        data = text_files(corpus, pack=True, **{"length": 48, **more})
        task, seen = task_of(data), set()
        torch.manual_seed(len(found))
        before = torch.random.get_rng_state()
        for batch in data.loader("test"):
            inputs, labels = task._masked(model, batch)
            for row, (ids, wanted, texts) in enumerate(zip(inputs["input_ids"], labels, batch["sequence_ids"])):
                for text in range(int(texts.max()) + 1):
                    places = texts == text
                    original = tuple(batch["input_ids"][row][places].tolist())
                    seen.add((original, tuple(ids[places].tolist()), tuple(wanted[places].tolist())))
        assert torch.equal(torch.random.get_rng_state(), before)
        found.append(seen)
    assert found[0] == found[1] == found[2] and len(found[0] & found[3]) > 10
    assert len({wanted for _, _, wanted in found[0]}) > 10  # they do differ from text to text


def test_draws_are_spread_evenly() -> None:
    ids = torch.arange(6000).view(30, 200) % 97
    numbers = drawn(ids, ids, None)
    assert numbers.shape == (3, 30, 200) and float(numbers.min()) >= 0.0 and float(numbers.max()) < 1.0
    assert torch.allclose(numbers.mean((1, 2)), torch.full((3,), 0.5), atol=0.02)
    assert torch.allclose(numbers.var((1, 2)), torch.full((3,), 1 / 12), atol=0.005)


def test_the_loss_is_that_of_the_guessed_tokens(corpus: Path) -> None:
    data = text_files(corpus)
    task, model = task_of(data), zoo.build(MODEL).eval()
    batch = next(iter(data.loader("test")))
    step = task.step(model, batch)
    inputs, labels = task._masked(model, batch)
    logits = model(**inputs).logits
    assert step.loss.item() == pytest.approx(functional.cross_entropy(logits.flatten(0, 1), labels.flatten()).item(), abs=1e-6)
    assert torch.equal(step.targets, labels[labels != IGNORED])
    assert torch.equal(step.predictions, logits.argmax(-1)[labels != IGNORED])
    given = task_of(mask_token=4).step(model, {**inputs, "labels": labels})  # masked by somebody else
    assert given.loss.item() == pytest.approx(step.loss.item(), abs=1e-6)
    nothing = task_of(mask_token=4).step(model, {**inputs, "labels": torch.full_like(labels, IGNORED)})
    assert nothing.loss.item() == 0.0 and len(nothing.targets) == 0
    nothing.loss.backward()


def test_only_the_asked_tokens_are_scored() -> None:
    model = zoo.build(MODEL).eval()
    ids, mask = torch.randint(5, 300, (2, 7)), torch.rand(2, 7) < 0.5
    full, some = model(ids).logits, model(ids, score_mask=mask).logits
    assert model(ids, score_mask=torch.zeros_like(mask)).logits.shape == (0, full.shape[-1])
    assert some.shape == (int(mask.sum()), 300) and torch.allclose(full[mask], some, atol=1e-6)
    with pytest.raises(
        InputError, match=r"^score_mask: expected true and false of shape \(2, 7\) \(batch, tokens\), got \(2, 6\)"
    ):
        model(ids, score_mask=mask[:, 1:])
    for head in ({"type": "classifier", "classes": 14}, "pooler", "pretraining", "span"):
        other = zoo.build(MODEL, {"head": head}).eval()
        for each in (torch.ones_like(mask), torch.zeros_like(mask)):
            with pytest.raises(InputError, match="score_mask: this needs a head that scores each token by itself"):
                other(ids, score_mask=each)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"model.head": "pooler"},
            r"model\.head: task 'masked-language' needs a head of type 'masked-language-model', and this",
        ),
        ({"task": {"type": "masked-language", "masked": 0.9, "random": 0.2}}, r"task\.random: 0\.2 and masked 0\.9 are more"),
        ({"task": {"type": "masked-language", "share": 0}}, r"task\.share: expected greater than 0"),
        ({"data": "digits"}, r"data: task 'masked-language' needs texts, and data 'digits' have none"),
        ({"data.vocabulary": 301}, r"model\.embedding\.vocabulary: data 'pydoc' have 301 token ids, not 300"),
        ({"model.embedding": {"padding": 3, "count": "unpadded"}}, r"padding: data 'pydoc' are filled up with 0, not 3"),
    ],
)
def test_runs_that_do_not_fit(change: dict[str, Any], message: str) -> None:
    run = {**SMALL, "data": {"type": "pydoc", "tokenizer": "wordpiece", "vocabulary": 300, "length": 40}}
    assert resolve_run(run).task.type == "masked-language"
    with pytest.raises(ConfigError, match=message):
        resolve_run(run, change)


def test_batches_that_say_too_little(corpus: Path) -> None:
    model = zoo.build(MODEL)
    ids = torch.randint(5, 300, (2, 7))
    with pytest.raises(DataError, match="has 'word_ids' or 'labels' of the shape of 'input_ids'"):
        task_of(mask_token=4).step(model, {"input_ids": ids, "labels": torch.zeros(2)})
    with pytest.raises(DataError, match="is a mapping with 'input_ids'"):
        task_of(mask_token=4).step(model, (ids, ids))
    with pytest.raises(ConfigError, match=r"task\.mask_token: these data do not say which token is the mask"):
        task_of().step(model, {"input_ids": ids, "word_ids": ids})
    data = text_files(corpus)
    data.tokenizer.mask = None
    with pytest.raises(ConfigError, match=r"task\.mask_token: the tokenizer of data 'text-files' has no mask token"):
        task_of(data)


# Runs


def test_frequencies_by_hand(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("aab\n")
    (tmp_path / "test.txt").write_text("abbc\n")
    data = make(TextFiles.Config(path=str(tmp_path / "train.txt"), test_path=str(tmp_path / "test.txt")))
    a, b, c = (ord(letter) for letter in "abc")
    found = references(data, "test", torch.tensor([a, b]))
    assert found["unigram_entropy"] == pytest.approx(-(0.25 * math.log(0.25) * 2 + 0.5 * math.log(0.5)))
    shares = {a: 3 / 263, b: 2 / 263, c: 1 / 263}
    assert found["unigram_loss"] == pytest.approx(-sum(math.log(shares[x]) for x in (a, b, b, c)) / 4)
    assert found["target_entropy"] == pytest.approx(math.log(2))
    assert found["target_unigram_loss"] == pytest.approx(-(math.log(shares[a]) + math.log(shares[b])) / 2)


def test_a_run_leaves_its_tokenizer_and_what_to_compare_with(finished: Any) -> None:
    folder, metrics = finished.folder, finished.metrics
    assert (folder / "tokenizer.json").read_bytes() == (folder / "model" / "tokenizer.json").read_bytes()
    assert metrics["test_loss"] < metrics["test_unigram_loss"] + 3 and 0 <= metrics["test_accuracy"] <= 1
    assert 0 < metrics["test_unigram_entropy"] < metrics["test_unigram_loss"]
    rows = [float(line.split(",")[1]) for line in _column(folder, "validation_loss")]
    module = ZooModule.load_from_checkpoint(folder / "best.ckpt", weights_only=True)
    assert module.task.config.type == "masked-language"
    measured = evaluate(folder / "best.ckpt", split="validation").metrics["loss"]
    assert measured == pytest.approx(min(rows), abs=1e-5)  # the best one is that of the lowest loss
    for source in (folder, folder / "model", folder / "last.ckpt"):
        again = evaluate(source)
        assert again.metrics["loss"] == pytest.approx(metrics["test_loss"], abs=1e-6)
        assert again.metrics["accuracy"] == metrics["test_accuracy"]


def _column(folder: Path, name: str) -> list[str]:
    import csv

    rows = csv.DictReader((folder / "metrics.csv").read_text().splitlines())
    return [f"{row['epoch']},{row[name]}" for row in rows]


@pytest.mark.slow
def test_a_run_can_be_resumed_with_its_very_tokenizer(corpus: Path, tmp_path: Path, finished: Any, monkeypatch: Any) -> None:
    step, calls = MaskedLanguage.step, iter(range(1, 10_000))

    def interrupted(*arguments: Any) -> Any:
        if next(calls) == 14:
            raise KeyboardInterrupt
        return step(*arguments)

    run = {**SMALL, "data": fields(corpus, pack=True), "folder": str(tmp_path / "run")}
    monkeypatch.setattr(MaskedLanguage, "step", interrupted)
    with pytest.raises(ZooError, match="interrupted in epoch 2 of 2"):
        train(run, progress=False)
    monkeypatch.undo()

    def never(*arguments: Any) -> Any:
        raise AssertionError("a tokenizer was trained anew")

    monkeypatch.setattr("zoo.data.text.train_tokenizer", never)
    result = train(run, progress=False, resume=True)
    for name, value in zoo.load(result.folder / "model").named_parameters():
        assert torch.equal(value, zoo.load(finished.folder / "model").get_parameter(name)), name
    assert result.metrics["test_loss"] == finished.metrics["test_loss"]
    digests = {
        hashlib.sha256((place / "tokenizer.json").read_bytes()).hexdigest() for place in (result.folder, finished.folder)
    }
    assert len(digests) == 1


def test_masks_are_filled_from_the_command_line(finished: Any) -> None:
    text = "The generator [MASK] a value."
    shown = CliRunner().invoke(app, ["predict", str(finished.folder), text])
    assert shown.exit_code == 0 and text in shown.output and shown.output.count("%") == 5
    asked = ["predict", str(finished.folder / "model"), "The [MASK] is a [MASK].", "[MASK]", "--json", "--top", "3"]
    answers = json.loads(CliRunner().invoke(app, asked).output)
    assert [each["input"] for each in answers] == [
        "The [MASK] is a [MASK]. (mask 1)",
        "The [MASK] is a [MASK]. (mask 2)",
        "[MASK]",
    ]
    model, tokenizer = zoo.load(finished.folder / "model"), FileTokenizer(finished.folder / "model", "")
    ids = torch.tensor([tokenizer.encode("The [MASK] is a [MASK].", 48)])
    shares = model(ids).logits[ids == 4].softmax(-1)
    for found, row in zip(answers[:2], shares):
        values = [answer["probability"] for answer in found["answers"]]
        assert values == pytest.approx(row.topk(3).values.tolist(), abs=1e-5)
        assert found["answers"][0]["class"] == tokenizer.token(int(row.argmax()))


def test_texts_without_a_mask_are_an_error(finished: Any, tmp_path: Path) -> None:
    for text in ("The generator <mask> a value.", "nothing"):
        with pytest.raises(InputError, match=r"there is no mask in it; write \[MASK\] where a word is to be guessed$"):
            list(predict(finished.folder, [text]))
    with pytest.raises(InputError, match="a mask stands behind the 48 tokens that the model reads"):
        list(predict(finished.folder, ["value " * 100 + "[MASK]"]))
    with pytest.raises(ConfigError, match=r"say what to fill, such as 'A \[MASK\] of words.'"):
        list(predict(finished.folder))
    alone = zoo.save(zoo.load(finished.folder / "model"), tmp_path / "alone")
    with pytest.raises(
        ConfigError, match=r"there is no tokenizer\.json in .*alone, so nothing says what the model's tokens are"
    ):
        list(predict(alone, ["A [MASK]."]))


def test_what_transformers_saved_is_filled_as_it_does(corpus: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    text_files(corpus).tokenizer.save(tmp_path)
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    torch.manual_seed(0)
    theirs = transformers.BertForMaskedLM(transformers.BertConfig(vocab_size=300, max_position_embeddings=48, **size)).eval()
    for value in theirs.parameters():
        torch.nn.init.normal_(value, std=0.3)
    theirs.save_pretrained(tmp_path)
    words = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)
    text = "The [MASK] returns a value."
    inputs = words(text, return_tensors="pt", return_token_type_ids=True)
    wanted = theirs(**inputs).logits[inputs.input_ids == 4][0].softmax(-1).topk(5)
    (found,) = predict(tmp_path, [text])
    assert [share for _, share in found.answers] == pytest.approx(wanted.values.tolist(), abs=1e-5)


@pytest.mark.slow
def test_the_shipped_run_is_a_nat_below_frequencies(tmp_path: Path) -> None:
    result = train("bert-mini-pydoc", {"folder": str(tmp_path / "run")}, progress=False)
    assert result.metrics["test_loss"] < result.metrics["test_unigram_entropy"] - 1.0
    assert result.metrics["test_loss"] < result.metrics["test_target_entropy"] - 1.0
    (found,) = predict(result.folder, ["Return the length of the [MASK]."])
    assert len(found.answers) == 5


def test_the_topics_are_the_same_texts_for_every_tokenizer() -> None:
    parts = [list(Pydoc(Pydoc.Config(tokenizer=name, vocabulary=500)).texts("test")) for name in ("bytes", "wordpiece")]
    assert parts[0] == parts[1] and len(parts[0]) > 200
