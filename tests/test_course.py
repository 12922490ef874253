"""The course's machinery: checks and what they say, the results card, players, building and verifying notebooks.

Notebooks are made in temporary folders; those of the course itself are checked by ``superb-lite course check``.
"""

from __future__ import annotations

import copy
import importlib
import json
import re
import shutil
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import superb_lite
from superb_lite import course
from superb_lite.course import desk, display, exercises
from superb_lite.course.exercises import Exercise, WrongAnswer, as_module, get_exercise, list_exercises
from superb_lite.types import AudioError, ContractBroken, Score, UnknownName

# `course.check` is the function; this is the module of that name
checking = importlib.import_module("superb_lite.course.check")


# ------------------------------------------------------------------------------- a small exercise

NB99 = '''
import torch
from superb_lite.course.exercises import Exercise, WrongAnswer


def masked_mean(x, lengths):
    """x: (batch, frames, dim); lengths: (batch,) -> (batch, dim)."""
    valid = torch.arange(x.shape[1])[None, :] < lengths[:, None]
    return (x * valid[..., None]).sum(1) / lengths[:, None]


def over_padding(x, lengths):
    return x.mean(1)


def summed(x, lengths):
    return masked_mean(x, lengths) * lengths[:, None]


def off_by_one(x, lengths):
    return masked_mean(x, (lengths - 1).clamp(min=1))


def inputs(rng):
    def case(lengths, dim):
        x = torch.from_numpy(rng.normal(size=(len(lengths), max(lengths), dim))).float()
        return x, torch.tensor(lengths)

    return [case([5, 3], 4), case([1], 2), case([7, 7, 2], 3)]


EXERCISES = {
    "demo.q1": Exercise(
        "demo.q1",
        "the mean over valid frames",
        masked_mean,
        inputs,
        (
            WrongAnswer("mean over padding", over_padding, "the padding is averaged too: divide by lengths"),
            WrongAnswer("sum", summed, "the sum is not divided by the number of frames"),
            WrongAnswer("last frame lost", off_by_one, "the last valid frame is left out (< or <=?)"),
        ),
        ("Which frames count?", "A mask: torch.arange(frames) < lengths", "sum over valid frames, then / lengths"),
    )
}
'''


@pytest.fixture
def demo(tmp_path, monkeypatch):
    """The registry with one exercise, that of a file nb99.py in a temporary folder."""
    folder = tmp_path / "exercises"
    folder.mkdir()
    (folder / "nb99.py").write_text(NB99)
    monkeypatch.setattr(exercises, "__path__", [str(folder)])
    sys.modules.pop("superb_lite.course.exercises.nb99", None)
    yield get_exercise("demo.q1")
    sys.modules.pop("superb_lite.course.exercises.nb99", None)


@pytest.fixture(autouse=True)
def no_grader(monkeypatch):
    monkeypatch.delenv("NBGRADER_EXECUTION", raising=False)
    monkeypatch.delenv("SUPERB_LITE_CHECK_SEED", raising=False)


def right(x, lengths):
    return torch.stack([row[:n].mean(0) for row, n in zip(x, lengths, strict=True)])


def stub(x, lengths):
    pass


def said(capsys, key, answer):
    assert course.check(key, answer) is None
    out = capsys.readouterr().out
    assert out.count("\n") == 1, "check prints one line"
    return out


# ------------------------------------------------------------------------------------- the outcomes


def test_check_passes_a_right_answer_under_every_seed(demo, capsys, monkeypatch):
    for seed in "0", "1", "99":
        monkeypatch.setenv("SUPERB_LITE_CHECK_SEED", seed)
        assert said(capsys, "demo.q1", right).startswith("demo.q1 passed")


def test_the_seed_changes_the_inputs(demo, monkeypatch):
    seen = []

    def spy(x, lengths):
        seen.append(x.clone())
        return right(x, lengths)

    for seed in "0", "1":
        monkeypatch.setenv("SUPERB_LITE_CHECK_SEED", seed)
        course.check("demo.q1", spy)
    assert not torch.equal(seen[0], seen[3])


def not_implemented(x, lengths):
    raise NotImplementedError


@pytest.mark.parametrize("answer", [stub, not_implemented, lambda x, lengths: ..., None, ...])
def test_check_knows_what_was_not_tried(demo, capsys, answer):
    assert "not tried yet" in said(capsys, "demo.q1", answer)


def test_check_names_the_typical_mistake(demo, capsys):
    line = said(capsys, "demo.q1", lambda x, lengths: x.sum(1) / x.shape[1])
    assert line.startswith("demo.q1 wrong, because the padding is averaged too")
    assert "hint('demo.q1')" in line


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda x, n: right(x, n).T, "with x shape (2, 5, 4), lengths [5, 3] it returns shape (4, 2), expected sha"),
        (lambda x, n: right(x, n) + 1, "8 of 8 numbers are not"),
        (lambda x, n: "mean", "it returns 'mean', expected shape (2, 4)"),
        (lambda x, n: x.mul_(2).mul_(0.5) * 0 + right(x, n) if x.add_(1) is None else right(x - 1, n), "in place"),
        (3.5, "a function or class is asked for, not float"),
    ],
)
def test_check_describes_any_other_mistake(demo, capsys, answer, words):
    line = said(capsys, "demo.q1", answer)
    assert line.startswith("demo.q1 wrong, because ")
    assert words in line


