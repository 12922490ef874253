"""The shipped corpus is what its manifest says, and its recipe gives the same sound in any order."""

import hashlib
import importlib.util
import zipfile

import numpy as np
import pytest
import torch

from superb_lite import audio
from superb_lite.corpora import _make, mini
from superb_lite.types import CorpusMissing

TASKS = {"ks": mini.ks, "sid": mini.sid, "pr": mini.pr}


def speakers(split):
    return {clip.labels["speaker"] for clip in split.clips} - {""}


@pytest.mark.parametrize("name", ["sentences", "keywords"])
def test_every_stored_clip_has_the_checksum_of_the_manifest(name):
    with zipfile.ZipFile(mini.DATA / f"{name}.zip") as archive:
        members = set(archive.namelist())
        for row in mini.manifest(name):
            assert hashlib.sha256(archive.read(f"{row['id']}.opus")).hexdigest() == row["sha256"], row["id"]
    assert members == {f"{row['id']}.opus" for row in mini.manifest(name)}


def test_clips_decode_to_the_length_of_the_manifest():
    for clip in mini.clips()[::97]:
        wav = audio.load(clip)
        assert abs(len(wav) / 16000 - clip.seconds) < 1e-3 and wav.dtype == torch.float32
        assert 0.005 < wav.abs().max() <= 1, clip.id


@pytest.mark.parametrize("task", TASKS)
def test_splits_share_no_clip_and_cover_their_classes(task):
    splits = [TASKS[task](name) for name in ("train", "dev", "test")]
    ids = [clip.id for split in splits for clip in split.clips]
    assert len(ids) == len(set(ids)) and all(len(split) > 50 for split in splits)
    assert len({split.data_hash for split in splits}) == 3
    label = {"ks": "keyword", "sid": "speaker"}.get(task)
    if label is not None:
        for split in splits:
            assert {clip.labels[label] for clip in split.clips} == set(split.classes)


@pytest.mark.parametrize("task", ["ks", "pr"])
def test_dev_and_test_speakers_are_unseen(task):
    train, dev, test = (speakers(TASKS[task](name)) for name in ("train", "dev", "test"))
    assert len(train) == 40 and not train & dev and not train & test and not dev & test


def test_sid_hears_the_same_speakers_everywhere_saying_other_things():
    train, dev, test = (mini.sid(name) for name in ("train", "dev", "test"))
    assert speakers(train) == speakers(dev) == speakers(test) == set(train.classes)
    said = {clip.labels["text"] for clip in train.clips}
    again = [clip.id for clip in test.clips if clip.labels["text"] in said]
    assert len(again) < 0.05 * len(test), again


def test_phone_times_are_ordered_and_inside_the_clip():
    for clip in mini.pr("test").clips:
        phones = clip.labels["phones"]
        assert {name for name, _, _ in phones} <= set(mini.pr("test").classes)
        starts, ends = [p[1] for p in phones], [p[2] for p in phones]
        assert starts == sorted(starts) and starts[0] >= 0.05 and ends[-1] <= clip.seconds
        assert all(end > start for start, end in zip(starts, ends, strict=True)), clip.id


def test_speech_is_louder_where_the_phones_are():
    """The times belong to the sound: frames inside phones carry more energy than the lead-in before them."""
    louder = 0
    clips = mini.pr("test").clips[::6]
    for clip in clips:
        wav, phones = audio.load(clip).numpy(), clip.labels["phones"]
        first, last = int(phones[0][1] * 16000), int(phones[-1][2] * 16000)
        louder += (wav[first:last] ** 2).mean() > 4 * (wav[: first - 400] ** 2).mean()
    assert louder >= 0.95 * len(clips)


def test_the_whole_corpus_leaves_room_for_ten_tasks():
    size = sum(file.stat().st_size for file in mini.DATA.iterdir())
    seconds = sum(clip.seconds for clip in mini.clips())
    assert size < 20e6 * seconds / 9000 * 1.1, f"{size / 1e6:.1f} MB for {seconds / 60:.0f} min is above 20 MB for 150"


def test_a_missing_archive_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(mini, "DATA", tmp_path)
    mini.manifest.cache_clear()
    try:
        with pytest.raises(CorpusMissing, match="sentences.jsonl.gz is missing"):
            mini.sid("train")
    finally:
        mini.manifest.cache_clear()


espeak = pytest.mark.skipif(
    importlib.util.find_spec("espeakng_loader") is None,
    reason="espeak-ng is not installed (pip install 'superb-lite[make]'): new speech cannot be made here",
)


@espeak
def test_the_recipe_gives_the_same_audio_in_any_order():
    orders = list(_make.sentence_orders(_make.SEED))[::150] + list(_make.keyword_orders(_make.SEED))[::300]
    forward = {order.id: _make.make_clip(order, _make.SEED)[0] for order in orders}
    for order in reversed(orders):
        np.testing.assert_array_equal(_make.make_clip(order, _make.SEED)[0], forward[order.id], err_msg=order.id)
    other = _make.make_clip(orders[0], _make.SEED + 1)[0]
    assert len(other) != len(forward[orders[0].id]) or np.abs(other - forward[orders[0].id]).max() > 0.01


@espeak
def test_the_recipe_makes_the_shipped_corpus():
    """Decoded Opus is not the made wave bit for bit, but it is the same recording."""
    rows = {row["id"]: row for row in mini.manifest("sentences")}
    clips = {clip.id: clip for clip in mini.clips()}
    for order in list(_make.sentence_orders(_make.SEED))[7::400]:
        made, _, labels = _make.make_clip(order, _make.SEED)
        assert labels["phones"] == rows[order.id]["phones"]
        stored = audio.load(clips[order.id]).numpy()
        # Opus keeps the spectrum of loud bands, not every sample: compare the envelopes
        made_env, stored_env = (
            np.sqrt((x[: len(x) // 320 * 320].reshape(-1, 320) ** 2).mean(1)) for x in (made, stored)
        )
        assert np.corrcoef(made_env, stored_env[: len(made_env)])[0, 1] > 0.95, order.id


@espeak
def test_unlabelled_speech_never_uses_a_held_out_speaker(tmp_path, monkeypatch):
    held_out = set(_make.DEV_SPEAKERS) | set(_make.TEST_SPEAKERS)
    orders = [order for order, _ in zip(_make.unlabelled_orders(0), range(500), strict=False)]
    assert not {order.speaker for order in orders} & held_out and len({o.speaker for o in orders}) == 40
    monkeypatch.setattr(_make, "CHUNK", 5)
    folder = _make.write_unlabelled(tmp_path / "speech", hours=0.001, workers=1)
    lengths = np.load(folder / "lengths.npy")
    assert (folder / "dry.i16").stat().st_size == (folder / "room.i16").stat().st_size
    assert lengths.sum() * 2 == (folder / "room.i16").stat().st_size and lengths.sum() >= 0.001 * 3600 * 16000
