"""The shipped corpus is what its manifest says, and its recipe gives the same sound in any order."""

import hashlib
import importlib.util
import re
import time
import zipfile
from collections import Counter

import numpy as np
import pytest
import torch

from superb_lite import audio
from superb_lite.corpora import _lists, _make, _orders, mini
from superb_lite.types import CorpusMissing, UnknownName

TASKS = {name: getattr(mini, name) for name in "pr ks asr sid asv sd ic sf er".split()}  # qbe trains nothing
SIZES = {
    "pr": (880, 80, 144), "ks": (1560, 240, 288), "asr": (880, 80, 144), "sid": (560, 120, 200), "asv": (880, 80, 144),
    "sd": (280, 60, 220), "ic": (696, 87, 145), "sf": (520, 80, 132), "er": (256, 64, 80),
}  # fmt: skip
SPLITS = ("train", "dev", "test")


def speakers(split):
    """Everybody who is heard in a split; in a dialogue, those who take turns."""
    heard = {clip.labels.get("speaker", "") for clip in split.clips} - {""}
    return heard | {speaker for clip in split.clips for speaker, _, _ in clip.labels.get("turns", ())}


@pytest.mark.parametrize("name", mini.SETS)
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
    assert tuple(map(len, splits)) == SIZES[task]
    assert " / ".join(map(str, SIZES[task])) in mini.__doc__, "the table says something else"
    label = {"ks": "keyword", "sid": "speaker", "er": "emotion"}.get(task)
    if label is not None:
        for split in splits:
            assert {clip.labels[label] for clip in split.clips} == set(split.classes)


@pytest.mark.parametrize("task", ["ks", "pr", "asr", "asv", "sd", "ic", "sf"])
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
    split = mini.pr("test")
    for clip in split.clips:
        phones = clip.labels["phones"]
        assert {name for name, _, _ in phones} <= set(split.classes)
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


def test_clip_ids_and_minutes_of_the_whole_corpus():
    clips = mini.clips()
    derived = [clip for name in SPLITS for clip in (*mini.sd(name).clips, *mini.qbe(name).clips) if clip.parts]
    ids = [clip.id for clip in clips] + sorted({clip.id for clip in derived})
    assert len(ids) == len(set(ids))
    assert f"{sum(clip.seconds for clip in clips) / 60:.0f} minutes" in mini.__doc__


@pytest.mark.parametrize("task", [*TASKS, "qbe"])
def test_splits_are_quick_the_same_every_time_and_refuse_strange_names(task):
    load = getattr(mini, task)
    before, began = load("test").data_hash, time.process_time()
    for cached in (mini._qbe, mini.asv, mini.sd, mini._emotions):
        cached.cache_clear()
    assert load("test").data_hash == before
    assert time.process_time() - began < 1.0
    with pytest.raises(UnknownName, match="no split is called 'valid'"):
        load("valid")


# ---------------------------------------------------------------------------------- lists over clips


def test_verification_trials_are_all_pairs_of_unseen_speakers():
    train = mini.asv("train")
    assert train.trials == () and {clip.gain_db for clip in train.clips} == {-3.0}
    for name, targets in {"dev": 8 * 45, "test": 12 * 66}.items():
        split = mini.asv(name)
        owner = {clip.id: clip.label("speaker") for clip in split.clips}
        assert split.classes == train.classes and not set(owner.values()) & set(split.classes)
        assert all((owner[one] == owner[two]) == same and one != two for one, two, same in split.trials)
        assert sum(same for *_, same in split.trials) == targets == len(split.trials) / 2
        others = Counter(frozenset((owner[a], owner[b])) for a, b, same in split.trials if not same)
        assert len(others) == {"dev": 8 * 7 / 2, "test": 12 * 11 / 2}[name], "every pair of speakers is asked for"
        assert max(others.values()) - min(others.values()) <= 1


def test_dialogues_overlap_a_little_and_their_turns_are_in_the_clip():
    shares = []
    for clip in mini.sd("test").clips:
        turns = {}
        for speaker, start, end in clip.label("turns"):
            assert 0 <= start < end <= clip.seconds
            turns.setdefault(speaker, []).append((start, end))
        assert len(turns) == 2 and 5 <= clip.seconds <= 8 and len(clip.parts) == 3
        shares.append(_lists.overlap_share(turns))
    assert 0.1 <= min(shares) and max(shares) <= 0.35 and 0.15 < np.mean(shares) < 0.3
    assert mini.sd("test").classes == ("first", "second")


def test_turns_are_where_the_dialogue_is_loud():
    """The times belong to the sound: with one voice at a time, turns carry far more energy than the pauses."""
    louder, clips = 0, mini.sd("dev").clips[::6]
    for clip in clips:
        wav = audio.load(clip).numpy()
        assert len(wav) == round(clip.seconds * 16000) and np.abs(wav).max() < 1.5
        speech = np.zeros(len(wav), bool)
        for _, start, end in clip.label("turns"):
            speech[round(start * 16000) : round(end * 16000)] = True
        louder += (wav[speech] ** 2).mean() > 4 * (wav[~speech] ** 2).mean()
    assert louder >= 0.9 * len(clips)