def raises_on_line_three(x, lengths):
    """The error comes up three lines below the def."""
    nothing = None
    return nothing + x


def test_check_reports_an_error_with_its_line(demo, capsys):
    line = said(capsys, "demo.q1", raises_on_line_three)
    number = raises_on_line_three.__code__.co_firstlineno + 3
    assert "your code raised TypeError: " in line
    assert f"(line {number} of your cell)" in line


def test_check_reports_an_error_outside_the_answer_without_a_line(demo, capsys):
    line = said(capsys, "demo.q1", lambda x: x)
    assert "your code raised TypeError" in line
    assert "line" not in line.split("with x")[0].split("raised")[0]
    assert "of your cell" not in line


def test_check_reports_an_error_on_an_edge_case_only(demo, capsys):
    def fails_on_one_clip(x, lengths):
        if len(x) == 1:
            raise IndexError("no second clip")
        return right(x, lengths)

    assert "raised IndexError: no second clip" in said(capsys, "demo.q1", fails_on_one_clip)


def test_check_is_quiet_and_leaves_the_random_state(demo, capsys):
    def noisy(x, lengths):
        import warnings

        print("here")
        warnings.warn("there", stacklevel=1)
        torch.rand(3)
        return right(x, lengths)

    before = torch.get_rng_state()
    assert said(capsys, "demo.q1", noisy).startswith("demo.q1 passed")
    assert torch.equal(before, torch.get_rng_state())
    assert capsys.readouterr().err == ""


def test_check_refuses_the_library_s_own_functions(demo, capsys):
    import functools

    reference = demo.reference
    for pasted in (reference, functools.partial(reference), functools.wraps(reference)(lambda x, n: reference(x, n))):
        assert "the library's own function" in said(capsys, "demo.q1", pasted)


def test_the_carry_on_line_pasted_as_an_answer_earns_nothing(demo, capsys, monkeypatch):
    pasted = course.carry_on("demo.q1", stub)
    monkeypatch.setenv("NBGRADER_EXECUTION", "autograde")
    with pytest.raises(AssertionError, match="library's own function"):
        course.check("demo.q1", pasted)


def test_grading_raises_unless_passed(demo, capsys, monkeypatch):
    monkeypatch.setenv("NBGRADER_EXECUTION", "autograde")
    for answer, words in ((stub, "not tried"), (lambda x, n: x, "wrong"), (raises_on_line_three, "raised")):
        with pytest.raises(AssertionError, match=words):
            course.check("demo.q1", answer)
    assert course.check("demo.q1", right) is None
    assert "passed" in capsys.readouterr().out


def test_unknown_exercise_is_named_with_the_nearest(demo):
    with pytest.raises(UnknownName, match="did you mean 'demo.q1'"):
        course.check("demo.q2", right)


# ------------------------------------------------------------------------------ carry on, hints, classes


def test_carry_on(demo, capsys, monkeypatch):
    assert course.carry_on("demo.q1", right) is right
    assert capsys.readouterr().out == "demo.q1: carrying on with your answer\n"
    monkeypatch.setenv("NBGRADER_EXECUTION", "autograde")  # never raises, so later points are not lost
    for answer in (stub, raises_on_line_three, None, demo.reference):
        assert course.carry_on("demo.q1", answer) is demo.reference
        assert "carrying on with the reference" in capsys.readouterr().out


def test_hints_are_a_ladder(demo, capsys):
    for number in 1, 2, 3:
        course.hint("demo.q1", number)
        assert f"hint {number} of 3: {demo.hints[number - 1]}" in capsys.readouterr().out
    course.hint("demo.q1", 4)
    assert "has 3 hints" in capsys.readouterr().out
    html = display.Ladder("demo.q1", demo.hints)._repr_html_()
    assert html.count("<details>") == 3
    assert html.index("Which frames") < html.index("A mask") < html.index("then / lengths")
    assert "arange(frames) &lt; lengths" in html
    assert html.endswith("</details></details></details>"), "each hint is inside the one before"


class Scale(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(dim))

    def forward(self, x):
        return x * self.gain


def scale_exercise():
    def inputs(rng):
        return [(dim, torch.from_numpy(rng.normal(size=(2, dim))).float()) for dim in (1, 3)]

    def scalar(dim):
        return lambda x: x.sum(-1)

    wrong = (WrongAnswer("sum", scalar, "the last dimension is summed away"),)
    return Exercise("demo.q2", "a gain", Scale, inputs, wrong, ("a", "b"), call=as_module(1))


def test_an_answer_may_be_a_class(capsys):
    class Mine(nn.Module):
        def __init__(self, dim):
            super().__init__()
            self.gain = nn.Parameter(torch.zeros(dim))

        def forward(self, x):
            return x * (1 + self.gain)

    class Empty(Mine):
        def forward(self, x):
            pass

    class Doubling(Mine):
        def forward(self, x):
            return 2 * super().forward(x)

    exercise = scale_exercise()
    assert "passed" in said(capsys, exercise, Mine)
    assert "not tried yet" in said(capsys, exercise, Empty)
    assert "with dim 1, x shape (2, 1)" in said(capsys, exercise, Doubling)
    assert course.carry_on(exercise, Empty) is Scale


