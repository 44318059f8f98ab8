"""What loading did with each tensor."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

STATUSES = ("loaded", "renamed", "resized", "re-initialised", "ignored")


class Entry(NamedTuple):
    """One tensor: what became of it, its name here (or on disk, if ignored), and a remark."""

    status: str
    name: str
    detail: str = ""


@dataclass
class LoadReport:
    """What loading did with each tensor; `print(model.load_report)` shows whatever is not plain."""

    place: str
    entries: list[Entry] = field(default_factory=list)

    def add(self, status: str, name: str, detail: str = "") -> None:
        """Notes what became of a tensor."""
        self.entries.append(Entry(status, name, detail))

    def of(self, status: str) -> list[Entry]:
        """The tensors with this status."""
        return [entry for entry in self.entries if entry.status == status]

    def __str__(self) -> str:
        counts = Counter(entry.status for entry in self.entries)
        head = f"{self.place}: " + ", ".join(f"{counts[status]} {status}" for status in STATUSES if counts[status])
        remarks = [f"  {e.status:14} {e.name}  {e.detail}".rstrip() for e in self.entries if e.status in STATUSES[2:]]
        return "\n".join([head, *remarks])
