"""A room, a microphone and some noise around a dry voice, so that synthetic speech is not studio-clean.

Every function takes a numpy Generator: the same generator state gives the same sound. Levels are in dB
relative to full scale (dBFS, root mean square), times in seconds, sound is (samples,) float32 at 16 kHz.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.signal import butter, fftconvolve, sosfilt

from superb_lite.types import RATE


@dataclass(frozen=True)
class Scene:
    """Ranges from which a clip's surroundings are drawn, each (low, high).

    Speech and noise levels are drawn independently: a network that normalises loudness can then still
    hear it, as the distance between voice and noise (loud speech then stays louder).
    """

    speech_db: tuple[float, float] = (-30.0, -18.0)
    noise_db: tuple[float, float] = (-56.0, -38.0)
    reverb_sec: tuple[float, float] = (0.1, 0.45)
    band_limited: float = 0.0  # share of clips heard through a telephone (300-3400 Hz)


def level_db(wav: np.ndarray) -> float:
    """Root-mean-square level in dBFS, of the loudest half of 20 ms frames so that pauses do not count."""
    frames = wav[: len(wav) // 320 * 320].reshape(-1, 320)
    power = np.sort((frames.astype(np.float64) ** 2).mean(axis=1))
    return 10 * np.log10(power[len(power) // 2 :].mean() + 1e-12)


def at_level(wav: np.ndarray, target_db: float) -> np.ndarray:
    return (wav * 10 ** ((target_db - level_db(wav)) / 20)).astype(np.float32)


def room_response(rng: np.random.Generator, reverb_sec: float) -> np.ndarray:
    """An impulse response: the direct sound, a few early reflections, and a tail that falls 60 dB in `reverb_sec`."""
    length = int(reverb_sec * RATE)
    tail = rng.standard_normal(length) * 10 ** (-3 * np.arange(length) / length)
    tail[: int(0.002 * RATE)] = 0
    for delay in rng.uniform(0.002, 0.03, size=6):
        tail[min(int(delay * RATE), length - 1)] += rng.choice([-1, 1]) * rng.uniform(2, 6)
    # direct-to-reverberant ratio 3..15 dB: from across the table to close to the microphone
    tail *= 10 ** (-rng.uniform(3, 15) / 20) / np.sqrt((tail**2).sum() + 1e-12)
    tail[0] = 1.0
    return tail


def noise(rng: np.random.Generator, samples: int) -> np.ndarray:
    """Steady room noise of a random colour (white to brown), sometimes with mains hum or a slow swell."""
    spectrum = np.fft.rfft(rng.standard_normal(samples))
    hertz = np.maximum(np.fft.rfftfreq(samples, 1 / RATE), 40)
    sound = np.fft.irfft(spectrum * (hertz / 40) ** (-rng.uniform(0, 1.0)), samples)
    sound /= np.sqrt((sound**2).mean())
    time = np.arange(samples) / RATE
    if rng.random() < 0.3:
        mains = rng.choice([50.0, 60.0])
        for overtone in (1, 2, 3, 5):
            sound += rng.uniform(0, 0.8) * np.sin(2 * np.pi * overtone * mains * time + rng.uniform(0, 6))
    if rng.random() < 0.3:
        sound *= 1 + 0.7 * np.sin(2 * np.pi * rng.uniform(0.3, 3) * time + rng.uniform(0, 6))
    return sound.astype(np.float32)


def place(rng: np.random.Generator, dry: np.ndarray, scene: Scene) -> np.ndarray:
    """Put a dry voice into a room: same length, same timing, peak below 1."""
    wet = fftconvolve(dry, room_response(rng, rng.uniform(*scene.reverb_sec)))[: len(dry)]
    sound = at_level(wet, rng.uniform(*scene.speech_db))
    sound = sound + at_level(noise(rng, len(dry)), rng.uniform(*scene.noise_db))
    if rng.random() < scene.band_limited:
        sound = sosfilt(butter(4, (300, 3400), "bandpass", fs=RATE, output="sos"), sound)
    return (sound / max(1.0, np.abs(sound).max() / 0.95)).astype(np.float32)