# ----------------------------------------------------------------------------------- comparing


@pytest.mark.parametrize(
    ("got", "want", "words"),
    [
        ([1, 2], (1, 2), None),
        (1.0, torch.tensor(1.0), None),
        (np.float32(0.1), 0.1, None),
        (float("nan"), float("nan"), None),
        ({"a": [1.0]}, {"a": torch.tensor([1.0])}, None),
        (torch.ones(2, 1), torch.ones(2), "shape (2, 1), expected [1, 1]"),
        (100_000, 100_001, "returns 100000, expected 100001"),
        (0.5, 0.5001, "expected 0.5001"),
        (float("nan"), 1.0, "nan"),
        (["a", "b"], ["a"], "['a', 'b'], expected ['a']"),
        (["a", "b"], ["a", "c"], "at place 1 it returns 'b', expected 'c'"),
        ({"a": 1}, {"a": 1, "b": 2}, "lacks 'b'"),
        ({"a": 1, "b": 2}, {"a": 1}, "should not have 'b'"),
        ({"a": 1}, {"a": 2}, "under 'a'"),
        (None, 3, "returns None"),
        ("x", torch.ones(3), "returns 'x'"),
        (torch.tensor([1.0, 4.0]), torch.tensor([1.0, 3.0]), "1 of 2 numbers are not: at [1] it has 4, expected 3"),
    ],
)
def test_difference(got, want, words):
    from superb_lite.course.compare import difference

    found = difference(got, want, 1e-5)
    assert found is None if words is None else words in found


# -------------------------------------------------------------------------- the registered exercises


@pytest.mark.parametrize("key", list_exercises())
def test_registered_exercise_rejects_its_wrong_answers(key):
    assert checking.exercise_problems(get_exercise(key)) == []


def test_exercise_problems_are_found(demo):
    assert checking.exercise_problems(demo) == []
    twin = replace(demo.wrong[1], function=demo.wrong[0].function)
    harmless = WrongAnswer("right after all", demo.reference, "nothing at all")
    for broken, words in (
        (replace(demo, wrong=demo.wrong[:2]), "has 2 typical wrong answers"),
        (replace(demo, hints=("one",)), "has 1 hints"),
        (replace(demo, wrong=(*demo.wrong, harmless)), "'right after all' with seed 0 is told: demo.q1 passed"),
        (replace(demo, wrong=(demo.wrong[0], twin, demo.wrong[2])), "'sum' with seed 0 is told"),
        (replace(demo, reference=lambda x, n: object()), "the reference is rejected"),
    ):
        assert any(words in problem for problem in checking.exercise_problems(broken)), words


def test_the_registry_refuses_double_and_misnamed_keys(demo):
    with pytest.raises(ContractBroken, match="under 'demo.q9'"):
        exercises.add({}, {"demo.q9": demo}, "nb98")
    with pytest.raises(ContractBroken, match="another notebook has too"):
        exercises.add({"demo.q1": demo}, {"demo.q1": demo}, "nb98")


# -------------------------------------------------------------------------------- display and card


def test_listen_shows_a_row_per_sound_that_can_be_heard(monkeypatch):
    import base64
    import io

    import soundfile

    shown = []
    monkeypatch.setattr(display, "show", shown.append)
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000)

    def picture(wav, *, ax):
        ax.plot(wav)

    course.listen({"a <b> tone": tone, "short": torch.from_numpy(tone[:800])}, title="tones", picture=picture)
    html = shown[0]._repr_html_()
    assert html.count("<tr>") == html.count("<audio") == html.count("<img alt=") == 2
    assert "a &lt;b&gt; tone" in html and "<b>" not in html
    payload = re.search(r"data:audio/mpeg;base64,([^\"]+)", html).group(1)
    wav, rate = soundfile.read(io.BytesIO(base64.b64decode(payload)))
    assert rate == 16_000 and abs(len(wav) - 16_000) < 1600
    assert abs(np.abs(np.fft.rfft(wav[:16_000])).argmax() - 440) <= 2, "the tone is still 440 Hz"
    assert len(payload) < 8000
    assert repr(shown[0]) == "2 players: a <b> tone, short"


def test_listen_refuses_what_is_no_sound():
    good = np.zeros(800, dtype=np.float32)
    with pytest.raises(AudioError, match="take one channel"):
        course.listen({"stereo": np.zeros((2, 800))})
    with pytest.raises(AudioError, match="not between -1 and 1"):
        course.listen({"integers": np.full(800, 3000)})
    with pytest.raises(ValueError, match="2 sounds came with 1 captions"):
        course.listen([good, good], ["one"])
    with pytest.raises(ValueError, match="put it in a list"):
        course.listen(good)


