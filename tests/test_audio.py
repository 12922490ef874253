"""Good files come out as mono float32 at 16 kHz; each kind of bad file is refused by name."""

from __future__ import annotations

import hashlib
import io
import threading
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from superb_lite import audio
from superb_lite.types import AudioError, Clip, Part


def tone(rate=16_000, seconds=0.5, hertz=440.0, peak=0.5):
    return (peak * np.sin(2 * np.pi * hertz * np.arange(int(rate * seconds)) / rate)).astype(np.float32)


def encoded(samples, rate=16_000, **kwargs):
    file = io.BytesIO()
    soundfile.write(file, samples, rate, **({"format": "WAV", "subtype": "FLOAT"} | kwargs))
    return file.getvalue()


@pytest.fixture
def put(tmp_path):
    def write(data, name="a.wav"):
        (tmp_path / name).write_bytes(data)
        return tmp_path / name

    return write


def test_reads_mono_16k_unchanged(put):
    wav = audio.read(put(encoded(tone())))
    assert wav.dtype == torch.float32
    torch.testing.assert_close(wav, torch.from_numpy(tone()), rtol=0, atol=0)


def test_stereo_44k_is_averaged_and_resampled(put):
    left = tone(44_100, peak=0.6)
    path = put(encoded(np.stack([left, left / 3], axis=1), 44_100, subtype="PCM_16"))
    wav = audio.read(str(path))
    assert wav.shape == (8000,)
    inner = slice(800, -800)  # away from the edges a resampled tone is the tone
    torch.testing.assert_close(wav[inner], torch.from_numpy(tone(peak=0.4))[inner], rtol=0, atol=2e-3)


def test_8k_becomes_twice_as_many_samples(put):
    assert len(audio.read(put(encoded(tone(8000), 8000)))) == 8000


def test_gain_minus_3_db_is_0_708(put):
    path = put(encoded(tone()))
    torch.testing.assert_close(audio.read(path, gain_db=-3.0), audio.read(path) * 0.7079458, rtol=1e-6, atol=0)


def test_load_applies_the_clips_gain_and_checks_its_duration(put):
    path = put(encoded(tone()))
    clip = Clip("one", str(path), 0.5, audio.digest(path), gain_db=-6.0)
    torch.testing.assert_close(audio.load(clip), audio.read(path) * 0.5011872, rtol=1e-6, atol=0)
    with pytest.raises(AudioError, match=r"a\.wav: holds 0\.50 s, but clip 'two' should have 0\.90 s"):
        audio.load(Clip("two", str(path), 0.9, ""))


def test_digest_is_of_the_stored_bytes(put, tmp_path):
    data = encoded(tone())
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        archive.writestr("in/a.wav", data)
    expected = hashlib.sha256(data).hexdigest()
    assert audio.digest(put(data)) == expected
    assert audio.digest(f"{tmp_path / 'z.zip'}!in/a.wav") == expected


# ------------------------------------------------------------------------------------ inside archives


@pytest.fixture
def opus_zip(tmp_path):
    path = tmp_path / "clips.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for number in range(20):
            data = encoded(tone(hertz=200 + 40 * number), format="OGG", subtype="OPUS")
            archive.writestr(f"{number}.opus", data)
    return path


def test_opus_inside_a_zip(opus_zip):
    wav = audio.read(f"{opus_zip}!3.opus")
    assert wav.shape == (8000,)
    spectrum = torch.fft.rfft(wav).abs()
    assert int(spectrum.argmax()) * 2 == 320  # hertz: bins are 2 Hz apart


def test_archive_is_opened_once_and_threads_agree(opus_zip, monkeypatch):
    opened = []
    real = zipfile.ZipFile
    monkeypatch.setattr(audio.zipfile, "ZipFile", lambda path: opened.append(path) or real(path))
    expected = [audio.read(f"{opus_zip}!{number}.opus") for number in range(20)]
    wrong = []

    def work():
        for number in range(20):
            if not torch.equal(audio.read(f"{opus_zip}!{number}.opus"), expected[number]):
                wrong.append(number)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert len(opened) == 1


def test_a_replaced_archive_is_opened_again(tmp_path):
    path = tmp_path / "z.zip"
    for peak in (0.25, 0.5):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a.wav", encoded(tone(peak=peak, seconds=peak)))
        assert float(audio.read(f"{path}!a.wav").max()) == pytest.approx(peak, abs=0.01)


def test_missing_member_and_damaged_member_are_named(opus_zip):
    with pytest.raises(AudioError, match=r"clips\.zip!no\.opus: the archive has no member 'no\.opus'"):
        audio.read(f"{opus_zip}!no.opus")
    data = bytearray(opus_zip.read_bytes())
    data[200] ^= 0xFF
    opus_zip.write_bytes(data)
    with pytest.raises(AudioError, match=r"clips\.zip!0\.opus: cannot be read .*CRC"):
        audio.read(f"{opus_zip}!0.opus")


