"""The command line: what it passes on, what it prints, how it fails; and the doctor on broken machines."""

from __future__ import annotations

import errno
import gzip
import io
import json
import os
import shutil
import subprocess
import sys
import time
import types
import zipfile
from pathlib import Path

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from superb_lite import cli, doctor, live
from superb_lite.plan import LR_SEARCH
from superb_lite.results import ResultsTable
from superb_lite.rounds import quick
from superb_lite.types import Score, SuperbLiteError

ROOT = Path(__file__).parents[1]
COMMANDS = ("doctor", "olympics", "upstreams", "parity", "pretrain")


def run(*words: str):
    return CliRunner().invoke(cli.app, list(words))


def in_process(*words: str, **env: str) -> subprocess.CompletedProcess:
    """The command line as a user types it, in another process."""
    path = os.pathsep.join([*filter(None, [env.pop("FIRST", "")]), str(ROOT)])
    return subprocess.run(
        [sys.executable, "-m", "superb_lite.cli", *words],
        env={**os.environ, "PYTHONPATH": path, **env}, capture_output=True, text=True, check=False,
    )  # fmt: skip


def make_score(**changes) -> Score:
    usual = dict(
        corpus="mini", task="ks", metric="acc", value=50.0, upstream="fbank", revision="r1", round=1, seed=0,
        split="test", fold=0, lr=1e-3, recipe="mini", clips=24, layer_weights=(1.0,), seconds=1.5, version="0.1.0",
        data_hash="0123456789ab", device="cpu",
    )  # fmt: skip
    return Score(**{**usual, **changes})


@pytest.fixture
def fake_olympics(monkeypatch):
    """Replaces the long computation; keeps what it was asked for."""
    asked = {}

    def olympics(**options):
        asked.update(options)
        for done, score in enumerate([make_score(), make_score(upstream="random", value=40.0)], start=1):
            options["progress"](f"features: {score.upstream}", done, 2)
            options["on_score"](score)
        return ResultsTable([make_score(), make_score(upstream="random", value=40.0)])

    monkeypatch.setattr("superb_lite.rounds.olympics", olympics)
    return asked


# ------------------------------------------------------------------------------------------------ help


def test_every_command_is_known_here():
    names = {command.name or command.callback.__name__ for command in cli.app.registered_commands}
    assert names == {*COMMANDS, "course"}  # bench is a group of commands


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example_that_names_the_command(command):
    result = run(command, "--help")
    assert result.exit_code == 0
    assert "Example" in result.output and f"superb-lite {command}" in result.output.split("Example")[1]


