"""Phase 1 learns, and a killed run ends where an unbroken one does."""

import json

import numpy as np
import pytest
import safetensors.torch
import torch

from superb_lite.pretrain import Plan, Speech, Stage, learning_rate, pretrain
from superb_lite.types import SuperbLiteError, UnknownName
from superb_lite.upstreams import hubert

PLAN = Plan(stages=(Stage("mfcc", 8, 6), Stage(2, 8, 6, speed=1.15)), batch_sec=4.0, lr=1e-3)


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
        left[0] -= what.startswith("stage")
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
    ours, theirs = (safetensors.torch.load_file(path) for path in (whole, broken))
    for key, value in ours.items():
        torch.testing.assert_close(value, theirs[key], atol=0, rtol=0, msg=key)
    cards = [json.loads(path.with_suffix(".json").read_text()) for path in (whole, broken)]
    assert cards[0]["curves"] == cards[1]["curves"] and cards[0]["steps"] == 12
    assert hubert.tiny_hubert(broken).revision == hubert.tiny_hubert(whole).revision


def test_it_learns_to_guess_the_units(speech, tmp_path, monkeypatch):
    monkeypatch.setattr("superb_lite.pretrain.SAVE_EVERY", 10)
    plan = Plan(stages=(Stage("mfcc", 8, 60),), batch_sec=6.0, lr=2e-3)
    path = pretrain("tiny_hubert", out=tmp_path / "t.safetensors", data=speech, plan=plan)
    curve = json.loads(path.with_suffix(".json").read_text())["curves"][0]
    assert curve[-1][1] < 0.9 * curve[0][1], curve
    untrained = hubert.tiny_network().state_dict()
    assert safetensors.torch.load_file(path).keys() == untrained.keys()


def test_the_learning_rate_warms_up_and_falls_to_nothing():
    rates = [learning_rate(step, 100, PLAN) for step in range(100)]
    assert rates[0] < rates[7] == max(rates) == PLAN.lr and rates[-1] < 0.02 * PLAN.lr


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
