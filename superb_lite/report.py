"""The results for people: a table in the terminal, as CSV, as a picture and as one self-contained web page.

All four show the same cells; a cell is black where an upstream is worse than the reference. None of them
hides what cannot be compared: `caveats` finds it, and every form of the table prints it.

Taught in notebook 16 (against Fbank).
"""

from __future__ import annotations

import base64
import io
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

from superb_lite.files import write_atomically
from superb_lite.plan import searched
from superb_lite.plots import PAPER, View, colours, rounds_of, table_heatmap, view
from superb_lite.types import Score, SuperbLiteError

if TYPE_CHECKING:
    import pandas
    from rich.console import RenderableType
    from rich.text import Text

    from superb_lite.results import ResultsTable

MARK = "■"  # goes with the colour black, for eyes, screens and files that have no colours
ROOM = 80  # characters across in a terminal
MOST_TASKS = 4  # beside each other in a terminal


def write_report(table: ResultsTable, out: str | Path, *, reference: str | None = None) -> tuple[Path, ...]:
    """Write ``table.csv``, ``table.png`` and ``table.html`` into the folder `out`, each whole or not at all.

    Returns their paths. Raises SuperbLiteError if the table is empty or a file cannot be written.

    Example: ``write_report(olympics(), "superb_lite_results")``; ``superb-lite olympics`` calls it.
    """
    if not rounds_of(table):
        raise SuperbLiteError("the table has no score on a test split, so nothing can be reported; run olympics first")
    out = Path(out)
    png = picture(table, reference=reference)
    contents = {
        "table.csv": to_wide(table, reference=reference).to_csv(index=False, lineterminator="\n").encode(),
        "table.png": png,
        "table.html": page(table, png, reference=reference).encode(),
    }
    return tuple(write_atomically(out / name, content) for name, content in contents.items())


# --------------------------------------------------------------------------------- what is comparable


def caveats(table: ResultsTable, *, reference: str | None = None) -> list[str]:
    """What in this table must not be compared, or not without a word: one sentence each, none if all is fair.

    Columns whose numbers were measured on different data, weights of different revisions under one name, heads
    trained with different or quick recipes, rounds without the reference, cells with unequal numbers of seeds, holes.

    Example: ``caveats(ResultsTable(ResultsFile("results.jsonl").rows()))``; used in notebook 16.
    """
    reference = table.reference if reference is None else reference
    scores = [score for score in table.scores if score.split == "test"]
    found = [
        *_mixed(scores, "column", _column, "corpora", lambda score: score.corpus),
        *_mixed(scores, "column", _fold, "versions of the data", lambda score: f"{score.corpus} {score.data_hash}"),
        *_mixed(scores, "upstream", _upstream, "revisions of the weights", lambda score: score.revision),
        *_mixed(scores, "column", _column, "recipes", _recipe),
        *_mixed(scores, "column", _column, "versions of superb_lite", lambda score: score.version),
    ]
    if any(score.recipe.startswith("quick ") for score in scores):
        found.append("quick recipes: a fifth of the steps, a first look and not a result")
    for number in rounds_of(table):
        found += _holes(table, number, reference)
    return found


def _column(score: Score) -> str:
    return f"{score.task.upper()} {score.metric}"


def _fold(score: Score) -> str:
    return _column(score) + (f", fold {score.fold + 1}" if score.fold else "")


def _recipe(score: Score) -> str:
    return score.recipe if searched(score) else f"{score.recipe}, lr {score.lr:g}"


def _upstream(score: Score) -> str:
    return score.upstream


def _mixed(
    scores: Iterable[Score], kind: str, group: Callable[[Score], str], named: str, what: Callable[[Score], str]
) -> list[str]:
    """A sentence for each group in which `what` is not the same everywhere."""
    seen: dict[str, dict[str, None]] = defaultdict(dict)
    for score in scores:
        seen[group(score)][what(score)] = None
    return [
        f"{kind} {name} mixes {len(values)} {named}: {'; '.join(values)}"
        for name, values in seen.items()
        if len(values) > 1
    ]


def _holes(table: ResultsTable, round: int, reference: str) -> list[str]:
    """A sentence on what a round lacks: the reference, some scores, or some seeds."""
    seeds = table.pivot(round, "seeds")
    found = []
    if reference not in seeds.index:
        found.append(f"round {round} has no {reference}, so no cell is black")
    counts = sorted({int(count) for count in seeds.to_numpy().ravel() if count == count})
    if len(counts) > 1:
        found.append(f"round {round}: cells are means over unequal numbers of seeds ({', '.join(map(str, counts))})")
    missing = int(seeds.isna().to_numpy().sum())
    if missing:
        found.append(f"round {round}: {missing} of {seeds.size} cells have no score")
    return found