# ------------------------------------------------------------------------------------------ bad files


WHOLE_OPUS = encoded(tone(seconds=2), format="OGG", subtype="OPUS")
WHOLE_WAV = encoded(tone(), subtype="PCM_16")
BAD = {
    "empty": (b"", "the file is empty"),
    "no samples": (encoded(np.zeros(0, np.float32)), "no samples"),
    "text": (b"not found\n" * 20, "cannot be decoded"),
    "truncated wav": (WHOLE_WAV[: len(WHOLE_WAV) // 2], "truncated"),
    "wav less one sample": (WHOLE_WAV[:-2], "truncated .2 of 16000 bytes"),
    "truncated wav header": (WHOLE_WAV[:30], "truncated .the header"),
    "truncated flac": (encoded(tone(), format="FLAC", subtype="PCM_16")[:-500], "truncated|cannot be decoded"),
    "truncated opus": (WHOLE_OPUS[: len(WHOLE_OPUS) // 2], "truncated"),
    "opus less one byte": (WHOLE_OPUS[:-1], "truncated .the last page is cut"),
    "opus without its last page": (WHOLE_OPUS[: WHOLE_OPUS.rfind(b"OggS")], "truncated .the last page is missing"),
    "nan": (encoded(np.where(np.arange(8000) == 77, np.nan, tone())), "1 of 8000 samples are NaN or infinite"),
    "infinite": (encoded(np.where(np.arange(8000) < 2, np.inf, tone())), "2 of 8000 samples are NaN or infinite"),
    "silent": (encoded(np.zeros(8000, np.float32)), "silent .all samples are zero"),
    "cancelling": (encoded(np.stack([tone(), -tone()], axis=1)), "silent .its channels .* cancel"),
    "integers as floats": (encoded(tone(peak=20_000)), "peaks at .*, expected at most 1; .* divide them by 32768"),
    "too short": (encoded(tone(seconds=0.04)), r"lasts 0\.040 s, expected at least 0\.05"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_files_are_refused_by_name(kind, put):
    data, message = BAD[kind]
    with pytest.raises(AudioError, match=rf"bad one\.wav: .*{message}"):
        audio.read(put(data, "bad one.wav"))


def test_missing_file_is_named(tmp_path):
    with pytest.raises(AudioError, match=r"gone\.wav: there is no such file"):
        audio.read(tmp_path / "gone.wav")


def test_a_folder_is_no_sound(tmp_path):
    with pytest.raises(AudioError, match="cannot be read"):
        audio.read(tmp_path)


@pytest.mark.parametrize("samples", [tone(seconds=0.05), tone(peak=1.4), 1e-4 * np.sign(tone())])
def test_short_loud_and_faint_files_pass(samples, put):
    assert len(audio.read(put(encoded(samples)))) == len(samples)


# ------------------------------------------------------------------------------------------------ mix


def test_mix_reaches_the_asked_ratio_and_keeps_a():
    a = torch.from_numpy(tone(peak=0.3))
    b = torch.from_numpy(tone(hertz=1000, seconds=0.25))
    mixed = audio.mix(a, b, snr_db=10.0)
    assert mixed.shape == a.shape
    torch.testing.assert_close(mixed[4000:], a[4000:], rtol=0, atol=0)
    added = (mixed - a)[:4000]
    ratio = 10 * torch.log10(a.square().mean() / added.square().mean())
    assert float(ratio) == pytest.approx(10.0, abs=1e-3)


def test_mix_with_a_longer_second_waveform_keeps_all_of_it():
    assert len(audio.mix(torch.ones(10), torch.ones(25), 0.0)) == 25


def test_mix_refuses_silence():
    with pytest.raises(AudioError, match="silent"):
        audio.mix(torch.ones(10), torch.zeros(10), 0.0)


# ------------------------------------------------------------------------------------------- mixtures


@pytest.fixture
def parts(put):
    """Half a second of 300 Hz from 0.0 s on, and of 700 Hz from 0.25 s on, 6 dB quieter."""
    low = put(encoded(tone(hertz=300, peak=0.4)), "low.wav")
    high = put(encoded(tone(8000, hertz=700, peak=0.4), 8000), "high.wav")
    return [Part(str(low), audio.digest(low), 0.0), Part(str(high), audio.digest(high), 0.25, -6.0)]


def test_a_mixture_is_exactly_the_sum_of_its_parts(parts):
    low, high = audio.read(parts[0].audio), audio.read(parts[1].audio, gain_db=-6.0)
    expected = torch.zeros(12_800)
    expected[:8000] += low
    expected[4000:12_000] += high
    clip = audio.mixture("two", parts, 0.8, {"text": "hum"})
    torch.testing.assert_close(audio.load(clip), expected, rtol=0, atol=0)
    assert (clip.id, clip.seconds, clip.label("text")) == ("two", 0.8, "hum")
    quieter = audio.mixture("two", parts, 0.8, {}, gain_db=-3.0)
    torch.testing.assert_close(audio.load(quieter), expected * 10 ** (-3 / 20), rtol=0, atol=0)
    assert quieter.digest == clip.digest and quieter.key != clip.key


def test_the_order_of_the_parts_does_not_matter(parts):
    forward = audio.mixture("two", parts, 0.8, {}, noise_db=-40.0)
    backward = audio.mixture("two", reversed(parts), 0.8, {}, noise_db=-40.0)
    assert forward == backward
    torch.testing.assert_close(audio.load(forward), audio.load(backward), rtol=0, atol=0)


def test_everything_in_the_recipe_but_the_place_changes_the_digest(parts, put):
    digest = audio.mixture("two", parts, 0.8, {}).digest
    elsewhere = [replace(part, audio=str(put(Path(part.audio).read_bytes(), "moved.wav"))) for part in parts[:1]]
    assert audio.mixture("other name", elsewhere + parts[1:], 0.8, {"a": 1}).digest == digest
    others = [
        audio.mixture("two", parts[:1], 0.8, {}),
        audio.mixture("two", parts, 0.9, {}),
        audio.mixture("two", parts, 0.8, {}, noise_db=-50.0),
        audio.mixture("two", [parts[0], replace(parts[1], start=0.26)], 0.8, {}),
        audio.mixture("two", [parts[0], replace(parts[1], gain_db=-5.0)], 0.8, {}),
        audio.mixture("two", [parts[0], replace(parts[1], digest="0" * 64)], 0.8, {}),
    ]
    assert len({digest, *(clip.digest for clip in others)}) == 7


def test_noise_has_its_level_and_is_the_same_every_time(parts):
    clean = audio.load(audio.mixture("two", parts, 4.0, {}))
    noisy = audio.mixture("two", parts, 4.0, {}, noise_db=-40.0)
    torch.manual_seed(3)  # nobody's random state matters, and none is changed
    state = torch.random.get_rng_state()
    noise = audio.load(noisy) - clean
    torch.testing.assert_close(torch.random.get_rng_state(), state)
    assert float(10 * torch.log10(noise.square().mean())) == pytest.approx(-40, abs=0.2)
    assert abs(float(noise.mean())) < 1e-3
    torch.testing.assert_close(audio.load(noisy) - clean, noise, rtol=0, atol=0)
    other = audio.load(audio.mixture("two", parts, 4.0, {}, noise_db=-40.1)) - clean
    assert abs(float(torch.corrcoef(torch.stack([noise, other]))[0, 1])) < 0.05, "two mixtures share their noise"


def test_a_mixture_without_parts_or_with_a_part_outside_is_refused(parts):
    with pytest.raises(ValueError, match="mixture 'none' has no parts"):
        audio.mixture("none", [], 1.0, {})
    for start in (-0.1, 0.8, float("nan")):
        with pytest.raises(ValueError, match=r"mixture 'two': part .*high\.wav starts at .* expected 0 to 0\.8 s"):
            audio.mixture("two", [parts[0], replace(parts[1], start=start)], 0.8, {})


def test_a_part_that_cannot_be_used_is_named_with_its_mixture(parts, put):
    clip = audio.mixture("two", parts, 0.8, {})
    with pytest.raises(AudioError, match=r"mixture 'short': part .*high\.wav ends at 0\.75 s, .* should have 0\.60 s"):
        audio.load(audio.mixture("short", parts, 0.6, {}))
    put(encoded(tone(hertz=700)), "high.wav")
    with pytest.raises(AudioError, match=r"mixture 'two': part .*high\.wav is not the file it was made from"):
        audio.load(clip)
    put(b"", "high.wav")
    with pytest.raises(AudioError, match=r"mixture 'two': part .*high\.wav: the file is empty"):
        audio.load(clip)
    Path(parts[1].audio).unlink()
    with pytest.raises(AudioError, match=r"mixture 'two': part .*high\.wav: there is no such file"):
        audio.load(clip)


def test_a_mixture_that_is_too_loud_is_refused(parts):
    loud = [replace(part, gain_db=9.0) for part in parts]
    with pytest.raises(AudioError, match=r"mixture 'two': peaks at 2\.\d+, expected at most 1\.5; turn its parts down"):
        audio.load(audio.mixture("two", loud, 0.8, {}))
