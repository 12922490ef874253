"""Students' notebooks from solutions: one source, two versions, the same bytes every time.

``solutions/NN_topic.ipynb`` is the only source. Building puts the header, the set-up cell and the footer in,
gives cells stable ids, runs the notebook and stores cleaned outputs; then it takes the solutions and hidden tests
out and does the same for ``notebooks/NN_topic.ipynb``.

Taught nowhere: this is for authors, whose guide is README.md in this folder.
"""

from __future__ import annotations

import ast
import base64
import copy
import math
import os
import re
import subprocess
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from superb_lite.files import write_atomically
from superb_lite.types import SuperbLiteError, UnknownName

if TYPE_CHECKING:
    from nbformat import NotebookNode

NAME = re.compile(r"\d\d_\w+\.ipynb")
STUB = "pass  # YOUR CODE HERE"
TEXT_STUB = "*Your answer here.*"
KEEP = ("cellView", "jupyter", "nbgrader", "superb_lite", "tags")  # the cell metadata that is ours
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
BRANCH = "main"
CELL_TIMEOUT_SEC = 600


class CourseBroken(SuperbLiteError):
    """A notebook of the course cannot be built, or does not keep what course.md promises."""


@dataclass(frozen=True)
class Project:
    """The checkout that is worked on: its folder, and its address on the web as pyproject.toml gives it."""

    root: Path
    repository: str

    @property
    def solutions(self) -> Path:
        return self.root / "solutions"

    @property
    def notebooks(self) -> Path:
        return self.root / "notebooks"

    @property
    def on_github(self) -> str:
        """``owner/name``, or "" if the address is elsewhere."""
        found = re.fullmatch(r"https://github\.com/([\w.-]+/[\w.-]+?)(\.git)?/?", self.repository)
        return found.group(1) if found else ""


def find_project(start: Path | None = None) -> Project:
    """The checkout around `start` (default: where you stand). Raises CourseBroken if there is none."""
    here = Path.cwd() if start is None else start
    for folder in (here, *here.resolve().parents):
        if (folder / "solutions").is_dir() and (folder / "pyproject.toml").is_file():
            text = (folder / "pyproject.toml").read_text(encoding="utf-8")
            urls = tomllib.loads(text).get("project", {}).get("urls", {})
            return Project(folder.resolve(), urls.get("Repository", ""))
    raise CourseBroken(f"no solutions/ beside a pyproject.toml in {here} or above it; cd to a checkout of the course")


def sources(project: Project, names: Sequence[str] = ()) -> list[Path]:
    """The solved notebooks, all or those whose name starts with one of `names`. Raises UnknownName, CourseBroken."""
    found = sorted(path for path in project.solutions.glob("*.ipynb") if NAME.fullmatch(path.name))
    if not found:
        raise CourseBroken(f"{project.solutions} has no notebook called NN_topic.ipynb; there is nothing to build")
    for name in names:
        if not any(path.name.startswith(name) for path in found):
            raise UnknownName.among("notebook", name, [path.stem for path in found])
    return [path for path in found if not names or path.name.startswith(tuple(names))]


def build(
    project: Project, names: Sequence[str] = (), *, measure: bool = False, say: Callable[[str], None] = print
) -> list[Path]:
    """Build both versions of the notebooks; returns the files written.

    Args:
        names:   beginnings of file names ("04"); none means all
        measure: take time and memory with nothing stored beforehand, and write them into the headers

    Raises:
        CourseBroken: a notebook has no title, a cell that fails, or markers in the wrong place. Nothing of that
            notebook is written then.
    """
    written = []
    for path in sources(project, names):
        started = time.perf_counter()
        solved = solved_version(read(path), path.name, project)
        if measure:
            _measure(solved, path)
            solved = solved_version(solved, path.name, project)
        student = student_version(solved, path.name, project)
        results = []
        for nb, folder in ((solved, project.solutions), (student, project.notebooks)):
            run(nb, folder / path.name)
            results.append((folder / path.name, dumps(nb)))
        for target, text in results:
            write_atomically(target, text.encode())
            written.append(target)
        say(f"{path.name}: built in {time.perf_counter() - started:.0f} s")
    return written


# ------------------------------------------------------------------------------------ two versions


