"""The command line: ``superb-lite doctor | olympics | upstreams | parity | pretrain | bench | course``.

Thin on purpose: it reads options, calls the library and shows what comes back. Heavy packages are imported
inside the commands, so that ``--help`` is quick and ``doctor`` speaks even where torch does not import.
A failure is one line on stderr and exit code 1; Ctrl-C is exit code 130; wrong options are exit code 2.

Taught in notebook 00 (welcome).
"""

from __future__ import annotations

import errno
import os
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from superb_lite.bench.cli import app as bench

if TYPE_CHECKING:

    from superb_lite.rounds import Round
    from superb_lite.types import Card

RESUME = "run the same command again to resume"


class Patient(TyperGroup):
    """A group of commands whose failures are one line and an exit code, whatever the command."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            _complain(f"stopped; what is finished is kept: {RESUME}")
            raise typer.Exit(130) from None
        except Exception as error:
            line = explain(error)
            if line is None:  # a wrong option, which typer explains itself, or a mistake of ours: keep its traceback
                raise
            _complain(f"error: {line}")
            raise typer.Exit(1) from error


app = typer.Typer(
    name="superb-lite",
    cls=Patient,
    help="SUPERB, the decathlon of self-supervised speech models, on a laptop.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Run the command line; ends with SystemExit."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # an arrow must not stop a run on an old Windows console
    app(prog_name="superb-lite")


def explain(error: BaseException) -> str | None:
    """The line to show for an error that a user can do something about, else None."""
    types = sys.modules.get("superb_lite.types")
    if types is not None and isinstance(error, types.SuperbLiteError):
        return " ".join(str(error).split())
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        where = f" ({error.filename})" if error.filename else ""
        return f"the disk is full{where}; make room, then {RESUME}"
    broken = getattr(error, "name", None) or ""
    if isinstance(error, ImportError) and broken.partition(".")[0] not in ("", "superb_lite"):
        return f"{error}; superb-lite doctor says what mends it"
    for name in ("torch", "torchaudio"):
        if _import_broke(name, error):
            return f"{name} does not load ({' '.join(str(error).split())[:160]}); superb-lite doctor says what mends it"
    return None


def _import_broke(package: str, error: BaseException) -> bool:
    """Was this error raised while `package` was being imported? Then it went through its files and left no module."""
    files = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
    return package not in sys.modules and any(package in Path(file).parts[:-1] for file in files)


def _complain(line: str) -> None:
    typer.secho(line, err=True, fg=typer.colors.RED)


# --------------------------------------------------------------------------------------------- doctor


@app.command()
def doctor() -> None:
    """Can this machine run the course?

    One line per check: what is there, what is wrong, and the command that mends it.
    The exit code is 0 if the course can run, else 1.

    \b
    Example:
      superb-lite doctor
    """
    from superb_lite.doctor import examine, exit_code

    colours = {"ok": typer.colors.GREEN, "warn": typer.colors.YELLOW, "fail": typer.colors.RED}
    report = examine()
    width = max(len(check.name) for check in report)
    for check in report:
        typer.secho(f"{check.status:4}", fg=colours[check.status], nl=False)
        typer.echo(f"  {check.name:{width}}  {check.says}" + (f"  ->  {check.fix}" if check.fix else ""))
    code = exit_code(report)
    typer.echo("this machine can run the course" if code == 0 else "the course cannot run here yet: mend what failed")
    raise typer.Exit(code)


# ------------------------------------------------------------------------------------------- olympics


@app.command()
def olympics(
    corpus: Annotated[str, typer.Option(help="The corpus to run on: mini, digits ...")] = "mini",
    from_path: Annotated[
        Path | None, typer.Option("--from", help="Take the recordings of --corpus digits from this archive or folder.")
    ] = None,
    upstreams: Annotated[
        str | None, typer.Option(help="Contestants  [default: fbank,random,tiny_hubert]")
    ] = None,
    everyone: Annotated[
        bool, typer.Option("--all", help="All contestants that are in the package; published ones must be named.")
    ] = False,
    tasks: Annotated[str | None, typer.Option(help="Events, such as ks,pr  [default: all the corpus has]")] = None,
    rounds: Annotated[str, typer.Option(help="1 is the last layer only, 2 the weighted sum of all.")] = "1,2",
    seeds: Annotated[int, typer.Option(min=1, help="Train each head so many times; shows mean and spread.")] = 1,
    search_lr: Annotated[
        bool, typer.Option("--search-lr", help="Try five learning rates per upstream, task and round, on dev.")
    ] = False,
    quick: Annotated[bool, typer.Option("--quick", help="A fifth of the steps: a first look, not a result.")] = False,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1 or mps.")] = "cpu",
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Heads to train at the same time  [default: one per core, at most 8; 1 on a GPU]"),
    ] = None,
    dask: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Train on the Dask cluster there, as in tcp://node7:8786.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for results.jsonl and table.csv, .png, .html.")] = Path(
        "superb_lite_results"
    ),
) -> None:
    """Run the decathlon and draw the table.

    Upstreams against tasks, in two rounds; a cell is black where an upstream is worse than Fbank.
    Stop it at any time: every number is on the disk at once, and the same command goes on from there.

    \b
    Examples:
      superb-lite olympics
      superb-lite olympics --quick
      superb-lite olympics --upstreams tiny_hubert,random --tasks ks --seeds 3
      superb-lite olympics --all --search-lr --seeds 3
      superb-lite olympics --corpus digits --from free-spoken-digit-dataset.tar.gz
    """
    if everyone and upstreams is not None:
        raise typer.BadParameter("--all and --upstreams exclude each other; name them all, or use --all alone")
    entered = {"upstreams": split_list(upstreams), "tasks": split_list(tasks), "rounds": find_rounds(rounds)}
    check_names(corpus, entered["upstreams"], entered["tasks"])
    if dask is None:
        check_device(device)
    if from_path is not None:
        take_corpus(corpus, from_path)

    from rich.console import Console

    from superb_lite import rounds as games
    from superb_lite.live import Screen
    from superb_lite.plan import LR_SEARCH
    from superb_lite.report import terminal, write_report

    started, console = time.perf_counter(), Console()
    if everyone:
        entered["upstreams"] = games.all_upstreams()
    with Screen(console) as screen:
        table = games.olympics(
            **entered,
            corpus=corpus,
            seeds=seeds,
            lr_factors=LR_SEARCH if search_lr else (1.0,),
            device=device,
            out=out,
            progress=screen.progress,
            on_score=screen.score,
            adjust=games.quick if quick else None,
            workers=usual_workers(device) if workers is None else workers,
            engine="local" if dask is None else "dask",
            address=dask,
        )
    console.print(terminal(table))
    written = write_report(table, out)
    console.print(f"{len(table)} numbers in {time.perf_counter() - started:.0f} s; written:", highlight=False)
    for path in (out / "results.jsonl", *written):
        typer.echo(f"  {path}")


def usual_workers(device: str) -> int:
    """One head per core, at most eight, since each wants memory of its own; one on a GPU."""
    from loky import cpu_count  # knows what this process may use, in containers too

    return min(8, cpu_count()) if device == "cpu" else 1


def split_list(text: str | None) -> tuple[str, ...] | None:
    """``"a, b"`` to ``("a", "b")``; None, the default, stays None. Raises typer.BadParameter for an empty list."""
    if text is None:
        return None
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not names:
        raise typer.BadParameter(f"{text!r} names nothing; expected names with commas between them, as in ks,pr")
    return names


def find_rounds(text: str) -> tuple[Round, ...]:
    """``"1,2"`` to rounds. Raises UnknownName."""
    from superb_lite.rounds import get_round

    return tuple(map(get_round, split_list(text) or ()))


def check_names(corpus: str, upstreams: tuple[str, ...] | None, tasks: tuple[str, ...] | None) -> None:
    """Look up every name before anything is computed. Raises UnknownName, suggesting the nearest one."""
    from superb_lite.corpora import get_corpus
    from superb_lite.tasks import get_task
    from superb_lite.upstreams import check_name

    get_corpus(corpus)
    for name in upstreams or ():
        check_name(name)
    for name in tasks or ():
        get_task(name).corpus(corpus)


def check_device(name: str) -> None:
    """Raises SuperbLiteError if torch has no such device on this machine."""
    import torch

    from superb_lite.types import SuperbLiteError

    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().partition("\n")[0]
        message = f"device {name!r} cannot be used here ({reason}); expected cpu, or cuda or mps where there is one"
        raise SuperbLiteError(message) from error


def take_corpus(corpus: str, path: Path) -> None:
    """Put the recordings at `path` where `corpus` looks for them.

    Raises CorpusMissing if they are not what the corpus needs, typer.BadParameter if it needs none.
    """
    from superb_lite.corpora import get_corpus

    module = get_corpus(corpus)
    if not hasattr(module, "locate"):
        raise typer.BadParameter(f"corpus {corpus!r} is inside the package; --from is for --corpus digits")
    module.locate(from_path=path)


# ------------------------------------------------------------------------------ upstreams and pretrain


@app.command()
def upstreams(as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False) -> None:
    """List the contestants.

    Size, stride, hidden states, licence, and where the weights are.

    \b
    Example:
      superb-lite upstreams --json
    """
    from superb_lite.upstreams import list_upstreams

    cards = list_upstreams()
    if as_json:
        import json

        typer.echo(json.dumps([card_record(card) for card in cards], indent=2, ensure_ascii=False))
        return
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    grid = Table(
        box=SIMPLE,
        caption="Published weights are fetched when they are first loaded (--json has the addresses), or taken from a "
        "file of yours: load_upstream(NAME, FILE).",
        caption_justify="left",
    )
    grid.add_column("name", no_wrap=True)
    for title in ("method", "size", "states", "stride", "licence", "weights"):
        grid.add_column(title, justify="right" if title in ("size", "states", "stride") else "left")
    for card in cards:
        size = f"{card.parameters / 1e6:.2f} M" if card.parameters else "0"
        states, stride = f"{card.layers} x {card.dim}", f"{card.stride / 16:g} ms"
        grid.add_row(card.name, card.method, size, states, stride, card.licence, card.source)
    Console().print(grid)


def card_record(card: Card) -> dict[str, Any]:
    """A card as plain values, without the function that builds the network."""
    from dataclasses import fields

    return {field.name: getattr(card, field.name) for field in fields(card) if field.name not in ("build", "read")}


@app.command()
def parity(
    folder: Annotated[Path, typer.Argument(help="Reference states of the official toolkit, a folder per family.")],
) -> None:
    """Compare our networks with the official toolkit, number by number.

    A row per folder: hidden states compared and the largest difference. Exit code 1 if one is above 2e-4.

    \b
    Example:
      superb-lite parity parity/upstreams
    """
    # Intel's FFT rounds differently on every processor, and a logarithm makes much of it where hardly a sound is; this
    # chooses the way of all processors, which the reference is nearest to. It must be said before the first FFT.
    os.environ["MKL_CBWR"] = "COMPATIBLE"
    from superb_lite.parity import TOLERANCE, compare

    worst = 0.0
    for row in compare(folder):
        typer.echo(f"{row.folder:26} {row.states:4} states   largest difference {row.gap:.1e}", nl=False)
        typer.echo("" if row.agrees else f"   MORE THAN {TOLERANCE:g}")
        worst = max(worst, row.gap)
    raise typer.Exit(0 if worst <= TOLERANCE else 1)


@app.command()
def pretrain(
    name: Annotated[str, typer.Argument(help="An upstream of ours, such as tiny_hubert.")],
    steps: Annotated[int | None, typer.Option(min=1, help="Optimiser steps  [default: the recipe's]")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1 or mps.")] = "cpu",
    out: Annotated[Path | None, typer.Option(help="Checkpoint to write (.safetensors)  [default: says where]")] = None,
) -> None:
    """Train a tiny upstream from nothing (phase 1).

    Without labels, on unlabelled speech. A stopped run resumes when the same command is given again.

    \b
    Example:
      superb-lite pretrain tiny_hubert --steps 200 --out my_hubert.safetensors
    """
    check_device(device)

    from rich.console import Console

    from superb_lite.live import Screen
    from superb_lite.pretrain import pretrain as run

    with Screen(Console()) as screen:
        written = run(name, steps=steps, device=device, out=out, progress=screen.progress)
    typer.echo(f"written: {written}")


# ---------------------------------------------------------------------------------------------- bench

app.add_typer(bench, name="bench")


# --------------------------------------------------------------------------------------------- course


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
)
def course(ctx: typer.Context) -> None:
    """Build or check the notebooks.

    ``build`` makes notebooks/ from solutions/, ``check`` proves what the course promises; --help says more.

    \b
    Example:
      superb-lite course check
    """
    from superb_lite.course.cli import app as course_app  # imported late: notebooks' helpers take a second to load

    typer.main.get_command(course_app)(args=ctx.args or ["--help"], prog_name="superb-lite course")


if __name__ == "__main__":
    main()
