"""Searching pictures: the index beside the folder, what is made anew, and faiss against the plain matrix."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from PIL import Image

import zoo
from zoo.errors import ConfigError, DataError, InputError, MissingExtraError, UnknownNameError, ZooError
from zoo.training.image_index import ImageIndex, fingerprint, index_folder
from zoo.training.run import resolve_run
from zoo.training.zero_shot import Comparer, search


def save_model(home: Path, seed: int) -> Path:
    config = resolve_run("clip-mini-digits", {"model.vision.stack.depth": 1, "model.text.stack.depth": 1})
    torch.manual_seed(seed)
    zoo.save(zoo.build(config.model), home / "model")
    (home / "config.yaml").write_text(json.dumps({"type": "train", "data": {"type": "captioned-digits"}}))
    return home


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with a small dual encoder."""
    return save_model(tmp_path_factory.mktemp("runs") / "small", 0)


def draw(path: Path, seed: int) -> None:
    noise = numpy.random.default_rng(seed).integers(0, 256, (8, 8), dtype=numpy.uint8)
    Image.fromarray(noise).save(path)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder of twelve pictures, one of them deeper."""
    home = tmp_path / "my pictures"
    (home / "deeper").mkdir(parents=True)
    for number in range(12):
        draw(home / ("deeper" if number == 5 else "") / f"{number:02}.png", number)
    return home


def names(hits: Any) -> list[str]:
    return [Path(hit.name).name for hit in hits]


def test_the_index_is_made_once_and_follows_the_files(model: Path, pictures: Path, monkeypatch: Any) -> None:
    made: list[str] = []
    real = Comparer.encoded

    def noted(self: Any, files: Any) -> Any:
        made.extend(Path(file).name for file in files)
        return real(self, files)

    monkeypatch.setattr(Comparer, "encoded", noted)
    plain = search(model, [pictures], "a seven", top=12, keep=False)
    assert len(plain) == 12 == len(made) and not list(pictures.parent.glob("*index*"))
    made.clear()
    first = search(model, [pictures], "a seven", top=12)
    path = pictures.with_name("my pictures.zoo-index.safetensors")
    assert path.is_file() and len(made) == 12 and names(first) == names(plain)
    assert [hit.cosine for hit in first] == pytest.approx([hit.cosine for hit in plain], abs=1e-6)
    assert all(Path(hit.name).is_file() for hit in first)
    made.clear()
    stamp = path.stat().st_mtime_ns
    assert search(model, [pictures], "a seven", top=12) == first and made == [] and path.stat().st_mtime_ns == stamp
    assert names(search(model, [pictures], "a one", top=3)) != names(first)[:3] or made == []
    draw(pictures / "02.png", 99)  # changed
    os.utime(pictures / "02.png", ns=(1, 1))
    draw(pictures / "new.png", 98)
    (pictures / "07.png").unlink()
    again = search(model, [pictures], "a seven", top=20)
    assert sorted(made) == ["02.png", "new.png"] and len(again) == 12
    assert "07.png" not in names(again) and "new.png" in names(again)
    assert [hit.cosine for hit in again] == pytest.approx(
        [hit.cosine for hit in search(model, [pictures], "a seven", top=20, keep=False)], abs=1e-6)  # fmt: skip
    made.clear()
    (pictures / "03.png").unlink()
    assert len(search(model, [pictures], "a seven", top=20)) == 11 and made == []
    pictures.rename(pictures.with_name("elsewhere"))  # names are kept relative to the folder
    path.rename(path.with_name("elsewhere.zoo-index.safetensors"))
    assert len(search(model, [pictures.with_name("elsewhere")], "a seven", top=20)) == 11 and made == []


def test_an_index_is_of_one_model(model: Path, pictures: Path, tmp_path: Path) -> None:
    other = save_model(tmp_path / "other", 1)
    mine = search(model, [pictures], "a seven", top=12)
    theirs = search(other, [pictures], "a seven", top=12)
    assert theirs == search(other, [pictures], "a seven", top=12)
    assert [hit.cosine for hit in theirs] != [hit.cosine for hit in mine]
    assert search(model, [pictures], "a seven", top=12) == mine
    both = [Comparer(each) for each in (model, other)]
    prints = {fingerprint(each.model, each.prepared) for each in both}
    prints.add(fingerprint(both[0].model, both[0].prepared._replace(mean=(0.4,))))
    assert len(prints) == 3 and fingerprint(both[0].model, both[0].prepared) in prints


@pytest.mark.parametrize("seed", range(3))
def test_faiss_finds_what_the_matrix_finds(seed: int) -> None:
    pytest.importorskip("faiss")
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.nn.functional.normalize(torch.randn(500, 32, generator=generator), dim=-1)
    index = ImageIndex([str(number) for number in range(500)], vectors, 0)
    for wanted in torch.nn.functional.normalize(torch.randn(5, 32, generator=generator), dim=-1):
        plain, faiss = index.nearest(wanted, 20), index.nearest(wanted, 20, "faiss")
        assert [name for name, _ in plain] == [name for name, _ in faiss]
        assert [cosine for _, cosine in plain] == pytest.approx([cosine for _, cosine in faiss], abs=1e-6)
        assert len(index.nearest(wanted, 900, "faiss")) == 500 == len(index.nearest(wanted, 900))
        exact = (vectors.double() @ wanted.double()).sort(descending=True).values[:20]
        assert [cosine for _, cosine in plain] == pytest.approx(exact.tolist(), abs=1e-6)


def test_both_backends_and_several_folders(model: Path, pictures: Path, tmp_path: Path) -> None:
    pytest.importorskip("faiss")
    more = tmp_path / "more"
    more.mkdir()
    for number in range(3):
        draw(more / f"m{number}.png", 50 + number)
    single = tmp_path / "single.png"
    draw(single, 70)
    found = [search(model, [pictures, single, more], "a seven", top=16, backend=each) for each in ("matrix", "faiss")]
    assert names(found[0]) == names(found[1]) and len(found[0]) == 16
    assert {"single.png", "m1.png", "05.png"} <= set(names(found[0]))
    assert len(list(tmp_path.glob("*.zoo-index.safetensors"))) == 2


def test_pictures_that_cannot_be_read_are_left_out(model: Path, pictures: Path, tmp_path: Path) -> None:
    (pictures / "torn.png").write_bytes((pictures / "00.png").read_bytes()[:50])
    with pytest.warns(UserWarning, match=r"torn\.png: .*; the picture is left out"):
        assert len(search(model, [pictures], "a seven", top=20)) == 12
    draw(pictures / "torn.png", 3)  # mended
    assert len(search(model, [pictures], "a seven", top=20)) == 13
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / "1.png").write_bytes(b"nothing")
    with pytest.raises(DataError, match="none of its 1 pictures can be read"), pytest.warns(UserWarning):
        search(model, [alone], "a seven")


def test_what_is_in_the_way_is_left_alone(model: Path, pictures: Path, tmp_path: Path) -> None:
    place = pictures.with_name("my pictures.zoo-index.safetensors")
    for content in (b"precious", b""):
        place.write_bytes(content)
        with pytest.raises(ZooError, match="is not an index of pictures that zoo wrote"):
            search(model, [pictures], "a seven")
        assert place.read_bytes() == content
    weights = model / "model" / "model.safetensors"
    before = weights.read_bytes()
    with pytest.raises(ZooError, match=r"model\.safetensors is not an index of pictures"):
        search(model, [pictures], "a seven", index=weights)
    assert weights.read_bytes() == before
    told = tmp_path / "told.index"
    assert len(search(model, [pictures], "a seven", index=told)) == 9 and told.is_file()
    with pytest.raises(ZooError, match=r"--index: .*nowhere/index cannot be written: No such file"):
        search(model, [pictures], "a seven", index=tmp_path / "nowhere" / "index")


def test_a_place_that_cannot_be_written_is_no_hindrance(pictures: Path, monkeypatch: Any) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.mkstemp", full)
    with pytest.warns(UserWarning, match=r"cannot be written: No space left on device; the pictures will be read again"):
        index = index_folder(pictures, lambda files: torch.eye(len(files)), "a model")
    assert index.made == 12 == len(index.names)


def test_what_makes_no_sense_is_refused(model: Path, pictures: Path, tmp_path: Path, monkeypatch: Any) -> None:
    shutil.copytree(pictures, tmp_path / "two")
    with pytest.raises(ConfigError, match="--index: it is the file of one folder, and 2 folders are given"):
        search(model, [pictures, tmp_path / "two"], "a", index=tmp_path / "x")
    with pytest.raises(ConfigError, match=r"--index: .* nothing is to be kept"):
        search(model, [pictures], "a", index=tmp_path / "x", keep=False)
    with pytest.raises(UnknownNameError, match="unknown backend 'fais'; did you mean 'faiss'"):
        search(model, [pictures], "a", backend="fais")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="the text is empty"):
        search(model, [pictures], " ")
    with pytest.raises(InputError, match="digits:17: no such file or folder"):
        search(model, ["digits:17"], "a")
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(MissingExtraError, match=r"--backend faiss needs faiss, .*transformer-zoo\[search\]"):
        search(model, [pictures], "a", backend="faiss")


def test_the_command(model: Path, pictures: Path, tmp_path: Path, capsys: Any) -> None:
    from zoo.cli import main

    def run(*words: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as ended:
            main(["search", str(model), str(pictures), "a seven", *words])
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out + said.err

    code, said = run("--top", "5", "--index", str(tmp_path / "kept"), "--json")
    found = json.loads(said)
    assert code == 0 and len(found) == 5 and (tmp_path / "kept").is_file()
    assert found == sorted(found, key=lambda hit: -hit["cosine"])
    grid = tmp_path / "$found_1$.png"
    code, said = run("--top", "5", "--no-keep", "-o", str(grid))
    assert code == 0 and said.splitlines()[-1] == f"{grid}: 5 images"
    with Image.open(grid) as picture:
        assert picture.size[0] > 800 and len(picture.convert("RGB").getcolors(1 << 20) or ()) > 50
    assert not list(pictures.parent.glob("*.zoo-index.safetensors"))
    assert "expected the name of a picture" in run("-o", str(tmp_path / "found.doc"))[1]
    assert "unknown backend 'fast'" in run("--backend", "fast")[1]