def solved_version(nb: NotebookNode, name: str, project: Project) -> NotebookNode:
    """The source with header, set-up, footer and stable ids, without outputs. `nb` is left as it is."""
    nb = bare(nb)
    about = describe(nb, name)
    body = [cell for cell in nb.cells if _role(cell) not in ("header", "footer")]
    for cell in body:
        if _role(cell) == "setup":
            cell.source = setup_source(project)
            cell.metadata["tags"] = ["nbval-ignore-output"]
        if cell.cell_type == "code" and _only_asks(cell.source):
            cell.metadata |= {"jupyter": {"source_hidden": True}, "cellView": "form"}  # JupyterLab's word, and Colab's
        if _is(cell, "solution") and cell.cell_type == "code" and "### BEGIN SOLUTION" not in cell.source:
            raise CourseBroken(f"{name}: cell {cell.metadata.nbgrader.grade_id!r} lacks a line ### BEGIN SOLUTION")
    nb.cells = [_markdown("header", header(about, project, solved=True)), *body, _markdown("footer", footer())]
    set_ids(nb)
    return nb


def _only_asks(source: str) -> bool:
    """Is there nothing in a cell but questions to the reader? Their answers stand in its code."""
    try:
        lines = ast.parse(source).body
    except SyntaxError:  # a magic command
        return False
    calls = [line.value for line in lines if isinstance(line, ast.Expr) and isinstance(line.value, ast.Call)]
    return len(lines) == len(calls) > 0 and all(ast.unparse(call.func) in ("predict", "quiz") for call in calls)


def student_version(solved: NotebookNode, name: str, project: Project) -> NotebookNode:
    """The same notebook with stubs for solutions and without hidden tests (nbgrader does it), without outputs."""
    try:
        from nbgrader.preprocessors import ClearHiddenTests, ClearSolutions
    except ImportError as error:
        raise CourseBroken(f"building needs nbgrader ({error}): python -m pip install -e .[test]") from error
    nb = bare(solved)
    steps = (ClearSolutions(code_stub={"python": STUB}, text_stub=TEXT_STUB), ClearHiddenTests())
    for step in steps:
        step.log.disabled = True  # the error below says it with the place
        for index, cell in enumerate(nb.cells):
            try:
                step.preprocess_cell(cell, {"language": "python"}, index)
            except RuntimeError as error:
                raise CourseBroken(f"{name}, cell {index + 1} ({cell.id}): {error}") from error
    for cell in nb.cells:
        cell.source = cell.source.rstrip()
    nb.cells[0].source = header(describe(nb, name), project, solved=False)
    return nb


def bare(nb: NotebookNode) -> NotebookNode:
    """A copy with our metadata only, and without outputs and execution counts: what authors write."""
    nb = copy.deepcopy(nb)
    clean(nb)
    for cell in nb.cells:
        cell.source = cell.source.rstrip()
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    return nb


def clean(nb: NotebookNode) -> None:
    """Take out, in place, all that a second run would write differently or another machine would stumble over."""
    ours = nb.metadata.get("superb_lite", {})
    nb.metadata.clear()
    nb.metadata.update(
        kernelspec={"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
        language_info={"name": "python"},
        superb_lite=ours,
    )
    nb.nbformat, nb.nbformat_minor = 4, 5
    for cell in nb.cells:
        cell.metadata = type(cell.metadata)({key: cell.metadata[key] for key in KEEP if cell.metadata.get(key)})
        for output in cell.get("outputs", ()):
            output.get("data", {}).pop(WIDGET_VIEW, None)
            if "metadata" in output:
                output["metadata"] = {}


def set_ids(nb: NotebookNode) -> None:
    """Give every cell an id that stays: its role, its grade id, or its section and place in it. In place."""
    taken: set[str] = set()
    section, place = "start", 0
    for cell in nb.cells:
        place += 1
        if cell.cell_type == "markdown" and (heading := re.match(r"#{1,4} +(.+)", cell.source)):
            section, place = _slug(heading.group(1)), 1
        grade_id = cell.metadata.get("nbgrader", {}).get("grade_id")
        wanted = grade_id or _role(cell) or f"{section}-{place}"
        name, copies = wanted, 1
        while name in taken:
            copies += 1
            name = f"{wanted}-again{copies}"
        taken.add(name)
        cell["id"] = name


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:40].strip("-") or "section"


def _role(cell: NotebookNode) -> str:
    return cell.metadata.get("superb_lite", {}).get("role", "")


def _is(cell: NotebookNode, what: str) -> bool:
    return bool(cell.metadata.get("nbgrader", {}).get(what))


def _markdown(role: str, source: str) -> NotebookNode:
    from nbformat.v4 import new_markdown_cell

    return new_markdown_cell(source, id=role, metadata={"superb_lite": {"role": role}})


