"""A real JupyterLab in a headless Chromium: players can play, a slider redraws, nothing leaves the machine.

The course's notebook 02 is opened where it exists, and always a small one made here, which has a player,
a progress bar, hints and a slider that redraws a picture.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import textwrap
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest

pytestmark = [pytest.mark.browser, pytest.mark.slow]

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
for needed in ("playwright.sync_api", "jupyterlab", "nbformat"):
    pytest.importorskip(needed, reason=f"{needed} is not installed (extra `test`)")
if CHROMIUM is None:
    pytest.skip("no Chromium on this machine (on Debian: apt install chromium)", allow_module_level=True)

import nbformat  # noqa: E402
from playwright.sync_api import sync_playwright  # noqa: E402

import superb_lite  # noqa: E402

ROOT = Path(superb_lite.__file__).resolve().parents[1]
TOKEN = "superb"
WAIT_MS = 90_000

CELLS = [
    """
    import numpy as np
    from superb_lite.course import listen, progress, quiz
    from superb_lite.course.display import Ladder, show

    tone = 0.3 * np.sin(2 * np.pi * 440 * np.arange(8000) / 16000)
    listen({"a tone": tone, "a lower one": tone[::2]}, title="tones")
    """,
    """
    bar = progress("counting")
    for done in range(5):
        bar("counting", done + 1, 5)
    bar.close()
    """,
    'show(Ladder("demo.q1", ["first", "second"]))',
    """
    import io
    import ipywidgets as widgets
    from matplotlib.figure import Figure

    def draw(frequency):
        figure = Figure(figsize=(3, 1))
        figure.subplots().plot(np.sin(frequency * np.linspace(0, 6, 200)))
        file = io.BytesIO()
        figure.savefig(file, format="png")
        return file.getvalue()

    slider = widgets.IntSlider(value=4, min=1, max=9, description="Hz")
    picture = widgets.Image(value=draw(4))
    slider.observe(lambda change: setattr(picture, "value", draw(change["new"])), "value")
    widgets.VBox([slider, picture])
    """,
]

RUN_ALL = """async () => {
    const panel = jupyterapp.shell.currentWidget;
    await panel.context.ready; await panel.revealed; await panel.sessionContext.ready;
    await jupyterapp.commands.execute("notebook:run-all-cells");
    return panel.content.widgets.filter(cell => cell.model.type === "code").map(cell => ({
        source: cell.model.sharedModel.getSource(),
        count: cell.model.executionCount,
        errors: cell.model.outputs.toJSON().filter(output => output.output_type === "error")
                    .map(output => output.ename + ": " + output.evalue),
    }));
}"""
AUDIO = "() => [...document.querySelectorAll('audio')].map(a => [a.readyState, a.duration])"
PICTURES = "() => [...document.querySelectorAll('.jp-OutputArea img')].map(i => i.src)"


def write_demo(folder: Path) -> Path:
    cells = [nbformat.v4.new_code_cell(textwrap.dedent(source).strip()) for source in CELLS]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    path = folder / "demo.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), path)
    return path


@pytest.fixture(scope="module")
def notebooks(tmp_path_factory):
    """A folder to serve: the small notebook, and a copy of the course's notebook 02 if it is there."""
    folder = tmp_path_factory.mktemp("served")
    write_demo(folder)
    for path in sorted((ROOT / "notebooks").glob("02_*.ipynb")):
        shutil.copy(path, folder)
    return folder


@pytest.fixture(scope="module")
def lab(notebooks, tmp_path_factory):
    """The address of a JupyterLab that serves the folder and touches nothing of the user's."""
    home = tmp_path_factory.mktemp("home")
    settings = home / "app"
    settings.mkdir()
    overrides = {
        "@jupyterlab/notebook-extension:tracker": {"windowingMode": "none"},  # else unseen outputs are not in the page
        "@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": False},
        "@jupyterlab/docmanager-extension:plugin": {"autosave": False},
    }
    (settings / "overrides.json").write_text(json.dumps(overrides))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with server(notebooks, home, settings, port) as process:
        wait_until_up(f"http://127.0.0.1:{port}/api/status?token={TOKEN}", process, home / "log.txt")
        yield f"http://127.0.0.1:{port}"


