"""How good is it? Pure functions from references and hypotheses to a number in percent.

Error rates count edits over the whole set and divide once at the end: averaging one rate per utterance would let
a two-phone word weigh as much as a long sentence. A score that cannot be computed raises; it is never NaN.

Taught in notebook 02 (freeze, weigh, probe) and notebook 04 (keyword spotting).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rapidfuzz.distance import Levenshtein

from superb_lite.text import read_slots


@dataclass(frozen=True)
class Edits:
    """What must be changed to turn a hypothesis into its reference; edits of several utterances add up.

    `reference` is the number of symbols in the reference.
    """

    substitutions: int = 0
    deletions: int = 0
    insertions: int = 0
    reference: int = 0

    def __add__(self, other: Edits) -> Edits:
        return Edits(
            self.substitutions + other.substitutions,
            self.deletions + other.deletions,
            self.insertions + other.insertions,
            self.reference + other.reference,
        )

    @property
    def total(self) -> int:
        return self.substitutions + self.deletions + self.insertions

    @property
    def percent(self) -> float:
        """Edits per 100 reference symbols; above 100 if much is invented. Raises ValueError without references."""
        if self.reference == 0:
            raise ValueError("the references hold no symbol at all, so there is no error rate; are the labels empty?")
        return 100.0 * self.total / self.reference


def edits(ref: Sequence[str], hyp: Sequence[str]) -> Edits:
    """The fewest substitutions, deletions and insertions between two lists of symbols (Levenshtein).

    Taught in notebook 02.

    >>> edits("K AE T".split(), "K AH T S".split())
    Edits(substitutions=1, deletions=0, insertions=1, reference=3)
    """
    kinds = [operation.tag for operation in Levenshtein.editops(hyp, ref)]
    # editops turns hyp into ref: what it must insert was deleted by the recogniser, and the reverse
    return Edits(kinds.count("replace"), kinds.count("insert"), kinds.count("delete"), len(ref))


def error_rate(refs: Sequence[Sequence[str]], hyps: Sequence[Sequence[str]]) -> float:
    """Edits in percent of the reference symbols, pooled over all utterances.

    refs, hyps: one list of symbols per utterance, in the same order. Raises ValueError if their numbers differ or
    there is no reference symbol, TypeError if an utterance is a string instead of a list.
    Source: SUPERB section PR and ASR (corpus level). Taught in notebook 02.

    >>> error_rate([["a", "b"], ["c", "d"]], [["a"], ["c", "d"]])
    25.0
    """
    _same_number(refs, hyps)
    for symbols in [*refs, *hyps]:
        if isinstance(symbols, str):
            raise TypeError(f"got the string {symbols!r}, expected a list of symbols; did you forget .split()?")
    return sum((edits(ref, hyp) for ref, hyp in zip(refs, hyps, strict=True)), Edits()).percent


def per(refs: Sequence[Sequence[str]], hyps: Sequence[Sequence[str]]) -> float:
    """Phone error rate in percent; refs and hyps are lists of phones. See `error_rate`. Taught in notebook 02."""
    return error_rate(refs, hyps)


def wer(refs: Sequence[str], hyps: Sequence[str]) -> float:
    """Word error rate in percent; refs and hyps are sentences, split at white space.

    >>> wer(["turn the light off"], ["turn light of"])
    50.0
    """
    return error_rate([ref.split() for ref in refs], [hyp.split() for hyp in hyps])


def cer(refs: Sequence[str], hyps: Sequence[str]) -> float:
    """Character error rate in percent; spaces are characters.

    >>> cer(["seven"], ["sven"])
    20.0
    """
    return error_rate([list(ref) for ref in refs], [list(hyp) for hyp in hyps])


def accuracy(refs: Sequence[Any], hyps: Sequence[Any]) -> float:
    """Percentage of predictions that are exactly right. Raises ValueError if empty or of unequal length.

    Taught in notebook 04.

    >>> accuracy(["yes", "no", "up", "no"], ["yes", "no", "no", "no"])
    75.0
    """
    _same_number(refs, hyps)
    if len(refs) == 0:
        raise ValueError("there is nothing to score: no references and no predictions; is the split empty?")
    return 100.0 * sum(ref == hyp for ref, hyp in zip(refs, hyps, strict=True)) / len(refs)


def _same_number(refs: Sequence[Any], hyps: Sequence[Any]) -> None:
    if len(refs) != len(hyps):
        raise ValueError(f"{len(refs)} references but {len(hyps)} predictions; expected one prediction per reference")


# ------------------------------------------------------------------------------------------ verification


def det_points(same: Sequence[bool], scores: Sequence[float]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What goes wrong at every threshold: (thresholds, false accepts, false rejects), both in percent.

    same: True where both clips of a trial belong together; scores: high where they seem to. A trial is accepted if its
    score is at least the threshold. The first threshold is infinite (nobody is accepted), the last the lowest score.
    Raises ValueError if a trial lacks a score, a score is not finite, or all trials are of one kind.
    Taught in notebook 08 (speaker verification).

    >>> [column.tolist() for column in det_points([True, False, True], [0.9, 0.5, 0.1])]
    [[inf, 0.9, 0.5, 0.1], [0.0, 0.0, 100.0, 100.0], [100.0, 50.0, 50.0, 0.0]]
    """
    _same_number(same, scores)
    hits, values = np.asarray(same, dtype=bool), np.asarray(scores, dtype=np.float64)
    if not np.isfinite(values).all():
        raise ValueError(f"{int((~np.isfinite(values)).sum())} of {len(values)} scores are not finite; are there NaNs?")
    if hits.all() or not hits.any():
        raise ValueError(
            f"{int(hits.sum())} of {len(hits)} trials are by the same speaker; expected some that are and some "
            "that are not, else there is only one kind of error"
        )
    order = np.argsort(-values, kind="stable")
    hits, values = hits[order], values[order]
    ends = np.append(values[1:] != values[:-1], True)  # equal scores are accepted together
    accepted, wrongly = np.cumsum(hits)[ends], np.cumsum(~hits)[ends]
    return (
        np.concatenate([[np.inf], values[ends]]),
        100.0 * np.concatenate([[0], wrongly]) / wrongly[-1],
        100.0 * (1.0 - np.concatenate([[0], accepted]) / accepted[-1]),
    )


