"""The short notebooks, run in a real kernel: every output must equal the stored one, in both versions.

``superb-lite course check`` does the same for all of them; these three keep the default run honest.
"""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SHORT = ("00", "02", "04")


@pytest.mark.slow
@pytest.mark.parametrize("number", SHORT)
def test_a_short_notebook_gives_its_stored_outputs(number, capfd):
    from superb_lite.course.build import find_project, sources
    from superb_lite.course.verify import verify

    project = find_project(ROOT)
    assert len(sources(project, [number])) == 1
    problems = verify(project, [number], minutes=8.0)
    assert problems == [], capfd.readouterr().out[-4000:]
