"""Every upstream keeps its promises; Fbank equals the official one; weight files are read safely."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from superb_lite import list_upstreams, load_upstream
from superb_lite.types import AudioError, CheckpointRefused, ContractBroken, UnknownName
from superb_lite.upstreams import get_card, hubert
from superb_lite.upstreams._pretext import weights_card

FIXTURES = Path(__file__).parent / "fixtures"
NAMES = [card.name for card in list_upstreams() if card.build is not None]  # the others need a file


def waves(*seconds, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [0.1 * torch.randn(int(16000 * s), generator=generator) for s in seconds]


def test_the_four_contestants_of_the_first_round_are_there():
    assert {"fbank", "fbank_cmvn", "random", "tiny_hubert"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_the_card_tells_the_truth(name):
    card, upstream = get_card(name), load_upstream(name)
    size = sum(p.numel() for p in upstream.parameters())
    assert (upstream.name, upstream.layers, upstream.dim, upstream.stride) == (name, card.layers, card.dim, card.stride)
    assert size == card.parameters
    assert card.licence and card.source and card.family


@pytest.mark.parametrize("name", NAMES)
def test_batch_mates_do_not_matter(name):
    upstream, wavs = load_upstream(name), waves(1.3, 0.05, 2.07, 0.7)
    together = upstream(wavs)
    for n, wav in enumerate(wavs):
        alone = upstream([wav])
        frames = int(alone.lengths[0])
        assert int(together.lengths[n]) == frames and abs(frames * upstream.stride - len(wav)) < 1000
        # float32 rounds values near 1 in other places when matrices have other sizes
        torch.testing.assert_close(together.states[:, n, :frames], alone.states[:, 0], atol=2e-5, rtol=0)
        assert together.states[:, n, frames:].abs().sum() == 0, "padding must be zeros"


@pytest.mark.parametrize("name", NAMES)
def test_an_upstream_stays_frozen(name):
    upstream, (wav,) = load_upstream(name), waves(0.5)
    before = upstream([wav]).states
    parent = torch.nn.Sequential(upstream)
    parent.train()
    assert not any(module.training for module in upstream.modules() if module is not parent)
    assert not any(p.requires_grad for p in upstream.parameters()) and not upstream([wav]).states.requires_grad
    torch.testing.assert_close(upstream([wav]).states, before, atol=0, rtol=0)


@pytest.mark.parametrize(("name", "case"), [("fbank", "plain"), ("fbank_cmvn", "cmvn")])
def test_fbank_is_the_official_feature(name, case):
    """Numbers made with s3prl 0.4.18 (its `fbank` and `fbank_no_cmvn`) on the clip `wav`, every fourth frame.

    A log energy near the floor differs in the fourth digit between processors; a wrong window, floor or
    delta is wrong everywhere, so nearly all values must agree tightly and none may be far off.
    """
    stored = np.load(FIXTURES / "fbank.npz", allow_pickle=False)
    wav = torch.from_numpy(stored["wav"].astype(np.float32) / 32768)
    got = load_upstream(name)([wav]).states[0, 0].numpy()
    assert got.shape == (stored["frames"], 240)
    difference = np.abs(got[::4] - stored[case])
    assert np.quantile(difference, 0.995) < 1e-4 and difference.max() < 2e-3


def test_the_time_mean_of_cmvn_is_zero_and_of_plain_fbank_is_not():
    (wav,) = waves(2.0)
    assert load_upstream("fbank_cmvn")([wav]).states[0, 0].mean(0).abs().max() < 1e-4
    assert load_upstream("fbank")([wav]).states[0, 0].mean(0).abs().max() > 1


def test_random_is_the_same_everywhere_and_touches_no_global_state():
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    first = load_upstream("random")
    torch.testing.assert_close(torch.rand(1), expected)
    (wav,) = waves(0.5)
    torch.testing.assert_close(first([wav]).states, load_upstream("random")([wav]).states, atol=0, rtol=0)


def test_training_changed_the_weights():
    trained, untrained = load_upstream("tiny_hubert"), load_upstream("random")
    (wav,) = waves(1.0)
    assert (trained([wav]).states - untrained([wav]).states).abs().mean() > 0.1
    card = weights_card("tiny_hubert")
    assert card["steps"] >= 1000 and float(card["data"].split()[0]) >= 4 and card["licence"] == "MIT"
    losses = [point[1] for point in card["curves"][-1]]
    assert losses[-1] == card["final_loss"] < losses[0]


@pytest.mark.parametrize(
    ("wavs", "message"),
    [
        ([], "no waveform"),
        ([torch.zeros(2, 16000)], r"\(2, 16000\)"),
        ([torch.zeros(100)], "100 samples; expected at least 800"),
        ([torch.full((16000,), float("nan"))], "peak of nan"),
        ([torch.full((16000,), 3000.0)], "left in 16-bit integers"),
        ([torch.zeros(16000, dtype=torch.float64)], "float64"),
    ],
)
def test_bad_waveforms_are_refused(wavs, message):
    with pytest.raises(AudioError, match=message):
        load_upstream("fbank")(wavs)


def test_an_unknown_name_gets_a_suggestion():
    with pytest.raises(UnknownName, match="did you mean 'tiny_hubert'"):
        load_upstream("tiny_huber")


def test_something_else_is_not_an_upstream():
    with pytest.raises(ContractBroken, match="lacks name, revision"):
        load_upstream(torch.nn.Linear(2, 2))


class Bomb:
    def __reduce__(self):
        return (Path("exploded").touch, ())


def test_a_pickled_checkpoint_is_refused_without_running_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, write in (("a", lambda f: pickle.dump(Bomb(), f)), ("b", lambda f: torch.save({"w": Bomb()}, f))):
        with open(tmp_path / name, "wb") as file:
            write(file)
        with pytest.raises(CheckpointRefused, match=f"{name}: refused, it holds a pickle"):
            load_upstream("tiny_hubert", tmp_path / name)
    assert not (tmp_path / "exploded").exists()


def test_broken_or_foreign_weights_are_refused(tmp_path):
    good = safetensors.torch.save(hubert.tiny_network().state_dict())
    (tmp_path / "cut").write_bytes(good[: len(good) // 2])
    with pytest.raises(CheckpointRefused, match="cut: refused, it is broken"):
        load_upstream("tiny_hubert", tmp_path / "cut")
    (tmp_path / "deep").write_bytes(safetensors.torch.save(hubert.tiny_network(blocks=5).state_dict()))
    with pytest.raises(CheckpointRefused, match="another network .*layers.4"):
        load_upstream("tiny_hubert", tmp_path / "deep")
    with pytest.raises(CheckpointRefused, match="no such weight file"):
        load_upstream("tiny_hubert", tmp_path / "nowhere")


def test_masked_units_hides_about_half_in_spans():
    objective = hubert.MaskedUnits(hubert.tiny_network(), units=7)
    hide = objective.mask(200, 100, torch.Generator().manual_seed(0))
    assert 0.4 < hide.float().mean() < 0.55
    # a span that is not cut off by the end of the clip hides at least ten frames
    for row in hide[:50].tolist():
        text = "".join("x" if h else "." for h in row).rstrip("x")
        assert all(len(run) >= 10 for run in text.split(".") if run)


class Frames(torch.nn.Module):
    """A front end that is given its frames."""

    def forward(self, wavs, samples):
        return wavs, None


def masked_units(**options):
    objective = hubert.MaskedUnits(hubert.tiny_network(), units=7, **options)
    objective.network.feature_extractor = Frames()
    return objective


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_alpha_weighs_hidden_against_visible_frames(alpha):
    """With alpha 1 only hidden frames count, with alpha 0 only visible ones."""
    objective = masked_units(alpha=alpha)
    features = torch.randn(2, 49, 160, generator=torch.Generator().manual_seed(2))
    units = torch.randint(0, 7, (2, 49), generator=torch.Generator().manual_seed(1))
    hide = objective.mask(2, 49, torch.Generator().manual_seed(5))

    def loss(targets):
        return objective(features, targets, torch.Generator().manual_seed(5))[0]

    counts = hide if alpha == 1 else ~hide
    other = (units + 1) % 7
    torch.testing.assert_close(loss(torch.where(counts, units, other)), loss(units))
    assert abs(loss(torch.where(counts, other, units)) - loss(units)) > 1e-3


def test_the_network_never_sees_a_hidden_frame():
    """What is under the mask must not reach the output: other sound there, same guesses."""
    objective = masked_units()
    mels = torch.randn(1, 60, 160, generator=torch.Generator().manual_seed(0))
    hide = objective.mask(1, 60, torch.Generator().manual_seed(3))
    assert hide.any()

    units = torch.zeros(1, 60, dtype=torch.int64)
    heard = (mels, torch.where(hide[..., None], mels + 5.0, mels))
    losses = [objective(features, units, torch.Generator().manual_seed(3))[0] for features in heard]
    torch.testing.assert_close(*losses)