def test_quiz_and_predict_fold_their_answers(monkeypatch):
    shown = []
    monkeypatch.setattr(display, "show", shown.append)
    course.quiz("Which?", {"this": "because", "that": "no way"}, right="this")
    html = shown[0]._repr_html_()
    assert html.count("<details>") == 2 and html.count("<b>Right.</b>") == 1
    assert html.index("Right.") < html.index("that") < html.index("No.")
    course.predict("Who wins?", "the trained one")
    assert "the trained one" in shown[1]._repr_html_() and "the trained one" not in repr(shown[1])
    with pytest.raises(ValueError, match="not among the options"):
        course.quiz("Which?", {"this": "because"}, right="other")


def test_progress_is_one_bar(capsys):
    bar = course.progress("training")
    for done in range(4):
        bar("step", done, 3)
    assert (bar._bar.n, bar._bar.total) == (3, 3)
    bar("scoring", 1, 2)
    assert (bar._bar.n, bar._bar.total) == (1, 2)
    bar.close()
    idle = course.progress("stored already")
    idle.close()
    assert idle._bar.n == 1, "with nothing to do it ends full, not red"


def a_probe():
    split = SimpleNamespace(data_hash="abc123", __len__=None)
    split = type("Split", (), {"data_hash": "abc123", "__len__": lambda self: 7})()
    view = SimpleNamespace(load=lambda name, fold: split)
    task = SimpleNamespace(key="ks", corpus=lambda key: view)
    recipe = SimpleNamespace(name="mini", steps=10, batch=4, lr=1e-3)
    return SimpleNamespace(
        task=task, corpus="mini", fold=0, upstream="random", revision="r0", layers="sum", seed=0,
        recipe=recipe, layer_weights=(0.25,) * 4, seconds=1.5,
    )  # fmt: skip


