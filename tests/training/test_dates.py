"""Dates: as babel writes them, each of one meaning, drawn from a seed, with days and locales that are never trained on."""

from __future__ import annotations

import datetime
import re
import sys
from itertools import islice
from typing import Any

import pytest
import torch
from babel import Locale
from babel.dates import format_date

import zoo
from tests.training.pair_helpers import DATES, MODEL, RUN
from zoo.data.dates import LOCALES, NEW_LOCALES, STYLES, Dates, Phrasing, phrasings
from zoo.data.pairs import IGNORED
from zoo.data.tokenizer import ByteTokenizer
from zoo.errors import ConfigError, DataError, MissingExtraError
from zoo.registry import make
from zoo.training.run import resolve_run

DAY = datetime.date(2024, 3, 5)
ALL = (*LOCALES, *NEW_LOCALES)


def dates(**fields: Any) -> Dates:
    return make(Dates.Config.model_validate({**DATES, **fields}))


@pytest.fixture(scope="module")
def data() -> Dates:
    return dates(size=2000, measured=400)


def test_texts_are_those_of_babel() -> None:
    assert Phrasing(Locale.parse("de"), "EEEE, d. MMMM y").text(DAY) == "Dienstag, 5. März 2024"
    for name in ALL:
        locale = Locale.parse(name)
        found = phrasings(locale)
        assert len(found) == len(set(found)) >= 6
        for each in found:
            if not each.ordinal:
                assert each.text(DAY) == format_date(DAY, each.pattern, locale=name)
        long = format_date(DAY, "long", locale=name)
        if re.search("MMM", locale.date_formats["long"].pattern):
            assert long in {each.text(DAY) for each in found}


def test_days_may_have_endings() -> None:
    english, french = (Phrasing(Locale.parse(name), "d MMMM y", ordinal=True) for name in ("en", "fr"))
    days = [english.text(DAY.replace(day=day)).split()[0] for day in (1, 2, 3, 4, 11, 12, 13, 21, 22, 23, 31)]
    assert " ".join(days) == "1st 2nd 3rd 4th 11th 12th 13th 21st 22nd 23rd 31st"
    assert [french.text(DAY.replace(day=day)) for day in (1, 2, 21)] == ["1er mars 2024", "2 mars 2024", "21 mars 2024"]
    assert {each.ordinal for each in phrasings(Locale.parse("de"))} == {False}


def test_no_text_means_two_dates() -> None:
    """Every phrasing in every style, of one day of each month; days and years are figures everywhere."""
    meanings: dict[str, set[datetime.date]] = {}
    for name in ALL:
        for each in phrasings(Locale.parse(name)):
            for month in range(1, 13):
                for day in (month % 12 + 1, 28):
                    date = datetime.date(2003, month, day)
                    for style in set(STYLES):
                        meanings.setdefault(style(each.text(date)), set()).add(date)
    assert len(meanings) > 10_000
    assert {text: found for text, found in meanings.items() if len(found) > 1} == {}
    for text, (date,) in meanings.items():
        assert str(date.year) in text and str(date.day) in text


def test_numbered_months_stand_behind_the_year_alone() -> None:
    for name in ALL:
        for each in phrasings(Locale.parse(name)):
            assert "MMM" in each.pattern or each.pattern.startswith("y"), each.pattern
            assert "yy" not in each.pattern


def test_one_word_for_two_months_is_an_error() -> None:
    with pytest.raises(DataError, match=r"^data 'dates': locales: 'lip' is month 7 in pl and month 6 in hr; leave one"):
        dates(locales=["hr", "pl"]).split("test")
    with pytest.raises(DataError, match="'srp' is month 8 in cs and month 7 in hr"):
        dates(locales=["hr"], new_locales=["cs"]).split("test")


def test_days_that_are_kept_out_are_never_trained_on(data: Dates) -> None:
    held_out = {part: {row["target"] for row in data.split(part).rows} for part in ("validation", "test")}
    assert len(held_out["test"]) > 350 and not held_out["validation"] & held_out["test"]
    trained = {row["target"] for row in data.split("train").rows}
    assert len(trained) > 1900 and not trained & (held_out["validation"] | held_out["test"])
    parts = [set(each) for each in data._dates.values()]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 73049
    assert {target[:2] for target in trained} == {"19", "20"}


def test_the_test_part_never_changes(data: Dates) -> None:
    rows = data.split("test").rows
    assert rows == dates(measured=400, size=7, batch_size=3).split("test").rows
    assert rows[:100] == dates(measured=100).split("test").rows
    assert rows[:2] == [
        {"source": "ceturtdiena, 1937. gada 14. janv.", "target": "1937-01-14"},
        {"source": "luni, 14 sept. 1903", "target": "1903-09-14"},
    ]


