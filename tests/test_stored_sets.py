"""The stored clips: their sizes, what is said in them, and that the recipe still makes them."""

import importlib.util
import io
import itertools
import zipfile
from collections import Counter, defaultdict

import numpy as np
import pytest
import soundfile

from superb_lite.corpora import _grammars, _make, _orders, mini

SIZES = {  # clips of each split of each set
    "sentences": {"train": 880, "dev": 80, "test": 144},
    "keywords": {"train": 1560, "dev": 240, "test": 288},
    "commands": {"train": 696, "dev": 87, "test": 145},
    "requests": {"train": 520, "dev": 80, "test": 132},
    "emotions": {f"session{k}": 80 for k in range(5)},
    "queries": {"dev": 80, "test": 90},
}
NEW_SETS = ("commands", "requests", "emotions", "queries")


def rows_of(name, split):
    return [row for row in mini.manifest(name) if row["split"] == split]


def decoded(name, row, archive):
    """The stored sound, (samples,) at 16 kHz."""
    wav, rate = soundfile.read(io.BytesIO(archive.read(f"{row['id']}.opus")))
    assert rate == 16000 and abs(len(wav) / rate - row["seconds"]) < 1e-3
    return wav


def test_the_sets_have_the_sizes_they_say():
    assert set(SIZES) == set(_orders.SETS) == set(mini.SETS)
    for name, sizes in SIZES.items():
        assert Counter(row["split"] for row in mini.manifest(name)) == sizes, name
        assert len({row["id"] for row in mini.manifest(name)}) == sum(sizes.values())


def test_the_whole_corpus_is_small_enough_to_ship():
    size = sum(file.stat().st_size for file in mini.DATA.iterdir())
    minutes = sum(row["seconds"] for name in SIZES for row in mini.manifest(name)) / 60
    assert {file.name for file in mini.DATA.iterdir()} == {f"{n}.{end}" for n in SIZES for end in ("zip", "jsonl.gz")}
    assert size <= 20e6 and 140 < minutes <= 150, f"{size / 1e6:.2f} MB, {minutes:.1f} minutes"


@pytest.mark.parametrize("name", NEW_SETS)
def test_stored_clips_decode_and_their_phones_lie_inside(name):
    with zipfile.ZipFile(mini.DATA / f"{name}.zip") as archive:
        for row in mini.manifest(name)[::41]:
            assert 0.005 < np.abs(decoded(name, row, archive)).max() <= 1, row["id"]
    for row in mini.manifest(name):
        times = [time for _, start, end in row["phones"] for time in (start, end)]
        assert times == sorted(times) and times[0] >= 0.04 and times[-1] <= row["seconds"], row["id"]


@pytest.mark.parametrize("name", ["sentences", "keywords", "commands", "requests"])
def test_nobody_speaks_in_two_splits(name):
    train, dev, test = ({row["speaker"] for row in rows_of(name, split)} - {""} for split in ("train", "dev", "test"))
    assert train == set(_orders.TRAIN_SPEAKERS) and dev == set(_orders.DEV_SPEAKERS)
    assert test == set(_orders.TEST_SPEAKERS) and not train & dev and not (train | dev) & test


# ------------------------------------------------------------------------------------------- what is said


def test_every_command_has_its_intent_in_every_split_and_test_has_new_phrasings():
    for split, each in (("train", 24), ("dev", 3), ("test", 5)):
        intents = Counter((row["action"], row["object"], row["location"]) for row in rows_of("commands", split))
        assert set(intents) == set(_grammars.INTENTS) and set(intents.values()) == {each}
    said = {row["text"] for row in rows_of("commands", "train")}
    new = [row["text"] for row in rows_of("commands", "test") if row["text"] not in said]
    assert 0.15 * 145 < len(new) < 0.4 * 145 and {row["text"] for row in rows_of("commands", "dev")} <= said
    known = {word for text in said for word in text.split()}
    assert {word for text in new for word in text.split()} - known == {"please"}, "otherwise new orders of known words"


def test_the_words_of_a_command_decide_its_intent():
    meaning = {row["text"]: (row["action"], row["object"], row["location"]) for row in mini.manifest("commands")}
    for row in mini.manifest("commands"):
        assert meaning[row["text"]] == (row["action"], row["object"], row["location"])


def spans(row):
    """[(slot, value)] of a request: runs of equal tags."""
    pairs = zip(row["tags"], row["text"].split(), strict=True)
    return [(tag, " ".join(word for _, word in run)) for tag, run in itertools.groupby(pairs, lambda p: p[0])]


def test_requests_have_one_tag_a_word_and_whole_values():
    for row in mini.manifest("requests"):
        values = [(tag, value) for tag, value in spans(row) if tag != "O"]  # strict zip: as many tags as words
        assert values and row["domain"] in _grammars.REQUESTS
        for tag, value in values:
            assert value in _grammars.SLOTS[tag][0] + _grammars.SLOTS[tag][1], row["text"]


def test_dev_and_test_requests_use_values_that_training_does_not_have():
    """Fifteen values of 83; what training never said is what the grammar holds back, in every slot."""
    new = {(slot, value) for slot, (_, held_back) in _grammars.SLOTS.items() for value in held_back}
    assert len(new) == 15 and sum(len(a) + len(b) for a, b in _grammars.SLOTS.values()) == 83
    used = {split: [s for row in rows_of("requests", split) for s in spans(row)] for split in ("train", "dev", "test")}
    assert not new & set(used["train"])
    for split in ("dev", "test"):
        values = [span for span in used[split] if span[0] != "O"]
        assert 0.08 < sum(span in new for span in values) / len(values) < 0.3
        assert {tag for tag, _ in used[split]} == {*_grammars.SLOTS, "O"}
    assert {tag for tag, _ in used["train"]} == {*_grammars.SLOTS, "O"}