# ------------------------------------------------------------------------------------- built cells


def describe(nb: NotebookNode, name: str) -> dict[str, Any]:
    """What a notebook says about itself in its metadata, with its number and file name. Raises CourseBroken."""
    about = dict(nb.metadata.get("superb_lite", {}))
    if not about.get("title"):
        wanted = '"superb_lite": {"title": ..., "difficulty": 1}'
        raise CourseBroken(f"{name}: the notebook's metadata have no title; expected {wanted}")
    return about | {"number": name[:2], "file": name}


def header(about: dict[str, Any], project: Project, *, solved: bool) -> str:
    """The first cell: title, links to both versions, what the notebook costs."""
    dots = int(about.get("difficulty", 1))
    costs = [_minutes(about, "minutes", "on 2 CPU cores")]
    if about.get("minutes_t4") is not None:
        costs.append(_minutes(about, "minutes_t4", "on a T4 GPU"))
    if about.get("memory_gb") is not None:
        costs.append(f"{about['memory_gb']:g} GB of memory")
    costs.append(f"difficulty {'●' * dots}{'○' * (3 - dots)}")
    versions = [_links(about["file"], folder, words, project) for folder, words in _VERSIONS]
    lines = [f"# {about['number']} · {about['title']}", " · ".join(costs), " · ".join(versions)]
    if solved:
        lines.append("*This is the solved version: every exercise has its answer.*")
    return "\n\n".join(lines)


_VERSIONS = (("notebooks", "to work on"), ("solutions", "solved"))


def _minutes(about: dict[str, Any], key: str, where: str) -> str:
    minutes = about.get(key)
    if minutes is None:
        return f"time {where} not measured"
    return f"{minutes:g} {'minute' if minutes <= 1 else 'minutes'} {where}"


def _links(file: str, folder: str, words: str, project: Project) -> str:
    """Links, not pictures of badges: a picture would be fetched from the web each time the notebook opens."""
    here = f"[{words}](../{folder}/{file})"
    if not project.on_github:
        return here
    page = f"{project.on_github}/blob/{BRANCH}/{folder}/{file}"
    return f"{here} ([Colab](https://colab.research.google.com/github/{page}), [GitHub](https://github.com/{page}))"


def footer() -> str:
    """The last cell: how to cite, and the licences."""
    return """---

**To cite**: the benchmark is S. Yang et al., *SUPERB: Speech processing Universal PERformance Benchmark*,
Interspeech 2021, [doi:10.21437/Interspeech.2021-1775](https://doi.org/10.21437/Interspeech.2021-1775);
for this course see `CITATION.cff` in its repository.

**Licences**: code MIT; text and pictures CC BY 4.0; the built-in synthetic speech is part of this course and shares
its licences; recordings of the Free Spoken Digit Dataset, where they are used, CC BY-SA 4.0."""


def setup_source(project: Project) -> str:
    """The set-up cell: installs on Colab, explains elsewhere, prints one line. Safe to run twice.

    On Colab the packages that are there stay as they are: pip may only add to them, or stop.
    """
    explain = 'raise ModuleNotFoundError("Install the course first, beside its README: pip install -e .[lab]")'
    check = "from superb_lite.course import preflight\n\npreflight()"
    if not project.repository:
        lines = ["import importlib.util", "", f'if importlib.util.find_spec("superb_lite") is None:\n    {explain}']
        return "\n".join(lines) + "\n" + check
    return f'''import importlib.metadata as md
import importlib.util
import sys

if importlib.util.find_spec("superb_lite") is None:
    if "google.colab" not in sys.modules:
        {explain}
    have = {{d.metadata["Name"].lower() for d in md.distributions()}}
    keep = [p for p in ("torch", "torchaudio", "numpy", "pandas", "ipython", "ipykernel", "ipywidgets") if p in have]
    with open("keep.txt", "w") as file:
        file.write("\\n".join(f"{{p}}=={{md.version(p)}}" for p in keep))
    %pip install -q -c keep.txt "superb-lite @ git+{project.repository}@{BRANCH}"

{check}'''


# ------------------------------------------------------------------------------------------ running


