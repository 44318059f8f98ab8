"""Pairs of texts from files: tabs, JSON, files side by side, lines that are no pairs, parts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.training.pair_helpers import RUN
from zoo.data.text_pairs import TextPairs
from zoo.errors import ConfigError, DataError
from zoo.registry import make
from zoo.training.run import resolve_run

PAIRS = [(f"satz nummer {n} ö", f"sentence number {n}") for n in range(120)]


def pairs(path: Any, **fields: Any) -> TextPairs:
    path = [str(each) for each in path] if isinstance(path, list) else str(path)
    return make(TextPairs.Config.model_validate({"path": path, "batch_size": 16, **fields}))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.tsv"
    path.write_text("".join(f"{source}\t{target}\n" for source, target in PAIRS), encoding="utf-8")
    return path


def found(data: TextPairs, part: Any) -> list[tuple[str, str]]:
    """What a part holds, read from its batches."""
    decode = data.tokenizer.decode
    return [
        (decode(ids[mask.bool()].tolist()), decode(labels[labels >= 0].tolist()))
        for batch in data.loader(part)
        for ids, mask, labels in zip(batch["input_ids"], batch["attention_mask"], batch["labels"])
    ]


def test_every_pair_is_in_one_part(file: Path) -> None:
    data = pairs(file, validation=0.2)
    parts = {part: found(data, part) for part in ("train", "validation", "test")}
    assert sorted(each for part in parts.values() for each in part) == sorted(PAIRS)
    assert min(map(len, parts.values())) >= 10 and len(parts["train"]) > 60
    assert list(data.pairs_of("test")) == parts["test"]
    again = pairs(file, validation=0.2, streaming=True)
    assert sorted(found(again, "train")) == sorted(parts["train"]) and found(again, "test") == parts["test"]


def test_files_of_all_kinds_say_the_same(file: Path, tmp_path: Path) -> None:
    lines = [json.dumps({"de": source, "more": 1, "en": target}) for source, target in PAIRS]
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (tmp_path / "side.de").write_text("\n".join(source for source, _ in PAIRS), encoding="utf-8")
    (tmp_path / "side.en").write_text("\r\n".join(target for _, target in PAIRS) + "\r\n", encoding="utf-8")
    wanted = list(pairs(file).pairs_of("test"))
    assert len(wanted) > 10
    assert list(pairs(tmp_path / "pairs.jsonl", columns=("de", "en")).pairs_of("test")) == wanted
    assert list(pairs(tmp_path / "side.de", target_ending=".en").pairs_of("test")) == wanted


def test_a_source_is_in_one_part_whatever_its_targets(tmp_path: Path) -> None:
    lines = "".join(f"{source}\t{target} {n}\n" for source, target in PAIRS for n in range(2))
    (tmp_path / "twice.tsv").write_text(lines, encoding="utf-8")
    data = pairs(tmp_path / "twice.tsv")
    train, test = ({source for source, _ in data.pairs_of(part)} for part in ("train", "test"))
    assert not train & test and len(train | test) == 120


def test_files_of_their_own_for_each_part(file: Path, tmp_path: Path) -> None:
    (tmp_path / "test.tsv").write_text("eins\tone\n", encoding="utf-8")
    data = pairs(file, test_path=str(tmp_path / "test.tsv"))
    assert list(data.pairs_of("test")) == [("eins", "one")] and len(list(data.pairs_of("train"))) == 120
    assert not data.has("validation")


@pytest.mark.parametrize("streaming", [False, True])
def test_lines_that_are_no_pairs(tmp_path: Path, streaming: bool) -> None:
    path = tmp_path / "some.tsv"
    path.write_bytes(b"\xef\xbb\xbfeins\tone\n\n\r\nzwei\ndrei\tthree\t3\n\tfour\nf\xfcnf\tfive\nsechs\t \nsieben\tseven\n")
    data = pairs(path, test=0.0, streaming=streaming, target_length=16)
    with pytest.warns(UserWarning) as caught:
        assert sorted(found(data, "train")) == [("eins", "one"), ("sieben", "seven")]
    place = f"data 'text-pairs': {path}"
    problems = {
        4: "expected a source, one tab and a target, found no tab",
        5: "expected a source, one tab and a target, found 2 tabs",
        6: "the source is empty",
        7: "no UTF-8: invalid start byte 0xfc",
        8: "the target is empty",
    }
    said = {str(warning.message) for warning in caught}
    wanted = {f"{place}:{line} cannot be read and is left out: {problem}" for line, problem in problems.items()}
    assert {text.partition("; further")[0] for text in said} == wanted
    with pytest.raises(DataError, match=r"examples cannot be read, more than `broken: 1` allows: .*some\.tsv:"):
        found(pairs(path, test=0.0, broken=1, streaming=streaming), "train")


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"source": "a"', "no JSON: Expecting ',' delimiter"),
        ('["a", "b"]', r"expected a JSON object, found \[\"a\", \"b\"\]"),
        ('{"source": "a", "tarGet": "b"}', "expected a text in 'target', found nothing; did you mean 'tarGet'?"),
        ('{"source": 3, "target": "b"}', "expected a text in 'source', found 3"),
        ('{"source": "a", "target": " "}', "the target is empty"),
        ("[" * 100_000, "no JSON"),
    ],
)
def test_lines_of_json_that_are_no_pairs(tmp_path: Path, line: str, problem: str) -> None:
    path = tmp_path / "some.jsonl"
    path.write_text(line + "\n", encoding="utf-8")
    data = pairs(path, test=0.0, broken=0)
    with pytest.raises(DataError, match=r"1 example cannot be read, and `broken: 0` allows none: .*some\.jsonl:1 \(") as caught:
        found(data, "train")
    assert problem.replace("\\", "") in str(caught.value)


def test_files_side_by_side_must_be_as_long(tmp_path: Path) -> None:
    (tmp_path / "a.de").write_text("eins\nzwei\n\ndrei\n", encoding="utf-8")
    (tmp_path / "a.en").write_text("one\ntwo\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"a\.en ends after 2 lines, and .*a\.de, beside which it stands, does not"):
        pairs(tmp_path / "a.de", target_ending=".en").split("train")
    with pytest.raises(DataError, match=r"a\.en ends after 2 lines, and .*a\.de"):
        pairs(tmp_path / "a.en", target_ending=".de").split("train")
    with pytest.raises(DataError, match=r"a\.fr cannot be read: No such file"):
        pairs(tmp_path / "a.de", target_ending=".fr").split("train")
    (tmp_path / "a.en").write_text("one\ntwo\n\n\n", encoding="utf-8")
    data = pairs(tmp_path / "a.de", target_ending=".en", test=0.0, broken=0)
    with pytest.raises(DataError, match=r"a\.de:4 \(the target is empty\)"):
        found(data, "train")


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^data 'text-pairs': path: no file answers to '.*x\.tsv'"):
        pairs(tmp_path / "x.tsv").split("train")
    with pytest.raises(DataError, match=r"did you mean '.*\*\.tsv'\?"):
        pairs(tmp_path).split("train")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"target_ending": "en"}, r"data\.target_ending: "),
        ({"columns": ["a"]}, r"data\.columns"),
        ({"target_length": 2}, r"data\.target_length: expected greater than or equal to 3"),
        ({"targets": 1}, r"data\.targets: unknown field of data 'text-pairs'"),
    ],
)
def test_fields_that_are_wrong(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve_run({**RUN, "data": {"type": "text-pairs", "path": "a.tsv", **fields}})
