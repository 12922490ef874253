"""The store of states: right numbers, computed once, and nothing lost or half written whatever happens."""

from __future__ import annotations

import json
import os
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from superb_lite import _shards, features
from superb_lite.audio import load
from superb_lite.features import FeatureStore, plan_batches
from superb_lite.tasks import get_task
from superb_lite.testing import TinyUpstream
from superb_lite.types import AudioError, Clip, ContractBroken, Hidden, SuperbLiteError


@pytest.fixture
def clips():
    return get_task("pr").toy("dev", 0).clips


@pytest.fixture
def store(tmp_path):
    return FeatureStore(tmp_path / "features")


@pytest.fixture
def small_shards(monkeypatch):
    """One call of the upstream per shard and three clips or so per call."""
    monkeypatch.setattr(features, "SHARD_BATCHES", 1)
    monkeypatch.setattr(features.plan_batches, "__defaults__", (2.0,))


def alone(upstream, clip):
    """(layers, frames, dim) of one clip, straight from the upstream."""
    return upstream([load(clip)]).states[:, 0]


def names(store):
    return sorted(path.name for path in store.root.rglob("*") if path.is_file())


def test_frames_are_those_of_the_upstream(store, clips):
    upstream = TinyUpstream()
    for clip, array in zip(clips, store.get(upstream, clips, pooled=False), strict=True):
        assert array.dtype == np.float16
        expected = alone(upstream, clip)
        torch.testing.assert_close(torch.tensor(np.array(array)).float(), expected, rtol=1e-3, atol=1e-3)


def test_means_are_exact_with_and_without_frames(tmp_path, clips):
    upstream = TinyUpstream()
    without = FeatureStore(tmp_path / "a").get(upstream, clips, pooled=True)
    after = FeatureStore(tmp_path / "b")
    after.extract(upstream, clips, pooled=False)
    for clip, mean, same in zip(clips, without, after.get(upstream, clips, pooled=True), strict=True):
        assert mean.shape == (3, 1, 24) and mean.dtype == np.float32
        expected = alone(upstream, clip).double().mean(1, keepdim=True).float()
        torch.testing.assert_close(torch.tensor(mean), expected, rtol=1e-5, atol=1e-6)
        assert np.array_equal(mean, same)  # not a mean of rounded frames


def test_order_and_repetition_of_clips(store, clips):
    upstream = TinyUpstream()
    wanted = [clips[5], clips[0], clips[5], clips[3]]
    got = store.get(upstream, wanted, pooled=True)
    assert np.array_equal(got[0], got[2]) and not np.array_equal(got[0], got[1])
    torch.testing.assert_close(torch.tensor(got[1][:, 0]), alone(upstream, clips[0]).mean(1), rtol=1e-4, atol=1e-5)


def test_each_clip_passes_the_upstream_once(store, clips):
    upstream = TinyUpstream()
    assert store.extract(upstream, clips[:8], pooled=False) == 8
    calls = upstream.calls
    assert store.extract(upstream, clips[:8], pooled=False) == 0
    assert store.extract(upstream, clips[:8], pooled=True) == 0  # frames bring their means
    assert FeatureStore(store.root).extract(upstream, clips[:8], pooled=False) == 0  # another process
    assert upstream.calls == calls
    assert store.extract(upstream, clips, pooled=True) == len(clips) - 8


def test_frames_after_means_keep_the_means_once(store, clips):
    upstream = TinyUpstream()
    store.extract(upstream, clips[:5], pooled=True)
    assert store.extract(upstream, clips, pooled=False) == len(clips)
    means = [key for path in store.root.rglob("pooled-*.json") for key in json.loads(path.read_text())["clips"]]
    assert len(means) == len(set(means)) == len(clips)


def test_other_weights_or_another_gain_are_other_features(store, clips):
    store.extract(TinyUpstream(), clips, pooled=True)
    assert store.extract(TinyUpstream(seed=1), clips, pooled=True) == len(clips)
    quiet = [replace(clip, gain_db=-3.0) for clip in clips]
    assert store.extract(TinyUpstream(), quiet, pooled=True) == len(clips)


