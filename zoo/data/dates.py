"""Dates as people write them in several languages, and as ISO 8601 does."""

from __future__ import annotations

import datetime
import random
import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError
from torch.utils.data import Dataset

from zoo.config.base import PositiveInt
from zoo.data.base import DataConfig, SplitName
from zoo.data.pairs import PairConfig, PairData
from zoo.data.randomness import mixed
from zoo.data.rows import Example, Row, Rows
from zoo.data.shares import part_of
from zoo.errors import DataError, did_you_mean
from zoo.extras import require

LOCALES = (
    "bg", "ca", "cs", "da", "de", "el", "en", "en_GB", "es", "et", "fi", "fr", "hu", "id", "is", "it", "ja", "ko", "lt", "lv",
    "nl", "pl", "ro", "ru", "sl", "sr", "sv", "tr", "uk", "vi", "zh",
)  # fmt: skip
"""Those whose dates are trained on. Croatian is not among them: its `listopada` is October, and that of Polish November."""
NEW_LOCALES = ("af", "mk", "nb", "pt", "sk")
"""Relatives of some of these, for asking what was never trained on."""
ORDINALS = {"en": {"one": "st", "two": "nd", "few": "rd", "other": "th"}, "fr": {"one": "er"}}
"""What may stand behind a day, by language and by the kind of number that babel says a day is."""
TEST = 0.1


class Phrasing(NamedTuple):
    """One way in which a date is written."""

    locale: Any
    """babel's."""
    pattern: str
    """As Unicode writes patterns of dates: `EEEE, d. MMMM y`."""
    ordinal: bool = False
    """Whether the day has an ending, as in `5th`."""

    def text(self, date: datetime.date) -> str:
        """The date in these words."""
        dates, pattern = require("babel.dates", "train", "data 'dates'"), self.pattern
        ending = ORDINALS[self.locale.language].get(self.locale.ordinal_form(date.day), "") if self.ordinal else ""
        if ending:
            tokens = ((kind, value) for kind, value in dates.tokenize_pattern(pattern))
            more = [(*each, ("chars", ending)) if _is_day(each[0]) else each for each in ((token,) for token in tokens)]
            pattern = dates.untokenize_pattern([token for each in more for token in each])
        return str(dates.format_date(date, pattern, locale=self.locale))


class Dates(PairData):
    """Dates in some thirty languages, each with the same date in ISO 8601: `Dienstag, 5. März 2024`, `2024-03-05`.

    Texts are made from the patterns and names of babel's locales, with and without the day of the week, in long and short
    words, in English and French with ordinal numbers too; half of them as the locale writes them, the others in lower case, in
    upper case or without punctuation. Each text says by itself which date it is: nothing says which language it is in, so that
    patterns with a month in figures (`03/04/05`) are left out unless a year of four figures stands first, and languages that
    call different months by the same word are an error. An example of training is drawn anew in each epoch; a tenth of all
    dates is never trained on, in no language, and is what the test part asks, the same in every run.
    Shapes: input_ids and attention_mask (batch, tokens), labels (batch, tokens of the target).
    """

    class Config(PairConfig, DataConfig):
        """Config of the `dates` data."""

        type: Literal["dates"] = "dates"
        length: Annotated[int, Field(ge=3, le=10_000_000)] = 128
        """How many tokens of a text are read at most. The longest date of the usual locales has 61 in bytes."""
        target_length: Annotated[int, Field(ge=3, le=10_000_000)] = 16
        """The same of a target, which has 12 in bytes, its marks included."""
        locales: Annotated[list[str], Field(min_length=1)] = Field(default_factory=lambda: list(LOCALES))
        """The locales that are trained on, by their names in babel."""
        new_locales: Annotated[list[str], Field(min_length=1)] = Field(default_factory=lambda: list(NEW_LOCALES))
        """Locales that never are."""
        asked: Literal["locales", "new-locales"] = "locales"
        """Whose phrasings are asked where a model is measured; with `new-locales` there is nothing to train on."""
        years: tuple[Annotated[int, Field(ge=1000, le=9999)], Annotated[int, Field(ge=1000, le=9999)]] = (1900, 2099)
        """The first and the last year."""
        size: PositiveInt = 20000
        """How many examples an epoch has."""
        measured: PositiveInt = 2000
        """How many examples the test part has, and the validation part, if there is one."""

        @field_validator("years")
        @classmethod
        def _in_order(cls, years: tuple[int, int]) -> tuple[int, int]:
            if years[0] > years[1]:
                raise PydanticCustomError("config", f"{years[0]} lies behind {years[1]}")  # type: ignore[arg-type]
            return years

    config: Config

    def split(self, name: SplitName) -> Rows | Drawn:
        """The examples of one part."""
        if name == "train":
            return Drawn(self)
        generators = (random.Random(mixed(int(name == "test"), number)) for number in range(self.config.measured))
        return Rows([self.drawn(generator, name) for generator in generators], self.read)

    def drawn(self, generator: Any, name: SplitName) -> Row:
        """A pair of a part, drawn with `random` or a `random.Random`."""
        phrasing: Phrasing = generator.choice(generator.choice(self._phrasings))
        date: datetime.date = generator.choice(self._dates[name])
        style = generator.choice(STYLES)
        return {"source": style(phrasing.text(date)), "target": date.isoformat()}

    @cached_property
    def _dates(self) -> dict[SplitName, list[datetime.date]]:
        first, last = datetime.date(self.config.years[0], 1, 1), datetime.date(self.config.years[1], 12, 31)
        found: dict[SplitName, list[datetime.date]] = {"train": [], "validation": [], "test": []}
        for number in range(first.toordinal(), last.toordinal() + 1):
            date = datetime.date.fromordinal(number)
            found[part_of(date.isoformat().encode(), TEST, self.config.validation)].append(date)
        return found

    @cached_property
    def _phrasings(self) -> list[list[Phrasing]]:
        """Those of each locale that is asked."""
        known, new = ([_locale(name, self.place) for name in names] for names in (self.config.locales, self.config.new_locales))
        _check_months([*known, *new], self.place)
        return [phrasings(locale) for locale in (known if self.config.asked == "locales" else new)]


