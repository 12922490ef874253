"""``superb-lite bench`` and ``superb-lite bench qbe``. Heavy packages are imported inside, as in `superb_lite.cli`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    invoke_without_command=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def cost(
    context: typer.Context,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write every figure and its parts here.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1 or mps.")] = "cpu",
    quick: Annotated[bool, typer.Option("--quick", help="Each pass once: a first look, not a result.")] = False,
) -> None:
    """Measure: how fast is it, and is it still right?

    Without a command: the cost of every stage on this machine, a step on stored features against a step that runs
    the frozen upstream again, and what twice the hours or learning rates cost. Three minutes on two cores.

    \b
    Examples:
      superb-lite bench
      superb-lite bench --json bench.json
      superb-lite bench qbe --queries 50 --documents 100
    """
    if context.invoked_subcommand is not None:
        return
    if json_file is not None and not json_file.absolute().parent.is_dir():
        raise typer.BadParameter(f"{json_file}: there is no such folder")  # said now, not after minutes
    from superb_lite.cli import check_device

    check_device(device)
    from rich.console import Console

    from superb_lite.bench.cost import measure
    from superb_lite.bench.figures import FULL, QUICK
    from superb_lite.live import Screen

    console = Console()
    with Screen(console) as screen:
        report = measure(device=device, effort=QUICK if quick else FULL, progress=screen.progress)
    console.print(report.table())
    for line in report.footnotes():
        typer.echo(line)
    if json_file is not None:
        import json

        from superb_lite.files import write_atomically

        write_atomically(json_file, json.dumps(report.as_json(), indent=2).encode())
        typer.echo(f"written: {json_file}")


@app.command("qbe")
def qbe(
    corpus: Annotated[str, typer.Option(help="mini, digits, or generated: random walks.")] = "mini",
    upstream: Annotated[str, typer.Option(help="Whose last layer is aligned.")] = "tiny_hubert",
    queries: Annotated[int, typer.Option(min=1, help="Of the test split; --documents likewise.")] = 90,
    documents: Annotated[int, typer.Option(min=1)] = 90,
) -> None:
    """Query by example: our alignment against dtw-python's.

    The same pairs in one run. Fails if two scores of a pair differ by more than 1e-6. Needs dtw-python.

    \b
    Example:
      superb-lite bench qbe --queries 50 --documents 100
    """
    from rich.console import Console

    from superb_lite.bench.alignment import qbe as race
    from superb_lite.live import Screen

    with Screen(Console()) as screen:
        found = race(corpus, upstream, queries=queries, documents=documents, progress=screen.progress)
    typer.echo(str(found))
