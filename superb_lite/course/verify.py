"""Does the course keep its promises? Everything ``superb-lite course check`` looks at.

1. the exercises: references pass, typical wrong answers are rejected, each with its own message
2. the files: what a comparison of outputs does not see (static.py)
3. the two versions: building again would write the same sources, byte for byte
4. the outputs: all notebooks run again and compared strictly, inside their time

Taught nowhere: this is for authors, whose guide is README.md in this folder.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from superb_lite.course.build import (
    NAME,
    CourseBroken,
    Project,
    bare,
    dumps,
    kernel_environment,
    read,
    solved_version,
    sources,
    student_version,
)
from superb_lite.course.check import exercise_problems
from superb_lite.course.exercises import get_exercise, list_exercises
from superb_lite.course.static import MAX_MINUTES, static_problems

SANITIZE = Path(__file__).with_name("nbval_sanitize.cfg")
CELL_TIMEOUT_SEC = 300
MOST_AT_ONCE = 4  # kernels, each with up to two gigabytes
DAMAGED_RUN = 2  # pytest: 0 all passed, 1 some failed, 2 and more: it could not do its work


def verify(
    project: Project,
    names: Sequence[str] = (),
    *,
    execute: bool = True,
    minutes: float = MAX_MINUTES,
    say: Callable[[str], None] = print,
) -> list[str]:
    """All that is wrong with the course, a sentence each; an empty list means every promise is kept.

    Args:
        names:   beginnings of file names ("04"); none means all
        execute: also run the notebooks and compare their outputs (minutes instead of seconds)
        minutes: how long one notebook may run

    Raises:
        CourseBroken: there is no notebook, or pytest could not run.
    """
    paths = sources(project, names)
    problems = [] if names else [*orphans(project), *unused_exercises(project)]
    for key in list_exercises():
        problems += exercise_problems(get_exercise(key))
    for path in paths:
        problems += version_problems(path, project)
    say(f"{len(paths)} notebooks, {len(list_exercises())} exercises read: {_count(problems)}")
    if execute:
        there = [f for path in paths for f in (path, project.notebooks / path.name) if f.is_file()]
        problems += run_problems(project, there, minutes, say)
    return problems


def orphans(project: Project) -> list[str]:
    """Students' notebooks that no solution stands behind, and files whose name is none of a notebook."""
    found = []
    for folder in (project.solutions, project.notebooks):
        for path in sorted(folder.glob("*.ipynb")):
            if not NAME.fullmatch(path.name):
                found.append(f"{folder.name}/{path.name}: expected a name like 04_keyword_spotting.ipynb")
            elif not (project.solutions / path.name).is_file():
                found.append(f"{folder.name}/{path.name}: solutions/ has no notebook of that name")
    return found


def unused_exercises(project: Project) -> list[str]:
    """Exercises that no notebook asks for."""
    text = "\n".join(path.read_text(encoding="utf-8") for path in sources(project))
    return [f"exercise {key}: no notebook asks for it" for key in list_exercises() if key not in text]


def version_problems(path: Path, project: Project) -> list[str]:
    """Static faults of both versions of a notebook, and whether building would write other sources."""
    target = project.notebooks / path.name
    stored = read(path)
    problems = static_problems(stored, path, solved=True)
    if target.is_file():
        problems += static_problems(read(target), target, solved=False)
    try:
        solved = solved_version(stored, path.name, project)
        student = student_version(solved, path.name, project)
    except CourseBroken as error:
        return [*problems, str(error)]
    for wanted, file in ((solved, path), (student, target)):
        if not file.is_file():
            problems.append(f"{file.parent.name}/{file.name}: not there; run superb-lite course build")
        elif (place := first_change(dumps(wanted), _stored(file))) is not None:
            problems.append(f"{file.parent.name}/{file.name}: a build gives another file, {place}; build again")
    return problems


def _stored(path: Path) -> str:
    """The bytes of a stored notebook without outputs. What `dumps` cannot reproduce is a difference too."""
    nb = read(path)
    text = path.read_text(encoding="utf-8")
    return dumps(bare(nb)) if text == dumps(nb) else text


def first_change(wanted: str, stored: str) -> str | None:
    """Where two texts first differ, in words; None if they are the same, byte for byte."""
    if wanted == stored:
        return None
    ours, theirs = wanted.splitlines(), stored.splitlines()
    for number, line in enumerate(ours):
        if number >= len(theirs) or theirs[number] != line:
            found = theirs[number].strip()[:80] if number < len(theirs) else "the end"
            return f"expected {line.strip()[:80]!r}, found {found!r}"
    return "something follows its end"


# ----------------------------------------------------------------------------------------- running