def test_help_is_quick_because_it_imports_nothing_heavy():
    code = (
        "import sys, superb_lite.cli as c\ntry: c.main()\nexcept SystemExit as end: assert end.code == 0\n"
        "heavy = {'torch', 'pandas', 'matplotlib', 'seaborn', 'rich', 'scipy', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code, "--help"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "olympics" in done.stdout


def test_unknown_option_and_command_are_exit_code_2():
    assert run("olympics", "--nonsense").exit_code == 2
    assert run("nonsense").exit_code == 2
    assert run("olympics", "--seeds", "0").exit_code == 2
    assert run("olympics", "--tasks", " , ").exit_code == 2


# -------------------------------------------------------------------------------------------- olympics


def test_olympics_passes_its_options_on(fake_olympics, tmp_path):
    out = tmp_path / "out"
    words = "--corpus digits --upstreams random,fbank --tasks pr,ks --rounds 2 --seeds 3 --quick --device cpu".split()
    words += "--workers 5 --search-lr --dask tcp://node7:8786".split()
    result = run("olympics", *words, "--out", str(out))
    assert result.exit_code == 0, result.output
    asked = {key: value for key, value in fake_olympics.items() if key not in ("progress", "on_score")}
    assert [round.number for round in asked.pop("rounds")] == [2]
    assert asked == {
        "upstreams": ("random", "fbank"), "tasks": ("pr", "ks"), "corpus": "digits", "seeds": 3, "device": "cpu",
        "out": out, "adjust": quick, "workers": 5, "lr_factors": LR_SEARCH, "engine": "dask",
        "address": "tcp://node7:8786",
    }  # fmt: skip


def test_olympics_defaults_leave_the_choice_to_the_library(fake_olympics, tmp_path):
    assert run("olympics", "--out", str(tmp_path)).exit_code == 0
    assert (fake_olympics["upstreams"], fake_olympics["tasks"], fake_olympics["corpus"]) == (None, None, "mini")
    assert [round.number for round in fake_olympics["rounds"]] == [1, 2]
    assert (fake_olympics["seeds"], fake_olympics["lr_factors"], fake_olympics["engine"]) == (1, (1.0,), "local")


def test_all_is_everyone_who_needs_no_file(fake_olympics, tmp_path):
    from superb_lite.upstreams import list_upstreams

    assert run("olympics", "--all", "--out", str(tmp_path)).exit_code == 0
    first, *others = fake_olympics["upstreams"]
    assert first == "fbank" and {"fbank_cmvn", "random", "tiny_hubert"} <= set(others)
    cards = {card.name: card for card in list_upstreams()}
    ours = {name for name, card in cards.items() if card.read is None and card.family != "baseline"}
    assert {first, *others} == ours
    assert run("olympics", "--all", "--upstreams", "fbank").exit_code == 2


def test_olympics_shows_rows_as_they_come_then_the_table_and_the_files(fake_olympics, tmp_path):
    result = run("olympics", "--out", str(tmp_path))
    lines = result.output.splitlines()
    row = next(number for number, line in enumerate(lines) if line.startswith("ks   random"))
    table = next(number for number, line in enumerate(lines) if "Round 1" in line)
    assert row < table and "acc  40.00" in lines[row]
    assert any("■ 40.0" in line for line in lines[table:])
    for name in ("table.csv", "table.png", "table.html"):
        assert (tmp_path / name).is_file()
        assert f"  {tmp_path / name}" in lines
    assert f"  {tmp_path / 'results.jsonl'}" in lines


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--tasks", "kz"], "no task is called 'kz'; did you mean 'ks'?"),
        (["--upstreams", "tiny_hubrt"], "no upstream is called 'tiny_hubrt'; did you mean 'tiny_hubert'?"),
        (["--corpus", "digit"], "no corpus is called 'digit'; did you mean 'digits'?"),
        (["--rounds", "1,7"], "no round is called '7'"),
        (["--device", "toaster"], "device 'toaster' cannot be used here"),
        (["--corpus", "digits", "--from", "/no/such/file.tar.gz"], "/no/such/file.tar.gz: there is no such archive"),
    ],
)
def test_bad_names_are_one_line_with_the_nearest_name(words, says, fake_olympics, tmp_path):
    result = run("olympics", *words, "--out", str(tmp_path))
    assert result.exit_code == 1
    assert says in result.output and len(result.output.strip().splitlines()) == 1
    assert not fake_olympics, "something was computed before all names were looked up"


def test_from_hands_the_archive_to_the_corpus(fake_olympics, monkeypatch, tmp_path):
    taken = []
    monkeypatch.setattr("superb_lite.corpora.digits.locate", lambda from_path=None: taken.append(from_path))
    result = run("olympics", "--corpus", "digits", "--from", "some.tar.gz", "--out", str(tmp_path))
    assert result.exit_code == 0 and taken == [Path("some.tar.gz")]
    assert run("olympics", "--corpus", "mini", "--from", "some.tar.gz").exit_code == 2


def test_ctrl_c_is_130_and_says_how_to_go_on(monkeypatch, tmp_path):
    def olympics(**options):
        raise KeyboardInterrupt

    monkeypatch.setattr("superb_lite.rounds.olympics", olympics)
    result = run("olympics", "--out", str(tmp_path))
    assert result.exit_code == 130
    assert "run the same command again to resume" in result.output


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (SuperbLiteError("clip 7 is broken;\n   take another"), "error: clip 7 is broken; take another"),
        (OSError(errno.ENOSPC, "No space left on device", "f.bin"), "error: the disk is full (f.bin); make room"),
        (ModuleNotFoundError("No module named 'transformers'", name="transformers"), "superb-lite doctor"),
    ],
)
def test_failures_are_one_line_and_exit_code_1(error, says, monkeypatch, tmp_path):
    def olympics(**options):
        raise error

    monkeypatch.setattr("superb_lite.rounds.olympics", olympics)
    result = run("olympics", "--out", str(tmp_path))
    assert result.exit_code == 1
    assert says in result.output and len(result.output.strip().splitlines()) == 1


