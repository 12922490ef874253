"""``superb-lite course build`` and ``superb-lite course check``, for authors."""

from __future__ import annotations

from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="Build the students' notebooks; check that the course keeps its promises.")

Names = Annotated[list[str] | None, typer.Argument(help="Beginnings of file names, as in: 02 04. None: all.")]


@app.command()
def build(
    names: Names = None,
    measure: Annotated[bool, typer.Option(help="Take time and memory from an empty cache, for the headers.")] = False,
) -> None:
    """Make notebooks/ from solutions/: run both versions and store cleaned outputs.

    Example: superb-lite course build 04 --measure
    """
    from superb_lite.course.build import build as build_notebooks
    from superb_lite.course.build import find_project

    build_notebooks(find_project(), names or (), measure=measure, say=typer.echo)


@app.command()
def check(
    names: Names = None,
    run: Annotated[bool, typer.Option(help="Run the notebooks and compare their outputs.")] = True,
    minutes: Annotated[float, typer.Option(help="How long one notebook may run.")] = 3.0,
) -> None:
    """Exercises, files, both versions and all outputs: is everything as promised?

    Example: superb-lite course check 04
    """
    from superb_lite.course.build import find_project
    from superb_lite.course.verify import verify

    problems = verify(find_project(), names or (), execute=run, minutes=minutes, say=typer.echo)
    for problem in problems:
        typer.echo(problem, err=True)
    if problems:
        typer.echo(f"course check: {len(problems)} to mend", err=True)
        raise typer.Exit(1)
    typer.echo("course check: everything as promised")
