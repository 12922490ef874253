"""The short notebooks, run in a real kernel: every output must equal the stored one, in both versions.

``superb-lite course check`` does the same for all of them; these three keep the default run honest.
"""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SHORT = ("00", "02", "04")


@pytest.mark.slow
def test_short_notebooks_give_their_stored_outputs(capfd):
    from superb_lite.course.build import find_project, sources
    from superb_lite.course.verify import verify

    project = find_project(ROOT)
    assert len(sources(project, SHORT)) == len(SHORT)
    problems = verify(project, SHORT, minutes=3.0)
    assert problems == [], capfd.readouterr().out[-4000:]