# ---------------------------------------------------------------------------------------------- files


def to_wide(table: ResultsTable, *, reference: str | None = None) -> pandas.DataFrame:
    """A row per round and upstream; per column of the table its mean, spread, seeds, learning rate, and black or not.

    Columns are named ``ks_acc``, ``ks_acc_spread``, ``ks_acc_seeds``, ``ks_acc_lr``, ``ks_acc_black``.
    """
    import pandas

    rates = {(s.round, s.upstream, s.task, s.metric): s.lr for s in table.scores if s.split == "test"}
    rows = []
    for number in rounds_of(table):
        seen, seeds = view(table, number, reference), table.pivot(number, "seeds")
        for name in seen.means.index:
            row: dict[str, object] = {"round": number, "upstream": name}
            for task, metric in seen.means.columns:
                cell, key = (name, (task, metric)), f"{task}_{metric}"
                row[key] = seen.means.loc[cell]
                row[f"{key}_spread"] = seen.spreads.loc[cell]
                row[f"{key}_seeds"] = 0 if seeds.loc[cell] != seeds.loc[cell] else int(seeds.loc[cell])
                row[f"{key}_lr"] = rates.get((number, name, task, metric))
                row[f"{key}_black"] = bool(seen.black.loc[cell])
            rows.append(row)
    wide = pandas.DataFrame(rows)
    return wide.round({name: 4 for name in wide.columns if not name.endswith("_lr")})


def picture(table: ResultsTable, *, reference: str | None = None) -> bytes:
    """The table as a PNG: the rounds below each other. Works without a screen and leaves pyplot alone."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rounds = rounds_of(table)
    views = [view(table, number, reference) for number in rounds]
    heights = [1.3 + 0.45 * len(seen.means) for seen in views]
    width = 2.6 + 1.5 * len(views[0].titles)
    notes = caveats(table, reference=reference)
    figure = Figure(figsize=(width, sum(heights) + 0.2 * bool(notes)), facecolor=PAPER, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(rounds), 1, squeeze=False, height_ratios=heights)[:, 0]
    for number, ax in zip(rounds, axes, strict=True):
        table_heatmap(table, round=number, reference=reference, ax=ax)
    if notes:
        axes[-1].set_xlabel(f"not all comparable: {len(notes)} remarks in table.html", fontsize=8)
    packet = io.BytesIO()
    figure.savefig(packet, format="png", dpi=150, metadata={"Software": None})
    return packet.getvalue()


def alt_text(table: ResultsTable, *, reference: str | None = None) -> str:
    """The picture in words: how many cells are black, and who is first in each column of the last round."""
    sentences = []
    for number in rounds_of(table):
        seen = view(table, number, reference)
        cells = int(seen.means.notna().to_numpy().sum())
        sentences.append(f"Round {number}: {int(seen.black.to_numpy().sum())} of {cells} cells are black")
    leaders = []
    for column, title in enumerate(seen.titles):
        best = int(seen.place.iloc[:, column].argmax())
        leaders.append(f"{title} {seen.place.index[best]} {seen.text(best, column)}")
    sentences.append(f"Best in round {seen.round}: {', '.join(leaders)}")
    return f"Table of upstreams against tasks, {seen.says}. {'. '.join(sentences)}."


# ----------------------------------------------------------------------------------------------- page

_PAGE = Template(
    """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>superb_lite: $corpora, rounds $rounds</title>
<style>
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem; background: #fff;
  color: #1a1a1a; }
