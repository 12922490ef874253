"""Exercises of notebook 16: what a printed number allows, free and earned cells, score, rank, choosing on test."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from superb_lite.course.exercises import Exercise, WrongAnswer

Column = tuple[str, str]

# ------------------------------------------------------------------------------- q1: possible counts


def possible_counts(printed: str, clips: int) -> list[int]:
    """A percentage as it was printed -> every number of right answers out of `clips` that is printed so."""
    decimals = len(printed.partition(".")[2])
    return [right for right in range(clips + 1) if f"{100 * right / clips:.{decimals}f}" == printed]


def _the_nearest(printed, clips):
    return [round(float(printed) / 100 * clips)]


def _always_two_decimals(printed, clips):
    return [right for right in range(clips + 1) if round(100 * right / clips, 2) == float(printed)]


def _fractions(printed, clips):
    decimals = len(printed.partition(".")[2])
    return [right for right in range(clips + 1) if f"{right / clips:.{decimals}f}" == printed]


def _cut_off(printed, clips):
    scale = 10 ** len(printed.partition(".")[2])
    wanted = int(printed.replace(".", ""))
    return [right for right in range(clips + 1) if 100 * scale * right // clips == wanted]


def _never_all(printed, clips):
    return [right for right in possible_counts(printed, clips) if right < clips]


def _printed_inputs(rng: np.random.Generator) -> list[tuple]:
    clips = int(rng.choice([53, 101, 307, 1009]))
    right = int(rng.integers(1, clips))
    fixed = [("8.63", 3081), ("57", 7), ("50.0", 7), ("66.7", 3), ("100.0", 40), ("1.0", 997), ("0.00", 8251)]
    return [*fixed, (f"{100 * right / clips:.1f}", clips)]


# --------------------------------------------------------------------------------- q2: free or earned


def verdicts(scores: Mapping[str, float], higher: bool, controls: Mapping[str, str]) -> dict[str, str]:
    """One column of a table -> "black", "free" or "earned" for each upstream that has a control."""

    def better(a: float, b: float) -> bool:
        return a > b if higher else a < b

    found = {}
    for name, control in controls.items():
        if better(scores["fbank"], scores[name]):
            found[name] = "black"
        elif better(scores[name], scores["fbank"]) and better(scores[name], scores[control]):
            found[name] = "earned"
        else:
            found[name] = "free"
    return found


def _always_up(scores, higher, controls):
    return verdicts(scores, True, controls)


def _ties_earn(scores, higher, controls):
    sign = 1 if higher else -1
    found = verdicts(scores, higher, controls)
    for name, control in controls.items():
        if found[name] != "black" and sign * (scores[name] - scores[control]) >= 0:
            found[name] = "earned"
    return found


def _ties_are_black(scores, higher, controls):
    found = verdicts(scores, higher, controls)
    return {name: "black" if scores[name] == scores["fbank"] else found[name] for name in found}


def _one_control(scores, higher, controls):
    return verdicts(scores, higher, dict.fromkeys(controls, "random"))


def _fbank_forgotten(scores, higher, controls):
    sign = 1 if higher else -1
    found = verdicts(scores, higher, controls)
    return {
        name: "earned" if sign * (scores[name] - scores[control]) > 0 else found[name]
        for name, control in controls.items()
    }


def _column_inputs(rng: np.random.Generator) -> list[tuple]:
    names = dict.fromkeys(["tiny_a", "tiny_b", "tiny_e"], "random")
    controls = names | dict.fromkeys(["tiny_c", "tiny_d"], "random_gru")
    up = {
        "fbank": 50.0, "random": 60.0, "random_gru": 45.0,
        "tiny_a": 70.0, "tiny_b": 55.0, "tiny_c": 55.0, "tiny_d": 48.0, "tiny_e": 60.0,
    }  # fmt: skip
    tie = {**up, "tiny_c": 50.0, "tiny_e": 40.0}
    down = {name: 100.0 - value for name, value in up.items()}
    drawn = {name: float(rng.integers(0, 12)) for name in up}
    either = bool(rng.random() < 0.5)
    return [(up, True, controls), (down, False, controls), (tie, True, controls), (drawn, either, controls)]


# ------------------------------------------------------------------------------------ q3: superb_score


def score_by_hand(values: Mapping[Column, float], points: Mapping[Column, tuple[float, float]]) -> float:
    """{(task, metric): value}, {(task, metric): (base, top)} -> mean over tasks of the mean over their metrics."""
    worth: dict[str, list[float]] = {}
    for (task, metric), (base, top) in points.items():
        worth.setdefault(task, []).append(1000 * (values[task, metric] - base) / (top - base))
    return float(np.mean([np.mean(metrics) for metrics in worth.values()]))


def _flat_mean(values, points):
    return float(np.mean([1000 * (values[key] - base) / (top - base) for key, (base, top) in points.items()]))


def _in_percent(values, points):
    return score_by_hand(values, points) / 10


def _errors_turned(values, points):
    """Turns errors round although both differences have turned already."""
    mirrored = {k: (2 * b - values[k] if t < b else values[k]) for k, (b, t) in points.items()}
    return score_by_hand(mirrored, points)


def _clipped(values, points):
    kept = {k: min(max(values[k], min(pair)), max(pair)) for k, pair in points.items()}
    return score_by_hand(kept, points)


def _no_base(values, points):
    worth: dict[str, list[float]] = {}
    for (task, metric), (_, top) in points.items():
        worth.setdefault(task, []).append(1000 * values[task, metric] / top)
    return float(np.mean([np.mean(metrics) for metrics in worth.values()]))


def _score_inputs(rng: np.random.Generator) -> list[tuple]:
    points = {
        ("pr", "per"): (82.0, 4.0), ("ks", "acc"): (41.0, 97.0), ("sf", "slot_f1"): (70.0, 90.0),
        ("sf", "slot_cer"): (53.0, 22.0),
    }  # fmt: skip
    values = {("pr", "per"): 43.0, ("ks", "acc"): 83.0, ("sf", "slot_f1"): 60.0, ("sf", "slot_cer"): 20.0}
    drawn = {key: float(rng.uniform(5, 95)) for key in points}
    alone = {("sid", "acc"): 20.0}, {("sid", "acc"): (20.0, 90.0)}
    return [(values, points), (drawn, points), alone]


# ----------------------------------------------------------------------------------- q4: rank with ties


def beaten(values: Mapping[str, float], higher: bool) -> dict[str, int]:
    """One column -> for each upstream, how many of the others are strictly worse."""
    sign = 1 if higher else -1
    return {name: sum(sign * value > sign * other for other in values.values()) for name, value in values.items()}


def _by_place(values, higher):
    order = sorted(values, key=values.get, reverse=not higher)
    return {name: order.index(name) for name in values}


def _ties_are_beaten(values, higher):
    sign = 1 if higher else -1
    return {name: sum(sign * v >= sign * o for o in values.values()) - 1 for name, v in values.items()}


def _higher_always(values, higher):
    return beaten(values, True)


def _place_from_the_top(values, higher):
    lost = beaten(values, not higher)
    return {name: 1 + lost[name] for name in values}


def _rank_inputs(rng: np.random.Generator) -> list[tuple]:
    ordinary = {"a": 93.1, "b": 88.0, "c": 95.4, "d": 71.2}
    ties = {"a": 5.0, "b": 5.0, "c": 7.0, "d": 5.0, "e": 2.0}
    drawn = {name: float(rng.integers(0, 5)) for name in "fedcba"}
    return [(ordinary, True), (ordinary, False), (ties, True), (ties, False), (drawn, True), ({"a": 1.0}, False)]


# --------------------------------------------------------------------------------- q5: choosing on test


def optimism(dev: np.ndarray, test: np.ndarray) -> float:
    """dev, test: (repeats, candidates) -> by how much "the best on test" exceeds "the best on dev", on test."""
    honest = test[np.arange(len(test)), dev.argmax(1)]
    return float((test.max(1) - honest).mean())


def _against_dev(dev, test):
    return float((test.max(1) - dev.max(1)).mean())


def _against_the_mean(dev, test):
    return float((test.max(1) - test.mean(1)).mean())


def _one_best(dev, test):
    honest = test[np.arange(len(test)), dev.argmax(1)]
    return float((test.max() - honest).mean())


def _one_candidate(dev, test):
    return float((test.max(1) - test[:, dev.mean(0).argmax()]).mean())


def _the_other_way(dev, test):
    honest = dev[np.arange(len(dev)), test.argmax(1)]
    return float((dev.max(1) - honest).mean())


def _candidate_inputs(rng: np.random.Generator) -> list[tuple]:
    def case(repeats: int, candidates: int) -> tuple[np.ndarray, np.ndarray]:
        skill = rng.normal(80, 2, size=(repeats, candidates))
        return skill + rng.normal(1, 2, size=skill.shape), skill + rng.normal(0, 2, size=skill.shape)

    return [case(6, 5), case(40, 3), case(2, 16), case(3, 1)]


EXERCISES = {
    "against.q1": Exercise(
        key="against.q1",
        title="what a printed number allows",
        reference=possible_counts,
        inputs=_printed_inputs,
        wrong=(
            WrongAnswer(
                "the nearest", _the_nearest, "it always finds one number, the nearest; some percentages cannot be had, "
                "and others in several ways: try every count"
            ),
            WrongAnswer(
                "two decimals", _always_two_decimals, "it always rounds to two decimals; round to as many as printed"
            ),
            WrongAnswer("fractions", _fractions, "it compares fractions; what is printed is in percent"),
            WrongAnswer("cut off", _cut_off, "the decimals are cut off; printed numbers are rounded"),
            WrongAnswer("never all", _never_all, "it never tries all answers right: range(clips) ends one too early"),
        ),
        hints=(
            "There are only clips + 1 numbers of right answers. Try them all.",
            'How many decimals? len(printed.partition(".")[2]), which is 0 if there is no point.',
            'return [right for right in range(clips + 1) if f"{100 * right / clips:.{decimals}f}" == printed]',
        ),
    ),
    "against.q2": Exercise(
        key="against.q2",
        title="black, free or earned",
        reference=verdicts,
        inputs=_column_inputs,
        wrong=(
            WrongAnswer("always up", _always_up, "more is taken for better; look at `higher`"),
            WrongAnswer(
                "ties earn", _ties_earn, "a tie counts as earned; whoever only equals Fbank or the control has shown "
                "nothing yet"
            ),
            WrongAnswer("ties are black", _ties_are_black, "a tie with Fbank is painted black; that is strictly worse"),
            WrongAnswer(
                "one control", _one_control, "everybody is held against random; take the control that belongs to each"
            ),
            WrongAnswer(
                "Fbank forgotten", _fbank_forgotten, "one that beats its control is called earned although it is worse "
                "than Fbank: that cell is black"
            ),
        ),
        hints=(
            "Write better(a, b) first: a > b if higher else a < b. Everything else is built from it.",
            'In this order: is Fbank better? Then "black". Does it beat both Fbank and its control? Then "earned".',
            'if better(scores["fbank"], scores[name]): "black"; elif better(scores[name], scores["fbank"]) and '
            'better(scores[name], scores[control]): "earned"; else: "free"',
        ),
    ),
    "against.q3": Exercise(
        key="against.q3",
        title="the overall score by hand",
        reference=score_by_hand,
        inputs=_score_inputs,
        wrong=(
            WrongAnswer(
                "flat mean", _flat_mean, "it is the mean over metrics, so that SF counts twice; average inside a task "
                "first, then over the tasks"
            ),
            WrongAnswer("percent", _in_percent, "the top is worth 100 here; it is worth 1000"),
            WrongAnswer(
                "errors turned", _errors_turned, "errors were turned round; for them both differences are negative, "
                "so the quotient is right as it is"
            ),
            WrongAnswer(
                "clipped", _clipped, "it is kept between 0 and 1000; worse than the base is negative, better than the "
                "top is more than 1000"
            ),
            WrongAnswer(
                "no base", _no_base, "the base is not taken off; it is worth 0, so subtract it above and below"
            ),
        ),
        hints=(
            "One metric: 1000 * (value - base) / (top - base). Put in value = base, and value = top.",
            "Collect the points of each task in a list: worth.setdefault(task, []).append(...)",
            "return np.mean([np.mean(metrics) for metrics in worth.values()])",
        ),
    ),
    "against.q4": Exercise(
        key="against.q4",
        title="rank with ties",
        reference=beaten,
        inputs=_rank_inputs,
        wrong=(
            WrongAnswer(
                "by place", _by_place, "equal scores get different ranks, by the order in which they stand: count "
                "those that are strictly worse"
            ),
            WrongAnswer("ties are beaten", _ties_are_beaten, "an equal score counts as beaten; strictly worse only"),
            WrongAnswer("always up", _higher_always, "more is taken for better; look at `higher`"),
            WrongAnswer(
                "from the top", _place_from_the_top, "that is the place from the top, where 1 is best; here the best "
                "has the largest number"
            ),
        ),
        hints=(
            "For each upstream go through all values and count the worse ones. It does not beat itself.",
            "With sign = 1 if higher else -1, a is better than b if sign * a > sign * b.",
            "{name: sum(sign * value > sign * other for other in values.values()) for name, value in values.items()}",
        ),
    ),
    "against.q5": Exercise(
        key="against.q5",
        title="what choosing on test adds",
        reference=optimism,
        inputs=_candidate_inputs,
        wrong=(
            WrongAnswer(
                "against dev", _against_dev, "the dev score itself is subtracted; dev only chooses, both numbers come "
                "from test"
            ),
            WrongAnswer(
                "against the mean", _against_the_mean, "it compares with the average candidate; compare with the one "
                "that dev chooses"
            ),
            WrongAnswer("one best", _one_best, "it takes one best score of all repeats; each repeat has its own"),
            WrongAnswer(
                "one candidate", _one_candidate, "dev chooses the same candidate in all repeats; choose anew in each"
            ),
            WrongAnswer("dev and test exchanged", _the_other_way, "dev and test have changed places"),
        ),
        hints=(
            "Per repeat two numbers, both from test: the largest, and that of the candidate with the best dev score.",
            "dev.argmax(1) says who is chosen in each repeat.",
            "honest = test[np.arange(len(test)), dev.argmax(1)]; return (test.max(1) - honest).mean()",
        ),
    ),
}