@contextmanager
def kernel_environment() -> Iterator[dict[str, str]]:
    """The environment notebooks run in: this package, a results card and a profile of their own, no grader."""
    import superb_lite

    hidden = ("NBGRADER_EXECUTION", "SUPERB_LITE_CHECK_SEED", "MPLBACKEND", "PYTHONWARNINGS", "PYTEST_CURRENT_TEST")
    env = {key: value for key, value in os.environ.items() if key not in hidden}
    package = str(Path(superb_lite.__file__).resolve().parents[1])
    path = [package, *filter(None, [env.get("PYTHONPATH")])]
    with tempfile.TemporaryDirectory(prefix="superb_lite_") as folder:
        yield env | {
            "PYTHONPATH": os.pathsep.join(path),
            "IPYTHONDIR": str(Path(folder, "ipython")),
            "SUPERB_LITE_CARD": str(Path(folder, "results_card.jsonl")),
        }


def run(nb: NotebookNode, path: Path, env: dict[str, str] | None = None) -> None:
    """Run all cells of `nb` in the folder of `path` with this Python, and clean what they leave. In place.

    Raises:
        CourseBroken: a cell failed or took too long; the message names it.
    """
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

    path.parent.mkdir(parents=True, exist_ok=True)
    with kernel_environment() as default:
        client = _client(nb, path.parent)
        try:
            client.execute(env=default | (env or {}), stderr=subprocess.DEVNULL)  # the kernel's own chatter
        except CellExecutionError as error:
            cell = next(cell for cell in nb.cells if any(o.output_type == "error" for o in cell.get("outputs", ())))
            said = f"{error.ename}: {error.evalue}"
            raise CourseBroken(f"{path.parent.name}/{path.name}, cell {cell.id!r} failed: {said}") from error
        except (CellTimeoutError, DeadKernelError) as error:
            line = str(error).strip().splitlines()[0]
            raise CourseBroken(f"{path.parent.name}/{path.name}: {line}") from error
    clean(nb)
    lighten(nb)


def lighten(nb: NotebookNode) -> None:
    """Store the pictures of cells with fewer colours, in place: they are most of what a notebook weighs."""
    from superb_lite.course.display import lighter

    for cell in nb.cells:
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            if "image/png" in data:
                data["image/png"] = base64.b64encode(lighter(base64.b64decode(data["image/png"]))).decode()


def _client(nb: NotebookNode, folder: Path) -> Any:
    """A client whose kernel is this very Python, whatever kernels the user has installed."""
    from ipykernel.kernelspec import RESOURCES, get_kernel_dict
    from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
    from nbclient import NotebookClient

    class ThisPython(KernelSpecManager):
        def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
            return KernelSpec(resource_dir=RESOURCES, **get_kernel_dict())

    class Client(NotebookClient):
        def create_kernel_manager(self) -> Any:
            manager = super().create_kernel_manager()
            manager.kernel_spec_manager = ThisPython(parent=manager)
            return manager

    return Client(
        nb,
        timeout=CELL_TIMEOUT_SEC,
        kernel_name="python3",
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(folder)}},
    )


def _measure(solved: NotebookNode, path: Path) -> None:
    """Run a copy with an empty cache, and note minutes (to the next half) and peak memory (to the next 0.1 GB)."""
    from nbformat.v4 import new_code_cell

    nb = copy.deepcopy(solved)
    peak = "from superb_lite.bench.machine import peak_bytes\n\nprint(peak_bytes())"
    nb.cells.append(new_code_cell(peak, id="peak-memory"))
    with tempfile.TemporaryDirectory(prefix="superb_lite_") as cache:
        started = time.perf_counter()
        run(nb, path, {"SUPERB_LITE_CACHE": cache})
        seconds = time.perf_counter() - started
    size = int(nb.cells[-1].outputs[0].text)
    about = solved.metadata["superb_lite"]
    about["minutes"] = math.ceil(seconds / 30) / 2
    about["memory_gb"] = math.ceil(size / 1e8) / 10


# ---------------------------------------------------------------------------------------------- files


def read(path: Path) -> NotebookNode:
    """A notebook file. Raises CourseBroken if it is none."""
    import nbformat

    try:
        return nbformat.read(path, as_version=4)
    except (OSError, ValueError, KeyError, AttributeError, nbformat.reader.NotJSONError) as error:
        line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CourseBroken(f"{path} is not a readable notebook: {line[:200]}") from error


def dumps(nb: NotebookNode) -> str:
    """A notebook as the bytes we store: keys in order, one blank indent, a newline at the end."""
    import json

    import nbformat

    nbformat.validate(nb)
    plain = nbformat.v4.rwbase.split_lines(copy.deepcopy(nb))
    return json.dumps(plain, indent=1, ensure_ascii=False, sort_keys=True) + "\n"
