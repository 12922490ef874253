"""What notebooks show: players in a table, one progress bar, hints and quizzes that fold.

Everything is plain HTML, so that it looks the same in JupyterLab, VS Code and Colab, and its stored form is the
same on each run (strict comparison of outputs depends on it).

Taught in notebook 00 (welcome).
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from superb_lite.types import RATE, AudioError, Clip

_CELL = "text-align:left;vertical-align:middle;padding:0.3em 1em"


class Html:
    """A piece of HTML, with plain text for places that show none."""

    def __init__(self, html: str, text: str) -> None:
        self.html, self.text = html, text

    def _repr_html_(self) -> str:
        return self.html

    def __repr__(self) -> str:
        return self.text


class Ladder(Html):
    """Hints that unfold one after the other: each opens inside the one before."""

    def __init__(self, key: str, hints: Sequence[str]) -> None:
        inside = ""
        for number in range(len(hints), 0, -1):
            inside = _fold(f"Hint {number} of {len(hints)}", f"<p>{escape(hints[number - 1])}</p>{inside}")
        super().__init__(inside, f"{len(hints)} hints: hint({key!r}, 1) prints the first")


def show(thing: Any) -> None:
    """Display a thing, also when it is not the last line of a cell."""
    from IPython.display import display

    display(thing)


def _fold(title: str, inside: str) -> str:
    return f"<details><summary>{escape(title)}</summary>{inside}</details>"


# ------------------------------------------------------------------------------------------- questions


def predict(question: str, answer: str) -> None:
    """Ask something before a number appears; the answer is folded away."""
    html = f"<p><b>Predict.</b> {escape(question)}</p>{_fold('Answer', f'<p>{escape(answer)}</p>')}"
    show(Html(html, f"Predict. {question}"))


def quiz(question: str, options: Mapping[str, str], right: str) -> None:
    """A question with folded options: opening one tells whether it is right, and why.

    Args:
        options: option -> why it is right or wrong
        right:   the one option that is right

    Raises:
        ValueError: `right` is not among the options.
    """
    if right not in options:
        raise ValueError(f"the right answer {right!r} is not among the options {list(options)}; spell it the same")
    folds = "".join(
        _fold(option, f"<p><b>{'Right' if option == right else 'No'}.</b> {escape(why)}</p>")
        for option, why in options.items()
    )
    show(Html(f"<p><b>Quiz.</b> {escape(question)} Open the option you believe in.</p>{folds}", f"Quiz. {question}"))


# --------------------------------------------------------------------------------------------- players


def listen(
    clips: Mapping[str, Any] | Sequence[Any],
    captions: Sequence[str] | None = None,
    *,
    title: str = "",
    picture: Callable[..., Any] | None = None,
) -> None:
    """Show players in a table: a caption, a player and (if wanted) a picture per row.

    Args:
        clips: caption -> sound, or sounds with `captions` beside (a clip's own text or id if there are none).
            A sound is a Clip, a path, or (samples,) at 16 kHz, peak at most 1.5. Keep it short: a second takes
            5 kB of the notebook.
        picture: (wav, ax=axes) draws a small picture of the sound, as ``plots.spectrogram`` does. What it shows
            belongs in the text below.

    Raises:
        ValueError: captions do not match the sounds. AudioError: a sound is not what is described above.

    >>> listen({"a beep": np.sin(np.arange(8000) / 8)})  # doctest: +SKIP
    """
    named = _with_captions(clips, captions)
    rows = []
    for caption, sound in named:
        wav = _samples(sound, caption)
        cells = [escape(caption), player(wav, caption)]
        if picture is not None:
            cells.append(_draw(picture, wav, caption))
        rows.append("<tr>" + "".join(f'<td style="{_CELL}">{cell}</td>' for cell in cells) + "</tr>")
    head = f'<caption style="{_CELL}">{escape(title)}</caption>' if title else ""
    names = ", ".join(caption for caption, _ in named)
    show(Html(f"<table>{head}{''.join(rows)}</table>", f"{len(rows)} players: {names}"))


def player(wav: np.ndarray, caption: str = "") -> str:
    """An audio player as HTML. wav: (samples,) float at 16 kHz. The sound is inside, as MP3 (5 kB per second)."""
    import soundfile

    peak = float(np.abs(wav).max(initial=0.0))
    file = io.BytesIO()
    soundfile.write(file, wav / peak if peak > 1 else wav, RATE, format="MP3")
    data = base64.b64encode(file.getvalue()).decode()
    source = f"data:audio/mpeg;base64,{data}"
    return f'<audio controls preload="metadata" aria-label="{escape(caption)}" src="{source}"></audio>'


def _with_captions(clips: Any, captions: Sequence[str] | None) -> list[tuple[str, Any]]:
    if isinstance(clips, Mapping):
        if captions is not None:
            raise ValueError("the sounds have names already, so captions are not expected; leave them out")
        return list(clips.items())
    if isinstance(clips, str | Path | Clip) or getattr(clips, "ndim", 2) == 1:
        raise ValueError("one sound came, expected several; put it in a list: listen([sound])")
    sounds = list(clips)
    if captions is None:
        captions = [_caption(sound, number) for number, sound in enumerate(sounds, start=1)]
    if len(captions) != len(sounds):
        raise ValueError(f"{len(sounds)} sounds came with {len(captions)} captions; give one each")
    return list(zip(captions, sounds, strict=True))


def _caption(sound: Any, number: int) -> str:
    if isinstance(sound, Clip):
        return str(sound.labels.get("text", sound.id))
    return Path(sound).stem if isinstance(sound, str | Path) else f"sound {number}"


def _samples(sound: Any, caption: str) -> np.ndarray:
    """Any sound as (samples,) float32 at 16 kHz."""
    from superb_lite import audio

    if isinstance(sound, Clip):
        sound = audio.load(sound)
    elif isinstance(sound, str | Path):
        sound = audio.read(sound)
    wav = np.asarray(sound, dtype=np.float32)
    if wav.ndim != 1 or not wav.size:
        raise AudioError(f"the sound {caption!r} has shape {wav.shape}, expected (samples,); take one channel of it")
    if not np.isfinite(wav).all() or np.abs(wav).max() > 1.5:
        raise AudioError(f"the sound {caption!r} is not between -1 and 1; divide it by its largest value")
    return wav


def _draw(picture: Callable[..., Any], wav: np.ndarray, caption: str) -> str:
    """A small PNG of the sound as HTML, without labels: they would be larger than the picture."""
    import torch
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.0, 1.2), dpi=80, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    picture(torch.from_numpy(wav), ax=axes)
    axes.set(xlabel="", ylabel="", title="", yticks=[])
    axes.tick_params(labelsize=7)
    file = io.BytesIO()
    figure.savefig(file, format="png")
    data = base64.b64encode(lighter(file.getvalue())).decode()
    return f'<img alt="picture of {escape(caption)}" src="data:image/png;base64,{data}">'


def lighter(png: bytes) -> bytes:
    """The same picture in 32 colours of its own choice: a quarter of the bytes, and hardly a visible difference."""
    from PIL import Image

    file = io.BytesIO()
    with Image.open(io.BytesIO(png)) as image:
        image.convert("RGB").quantize(32, dither=Image.Dither.NONE).save(file, format="PNG", optimize=True)
    return min(png, file.getvalue(), key=len)


# -------------------------------------------------------------------------------------------- progress


class ProgressBar:
    """One bar for everything a call reports; it is there from the start, so its stored form is always the same."""

    def __init__(self, title: str) -> None:
        from tqdm.auto import tqdm

        self._bar = tqdm(total=1, desc=title, bar_format="{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}]")
        self._doing: str | None = None

    def __call__(self, what: str, done: int, total: int) -> None:
        if what != self._doing or total != self._bar.total:
            self._doing = what
            self._bar.reset(total=total)
            self._bar.set_description(what, refresh=False)
        self._bar.n = done
        self._bar.refresh()

    def close(self) -> None:
        """End the bar: green, or red if something was left. With nothing to do it is full."""
        if self._doing is None:
            self._bar.n = self._bar.total
        self._bar.close()

    def __del__(self) -> None:
        if hasattr(self, "_bar"):
            self.close()


def progress(title: str = "working") -> ProgressBar:
    """A bar with an estimate, to hand to the library: ``fit("ks", "fbank", progress=progress("training"))``."""
    return ProgressBar(title)