def test_card_keeps_rows_once_and_says_nothing_that_varies(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SUPERB_LITE_CARD", str(tmp_path / "mine" / "card.jsonl"))
    monkeypatch.setitem(vars(superb_lite), "__version__", "0.0.0")
    probe = a_probe()
    course.card(probe, {"acc": 91.25})
    first = capsys.readouterr().out
    probe.seconds = 9.9
    course.card(probe, {"acc": 91.25})
    assert first == capsys.readouterr().out == "on your results card: ks acc, random, round 2, seed 0\n"
    probe.layers, probe.seed = "last", 1
    course.card(probe, {"acc": 80.0})
    rows = [json.loads(line) for line in (tmp_path / "mine" / "card.jsonl").read_text().splitlines()]
    assert [(row["round"], row["seed"], row["value"]) for row in rows] == [(2, 0, 91.25), (1, 1, 80.0)]
    assert rows[0]["clips"] == 7
    assert rows[0]["data_hash"] == "abc123" and rows[0]["layer_weights"] == [0.25] * 4
    table = course.read_card()
    assert len(table) == 2 and isinstance(table.scores[0], Score)


def test_the_card_lies_beside_the_notebook_by_default(monkeypatch):
    monkeypatch.delenv("SUPERB_LITE_CARD", raising=False)
    assert desk.card_path() == Path("results_card.jsonl")


@pytest.mark.parametrize(
    ("status", "line"),
    [("ok", "Ready.\n"), ("warn", "Ready, though odd.\n"), ("fail", "Not ready: odd. Do this: mend it\n")],
)
def test_preflight_prints_one_line(monkeypatch, capsys, status, line):
    from superb_lite import doctor

    good = doctor.Check("x", "ok", "fine")
    for name in ("check_python", "check_audio", "check_corpus"):
        monkeypatch.setattr(doctor, name, lambda: good)
    monkeypatch.setattr(desk, "_check_pair", lambda: good)
    monkeypatch.setattr(desk, "_check_room", lambda: doctor.Check("disk", status, "odd", "mend it"))
    course.preflight()
    assert capsys.readouterr().out == line


# ---------------------------------------------------------------------------- building and verifying

pytest_nb = pytest.importorskip("nbformat", reason="building notebooks needs the extra `test`")
pytest.importorskip("nbgrader", reason="building notebooks needs the extra `test`")

from superb_lite.course import build as building  # noqa: E402
from superb_lite.course import static, verify  # noqa: E402


def text_cell(source, **metadata):
    return pytest_nb.v4.new_markdown_cell(textwrap.dedent(source).strip(), metadata=metadata)


def code_cell(source, **metadata):
    return pytest_nb.v4.new_code_cell(textwrap.dedent(source).strip(), metadata=metadata)


def grader(grade_id, **flags):
    base = dict.fromkeys(("grade", "solution", "locked", "task"), False)
    return {"nbgrader": {"schema_version": 3, "grade_id": grade_id} | base | flags}


def demo_notebook():
    """A small source notebook with every kind of cell."""
    cells = [
        text_cell("## You can\n\nmake a mean."),
        code_cell("", superb_lite={"role": "setup"}),
        code_cell(
            """
            import torch
            from pathlib import Path
            from superb_lite.course import carry_on, check, exercises, hint

            exercises.__path__ = [str(Path("..") / "exercises")]
            """
        ),
        text_cell("## The mean\n\nWrite it."),
        code_cell(
            """
            def masked_mean(x, lengths):
                ### BEGIN SOLUTION
                return torch.stack([row[:n].mean(0) for row, n in zip(x, lengths)])
                ### END SOLUTION
            """,
            **grader("demo-q1-answer", solution=True),
        ),
        code_cell(
            """
            check("demo.q1", masked_mean)
            ### BEGIN HIDDEN TESTS
            assert masked_mean(torch.ones(1, 2, 3), torch.tensor([2])).shape == (1, 3)
            ### END HIDDEN TESTS
            """,
            **grader("demo-q1-test", grade=True, locked=True, points=2),
        ),
        code_cell('hint("demo.q1")'),
        code_cell('masked_mean = carry_on("demo.q1", masked_mean)'),
        code_cell('print("rows", len(masked_mean(torch.ones(2, 3, 4), torch.tensor([3, 1]))))'),
        text_cell("Because the padding is not speech.", **grader("demo-why", grade=True, solution=True, points=1)),
    ]
    about = {"title": "A demonstration", "difficulty": 1, "minutes": 0.5, "memory_gb": 0.5}
    return pytest_nb.v4.new_notebook(cells=cells, metadata={"superb_lite": about})


@pytest.fixture
def project(tmp_path, demo):
    """A checkout with one source notebook, not built."""
    (tmp_path / "solutions").mkdir()
    url = "https://github.com/someone/somewhere"
    (tmp_path / "pyproject.toml").write_text(f'[project]\nname = "x"\n[project.urls]\nRepository = "{url}"\n')
    pytest_nb.write(demo_notebook(), tmp_path / "solutions" / "99_demo.ipynb")
    return building.find_project(tmp_path)


def versions(project):
    path = project.solutions / "99_demo.ipynb"
    solved = building.solved_version(building.read(path), path.name, project)
    return solved, building.student_version(solved, path.name, project)


def test_the_student_version_has_no_solution_and_no_hidden_test(project):
    solved, student = versions(project)
    cells = {cell.id: cell.source for cell in student.cells}
    assert cells["demo-q1-answer"] == "def masked_mean(x, lengths):\n    pass  # YOUR CODE HERE"
    assert cells["demo-q1-test"] == 'check("demo.q1", masked_mean)'
    assert cells["demo-why"] == "*Your answer here.*"
    text = json.dumps(student)
    assert not any(word in text for word in ("SOLUTION", "HIDDEN", "row[:n]", "not speech", "assert "))
    assert "row[:n]" in json.dumps(solved)


def test_header_setup_and_footer_are_built_once(project):
    solved, student = versions(project)
    again = building.solved_version(solved, "99_demo.ipynb", project)
    assert building.dumps(again) == building.dumps(solved)
    for nb in (solved, student):
        assert [cell.id for cell in nb.cells[:3]] == ["header", "you-can-1", "setup"]
        assert nb.cells[-1].id == "footer"
        head = nb.cells[0].source
        costs = "0.5 minute on 2 CPU cores · 0.5 GB of memory · difficulty ●○○"
        assert head.startswith(f"# 99 · A demonstration\n\n{costs}\n")
        for folder in ("notebooks", "solutions"):
            page = f"github.com/someone/somewhere/blob/main/{folder}/99_demo.ipynb"
            assert page in head and page.replace("github.com", "colab.research.google.com/github") in head
        assert "git+https://github.com/someone/somewhere@main" in nb.cells[2].source
        assert nb.cells[2].metadata.tags == ["nbval-ignore-output"]
        assert "10.21437/Interspeech.2021-1775" in nb.cells[-1].source and "CC BY 4.0" in nb.cells[-1].source
    assert "solved version: every exercise" in solved.cells[0].source
    assert "solved version: every exercise" not in student.cells[0].source


def test_cell_ids_stay_when_another_section_grows(project):
    nb = demo_notebook()
    before = [cell.id for cell in building.solved_version(nb, "99_demo.ipynb", project).cells]
    nb.cells.insert(1, text_cell("One more word."))
    after = [cell.id for cell in building.solved_version(nb, "99_demo.ipynb", project).cells]
    assert len(set(after)) == len(after) == len(before) + 1
    assert [name for name in after if not name.startswith("you-can")] == [
        name for name in before if not name.startswith("you-can")
    ]


def source(number, text):
    return lambda nb: nb.cells[number].update(source=text)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (source(8, "### BEGIN SOLUTION\n1\n### END SOLUTION"), "the-mean-6.*non-solution cell"),
        (source(8, "### BEGIN HIDDEN TESTS\n1\n### END HIDDEN TESTS"), "the-mean-6.*non-grade"),
        (source(4, "def f():\n    ### BEGIN SOLUTION\n    1"), "demo-q1-answer.*no end solution"),
        (source(4, "def f():\n    return 1"), "'demo-q1-answer' lacks a line ### BEGIN SOLUTION"),
        (lambda nb: nb.metadata.superb_lite.pop("title"), "have no title"),
    ],
)
def test_building_refuses_a_faulty_source(project, fault, words):
    nb = demo_notebook()
    fault(nb)
    with pytest.raises(building.CourseBroken, match=words):
        building.student_version(building.solved_version(nb, "99_demo.ipynb", project), "99_demo.ipynb", project)


