"""The store's bound: what goes, what stays, and that whoever needs what went gets the same numbers again."""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from superb_lite import _eviction, doctor, features
from superb_lite.features import FeatureStore
from superb_lite.tasks import get_task
from superb_lite.testing import TinyUpstream
from superb_lite.types import SuperbLiteError

DAY = 86_400


@pytest.fixture(scope="module")
def clips():
    return get_task("pr").toy("dev", 0).clips


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    """One call of the upstream per shard, three clips or so per call, and every use is noted."""
    monkeypatch.setattr(features, "SHARD_BATCHES", 1)
    monkeypatch.setattr(features.plan_batches, "__defaults__", (2.0,))
    monkeypatch.setattr(_eviction, "TOUCH_SEC", 0.0)


@pytest.fixture
def root(tmp_path):
    return tmp_path / "features"


@pytest.fixture
def size(tmp_path, clips):
    """Bytes that one upstream takes with frames and means."""
    FeatureStore(tmp_path / "one").extract(TinyUpstream(), clips, pooled=False)
    return _eviction.used_bytes(tmp_path / "one")


def filled(root, clips, *seeds, bound=None):
    """A store with frames and means of these upstreams, the first one filled days before the last one."""
    store = FeatureStore(root, bound)
    for age, seed in reversed(list(enumerate(reversed(seeds)))):
        upstream = TinyUpstream(seed)
        store.extract(upstream, clips, pooled=False)
        for index in indexes(store, upstream):
            os.utime(index, (time.time() - (age + 1) * DAY,) * 2)
    return store


def indexes(store, upstream, kind="*"):
    return sorted(store.folder(upstream).glob(f"{kind}-*.json"))


def keys(store, upstream, kind):
    return {key for index in indexes(store, upstream, kind) for key in json.loads(index.read_text())["clips"]}


def copies(arrays):
    return [np.array(array) for array in arrays]


def same(arrays, others):
    return all(np.array_equal(one, other) for one, other in zip(arrays, others, strict=True))


# ------------------------------------------------------------------------------------------ what goes


@pytest.mark.parametrize("used_again", [None, 0, 1])
def test_the_bound_holds_over_all_upstreams_and_the_longest_unused_goes(root, clips, size, used_again):
    first, second, third = (TinyUpstream(seed) for seed in range(3))
    bound = int(2.5 * size)
    store = filled(root, clips, 0, 1, bound=bound)
    before = {seed: indexes(store, up) for seed, up in enumerate((first, second))}
    if used_again is not None:
        FeatureStore(root, bound).get((first, second)[used_again], clips, pooled=False)
    store.extract(third, clips, pooled=False)
    assert 2 * size < _eviction.used_bytes(root) <= bound
    goes, stays = (second, first) if used_again == 0 else (first, second)
    assert indexes(store, stays) == before[stays.revision == "seed1"]
    assert 0 < len(indexes(store, goes)) < len(before[goes.revision == "seed1"])  # no more than was necessary
    assert store.extract(third, clips, pooled=False) == 0  # nothing of the request itself


@pytest.mark.parametrize("steps", [1, 16])
@pytest.mark.parametrize("others", [False, True])
def test_frames_never_stay_without_their_means(root, clips, size, steps, others):
    store = filled(root, clips, 0, 1)
    upstreams = TinyUpstream(0), TinyUpstream(1)
    for index in indexes(store, upstreams[1], "pooled"):
        os.utime(index, (1, 1))  # means that nobody has asked for since they were made
    if others:
        os.utime(indexes(store, upstreams[1], "frames")[0])  # but another process reads their frames now
    for step in reversed(range(steps)):
        bound = 2 * size * step // steps
        left = _eviction.evict(root, bound, ())
        for upstream in upstreams:
            assert keys(store, upstream, "frames") <= keys(store, upstream, "pooled")
        assert left == _eviction.used_bytes(root) and (left <= bound or others)
    assert len(indexes(store, upstreams[1], "frames")) == int(others)


def test_what_others_have_just_used_stays(root, clips, size):
    store = filled(root, clips, 0)
    other, ours, *rest = indexes(store, TinyUpstream(), "frames")
    os.utime(other)  # as another process does
    _eviction.touch(ours)
    os.utime(rest[0], (time.time() + DAY,) * 2)  # a clock that was wrong
    _eviction.evict(root, 0, ())
    assert indexes(store, TinyUpstream(), "frames") == [other]
    os.utime(other, (time.time() - _eviction.IN_USE_SEC - 1,) * 2)
    assert _eviction.evict(root, 0, ()) == 0


def test_nothing_but_our_files_is_counted_or_removed(root, clips):
    store = filled(root, clips, 0)
    mine = store.folder(TinyUpstream()) / "frames.txt"
    mine.write_text("notes")
    _eviction.evict(root, 0, ())
    assert [path for path in root.rglob("*") if path.is_file()] == [mine] and _eviction.used_bytes(root) == 0


# -------------------------------------------------------------------------------- what is asked for again