def test_emotions_are_balanced_in_every_session_and_the_words_tell_nothing():
    rows = mini.manifest("emotions")
    for session in range(5):
        here = [row for row in rows if row["session"] == session]
        assert Counter(row["emotion"] for row in here) == dict.fromkeys(("neu", "hap", "ang", "sad"), 20)
        there = {row["speaker"] for row in rows} - {row["speaker"] for row in here}
        assert len({row["speaker"] for row in here}) == 2 and len(there) == 8
    said = Counter((row["speaker"], row["text"]) for row in rows)
    assert set(said.values()) == {4}, "everybody says a sentence once in each emotion"


def decibels(wav):
    return 10 * np.log10((wav**2).mean() + 1e-12)


def test_emotions_differ_in_rate_and_level_and_the_noise_does_not():
    rate, level, floor = (defaultdict(list) for _ in range(3))
    with zipfile.ZipFile(mini.DATA / "emotions.zip") as archive:
        for row in mini.manifest("emotions")[::3]:
            wav = decoded("emotions", row, archive)
            first, last = row["phones"][0][1], row["phones"][-1][2]
            rate[row["emotion"]].append(len(row["phones"]) / (last - first))
            level[row["emotion"]].append(decibels(wav[int(first * 16000) : int(last * 16000)]))
            floor[row["emotion"]].append(decibels(wav[: int(first * 15000)]))
    rate, level, floor = ({key: np.median(each) for key, each in of.items()} for of in (rate, level, floor))
    assert rate["ang"] > rate["neu"] + 2 > rate["sad"] + 4 and rate["hap"] > rate["neu"] + 1
    assert level["ang"] > level["hap"] + 5 > level["neu"] + 7 and level["sad"] < level["neu"] - 6
    assert max(floor.values()) - min(floor.values()) < 4


@pytest.mark.parametrize("split", ["dev", "test"])
def test_queries_occur_in_few_sentences_of_their_split_in_another_voice(split):
    documents = {row["id"]: f" {row['text']} " for row in rows_of("sentences", split)}
    voices = {row["speaker"] for row in rows_of("sentences", split)}
    for row in rows_of("queries", split):
        assert 1 <= sum(f" {row['text']} " in text for text in documents.values()) <= 4, row["text"]
        assert row["speaker"] not in voices and row["speaker"] in _orders.TRAIN_SPEAKERS
        assert 0.3 < row["seconds"] < 1.6 and len(row["phones"]) >= 4
    assert len({row["text"] for row in rows_of("queries", split)}) == SIZES["queries"][split]


# ------------------------------------------------------------------------------------------- the recipe

espeak = pytest.mark.skipif(
    importlib.util.find_spec("espeakng_loader") is None,
    reason="espeak-ng is not installed (pip install 'superb-lite[make]'): new speech cannot be made here",
)


@espeak
@pytest.mark.parametrize("name", NEW_SETS)
def test_the_recipe_gives_the_same_audio_in_any_order(name):
    orders = list(_orders.SETS[name](_make.SEED))[::130]
    forward = {order.id: _make.make_clip(order, _make.SEED)[0] for order in orders}
    for order in reversed(orders):
        np.testing.assert_array_equal(_make.make_clip(order, _make.SEED)[0], forward[order.id], err_msg=order.id)


@espeak
@pytest.mark.parametrize("name", NEW_SETS)
def test_the_recipe_makes_the_shipped_sets(name):
    """Decoded Opus is not the made wave bit for bit, but it is the same recording, and the labels are the same."""
    rows = {row["id"]: row for row in mini.manifest(name)}
    orders = list(_orders.SETS[name](_make.SEED))
    assert [order.id for order in orders] == list(rows)
    for order in orders[7 :: len(orders) // 3]:
        made, _, labels = _make.make_clip(order, _make.SEED)
        assert {key: rows[order.id][key] for key in labels} == labels
        with zipfile.ZipFile(mini.DATA / f"{name}.zip") as archive:
            stored = decoded(name, rows[order.id], archive)
        # Opus keeps the spectrum of loud bands, not every sample: compare the envelopes
        made_env, stored_env = (
            np.sqrt((x[: len(x) // 320 * 320].reshape(-1, 320) ** 2).mean(1)) for x in (made, stored)
        )
        assert np.corrcoef(made_env, stored_env)[0, 1] > 0.95, order.id


@espeak
def test_another_seed_makes_another_corpus(tmp_path, monkeypatch):
    short = {"commands": lambda seed: itertools.islice(_orders.command_orders(seed), 12)}
    monkeypatch.setattr(_make, "SETS", short)
    monkeypatch.setattr(mini, "DATA", tmp_path)
    mini.manifest.cache_clear()
    try:
        assert _make.write_mini(tmp_path, sets=["commands"], seed=7, workers=1)["commands"][0] == 12
        made = {row["id"]: row for row in mini.manifest("commands")}
    finally:
        mini.manifest.cache_clear()
    monkeypatch.undo()
    shipped = {row["id"]: row for row in mini.manifest("commands")}
    assert set(made) < set(shipped)
    assert sum(made[key]["phones"] != shipped[key]["phones"] for key in made) > 9
