"""Phase 1: train an upstream on speech without labels. One loop for every family's objective.

The run is a pure function of its seed: the batch of step n and what is hidden in it are drawn from (seed, n),
so a run that is killed goes on from its last checkpoint and ends with the same weights as an unbroken one.
All families hear the same clips, in the same voices, for the same number of steps (`Plan`); what each learns from
them is its `Pretext`.

Command: ``superb-lite pretrain tiny_hubert``. Taught in notebook 01 (pre-train an upstream).
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchaudio
from torch import Tensor, nn

from superb_lite import files
from superb_lite.types import RATE, Progress, SuperbLiteError, UnknownName
from superb_lite.upstreams import pretexts
from superb_lite.upstreams._pretext import Pretext, Stage, head_file, head_weights
from superb_lite.upstreams.hubert import frames_of

STRIDE = 320  # samples per frame of the networks that guess units
SAVE_EVERY, REPORT_EVERY = 250, 10  # steps
WINDOW, HOP = 512, 128  # samples, of the spectrogram in which voices are changed


@dataclass(frozen=True)
class Plan:
    """What all families share in a pre-training run, and what decides its outcome besides the family's `Pretext`.

    A step is a batch of `batch_sec` seconds. Clips are played between 1 / `speed` and `speed` times as fast; `warp` and
    `colour` change the voice as `another_throat` says.
    """

    hours: float = 4.5
    steps: int = 4_000
    batch_sec: float = 16.0
    speed: float = 1.15
    warp: float = 0.12
    colour: float = 0.5
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


def _frames(network: nn.Module, pretext: Pretext, speech: Speech, stage: Stage, clips: np.ndarray) -> list[np.ndarray]:
    """What the units of `stage` are clustered from, (frames, dim) for each of `clips`."""
    if stage.source == "mfcc":
        return [mfcc(speech.wav(clip, "dry")) for clip in clips]
    teacher, found = pretext.wrap("teacher", network, ""), []
    device = next(network.parameters()).device
    for part in np.array_split(clips, max(1, len(clips) // 16)):
        out = teacher([speech.wav(clip, "dry").to(device) for clip in part])
        states = out.states[stage.source].float().cpu().numpy()
        found += [same_speaker(states[n, :length]) for n, length in enumerate(out.lengths.tolist())]
    return found


def find_units(
    network: nn.Module, pretext: Pretext, speech: Speech, stage: Stage, seed: int, progress: Progress | None
) -> tuple[np.ndarray, np.ndarray]:
    """Cluster the frames of all clips: (units of clip after clip as int16, first frame of every clip)."""
    from sklearn.cluster import MiniBatchKMeans

    network = copy.deepcopy(network)  # a teacher is frozen, and the network goes on learning
    sample = np.random.default_rng([seed, 7]).permutation(len(speech))[:1500]
    frames = np.concatenate(_frames(network, pretext, speech, stage, np.sort(sample))).astype(np.float32)
    mean, scale = frames.mean(0), frames.std(0) + 1e-6
    kmeans = MiniBatchKMeans(stage.units, batch_size=4096, n_init=3, max_iter=60, random_state=seed)
    kmeans.fit((frames - mean) / scale)
    units, order = [None] * len(speech), speech.by_length
    for first in range(0, len(order), 256):
        clips = order[first : first + 256]
        for clip, part in zip(clips, _frames(network, pretext, speech, stage, clips), strict=True):
            units[clip] = kmeans.predict((part.astype(np.float32) - mean) / scale).astype(np.int16)
        if progress is not None:
            progress(f"finding {stage.units} units in {stage.source}", min(first + 256, len(order)), len(order))
    return np.concatenate(units), np.concatenate([[0], np.cumsum([len(u) for u in units])[:-1]])


def learning_rate(step: int, steps: int, most: float, warmup: float) -> float:
    """Linear warm-up for a share of the steps, then linear decay to zero."""
    rising = max(1, int(warmup * steps))
    return most * min((step + 1) / rising, (steps - step) / max(1, steps - rising))


def draw_batch(speech: Speech, rng: np.random.Generator, plan: Plan) -> tuple[Tensor, np.ndarray, np.ndarray]:
    """Waveforms (batch, samples), each at a speed of its own and by another throat; the clips, and their speeds.

    Another speed is another voice (pitch and formants move with it).
    """
    clips, samples = speech.draw(rng, plan.batch_sec)
    speeds = rng.uniform(1 / plan.speed, plan.speed, size=len(clips))
    samples = int(samples / speeds.max())
    wavs = torch.stack([play_at(speech.wav(clip), speed)[:samples] for clip, speed in zip(clips, speeds, strict=True)])
    generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
    return another_throat(wavs, plan.warp, plan.colour, generator), clips, speeds


def units_of(found: tuple[np.ndarray, np.ndarray], samples: int, clips: np.ndarray, speeds: np.ndarray) -> Tensor:
    """(batch, frames) int64: the units of clips that are played at other speeds and cut to `samples`.

    Whatever the speed, the units stay those of the original: the size of a throat does not change what was said.
    """
    units, firsts = found
    frames = np.arange(frames_of(samples))
    places = [firsts[clip] + np.floor(frames * speed).astype(int) for clip, speed in zip(clips, speeds, strict=True)]
    return torch.from_numpy(units[np.stack(places)].astype(np.int64))


def play_at(wav: Tensor, speed: float) -> Tensor:
    """(samples,) -> (samples / speed,): the same sound as if a tape ran at `speed`."""
    return nn.functional.interpolate(wav[None, None], size=int(len(wav) / speed), mode="linear", align_corners=False)[
        0, 0
    ]


def another_throat(wavs: Tensor, warp: float, colour: float, generator: torch.Generator) -> Tensor:
    """(batch, samples) -> the same words from other throats and through other rooms.

    Frequencies are multiplied by a smooth factor: its logarithm is one number for the clip, of standard deviation
    `warp`, plus two slow cosines over the mel scale of 0.7 times that, since the formants of two people differ by
    more than one length. A smooth curve is added: four cosines of `colour` nepers of energy (1 neper is 4.3 dB). Both
    happen to the magnitudes of a spectrogram, whose phases stay.

    Source: vocal tract length perturbation, Jaitly and Hinton 2013, with the bends added.
    """
    if warp == 0 and colour == 0:
        return wavs
    window = torch.hann_window(WINDOW)
    spectrum = torch.stft(wavs, WINDOW, HOP, window=window, return_complex=True)  # (batch, bins, frames)
    bins = spectrum.shape[1]
    hertz = torch.linspace(0, RATE / 2, bins)
    place = torch.log1p(hertz / 700) / math.log1p(RATE / 2 / 700)  # 0..1, even on the mel scale
    waves = torch.cos(math.pi * torch.arange(5)[:, None] * place)  # (5, bins), the first is constant
    bend = torch.tensor([1.0, 0.7, 0.7]) * torch.randn(len(wavs), 3, generator=generator)
    where = torch.arange(bins) * torch.exp(warp * bend @ waves[:3])
    where = where.clamp(0, bins - 1).cummax(1).values  # the order of frequencies stays
    low = where.floor().clamp(max=bins - 2)
    share, low = (where - low)[..., None], low.long()[..., None].expand(spectrum.shape)
    size = spectrum.abs()
    bent = size.gather(1, low) * (1 - share) + size.gather(1, low + 1) * share
    curve = torch.exp(0.5 * colour * torch.randn(len(wavs), 4, generator=generator) @ waves[1:])  # half, of amplitude
    changed = spectrum * (bent * curve[..., None] / size.clamp(min=1e-8))
    return torch.istft(changed, WINDOW, HOP, window=window, length=wavs.shape[1]).clamp(-1.0, 1.0)


def _save(path: Path, **state) -> None:
    files.write_atomically(path, lambda temporary: torch.save(state, temporary))


def _save_units(path: Path, units: np.ndarray, firsts: np.ndarray) -> None:
    def write(temporary: Path) -> None:
        with open(temporary, "wb") as file:  # given a path, numpy would add a suffix of its own
            np.savez(file, units=units, firsts=firsts)

    files.write_atomically(path, write)


class _Run:
    """One pre-training run: its network, how far it is, and where that is written down."""

    def __init__(
        self, name: str, pretext: Pretext, plan: Plan, speech: Speech, out: Path, device: str, progress: Progress | None
    ) -> None:
        self.name, self.pretext, self.plan, self.speech = name, pretext, plan, speech
        self.out, self.device, self.progress = out, device, progress
        self.checkpoint = out.with_suffix(".checkpoint.pt")
        self.network = pretext.network().to(device)
        self.objective: nn.Module | None = None
        self.curves: list[list[list[float]]] = [[] for _ in pretext.stages]
        self.logs: tuple[str, ...] = ()

    def learn(self) -> None:
        """All stages, or what a kill has left of them."""
        saved = self._saved()
        at = 0 if saved is None else saved["stage"]
        for number, stage in enumerate(self.pretext.stages):
            torch.manual_seed(self.plan.seed + number)
            objective = self.pretext.objective(self.network, *((stage.units,) if stage.units else ()))
            self.objective = objective = objective.to(self.device).train()
            optimiser = torch.optim.AdamW(
                [weights for weights in objective.parameters() if weights.requires_grad], self.pretext.lr, (0.9, 0.98),
                weight_decay=self.plan.weight_decay,
            )  # fmt: skip
            if number < at:
                continue  # its random numbers were drawn; what it learned is in the checkpoint of a later stage
            first = 0
            if saved is not None and number == at:
                objective.load_state_dict(saved["objective"])
                optimiser.load_state_dict(saved["optimiser"])
                first = saved["step"]
            units = self._units(stage, number) if stage.units else None
            self._stage(objective, optimiser, number, first, units)
        _draw(self.objective, self.speech.wav(int(self.speech.by_length[len(self.speech) // 2])), self.out)

    def _stage(self, objective: nn.Module, optimiser: torch.optim.Optimizer, number: int, first: int, units) -> None:
        steps = max(1, round(self.pretext.stages[number].share * self.plan.steps))
        recent: list[list[float]] = []
        for step in range(first, steps):
            loss, seen = self._step(objective, optimiser, number, step, steps, units)
            self.logs = tuple(seen)
            recent.append([loss, *seen.values()])
            done = step + 1
            if done % SAVE_EVERY == 0 or done == steps:
                self.curves[number].append([done, *(round(float(x), 4) for x in np.mean(recent, axis=0))])
                recent.clear()
                _save(
                    self.checkpoint, stage=number, step=done, objective=objective.state_dict(), logs=self.logs,
                    optimiser=optimiser.state_dict(), curves=self.curves, recipe=self._recipe(),
                )  # fmt: skip
            if self.progress is not None and (done % REPORT_EVERY == 0 or done == steps):
                said = "".join(f", {name} {value:.1f}" for name, value in seen.items())
                self.progress(f"{self.name}, stage {number + 1}: loss {loss:.3f}{said}", done, steps)

    def _step(self, objective, optimiser, number: int, step: int, steps: int, units) -> tuple[float, dict[str, float]]:
        rng = np.random.default_rng([self.plan.seed, number, step])
        wavs, clips, speeds = draw_batch(self.speech, rng, self.plan)
        wanted = () if units is None else (units_of(units, wavs.shape[1], clips, speeds).to(self.device),)
        generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step, steps, self.pretext.lr, self.plan.warmup)
        kind = self.device.partition(":")[0]
        with torch.autocast(kind, torch.bfloat16, enabled=kind == "cuda"):
            loss, seen = objective(wavs.to(self.device), *wanted, generator)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(objective.parameters(), self.plan.clip_norm)
        optimiser.step()
        return loss.item(), seen

    def _units(self, stage: Stage, number: int) -> tuple[np.ndarray, np.ndarray]:
        """The units of a stage, from the file beside the checkpoint if they were found before."""
        tag = hashlib.sha256(self._recipe().encode()).hexdigest()[:8]  # they come before the first checkpoint
        path = self.checkpoint.with_suffix(f".units{number}-{tag}.npz")
        if not path.exists():
            found = find_units(self.network, self.pretext, self.speech, stage, self.plan.seed, self.progress)
            _save_units(path, *found)
        found = np.load(path)
        return found["units"], found["firsts"]

    def _recipe(self) -> str:
        heard = len(self.speech), int(self.speech.lengths.sum())
        return repr((self.name, self.plan, self.pretext.stages, self.pretext.lr, heard))

    def _saved(self) -> dict[str, Any] | None:
        """What an earlier run left. Raises SuperbLiteError if it had another recipe: going on would mix the two."""
        if not self.checkpoint.exists():
            return None
        saved = torch.load(self.checkpoint, map_location=self.device, weights_only=True)
        if saved["recipe"] != self._recipe():
            names = f"{self.checkpoint.name} and {self.checkpoint.stem}.units*.npz"
            raise SuperbLiteError(
                f"{self.checkpoint} belongs to a run with another plan ({saved['recipe']}); expected {self._recipe()}. "
                f"Delete {names}, or choose another --out"
            )
        self.curves, self.logs = saved["curves"], saved["logs"]
        return saved

    def write(self) -> None:
        """The weights in half precision, and the card that says how they were made."""
        _write_half(self.out, self.network.state_dict())
        heads = head_weights(self.objective, self.network)
        if heads:
            _write_half(head_file(self.out), heads)
        hours = float(self.speech.lengths.sum()) / RATE / 3600
        card = {
            "name": self.name, "method": self.pretext.method,
            "data": f"{hours:.2f} h of unlabelled synthetic English (espeak-ng, the 40 training voices, rooms, noise)",
            "clips": len(self.speech), "plan": asdict(self.plan), "lr": self.pretext.lr,
            "stages": [asdict(stage) for stage in self.pretext.stages],
            "columns": ["step", "loss", *self.logs], "curves": self.curves,
            "parameters": sum(p.numel() for p in self.network.parameters()), "precision": "float16",
            "device": self.device, "torch": torch.__version__, "licence": "MIT",
        }  # fmt: skip
        files.write_atomically(self.out.with_suffix(".json"), json.dumps(card, indent=1).encode())


def _write_half(path: Path, weights: dict[str, Tensor]) -> None:
    import safetensors.torch

    half = {
        key: (value.detach().half() if value.is_floating_point() else value).contiguous().cpu()
        for key, value in weights.items()
    }
    files.write_atomically(path, safetensors.torch.save(half))


def _draw(objective: nn.Module, wav: Tensor, out: Path) -> None:
    """A picture beside the weights: what the objective makes of one clip."""
    from superb_lite.plots import pretext

    device = next(objective.parameters()).device
    figure = pretext(objective.eval().picture(wav.to(device)), title=out.stem)
    files.write_atomically(out.with_suffix(".png"), lambda path: figure.savefig(path, dpi=80))


def pretrain(
    name: str, *, steps: int | None = None, device: str = "cpu", out: str | Path | None = None,
    data: str | Path | None = None, plan: Plan | None = None, progress: Progress | None = None,
) -> Path:  # fmt: skip
    """Pre-train upstream `name` on unlabelled speech; write weights, card and picture. Returns the weight file.

    steps: in all, shared among the stages; None for those of the plan. out: the .safetensors file; the card (.json),
    the picture (.png) and the checkpoint lie beside it. data: a folder of unlabelled speech; None makes it first.
    Run again after a kill, it goes on where it was. Raises UnknownName for an upstream that learns nothing,
    and SuperbLiteError if the checkpoint beside `out` is of another plan.
    """
    if name not in pretexts():
        raise UnknownName.among("upstream that can be pre-trained", name, tuple(pretexts()))
    plan = Plan() if plan is None else plan
    plan = plan if steps is None else replace(plan, steps=steps)
    out = Path(out) if out is not None else files.cache_root() / "pretrained" / f"{name}.safetensors"
    out.parent.mkdir(parents=True, exist_ok=True)
    if data is None:
        from superb_lite.corpora._make import write_unlabelled

        data = write_unlabelled(files.cache_root() / f"unlabelled-{plan.hours:g}h", plan.hours, progress=progress)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(plan.seed)
        run = _Run(name, pretexts()[name], plan, Speech(Path(data)), out, device, progress)
        run.learn()
    run.write()
    return out
