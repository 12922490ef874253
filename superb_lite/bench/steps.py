"""What freezing saves: a step of a head on stored states, against one that runs the upstream again.

The step to compare with is the official toolkit's: each one sends its batch through the frozen upstream. Here its
waveforms are in memory already, which spares it the reading.

Taught in notebook 02 (freeze, weigh, probe).
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from superb_lite import audio
from superb_lite.bench.figures import CORPUS, Effort, Figure, shown
from superb_lite.bench.machine import Took, now, placed, timed, typical
from superb_lite.features import FeatureStore
from superb_lite.heads import Featurizer
from superb_lite.probe import REPORT_EVERY, fit
from superb_lite.tasks import get_task
from superb_lite.types import RATE, Clip, Corpus, Hidden, Task, Upstream
from superb_lite.upstreams import load_upstream

HEADS = {"ks": "utterance head", "pr": "frame-wise head", "asr": "BLSTM-CTC head"}  # one task for each shape of head
SIMPLE = ("ks", "pr")  # heads for which `target` counts


@dataclass(frozen=True)
class Again:
    """Steps that run the upstream each time: all of one, the upstream's part of it, and the operations of that."""

    step: Took
    upstream: Took
    audio_seconds: float
    flops: int


def head_steps(
    upstream: str | Upstream,
    device: str,
    effort: Effort,
    folder: Path,
    *,
    peak: float,
    target: float | None = None,
    tasks: Sequence[str] = tuple(HEADS),
) -> list[Figure]:
    """Steps on stored states against steps that run the upstream again, for each shape of head; the upstream's speed.

    peak: of the matrix product, in operations per second
    """
    upstream = placed(load_upstream(upstream), device)
    store, group, figures, passes = FeatureStore(folder), f"head steps on {upstream.name}", [], []
    steps: dict[str, Took] = {}
    for key in tasks:
        task, clips = one_batch(key)
        steps[key] = stored_step(task, upstream, store, device, effort.steps)
        again = step_again(task, upstream, clips, device, effort.repeats)
        figures += _compare(group, upstream, task, steps[key], again, target if key in SIMPLE else None)
        passes.append(again)
    audio_seconds, seconds = sum(p.audio_seconds for p in passes), sum(p.upstream.wall for p in passes)
    figures += [_pass_or_heads(group, upstream, key, steps[key].wall, audio_seconds / seconds) for key in tasks]
    rate = sum(p.flops for p in passes) / seconds
    name, parts = _short(upstream), {"flops_per_second": rate, "audio_seconds": audio_seconds, "seconds": seconds}
    means = f"audio through the upstream, {audio_seconds / len(passes):.0f} s at a time"
    figures.append(
        Figure(f"speed.{name}", group, "speed of the upstream", audio_seconds / seconds, "x real time", means, parts)
    )
    means = f"{shown(rate, 'FLOP/s')} of the matrix product's {shown(peak, 'FLOP/s')}"
    figures.append(Figure(f"share.{name}", group, "its share of the peak", 100 * rate / peak, "%", means, parts))
    return figures


def one_batch(key: str) -> tuple[Task, list[Clip]]:
    """A task whose training clips are one batch of typical length, repeated up to the real number; and that batch.

    So the upstream has little to extract, and the memory that steps read from is as large as in earnest.
    """
    task = get_task(key)
    view = task.corpus(CORPUS)
    train, recipe = view.load("train", 0), replace(view.recipe, accumulate=1)
    ordered = sorted(train.clips, key=lambda clip: (clip.seconds, clip.id))
    first = max(0, len(ordered) - recipe.batch) // 2
    batch = ordered[first : first + recipe.batch]
    names = range(len(train))
    many = tuple(replace(clip, id=f"{n}") for n, clip in zip(names, itertools.cycle(batch), strict=False))
    splits = {"train": replace(train, clips=many), "dev": replace(train, name="dev", clips=tuple(batch[:1]))}
    corpus = Corpus(lambda split, fold: splits[split], recipe)
    return replace(task, corpora={CORPUS: corpus}, settle=None, snapshots=False), batch


def stored_step(task: Task, upstream: Upstream, store: FeatureStore, device: str, steps: int) -> Took:
    """One step of `fit` on stored states: the median over stretches of 20, of which the first only warms up."""
    marks: list[tuple[float, float]] = []

    def mark(what: str, done: int, total: int) -> None:
        if what.startswith(f"{task.key} on "):
            marks.append(now(device))

    recipe = replace(task.corpus(CORPUS).recipe, steps=steps, eval_every=steps)
    fit(task, upstream, corpus=CORPUS, recipe=recipe, store=store, device=device, progress=mark)
    runs = [Took(b[0] - a[0], b[1] - a[1]) for a, b in itertools.pairwise(marks)]
    took = typical(runs)
    return Took(took.wall / REPORT_EVERY, took.processor / REPORT_EVERY)