def test_clean_drops_what_a_second_run_would_change():
    kernel = {"name": "my-env", "display_name": "My"}
    nb = pytest_nb.v4.new_notebook(
        cells=[code_cell("1", tags=["nbval-skip"], execution={"iopub.execute_input": "12:00"}, vscode={})],
        metadata={"widgets": {"state": {}}, "kernelspec": kernel, "superb_lite": {"title": "x"}},
    )
    data = {building.WIDGET_VIEW: {}, "text/plain": "0%"}
    nb.cells[0].outputs = [pytest_nb.v4.new_output("display_data", data=data, metadata={"image/png": {"width": 3}})]
    building.clean(nb)
    assert nb.cells[0].metadata == {"tags": ["nbval-skip"]}
    assert nb.cells[0].outputs[0].data == {"text/plain": "0%"} and nb.cells[0].outputs[0].metadata == {}
    assert set(nb.metadata) == {"kernelspec", "language_info", "superb_lite"}
    assert nb.metadata.kernelspec.name == "python3"


def test_outside_a_checkout_the_error_says_where_to_go(tmp_path):
    with pytest.raises(building.CourseBroken, match="cd to a checkout"):
        building.find_project(tmp_path)
    (tmp_path / "solutions").mkdir()
    (tmp_path / "pyproject.toml").write_text("")
    inside = tmp_path / "a" / "b"
    inside.mkdir(parents=True)
    project = building.find_project(inside)
    assert project.root == tmp_path.resolve() and project.on_github == ""
    with pytest.raises(building.CourseBroken, match="nothing to build"):
        building.sources(project)