@contextmanager
def server(root: Path, home: Path, settings: Path, port: int):
    names = ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "JUPYTERLAB_SETTINGS_DIR")
    names += ("JUPYTERLAB_WORKSPACES_DIR", "IPYTHONDIR", "MPLCONFIGDIR")
    env = {key: value for key, value in os.environ.items() if key not in ("PYTEST_CURRENT_TEST", "MPLBACKEND")}
    env |= {name: str(home / name.lower()) for name in names} | {"HOME": str(home)}
    env["SUPERB_LITE_CACHE"] = os.environ.get("SUPERB_LITE_CACHE", str(home / "cache"))
    env["SUPERB_LITE_CARD"] = str(home / "card.jsonl")
    env["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [env.get("PYTHONPATH")])])
    options = [
        "--no-browser", "--ip=127.0.0.1", f"--port={port}", "--ServerApp.port_retries=0",
        f"--IdentityProvider.token={TOKEN}", f"--ServerApp.root_dir={root}", "--LabApp.expose_app_in_browser=True",
        f"--LabApp.app_settings_dir={settings}", "--LabApp.news_url=", "--LabApp.extension_manager=readonly",
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate", "--ServerApp.terminals_enabled=False",
    ]  # fmt: skip
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        options.append("--allow-root")
    with (home / "log.txt").open("w") as log:
        command = [sys.executable, "-m", "jupyterlab", *options]
        process = subprocess.Popen(command, env=env, cwd=home, stdout=log, stderr=log)
        try:
            yield process
        finally:
            process.terminate()  # it stops its kernels
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def wait_until_up(address: str, process: subprocess.Popen, log: Path) -> None:
    for _ in range(180):
        if process.poll() is not None:
            break
        try:
            urllib.request.urlopen(address, timeout=5).close()
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    pytest.fail(f"JupyterLab did not start: {log.read_text()[-2000:]}")


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as play:
        found = play.chromium.launch(executable_path=CHROMIUM, args=["--disable-gpu"])
        yield found
        found.close()


@pytest.fixture
def page(browser):
    """A page that can reach this machine only; `page.outside` is what it tried to reach beyond it."""
    page = browser.new_page(viewport={"width": 1200, "height": 1600})
    page.set_default_timeout(WAIT_MS)
    page.outside = []

    def guard(route):
        if route.request.url.startswith(("http://127.0.0.1:", "data:", "blob:")):
            route.continue_()
        else:
            page.outside.append(route.request.url)
            route.abort()

    page.route("**/*", guard)
    yield page
    page.close()


def run_all(page, lab: str, name: str) -> list[dict]:
    """Open a notebook in Lab and run all its cells; returns source, count and errors of each code cell."""
    page.goto(f"{lab}/lab/tree/{name}?reset&token={TOKEN}")
    page.wait_for_function("() => window.jupyterapp && window.jupyterapp.shell.currentWidget?.context")
    page.evaluate("() => window.jupyterapp.started")
    return page.evaluate(RUN_ALL)


def assert_ran(cells: list[dict]) -> None:
    assert cells, "the notebook has no code cell"
    assert [error for cell in cells for error in cell["errors"]] == []
    assert [cell["count"] for cell in cells] == list(range(1, len(cells) + 1))


def assert_players(page, at_least: int) -> None:
    page.wait_for_function("() => [...document.querySelectorAll('audio')].every(a => a.readyState >= 1)")
    players = page.evaluate(AUDIO)
    assert len(players) >= at_least
    assert all(state >= 1 and 0.01 < seconds < 60 for state, seconds in players), players


def assert_slider_redraws(page) -> None:
    before = json.dumps(page.evaluate(PICTURES), separators=(",", ":"))
    readout = page.locator(".widget-readout").first
    value = readout.inner_text()
    handle = page.locator(".widget-slider .noUi-handle").first
    handle.scroll_into_view_if_needed()
    handle.focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_function("old => document.querySelector('.widget-readout').innerText !== old", arg=value)
    page.wait_for_function(f"old => JSON.stringify(({PICTURES})()) !== old", arg=before)


def test_players_slider_bar_and_hints_work_in_a_browser(page, lab):
    assert_ran(run_all(page, lab, "demo.ipynb"))
    assert_players(page, 2)
    assert_slider_redraws(page)
    assert page.locator(".progress-bar-success, .widget-hprogress .progress-bar-success").count() == 1
    hints = page.locator("details")
    assert hints.count() == 2 and not hints.nth(1).is_visible()
    hints.nth(0).locator("summary").first.click()
    hints.nth(1).locator("summary").click()
    assert hints.nth(1).locator("p").inner_text() == "second"
    assert page.outside == []


def test_the_course_s_notebook_02_works_in_a_browser(page, lab, notebooks):
    found = sorted(notebooks.glob("02_*.ipynb"))
    if not found:
        pytest.skip("notebooks/02_*.ipynb is not there yet")
    assert_ran(run_all(page, lab, found[0].name))
    assert_players(page, 1)
    if page.locator(".widget-slider .noUi-handle").count():
        assert_slider_redraws(page)
    assert page.outside == []


def test_a_broken_cell_is_noticed(page, lab, notebooks):
    """The checks above can fail: a cell that raises, a sound that is none, a picture from the web."""
    broken = [
        "1 / 0",
        "from IPython.display import HTML\nHTML('<audio src=\"data:audio/mpeg;base64,AAAA\"></audio>')",
        "HTML('<img src=\"https://example.org/badge.png\">')",
    ]
    cells = [nbformat.v4.new_code_cell(source, metadata={"tags": ["raises-exception"]}) for source in broken]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), notebooks / "broken.ipynb")
    with pytest.raises(AssertionError, match="ZeroDivisionError"):
        assert_ran(run_all(page, lab, "broken.ipynb"))
    for _ in range(100):  # a busy machine draws late
        page.wait_for_timeout(200)
        if page.outside:
            break
    assert page.evaluate(AUDIO)[0][0] == 0
    assert set(page.outside) == {"https://example.org/badge.png"}  # the browser may ask again