def step_again(task: Task, upstream: Upstream, clips: Sequence[Clip], device: str, repeats: int) -> Again:
    """The same step as the official toolkit takes it: waveforms, frozen upstream, weighted sum, head, update."""
    split, recipe = task.corpus(CORPUS).load("train", 0), task.corpus(CORPUS).recipe
    wavs = [audio.load(clip).to(device) for clip in clips]
    passes: list[Took] = []
    with torch.random.fork_rng():
        torch.manual_seed(0)
        featurizer = Featurizer(upstream.layers).to(device)
        head = task.head(upstream.dim, split, recipe).to(device)
        parameters = [*featurizer.parameters(), *head.parameters()]
        optimizer = torch.optim.Adam(parameters, lr=recipe.lr, fused=True)

        def step(forward: Callable[[], Hidden]) -> None:
            hidden, took = timed(forward, device)
            passes.append(took)
            targets = task.encode(clips, hidden.lengths.cpu(), upstream.stride, split)
            out = head(featurizer(hidden.states.float()), hidden.lengths)
            loss = task.loss(head, out, hidden.lengths, tuple(target.to(device) for target in targets))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, recipe.clip_norm)
            optimizer.step()

        counter = FlopCounterMode(display=False)
        step(lambda: _counted(counter, upstream, wavs, device))  # warms up, too
        runs = [timed(lambda: step(lambda: _forward(upstream, wavs, device)), device)[1] for _ in range(repeats)]
    seconds = sum(map(len, wavs)) / RATE
    return Again(typical(runs), typical(passes[1:]), seconds, counter.get_total_flops())


def _forward(upstream: Upstream, wavs: Sequence[Tensor], device: str) -> Hidden:
    """The frozen upstream alone, on a GPU in bfloat16 where autocast finds that safe."""
    with torch.no_grad(), torch.autocast("cuda", torch.bfloat16, enabled=torch.device(device).type == "cuda"):
        return upstream(wavs)


def _counted(counter: FlopCounterMode, upstream: Upstream, wavs: Sequence[Tensor], device: str) -> Hidden:
    """`_forward` while its operations are counted; of attention only the plain way has matrix products to be seen."""
    with sdpa_kernel(SDPBackend.MATH), counter:
        return _forward(upstream, wavs, device)


def _compare(
    group: str, upstream: Upstream, task: Task, stored: Took, again: Again, target: float | None
) -> list[Figure]:
    """Two figures: a step of ours, and how many of them fit into one that runs the upstream."""
    batch, name = task.corpus(CORPUS).recipe.batch, f"{_short(upstream)}.{task.key}"
    parts = {
        "stored_wall": stored.wall, "stored_processor": stored.processor, "again_wall": again.step.wall,
        "again_processor": again.step.processor, "upstream_wall": again.upstream.wall,
        "processor_ratio": again.step.processor / stored.processor,
    }  # fmt: skip
    seen = "means" if task.pooled else "frames"
    means = f"{batch} clips, {again.audio_seconds:.0f} s of audio, as stored {seen}; one thread"
    step = Figure(f"step.{name}", group, f"{task.key}, {HEADS[task.key]}: a step", stored.wall, "s", means, parts)
    value, work = again.step.wall / stored.wall, shown(parts["processor_ratio"], "times")
    means = f"{shown(again.step.wall, 's')} if every step runs the upstream; {work} the processor time"
    return [step, Figure(f"ratio.{name}", group, "  recomputing takes", value, "times", means, target=target)]


def _pass_or_heads(group: str, upstream: Upstream, key: str, step: float, speed: float) -> Figure:
    """The one pass over a task's corpus against all steps of its head, from the speeds measured here."""
    view = get_task(key).corpus(CORPUS)
    audio_seconds = sum(view.load(split, 0).seconds for split in ("train", "dev", "test"))
    once, heads = audio_seconds / speed, view.recipe.steps * view.recipe.accumulate * step
    rates = (once + 2 * heads) / (once + heads)
    means = (
        f"{shown(once, 's')} for {audio_seconds / 60:.0f} min, once; {shown(heads, 's')} for {view.recipe.steps:,} "
        f"steps; so two learning rates: {shown(rates, 'times')}"
    )
    parts = {"pass_seconds": once, "head_seconds": heads, "two_rates": rates}
    what = f"{key}: upstream pass / training"
    return Figure(f"pass.{_short(upstream)}.{key}", group, what, once / heads, "times", means, parts)


def _short(upstream: Upstream) -> str:
    return re.sub(r"\W+", "_", upstream.name).strip("_")


def twice_the_rates(upstream: str | Upstream, device: str, effort: Effort, folder: Path) -> list[Figure]:
    """Keyword spotting from nothing with one learning rate, and what a second one adds: a head, and no pass."""
    upstream = placed(load_upstream(upstream), device)
    task = get_task("ks")
    view = task.corpus(CORPUS)
    splits = {name: view.load(name, 0) for name in ("train", "dev")}
    few = {name: replace(split, clips=split.clips[:: effort.part]) for name, split in splits.items()}
    steps = view.recipe.steps // effort.part
    recipe = replace(view.recipe, steps=steps, eval_every=max(1, view.recipe.eval_every // effort.part))
    task = replace(task, corpora={CORPUS: Corpus(lambda split, fold: few[split], recipe)})
    runs = []
    for n in range(effort.repeats):
        how = {"corpus": CORPUS, "store": FeatureStore(folder / str(n)), "device": device}
        runs.append([
            timed(lambda lr=lr, how=how: fit(task, upstream, recipe=replace(recipe, lr=lr), **how), device)[1].wall
            for lr in (recipe.lr, 2 * recipe.lr)
        ])  # fmt: skip
    first, second = (median(run[place] for run in runs) for place in (0, 1))
    seconds = sum(split.seconds for split in few.values())
    means = f"ks, {seconds:.0f} s of audio, {steps} steps: {shown(first, 's')} with the pass, then {shown(second, 's')}"
    parts = {"first_seconds": first, "second_seconds": second}
    group = f"twice the work, {upstream.name}"
    return [Figure("growth.rates", group, "twice the learning rates", (first + second) / first, "times", means, parts)]