def test_the_set_up_cell_explains_itself_where_the_package_is_missing(project, monkeypatch, capsys):
    from IPython.core.inputtransformer2 import TransformerManager

    source = TransformerManager().transform_cell(building.setup_source(project))
    cell = compile(source, "setup", "exec")
    monkeypatch.setattr(desk, "_ready", lambda: "Ready.")
    exec(cell, {})
    assert capsys.readouterr().out == "Ready.\n"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="Install the course first"):
        exec(cell, {})


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A checkout with the demonstration, built once for the tests below, which work on copies."""
    root = tmp_path_factory.mktemp("checkout")
    for folder in ("solutions", "exercises"):
        (root / folder).mkdir()
    (root / "exercises" / "nb99.py").write_text(NB99)
    (root / "pyproject.toml").write_text('[project]\nname = "x"\n')
    pytest_nb.write(demo_notebook(), root / "solutions" / "99_demo.ipynb")
    building.build(building.find_project(root), say=lambda line: None)
    return root


@pytest.fixture
def checkout(built, tmp_path, demo):
    for folder in ("solutions", "notebooks"):
        shutil.copytree(built / folder, tmp_path / folder)
    shutil.copy(built / "pyproject.toml", tmp_path)
    return building.find_project(tmp_path)


def both(project):
    return [project.solutions / "99_demo.ipynb", project.notebooks / "99_demo.ipynb"]


def test_building_again_gives_the_same_bytes(checkout):
    before = [path.read_bytes() for path in both(checkout)]
    building.build(checkout, ["99"], say=lambda line: None)
    assert [path.read_bytes() for path in both(checkout)] == before
    assert not list(checkout.root.rglob("results_card.jsonl"))


def test_both_versions_were_run_to_their_end(checkout):
    for path, words in zip(both(checkout), ("demo.q1 passed", "demo.q1 not tried yet"), strict=True):
        text = path.read_text()
        assert words in text and "rows 2" in text
        assert text.count('"execution_count": ') >= 7


def test_a_failing_cell_is_named_and_nothing_is_written(checkout):
    path = both(checkout)[0]
    nb = building.read(path)
    nb.cells.insert(1, code_cell("1 / 0"))
    pytest_nb.write(nb, path)
    before = [file.read_bytes() for file in both(checkout)]
    with pytest.raises(building.CourseBroken, match="solutions/99_demo.ipynb, cell '.*' failed: ZeroDivisionError"):
        building.build(checkout, say=lambda line: None)
    assert [file.read_bytes() for file in both(checkout)] == before


def test_a_good_course_has_no_static_problem(checkout):
    assert verify.verify(checkout, execute=False, say=lambda line: None) == []


def test_measuring_writes_time_and_memory_into_the_metadata(checkout):
    metadata = {"superb_lite": {"title": "x", "minutes": None}}
    nb = pytest_nb.v4.new_notebook(cells=[code_cell("data = bytearray(300_000_000)")], metadata=metadata)
    building._measure(nb, both(checkout)[0])
    assert 0 < nb.metadata.superb_lite["minutes"] <= 3
    assert 0.3 <= nb.metadata.superb_lite["memory_gb"] <= 1
    assert len(nb.cells) == 1 and nb.cells[0].execution_count is None


# ------------------------------------------------------------------------------------ planted faults


def outputs_of(cell, **output):
    cell.outputs = [pytest_nb.v4.new_output(**output)]


def shows(cell, kind, value="x"):
    outputs_of(cell, output_type="display_data", data={kind: value})


def find(nb, name):
    return next(cell for cell in nb.cells if cell.id == name)


FAULTS = {
    "expected 1 to 7": lambda nb: find(nb, "setup").update(execution_count=9),
    "an unrun or empty cell": lambda nb: find(nb, "setup").update(execution_count=None),
    "stored error OSError": lambda nb: outputs_of(find(nb, "setup"), output_type="error", ename="OSError", evalue=""),
    "writes to stderr": lambda nb: outputs_of(find(nb, "setup"), output_type="stream", name="stderr", text="careful"),
    "a widget view is stored": lambda nb: shows(find(nb, "setup"), building.WIDGET_VIEW),
    "an SVG picture": lambda nb: shows(find(nb, "setup"), "image/svg+xml"),
    "a folder of this machine": lambda nb: shows(find(nb, "setup"), "text/plain", f"{Path.home()}/file"),
    "no sentence under its picture": lambda nb: shows(find(nb, "setup"), "image/png"),
    "widget state is stored": lambda nb: nb.metadata.update(widgets={}),
    "not called python3": lambda nb: nb.metadata.kernelspec.update(name="mine"),
    "ends with a semicolon": lambda nb: find(nb, "setup").update(source="plot(1);  # drawn\n# end"),
    "%time prints durations": lambda nb: find(nb, "setup").update(source="%%time\nf()"),
    "the tag 'NBVAL-skip' is ignored": lambda nb: find(nb, "setup").metadata.update(tags=["NBVAL-skip"]),
    "the tag 'nbval_ignore_output' is": lambda nb: find(nb, "setup").metadata.update(tags=["nbval_ignore_output"]),
    "the marker '# nbval_skip' is ignored": lambda nb: find(nb, "setup").update(source="# nbval_skip\n1"),
    "the marker '# NBVAL_SKIP slow' is": lambda nb: find(nb, "setup").update(source="# NBVAL_SKIP slow\n1"),
    "the marker 'f()  # NBVAL_SKIP' is": lambda nb: find(nb, "setup").update(source="f()  # NBVAL_SKIP"),
    "2 cells have a heading": lambda nb: find(nb, "you-can-1").update(source="# Another title"),
    "no set-up cell": lambda nb: find(nb, "setup").metadata.pop("superb_lite"),
    "minutes is not measured": lambda nb: nb.metadata.superb_lite.pop("minutes"),
    "memory_gb is 7": lambda nb: nb.metadata.superb_lite.update(memory_gb=7),
    "difficulty is 5": lambda nb: nb.metadata.superb_lite.update(difficulty=5),
    "is no role of a code cell": lambda nb: find(nb, "demo-q1-test").metadata.nbgrader.update(solution=True),
    "a test needs points": lambda nb: find(nb, "demo-q1-test").metadata.nbgrader.pop("points"),
    "must have schema_version 3": lambda nb: find(nb, "demo-q1-test").metadata.nbgrader.update(checksum="0"),
    "only letters, digits": lambda nb: find(nb, "demo-q1-test").metadata.nbgrader.update(grade_id="demo.q1"),
    "no such exercise": lambda nb: find(nb, "setup").update(source='check("demo.q7", f)'),
    "has a check and no carry_on": lambda nb: find(nb, "the-mean-5").update(source="1"),
    "has a check and no hint": lambda nb: find(nb, "the-mean-4").update(source="1"),
    "expected it to print": lambda nb: find(nb, "demo-q1-test").update(outputs=[]),
    "has a line '### BEGIN SOLUTION'": lambda nb: find(nb, "setup").update(source="### BEGIN SOLUTION"),
    "has no stub": lambda nb: find(nb, "demo-q1-answer").update(source="def masked_mean(x, lengths):\n    return x"),
}


@pytest.mark.parametrize("words", FAULTS)
def test_a_planted_fault_is_found(checkout, words):
    path = both(checkout)[1]
    nb = building.read(path)
    assert static.static_problems(nb, path, solved=False) == []
    FAULTS[words](nb)
    assert any(words in problem for problem in static.static_problems(nb, path, solved=False))


def test_a_file_that_is_too_large_is_found(checkout):
    path = both(checkout)[1]
    path.write_text(path.read_text() + " " * 1_000_000)
    assert any("less than 1 is allowed" in p for p in static.static_problems(building.read(path), path, solved=False))


def test_a_notebook_that_a_build_would_change_is_found(checkout):
    path = both(checkout)[1]
    good = path.read_text()
    for old, new in (("a mean.", "a mess."), ('\n "cells"', '\n  "cells"'), ('"nbformat": 4', '"nbformat":4')):
        assert old in good
        path.write_text(good.replace(old, new))
        assert any("build again" in p for p in verify.version_problems(both(checkout)[0], checkout))
    path.unlink()
    problems = verify.version_problems(both(checkout)[0], checkout)
    assert problems == ["notebooks/99_demo.ipynb: not there; run superb-lite course build"]


def test_stray_and_misnamed_notebooks_and_unused_exercises_are_found(checkout):
    shutil.copy(both(checkout)[1], checkout.notebooks / "98_other.ipynb")
    shutil.copy(both(checkout)[1], checkout.notebooks / "Untitled.ipynb")
    found = verify.verify(checkout, execute=False, say=lambda line: None)
    assert any("98_other.ipynb: solutions/ has no notebook" in problem for problem in found)
    assert any("Untitled.ipynb: expected a name" in problem for problem in found)
    path = both(checkout)[0]
    path.write_text(path.read_text().replace("demo.q1", "demo.q0"))
    assert verify.unused_exercises(checkout) == ["exercise demo.q1: no notebook asks for it"]


def test_every_rule_of_the_sanitiser_is_read():
    plugin = pytest.importorskip("nbval.plugin")
    text = verify.SANITIZE.read_text()
    rules = plugin.get_sanitize_patterns(text)
    assert len(rules) == text.count("\nregex: ") == 5

    def clean(line):
        for pattern, replacement in rules.items() if isinstance(rules, dict) else rules:
            line = re.sub(pattern, replacement, line)
        return line

    shown = []
    html = display.player(np.zeros(800, dtype=np.float32))
    shown.append(clean(html))
    assert "AUDIO" in shown[0] and "base64" not in shown[0]
    assert clean('src="data:image/png;base64,iVBORw0KGgo="') == 'src="PICTURE"'
    assert clean("<object at 0x7f1234abcdef>") == "<object at ADDR>"
    assert clean("accuracy 91.2") == "accuracy 91.2"


@pytest.mark.slow
def test_outputs_are_compared_strictly_and_inside_their_time(checkout):
    """The student's version is good, and an output of the solved one was changed; both take longer than no time."""
    pytest.importorskip("nbval")
    said: list[str] = []
    solved, student = both(checkout)
    solved.write_text(solved.read_text().replace("rows 2", "rows 3"))
    found = verify.run_problems(checkout, [solved, student], 0, said.append)
    assert [line.split(":")[0] for line in said] == ["solutions/99_demo.ipynb", "notebooks/99_demo.ipynb"]
    different = [problem for problem in found if "does not give the stored output" in problem]
    assert len(different) == 1 and different[0].startswith("solutions/99_demo.ipynb, Cell 6")
    assert sum("minutes, 0 are allowed" in problem for problem in found) == len(found) - 1 == 2