def eer(same: Sequence[bool], scores: Sequence[float]) -> float:
    """Equal error rate in percent: where as many strangers are let in as friends are turned away. Chance is 50.

    Between two thresholds both errors change along a straight line. Arguments and errors as `det_points`.
    Source: superb/protocol.md section 3.5. Taught in notebook 08 (speaker verification).

    >>> round(eer([True, True, True, False, False, False], [0.9, 0.8, 0.3, 0.4, 0.2, 0.1]), 2)
    33.33
    """
    _, accepts, rejects = det_points(same, scores)
    gap = accepts - rejects  # from -100 to 100, never falling
    after = int(np.argmax(gap >= 0))
    share = -gap[after - 1] / (gap[after] - gap[after - 1])
    return float(accepts[after - 1] + share * (accepts[after] - accepts[after - 1]))


# ------------------------------------------------------------------------------------------ diarization

Turns = Sequence[tuple[str, float, float]]  # (speaker, start in seconds, end in seconds), in any order


@dataclass(frozen=True)
class DiarizationErrors:
    """Speaker time in seconds, right and wrong; the errors of several recordings add up.

    Two people who talk at once for a second are two seconds of speaker time. `missed`: somebody speaks and fewer
    are found; `false_alarm`: more are found than speak; `confusion`: found, but taken for another speaker;
    `total`: all speaker time of the reference.
    """

    missed: float = 0.0
    false_alarm: float = 0.0
    confusion: float = 0.0
    total: float = 0.0

    def __add__(self, other: DiarizationErrors) -> DiarizationErrors:
        return DiarizationErrors(
            self.missed + other.missed,
            self.false_alarm + other.false_alarm,
            self.confusion + other.confusion,
            self.total + other.total,
        )

    @property
    def percent(self) -> float:
        """The diarization error rate (DER). Raises ValueError if nobody speaks in the reference."""
        if not self.total > 0:
            raise ValueError("nobody speaks in the references, so there is no error rate; are the turns empty?")
        return 100.0 * (self.missed + self.false_alarm + self.confusion) / self.total


def diarization_errors(ref: Turns, hyp: Turns) -> DiarizationErrors:
    """Who spoke when, held against the truth of one recording, exactly (no frames).

    No collar, overlapped speech counts, everything from the first start to the last end of either side is scored.
    Names do not matter: the one-to-one assignment of names with the most time in common is used. Turns of one
    speaker that overlap count once. Raises ValueError for a turn that ends before it starts.

    Source: superb/protocol.md section 3.7. Taught in notebook 09 (speaker diarization).

    >>> diarization_errors([("ann", 0.0, 2.0), ("bob", 2.0, 4.0)], [("x", 0.0, 3.0), ("y", 3.0, 4.5)])
    DiarizationErrors(missed=0.0, false_alarm=0.5, confusion=1.0, total=4.0)
    """
    edges = np.unique([time for _, start, end in [*ref, *hyp] for time in (start, end)])
    middles = (edges[1:] + edges[:-1]) / 2
    (errors,) = count_errors(active(ref, middles), active(hyp, middles)[None], np.diff(edges))
    return errors


