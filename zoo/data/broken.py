"""Examples that cannot be read: named, counted and left out, until there are too many."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

from zoo.errors import DataError


class Broken(DataError):
    """One example that cannot be read; a data part raises it, and the loader leaves the example out.

    Args:
        name: where it is, such as a file and a line; an empty one becomes the number of the row.
        reason: why it cannot be read.
    """

    def __init__(self, name: str, reason: object) -> None:
        self.name, self.reason = name, " ".join(str(reason).split()) or type(reason).__name__
        super().__init__(f"{name or 'an example'} cannot be read: {self.reason}")

    def __reduce__(self) -> tuple[type[Broken], tuple[str, str]]:
        return type(self), (self.name, self.reason)


class Tally:
    """The broken examples of some data.

    Args:
        place: what messages call the data.
        limit: how many of a part may be broken.
    """

    def __init__(self, place: str, limit: int) -> None:
        self.place, self.limit = place, limit
        self.reasons: dict[str, str] = {}
        """Why it cannot be read, by the name of the example, of all that were met."""

    def add(self, broken: Mapping[str, str], met: dict[str, str]) -> None:
        """Counts examples, those that were `met` in the same pass through a part included; the first five are warned of.

        Raises:
            DataError: there are more of them than the limit.
        """
        for name, reason in broken.items():
            met[name] = reason
            if len(met) > self.limit:
                raise DataError(f"{self.place}: {self._summary(met)}")
            if name in self.reasons:
                continue
            self.reasons[name] = reason
            if len(self.reasons) <= 5:
                rest = "; further ones are counted without a word" if len(self.reasons) == 5 else ""
                warnings.warn(f"{self.place}: {name} cannot be read and is left out: {reason}{rest}", stacklevel=2)

    def _summary(self, met: Mapping[str, str]) -> str:
        shown = [f"{name} ({reason})" for name, reason in list(met.items())[:3]]
        allowed = f"more than `broken: {self.limit}` allows" if self.limit else "and `broken: 0` allows none"
        number = "1 example" if len(met) == 1 else f"{len(met)} examples"
        return f"{number} cannot be read, {allowed}: {', '.join(shown)}{', ...' if len(met) > 3 else ''}"
