"""Phase 1 learns, and a killed run ends where an unbroken one does."""

import json
from dataclasses import replace

import numpy as np
import pytest
import safetensors.torch
import torch

from superb_lite import load_upstream
from superb_lite.pretrain import Plan, Speech, learning_rate, pretrain
from superb_lite.types import SuperbLiteError, UnknownName
from superb_lite.upstreams import hubert, load_objective, pretexts
from superb_lite.upstreams._pretext import Stage, load_tiny

PLAN = Plan(steps=12, batch_sec=4.0)


@pytest.fixture(autouse=True)
def two_short_stages(monkeypatch):
    """HuBERT with few units, as for a few clips."""
    short = replace(pretexts()["tiny_hubert"], stages=(Stage(0.5, "mfcc", 8), Stage(0.5, 2, 8)), lr=1e-3)
    monkeypatch.setitem(pretexts(), "tiny_hubert", short)


@pytest.fixture
def speech(tmp_path):
    """Thirty clips of 'syllables': tone bursts of four pitches in noise."""
    rng, folder = np.random.default_rng(0), tmp_path / "speech"
    folder.mkdir()
    clips = []
    for _ in range(30):
        tones = [np.sin(2 * np.pi * rng.choice([300, 600, 1200, 2400]) * np.arange(3200) / 16000) for _ in range(6)]
        wav = 0.2 * np.concatenate(tones)[: rng.integers(12000, 19200)]
        clips.append(((wav + 0.01 * rng.standard_normal(len(wav))) * 32767).astype(np.int16))
    for name in ("room", "dry"):
        np.concatenate(clips).tofile(folder / f"{name}.i16")
    np.save(folder / "lengths.npy", [len(clip) for clip in clips])
    return folder


def stop_after(calls):
    left = [calls]

    def progress(what, done, total):
        left[0] -= ", stage " in what
        if left[0] < 0:
            raise KeyboardInterrupt

    return progress


@pytest.mark.parametrize("stop", [3, 8])  # in the first stage, in the second
def test_a_killed_run_ends_with_the_same_weights(speech, tmp_path, monkeypatch, stop):
    monkeypatch.setattr("superb_lite.pretrain.SAVE_EVERY", 2)
    whole = pretrain("tiny_hubert", out=tmp_path / "whole.safetensors", data=speech, plan=PLAN)
    monkeypatch.setattr("superb_lite.pretrain.REPORT_EVERY", 1)
    broken = tmp_path / "broken.safetensors"
    with pytest.raises(KeyboardInterrupt):
        pretrain("tiny_hubert", out=broken, data=speech, plan=PLAN, progress=stop_after(stop))
    assert not broken.exists()
    pretrain("tiny_hubert", out=broken, data=speech, plan=PLAN)
    for suffix in (".safetensors", ".head.safetensors"):
        ours, theirs = (safetensors.torch.load_file(path.with_suffix(suffix)) for path in (whole, broken))
        for key, value in ours.items():
            torch.testing.assert_close(value, theirs[key], atol=0, rtol=0, msg=key)
    cards = [json.loads(path.with_suffix(".json").read_text()) for path in (whole, broken)]
    assert cards[0]["curves"] == cards[1]["curves"] and cards[0]["curves"][-1][-1][0] == 6
    assert broken.with_suffix(".png").read_bytes()[:4] == b"\x89PNG"
    assert load_upstream("tiny_hubert", broken).revision == load_upstream("tiny_hubert", whole).revision


def few_units(name, monkeypatch):
    first = pretexts()[name].stages[0]
    short = (replace(first, share=1.0, units=8) if first.units else first,)
    monkeypatch.setitem(pretexts(), name, replace(pretexts()[name], stages=short))


