"""The short notebooks as students get them, run in a real kernel: every output must equal the stored one.

``superb-lite course check`` does the same for all of them and for the solved versions; these three keep the default
run honest.
"""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.parametrize("number", ["00", "02", "13"])
def test_a_short_notebook_gives_its_stored_outputs(number, capfd):
    from superb_lite.course.build import find_project, sources
    from superb_lite.course.verify import run_problems, version_problems

    project = find_project(ROOT)
    (solved,) = sources(project, [number])
    problems = version_problems(solved, project)
    problems += run_problems(project, [project.notebooks / solved.name], minutes=8.0, say=print)
    assert problems == [], capfd.readouterr().out[-4000:]
