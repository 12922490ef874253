"""Dialogues, trials and documents over made-up clips: exact times, even numbers, the same on every machine."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest

from superb_lite.corpora import _lists
from superb_lite.types import Clip

WORDS = "red blue green black white brown pink grey gold silver".split()
RANGES = {"seconds": (5.0, 8.0), "noise_db": (-50.0, -38.0)}


def sentences(speaker, count=6, seconds=2.6):
    """Clips of one speaker with phones from 0.2 s to 0.2 s before the end."""
    clips = []
    for n in range(count):
        length = seconds + 0.1 * n
        phones = [["AA", 0.2, 1.0], ["B", 1.05, round(length - 0.2, 3)]]
        text = f"{WORDS[n]} {speaker} {WORDS[n + 1]}"
        labels = {"speaker": speaker, "phones": phones, "text": text}
        clips.append(Clip(f"{speaker}-{n}", f"{speaker}-{n}.wav", length, f"{speaker}{n}", labels))
    return clips


def lines(speaker):
    return [_lists.line([clip], _lists.Dice()) for clip in sentences(speaker)]


def flat(stretches):
    return [time for stretch in stretches for time in stretch]


def turns_of(clip):
    found = {}
    for speaker, start, end in clip.label("turns"):
        found.setdefault(speaker, []).append((start, end))
    return found


# --------------------------------------------------------------------------------------------- chance


def test_dice_depend_on_their_words_only():
    assert _lists.Dice("a", 1).shuffled(range(9)) == _lists.Dice("a", 1).shuffled(range(9))
    assert _lists.Dice("a", 1).shuffled(range(9)) != _lists.Dice("a", 2).shuffled(range(9))
    dice = _lists.Dice("b")
    assert {dice.whole(2, 4) for _ in range(99)} == {2, 3, 4}
    assert {dice.one("xyz") for _ in range(99)} == set("xyz")
    assert all(-2 <= dice.uniform(-2, 5) < 5 for _ in range(99))


def test_a_deck_gives_everything_before_it_gives_anything_again():
    deck = _lists.Dice("deck").deck("abcde")
    first, second = (list(itertools.islice(deck, 5)) for _ in range(2))
    assert sorted(first) == sorted(second) == list("abcde") and first != second
    with pytest.raises(ValueError, match="a deck of nothing"):
        next(_lists.Dice().deck([]))


# ---------------------------------------------------------------------------------------------- lines


def test_a_line_knows_where_its_speech_is():
    clips = sentences("ann", 2)
    spoken = _lists.line(clips, _lists.Dice("x"), pause=(0.5, 0.5))
    assert spoken.seconds == pytest.approx(2.6 + 0.5 + 2.7)
    assert [at for _, at in spoken.pieces] == [0.0, 3.1]
    assert flat(spoken.speech) == pytest.approx([0.2, 2.4, 3.3, 5.6])  # the 0.05 s inside a sentence is no pause
    assert [(part.audio, part.start, part.gain_db) for part in spoken.parts(1.0, -2.0)] == [
        ("ann-0.wav", 1.0, -2.0), ("ann-1.wav", 4.1, -2.0)
    ]  # fmt: skip
    assert (spoken.speaker, spoken.text) == ("ann", "red ann blue blue ann green")


def test_a_clip_without_phone_times_is_speech_from_end_to_end():
    clips = [Clip(n, f"{n}.wav", 0.4, n, {"phones": [["AA", None, None]], "speaker": "a", "text": n}) for n in "xy"]
    assert _lists.line(clips, _lists.Dice(), pause=(0.1, 0.1)).speech == ((0.0, 0.9),)
    assert flat(_lists.line(clips, _lists.Dice(), pause=(0.2, 0.2)).speech) == pytest.approx([0.0, 0.4, 0.6, 1.0])


def test_overlap_share_by_hand():
    # 0-2 and 1-4: one second of four has two voices; a second stretch of the first, 5-6, makes it one of five
    assert _lists.overlap_share({"a": [(0, 2)], "b": [(1, 4)]}) == pytest.approx(0.25)
    assert _lists.overlap_share({"a": [(0, 2), (5, 6)], "b": [(1, 4)]}) == pytest.approx(0.2)


# ------------------------------------------------------------------------------------------ dialogues


@pytest.fixture(scope="module")
def dialogues():
    pairs = list(itertools.combinations([lines("ann"), lines("bob"), lines("cyd")], 2))
    return _lists.dialogues("talk", pairs, 60, **RANGES)


def test_dialogues_keep_to_their_ranges(dialogues):
    assert [clip.id for clip in dialogues[:2]] == ["talk-000", "talk-001"]
    assert len({clip.digest for clip in dialogues}) == 60
    for clip in dialogues:
        assert 5 <= clip.seconds <= 8 and -50 <= clip.noise_db <= -38
        turns = turns_of(clip)
        assert len(turns) == 2
        assert 0.1 <= _lists.overlap_share(turns) <= 0.35
        assert len({part.gain_db for part in clip.parts}) <= 2 and all(-5 <= part.gain_db <= 0 for part in clip.parts)
        for own in turns.values():
            assert own[0][0] >= 0 and own[-1][1] <= clip.seconds
            assert all(b[0] - a[1] >= 0.2 - 1e-6 for a, b in itertools.pairwise(own)), "shorter pauses are speech"


def test_turns_are_the_phone_times_of_the_parts(dialogues):
    lengths = {clip.digest: clip.seconds for name in ("ann", "bob", "cyd") for clip in sentences(name)}
    for clip in dialogues:
        expected = {}
        for part in clip.parts:
            stretch = (part.start + 0.2, part.start + lengths[part.digest] - 0.2)
            expected.setdefault(part.digest[:3], []).append(stretch)
        for speaker, own in turns_of(clip).items():
            assert all(b[0] >= a[1] for a, b in itertools.pairwise(sorted(expected[speaker]))), "two mouths"
            wanted = _lists.merged(expected[speaker])
            assert len(own) == len(wanted)
            assert flat(own) == pytest.approx(flat(wanted), abs=1e-3)


def test_nobody_may_interrupt_themselves():
    assert _lists._alternates({"a": [(0, 2), (2, 3)], "b": [(1, 4)]})
    assert not _lists._alternates({"a": [(0, 2), (1.9, 3)], "b": [(1, 4)]})


def test_pairs_and_sentences_are_used_evenly(dialogues):
    assert set(Counter(tuple(sorted(turns_of(clip))) for clip in dialogues).values()) == {20}
    uses = Counter(part.digest for clip in dialogues for part in clip.parts)
    assert len(uses) == 18 and max(uses.values()) <= 3 * min(uses.values())


def test_lines_that_cannot_fit_are_refused():
    with pytest.raises(ValueError, match=r"dialogue 'talk-000': the lines do not fit into \(1, 2\) s"):
        _lists.dialogues("talk", [(lines("ann"), lines("bob"))], 1, seconds=(1, 2), noise_db=(-50, -40))


# --------------------------------------------------------------------------------------------- trials


def test_trials_are_balanced_even_and_of_two_different_clips():
    clips = [clip for name in ("ann", "bob", "cyd", "dan") for clip in sentences(name)]
    trials = _lists.speaker_trials("t", clips)
    owner = {clip.id: clip.label("speaker") for clip in clips}
    assert all(one != two and (owner[one] == owner[two]) == same for one, two, same in trials)
    assert len({frozenset(pair[:2]) for pair in trials}) == len(trials)
    assert Counter(same for *_, same in trials) == {True: 4 * 15, False: 4 * 15}
    others = Counter(frozenset((owner[one], owner[two])) for one, two, same in trials if not same)
    assert len(others) == 6 and set(others.values()) == {10}
    few = _lists.speaker_trials("t", clips, most=20)
    assert Counter(owner[one] for one, _, same in few if same) == dict.fromkeys(owner.values(), 5)
    assert [same for *_, same in trials[:40]].count(True) in range(8, 33), "targets and non-targets are mixed"


def test_trials_need_two_speakers_with_two_clips():
    for clips in (sentences("ann"), sentences("ann", 1) + sentences("bob", 1)):
        with pytest.raises(ValueError, match=r"trials 't': . speaker\(s\) give no pairs"):
            _lists.speaker_trials("t", clips)


# ------------------------------------------------------------------------------------------ documents


def test_groups_have_different_speakers_and_use_everything():
    clips = [clip for name in ("ann", "bob", "cyd") for clip in sentences(name)]
    groups = list(_lists.groups(clips, [2, 3] * 4, _lists.Dice("g")))
    assert [len(group) for group in groups] == [2, 3] * 4
    assert all(len({clip.label("speaker") for clip in group}) == len(group) for group in groups)
    assert {clip.id for group in groups for clip in group} == {clip.id for clip in clips}
    with pytest.raises(ValueError, match="a group of 3 clips by different speakers is asked for, but there are 2"):
        list(_lists.groups(sentences("ann") + sentences("bob"), [3], _lists.Dice()))


def test_documents_hold_what_is_said_in_them_one_after_the_other():
    spoken = _lists.line([sentences("ann")[0], sentences("bob")[1]], _lists.Dice("x"), (0.3, 0.6))
    (clip,) = _lists.documents("doc", [spoken], gain_db=-3.0, noise_db=(-45, -33))
    assert (clip.id, clip.gain_db, clip.label("role")) == ("doc-000", -3.0, "document")
    assert clip.label("text") == "red ann blue blue bob green"
    assert clip.parts[1].start >= 2.6 + 0.3 and clip.seconds == pytest.approx(clip.parts[1].start + 2.7, abs=0.011)
    assert -45 <= clip.noise_db <= -33


def query(words):
    return Clip(f"query {words}", "q.wav", 0.5, words, {"text": words, "role": "query"})


def test_a_phrase_matches_whole_words_in_a_row():
    documents = [
        Clip(str(n), "d.wav", 2.0, str(n), {"text": words})
        for n, words in enumerate(["the old clock stopped", "an older clock", "the clock is old", "old clock"])
    ]
    trials = _lists.phrase_trials([query("old clock"), query("old")], documents)
    assert [found for *_, found in trials] == [True, False, False, True] + [True, False, True, True]
    assert trials[0][:2] == ("query old clock", "0")
    with pytest.raises(ValueError, match=r"no document contains query lock \('lock'\); leave these queries out"):
        _lists.phrase_trials([query("clock"), query("lock")], documents)


def test_lists_are_the_same_for_ever(dialogues):
    """Numbers written down once: another Python or numpy must give the same lists."""
    clips = [clip for name in ("ann", "bob", "cyd") for clip in sentences(name)]
    assert _lists.speaker_trials("t", clips)[:3] == (
        ("cyd-1", "cyd-5", True), ("ann-0", "ann-5", True), ("ann-4", "cyd-4", False)
    )  # fmt: skip
    assert dialogues[0].digest[:16] == "789dc07543aac33b"
    assert dialogues[59].digest[:16] == "d5338a629ed357d8"