def test_a_request_larger_than_the_bound_is_served_and_says_so_once(root, clips, size, caplog):
    right = copies(FeatureStore(root.parent / "unbounded").get(TinyUpstream(1), clips, pooled=False))
    store = filled(root, clips, 0, bound=size)
    assert not caplog.records
    store.max_bytes = size // 3
    assert same(store.get(TinyUpstream(1), clips, pooled=False), right)
    assert indexes(store, TinyUpstream(0)) == []  # everything else had to go
    assert store.extract(TinyUpstream(1), clips, pooled=False) == 0
    store.extract(TinyUpstream(2), clips, pooled=False)
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    need, bound = (float(number) for number in re.findall(r"([\d.e-]+) GB", warning))
    assert bound == pytest.approx(size / 3e9, rel=0.01) and "SUPERB_LITE_CACHE_GB" in warning
    data = sum(path.stat().st_size for path in store.folder(TinyUpstream(2)).glob("*.bin"))
    assert need == pytest.approx(data / 1e9, rel=0.1)


@pytest.mark.parametrize("pooled", [True, False])
def test_what_another_process_evicts_is_computed_again_with_equal_numbers(root, clips, pooled, caplog):
    upstream = TinyUpstream()
    store = FeatureStore(root)
    held = store.get(upstream, clips, pooled=pooled)
    before, calls = copies(held), upstream.calls
    assert _eviction.evict(root, 0, ()) == 0
    assert same(held, before)  # a mapped file outlives its removal
    assert same(store.get(upstream, clips, pooled=pooled), before)
    assert upstream.calls == 2 * calls
    late = FeatureStore(root)
    late._scan(late.folder(upstream))  # it has read the indexes when the files go
    for index in indexes(late, upstream):
        _eviction.delete(index)
    late._scan = lambda folder: late._shards[folder]  # and does not look again
    assert late._find(upstream, "pooled" if pooled else "frames", {clip.key for clip in clips}) == {}
    assert same(FeatureStore(root).get(upstream, clips, pooled=pooled), before)
    assert not caplog.records  # eviction is no damage


def test_means_that_go_while_frames_are_computed_come_back_with_them(root, clips):
    store, upstream = FeatureStore(root), TinyUpstream()
    store.extract(upstream, clips, pooled=True)
    store.extract(
        upstream, clips, pooled=False, progress=lambda _, done, total: done == total and _eviction.evict(root, 0, ())
    )
    last = keys(store, upstream, "frames")  # of the shard that was in flight
    assert last and last <= keys(store, upstream, "pooled")


PROCESS = """
import sys
import numpy as np
from superb_lite import _eviction, features
from superb_lite.audio import load
from superb_lite.tasks import get_task
from superb_lite.testing import TinyUpstream

root, bound, order = sys.argv[1], int(sys.argv[2]), [int(seed) for seed in sys.argv[3]]
features.SHARD_BATCHES, features.plan_batches.__defaults__ = 1, (2.0,)
_eviction.IN_USE_SEC = 0.0  # each may take from the other whatever it can
clips = get_task("pr").toy("dev", 0).clips
print("ready", flush=True)
sys.stdin.readline()
for turn in range(5):
    for seed in order:
        upstream = TinyUpstream(seed)
        got = features.FeatureStore(root, bound).get(upstream, clips, pooled=turn % 3 == 2)
        for clip, array in zip(clips, got, strict=True):
            right = upstream([load(clip)]).states[:, 0].numpy()
            right = right.mean(1, keepdims=True) if turn % 3 == 2 else right
            np.testing.assert_allclose(np.array(array, dtype=np.float32), right, rtol=1e-3, atol=1e-3)
"""


