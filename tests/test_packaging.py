"""The installation: bounds, extras, environment.yml, licences, the wheel, the two commands of the README.

The rules for environment.yml are what can be known without conda: every name is known, no range is written
twice or against pyproject.toml, nothing is missing.
"""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import importlib.util
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
EXTRAS = PROJECT["optional-dependencies"]
CORE = {canonicalize_name(Requirement(line).name): Requirement(line) for line in PROJECT["dependencies"]}

# Read in August 2026 from the list that Colab publishes: what a course must not replace there.
COLAB = {
    "torch": "2.11.0+cu128", "torchaudio": "2.11.0+cu128", "numpy": "2.1.3", "pandas": "2.2.3", "matplotlib": "3.10.0",
    "ipywidgets": "7.7.1", "soundfile": "0.14.0", "tqdm": "4.67.3",
}  # fmt: skip
# Package names that differ between conda-forge and PyPI, and what conda may bring besides Python packages.
CONDA_NAMES = {"pytorch": "torch", "matplotlib-base": "matplotlib", "pysoundfile": "soundfile"}
CONDA_ONLY = {"python", "pip", "ffmpeg", "espeak-ng"}
IMPORT_NAMES = {"dtw-python": "dtw", "pillow": "PIL", "scikit-learn": "sklearn"}


# ------------------------------------------------------------------------------------------- pyproject


@pytest.mark.parametrize("name", COLAB)
def test_what_colab_has_is_accepted(name):
    assert CORE[name].specifier.contains(COLAB[name])


def test_torch_and_torchaudio_have_the_same_bounds_and_newer_torch_is_out():
    assert CORE["torch"].specifier == CORE["torchaudio"].specifier
    for version in ("2.11.0", "2.11.0+cpu", "2.11.0+cu128"):
        assert CORE["torch"].specifier.contains(version)
    for version in ("2.10.2", "2.11.1", "2.12.0", "2.15.0"):
        assert not CORE["torch"].specifier.contains(version)