@pytest.mark.parametrize("bug", [ValueError("ours"), ImportError("ours", name="superb_lite.x"), OSError(2, "other")])
def test_our_own_mistakes_keep_their_traceback(bug, monkeypatch, tmp_path):
    def olympics(**options):
        raise bug

    monkeypatch.setattr("superb_lite.rounds.olympics", olympics)
    result = run("olympics", "--out", str(tmp_path))
    assert result.exit_code == 1 and result.exception is bug


def test_errors_go_to_stderr():
    done = in_process("olympics", "--tasks", "kz")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: no task is called 'kz'") and "Traceback" not in done.stderr


# ---------------------------------------------------------------------------------------------- screen


def test_a_terminal_sees_bars_and_the_growing_table():
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    with live.Screen(console) as screen:
        screen.progress("features: fbank", 3, 10)
        screen.progress("features: still fbank", 4, 10)
        assert list(screen.bars) == ["features"], "what follows a colon is not another thing"
        screen.score(make_score())
        shown = Console(file=io.StringIO(), width=100)
        shown.print(screen.picture())
        text = shown.file.getvalue()
        assert "still fbank" in text and "4/10" in text and "50.0" in text
        screen.progress("features: fbank", 10, 10)
        assert screen.bars == {}
        screen.progress("olympics", 50, 60)  # a run that goes on: what was there says nothing about the pace
        assert (screen.bar.tasks[0].completed, screen.bar.tasks[0].speed) == (50, None)
        screen.progress("olympics", 51, 60)
        time.sleep(0.1)
        screen.progress("olympics", 52, 60)
        assert 0.8 <= screen.bar.tasks[0].time_remaining < 60  # eight more of a tenth of a second each
        screen.progress("olympics", 60, 60)
        for number in range(9):
            screen.progress(f"thing {number}", 1, 2)
        assert len(screen.bars) == live.MOST_BARS and "thing 8" in screen.bars


def test_with_many_upstreams_the_growing_table_shows_fbank_and_the_latest():
    console = Console(file=io.StringIO(), force_terminal=True, width=80)
    names = ["fbank", *(f"upstream_{number}" for number in range(9))]
    with live.Screen(console) as screen:
        for name in names:
            screen.score(make_score(upstream=name))
        shown = Console(file=io.StringIO(), width=80)
        shown.print(screen.picture())
    seen = [name for name in names if name in shown.file.getvalue()]
    assert seen == ["fbank", *names[-live.LATEST :]]


# ---------------------------------------------------------------------------------- upstreams, pretrain


def test_upstreams_as_json_is_complete():
    from superb_lite.upstreams import list_upstreams

    cards = json.loads(run("upstreams", "--json").output)
    assert [card["name"] for card in cards] == [card.name for card in list_upstreams()]
    assert {"fbank", "random", "tiny_hubert"} <= {card["name"] for card in cards}
    assert all(card["licence"] and card["source"] and card["stride"] > 0 and "build" not in card for card in cards)


def test_upstreams_as_a_table_names_everyone():
    text = run("upstreams").output
    names = ("fbank ", "fbank_cmvn ", "random ", "tiny_hubert ")
    rows = [line for line in text.splitlines() if line.strip().startswith(names)]
    assert len(rows) == 4 and "5 x 192" in rows[-1] and "20 ms" in rows[-1]


def test_pretrain_passes_its_options_on(monkeypatch, tmp_path):
    asked = []

    def pretrain(name, **options):
        asked.append((name, options))
        return "w.st"

    monkeypatch.setattr("superb_lite.pretrain.pretrain", pretrain)
    result = run("pretrain", "tiny_hubert", "--steps", "5", "--out", str(tmp_path / "w.st"))
    assert result.exit_code == 0 and "written: w.st" in result.output
    name, options = asked[0]
    assert (name, options["steps"], options["device"], options["out"]) == ("tiny_hubert", 5, "cpu", tmp_path / "w.st")


def test_pretrain_of_an_unknown_name():
    result = run("pretrain", "tiny_hubet")
    assert result.exit_code == 1 and "did you mean 'tiny_hubert'?" in result.output


def test_course_gets_all_its_words(monkeypatch):
    heard = []
    fake = types.ModuleType("superb_lite.course.cli")
    fake.app = typer.Typer()

    @fake.app.command()
    def build(name: str, fast: bool = False) -> None:
        heard.append((name, fast))

    @fake.app.command()
    def check() -> None:
        raise SuperbLiteError("a promise is broken")

    monkeypatch.setitem(sys.modules, "superb_lite.course.cli", fake)
    assert run("course", "build", "ks", "--fast").exit_code == 0 and heard == [("ks", True)]
    broken = run("course", "check")
    assert broken.exit_code == 1 and "error: a promise is broken" in broken.output
    helped = run("course", "--help")
    assert helped.exit_code == 0 and "build" in helped.output
    assert run("course", "nonsense").exit_code == 2