@pytest.mark.parametrize("name", sorted(pretexts()))
def test_every_family_goes_through_the_loop(name, speech, tmp_path, monkeypatch):
    """A step of each gives weights that are not those it began with, a card, and an upstream that hears."""
    few_units(name, monkeypatch)
    path = pretrain(name, out=tmp_path / "it.safetensors", data=speech, plan=Plan(steps=1, batch_sec=2.0))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        untrained = pretexts()[name].network().state_dict()
    weights = safetensors.torch.load_file(path)
    assert weights.keys() == untrained.keys()
    assert any(not torch.equal(value, untrained[key].to(value.dtype)) for key, value in weights.items())
    hidden = load_tiny(name, pretexts()[name], path)([torch.randn(16000) * 0.1, torch.randn(9000) * 0.1])
    assert bool(torch.isfinite(hidden.states).all()) and hidden.states.shape[0] >= 3
    pictures = load_objective(name, path).picture(0.1 * torch.randn(16000))
    assert all(bool(torch.isfinite(torch.as_tensor(picture).float()).all()) for picture in pictures.values())
    card = json.loads(path.with_suffix(".json").read_text())
    assert card["columns"][:2] == ["step", "loss"] and len(card["columns"]) == len(card["curves"][0][-1]) >= 3


# what has a state besides its weights: a temperature, units of a second voice, codes, a teacher
@pytest.mark.parametrize("name", ["tiny_wav2vec2", "tiny_wavlm", "tiny_vq_apc", "tiny_distilhubert"])
def test_other_families_go_on_after_a_kill_too(name, speech, tmp_path, monkeypatch):
    monkeypatch.setattr("superb_lite.pretrain.SAVE_EVERY", 1)
    monkeypatch.setattr("superb_lite.pretrain.REPORT_EVERY", 1)
    few_units(name, monkeypatch)
    plan, broken = Plan(steps=3, batch_sec=2.0), tmp_path / "broken.safetensors"
    whole = pretrain(name, out=tmp_path / "whole.safetensors", data=speech, plan=plan)
    with pytest.raises(KeyboardInterrupt):
        pretrain(name, out=broken, data=speech, plan=plan, progress=stop_after(1))
    pretrain(name, out=broken, data=speech, plan=plan)
    ours, theirs = (safetensors.torch.load_file(path) for path in (whole, broken))
    for key, value in ours.items():
        torch.testing.assert_close(value, theirs[key], atol=0, rtol=0, msg=key)


def test_it_learns_to_guess_the_units(speech, tmp_path, monkeypatch):
    monkeypatch.setattr("superb_lite.pretrain.SAVE_EVERY", 10)
    plan = Plan(steps=60, batch_sec=6.0, speed=1.0, warp=0.0, colour=0.0)
    one = replace(pretexts()["tiny_hubert"], stages=(Stage(1.0, "mfcc", 8),), lr=2e-3)
    monkeypatch.setitem(pretexts(), "tiny_hubert", one)
    path = pretrain("tiny_hubert", out=tmp_path / "t.safetensors", data=speech, plan=plan)
    curve = json.loads(path.with_suffix(".json").read_text())["curves"][0]
    assert curve[-1][1] < 0.9 * curve[0][1], curve
    untrained = hubert.tiny_network().state_dict()
    assert safetensors.torch.load_file(path).keys() == untrained.keys()


def test_the_learning_rate_warms_up_and_falls_to_nothing():
    rates = [learning_rate(step, 100, 1e-3, 0.08) for step in range(100)]
    assert rates[0] < rates[7] == max(rates) == 1e-3 and rates[-1] < 0.02 * 1e-3


def test_batches_hold_clips_of_similar_length(speech):
    data, rng = Speech(speech), np.random.default_rng(0)
    clips, samples = data.draw(rng, 5.0)
    assert len(set(clips.tolist())) == len(clips) >= 2 and samples == data.lengths[clips].min()


def test_what_cannot_be_trained_says_so(speech):
    with pytest.raises(UnknownName, match="no upstream that can be pre-trained is called 'fbank'"):
        pretrain("fbank", data=speech)
    (speech / "room.i16").write_bytes(b"\0\0")
    with pytest.raises(SuperbLiteError, match="is broken: 1 samples"):
        pretrain("tiny_hubert", data=speech)


def test_a_checkpoint_of_another_plan_is_not_mixed_in(speech, tmp_path):
    out = tmp_path / "t.safetensors"
    pretrain("tiny_hubert", out=out, data=speech, plan=PLAN, steps=4)
    before = out.read_bytes()
    with pytest.raises(SuperbLiteError, match="t.checkpoint.pt belongs to a run with another plan"):
        pretrain("tiny_hubert", out=out, data=speech, plan=PLAN)
    assert out.read_bytes() == before