def test_batches_are_short_similar_and_the_same_in_any_order(clips):
    batches = plan_batches(clips, seconds=3.0)
    assert sorted(clip.id for batch in batches for clip in batch) == sorted(clip.id for clip in clips)
    assert max(len(batch) * max(clip.seconds for clip in batch) for batch in batches) <= 3.0
    assert len(batches) < len(clips)
    assert plan_batches(reversed(clips), seconds=3.0) == batches
    assert plan_batches([replace(clips[0], seconds=9.0)], seconds=3.0) == [[replace(clips[0], seconds=9.0)]]


def test_interrupt_loses_only_the_shard_in_flight(store, clips, small_shards):
    upstream = TinyUpstream()
    reference = FeatureStore(store.root.parent / "unbroken").get(upstream, clips, pooled=False)
    seen = []

    def interrupt(what, done, total):
        seen.append(done)
        if len(seen) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.extract(upstream, clips, pooled=False, progress=interrupt)
    assert not [name for name in names(store) if name.endswith(".tmp")]
    assert FeatureStore(store.root).extract(upstream, clips, pooled=False) == len(clips) - seen[1]
    for array, expected in zip(store.get(upstream, clips, pooled=False), reference, strict=True):
        assert np.array_equal(array, expected)  # the same batches, so the same bits


@pytest.mark.parametrize("damage", ["flip", "cut", "gone", "index", "place"])
def test_corrupt_shard_is_found_and_built_again(store, clips, small_shards, damage):
    upstream = TinyUpstream()
    good = [np.array(array) for array in store.get(upstream, clips, pooled=False)]
    victim = sorted(store.root.rglob("frames-*.bin"))[0]
    index = victim.with_suffix(".json")
    lost = len(json.loads(index.read_text())["clips"])
    data = bytearray(victim.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 0x10
        victim.write_bytes(data)
    elif damage == "cut":
        victim.write_bytes(data[:-100])
    elif damage == "gone":
        victim.unlink()
    elif damage == "place":  # a digit of the index, which its checksum does not cover
        content = json.loads(index.read_text())
        content["clips"][max(content["clips"])][0] += 1
        index.write_text(json.dumps(content))
    else:
        index.write_text(index.read_text()[:-20])
    fresh = FeatureStore(store.root)
    assert fresh.extract(upstream, clips, pooled=False) == lost < len(clips)
    for array, expected in zip(fresh.get(upstream, clips, pooled=False), good, strict=True):
        assert np.array_equal(array, expected)


def test_checksum_is_computed_once_per_process(store, clips, monkeypatch):
    upstream = TinyUpstream()
    store.get(upstream, clips, pooled=True)
    monkeypatch.setattr(_shards.hashlib, "file_digest", lambda *_: pytest.fail("verified twice"))
    assert FeatureStore(store.root).extract(upstream, clips, pooled=True) == 0


def test_full_disk_names_the_folder_and_leaves_no_half_shard(store, clips, small_shards, file_limit):
    upstream = TinyUpstream()
    store.extract(upstream, clips[:4], pooled=False)
    before = names(store)
    file_limit(2_000)
    with pytest.raises(SuperbLiteError, match=f"cannot write features to {store.folder(upstream)}.*SUPERB_LITE_CACHE"):
        store.extract(upstream, clips, pooled=False)
    file_limit(None)
    after = names(store)  # the small shard of means may have found room
    assert [name for name in after if name.startswith("frames")] == [n for n in before if n.startswith("frames")]
    assert {name.removesuffix(".bin") for name in after if name.endswith(".bin")} == {
        name.removesuffix(".json") for name in after if name.endswith(".json")
    }
    assert not [name for name in after if name.endswith(".tmp")]
    assert store.extract(upstream, clips, pooled=False) == len(clips) - 4


def test_disk_that_is_full_for_the_index_only(store, clips, monkeypatch):
    upstream = TinyUpstream()

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(_shards.json, "dumps", full)
        with pytest.raises(SuperbLiteError, match="No space left on device"):
            store.extract(upstream, clips, pooled=False)
    assert FeatureStore(store.root).extract(upstream, clips, pooled=False) == len(clips)


def test_broken_sound_is_named_and_earlier_clips_are_kept(store, clips, small_shards, tmp_path):
    broken = tmp_path / "broken.wav"
    broken.write_bytes(b"RIFF nothing")
    bad = Clip("bad", str(broken), seconds=9.0, digest="0" * 64)  # the longest comes last
    upstream = TinyUpstream()
    with pytest.raises(AudioError, match="broken.wav"):
        store.extract(upstream, [*clips, bad], pooled=True)
    assert store.extract(upstream, clips, pooled=True) == 0


class Wrong(TinyUpstream):
    """A TinyUpstream whose answer is spoilt by `how`."""

    def __init__(self, how):
        super().__init__()
        self.how = how

    def forward(self, wavs):
        return self.how(super().forward(wavs))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (lambda h: Hidden(h.states[:-1], h.lengths), "2 layers .* promised 3 layers"),
        (lambda h: Hidden(h.states[..., :-1], h.lengths), "23 dims, promised .* 24 dims"),
        (lambda h: Hidden(h.states[:, :1], h.lengths), "1 clips x 24 dims, promised"),
        (lambda h: Hidden(h.states.repeat(1, 1, 2, 1), h.lengths * 2), "stride of 320 samples means about"),
        (lambda h: Hidden(h.states, h.lengths + 2), "valid frames .* but its states have"),
        (lambda h: Hidden(h.states, h.lengths.float()), "expected .* int64"),
        (lambda h: Hidden(h.states * float("nan"), h.lengths), "not finite"),
        (lambda h: Hidden(h.states * 1e6, h.lengths), "float16"),
        (lambda h: h.states, "returned Tensor, expected Hidden"),
    ],
)
def test_broken_promises_are_told(store, clips, how, message):
    with pytest.raises(ContractBroken, match=message):
        store.extract(Wrong(how), clips, pooled=False)


