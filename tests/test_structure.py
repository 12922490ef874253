"""The package's shape: who may import whom, checks that cannot fail, and an import that does nothing.

Each rule is a small function over a syntax tree; it is first shown a piece of code that breaks it.
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "superb_lite"

LEVELS = {
    "types": 0,
    **dict.fromkeys(["audio", "files", "text", "lm", "metrics", "losses", "heads", "dtw", "_eviction"], 1),
    **dict.fromkeys(["corpora", "upstreams", "_shards"], 2),
    **dict.fromkeys(["features", "tasks"], 3),
    **dict.fromkeys(["batches", "probe", "results"], 4),
    **dict.fromkeys(["published", "plan", "engines", "rounds", "parity"], 5),
    **dict.fromkeys(["plots", "report", "course", "doctor", "testing", "cli", "bench", "live", "pretrain"], 6),
    **dict.fromkeys(["__init__", "__main__"], 7),
}
STRANGERS = [("tasks", "upstreams"), ("upstreams", "tasks")]  # never, in either direction
HEAVY = ["matplotlib", "pandas", "IPython", "ipywidgets", "seaborn", "transformers", "dask"]  # imported where used

SOURCES = sorted(PACKAGE.rglob("*.py"))
CHECKED = SOURCES + sorted((ROOT / "tests").rglob("*.py")) + sorted((ROOT / "data_scripts").rglob("*.py"))


def name_of(path):
    return str(path.relative_to(ROOT))


def last_name(node):
    """``c`` of the expression ``a.b.c``, or of ``c`` alone."""
    return getattr(node, "attr", getattr(node, "id", None))


# ---------------------------------------------------------------------------------------- import order


def own_imports(tree, package):
    """The package's own modules that a file imports anywhere, as dotted names below ``superb_lite``.

    `package` is the dotted package of the file, for relative imports.
    """
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            base = parts[: len(parts) - node.level + 1] if node.level else []
            base = ".".join([*base, *([node.module] if node.module else [])])
            found += [f"{base}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Call) and last_name(node.func) == "import_module":
            found += [arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
    found = [name.split(".")[1:] for name in found if name.split(".")[0] == "superb_lite"]
    return [".".join(name) for name in found if name and name != ["__version__"]]


def part_of(dotted):
    """The first name of a module below the package; a name that is no module lives in ``__init__``."""
    head = dotted.split(".")[0]
    return head if head in LEVELS else "__init__"


def order_violations(source, module):
    """Imports of `module` (dotted, below the package) that go up, or between tasks and upstreams."""
    part = part_of(module) if module else "__init__"
    package = ".".join(["superb_lite", *module.split(".")[:-1]])
    wrong = []
    for name in own_imports(ast.parse(source), package):
        other = part_of(name)
        if LEVELS[other] > LEVELS[part] or (part, other) in STRANGERS:
            wrong.append(f"{part} (level {LEVELS[part]}) imports {name} (level {LEVELS[other]})")
    return wrong


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("audio", "from superb_lite.probe import fit"),
        ("audio", "from superb_lite import features"),
        ("audio", "import superb_lite.rounds as r"),
        ("audio", "from superb_lite import fit"),
        ("heads", "def f():\n    from . import tasks"),
        ("corpora.digits", "from ..features import FeatureStore"),
        ("tasks.ks", "from superb_lite.upstreams import load_upstream"),
        ("upstreams.hubert", "from superb_lite.tasks import get_task"),
        ("types", "import importlib\nimportlib.import_module('superb_lite.text')"),
    ],
)
def test_the_order_rule_notices(module, source):
    assert len(order_violations(source, module)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("probe", "from superb_lite.tasks import get_task\nfrom superb_lite import upstreams"),
        ("corpora.digits", "from ..text import PhoneVocab\nfrom . import _helper\nimport torch"),
        ("rounds", "from superb_lite import __version__"),
    ],
)
def test_the_order_rule_allows(module, source):
    assert order_violations(source, module) == []


def test_every_module_has_a_level():
    parts = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in SOURCES}
    assert parts <= set(LEVELS), f"give {sorted(parts - set(LEVELS))} a level in this test"


# the top of the package may import everything
@pytest.mark.parametrize("path", [path for path in SOURCES if path != PACKAGE / "__init__.py"], ids=name_of)
def test_lower_levels_never_import_higher(path):
    module = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    assert order_violations(path.read_text(encoding="utf-8"), module) == []


# -------------------------------------------------------------------- code that cannot do what it says


COMPARERS = {"allclose", "isclose", "equal", "array_equal"}


def idle_checks(tree):
    """Comparisons whose result is thrown away, ``x = x or ...``, and eval; as (line, what)."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Compare):
            found.append((node.lineno, "a comparison on a line of its own"))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            if last_name(node.value.func) in COMPARERS:
                found.append((node.lineno, "a comparing call whose answer is not used"))
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.BoolOp) and isinstance(node.value.op, ast.Or):
            if ast.unparse(node.value.values[0]) in {ast.unparse(target) for target in node.targets}:
                found.append((node.lineno, "x = x or ..., which swallows 0 and empty lists"))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "eval":
            found.append((node.lineno, "eval"))
    return found


@pytest.mark.parametrize(
    "source",
    [
        "x < 0.05",
        "def f():\n    len(a) == 3",
        "torch.allclose(a, b)",
        "a.equal(b)",
        "np.array_equal(a, b)",
        "x = x or 3",
        "self.x = self.x or []",
        "y = eval(text)",
    ],
)
def test_the_idle_rule_notices(source):
    assert len(idle_checks(ast.parse(source))) == 1


