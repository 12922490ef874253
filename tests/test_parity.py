"""The command that compares our networks with the official toolkit's states."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from superb_lite import load_upstream, parity
from superb_lite.cli import app
from superb_lite.types import SuperbLiteError


@pytest.fixture
def folder(tmp_path):
    """Reference states made by our own Fbank: what they are is not tested here, only that they are compared."""
    place = tmp_path / "families" / "baseline_fbank_no_cmvn"
    place.mkdir(parents=True)
    write(place)
    return place


def write(place, change=0.0, states=1):
    rng = np.random.default_rng(0)
    wavs = [(3000 * rng.standard_normal(size)).astype(np.int16) for size in (9000, 12000)]
    padded = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(w.astype(np.float32) / 32768) for w in wavs], True)
    made = load_upstream("fbank").published(padded, torch.tensor([9000, 12000])).numpy()[0].copy()
    made[1, 7, 3] += change
    np.savez(place / "io.npz", wav_0=wavs[0], wav_1=wavs[1], **{
        "batch.idx": np.array([0, 1]), "batch.n_hidden": np.array(states), "batch.hs_00": made})  # fmt: skip


def test_equal_states_agree_and_one_other_number_does_not(folder):
    (found,) = parity.compare(folder.parent)
    assert (found.folder, found.states, found.agrees) == ("baseline_fbank_no_cmvn", 1, True)
    write(folder, change=3e-4)
    (found,) = parity.compare(folder.parent)
    assert not found.agrees and found.gap == pytest.approx(3e-4, rel=0.05)


def test_another_number_of_states_or_frames_is_told(folder):
    write(folder, states=2)
    with pytest.raises(SuperbLiteError, match="1 hidden states, expected 2"):
        parity.compare_folder(folder)
    write(folder)
    with np.load(folder / "io.npz") as file:
        arrays = dict(file)
    arrays["batch.hs_00"] = arrays["batch.hs_00"][:, :-1]
    np.savez(folder / "io.npz", **arrays)
    with pytest.raises(SuperbLiteError, match=r"batch.hs_00: the shape is \(2, 73, 240\), expected \(2, 72, 240\)"):
        parity.compare_folder(folder)


def test_the_command_fails_if_a_family_disagrees(folder):
    assert CliRunner().invoke(app, ["parity", str(folder.parent)]).exit_code == 0
    write(folder, change=1e-2)
    result = CliRunner().invoke(app, ["parity", str(folder.parent)])
    assert result.exit_code == 1 and "1.0e-02   MORE THAN 0.0002" in result.output
    with pytest.raises(SuperbLiteError, match="expected reference states, a folder a family"):
        list(parity.compare(folder))
