"""Phase 1: train an upstream on speech without labels. One loop for every objective.

The run is a pure function of its seed: the batch of step n and what is hidden in it are drawn from (seed, n),
so a run that is killed goes on from its last checkpoint and ends with the same weights as an unbroken one.

Command: ``superb-lite pretrain tiny_hubert``. Taught in notebook 01 (pre-train an upstream).
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torchaudio
from torch import Tensor, nn

from superb_lite import files
from superb_lite.types import RATE, Progress, SuperbLiteError, UnknownName
from superb_lite.upstreams import hubert

STRIDE = 320  # samples per frame of the tiny networks
SAVE_EVERY, REPORT_EVERY = 250, 10  # steps


@dataclass(frozen=True)
class Stage:
    """One iteration of HuBERT: cluster `source` (``mfcc`` or the state of that number) into units, learn to guess them.

    The units come from the dry voice, the network hears it in a room with noise: what is worth guessing is what
    was said, not where (the idea of WavLM's denoising, arXiv:2110.13900, section III-B). Clips are played between
    1 / `speed` and `speed` times as fast; `warp` and `colour` change the voice as `another_throat` says.
    """

    source: str | int
    units: int
    steps: int
    speed: float = 1.0
    warp: float = 0.0
    colour: float = 0.0


@dataclass(frozen=True)
class Plan:
    """Everything that decides the outcome of a pre-training run. Steps count batches of `batch_sec` seconds."""

    hours: float = 4.5
    stages: tuple[Stage, ...] = (
        Stage("mfcc", 200, 4000, speed=1.15, warp=0.12, colour=0.5),
        Stage(3, 200, 8000, speed=1.15, warp=0.12, colour=0.5),
        Stage(3, 250, 16000, speed=1.15, warp=0.12, colour=0.5),
        Stage(3, 250, 12000, speed=1.2, warp=0.15, colour=0.6),
    )
    lr: float = 1.5e-3
    batch_sec: float = 16.0
    warmup: float = 0.08
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    seed: int = 0


class Speech:
    """Unlabelled clips in two memory-mapped files, as ``make_mini.py unlabelled`` writes them: in a room, and dry."""

    def __init__(self, folder: Path):
        self.lengths = np.load(folder / "lengths.npy")
        self.starts = np.concatenate([[0], np.cumsum(self.lengths)[:-1]])
        self.by_length = np.argsort(self.lengths, kind="stable")
        self.sound = {name: np.memmap(folder / f"{name}.i16", np.int16, "r") for name in ("room", "dry")}
        for name, samples in self.sound.items():
            if len(samples) != self.lengths.sum():
                raise SuperbLiteError(
                    f"{folder / name}.i16 is broken: {len(samples)} samples, not {self.lengths.sum()}; delete it"
                )

    def __len__(self) -> int:
        return len(self.lengths)

    def wav(self, clip: int, name: str = "room") -> Tensor:
        """(samples,) float32 of one clip, as heard in its room or as the dry voice."""
        start = self.starts[clip]
        return torch.from_numpy(self.sound[name][start : start + self.lengths[clip]].astype(np.float32) / 32768)

    def draw(self, rng: np.random.Generator, seconds: float) -> tuple[np.ndarray, int]:
        """Clips of similar length that fill `seconds`, and the samples to cut them all to: no padding in training."""
        middle = int(rng.integers(len(self)))
        count = max(2, round(seconds * RATE / self.lengths[self.by_length[middle]]))
        window = self.by_length[max(0, middle - 8 * count) : middle + 8 * count]
        clips = rng.choice(window, size=min(count, len(window)), replace=False)
        return clips, int(self.lengths[clips].min())


def same_speaker(frames: np.ndarray) -> np.ndarray:
    """(frames, dim) -> zero mean and unit variance over the clip: takes out most of who speaks."""
    return (frames - frames.mean(0)) / (frames.std(0) + 1e-5)


def mfcc(wav: Tensor) -> np.ndarray:
    """(samples,) -> (frames, 39): the 13 MFCCs of a frame, normalised over the clip, and of its two neighbours."""
    noise = torch.from_numpy(np.random.default_rng(0).standard_normal(len(wav)).astype(np.float32))
    static = torchaudio.compliance.kaldi.mfcc(
        (wav + 1e-4 * noise)[None], sample_frequency=RATE, frame_shift=1000 * STRIDE / RATE
    )  # digital silence between the words would be minus infinity: hence the touch of noise
    padded = np.pad(same_speaker(static.numpy()), ((1, 1), (0, 0)), mode="edge")
    return np.concatenate([padded[:-2], padded[1:-1], padded[2:]], axis=1)


def _frames(network: nn.Module, speech: Speech, stage: Stage, clips: np.ndarray, device: str) -> list[np.ndarray]:
    """What the units of `stage` are clustered from, (frames, dim) for each of `clips`."""
    if stage.source == "mfcc":
        return [mfcc(speech.wav(clip, "dry")) for clip in clips]
    teacher = hubert.Hubert("teacher", network, revision="")
    found = []
    for part in np.array_split(clips, max(1, len(clips) // 16)):
        out = teacher([speech.wav(clip, "dry").to(device) for clip in part])
        states = out.states[stage.source].float().cpu().numpy()
        found += [same_speaker(states[n, :length]) for n, length in enumerate(out.lengths.tolist())]
    network.requires_grad_(True)
    return found


def find_units(
    network: nn.Module, speech: Speech, stage: Stage, seed: int, device: str, progress: Progress | None
) -> tuple:
    """Cluster the frames of all clips: (units of clip after clip as int16, first frame of every clip)."""
    from sklearn.cluster import MiniBatchKMeans

    sample = np.random.default_rng([seed, 7]).permutation(len(speech))[:1500]
    frames = np.concatenate(_frames(network, speech, stage, np.sort(sample), device)).astype(np.float32)
    mean, scale = frames.mean(0), frames.std(0) + 1e-6
    kmeans = MiniBatchKMeans(stage.units, batch_size=4096, n_init=3, max_iter=60, random_state=seed)
    kmeans.fit((frames - mean) / scale)
    units, order = [None] * len(speech), speech.by_length
    for first in range(0, len(order), 256):
        clips = order[first : first + 256]
        for clip, part in zip(clips, _frames(network, speech, stage, clips, device), strict=True):
            units[clip] = kmeans.predict((part.astype(np.float32) - mean) / scale).astype(np.int16)
        if progress is not None:
            progress(f"finding {stage.units} units in {stage.source}", min(first + 256, len(order)), len(order))
    return np.concatenate(units), np.concatenate([[0], np.cumsum([len(u) for u in units])[:-1]])


def learning_rate(step: int, steps: int, plan: Plan) -> float:
    """Linear warm-up, then linear decay to zero."""
    warmup = max(1, int(plan.warmup * steps))
    return plan.lr * min((step + 1) / warmup, (steps - step) / max(1, steps - warmup))


def _batch(
    speech: Speech, units: np.ndarray, firsts: np.ndarray, rng: np.random.Generator, seconds: float, most: float
) -> tuple[Tensor, Tensor]:
    """Waveforms (batch, samples), each played up to `most` times faster or slower, and the unit of every frame.

    Another speed is another voice (pitch and formants move with it), yet the units stay those of the original: the
    network learns that the size of a throat does not change what was said.
    """
    clips, samples = speech.draw(rng, seconds)
    speeds = rng.uniform(1 / most, most, size=len(clips))
    samples = int(samples / speeds.max())
    frames = np.arange(hubert.frames_of(samples))
    wavs = torch.stack([play_at(speech.wav(clip), speed)[:samples] for clip, speed in zip(clips, speeds, strict=True)])
    wanted = np.stack(
        [units[firsts[c] + np.floor(frames * speed).astype(int)] for c, speed in zip(clips, speeds, strict=True)]
    )
    return wavs, torch.from_numpy(wanted.astype(np.int64))


def play_at(wav: Tensor, speed: float) -> Tensor:
    """(samples,) -> (samples / speed,): the same sound as if a tape ran at `speed`."""
    return nn.functional.interpolate(wav[None, None], size=int(len(wav) / speed), mode="linear", align_corners=False)[
        0, 0
    ]


def another_throat(mels: Tensor, warp: float, colour: float, generator: torch.Generator) -> Tensor:
    """(batch, frames, 80) log-mel energies -> the same words from other throats and through other rooms.

    Frequencies are multiplied by a smooth factor: its logarithm is one number for the clip, of standard deviation
    `warp`, plus two slow cosines over the mel scale of 0.7 times that, since the formants of two people differ by
    more than one length. A smooth curve is added: four cosines of `colour` nepers of energy (1 neper is 4.3 dB).

    Source: vocal tract length perturbation, Jaitly and Hinton 2013, with the bends added.
    """
    batch, _, bins = mels.shape
    place = (torch.arange(bins) + 0.5) / bins
    waves = torch.cos(math.pi * torch.arange(5)[:, None] * place)  # (5, bins), the first is constant
    bend = torch.tensor([1.0, 0.7, 0.7]) * torch.randn(batch, 3, generator=generator)
    bottom, top = (1127 * math.log1p(hertz / 700) for hertz in (20, RATE / 2))
    step = (top - bottom) / (bins + 1)  # the bands of Kaldi: even on the mel scale, 20 Hz to 8 kHz
    hertz = 700 * torch.expm1((bottom + step * torch.arange(1, bins + 1)) / 1127)
    where = (1127 * torch.log1p(hertz * torch.exp(warp * bend @ waves[:3]) / 700) - bottom) / step - 1
    where = where.clamp(0, bins - 1).cummax(1).values.to(mels.device)[:, None]
    low = where.floor().clamp(max=bins - 2)
    share, low = where - low, low.long().expand_as(mels)
    bent = mels.gather(2, low) * (1 - share) + mels.gather(2, low + 1) * share
    curve = colour * torch.randn(batch, 4, generator=generator) @ waves[1:]
    return bent + curve.to(mels.device)[:, None]


def _save(path: Path, **state) -> None:
    files.write_atomically(path, lambda temporary: torch.save(state, temporary))


def _save_units(path: Path, units: np.ndarray, firsts: np.ndarray) -> None:
    def write(temporary: Path) -> None:
        with open(temporary, "wb") as file:  # given a path, numpy would add a suffix of its own
            np.savez(file, units=units, firsts=firsts)

    files.write_atomically(path, write)


def train_stage(
    network: nn.Module, speech: Speech, stage: Stage, number: int, plan: Plan, checkpoint: Path, device: str,
    progress: Progress | None,
) -> list[tuple[int, float, float]]:  # fmt: skip
    """Train `network` in place for one stage. Returns the curve [(step, loss, percent of units guessed right)]."""
    torch.manual_seed(plan.seed + number)
    objective = hubert.MaskedUnits(network, stage.units).to(device)
    optimiser = torch.optim.AdamW(objective.parameters(), plan.lr, (0.9, 0.98), weight_decay=plan.weight_decay)
    first, curve, units_file = 0, [], checkpoint.with_suffix(f".units{number}.npz")
    if checkpoint.exists():
        saved = torch.load(checkpoint, map_location=device, weights_only=True)
        if saved["stage"] > number:
            return saved["curves"][number]
        if saved["stage"] == number:
            objective.load_state_dict(saved["objective"])
            optimiser.load_state_dict(saved["optimiser"])
            first, curve = saved["step"], saved["curves"][number]
        else:
            network.load_state_dict(saved["network"])
    if not units_file.exists():
        units, firsts = find_units(network, speech, stage, plan.seed, device, progress)
        _save_units(units_file, units, firsts)
    found = np.load(units_file)
    units, firsts = found["units"], found["firsts"]
    recent: list[tuple[float, float]] = []
    for step in range(first, stage.steps):
        rng = np.random.default_rng([plan.seed, number, step])
        wavs, wanted = _batch(speech, units, firsts, rng, plan.batch_sec, stage.speed)
        generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step, stage.steps, plan)
        pairs, _ = network.feature_extractor(wavs.to(device), None)
        mels = another_throat(pairs.unflatten(2, (2, 80)).flatten(1, 2), stage.warp, stage.colour, generator)
        loss, seen = objective(mels.unflatten(1, (-1, 2)).flatten(2), wanted.to(device), generator)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(objective.parameters(), plan.clip_norm)
        optimiser.step()
        recent.append((loss.item(), seen["right"]))
        done = step + 1
        if done % SAVE_EVERY == 0 or done == stage.steps:
            curve.append((done, *(round(float(x), 4) for x in np.mean(recent, axis=0))))
            recent = []
            _save(
                checkpoint, stage=number, step=done, objective=objective.state_dict(), optimiser=optimiser.state_dict(),
                network=network.state_dict(), curves={**_curves(checkpoint), number: curve}, plan=repr(plan),
            )  # fmt: skip
        if progress is not None and (done % REPORT_EVERY == 0 or done == stage.steps):
            shown = f"loss {curve[-1][1]:.3f}, {curve[-1][2]:.1f} % right" if curve else "warming up"
            progress(f"stage {number + 1}: {shown}", done, stage.steps)
    return curve


def _same_plan(checkpoint: Path, plan: Plan) -> None:
    """Raise SuperbLiteError if `checkpoint` is of a run with another plan: going on would mix two recipes."""
    if not checkpoint.exists():
        return
    theirs = torch.load(checkpoint, map_location="cpu", weights_only=True)["plan"]
    if theirs != repr(plan):
        names = f"{checkpoint.name} and {checkpoint.stem}.units*.npz"
        raise SuperbLiteError(
            f"{checkpoint} belongs to a run with another plan ({theirs}); expected {plan!r}. "
            f"Delete {names}, or choose another --out"
        )


def _curves(checkpoint: Path) -> dict:
    return torch.load(checkpoint, weights_only=True)["curves"] if checkpoint.exists() else {}


def pretrain(
    name: str, *, steps: int | None = None, device: str = "cpu", out: str | Path | None = None,
    data: str | Path | None = None, plan: Plan | None = None, progress: Progress | None = None,
) -> Path:  # fmt: skip
    """Pre-train upstream `name` on unlabelled speech and write its weights and card. Returns the weight file.

    steps: total, shared among the stages as in the plan; None for all of them. out: the .safetensors file; the
    card (.json) and the checkpoint lie beside it. data: a folder of unlabelled speech; None makes it first.
    Run again after a kill, it goes on where it was. Raises UnknownName for an upstream that learns nothing,
    and SuperbLiteError if the checkpoint beside `out` is of another plan.
    """
    if name != "tiny_hubert":
        raise UnknownName.among("upstream that can be pre-trained", name, ("tiny_hubert",))
    plan = Plan() if plan is None else plan
    if steps is not None:
        total = sum(stage.steps for stage in plan.stages)
        shares = tuple(replace(s, steps=max(1, round(steps * s.steps / total))) for s in plan.stages)
        plan = replace(plan, stages=shares)
    out = Path(out) if out is not None else files.cache_root() / "pretrained" / f"{name}.safetensors"
    out.parent.mkdir(parents=True, exist_ok=True)
    if data is None:
        from superb_lite.corpora._make import write_unlabelled

        data = write_unlabelled(files.cache_root() / f"unlabelled-{plan.hours:g}h", plan.hours, progress=progress)
    speech = Speech(Path(data))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(plan.seed)
        network = hubert.tiny_network().to(device)
        checkpoint = out.with_suffix(".checkpoint.pt")
        _same_plan(checkpoint, plan)
        curves = [
            train_stage(network, speech, stage, number, plan, checkpoint, device, progress)
            for number, stage in enumerate(plan.stages)
        ]
        network.load_state_dict(torch.load(checkpoint, map_location=device, weights_only=True)["network"])
    _write(name, network, out, plan, speech, curves, device)
    return out


def _write(name, network, out: Path, plan: Plan, speech: Speech, curves, device: str) -> None:
    import safetensors.torch

    half = {key: value.half().contiguous().cpu() for key, value in network.state_dict().items()}
    files.write_atomically(out, safetensors.torch.save(half))
    hours = float(speech.lengths.sum()) / RATE / 3600
    card = {
        "name": name, "method": "HuBERT: masked prediction of k-means units, four iterations",
        "data": f"{hours:.2f} h of unlabelled synthetic English (espeak-ng, the 40 training voices, rooms, noise)",
        "clips": len(speech), "plan": asdict(plan), "steps": sum(stage.steps for stage in plan.stages),
        "curves": [[list(point) for point in curve] for curve in curves], "final_loss": curves[-1][-1][1],
        "final_right_percent": curves[-1][-1][2], "parameters": sum(p.numel() for p in network.parameters()),
        "precision": "float16", "device": device, "torch": torch.__version__, "licence": "MIT",
        "differs": "HuBERT restarts from random weights in every iteration; here the network goes on learning",
    }  # fmt: skip
    files.write_atomically(out.with_suffix(".json"), json.dumps(card, indent=1).encode())