@pytest.mark.parametrize(
    "source", ["assert x < 1", "same = torch.equal(a, b)", "x = y or 3", "model.eval()", "f(a == b)"]
)
def test_the_idle_rule_allows(source):
    assert idle_checks(ast.parse(source)) == []


@pytest.mark.parametrize("path", CHECKED, ids=name_of)
def test_no_idle_checks(path):
    assert idle_checks(ast.parse(path.read_text(encoding="utf-8"))) == []


# ------------------------------------------------------------------------------- an import does nothing


def acts_at_import(tree):
    """Calls of an imported name as a statement at module level, such as ``torch.manual_seed(0)``; as (line, call)."""
    imported, found = set(), []
    for node in tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            imported |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            call = ast.unparse(node.value.func)
            if call.split(".")[0].split("(")[0] in imported:
                found.append((node.lineno, call))
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Attribute | ast.Subscript):
            target = ast.unparse(node.targets[0])
            if target.replace("[", ".").split(".")[0] in imported:
                found.append((node.lineno, target))
    return found


@pytest.mark.parametrize(
    "source",
    [
        "import torch\ntorch.manual_seed(0)",
        "import warnings\nwarnings.filterwarnings('ignore')",
        "import torch\ntorch.backends.cudnn.benchmark = True",
        "import os\nos.environ['OMP_NUM_THREADS'] = '1'",
    ],
)
def test_the_import_rule_notices(source):
    assert len(acts_at_import(ast.parse(source))) == 1


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_no_module_acts_when_imported(path):
    assert acts_at_import(ast.parse(path.read_text(encoding="utf-8"))) == []


SNAPSHOT = """
import importlib, json, logging, os, random, signal, sys, warnings
import numpy, torch

ours, theirs = json.loads(sys.argv[1])
for name in theirs:  # what others do when imported is not ours to mend
    importlib.import_module(name)

def snapshot():
    return {
        "python random": hash(random.getstate()),
        "numpy random": hash(str(numpy.random.get_state())),
        "torch random": hash(bytes(torch.get_rng_state().tolist())),
        "threads": torch.get_num_threads(),
        "dtype": str(torch.get_default_dtype()),
        "grad": torch.is_grad_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "cudnn": [torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic],
        "matmul": torch.get_float32_matmul_precision(),
        "warnings": [str(entry) for entry in warnings.filters],
        "environment": dict(os.environ),
        "handlers": [str(handler) for handler in logging.getLogger().handlers],
        "level": logging.getLogger().level,
        "folder": [os.getcwd(), sorted(os.listdir("."))],
        "path": list(sys.path),
        "interrupt": str(signal.getsignal(signal.SIGINT)),
        "printoptions": str(numpy.get_printoptions()),
    }

before, there = snapshot(), set(sys.modules)
for name in ours:
    importlib.import_module(name)
after = snapshot()
changed = [key for key in before if before[key] != after[key]]
print(json.dumps({"changed": changed, "loaded": sorted({name.split(".")[0] for name in set(sys.modules) - there})}))
"""


def import_and_compare(folder, ours, theirs=()):
    """Import `theirs`, then `ours`, in a fresh process: which global states did `ours` change, and what came along?"""
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join([str(ROOT), str(folder)]))
    command = [sys.executable, "-c", SNAPSHOT, json.dumps([list(ours), list(theirs)])]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def low_modules():
    """Every module below the level of plots, command line and course; helpers only if another one imports them."""
    names = {}
    for path in SOURCES:
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if LEVELS.get(parts[0], 7) <= 5 and (parts[-1] == "__init__" or not parts[-1].startswith("_")):
            names[".".join(["superb_lite", *(part for part in parts if part != "__init__")])] = path
    return names


def foreign_imports(tree):
    """What others' modules a file imports at its top; ``scipy.signal`` of ``from scipy import signal`` is ``scipy``."""
    found = set()
    for node in tree.body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom) and not node.level:
            found.add(node.module)
    return {name for name in found if name.split(".")[0] not in ("superb_lite", "__future__")}


def test_importing_changes_no_global_state_and_loads_nothing_heavy(tmp_path):
    modules = low_modules()
    theirs = set().union(*(foreign_imports(ast.parse(path.read_text(encoding="utf-8"))) for path in modules.values()))
    assert {name.split(".")[0] for name in theirs}.isdisjoint(HEAVY)
    result = import_and_compare(tmp_path, ["superb_lite", *modules], sorted(theirs))
    assert result["changed"] == []
    assert [name for name in HEAVY if name in result["loaded"]] == []


def test_the_comparison_notices(tmp_path):
    (tmp_path / "rude.py").write_text(
        "import os, random, warnings, torch\nrandom.seed(1)\ntorch.manual_seed(1)\nwarnings.simplefilter('ignore')\n"
        "os.environ['X_RUDE'] = '1'\ntorch.set_num_threads(3)\nimport rude_too\nopen('left-behind', 'w').close()\n"
    )
    (tmp_path / "rude_too.py").write_text("")
    result = import_and_compare(tmp_path, ["rude"])
    assert "rude_too" in result["loaded"]
    noticed = {"python random", "torch random", "warnings", "environment", "threads", "folder"}
    assert noticed <= set(result["changed"])