# ---------------------------------------------------------------------------------------------- doctor


@pytest.mark.parametrize(("statuses", "code"), [(["ok", "ok"], 0), (["ok", "warn"], 0), (["warn", "fail"], 1)])
def test_doctor_prints_a_line_per_check_and_fails_only_for_failures(statuses, code, monkeypatch):
    report = [doctor.Check(f"check{n}", status, "says", "mend it") for n, status in enumerate(statuses)]
    monkeypatch.setattr(doctor, "examine", lambda: report)
    result = run("doctor")
    assert result.exit_code == code
    lines = result.output.splitlines()
    assert [line.split() for line in lines[:2]] == [
        [status, f"check{n}", "says", "->", "mend", "it"] for n, status in enumerate(statuses)
    ]
    assert ("can run the course" in lines[2]) == (code == 0)


def test_doctor_speaks_where_torch_does_not_import(tmp_path):
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise OSError('libcudart.so.13: no such file')")
    done = in_process("doctor", FIRST=str(tmp_path))
    assert done.returncode == 1, done.stdout + done.stderr
    line = next(line for line in done.stdout.splitlines() if "torch pair" in line)
    assert line.startswith("fail") and "libcudart.so.13" in line and doctor.MEND_TORCH in line
    assert sum(line.startswith(("ok", "warn", "fail")) for line in done.stdout.splitlines()) == 9


@pytest.mark.parametrize("package", ["torch", "torchaudio"])
def test_a_broken_torch_sends_to_the_doctor(package, tmp_path):
    (tmp_path / package).mkdir()
    (tmp_path / package / "__init__.py").write_text("raise RuntimeError('different CUDA versions')")
    done = in_process("olympics", FIRST=str(tmp_path))
    assert (done.returncode, done.stdout) == (1, "")
    expected = f"error: {package} does not load (different CUDA versions); superb-lite doctor says what mends it"
    assert done.stderr.strip() == expected


@pytest.mark.parametrize(
    ("versions", "error", "status", "says"),
    [
        (("2.11.0+cu130", "2.11.0+cu130"), "", "ok", "torch 2.11.0+cu130 and torchaudio 2.11.0+cu130"),
        (("2.15.0", "2.11.0"), "RuntimeError: different CUDA", "fail", "only with the torch of the same number"),
        (("2.11.0", "2.11.1"), "OSError: Could not load it", "fail", "only with the torch of the same number"),
        (("2.11.0+cpu", "2.11.0"), "OSError: libtorchaudio.so", "fail", "one is built for the CPU"),
        (("2.11.0", "2.11.0"), "ImportError: bad file", "fail", "the installation is damaged (ImportError: bad file)"),
        (("2.11.0", None), "No module named 'torchaudio'", "fail", "torchaudio not installed"),
        ((None, None), "No module named 'torch'", "fail", "torch and torchaudio not installed"),
        (("2.12.0", "2.11.0"), "", "warn", "not made for each other"),
    ],
)
def test_doctor_explains_the_torch_pair(versions, error, status, says, monkeypatch):
    known = dict(zip(("torch", "torchaudio"), versions, strict=True))
    monkeypatch.setattr(doctor, "_version", known.get)
    check = doctor.check_torch(known if not error else {}, error)
    assert check.status == status and says in check.says
    assert (check.fix == "") == (status == "ok")


def test_doctor_probes_torch_in_another_process(monkeypatch):
    found, error = doctor.probe_torch()
    assert error == "" and found["torch"].startswith("2.11.") and "gpu" in found
    monkeypatch.setattr(doctor, "_TORCH_PROBE", "import os; os.abort()")
    assert doctor.probe_torch() == ({}, "the import ended with code -6 and no message")
    monkeypatch.setattr(doctor, "_TORCH_PROBE", "import time; time.sleep(60)")
    assert "took longer" in doctor.probe_torch(timeout_sec=0.5)[1]


@pytest.mark.parametrize(
    ("version", "status"),
    [((3, 10, 9), "fail"), ((3, 11, 0), "ok"), ((3, 13, 9), "ok"), ((3, 14, 0), "warn"), ((4, 0, 0), "warn")],
)
def test_doctor_knows_pythons(version, status):
    assert doctor.check_python(version).status == status