def test_the_installed_pair_imports():
    done = subprocess.run(
        [sys.executable, "-c", "import torch, torchaudio; print(torch.__version__, torchaudio.__version__)"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    torch, audio = done.stdout.split()
    assert CORE["torch"].specifier.contains(torch) and CORE["torchaudio"].specifier.contains(audio)


def test_pythons():
    allowed = SpecifierSet(PROJECT["requires-python"])
    accepted = [minor for minor in range(8, 17) if allowed.contains(f"3.{minor}.5")]
    assert accepted == [11, 12, 13]
    told = [line.rpartition(" ")[2] for line in PROJECT["classifiers"] if "Python :: 3." in line]
    assert told == ["3.11", "3.12", "3.13"]


def test_no_newer_notebook_tools_in_the_core():
    others = {"ipython", "ipykernel", "notebook", "jupyterlab", "nbval", "transformers", "dask", "nbgrader"}
    assert not set(CORE) & others


def test_extras_are_there_and_what_they_name_parses():
    assert {"lab", "test", "hub", "cluster", "grade"} <= set(EXTRAS)
    for lines in EXTRAS.values():
        for requirement in map(Requirement, lines):
            assert requirement.extras <= set(EXTRAS), f"{requirement} names an extra that is not there"


def test_every_package_that_the_library_imports_is_a_dependency():
    """A package that only happens to be installed here would be missing on a student's machine."""
    known = {IMPORT_NAMES.get(name, name) for name in CORE} | set(sys.stdlib_module_names) | {"superb_lite"}
    known |= {"IPython", "packaging", "jupyter_client"}  # brought by ipywidgets, matplotlib, ipykernel
    for lines in EXTRAS.values():
        names = [Requirement(line).name for line in lines]
        known |= {IMPORT_NAMES.get(name, name.partition(".")[0].replace("-", "_").lower()) for name in names}
    for path in sorted((ROOT / "superb_lite").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module]
            for name in names:
                assert name.partition(".")[0] in known, f"{path.relative_to(ROOT)} imports {name}"


def test_every_installed_dependency_is_inside_its_bounds():
    for name, requirement in CORE.items():
        assert requirement.specifier.contains(importlib.metadata.version(name), prereleases=True), name


def test_the_script_is_there():
    module, _, function = PROJECT["scripts"]["superb-lite"].partition(":")
    assert callable(getattr(importlib.import_module(module), function))


def test_every_stable_name_can_be_imported():
    """Source: design.md section 7; notebooks and other people's code rely on these."""
    stable = """load_upstream list_upstreams get_task list_tasks Featurizer fit predict evaluate olympics
                ROUND_1 ROUND_2 ROUND_3 ResultsTable""".split()
    package = importlib.import_module("superb_lite")
    assert set(stable) <= set(package.__all__)
    missing = [name for name in package.__all__ if not hasattr(package, name)]
    assert missing == []
    course = importlib.import_module("superb_lite.course")
    assert {"check", "carry_on", "hint", "preflight", "card"} <= set(course.__all__)
    assert [name for name in course.__all__ if not hasattr(course, name)] == []


def test_versions_agree():
    assert Version(PROJECT["version"])
    cff = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert str(cff["version"]) == PROJECT["version"]
    assert {"title", "authors", "message", "cff-version", "type", "license"} <= set(cff)
    assert cff["license"] == PROJECT["license"] == "MIT"


def test_licence_files():
    assert (ROOT / "LICENSE").read_text().startswith("MIT License")
    assert "CC BY 4.0" in (ROOT / "LICENSE-TEXT").read_text()
    assert all((ROOT / name).is_file() for name in PROJECT["license-files"])


def test_the_address_of_the_repository_stands_once():
    """Badges and set-up cells are built from it, so that a fork changes one line."""
    addresses = PROJECT["urls"]
    assert list(addresses) == ["Repository"]
    where = re.sub(r"^https?://", "", addresses["Repository"])
    files = [*ROOT.glob("*.md"), *ROOT.glob("*.cff"), *ROOT.glob("*.yml"), *(ROOT / "superb_lite").rglob("*.py")]
    assert len(files) > 10
    assert [str(file.relative_to(ROOT)) for file in files if where in file.read_text(encoding="utf-8")] == []


# --------------------------------------------------------------------------------------------- the wheel


@pytest.mark.slow
def test_the_wheel_carries_code_and_data(tmp_path):
    if importlib.util.find_spec("hatchling") is None:
        pytest.skip("hatchling is not installed; it is in the extra `test`")
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        carried = set(archive.namelist())
    package = ROOT / "superb_lite"
    patterns = ["**/*.py", "corpora/data/*.zip", "corpora/data/*.jsonl.gz", "upstreams/weights/*.safetensors"]
    patterns += ["upstreams/weights/*.json", "course/*.cfg", "course/*.md", "published/*.csv"]
    for pattern in patterns:
        wanted = {f"superb_lite/{path.relative_to(package).as_posix()}" for path in package.glob(pattern)}
        assert wanted, f"the package has no {pattern}"
        assert wanted <= carried, f"not in the wheel: {sorted(wanted - carried)[:5]}"
    assert not [name for name in carried if name.startswith(("tests/", "notebooks/", "solutions/", "."))]


# --------------------------------------------------------------------------------------- environment.yml


def conda_problems(text: str) -> list[str]:
    """What is wrong with an environment.yml, a sentence each."""
    env = yaml.safe_load(text)
    found = [f"unknown key {key}" for key in set(env) - {"name", "channels", "dependencies", "variables"}]
    if env.get("channels") != ["conda-forge"]:
        found.append(f"channels are {env.get('channels')}, expected conda-forge alone")
    seen: set[str] = set()
    for entry in env["dependencies"]:
        if isinstance(entry, dict):
            found += [problem for line in entry.get("pip", []) for problem in pip_problems(line)]
            continue
        match = re.fullmatch(r"([a-z0-9][a-z0-9._-]*)\s*((?:[<>=!~]=?|==)[\d.*]+(?:,(?:[<>=!~]=?|==)[\d.*]+)*)?", entry)
        if match is None:
            found.append(f"{entry!r} does not parse")
            continue
        name, bounds = CONDA_NAMES.get(match[1], match[1]), match[2]
        if name in seen:
            found.append(f"{name} is there twice")
        seen.add(name)
        if name not in CONDA_ONLY and name not in CORE:
            found.append(f"{name} is no dependency of ours")
        elif name in CORE:
            found.append(f"{name}: its range stands in pyproject.toml; leave it to pip")
        elif name == "python":
            found += python_problems(bounds or "")
    for name in {"python", "pip"} - seen:
        found.append(f"{name} is missing")
    if not any(isinstance(entry, dict) for entry in env["dependencies"]):
        found.append("nothing installs superb_lite itself")
    return found


def pip_problems(line: str) -> list[str]:
    match = re.fullmatch(r"-e \.(?:\[([a-z,]+)\])?", line)
    if match is None:
        return [f"pip: {line!r}, expected -e . with extras; ranges stand in pyproject.toml"]
    return [f"pip: no extra is called {name}" for name in (match[1] or "").split(",") if name and name not in EXTRAS]


def python_problems(bounds: str) -> list[str]:
    ours, theirs = SpecifierSet(PROJECT["requires-python"]), SpecifierSet(bounds)
    versions = [f"3.{minor}.{patch}" for minor in range(8, 17) for patch in (0, 9)]
    allowed = [version for version in versions if theirs.contains(version)]
    outside = [version for version in allowed if not ours.contains(version)]
    if not allowed:
        return ["python: no version is allowed"]
    return [f"python {outside[0]} is allowed here, but not in pyproject.toml"] if outside else []


ENVIRONMENT = (ROOT / "environment.yml").read_text(encoding="utf-8")


def test_environment_is_sound():
    assert conda_problems(ENVIRONMENT) == []


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("conda-forge", "defaults", "expected conda-forge alone"),
        ("channels:", "chanels:", "unknown key chanels"),
        (">=3.11,<3.14", ">=3.10", "python 3.10.0 is allowed here"),
        (">=3.11,<3.14", ">=3.14,<3.11", "no version is allowed"),
        (">=3.11,<3.14", "=>3.11", "does not parse"),
        (">=3.11,<3.14", " = = 3.11", "does not parse"),
        ("espeak-ng ", "espeek-ng ", "espeek-ng is no dependency of ours"),
        ("espeak-ng ", "pytorch>=2.15 ", "torch: its range stands in pyproject.toml"),
        ("espeak-ng ", "python ", "python is there twice"),
        (".[lab]", ".[lap]", "no extra is called lap"),
        ("-e .[lab]", "torch==2.15", "expected -e . with extras"),
        ("  - pip>=24\n", "", "pip is missing"),
    ],
)
def test_environment_problems_are_found(old, new, says):
    assert old in ENVIRONMENT
    assert [problem for problem in conda_problems(ENVIRONMENT.replace(old, new)) if says in problem]


