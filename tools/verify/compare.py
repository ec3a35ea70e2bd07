"""What was compared, how much of it, and every difference with its place and both values."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from rich.console import Console
from rich.table import Table

SHOWN: Final = 50
MISSING: Final = "(missing)"


@dataclass(frozen=True, slots=True)
class Difference:
    """recomputed: what follows from the log. found: what stands in the place."""

    what: str
    where: str
    recomputed: str
    found: str


@dataclass(slots=True)
class Report:
    """Counts per subject, in the order they were first named."""

    compared: dict[str, int] = field(default_factory=dict)
    wrong: dict[str, int] = field(default_factory=dict)
    differences: list[Difference] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    finals: int = 0  # rankings recomputed

    def subject(self, what: str) -> None:
        """Lists a subject even if there is nothing to compare."""
        self.compared.setdefault(what, 0)

    def count(self, what: str, values: int) -> None:
        """Values that were compared and found equal."""
        self.compared[what] = self.compared.get(what, 0) + values

    def differs(self, what: str, where: str, recomputed: object, found: object) -> None:
        """One compared value that is not what it must be."""
        self.count(what, 1)
        self.wrong[what] = self.wrong.get(what, 0) + 1
        if len(self.differences) < SHOWN:
            self.differences.append(Difference(what, where, _short(recomputed), _short(found)))

    def equal(self, what: str, where: str, recomputed: object, found: object) -> None:
        """Compares one value; the doubles of rankings to their last bit."""
        if recomputed == found:
            self.count(what, 1)
        else:
            self.differs(what, where, recomputed, found)

    def fields(
        self, what: str, where: str, recomputed: Mapping[str, Any], found: Mapping[str, Any]
    ) -> None:
        """Compares the named fields one by one; lists and records within them field by field."""
        for name, value in recomputed.items():
            theirs = found.get(name, MISSING)
            if value == theirs:  # almost always, and a place that nobody asks for costs time
                self.count(what, _leaves(value))
            else:
                self._walk(what, f"{where} {name}", value, theirs)

    def _walk(self, what: str, where: str, recomputed: Any, found: Any) -> None:
        if isinstance(recomputed, dict) and isinstance(found, dict):
            for name, value in recomputed.items():
                self._walk(what, f"{where}.{name}", value, found.get(name, MISSING))
        elif (
            isinstance(recomputed, list | tuple)
            and isinstance(found, list | tuple)
            and len(recomputed) == len(found)
        ):
            for i, (ours, theirs) in enumerate(zip(recomputed, found, strict=True)):
                self._walk(what, f"{where}[{i}]", ours, theirs)
            if not recomputed:
                self.count(what, 1)
        else:
            self.equal(what, where, recomputed, found)

    def remark(self, text: str) -> None:
        """What was not compared and why, or how far something lags."""
        if text not in self.remarks:
            self.remarks.append(text)

    def merge(self, other: "Report") -> None:
        """Adds what another report found."""
        for what, n in other.compared.items():
            self.count(what, n)
        for what, n in other.wrong.items():
            self.wrong[what] = self.wrong.get(what, 0) + n
        self.differences += other.differences[: SHOWN - len(self.differences)]
        for text in other.remarks:
            self.remark(text)
        self.finals += other.finals

    @property
    def values(self) -> int:
        """How many values were compared in all."""
        return sum(self.compared.values())

    @property
    def total(self) -> int:
        """How many of them differ."""
        return sum(self.wrong.values())

    def as_json(self) -> str:
        """For machines."""
        return json.dumps(
            {
                "compared": [
                    {"what": what, "values": n, "differences": self.wrong.get(what, 0)}
                    for what, n in self.compared.items()
                ],
                "differences": [
                    {
                        "what": d.what,
                        "where": d.where,
                        "recomputed": d.recomputed,
                        "found": d.found,
                    }
                    for d in self.differences
                ],
                "remarks": self.remarks,
                "finals_recomputed": self.finals,
                "values_compared": self.values,
                "differences_total": self.total,
            },
            ensure_ascii=False,
        )

    def show(self, console: Console) -> None:
        """For people; the last line says it all."""
        table = Table(box=None, pad_edge=False)
        table.add_column("what was compared", overflow="fold")
        table.add_column("how many", justify="right", no_wrap=True)
        table.add_column("differences", justify="right", no_wrap=True)
        for what, n in self.compared.items():
            wrong = self.wrong.get(what, 0)
            style = "bold red" if wrong else None
            table.add_row(what, f"{n:,}", f"{wrong:,}", style=style)
        console.print(table)
        if self.differences:
            shown = Table(box=None, pad_edge=False, header_style="bold red")
            for name in ("what", "where", "recomputed", "found"):
                shown.add_column(name, overflow="fold")
            for d in self.differences:
                shown.add_row(
                    _plain(d.what), _plain(d.where), _plain(d.recomputed), _plain(d.found)
                )
            console.print()
            console.print(shown)
            if self.total > len(self.differences):
                console.print(f"... and {self.total - len(self.differences):,} more")
        for remark in self.remarks:
            console.print(f"note: {remark}", markup=False, highlight=False)
        if self.finals:
            console.print(f"{self.finals:,} final rankings recomputed", highlight=False)
        noun = "difference" if self.total == 1 else "differences"
        console.print(
            f"verify: {self.values:,} values compared, {self.total:,} {noun}",
            style="bold red" if self.total else "bold green",
            highlight=False,
        )


def _leaves(value: object) -> int:
    if isinstance(value, dict):
        return sum(map(_leaves, value.values()))
    return sum(map(_leaves, value)) or 1 if isinstance(value, list | tuple) else 1


def _plain(text: str) -> str:
    return text.replace("[", r"\[")  # not markup


def _short(value: object) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= 300 else text[:297] + "..."
