"""What a comparison of outputs does not see: faults of a notebook that can be read off its file.

Each check is a function (notebook, about where) -> sentences, and ``CHECKS`` lists them.

Taught nowhere: this is for authors, whose guide is README.md in this folder.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from superb_lite.course.build import STUB, WIDGET_VIEW
from superb_lite.course.exercises import list_exercises

if TYPE_CHECKING:
    from nbformat import NotebookNode

TAGS = ("nbval-ignore-output", "nbval-skip", "nbval-raises-exception", "nbval-check-output", "raises-exception")
RAISING = ("raises-exception", "nbval-raises-exception")
MARKERS = ("NBVAL_IGNORE_OUTPUT", "NBVAL_SKIP", "NBVAL_RAISES_EXCEPTION", "NBVAL_CHECK_OUTPUT")
# (cell type, grade, solution, locked, task) of the roles in README.md; the two with points come last
ROLES = {
    ("code", False, True, False, False): "answer",
    ("code", True, False, True, False): "test",
    ("markdown", True, True, False, False): "written answer",
    ("markdown", False, False, True, True): "open task",
}
GRADE_KEYS = {"schema_version", "grade_id", "grade", "solution", "locked", "task", "points", "cell_type"}
MAX_BYTES = 1_000_000
MAX_MINUTES, MAX_MEMORY_GB = 3, 3


@dataclass(frozen=True)
class Seen:
    """A notebook under inspection: its cells, where it lies and whether it is the solved version."""

    nb: NotebookNode
    path: Path
    solved: bool

    @property
    def code(self) -> list[NotebookNode]:
        return [cell for cell in self.nb.cells if cell.cell_type == "code"]

    def calls(self, name: str) -> list[tuple[NotebookNode, str]]:
        """(cell, key) of each call of `name` with an exercise key, in order."""
        pattern = re.compile(rf"""(?m)^[^#\n]*\b{name}\(\s*["']([^"']+)["']""")
        return [(cell, key) for cell in self.code for key in pattern.findall(cell.source)]


def static_problems(nb: NotebookNode, path: Path, *, solved: bool) -> list[str]:
    """Everything wrong with the file of a notebook, a sentence each; an empty list is good."""
    seen = Seen(nb, path, solved)
    return [f"{path.parent.name}/{path.name}: {problem}" for look in CHECKS for problem in look(seen)]


# ------------------------------------------------------------------------------------------- file


def about_the_file(seen: Seen) -> Iterator[str]:
    if (size := seen.path.stat().st_size) >= MAX_BYTES:
        yield f"the file has {size / 1e6:.2f} MB, less than 1 is allowed; fewer or shorter sounds and pictures"
    if seen.nb.metadata.get("kernelspec", {}).get("name") != "python3":
        yield "the kernel is not called python3; run superb-lite course build"
    if "widgets" in seen.nb.metadata:
        yield "widget state is stored, which GitHub refuses; run superb-lite course build"
    heads = [cell for cell in seen.nb.cells if cell.cell_type == "markdown" and re.search(r"(?m)^# ", _prose(cell))]
    if len(heads) != 1:
        yield f"{len(heads)} cells have a heading of the first rank, expected one (the header); use ## and ###"
    if not any(cell.metadata.get("superb_lite", {}).get("role") == "setup" for cell in seen.code):
        yield 'no set-up cell; give an empty code cell the metadata "superb_lite": {"role": "setup"}'


def about_the_costs(seen: Seen) -> Iterator[str]:
    about = seen.nb.metadata.get("superb_lite", {})
    for key, limit in (("minutes", MAX_MINUTES), ("memory_gb", MAX_MEMORY_GB)):
        value = about.get(key)
        if value is None:
            yield f"{key} is not measured; run superb-lite course build --measure"
        elif value > limit:
            yield f"{key} is {value:g}, at most {limit} is promised; make the notebook lighter"
    if about.get("difficulty") not in (1, 2, 3):
        yield f"difficulty is {about.get('difficulty')!r}, expected 1, 2 or 3"


# ------------------------------------------------------------------------------------------ outputs


def about_running(seen: Seen) -> Iterator[str]:
    counts = [cell.execution_count for cell in seen.code]
    if counts != list(range(1, len(counts) + 1)):
        yield f"execution counts are {counts}, expected 1 to {len(counts)} (an unrun or empty cell is never compared)"


def about_outputs(seen: Seen) -> Iterator[str]:
    private = {str(Path.home()) + "/", str(seen.path.resolve().parents[1]) + "/"}
    for cell in seen.code:
        tags = cell.metadata.get("tags", [])
        for output in cell.outputs:
            kinds = output.get("data", {})
            text = "".join([output.get("text", ""), *(v for k, v in kinds.items() if k.startswith("text/"))])
            if output.output_type == "error" and not set(tags) & set(RAISING):
                yield f"cell {cell.id}: stored error {output.ename}, without the tag raises-exception"
            if output.get("name") == "stderr":
                yield f"cell {cell.id}: writes to stderr ({text.strip()[:80]!r}); remove the cause"
            if WIDGET_VIEW in kinds:
                yield f"cell {cell.id}: a widget view is stored; run superb-lite course build"
            if "image/svg+xml" in kinds:
                yield f"cell {cell.id}: an SVG picture, which differs between runs; show a PNG"
            if any(folder in text for folder in private):
                yield f"cell {cell.id}: shows a folder of this machine; print names without folders"


def about_pictures(seen: Seen) -> Iterator[str]:
    for cell, following in zip(seen.nb.cells, [*seen.nb.cells[1:], None], strict=True):
        drawn = any("image/png" in output.get("data", {}) for output in cell.get("outputs", ()))
        if drawn and (following is None or following.cell_type != "markdown"):
            yield f"cell {cell.id}: no sentence under its picture; say in a text cell what it shows"


# ------------------------------------------------------------------------------------------- source


def about_code(seen: Seen) -> Iterator[str]:
    for cell in seen.code:
        lines = [line for line in cell.source.splitlines() if line.strip() and not line.lstrip().startswith("#")]
        if lines and lines[-1].split("  #")[0].rstrip().endswith(";"):
            yield f"cell {cell.id}: ends with a semicolon, which the comparison does not honour; plt.show() or _ = ..."
        if any(re.match(r"\s*%%?time", line) for line in lines):
            yield f"cell {cell.id}: %time prints durations, which never agree; print a threshold"


def about_markers(seen: Seen) -> Iterator[str]:
    for cell in seen.nb.cells:
        for tag in cell.metadata.get("tags", []):
            plain = re.sub(r"[^a-z]", "", tag.lower())
            if tag not in TAGS and ("nbval" in plain or "raises" in plain or "ignoreoutput" in plain):
                yield f"cell {cell.id}: the tag {tag!r} is ignored; the tags are {', '.join(TAGS)}"
        for line in cell.source.splitlines() if cell.cell_type == "code" else ():
            if re.search(r"#.*nbval[_ -]", line, re.IGNORECASE) and line.strip() not in {f"# {m}" for m in MARKERS}:
                yield f"cell {cell.id}: the marker {line.strip()!r} is ignored; better use a tag"


# ----------------------------------------------------------------------------------------- exercises


def about_grading(seen: Seen) -> Iterator[str]:
    for cell in seen.nb.cells:
        grader = cell.metadata.get("nbgrader")
        if grader is None:
            continue
        name = f"cell {grader.get('grade_id', cell.id)}"
        flags = tuple(bool(grader.get(key)) for key in ("grade", "solution", "locked", "task"))
        role = ROLES.get((cell.cell_type, *flags))
        if role is None:
            yield f"{name}: grade, solution, locked, task = {flags} is no role of a {cell.cell_type} cell"
        elif role != "answer" and not grader.get("points"):
            yield f"{name}: a {role} needs points"
        if grader.get("schema_version") != 3 or set(grader) - GRADE_KEYS:
            yield f"{name}: nbgrader metadata must have schema_version 3 and only {', '.join(sorted(GRADE_KEYS))}"
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", str(grader.get("grade_id", ""))):
            yield f"{name}: a grade_id has only letters, digits, _ and -"


def about_exercises(seen: Seen) -> Iterator[str]:
    known = list_exercises()
    checked = seen.calls("check")
    for name in ("check", "carry_on", "hint"):
        for cell, key in seen.calls(name):
            if key not in known:
                yield f"cell {cell.id}: {name} asks for {key!r}, and there is no such exercise"
    for key in dict.fromkeys(key for _, key in checked):
        for name in ("carry_on", "hint"):
            if key not in [called for _, called in seen.calls(name)]:
                yield f"{key} has a check and no {name}({key!r}, ...)"
    for cell, key in checked:
        if not cell.metadata.get("nbgrader", {}).get("grade"):
            continue  # a demonstration
        wanted = f"{key} passed" if seen.solved else f"{key} not tried yet"
        printed = "".join(output.get("text", "") for output in cell.outputs)
        if wanted not in printed:
            yield f"cell {cell.id}: expected it to print {wanted!r}, found {printed.strip()[:120]!r}"


def about_versions(seen: Seen) -> Iterator[str]:
    text = "\n".join(cell.source for cell in seen.nb.cells)
    found = re.findall(r"### (?:BEGIN|END) (?:SOLUTION|HIDDEN TESTS)", text)
    answers = [cell for cell in seen.code if cell.metadata.get("nbgrader", {}).get("solution")]
    if not seen.solved and found:
        yield f"the student version has a line {found[0]!r}; run superb-lite course build"
    if not seen.solved and any(STUB not in cell.source for cell in answers):
        yield "an answer cell of the student version has no stub; run superb-lite course build"


def _prose(cell: NotebookNode) -> str:
    """A text cell without its code blocks, where # is a comment."""
    return re.sub(r"(?s)```.*?```", "", cell.source)


CHECKS = (
    about_the_file,
    about_the_costs,
    about_running,
    about_outputs,
    about_pictures,
    about_code,
    about_markers,
    about_grading,
    about_exercises,
    about_versions,
)