def test_means_may_exceed_float16(store, clips):
    big = Wrong(lambda h: Hidden(h.states * 1e6, h.lengths))
    means = store.get(big, clips, pooled=True)
    assert np.isfinite(means[0]).all() and np.abs(means[0]).max() > 65504


def test_two_writers_of_the_same_shard_agree(store, clips):
    upstreams = [TinyUpstream(), TinyUpstream()]
    stores = [FeatureStore(store.root) for _ in upstreams]
    work = [
        threading.Thread(target=one.extract, args=(up, clips), kwargs={"pooled": False})
        for one, up in zip(stores, upstreams, strict=True)
    ]
    for thread in work:
        thread.start()
    for thread in work:
        thread.join()
    assert [name.partition("-")[0] + name[-4:] for name in names(store)] == [
        "frames.bin", "framesjson", "pooled.bin", "pooledjson",
    ]  # fmt: skip
    assert FeatureStore(store.root).extract(TinyUpstream(), clips, pooled=False) == 0


def test_leftovers_of_dead_processes_are_swept_and_others_stay(store, clips):
    upstream = TinyUpstream()
    folder = store.folder(upstream)
    folder.mkdir(parents=True)
    for name in ("frames-1.tmp", ".frames-1.0a.tmp.bin", "frames-a.bin", "frames-b.json", "notes.txt", "frames-2.tmp"):
        (folder / name).write_bytes(b"x")
        if name != "frames-2.tmp":  # in use
            os.utime(folder / name, (time.time() - 7200,) * 2)
    store.extract(upstream, clips, pooled=True)
    left = {path.name for path in folder.iterdir() if not path.name.startswith("pooled")}
    assert left == {"notes.txt", "frames-2.tmp"}


def test_folder_name_is_safe(store):
    upstream = TinyUpstream()
    upstream.name, upstream.revision = "../org/model", "a b"
    assert store.folder(upstream).parent == store.root
    assert store.folder(upstream).name == ".._org_model-a_b"