def test_every_query_is_in_a_document_and_in_no_other():
    assert mini.qbe("train").clips == mini.qbe("dev").clips
    heard = {}
    for name, (queries, documents) in {"dev": (80, 60), "test": (90, 90)}.items():
        split = mini.qbe(name)
        clips = {clip.id: clip for clip in split.clips}
        role = Counter(clip.label("role") for clip in split.clips)
        assert role == {"query": queries, "document": documents} and {c.gain_db for c in split.clips} == {-3.0}
        assert f"{queries} " in mini.__doc__ and len(split.trials) == queries * documents
        found = Counter()
        for query, document, contains in split.trials:
            said = f" {clips[document].label('text')} "
            assert contains == (f" {clips[query].label('text')} " in said), (query, document)
            found[query] += contains
        assert len(found) == queries and min(found.values()) >= 1
        assert all(clip.noise_db is not None for clip in split.clips if clip.parts)
        heard[name] = {part.digest for clip in split.clips for part in clip.parts}
        assert heard[name] == {clip.digest for clip in mini.pr(name).clips}, "every sentence is in a document"
    assert not heard["dev"] & heard["test"]


# ------------------------------------------------------------------------------------ labels of the sets


def test_texts_are_words_of_letters_and_every_asr_clip_has_one():
    for name in SPLITS:
        for clip in (*mini.asr(name).clips, *mini.sf(name).clips, *mini.ic(name).clips, *mini.qbe(name).clips):
            assert re.fullmatch(r"[a-z']+( [a-z']+)*", clip.label("text")), clip.id
    assert mini.asr("dev").classes[:5] == ("<s>", "<pad>", "</s>", "<unk>", "|") and len(mini.asr("dev").classes) == 32


def test_commands_and_requests_use_the_classes_of_training():
    order = ["action", "object", "location"]
    for name in SPLITS:
        ic, sf = mini.ic(name), mini.sf(name)
        for clip in ic.clips:
            assert all(f"{slot}={clip.label(slot)}" in ic.classes for slot in order)
        for clip in sf.clips:
            assert len(clip.label("tags")) == len(clip.label("text").split())
            assert all(tag == "O" or f"B-{tag}" in sf.classes for tag in clip.label("tags"))
        slots = [value.split("=")[0] for value in ic.classes]
        assert slots == sorted(slots, key=order.index)
        assert len(sf.classes) == 31 + 2 * 11
    said = {tag for clip in mini.sf("train").clips for tag in clip.label("tags")} - {"O"}
    assert {f"B-{tag}" for tag in said} <= set(sf.classes) and len(said) == 11, "training has every slot"


def test_folds_of_emotion_test_one_session_each():
    tested = []
    for fold in range(5):
        train, dev, test = (mini.er(name, fold) for name in SPLITS)
        assert {clip.label("session") for clip in test.clips} == {fold}
        assert not {clip.label("session") for clip in (*train.clips, *dev.clips)} & {fold}
        assert not speakers(test) & speakers(train) and speakers(dev) <= speakers(train)
        assert set(Counter(clip.label("emotion") for clip in test.clips).values()) == {20}
        assert {split.fold for split in (train, dev, test)} == {fold} and test.classes == ("neu", "hap", "ang", "sad")
        ids = [clip.id for split in (train, dev, test) for clip in split.clips]
        assert len(ids) == len(set(ids)) == 400
        tested += [clip.id for clip in test.clips]
    assert len(tested) == len(set(tested)) == 400
    with pytest.raises(UnknownName, match="no fold of emotion recognition is called '5'"):
        mini.er("test", 5)


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
    orders = list(_orders.sentence_orders(_make.SEED))[::150] + list(_orders.keyword_orders(_make.SEED))[::300]
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
    for order in list(_orders.sentence_orders(_make.SEED))[7::400]:
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
    held_out = set(_orders.DEV_SPEAKERS) | set(_orders.TEST_SPEAKERS)
    orders = [order for order, _ in zip(_orders.unlabelled_orders(0), range(500), strict=False)]
    assert not {order.speaker for order in orders} & held_out and len({o.speaker for o in orders}) == 40
    monkeypatch.setattr(_make, "CHUNK", 5)
    folder = _make.write_unlabelled(tmp_path / "speech", hours=0.001, workers=1)
    lengths = np.load(folder / "lengths.npy")
    assert (folder / "dry.i16").stat().st_size == (folder / "room.i16").stat().st_size
    assert lengths.sum() * 2 == (folder / "room.i16").stat().st_size and lengths.sum() >= 0.001 * 3600 * 16000