def active(turns: Turns, times: np.ndarray) -> np.ndarray:
    """(speakers, times) bool: who speaks at these times (seconds), speakers sorted by name.

    Raises ValueError for a turn that ends before it starts or has a time that is not finite.
    """
    found = np.zeros((len({speaker for speaker, _, _ in turns}), len(times)), dtype=bool)
    rows = {speaker: row for row, speaker in enumerate(sorted({speaker for speaker, _, _ in turns}))}
    for speaker, start, end in turns:
        if not -float("inf") < start <= end < float("inf"):
            raise ValueError(f"{speaker!r} has a turn from {start} to {end} s; expected start <= end, in seconds")
        found[rows[speaker]] |= (times >= start) & (times < end)
    return found


def count_errors(
    ref: np.ndarray, hyps: np.ndarray, seconds: np.ndarray, *, matched: bool = False
) -> list[DiarizationErrors]:
    """The errors of several hypotheses about one recording that is cut into spans.

    ref: (speakers, spans) bool; hyps: (hypotheses, speakers, spans) bool; seconds: (spans,), how long each span is.
    matched: row i of a hypothesis is speaker i already; otherwise the best assignment is looked for.
    """
    from scipy.optimize import linear_sum_assignment

    truth, found = ref.sum(axis=0), hyps.sum(axis=1)  # (spans,) and (hypotheses, spans) numbers of speakers
    missed = np.maximum(truth - found, 0) @ seconds
    false_alarm = np.maximum(found - truth, 0) @ seconds
    both = np.minimum(truth, found) @ seconds
    common = (hyps @ (ref * seconds).T).transpose(0, 2, 1)  # (hypotheses, ref speakers, hyp speakers) seconds
    if matched:
        right = np.trace(common, axis1=1, axis2=2)
    else:
        right = [table[linear_sum_assignment(table, maximize=True)].sum() for table in common]
    confusion = np.maximum(both - right, 0.0)  # rounding may leave a little less than nothing
    total = float(truth @ seconds)
    return [DiarizationErrors(*map(float, row), total) for row in zip(missed, false_alarm, confusion, strict=True)]


# ----------------------------------------------------------------------------------------- slot filling

HOPELESS = 100  # edits per character of a slot's value from which SUPERB's scorer takes the slot as missing


def slot_type_f1(refs: Sequence[str], hyps: Sequence[str]) -> float:
    """How well the *kinds* of slots were found, in percent: the mean over sentences of the F1 of two sets of names.

    refs, hyps: marked-up sentences, ``FLY TO B-city ROME E-city``. Values do not count, nor how often a slot is there.
    A sentence without slots scores 100 if none was found in it, else 0.
    Raises ValueError if there is no sentence or their numbers differ.
    Source: superb/protocol.md section 3.9. Taught in notebook 11 (slot filling).

    >>> round(slot_type_f1(["FLY TO B-city ROME E-city B-day NOW E-day"], ["FLY TO B-city HOME E-city NOW"]), 1)
    66.7
    """
    _same_number(refs, hyps)
    if len(refs) == 0:
        raise ValueError("there is nothing to score: no references and no hypotheses; is the split empty?")
    scores = []
    for ref, hyp in zip(refs, hyps, strict=True):
        wanted = {name for name, _ in read_slots(ref)}
        found = {name for name, _ in read_slots(hyp, strip=True)}
        both = len(wanted) + len(found)
        scores.append(2 * len(wanted & found) / both if both else 1.0)
    return 100.0 * sum(scores) / len(scores)


def slot_value_cer(refs: Sequence[str], hyps: Sequence[str]) -> float:
    """How well the *values* of slots were spelled: character edits in percent of all characters of reference values.

    Every reference value is compared with the nearest hypothesis value of the same slot in the same sentence (one may
    serve several times), or with nothing if there is none. Slots that were invented cost nothing.
    Raises ValueError if the references have no slot, or the numbers of sentences differ.
    Source: superb/protocol.md section 3.9. Taught in notebook 11 (slot filling).

    >>> round(slot_value_cer(["FLY TO B-city ROME E-city B-day NOW E-day"], ["FLY TO B-city HOME E-city NOW"]), 1)
    57.1
    """
    _same_number(refs, hyps)
    total = Edits()
    for ref, hyp in zip(refs, hyps, strict=True):
        found = read_slots(hyp, strip=True)
        for name, value in read_slots(ref):
            tried = [edits(value, other) for kind, other in found if kind == name]
            fair = [one for one in tried if one.total < HOPELESS * len(value)]
            total += min(fair, key=lambda one: one.total) if fair else edits(value, "")
    return total.percent