class Drawn(Dataset[Example]):
    """Dates to train on, each drawn when it is asked for."""

    def __init__(self, data: Dates) -> None:
        self.data = data

    def __len__(self) -> int:
        return self.data.config.size

    def __getitem__(self, index: int) -> Example:
        return self.data.read(self.data.drawn(random, "train"))  # the loader has it start from seed, epoch and index

    @property
    def rows(self) -> Iterator[Row]:
        """As many as an epoch has, the same each time."""
        return (self.data.drawn(random.Random(mixed(2, number)), "train") for number in range(len(self)))


def phrasings(locale: Any) -> list[Phrasing]:
    """The ways in which a locale writes whole dates that can be understood without knowing the locale."""
    found = [*locale.date_formats.values(), *locale.datetime_skeletons.values()]
    patterns = sorted({wider for each in found for wider in _widths(str(getattr(each, "pattern", each)))})
    plain = [Phrasing(locale, pattern) for pattern in patterns if _says_all(pattern)]
    if locale.language not in ORDINALS:
        return plain
    return plain + [each._replace(ordinal=True) for each in plain if re.search(r"MMM", each.pattern)]


def _tokens(pattern: str) -> list[Any]:
    return list(require("babel.dates", "train", "data 'dates'").tokenize_pattern(pattern))


def _is_day(token: Any) -> bool:
    return bool(token[0] == "field" and token[1][0] == "d")


def _says_all(pattern: str) -> bool:
    """Whether day, month and a year of four figures stand in it, and in an order that is plain."""
    fields = [value for kind, value in _tokens(pattern) if kind == "field"]
    widths = dict(fields)
    if not {"y", "M", "d"} <= widths.keys() <= set("yMdEc") or widths["y"] != 1:
        return False
    return widths["M"] >= 3 or fields[0][0] == "y"


def _widths(pattern: str) -> Iterator[str]:
    """The pattern with words for month and weekday both short and long."""
    write = require("babel.dates", "train", "data 'dates'").untokenize_pattern
    for month in (3, 4):
        for weekday in (3, 4):
            wanted = {"M": month, "E": weekday, "c": weekday}
            yield write([
                (kind, (value[0], wanted[value[0]])) if _is_word(kind, value) else (kind, value)
                for kind, value in _tokens(pattern)
            ])  # fmt: skip


def _is_word(kind: str, value: Any) -> bool:
    return kind == "field" and (value[0] in "Ec" or (value[0] == "M" and value[1] >= 3))


def _bare(text: str) -> str:
    """Without punctuation but for what parts figures."""
    return " ".join(re.sub(r"[.,()](?=\D|$)|(?<=\D)[.,()]", " ", text).split())


def _same(text: str) -> str:
    return text


STYLES = (_same, _same, _same, str.lower, str.upper, _bare)
"""What becomes of a text, each of them as likely as the others."""


def _locale(name: str, place: str) -> Any:
    babel = require("babel", "train", place)
    try:
        return babel.Locale.parse(name)
    except (ValueError, babel.UnknownLocaleError):
        known = require("babel.localedata", "train", place).locale_identifiers()
        raise DataError(f"{place}: babel knows no locale {name!r}{did_you_mean(name, known)}") from None


def _check_months(locales: Sequence[Any], place: str) -> None:
    """Raises a DataError where one word is another month in another language."""
    format_date = require("babel.dates", "train", place).format_date
    known: dict[str, tuple[int, Any]] = {}
    for locale in locales:
        for month in range(1, 13):
            for pattern in ("MMM", "MMMM"):
                word = format_date(datetime.date(2000, month, 1), pattern, locale=locale).strip(".").casefold()
                other, where = known.setdefault(word, (month, locale))
                if other != month:
                    what = f"{word!r} is month {month} in {locale} and month {other} in {where}"
                    raise DataError(f"{place}: locales: {what}; leave one of them out")


__all__ = ["Dates", "Phrasing", "phrasings"]
