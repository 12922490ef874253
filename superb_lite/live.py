"""What a long command shows while it runs: bars and the growing table, or a line per number without a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from superb_lite.types import Score

if TYPE_CHECKING:
    from rich.console import Console

MOST_BARS = 3  # work within work: an upstream, its features, a head
LATEST = 4  # upstreams that the growing table shows beside Fbank, if there are more
PACE_SEC = 3600.0  # time left is told from the pace of the last hour: heads take seconds or minutes


class Screen:
    """Live progress: bars and the growing table on a terminal, a line per number anywhere else."""

    def __init__(self, console: Console) -> None:
        from rich.live import Live
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self.console, self.scores, self.bars = console, [], {}
        self.rows: Any = ""
        self.told: set[str] = set()
        self.stale = False
        self.bar = Progress(*columns, console=console, speed_estimate_period=PACE_SEC)
        self.live = Live(console=console, transient=True, refresh_per_second=4, get_renderable=self.picture)

    def __enter__(self) -> Screen:
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self.console.is_terminal:
            self.live.stop()

    def picture(self) -> Any:
        """What the terminal shows now."""
        from rich.console import Group

        if self.stale:
            self.stale, self.rows = False, self._table()
        return Group(self.rows, self.bar)

    def _table(self) -> Any:
        from superb_lite.report import terminal
        from superb_lite.results import ResultsTable

        table = ResultsTable(list(self.scores))
        names = dict.fromkeys(row.upstream for row in table.scores)
        shown = {table.reference, *list(names)[-LATEST:]}
        return terminal(ResultsTable(row for row in table.scores if row.upstream in shown), final=False)

    def progress(self, what: str, done: int, total: int) -> None:
        """A `Progress` callback: one bar per thing being done, gone when it is finished.

        What stands before a colon names the thing; the rest (a loss, say) may change from call to call.
        """
        thing = what.partition(":")[0]
        if not self.console.is_terminal:
            if thing not in self.told:
                typer.echo(f"{thing} ...", err=True)
            self.told.add(thing)
            return
        if thing not in self.bars:
            for stale in list(self.bars)[: max(0, len(self.bars) - MOST_BARS + 1)]:
                self.bar.remove_task(self.bars.pop(stale))
            # what was there before (a run that goes on) says nothing about the pace
            self.bars[thing] = self.bar.add_task(what, total=total, completed=done)
        self.bar.update(self.bars[thing], completed=done, total=total, description=what)
        if done >= total:
            self.bar.remove_task(self.bars.pop(thing))

    def score(self, score: Score) -> None:
        """A number has arrived: show it. The table is drawn when it is looked at, not once per number."""
        self.scores.append(score)
        self.stale = True
        if self.console.is_terminal:
            return
        typer.echo(
            f"{score.task:4} {score.upstream:14} round {score.round} seed {score.seed}  "
            f"{score.metric} {score.value:6.2f}  ({score.seconds:.1f} s)"
        )