# ------------------------------------------------------------------------------------- query by example

TWV_BETA = 12.49  # what a false alarm costs: C_fa / C_miss (1 / P_target - 1), with 1 / 100 (1 / 0.0008 - 1)
MISSING_SCORE = -10.0  # of a trial that the system did not score

Pairs = Mapping[tuple[str, str], float]
Trials = Sequence[tuple[str, str, bool]]


def mtwv(scores: Pairs, trials: Trials, *, beta: float = TWV_BETA, missing: float = MISSING_SCORE) -> float:
    """Maximum term-weighted value, 0..1: `twv` at the best threshold, which is the same for all queries.

    Rejecting everything is worth 0, so it is never negative. Arguments and errors as for `twv_curve`.
    Source: superb/protocol.md section 3.6. Taught in notebook 06 (query by example).

    >>> trials = [("q", "a", True), ("q", "b", True), ("q", "c", False)]
    >>> mtwv({("q", "a"): 3.0, ("q", "b"): 1.0, ("q", "c"): 2.0}, trials)   # b costs a false alarm: better missed
    0.5
    """
    best = float(twv_curve(scores, trials, beta=beta, missing=missing)[1].max())
    return min(best, 1.0)  # the sum of all shares may be rounded up


def twv(
    scores: Pairs, trials: Trials, threshold: float, *, beta: float = TWV_BETA, missing: float = MISSING_SCORE
) -> float:
    """Term-weighted value when exactly the trials with score >= threshold are accepted; 1 is perfect, may be negative.

    1 - mean over queries of (missed share of the documents with the query + beta x accepted share of the others).
    """
    thresholds, values = twv_curve(scores, trials, beta=beta, missing=missing)
    return float(values[np.flatnonzero(thresholds >= threshold)[-1]])


def twv_curve(
    scores: Pairs, trials: Trials, *, beta: float = TWV_BETA, missing: float = MISSING_SCORE
) -> tuple[np.ndarray, np.ndarray]:
    """(thresholds,) from infinity down through all scores, and (thresholds,) term-weighted values at them.

    Args:
        scores: {(query, document): score}, higher means more likely in it; pairs that are no trial are ignored
        trials: (query, document, is it in it?); queries that are in no document are left out
        missing: the score of a trial without one

    Raises:
        ValueError: no query is in any document, or a score is not a number.
    """
    values, truth, names = _trial_scores(scores, trials, missing)
    _, query = np.unique(names, return_inverse=True)
    hits, others = np.bincount(query, truth), np.bincount(query, ~truth)
    # accepting a trial is worth a share of its query's documents, or costs beta times a share of the others
    worth = np.where(truth, 1.0 / hits[query], -beta / np.maximum(others[query], 1.0)) / len(hits)
    order = np.argsort(-values, kind="stable")
    values, total = values[order], np.cumsum(worth[order])
    last = np.append(values[1:] != values[:-1], True)  # equal scores are accepted together
    return np.append(np.inf, values[last]), np.append(0.0, total[last])


def average_precision(scores: Pairs, trials: Trials, *, missing: float = MISSING_SCORE) -> float:
    """Area under the precision-recall curve of all trials together, 0..1; guessing gives the share of true trials.

    Needs no costs and no threshold, so it moves where MTWV, made of a few trials at the top, stands still. Arguments
    and errors as for `twv_curve`. Taught in notebook 06 (query by example).
    """
    from sklearn.metrics import average_precision_score  # slow to import, and needed here only

    values, truth, _ = _trial_scores(scores, trials, missing)
    return float(average_precision_score(truth, values))


def _trial_scores(scores: Pairs, trials: Trials, missing: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Score, truth and query of every trial whose query is in some document."""
    wanted = {query for query, _, contains in trials if contains}
    if not wanted:
        raise ValueError(
            f"no query is in any document ({len(trials)} trials), so there is nothing to find; check the trials"
        )
    kept = [trial for trial in trials if trial[0] in wanted]
    values = np.array([scores.get((query, document), missing) for query, document, _ in kept], dtype=np.float64)
    if np.isnan(values).any():
        query, document, _ = kept[int(np.isnan(values).argmax())]
        raise ValueError(f"the score of query {query!r} in document {document!r} is not a number; expected a number")
    return values, np.array([bool(trial[2]) for trial in kept]), np.array([trial[0] for trial in kept])