.wide { overflow-x: auto; }
table { border-collapse: separate; border-spacing: 2px; margin: 0 0 1.5rem; }
caption { text-align: left; font-weight: 600; padding: .5rem 0; }
th, td { padding: .35rem .7rem; text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
th[scope=row] { text-align: left; font-weight: 600; }
thead button { font: inherit; font-weight: 600; color: inherit; background: none; border: 1px solid transparent;
  border-radius: 4px; cursor: pointer; padding: .1rem .3rem; }
thead button:hover, thead button:focus-visible { border-color: #0072b2; outline: none; }
th[aria-sort=ascending] button::after { content: " \\25B4"; }
th[aria-sort=descending] button::after { content: " \\25BE"; }
td.black { background: #000; color: #fff; }
td.none { background: #d9d9d9; }
td[title] { cursor: help; }
tbody td { outline: 1px solid #bfbfbf; }
tr.reference > * { border-bottom: 2px solid #1a1a1a; }
.said { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
.caveats { border-left: 4px solid #d55e00; padding: .2rem 1rem; }
details table { border-spacing: 0; font-size: 14px; }
details td, details th { border-bottom: 1px solid #ccc; text-align: left; outline: none; }
details td:last-child { white-space: normal; }
img { max-width: 100%; height: auto; }
</style>
</head>
<body>
<main>
<h1>Upstreams against tasks</h1>
<p>Corpus: $corpora. An arrow in a column's title says which direction is better; the bluer a cell, the better its
place in the column. A <strong>black cell is worse than $reference</strong>, the reference in the first row. Values
after ± are the standard deviation over seeds. Click a title to sort; point at a cell to see where its number comes
from.</p>
$caveats
$tables
<details>
<summary>Where each number comes from: $count rows</summary>
<div class="wide">$origins</div>
</details>
<details>
<summary>The table as a picture</summary>
<p><img src="data:image/png;base64,$png" alt="$alt"></p>
</details>
</main>
<script>
"use strict";
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  table.tHead.rows[0].querySelectorAll("th").forEach((head, column) => {
    const button = head.querySelector("button");
    if (!button) return;
    button.addEventListener("click", () => {
      const turned = { ascending: "descending", descending: "ascending" };
      const way = turned[head.getAttribute("aria-sort")] || head.dataset.first;
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", way);
      const sign = way === "ascending" ? 1 : -1;
      const value = (row) => row.cells[column].dataset.value;
      [...body.rows].sort((a, b) => {
        const [x, y] = [value(a), value(b)];
        if (x === "" || y === "") return (x === "") - (y === "");
        return sign * (column === 0 ? x.localeCompare(y) : Number(x) - Number(y));
      }).forEach((row) => body.append(row));
    });
  });
}
</script>
</body>
</html>
"""
)


def page(table: ResultsTable, png: bytes, *, reference: str | None = None) -> str:
    """The table as one web page that needs nothing else: style, script and picture are inside."""
    reference = table.reference if reference is None else reference
    rounds, notes = rounds_of(table), caveats(table, reference=reference)
    warning = ""
    if notes:
        items = "".join(f"<li>{escape(note)}</li>" for note in notes)
        warning = f'<div class="caveats" role="note"><p>Not everything here is comparable:</p><ul>{items}</ul></div>'
    scores = [score for score in table.scores if score.split == "test"]
    return _PAGE.substitute(
        corpora=escape(", ".join(dict.fromkeys(score.corpus for score in scores))),
        rounds=escape(" and ".join(map(str, rounds))),
        reference=escape(reference),
        caveats=warning,
        tables="\n".join(_html_round(table, view(table, number, reference)) for number in rounds),
        count=len(scores),
        origins=_html_origins(scores),
        png=base64.b64encode(png).decode(),
        alt=escape(alt_text(table, reference=reference)),
    )


def _html_round(table: ResultsTable, seen: View) -> str:
    """One round as a table whose columns can be sorted; the first click puts the best on top."""
    heads = ['<th scope="col" data-first="ascending"><button type="button">upstream</button></th>']
    for (task, metric), title in zip(seen.means.columns, seen.titles, strict=True):
        record = table.metric(task, metric)
        first = "descending" if record.higher_is_better else "ascending"
        says = f"{record.title}: {'higher' if record.higher_is_better else 'lower'} is better"
        heads.append(
            f'<th scope="col" data-first="{first}" title="{escape(says)}">'
            f'<button type="button">{escape(title)}</button></th>'
        )
    lines = []
    for row, name in enumerate(seen.means.index):
        cells = "".join(_html_cell(table, seen, row, column) for column in range(len(seen.titles)))
        mark = ' class="reference"' if name == seen.reference else ""
        lines.append(f'<tr{mark}><th scope="row" data-value="{escape(name)}">{escape(name)}</th>{cells}</tr>')
    return (
        f'<div class="wide"><table class="sortable"><caption>Round {seen.round}: {escape(seen.says)}</caption>'
        f"<thead><tr>{''.join(heads)}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def _html_cell(table: ResultsTable, seen: View, row: int, column: int) -> str:
    value, place = seen.means.iloc[row, column], seen.place.iloc[row, column]
    text = escape(seen.text(row, column))
    if value != value:
        return f'<td class="none" data-value=""><span class="said">no score</span>{text}</td>'
    name, (task, metric) = seen.means.index[row], seen.means.columns[column]
    chosen = [s for s in table.scores if _is(s, seen.round, name, task, metric)]
    hover = escape("\n".join(origin_in_words(score) for score in chosen))
    if seen.black.iloc[row, column]:
        look, said = 'class="black"', f'<span class="said">worse than {escape(seen.reference)}: </span>'
    else:
        from matplotlib.colors import to_hex

        look, said = f'style="background:{to_hex(colours()(float(place)))}"', ""
    return f'<td {look} data-value="{value:.6g}" title="{hover}">{said}{text}</td>'


def _is(score: Score, round: int, upstream: str, task: str, metric: str) -> bool:
    ours = (score.split, score.round, score.upstream, score.task, score.metric)
    return ours == ("test", round, upstream, task, metric)


def origin_in_words(score: Score) -> str:
    """Where a number comes from, in a line: seed, value, recipe, layer weights, data and weights.

    Of a published number we know the source only, which stands in `device`.
    """
    if score.version == "published":
        return f"{score.value:g}, {score.recipe}, as {score.revision}: {score.device}"
    weights = " ".join(f"{weight:.2f}" for weight in score.layer_weights)
    fold = f", fold {score.fold}" if score.fold else ""
    return (
        f"seed {score.seed}{fold}: {score.value:.4g} on {score.clips} clips; lr {score.lr:g}, recipe {score.recipe}; "
        f"layer weights {weights}; weights {score.revision}, data {score.corpus} {score.data_hash}; "
        f"{score.seconds:.1f} s on {score.device}"
    )


def _html_origins(scores: Iterable[Score]) -> str:
    """Every row with its origin, for readers who cannot point at a cell."""
    lines = "".join(
        f"<tr><td>{score.round}</td><td>{escape(score.upstream)}</td><td>{escape(_column(score))}</td>"
        f"<td>{escape(origin_in_words(score))}</td></tr>"
        for score in scores
    )
    heads = "".join(f'<th scope="col">{name}</th>' for name in ("round", "upstream", "column", "origin"))
    return f"<table><thead><tr>{heads}</tr></thead><tbody>{lines}</tbody></table>"


# ------------------------------------------------------------------------------------------- terminal


def terminal(table: ResultsTable, *, reference: str | None = None, final: bool = True) -> RenderableType:
    """The table for a terminal (something that ``rich`` prints): one block per round, then what is not comparable.

    Black cells are white on black and carry a mark, so that they show without colours and on black screens.
    A table that is still filling up (not `final`) has holes that mean nothing yet, so nothing is said about them.

    Example: ``rich.print(terminal(table))``; ``superb-lite olympics`` prints it.
    """
    from rich.console import Group
    from rich.text import Text

    rounds = rounds_of(table)
    if not rounds:
        return Text("no results yet")
    parts: list[RenderableType] = [_terminal_round(view(table, number, reference)) for number in rounds]
    if final:
        parts += [Text(f"not comparable: {note}", style="yellow") for note in caveats(table, reference=reference)]
    return Group(*parts)


def _terminal_round(seen: View) -> RenderableType:
    """Tasks below each other if all upstreams fit beside each other; else upstreams, in blocks of a few tasks."""
    from rich.console import Group
    from rich.text import Text

    def cell(row: int, column: int) -> Text:
        text = seen.text(row, column)
        if seen.black.iloc[row, column]:
            return Text(f"{MARK} {text}", style="white on black")
        return Text(text, style="bold" if seen.place.iloc[row, column] == 1 else "")

    says = f"{MARK} worse than {seen.reference}" if seen.reference in seen.means.index else seen.says
    names, titles = list(seen.means.index), seen.titles
    cells = [[cell(row, column) for column in range(len(titles))] for row in range(len(names))]
    turned = [list(column) for column in zip(*cells, strict=True)]
    if len(titles) > MOST_TASKS and _fits(titles, names, turned):
        grids = [_grid("task", names, titles, turned)]
    else:
        grids, first = [], 0
        while first < len(titles):
            last = first + MOST_TASKS
            while last > first + 1 and not _fits(names, titles[first:last], [row[first:last] for row in cells]):
                last -= 1
            block = [row[first:last] for row in cells]
            grids.append(_grid("upstream", titles[first:last], names, block, line_below=seen.reference))
            first = last
    return Group(Text(f"Round {seen.round}  ({says})", style="bold"), *grids)


def _fits(rows: Sequence[str], columns: Sequence[str], cells: Sequence[Sequence[Text]]) -> bool:
    """Is there room for a grid with these headings and cells? Every column has three characters of air."""
    widths = [max(len(head), *map(len, column)) for head, column in zip(columns, zip(*cells, strict=True), strict=True)]
    return max(map(len, rows)) + sum(widths) + 3 * (len(widths) + 1) + 1 <= ROOM


def _grid(
    corner: str, columns: Sequence[str], rows: Sequence[str], cells: Sequence[Sequence[Text]], line_below: str = ""
) -> RenderableType:
    from rich.box import SIMPLE
    from rich.table import Table

    grid = Table(box=SIMPLE)
    grid.add_column(corner, no_wrap=True)
    for head in columns:
        grid.add_column(head, justify="right", no_wrap=True)
    for name, row in zip(rows, cells, strict=True):
        grid.add_row(name, *row, end_section=name == line_below)
    return grid