def test_doctor_and_gpus(monkeypatch):
    assert "T4, 15 GB" in doctor.check_gpu({"gpu": ["T4", 15 * 2**30]}).says
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert doctor.check_gpu({"gpu": None}).status == "ok"
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    assert doctor.check_gpu({"gpu": None}).status == "warn"


def test_doctor_hears(monkeypatch):
    import soundfile

    assert doctor.check_audio().status == "ok"
    with monkeypatch.context() as patch:
        patch.setattr(soundfile, "read", lambda *args, **options: ([0.0] * 5, 16_000))
        assert "5 samples" in doctor.check_audio().says
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "soxr", None)
        broken = doctor.check_audio()
        assert broken.status == "fail" and "soxr" in broken.says and broken.fix == doctor.MEND_CORE

    def no_opus(*args, **options):
        raise soundfile.LibsndfileError(1, "no Opus: ")

    monkeypatch.setattr(soundfile, "write", no_opus)
    assert doctor.check_audio().status == "fail"


@pytest.mark.parametrize(("free_gb", "status"), [(0.2, "fail"), (2.0, "warn"), (50.0, "ok")])
def test_doctor_measures_the_disk(free_gb, status, monkeypatch, tmp_path):
    usage = types.SimpleNamespace(free=int(free_gb * 1e9))
    asked = []
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: asked.append(folder) or usage)
    check = doctor.check_disk(tmp_path / "not" / "yet")
    assert (check.status, asked) == (status, [tmp_path])
    assert "not/yet" in check.says.replace("\\", "/")


def test_doctor_tries_to_write(tmp_path):
    assert doctor.check_writing(tmp_path / "new", tmp_path).status == "ok"
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    check = doctor.check_writing(tmp_path / "file" / "cache", tmp_path)
    assert check.status == "fail" and "SUPERB_LITE_CACHE" in check.fix
    assert doctor.check_writing(tmp_path, tmp_path / "file").fix.startswith("cd ")


def make_corpus(folder: Path, ids: list[str], stored: list[str]) -> Path:
    folder.mkdir()
    lines = "".join(json.dumps({"id": name}) + "\n" for name in ids)
    (folder / "set.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    with zipfile.ZipFile(folder / "set.zip", "w") as archive:
        for name in stored:
            archive.writestr(f"{name}.opus", b"sound")
    return folder


def test_doctor_counts_the_corpus(tmp_path):
    whole = make_corpus(tmp_path / "whole", ["a", "b"], ["a", "b"])
    assert doctor.check_corpus(whole).says.startswith("2 clips")
    assert "lacks 1 of 2 clips" in doctor.check_corpus(make_corpus(tmp_path / "part", ["a", "b"], ["a"])).says
    (tmp_path / "none").mkdir()
    assert doctor.check_corpus(tmp_path / "none").status == "fail"
    archive = whole / "set.zip"
    archive.write_bytes(archive.read_bytes()[:-30])
    assert "damaged" in doctor.check_corpus(whole).says
    archive.unlink()
    assert doctor.check_corpus(whole).status == "fail"


def test_doctor_finds_the_corpus_of_this_package():
    assert doctor.check_corpus().status == "ok"


def test_doctor_needs_no_lab_and_no_espeak(monkeypatch):
    monkeypatch.setattr(doctor, "_version", {"ipykernel": "7"}.get)
    check = doctor.check_lab()
    assert check.status == "warn" and check.says.startswith("jupyterlab, nbval not installed")
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None)
    assert doctor.check_espeak().status == "ok" and "not needed" in doctor.check_espeak().says


def test_a_check_that_breaks_is_a_failed_check(monkeypatch):
    def broken():
        raise ValueError("oh")

    monkeypatch.setattr(doctor, "probe_torch", lambda: ({}, "none"))
    monkeypatch.setattr(doctor, "check_audio", broken)
    report = {check.name: check for check in doctor.examine()}
    assert report["audio"].status == "fail" and "ValueError: oh" in report["audio"].says
    assert len(report) == 9 and doctor.exit_code(list(report.values())) == 1


def test_doctor_looks_where_features_are_stored(monkeypatch, tmp_path):
    from superb_lite.files import cache_root

    for value in ("", str(tmp_path), "~/somewhere"):
        monkeypatch.setenv("SUPERB_LITE_CACHE", value)
        assert doctor.cache_folder() == cache_root()
