"""What ``superb-lite bench`` measures: figures that are finite, ratios that must come out, and the command around them.

The race with dtw-python, ``bench qbe``, is tested in test_qbe.py.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import replace

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from superb_lite import cli
from superb_lite.bench import cost, extraction, figures, machine, steps
from superb_lite.bench.figures import Effort, Figure, Report, shown
from superb_lite.features import FeatureStore, plan_batches
from superb_lite.tasks import get_task
from superb_lite.testing import TinyUpstream

TINY = Effort(repeats=1, steps=40, clips=6, part=80, pairs=6)
NAP_SEC = 0.2


class Sleepy(TinyUpstream):
    """As slow as it is told to be."""

    name = "sleepy"

    def forward(self, wavs):
        time.sleep(NAP_SEC)
        return super().forward(wavs)


def by_key(found):
    assert len({figure.key for figure in found}) == len(found)
    return {figure.key: figure for figure in found}


def check(found):
    """Every figure and every number behind it is finite and above 0, or 0 where nothing may be left."""
    for figure in found:
        for name, value in {"value": figure.value, **figure.parts}.items():
            assert math.isfinite(value) and (value > 0 or figure.key == "stage.write"), (figure.key, name, value)
        assert figure.group and figure.what and figure.means and shown(figure.value, figure.unit)
    return by_key(found)


@pytest.fixture(scope="module")
def report():
    """Everything once, with an upstream that costs nothing."""
    return cost.measure(effort=TINY, networks=[TinyUpstream()])


# ------------------------------------------------------------------------------------------------ figures


def test_every_figure_is_a_finite_positive_number(report):
    found = check(report.figures)
    assert set(found) == {
        "matmul", "dtw", "memory.process", "growth.hours", "growth.memory", "growth.rates", "speed.tiny", "share.tiny",
        *(f"stage.{stage}" for stage in ("load", "upstream", "write", "read")),
        *(f"{what}.tiny.{task}" for what in ("step", "ratio", "pass") for task in ("ks", "pr", "asr")),
    }  # fmt: skip


def test_figures_follow_from_their_parts(report):
    found = by_key(report.figures)
    for task in ("ks", "pr", "asr"):
        step, passes = found[f"step.tiny.{task}"], found[f"pass.tiny.{task}"].parts
        assert step.value == step.parts["stored_wall"] and step.parts["upstream_wall"] < step.parts["again_wall"]
        assert found[f"ratio.tiny.{task}"].value == pytest.approx(step.parts["again_wall"] / step.parts["stored_wall"])
        recipe = get_task(task).corpus("mini").recipe
        assert passes["head_seconds"] == pytest.approx(recipe.steps * step.value)
        assert 1 < passes["two_rates"] < 2
    hours = found["growth.hours"].parts
    assert 1.5 < hours["twice_audio_seconds"] / hours["once_audio_seconds"] < 2.5
    rates = found["growth.rates"].parts
    assert found["growth.rates"].value == pytest.approx(1 + rates["second_seconds"] / rates["first_seconds"])


def test_operations_are_counted():
    """Frames x bins x dim and frames x dim x dim multiplications and additions, for a clip of one second."""
    counter = steps.FlopCounterMode(display=False)
    steps._counted(counter, TinyUpstream(), [torch.zeros(16000)], "cpu")
    assert counter.get_total_flops() == 2 * 49 * (201 * 24 + 24 * 24)


def test_attention_is_counted_too():
    class Attends(TinyUpstream):
        def forward(self, wavs):
            x = torch.zeros(1, 1, 10, 8)
            torch.nn.functional.scaled_dot_product_attention(x, x, x)

    counter = steps.FlopCounterMode(display=False)
    steps._counted(counter, Attends(), [torch.zeros(16000)], "cpu")
    assert counter.get_total_flops() == 2 * (2 * 10 * 10 * 8)


# ------------------------------------------------------------------------------------------------- ratios


def test_a_slow_upstream_is_felt_in_every_step_that_runs_it_and_in_no_other(tmp_path):
    network, expected = Sleepy(), 0
    found = check(steps.head_steps(network, "cpu", TINY, tmp_path, peak=1e12, target=2.0, tasks=("ks", "pr")))
    for task in ("ks", "pr"):
        step, ratio = found[f"step.sleepy.{task}"], found[f"ratio.sleepy.{task}"]
        assert step.parts["again_wall"] > step.parts["upstream_wall"] >= NAP_SEC
        assert ratio.value > 1 and ratio.target == 2.0
        expected += len(plan_batches(steps.one_batch(task)[1])) + 1 + TINY.repeats  # to store, to warm up, to measure
    assert network.calls == expected
    assert found["speed.sleepy"].value < 60 / NAP_SEC  # at most a minute of audio in a batch


def test_stages_tell_the_upstream_from_the_rest(monkeypatch, tmp_path):
    class Slow(TinyUpstream):
        def forward(self, wavs):
            clock[0] += 3.0
            return super().forward(wavs)

    clock = [0.0]
    monkeypatch.setattr(machine, "now", lambda device="cpu": (clock[0], 0.0))  # time passes in the upstream only
    found = by_key(extraction.stages(Slow(), "cpu", TINY, tmp_path))
    assert {key: figure.value for key, figure in found.items()} == {
        "stage.load": 0.0, "stage.upstream": 3.0, "stage.write": 0.0, "stage.read": 0.0,
    }  # fmt: skip


def test_a_second_learning_rate_needs_no_second_pass(tmp_path):
    network = TinyUpstream()
    (figure,) = steps.twice_the_rates(network, "cpu", TINY, tmp_path)
    task, calls = get_task("ks").corpus("mini"), network.calls
    clips = [clip for name in ("train", "dev") for clip in task.load(name, 0).clips[:: TINY.part]]
    assert FeatureStore(tmp_path / "0").extract(network, clips, pooled=True) == 0 and network.calls == calls
    assert figure.value > 1


def test_the_batch_is_repeated_to_the_size_of_the_corpus():
    task, batch = steps.one_batch("pr")
    split = task.corpus("mini").load("train", 0)
    assert len(split) == len({clip.id for clip in split.clips}) == 880
    assert {clip.key for clip in split.clips} == {clip.key for clip in batch} and len(batch) == 16
    real = sorted(clip.seconds for clip in get_task("pr").corpus("mini").load("train", 0).clips)
    assert real[300] <= min(clip.seconds for clip in batch) <= max(clip.seconds for clip in batch) <= real[580]


# ------------------------------------------------------------------------------------------------ machine


def test_the_machine_is_described_and_its_peak_is_a_rate(monkeypatch):
    seen = machine.facts("cpu")
    assert seen["cores"] >= 1 and seen["threads"] == torch.get_num_threads() and seen["device"] == "cpu"
    assert seen["torch"] == torch.__version__.partition("+")[0] or seen["torch"] == torch.__version__
    ticks = iter(range(100))
    monkeypatch.setattr(machine, "now", lambda device="cpu": (float(next(ticks)), 0.0))
    assert machine.matmul_peak("cpu", side=10, repeats=2) == 2 * 10**3  # every product takes a second


def test_typical_is_the_median_of_each_clock():
    runs = [machine.Took(3.0, 1.0), machine.Took(1.0, 9.0), machine.Took(2.0, 5.0)]
    assert machine.typical(runs) == machine.Took(2.0, 5.0)


def test_official_sizes_are_those_of_the_paper():
    for name, millions, layers, dim in (("hubert_base", 94.4, 13, 768), ("hubert_large", 315.4, 25, 1024)):
        with torch.device("meta"):
            network = cost.official_network(name)
        assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(millions, abs=0.1)
        assert len(network.encoder.transformer.layers) + 1 == layers
        assert network.encoder.transformer.layer_norm.normalized_shape == (dim,)


# ------------------------------------------------------------------------------------------------- report


def test_values_are_shown_in_a_fitting_size():
    cases = {
        (0.0021, "s"): "2.1 ms", (1.234, "s"): "1.23 s", (75.12, "s"): "75.1 s", (1234.5, "times"): "1,234 times",
        (31.26, "times"): "31.3 times", (1.999, "times"): "2.00 times", (41.26, "%"): "41.3%",
        (2.1e11, "FLOP/s"): "210 GFLOP/s", (3.2e8, "B"): "320 MB", (5.4e7, "cells/s"): "54 Mcells/s",
    }  # fmt: skip
    assert {case: shown(*case) for case in cases} == cases


def test_the_table_shows_every_figure_under_its_group_and_its_target(report):
    aimed = replace(report.figures[-1], target=30.0, unit="times")
    console = Console(width=200, record=True, file=open("/dev/null", "w"))
    console.print(Report(report.machine, (*report.figures[:-1], aimed)).table())
    lines = console.export_text().splitlines()
    for figure in report.figures[:-1]:
        assert sum(line.strip() == figure.group for line in lines) == 1
        assert any(figure.what in line and shown(figure.value, figure.unit) in line for line in lines)
    assert sum("target: 30.0 times" in line for line in lines) == 1


def test_a_busy_machine_is_named():
    def made(wall):
        parts = {"stored_wall": wall, "stored_processor": 1.0}
        return Report(machine.facts("cpu"), (Figure("step.tiny.ks", "group", "what", 1.0, "s", "means", parts),))

    assert not made(1.1).busy and not any("other programs" in line for line in made(1.1).footnotes())
    assert made(1.9).busy and "other programs" in made(1.9).footnotes()[-1]


# ------------------------------------------------------------------------------------------- command line


def test_the_command_prints_the_table_and_writes_json(monkeypatch, report, tmp_path):
    asked = {}
    monkeypatch.setattr(cost, "measure", lambda **options: asked.update(options) or report)
    done = CliRunner().invoke(cli.app, ["bench", "--quick", "--json", str(tmp_path / "bench.json")])
    assert done.exit_code == 0, done.output
    assert asked["effort"] == figures.QUICK and asked["device"] == "cpu"
    assert "head steps on tiny" in done.output and "times" in done.output and "torch 2." in done.output
    written = json.loads((tmp_path / "bench.json").read_text())
    assert set(written) == {"machine", "busy", "figures"}
    assert set(written["figures"]) == {figure.key for figure in report.figures}
    assert written["figures"]["step.tiny.ks"]["parts"]["stored_wall"] > 0


def test_the_command_refuses_before_it_measures(monkeypatch, tmp_path):
    monkeypatch.setattr(cost, "measure", lambda **options: pytest.fail("measured"))
    assert CliRunner().invoke(cli.app, ["bench", "--json", str(tmp_path / "no" / "bench.json")]).exit_code == 2
    wrong = CliRunner().invoke(cli.app, ["bench", "--device", "abacus"])
    assert wrong.exit_code == 1 and "abacus" in wrong.output


def test_the_race_is_still_a_command_of_its_own():
    shown_help = CliRunner().invoke(cli.app, ["bench", "--help"]).output
    assert "qbe" in shown_help and "superb-lite bench --json" in shown_help
    assert CliRunner().invoke(cli.app, ["bench", "qbe", "--help"]).exit_code == 0