def test_two_processes_under_a_tight_bound_end_with_right_numbers(root, size):
    command = [sys.executable, "-c", PROCESS, str(root), str(size // 2)]
    pipes = {name: subprocess.PIPE for name in ("stdin", "stdout", "stderr")}
    work = [subprocess.Popen([*command, order], text=True, **pipes) for order in ("01", "10")]
    for process in work:
        assert process.stdout.readline() == "ready\n"
    for process in work:
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in work:
        _, problems = process.communicate(timeout=120)
        assert process.returncode == 0, problems
        assert problems.count("\n") <= 1 and "corrupt" not in problems  # the warning about the bound
    assert {path.suffix for path in root.rglob("*") if path.is_file()} <= {".bin", ".json"}


KILLED = """
import os, sys
from pathlib import Path
from superb_lite import _eviction

unlink, calls = Path.unlink, []

def last(path, missing_ok=False):
    calls.append(path)
    if len(calls) == int(sys.argv[2]):
        os.kill(os.getpid(), 9)
    unlink(path, missing_ok=missing_ok)

Path.unlink = last
_eviction.evict(Path(sys.argv[1]), 0, ())
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system kills otherwise")
@pytest.mark.parametrize("call", [1, 2, 3, 6, -1])
def test_a_kill_during_eviction_leaves_a_usable_store(root, clips, call, caplog):
    store = filled(root, clips, 0)
    upstream = TinyUpstream()
    right = copies(store.get(upstream, clips, pooled=False))
    for index in indexes(store, upstream):
        os.utime(index, (time.time() - DAY,) * 2)
    everything = 2 * len(indexes(store, upstream))
    call = call if call > 0 else everything
    done = subprocess.run([sys.executable, "-c", KILLED, str(root), str(call)], timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    assert len([path for path in root.rglob("*") if path.is_file()]) == everything - call + 1
    data = {path.with_suffix(".json") for path in root.rglob("*.bin")}
    assert data <= set(root.rglob("*.json"))  # what may remain is the small half
    fresh = FeatureStore(root)
    assert same(fresh.get(upstream, clips, pooled=False), right)
    assert keys(fresh, upstream, "frames") <= keys(fresh, upstream, "pooled")
    assert not caplog.records
    for path in root.rglob("*.*"):
        os.utime(path, (1, 1))
    _eviction.sweep(root)
    assert {index.with_suffix(".bin") for index in root.rglob("*.json")} == set(root.rglob("*.bin"))


# ---------------------------------------------------------------------------------- disks that refuse


def test_a_file_that_cannot_be_opened_is_not_thrown_away(root, clips, monkeypatch):
    store = filled(root, clips, 0)
    before = sorted(root.rglob("*"))

    def refuse(path, *_, **__):
        raise OSError(errno.EMFILE, "Too many open files", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", refuse)
        with pytest.raises(SuperbLiteError, match="cannot read features.*Too many open files.*frames-"):
            store._shards.clear()
            store.get(TinyUpstream(), clips, pooled=False)
    assert sorted(root.rglob("*")) == before


def test_a_system_that_removes_no_mapped_file_keeps_the_shard(root, clips, monkeypatch):
    store = filled(root, clips, 0)
    before = sorted(root.rglob("*"))

    def refuse(path, missing_ok=False):
        raise PermissionError(errno.EACCES, "The process cannot access the file", str(path))

    monkeypatch.setattr(Path, "unlink", refuse)
    assert _eviction.evict(root, 0, ()) == _eviction.used_bytes(root) > 0
    assert sorted(root.rglob("*")) == before
    assert store.extract(TinyUpstream(), clips, pooled=False) == 0


def test_a_store_that_can_only_be_read_is_read(root, clips, monkeypatch):
    store = filled(root, clips, 0)

    def refuse(*_):
        raise PermissionError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "utime", refuse)
    assert len(store.get(TinyUpstream(), clips, pooled=False)) == len(clips)


def test_a_disk_that_keeps_nothing_is_named(root, clips, monkeypatch):
    written = []
    monkeypatch.setattr(FeatureStore, "_find", lambda *_: written.append(1) or {})
    with pytest.raises(SuperbLiteError, match="lost or corrupt as soon as they are written.*SUPERB_LITE_CACHE"):
        FeatureStore(root).extract(TinyUpstream(), clips, pooled=True)
    assert len(written) < 20


# ------------------------------------------------------------------------------------------ the bound


def test_the_bound_is_an_argument_or_a_variable_or_fits_the_disk(tmp_path, monkeypatch):
    gb = 10**9
    monkeypatch.delenv(_eviction.VARIABLE, raising=False)
    assert _eviction.default_bound(100 * gb, 3 * gb) == 20 * gb
    assert _eviction.default_bound(9 * gb, 1 * gb) == _eviction.default_bound(5 * gb, 5 * gb) == 5 * gb
    monkeypatch.setenv(_eviction.VARIABLE, "0.5")
    assert FeatureStore(tmp_path).bound() == gb // 2
    assert FeatureStore(tmp_path, max_bytes=7).bound() == 7
    monkeypatch.setenv(_eviction.VARIABLE, "300")
    assert _eviction.default_bound(9 * gb, 1 * gb) == 300 * gb


@pytest.mark.parametrize("value", ["much", "-1", "nan", "inf", "20 GB"])
def test_a_bound_that_is_no_number_is_refused(tmp_path, monkeypatch, value):
    monkeypatch.setenv(_eviction.VARIABLE, value)
    with pytest.raises(SuperbLiteError, match=f"{_eviction.VARIABLE} is '{value}', expected a number of gigabytes"):
        FeatureStore(tmp_path)
    with pytest.raises(SuperbLiteError, match="max_bytes is -1"):
        FeatureStore(tmp_path, max_bytes=-1)


def test_the_doctor_says_what_is_stored_and_how_much_may_be(tmp_path, clips, monkeypatch):
    monkeypatch.setenv(_eviction.VARIABLE, "12.5")
    store = filled(tmp_path / "features", clips, 0)
    with (store.folder(TinyUpstream()) / "frames-0.bin").open("wb") as file:
        file.truncate(4_100_000_000)  # a hole takes no room
    says = doctor.check_disk(tmp_path).says
    assert f"{store.root}, which take 4.1 of at most 12.5 GB (SUPERB_LITE_CACHE_GB) and may be deleted" in says