# -------------------------------------------------------------------------------------- the two commands


def readme_commands(title: str) -> list[str]:
    """The commands of the shell block that follows a bold title in README.md, without the blocks after it."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    block = re.search(rf"\*\*{re.escape(title)}\*\*.*?```bash\n(.*?)```", text, re.DOTALL)
    assert block is not None, f"README.md has no block under **{title}**"
    return block[1].strip().splitlines()


@pytest.mark.parametrize(
    ("title", "ends"),
    [("Run the decathlon", ".venv/bin/superb-lite olympics"), ("Pass the tests", ".venv/bin/pytest -q -n 2")],
)
def test_readme_commands_are_complete(title, ends):
    (command,) = readme_commands(title)
    make, install, work = command.split(" && ")
    assert make == "python3 -m venv .venv" and work == ends
    match = re.fullmatch(r'\.venv/bin/pip install -e "?\.(?:\[([a-z,]+)\])?"?', install)
    assert match is not None and set((match[1] or "").split(",")) - {""} <= set(EXTRAS)


def test_every_command_in_the_readme_has_options_that_exist():
    import shlex

    from typer.main import get_command

    from superb_lite.cli import app

    commands = get_command(app).commands
    lines = [line for line in (ROOT / "README.md").read_text(encoding="utf-8").splitlines() if "superb-lite " in line]
    used = [shlex.split(line.partition("#")[0]) for line in lines if line.startswith("superb-lite ")]
    assert len(used) >= 4
    for _, name, *options in used:
        known = {option for parameter in commands[name].params for option in parameter.opts}
        assert {word for word in options if word.startswith("--")} <= known, name


def test_ci_runs_the_readme_command_and_the_course_check():
    script = ROOT / ".ci" / "run"
    text = script.read_text(encoding="utf-8")
    assert os.access(script, os.X_OK) and text.startswith("#!/usr/bin/env bash\n") and "set -euo pipefail" in text
    assert "README.md" in text and text.index("eval") < text.index(".venv/bin/superb-lite course check")
    assert subprocess.run(["bash", "-n", str(script)], check=False).returncode == 0


def test_what_is_ignored_is_not_what_we_ship():
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    data = (".zip", ".gz", ".safetensors", ".cfg", ".csv")
    shipped = [path for path in (ROOT / "superb_lite").rglob("*") if path.suffix in data]
    assert shipped
    names = [str(path.relative_to(ROOT)) for path in shipped]
    done = subprocess.run(["git", "check-ignore", *names], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.split() == []
