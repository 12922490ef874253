"""The digits corpus: splits, sources, and every way in which a download can be bad.

Most tests make a small stand-in (three takes instead of fifty); the last one uses the real archive, which is looked for
in SUPERB_LITE_DIGITS and in ../shared/data next to the repository.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tarfile
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pooch
import pytest
import requests
import soundfile

from superb_lite import audio, corpora
from superb_lite.corpora import _lists, digits
from superb_lite.types import CorpusMissing, UnknownName

ROOT = Path(__file__).resolve().parents[1]
TAKES = 3
VOICES = {
    "train": {"george", "jackson", "nicolas"},
    "dev": {"george", "jackson", "nicolas", "yweweler"},
    "test": {"lucas", "theo"},
}
SPEAKERS = {"train": {"george", "jackson", "nicolas", "yweweler"}, "dev": {"lucas"}, "test": {"theo"}}


def content_hash(folder):
    lines = [f"{p.name} {hashlib.sha256(p.read_bytes()).hexdigest()}\n" for p in sorted(folder.glob("*.wav"))]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


@pytest.fixture(scope="session")
def small_source(tmp_path_factory):
    """A folder laid out like the real one, with 180 different sounds of 0.1 s."""
    folder = tmp_path_factory.mktemp("fsdd") / "free-spoken-digit-dataset-master" / "recordings"
    folder.mkdir(parents=True)
    noise = np.random.default_rng(0)
    for digit in range(10):
        for speaker in ("george", "jackson", "lucas", "nicolas", "theo", "yweweler"):
            for take in range(TAKES):
                sound = (3000 * noise.standard_normal(800)).clip(-32768, 32767).astype(np.int16)
                soundfile.write(folder / f"{digit}_{speaker}_{take}.wav", sound, 8000)
    return folder.parent


@pytest.fixture
def source(small_source, tmp_path, monkeypatch):
    """A private copy of the stand-in, with its checksum and number of takes put in place of the real ones."""
    monkeypatch.setenv("SUPERB_LITE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(digits, "TAKES", TAKES)
    monkeypatch.setattr(digits, "OFFICIAL", {"train": range(2, 3), "dev": range(1, 2), "test": range(1)})
    monkeypatch.setattr(digits, "CONTENT_SHA256", content_hash(small_source / "recordings"))
    return Path(shutil.copytree(small_source, tmp_path / "source"))


def scraps(cache):
    return [str(p) for p in cache.rglob("*") if ".tmp" in p.name]


def pack(source, path):
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for file in sorted(source.rglob("*.wav")):
                archive.write(file, f"any-top/{file.relative_to(source)}")
    else:
        with tarfile.open(path, "w:gz") as archive:
            archive.add(source, "any-top")
    return path


# ---------------------------------------------------------------------------------------- the registry


def test_the_folder_is_the_registry(monkeypatch, tmp_path):
    assert "digits" in corpora.list_corpora()
    assert not any(key.startswith("_") for key in corpora.list_corpora())
    assert corpora.get_corpus("digits") is digits
    assert corpora.get_corpus(digits) is digits
    (tmp_path / "mine.py").write_text("KEY = 'mine'")
    (tmp_path / "_helper.py").write_text("")
    monkeypatch.setattr(corpora, "__path__", [*corpora.__path__, str(tmp_path)])
    assert "mine" in corpora.list_corpora()
    assert corpora.get_corpus("mine").KEY == "mine"


def test_unknown_corpus_suggests_the_nearest():
    with pytest.raises(UnknownName, match="no corpus is called 'digit'; did you mean 'digits'"):
        corpora.get_corpus("digit")


@pytest.mark.parametrize("key", corpora.list_corpora())
def test_every_corpus_says_who_it_is(key):
    corpus = corpora.get_corpus(key)
    assert key == corpus.KEY
    assert corpus.TITLE
    assert callable(corpus.clips)


# --------------------------------------------------------------------------------------------- sources


@pytest.mark.parametrize("kind", ["folder", "recordings", "a.tar.gz", "a.zip"])
def test_every_kind_of_source_gives_the_same_and_is_remembered(kind, source, tmp_path):
    given = {"folder": source, "recordings": source / "recordings"}.get(kind)
    if given is None:
        given = pack(source, tmp_path / kind)
    folder = digits.locate(given)
    assert folder.is_relative_to(tmp_path / "cache")
    shutil.rmtree(source)  # the source is no longer needed
    assert digits.locate() == folder
    assert len(list(folder.glob("*.wav"))) == 180
    assert scraps(tmp_path / "cache") == []
    clip = digits.clips()[0]
    assert clip.id == "0_george_0"
    assert clip.digest == hashlib.sha256(Path(clip.audio).read_bytes()).hexdigest()
    assert len(audio.load(clip)) == 1600
    assert clip.seconds == pytest.approx(0.1)


def test_a_second_import_does_not_copy_again(source, tmp_path, monkeypatch):
    folder = digits.locate(source)
    monkeypatch.setattr(digits, "_take", None)
    assert digits.locate(source) == folder


def offline(self, url, output_file, pooch):
    raise requests.exceptions.ConnectionError("no route")


def test_offline_says_what_to_download_and_how_to_go_on(source, monkeypatch):
    monkeypatch.setattr(pooch.HTTPDownloader, "__call__", offline)
    with pytest.raises(CorpusMissing, match=r"'digits' is not on this machine.*no network") as error:
        digits.ks("test")
    assert f"download {digits.URL} and run: superb-lite olympics --corpus digits --from PATH" in str(error.value)


def test_download_is_unpacked_and_the_archive_removed(source, tmp_path, monkeypatch):
    archive = pack(source, tmp_path / "a.tar.gz")
    asked = []

    def serve(self, url, output_file, pooch):
        asked.append(url)
        shutil.copyfile(archive, output_file)

    monkeypatch.setattr(pooch.HTTPDownloader, "__call__", serve)
    assert len(digits.clips()) == 180
    assert len(digits.clips()) == 180
    assert asked == [digits.URL]
    assert list((tmp_path / "cache" / "downloads").iterdir()) == []


def test_a_broken_download_is_not_kept(source, tmp_path, monkeypatch):
    def serve(self, url, output_file, pooch):
        Path(output_file).write_text("<html>please log in</html>")

    monkeypatch.setattr(pooch.HTTPDownloader, "__call__", serve)
    with pytest.raises(CorpusMissing, match="broken archive"):
        digits.locate()
    assert list((tmp_path / "cache" / "downloads").iterdir()) == []
    assert scraps(tmp_path / "cache") == []


def test_wrong_path_is_refused_even_when_the_corpus_is_there(source, tmp_path):
    digits.locate(source)
    with pytest.raises(CorpusMissing, match=r"nowhere\.zip: there is no such archive or folder"):
        digits.locate(tmp_path / "nowhere.zip")


# ------------------------------------------------------------------------------------- broken contents


def test_missing_recordings_are_named(source, tmp_path):
    (source / "recordings" / "3_theo_1.wav").unlink()
    (source / "recordings" / "7_lucas_0.wav").unlink()
    with pytest.raises(CorpusMissing, match=r"2 of 180 recordings are missing: 3_theo_1\.wav, 7_lucas_0\.wav;"):
        digits.locate(source)
    assert list((tmp_path / "cache" / "digits").iterdir()) == []


def test_unreadable_recordings_are_named(source):
    (source / "recordings" / "3_theo_1.wav").write_bytes(b"RIFF")
    with pytest.raises(CorpusMissing, match=r"1 recordings cannot be read: 3_theo_1\.wav;"):
        digits.locate(source)


def test_another_version_is_refused(source):
    a, b = source / "recordings" / "3_theo_1.wav", source / "recordings" / "4_theo_1.wav"
    shutil.copyfile(a, b)
    with pytest.raises(CorpusMissing, match="are not those of version 26eb9aaf76e8"):
        digits.locate(source)


def test_files_lost_later_are_named_and_can_be_mended(source):
    folder = digits.locate(source)
    (folder / "3_theo_1.wav").unlink()
    (folder / "4_theo_1.wav").write_bytes(b"short")
    with pytest.raises(CorpusMissing, match=r"lost or changed: 3_theo_1\.wav, 4_theo_1\.wav; delete this folder"):
        digits.sid("train")
    digits.locate(source)
    assert len(digits.clips()) == 180


def test_a_broken_list_is_reported_and_can_be_mended(source):
    folder = digits.locate(source)
    (folder / "done.json").write_text("{")
    with pytest.raises(CorpusMissing, match=r"done\.json, is broken"):
        digits.clips()
    digits.locate(source)
    assert len(digits.clips()) == 180


# ----------------------------------------------------------------------------------------------- splits


def all_splits(task):
    return {name: task(name) for name in ("train", "dev", "test")}


def check_splits(takes, test_takes, dev_takes):
    """The three tasks' splits hold what the module's documentation says; `takes` per digit and speaker."""
    everything = {f"{d}_{s}_{t}" for d in range(10) for s in digits.SPEAKERS for t in range(takes)}
    for task in (digits.ks, digits.sid, digits.pr):
        ids = [clip.id for split in all_splits(task).values() for clip in split.clips]
        assert len(ids) == len(set(ids))
        assert set(ids) == everything
    for task in (digits.ks, digits.pr):
        for name, split in all_splits(task).items():
            assert {clip.label("speaker") for clip in split.clips} == SPEAKERS[name]
            assert set(Counter(clip.label("keyword") for clip in split.clips).values()) == {takes * len(SPEAKERS[name])}
    for name, wanted in {"test": test_takes, "dev": dev_takes}.items():
        split = digits.sid(name)
        assert {int(clip.id.split("_")[2]) for clip in split.clips} == set(wanted)
        assert set(Counter(clip.label("speaker") for clip in split.clips)) == set(digits.SPEAKERS)


def test_splits_of_the_stand_in(source):
    digits.locate(source)
    check_splits(TAKES, test_takes=[0], dev_takes=[1])


def test_classes_labels_and_gain(source):
    digits.locate(source)
    ks, sid, pr = digits.ks("test"), digits.sid("test"), digits.pr("test")
    assert ks.classes == tuple("zero one two three four five six seven eight nine".split())
    assert sid.classes == ("george", "jackson", "lucas", "nicolas", "theo", "yweweler")
    assert pr.classes[:3] == ("<pad>", "<eos>", "<unk>")
    assert len(pr.classes) == 3 + 19
    assert {clip.gain_db for clip in ks.clips} == {-3.0}
    assert {clip.gain_db for clip in sid.clips + pr.clips} == {0.0}
    seven = next(clip for clip in pr.clips if clip.id.startswith("7_"))
    assert seven.label("phones") == [[phone, None, None] for phone in ["S", "EH", "V", "AH", "N"]]
    assert (seven.label("keyword"), seven.label("text"), seven.label("speaker")) == ("seven", "seven", "theo")
    for clip in pr.clips:
        assert {phone for phone, _, _ in clip.label("phones")} <= set(pr.classes)


# ------------------------------------------------------------------------ strings, dialogues, documents


def speech_of(clip):
    turns = {}
    for speaker, start, end in clip.label("turns"):
        turns.setdefault(speaker, []).append((start, end))
    return turns


def check_lists():
    """What holds for ASV, SD and QbE whatever the number of takes."""
    heard = {name: set() for name in SPEAKERS}
    for name, voices in VOICES.items():
        asv, sd = digits.asv(name), digits.sd(name)
        assert {clip.label("speaker") for clip in asv.clips} == voices and asv.classes == digits.KNOWN
        assert {speaker for clip in sd.clips for speaker in speech_of(clip)} == voices
        assert all(len(clip.parts) == len(clip.label("text").split()) == 5 for clip in asv.clips)
        used = [part.digest for clip in asv.clips for part in clip.parts]
        assert len(used) == len(set(used)), "a recording is used in two strings"
        heard[name] = {*used, *(part.digest for clip in sd.clips for part in clip.parts)}
        for clip in sd.clips:
            assert len(speech_of(clip)) == 2 and 0.1 <= _lists.overlap_share(speech_of(clip)) <= 0.35
            assert clip.label("turns")[0][1] >= 0 and max(end for *_, end in clip.label("turns")) <= clip.seconds
        ids = [clip.id for split in (asv, sd) for clip in split.clips]
        assert len(ids) == len(set(ids))
        assert asv.data_hash == digits.asv(name).data_hash and sd.data_hash == digits.sd(name).data_hash
    assert not heard["train"] & heard["dev"] and not heard["test"] & (heard["train"] | heard["dev"])
    assert digits.asv("train").trials == ()
    for name in ("dev", "test"):
        split = digits.asv(name)
        owner = {clip.id: clip.label("speaker") for clip in split.clips}
        assert all((owner[one] == owner[two]) == same for one, two, same in split.trials)
        assert sum(same for *_, same in split.trials) * 2 == len(split.trials)


def check_queries():
    assert digits.qbe("train").clips == digits.qbe("dev").clips
    asking, searched = {}, {}
    for name in ("dev", "test"):
        split = digits.qbe(name)
        clips = {clip.id: clip for clip in split.clips}
        found = Counter()
        for query, document, contains in split.trials:
            assert contains == (clips[query].label("text") in clips[document].label("text"))
            found[query] += contains
        assert set(found) == {clip.id for clip in split.clips if clip.label("role") == "query"}
        assert min(found.values()) >= 1 and {clip.gain_db for clip in split.clips} == {-3.0}
        for role, voices in (("query", asking), ("document", searched)):
            parts = [part.audio for clip in split.clips if clip.label("role") == role for part in clip.parts]
            voices[name] = {Path(audio).stem.split("_")[1] for audio in parts}
    everyone = [voice for voices in (*asking.values(), *searched.values()) for voice in voices]
    assert sorted(everyone) == sorted(digits.SPEAKERS), "a voice asks and is searched, or is in dev and in test"


def test_lists_of_the_stand_in(source, monkeypatch):
    digits.locate(source)
    monkeypatch.setattr(digits, "DIALOGUES", {"train": 6, "dev": 6, "test": 6})
    check_lists()
    check_queries()
    clip = digits.sd("test").clips[0]
    assert len(audio.load(clip)) == round(clip.seconds * 16000)
    for task in (digits.asv, digits.sd, digits.qbe, digits.asr):
        with pytest.raises(UnknownName, match="no split is called 'valid'"):
            task("valid")
        with pytest.raises(UnknownName, match="no fold of corpus 'digits' is called '1'"):
            task("train", 1)


def test_speech_recognition_has_the_letters_of_the_digits(source):
    digits.locate(source)
    asr = digits.asr("dev")
    assert asr.classes == ("<s>", "<pad>", "</s>", "<unk>", "|", *"EFGHINORSTUVWXZ")
    assert [clip.key for clip in asr.clips] == [clip.key for clip in digits.pr("dev").clips], "features are shared"
    assert all(set(clip.label("text").upper()) <= set(asr.classes) for clip in asr.clips)


def test_splits_repeat_and_tasks_share_features_only_at_equal_gain(source):
    digits.locate(source)
    assert digits.ks("dev").data_hash == digits.ks("dev").data_hash
    assert digits.ks("dev").data_hash != digits.ks("test").data_hash
    ks = {clip.id: clip.key for clip in digits.ks("dev").clips}
    pr = {clip.id: clip.key for clip in digits.pr("dev").clips}
    sid = {clip.id: clip.key for name in ("train", "dev", "test") for clip in digits.sid(name).clips}
    assert all(sid[name] == key for name, key in pr.items())
    assert all(sid[name] != key for name, key in ks.items())


def test_unknown_split_and_fold(source):
    with pytest.raises(UnknownName, match="no split is called 'valid'.*There is: dev, test, train"):
        digits.ks("valid")
    with pytest.raises(UnknownName, match="no fold of corpus 'digits' is called '1'"):
        digits.ks("train", 1)


# ------------------------------------------------------------------------------------- the real archive


def real_archive():
    place = os.environ.get("SUPERB_LITE_DIGITS")
    path = Path(place) if place else ROOT.parent / "shared" / "data" / "free-spoken-digit-dataset.tar.gz"
    if not path.exists():
        pytest.skip(f"no real digits at {path}; set SUPERB_LITE_DIGITS to the archive or folder to run this test")
    return path


def test_the_real_archive(tmp_path, monkeypatch):
    archive = real_archive()
    monkeypatch.setenv("SUPERB_LITE_CACHE", str(tmp_path))
    folder = digits.locate(archive)
    assert len(list(folder.glob("*.wav"))) == 3000
    check_splits(50, test_takes=range(5), dev_takes=range(5, 10))
    sizes = {task.__name__: [len(split) for split in all_splits(task).values()] for task in (digits.ks, digits.sid)}
    assert sizes == {"ks": [2000, 500, 500], "sid": [2400, 300, 300]}
    check_lists()
    check_queries()
    lists = {task.__name__: [len(s) for s in all_splits(task).values()] for task in (digits.asv, digits.sd, digits.qbe)}
    assert lists == {"asv": [240, 160, 200], "sd": [240, 60, 200], "qbe": [100, 100, 150]}
    for split in (digits.asv("test"), digits.sd("test"), digits.sd("dev")):
        for clip in split.clips[::5]:  # theo is turned up, and a few of his recordings are loud
            assert float(audio.load(clip).abs().max()) < 1.5
    clips = digits.clips()
    assert sum(clip.seconds for clip in clips) / 60 == pytest.approx(21.87, abs=0.01)
    shortest, loudest = min(clips, key=lambda clip: clip.seconds), 0.0
    assert shortest.seconds == pytest.approx(0.1435)
    for clip in clips:  # every one of them can be read, the short and the clipped ones too
        loudest = max(loudest, float(audio.load(clip).abs().max()))
    assert 1.0 < loudest < 1.1