def test_locales_that_are_never_trained_on(data: Dates) -> None:
    new = dates(asked="new-locales", measured=400)
    portuguese = re.compile("março|fevereiro|dezembro", re.IGNORECASE)
    assert not [row for row in data.split("train").rows if portuguese.search(row["source"])]
    assert [row for row in new.split("test").rows if portuguese.search(row["source"])]
    assert {row["target"] for row in new.split("test").rows} <= {str(each) for each in data._dates["test"]}


def test_an_epoch_follows_from_the_seed(data: Dates) -> None:
    def epochs(seed: int, workers: int = 0, skip: int = 0) -> list[list[list[int]]]:
        loader = dates(size=96, workers=workers).loader("train", seed=seed, skip=skip)
        return [[row for batch in loader for row in batch["input_ids"].tolist()] for _ in range(2)]

    first, second = epochs(0)
    assert first != second and len(first) == len(second) == 96
    assert epochs(0) == [first, second] != epochs(1)
    assert epochs(0, skip=2) == [first[64:], second]


def test_workers_make_the_same_batches() -> None:
    both = [next(iter(dates(workers=workers).loader("train", seed=3))) for workers in (0, 1)]
    assert all(torch.equal(value, both[1][name]) for name, value in both[0].items())


def test_batches(data: Dates) -> None:
    batch = next(iter(data.loader("test")))
    rows, tokenizer = data.split("test").rows, ByteTokenizer()
    assert {name: tensor.dtype for name, tensor in batch.items()} == dict.fromkeys(
        ("input_ids", "attention_mask", "labels"), torch.int64
    )
    assert batch["labels"].shape == (128, 11)
    for number, row in enumerate(rows[:128]):
        ids, mask, labels = (batch[name][number] for name in ("input_ids", "attention_mask", "labels"))
        assert ids[mask.bool()].tolist() == [257, *row["source"].encode(), 258]
        assert set(ids[~mask.bool()].tolist()) <= {256}
        assert labels.tolist() == [*row["target"].encode(), 258]
        assert tokenizer.decode(labels.tolist()) == row["target"]
    longest = max(len(row["source"].encode()) for row in rows[:128])
    assert batch["input_ids"].shape[1] == longest + 2
    mixed = data.collate([{**data.read(rows[0])}, {**data.read(rows[1]), "labels": torch.tensor([50, 258])}])
    assert mixed["labels"][1].tolist() == [50, 258, *[IGNORED] * 9]


def test_the_model_reads_a_batch(data: Dates) -> None:
    batch = next(iter(data.loader("validation")))
    assert zoo.build(MODEL)(**batch).logits.shape == (*batch["labels"].shape, 260)


def test_a_tokenizer_is_trained_on_both(data: Dates) -> None:
    trained = dates(tokenizer="bpe", vocabulary=300, size=300)
    before = torch.random.get_rng_state()
    tokenizer = trained.tokenizer
    assert torch.equal(before, torch.random.get_rng_state())
    example = trained.read(trained.split("test").rows[0])
    assert tokenizer.decode(example["labels"].tolist()) == "1937-01-14"
    assert example["labels"][-1] == tokenizer.end and example["labels"][0] != tokenizer.start
    assert list(islice(trained.texts("train"), 4)) == list(islice(dates(size=300).texts("train"), 4))


def test_nothing_global_is_disturbed(data: Dates) -> None:
    import random

    before = random.getstate()
    next(iter(data.loader("train"))), data.split("test"), list(data.pairs_of("train"))[:1]
    assert random.getstate() == before


def test_babel_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "babel", None)
    with pytest.raises(MissingExtraError, match=r"^data 'dates' needs babel, which is not installed: pip install .*\[train\]"):
        dates().split("test")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"locales": ["de", "en_GP"]}, r"^data 'dates': babel knows no locale 'en_GP'; did you mean 'en_..'\?"),
        ({"locales": ["de", "../x"]}, r"^data 'dates': babel knows no locale '../x'"),
        ({"new_locales": ["tlh"]}, r"^data 'dates': babel knows no locale 'tlh'"),
    ],
)
def test_locales_that_are_not_there(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        dates(**fields).split("test")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "gpt-mini"}, r"model\.type: data 'dates' are pairs of texts, which need a model of type 'encoder-decoder'"),
        ({"data.years": [2000, 1999]}, r"data\.years: 2000 lies behind 1999"),
        ({"data.pack": True}, r"data\.pack: pairs of texts cannot share a row"),
        ({"data.asked": "new"}, r"data\.asked: expected 'locales' or 'new-locales'"),
        ({"model.encoder.embedding.vocabulary": 258, "model.decoder.embedding.vocabulary": 258},
         r"model\.encoder\.embedding\.vocabulary: data 'dates' have 260 token ids, not 258"),
        ({"model.encoder.embedding.position": {"type": "learned", "length": 64}},
         r"data\.length: the model has positions for 64 tokens, and texts are cut at 128"),
        ({"model.decoder.embedding.position": {"type": "learned", "length": 8}},
         r"data\.target_length: the model has positions for 8 tokens, and texts are cut at 16"),
    ],
)  # fmt: skip
def test_what_does_not_fit_the_model(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve_run(RUN, change)
