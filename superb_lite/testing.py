"""Contract checks for your own upstream or task, and the tiny upstream that our own tests run on.

    from superb_lite.testing import check_upstream
    check_upstream(MyUpstream())      # silent if all is well, else says what came, what was expected, what to do

Taught in notebook 18 (enter the competition).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from superb_lite.features import FeatureStore, check_hidden
from superb_lite.probe import Probe, evaluate, fit, predict, shuffled_labels
from superb_lite.tasks import get_task
from superb_lite.types import RATE, Clip, ContractBroken, Corpus, Hidden, LabelMissing, Recipe, Split, Task, Upstream
from superb_lite.upstreams import load_upstream

TOLERANCE = 2e-4  # relative, between a clip alone and the same clip in a batch
TOY_RECIPE = Recipe("toy", steps=150, batch=16, lr=2e-2, eval_every=50)


class TinyUpstream(nn.Module):
    """An upstream of three layers that costs nothing: spectra of 25 ms through two fixed random maps.

    Frames do not see each other, so batch mates cannot matter. `seed` decides the maps.

    >>> hidden = TinyUpstream()([torch.zeros(16000), torch.ones(800)])
    >>> tuple(hidden.states.shape), hidden.lengths.tolist()
    ((3, 2, 49, 24), [49, 2])
    """

    name = "tiny"
    layers = 3
    dim = 24
    stride = 320
    window = 400

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.revision = f"seed{seed}"
        generator = torch.Generator().manual_seed(seed)
        bins = self.window // 2 + 1
        self.register_buffer("first", torch.randn(bins, self.dim, generator=generator) / bins**0.5)
        self.register_buffer("second", torch.randn(self.dim, self.dim, generator=generator) / self.dim**0.5)
        self.calls = 0

    def forward(self, wavs: Sequence[Tensor]) -> Hidden:
        """A list of (samples,) waveforms to three layers of 24 dimensions."""
        self.calls += 1
        lengths = torch.tensor([max(1, (len(wav) - self.window) // self.stride + 1) for wav in wavs])
        longest = max(self.window, *(len(wav) for wav in wavs))
        padded = torch.stack([nn.functional.pad(wav, (0, longest - len(wav))) for wav in wavs])
        windows = padded.unfold(1, self.window, self.stride)  # (batch, frames, window)
        spectra = torch.log1p(torch.fft.rfft(windows).abs()) @ self.first
        states = torch.stack([spectra, torch.tanh(spectra), torch.tanh(spectra @ self.second)])
        valid = torch.arange(states.shape[2])[None, :] < lengths[:, None]
        return Hidden(states * valid[None, :, :, None], lengths.to(states.device))


# -------------------------------------------------------------------------------------------- upstream


def check_upstream(upstream: str | Upstream) -> None:
    """Run the whole contract of an upstream on generated audio. Takes a second for a small network.

    Shapes, dtype and lengths; a clip of 0.05 s; two calls equal; batch mates do not matter; padding is zero; no
    gradient; frozen after ``train()``; input and global random state untouched.

    Raises:
        ContractBroken: the first promise that is not kept.
    """
    upstream = load_upstream(upstream)
    _check_attributes(upstream)
    wavs = _waves()
    originals = [wav.clone() for wav in wavs]
    with _same_randomness(upstream.name):
        hidden = _call(upstream, wavs)
    for wav, original in zip(wavs, originals, strict=True):
        if not torch.equal(wav, original):
            raise ContractBroken(f"{upstream.name} changed the waveforms it was given; work on a copy of them")
    _check_values(upstream, hidden)
    _check_repeats(upstream, wavs, hidden)
    _check_mates(upstream, wavs, hidden)


def _check_attributes(upstream: Upstream) -> None:
    for name, kind in (("name", str), ("revision", str), ("layers", int), ("dim", int), ("stride", int)):
        value = getattr(upstream, name)
        if not isinstance(value, kind) or value in ("", 0):
            raise ContractBroken(
                f"{type(upstream).__name__}.{name} is {value!r}, expected "
                f"{'a name' if kind is str else 'a number above 0'}; features and results are kept under it"
            )


def _waves() -> list[Tensor]:
    """Noise that swells and fades: 1 s, 0.05 s and 0.61 s."""
    generator = torch.Generator().manual_seed(7)
    waves = []
    for samples in (RATE, RATE // 20, 9_777):
        swell = torch.sin(torch.linspace(0.1, 3.0, samples))
        waves.append(0.2 * swell * torch.randn(samples, generator=generator).clamp(-3, 3))
    return waves


def _call(upstream: Upstream, wavs: list[Tensor]) -> Hidden:
    hidden = upstream(wavs)
    check_hidden(upstream, hidden, [len(wav) for wav in wavs])
    return hidden


def _check_values(upstream: Upstream, hidden: Hidden) -> None:
    name, states = upstream.name, hidden.states
    if states.dtype != torch.float32:
        raise ContractBroken(f"{name} returned {states.dtype} states, expected float32; add .float()")
    if states.requires_grad:
        raise ContractBroken(f"{name} returned states with a gradient, but it is frozen; call it under torch.no_grad")
    if not torch.isfinite(states).all():
        raise ContractBroken(f"{name} returned states that are not finite; is something divided by a zero length?")
    for place, length in enumerate(hidden.lengths.tolist()):
        if bool((states[:, place, length:] != 0).any()):
            raise ContractBroken(f"{name} has non-zero states beyond the valid length of a clip; set padding to zero")


def _check_repeats(upstream: Upstream, wavs: list[Tensor], hidden: Hidden) -> None:
    if not torch.equal(_call(upstream, wavs).states, hidden.states):
        raise ContractBroken(f"{upstream.name} gave two answers to the same waveforms; is dropout on, or noise added?")
    if isinstance(upstream, nn.Module):
        nn.ModuleList([upstream]).train()  # what a parent module does
        try:
            if not torch.equal(_call(upstream, wavs).states, hidden.states):
                raise ContractBroken(
                    f"{upstream.name} answers differently after train(); a frozen upstream stays in eval mode: "
                    "override train() to return super().train(False)"
                )
        finally:
            upstream.eval()
        free = [name for name, weight in upstream.named_parameters() if weight.requires_grad]
        if free:
            raise ContractBroken(
                f"{upstream.name} has weights that ask for a gradient ({free[0]} and {len(free) - 1} more); "
                "call requires_grad_(False)"
            )


def _check_mates(upstream: Upstream, wavs: list[Tensor], hidden: Hidden) -> None:
    for place, wav in enumerate(wavs):
        alone = _call(upstream, [wav])
        length = int(hidden.lengths[place])
        if int(alone.lengths[0]) != length:
            raise ContractBroken(
                f"{upstream.name} gives a clip {int(alone.lengths[0])} frames alone and {length} in a batch; "
                "lengths must depend on the clip only"
            )
        ours, theirs = hidden.states[:, place, :length], alone.states[:, 0, :length]
        scale = float(theirs.abs().max())
        gap = float((ours - theirs).abs().max())
        if gap > TOLERANCE * max(scale, 1e-6):
            raise ContractBroken(
                f"{upstream.name}: a clip's states differ by {gap:.2g} (largest state {scale:.2g}) between alone and "
                f"in a batch, expected at most {TOLERANCE:g} of it; mask padding in attention, convolution and norms"
            )


# ------------------------------------------------------------------------------------------------ task


def check_task(task: str | Task, upstream: Upstream | None = None, *, recipe: Recipe = TOY_RECIPE) -> dict[str, float]:
    """Run a task end to end on its toy data. Returns its scores: {metric: value}. Takes some seconds.

    Same seed, same scores; another seed, another head; better than with shuffled labels; the test split is not
    seen in training; predictions in any order score the same; a missing label is named; the global random state
    is untouched; for `pooled` tasks, training on means is training on frames.

    Args:
        upstream: TinyUpstream() unless given; the states that the head is trained on

    Raises:
        ContractBroken: the first promise that is not kept.
    """
    task = get_task(task)
    upstream = TinyUpstream() if upstream is None else upstream
    recipe = replace(recipe, sizes={**task.toy_sizes, **recipe.sizes})
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder, _same_randomness(task.key):
        store = FeatureStore(Path(folder))
        probe, asked = _train_toy(task, upstream, recipe, store)
        if "test" in asked:
            raise ContractBroken(f"task {task.key!r} was asked for its test split in training; load only what is named")
        test = task.toy("test", 0)
        scores = evaluate(probe, upstream, test, store=store)
        _check_scores(task, scores)
        _check_order(probe, predict(probe, upstream, test, store=store), test, scores)
        _check_seeds(task, upstream, recipe, store, probe, scores)
        _check_chance(task, upstream, recipe, store, scores)
        if task.compare is None:
            _check_missing_label(task, test, upstream.stride)
        if task.pooled:
            _check_pooled(task, upstream, test, recipe)
    return scores


def _train_toy(
    task: Task,
    upstream: Upstream,
    recipe: Recipe,
    store: FeatureStore,
    *,
    seed: int = 0,
    change: Callable[[Split], Split] | None = None,
) -> tuple[Probe, set[str]]:
    """Fit on the toy corpus; also returns the names of the splits that `fit` asked for."""
    asked: set[str] = set()

    def load(split: str, fold: int) -> Split:
        asked.add(split)
        found = task.toy(split, fold)
        return found if change is None else change(found)

    toy = replace(task, corpora={"toy": Corpus(load, recipe)})
    return fit(toy, upstream, corpus="toy", seed=seed, store=store), asked


def _check_scores(task: Task, scores: Mapping[str, float]) -> None:
    for key, value in scores.items():
        if not abs(value) < float("inf"):
            raise ContractBroken(f"task {task.key!r} scored {key} = {value}; raise if it cannot be computed")


def _check_order(probe: Probe, predictions: dict[Any, Any], test: Split, scores: Mapping[str, float]) -> None:
    task = probe.task
    backwards = task.score(dict(reversed(predictions.items())), test, **probe.settings)
    if any(value != scores[key] for key, value in backwards.items()):
        raise ContractBroken(f"task {task.key!r} scores shuffled predictions differently; look them up by clip id")


def _check_seeds(
    task: Task, upstream: Upstream, recipe: Recipe, store: FeatureStore, probe: Probe, scores: Mapping[str, float]
) -> None:
    again, _ = _train_toy(task, upstream, recipe, store)
    repeated = evaluate(again, upstream, task.toy("test", 0), store=store)
    if repeated != scores or (task.head and not _same_weights(probe.head, again.head)):
        raise ContractBroken(f"task {task.key!r} gives another result with the same seed; where is it random?")
    if task.head is None:
        return  # nothing is trained, so no seed can matter
    fresh = replace(recipe, steps=1, lr=0.0)  # leaves the first weights as they are
    first, other = (_train_toy(task, upstream, fresh, store, seed=seed)[0] for seed in (0, 1))
    if _same_weights(first.head, other.head):
        raise ContractBroken(f"task {task.key!r} gives the same head with another seed; who sets the seed in between?")


def _same_weights(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(mine, yours) for mine, yours in pairs)


def _check_chance(
    task: Task, upstream: Upstream, recipe: Recipe, store: FeatureStore, scores: Mapping[str, float]
) -> None:
    metric = task.metrics[0]
    chance, _ = _train_toy(task, upstream, recipe, store, change=shuffled_labels)
    test = task.toy("test", 0)
    test = shuffled_labels(test) if test.trials else test  # an embedding may know voices without having learned them
    value = evaluate(chance, upstream, test, store=store)[metric.key]
    if not metric.better(scores[metric.key], value):
        raise ContractBroken(
            f"task {task.key!r} reaches {metric.key} {scores[metric.key]:.1f} on its toy data, and {value:.1f} with "
            "shuffled labels; expected to beat chance: are labels and clips in the same order?"
        )


def _check_missing_label(task: Task, test: Split, stride: int) -> None:
    bare: Clip = replace(test.clips[0], labels={})
    try:
        task.encode([bare], torch.tensor([10]), stride, test)
    except LabelMissing as error:
        if bare.id not in str(error) or bare.audio not in str(error):
            raise ContractBroken(f"task {task.key!r}: the error for a missing label must name clip and file") from error
    else:
        raise ContractBroken(f"task {task.key!r} encodes a clip without labels; raise LabelMissing, as Clip.label does")


def _check_pooled(task: Task, upstream: Upstream, split: Split, recipe: Recipe) -> None:
    """The head on frames and on their mean: same output, whatever the length."""
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        head = task.head(upstream.dim, split, recipe).double().eval()
    lengths = torch.tensor([7, 1, 4])
    x = torch.randn(3, 7, upstream.dim, generator=generator, dtype=torch.float64)
    means = torch.stack([row[:length].mean(0, keepdim=True) for row, length in zip(x, lengths, strict=True)])
    with torch.no_grad():
        gap = float((head(x, lengths) - head(means, torch.ones(3, dtype=torch.int64))).abs().max())
    if gap > 1e-9:
        raise ContractBroken(
            f"task {task.key!r} says its head may see means only (pooled=True), but frames give another output "
            f"(by {gap:.2g}); a head with an activation before the mean needs pooled=False"
        )


@contextmanager
def _same_randomness(name: str) -> Iterator[None]:
    """Raise ContractBroken if the global random state of torch changes inside."""
    before = torch.random.get_rng_state()
    yield
    if not torch.equal(before, torch.random.get_rng_state()):
        raise ContractBroken(f"{name} changed torch's global random state; use a local torch.Generator or fork_rng")