@pytest.mark.slow
@pytest.mark.parametrize("times", [1, 2])
def test_a_kernel_that_misses_its_start_gets_a_second_chance(checkout, monkeypatch, tmp_path, times):
    """A machine that is too busy says nothing about a notebook; one on which no kernel starts is a problem."""
    pytest.importorskip("nbval")
    (tmp_path / "left").write_text("x" * times)
    (tmp_path / "sitecustomize.py").write_text(
        "import pathlib, sys\n"
        "left = pathlib.Path(__file__).with_name('left')\n"
        "if 'ipykernel_launcher' in sys.orig_argv and left.read_text():\n"
        "    left.write_text(left.read_text()[1:])\n"
        "    raise SystemExit(1)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    said: list[str] = []
    found = verify.run_problems(checkout, [both(checkout)[1]], 8, said.append)
    assert said[0] == "notebooks/99_demo.ipynb: its kernel did not start, once more"
    assert found == ["notebooks/99_demo.ipynb: its kernel did not start, twice"] * (times - 1)


def test_the_commands(checkout, monkeypatch):
    from typer.testing import CliRunner

    from superb_lite.course.cli import app

    monkeypatch.chdir(checkout.root)
    done = CliRunner().invoke(app, ["check", "--no-run"])
    assert done.exit_code == 0 and "everything as promised" in done.output
    path = both(checkout)[1]
    path.write_text(path.read_text().replace("make a mean.", "make a mess."))
    done = CliRunner().invoke(app, ["check", "--no-run"])
    assert done.exit_code == 1 and "make a mess" in done.output
    done = CliRunner().invoke(app, ["check", "7"])
    assert isinstance(done.exception, UnknownName)


@pytest.mark.parametrize(
    ("source", "folded"),
    [
        ('predict("How many?", "Three.")\nquiz("Which?", {"a": "no", "b": "yes"}, right="b")', True),
        ('predict("How many?", "Three.")\nprint(3)', False),
        ("x = predict", False),
        ("%pip list", False),
        ("", False),
    ],
)
def test_code_with_nothing_but_questions_is_folded_away(project, source, folded):
    path = project.solutions / "99_demo.ipynb"
    nb = building.read(path)
    asked = copy.deepcopy(next(cell for cell in nb.cells if cell.cell_type == "code"))
    asked.update(source=source, id="asked", metadata=type(asked.metadata)())
    nb.cells.append(asked)
    solved = building.solved_version(nb, path.name, project)
    found = [cell.metadata for cell in solved.cells if cell.cell_type == "code" and cell.source == source]
    assert found == [{"jupyter": {"source_hidden": True}, "cellView": "form"} if folded else {}]
    student = building.student_version(solved, path.name, project)
    assert sum("source_hidden" in cell.metadata.get("jupyter", {}) for cell in student.cells) == folded


def test_a_copy_of_a_notebook_is_left_alone(project):
    path = project.solutions / "99_demo.ipynb"
    nb = building.read(path)
    before = copy.deepcopy(nb)
    building.solved_version(nb, path.name, project)
    assert nb == before
