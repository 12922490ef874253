"""The records that measuring functions return, and the table they are printed as.

Taught in notebook 02 (freeze, weigh, probe).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Any

from superb_lite.bench.machine import BUSY, LIBRARIES

if TYPE_CHECKING:
    from rich.table import Table

CORPUS = "mini"  # whose clips everything is measured on


@dataclass(frozen=True)
class Figure:
    """One number that was measured.

    key: its name in the JSON file; group: the heading it stands under; means: what it says, in a few words;
    parts: the numbers behind it, in seconds, bytes and so on; target: the least that it should be
    """

    key: str
    group: str
    what: str
    value: float
    unit: str
    means: str
    parts: Mapping[str, float] = field(default_factory=dict)
    target: float | None = None


@dataclass(frozen=True)
class Effort:
    """How much is measured.

    repeats: of each pass, whose median counts; steps: of each head, the first 20 to warm up; clips: of the stages and
    of the shorter corpus in `twice_the_hours`; part: `twice_the_rates` works on one clip in so many; pairs: queries,
    and documents, to align
    """

    repeats: int = 3
    steps: int = 80
    clips: int = 60
    part: int = 10
    pairs: int = 60


FULL = Effort()
QUICK = Effort(repeats=1, steps=40, clips=20, part=40, pairs=20)


def shown(value: float, unit: str) -> str:
    """A value with three digits and a unit of fitting size."""
    if unit == "s":
        return f"{value * 1e3:.3g} ms" if value < 0.1 else f"{value:.1f} s" if value >= 10 else f"{value:.2f} s"
    if unit in ("times", "x real time", "%"):
        return f"{value:,.{0 if value >= 100 else 1 if value >= 10 else 2}f}{' ' * (unit != '%')}{unit}"
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if value >= size:
            return f"{value / size:.3g} {letter}{unit}"
    return f"{value:.3g} {unit}"


@dataclass(frozen=True)
class Report:
    """All figures of one run, and the machine that they are true of."""

    machine: Mapping[str, Any]
    figures: tuple[Figure, ...]

    @property
    def busy(self) -> bool:
        """Did other programs have the processor too? A head is trained by one thread, which then waited."""
        steps = [figure.parts for figure in self.figures if figure.key.startswith("step.")]
        return bool(steps) and median(step["stored_wall"] / step["stored_processor"] for step in steps) > BUSY

    def as_json(self) -> dict[str, Any]:
        """Plain values, figures by their key."""
        figures = {figure.key: asdict(figure) for figure in self.figures}
        return {"machine": dict(self.machine), "busy": self.busy, "figures": figures}

    def table(self) -> Table:
        """The figures for a terminal (something that ``rich`` prints), group by group, each with its words below it."""
        from rich.box import SIMPLE
        from rich.console import Group
        from rich.padding import Padding
        from rich.table import Table
        from rich.text import Text

        grid = Table(box=SIMPLE, pad_edge=False)
        grid.add_column("measured")
        grid.add_column("value", justify="right", no_wrap=True)
        for group in dict.fromkeys(figure.group for figure in self.figures):
            grid.add_row(group, style="bold")
            for row in (figure for figure in self.figures if figure.group == group):
                words = row.means if row.target is None else f"{row.means}; target: {shown(row.target, row.unit)}"
                says = Group(Text(f"  {row.what}"), Padding(Text(words, style="dim"), (0, 0, 0, 6)))
                grid.add_row(says, shown(row.value, row.unit))
        return grid

    def footnotes(self) -> list[str]:
        """Where the figures come from, and whether to believe them."""
        seen = self.machine
        where = f"{seen['cores']} cores, {seen['threads']} threads, {seen['processor']}, device {seen['device']}"
        versions = ", ".join(f"{name} {seen[name]}" for name in ("python", *LIBRARIES))
        warning = ["other programs had the processor too (see processor time): run it again alone"] * self.busy
        return [where, versions, *warning]