def run_problems(project: Project, paths: Sequence[Path], minutes: float, say: Callable[[str], None]) -> list[str]:
    """Run notebooks, one per core at a time, and compare all outputs strictly. Features are stored once for all.

    Solved ones come first: the students' versions, which use the same features, then find them.
    """
    paths = sorted(paths, key=lambda path: (path.parent != project.solutions, path.name))
    missing = [name for name in ("pytest", "nbval") if importlib.util.find_spec(name) is None]
    if missing:
        raise CourseBroken(f"running the notebooks needs {' and '.join(missing)}: python -m pip install -e .[test]")
    with tempfile.TemporaryDirectory(prefix="superb_lite_") as folder, kernel_environment() as env:
        env.setdefault("SUPERB_LITE_CACHE", str(Path(folder, "cache")))
        found = _compare(project, paths, Path(folder), env)
        for path in paths:  # a kernel may miss its start on a crowded machine; that says nothing about the notebook
            if _name(path) in found.unstarted:
                say(f"{_name(path)}: its kernel did not start, once more")
                found = found.then(_compare(project, [path], Path(folder), env))
    names = [_name(path) for path in paths]
    seconds = {name: found.seconds[name] for name in names if name in found.seconds}  # the order of finishing is any
    for name, taken in seconds.items():
        say(f"{name}: {taken / 60:.1f} minutes")
    slow = [
        f"{name}: took {taken / 60:.1f} minutes, {minutes:g} are allowed; make it lighter"
        for name, taken in seconds.items()
        if taken > 60 * minutes
    ]
    unstarted = [f"{name}: its kernel did not start, twice" for name in names if name in found.unstarted]
    lost = [f"{name}: was not run at all" for name in names if name not in seconds]
    return [*found.failures, *slow, *unstarted, *lost]


@dataclass(frozen=True)
class Report:
    """What pytest says of some notebooks: cells that differ, as sentences; seconds; notebooks without a kernel."""

    failures: tuple[str, ...]
    seconds: dict[str, float]
    unstarted: frozenset[str]

    @classmethod
    def read(cls, path: Path) -> Report:
        """From pytest's XML, in which a cell whose kernel did not start is an error, not a failure."""
        failures, seconds, unstarted = [], {}, set()
        for case in ET.parse(path).getroot().iter("testcase"):
            name = notebook_of(case.get("classname", ""), case.get("name", ""))
            seconds[name] = seconds.get(name, 0.0) + float(case.get("time", 0))
            if case.find("error") is not None:
                unstarted.add(name)
            elif case.find("failure") is not None:
                failures.append(f"{name}, {case.get('name', '').split('::')[-1]}: does not give the stored output")
        return cls(tuple(failures), seconds, frozenset(unstarted))

    def then(self, other: Report) -> Report:
        """With what a later run found; it knows better about the notebooks in it."""
        unstarted = (self.unstarted - other.seconds.keys()) | other.unstarted
        return Report((*self.failures, *other.failures), self.seconds | other.seconds, unstarted)


def _compare(project: Project, paths: Sequence[Path], folder: Path, env: dict[str, str]) -> Report:
    """One run of pytest over these notebooks. Raises CourseBroken if it could not do its work."""
    report, ini = folder / "report.xml", folder / "pytest.ini"
    report.unlink(missing_ok=True)
    ini.write_text("[pytest]\n")  # not the checkout's own settings: they are for its tests
    parallel = _parallel(paths)
    if "-n" in parallel:
        env = env | {"OMP_NUM_THREADS": "1"}  # kernels that share a core slow each other down tenfold
    command = _command(project, paths, parallel, ini, report)
    done = subprocess.run(command, env=env, cwd=project.root, check=False)
    if done.returncode >= DAMAGED_RUN or not report.is_file():
        raise CourseBroken(f"pytest ended with code {done.returncode} and compared nothing; its words are above")
    return Report.read(report)


def _name(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"


def _parallel(paths: Sequence[Path]) -> list[str]:
    """Options of pytest that give each core a notebook; none for a single notebook or core, or without pytest-xdist."""
    from loky import cpu_count

    count = min(cpu_count(), len(paths), MOST_AT_ONCE)
    if count < 2 or importlib.util.find_spec("xdist") is None:
        return ["-p", "no:xdist"]
    return ["-n", str(count), "--dist", "loadscope"]


def _command(project: Project, paths: Sequence[Path], parallel: Sequence[str], ini: Path, report: Path) -> list[str]:
    plugins = ["-p", "no:cacheprovider", "-p", "no:randomly", *parallel]
    options = [
        "--nbval",
        "--nbval-current-env",
        f"--nbval-sanitize-with={SANITIZE}",
        f"--nbval-cell-timeout={CELL_TIMEOUT_SEC}",
        "--nbval-kernel-startup-timeout=120",
        f"--junitxml={report}",
    ]
    where = [f"--rootdir={project.root}", "-c", str(ini), "--no-header", "-q"]
    return [sys.executable, "-m", "pytest", *plugins, *options, *where, *map(os.fspath, paths)]


def notebook_of(classname: str, name: str) -> str:
    """``solutions/04_ks.ipynb`` from what pytest calls a cell."""
    return classname.removesuffix(".ipynb").replace(".", "/") + ".ipynb"


def _count(problems: Sequence[str]) -> str:
    return "no problem" if not problems else f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
