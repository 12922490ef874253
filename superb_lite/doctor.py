"""Can this machine run the course? One line per check: what is there, what is wrong, what mends it.

The doctor must be able to speak on a machine where nothing else works, so this file (like `_eviction`, which it
asks about stored features) imports the standard library only; everything that may be broken is tried inside a
check (torch even in another process, because a torch and a torchaudio that do not belong together can take the
interpreter down).

Taught in notebook 00 (welcome).
"""

from __future__ import annotations

import gzip
import importlib.metadata
import importlib.util
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from superb_lite import _eviction

PYTHON_FROM, PYTHON_BEFORE = (3, 11), (3, 14)
NEEDED_GB, COMFORTABLE_GB = 1.0, 3.0  # stored features of the default corpus; the second leaves room for `digits`

# A CPU-only torch satisfies "2.11.0" as well, so that only --force-reinstall replaces it.
MEND_TORCH = 'python -m pip install --force-reinstall "torch==2.11.0" "torchaudio==2.11.0"'
MEND_CORE = "python -m pip install --upgrade --force-reinstall soundfile soxr"
MEND_LAB = 'python -m pip install -e ".[lab]"'
MEND_PACKAGE = "python -m pip install --force-reinstall --no-deps -e .  (in the repository root)"

_TORCH_PROBE = """
import json, torch
gpu = None
if torch.cuda.is_available():
    gpu = [torch.cuda.get_device_name(0), torch.cuda.get_device_properties(0).total_memory]
print(json.dumps({"torch": torch.__version__, "gpu": gpu}), flush=True)
import torchaudio
torchaudio.functional.melscale_fbanks(201, 0.0, 8000.0, 23, 16000)
print(json.dumps({"torchaudio": torchaudio.__version__}), flush=True)
"""


@dataclass(frozen=True)
class Check:
    """One line of the doctor's report. `fail` means that the course cannot run; `fix` is a command or ""."""

    name: str
    status: Literal["ok", "warn", "fail"]
    says: str
    fix: str = ""


def check_python(version: Sequence[int] | None = None) -> Check:
    """Is this Python one that the course was made for?"""
    version = tuple(sys.version_info[:3]) if version is None else tuple(version)
    says = "Python " + ".".join(map(str, version))
    if version[:2] < PYTHON_FROM:
        return Check("python", "fail", f"{says}: too old, 3.11 to 3.13 are needed", "python3.12 -m venv .venv")
    if version[:2] >= PYTHON_BEFORE:
        return Check("python", "warn", f"{says}: newer than 3.13, not tried", "python3.12 -m venv .venv")
    return Check("python", "ok", says)


def probe_torch(timeout_sec: float = 180.0) -> tuple[dict, str]:
    """Import torch and torchaudio in another process.

    Returns what could be learned (keys ``torch``, ``torchaudio``, ``gpu``) and the last words of a failure
    ("" if both work). Never raises because of what torch does.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-c", _TORCH_PROBE], capture_output=True, text=True, timeout=timeout_sec, check=False
        )
    except subprocess.TimeoutExpired:
        return {}, f"importing torch took longer than {timeout_sec:.0f} s"
    found: dict = {}
    for line in done.stdout.splitlines():
        if line.startswith('{"torch'):
            found |= json.loads(line)
    if done.returncode == 0:
        return found, ""
    errors = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    return found, errors[-1] if errors else f"the import ended with code {done.returncode} and no message"


def check_torch(found: dict, error: str) -> Check:
    """Do torch and torchaudio belong together? `found` and `error` come from probe_torch."""
    if not error:
        says = f"torch {found['torch']} and torchaudio {found['torchaudio']}"
        if _minor(found["torch"]) == _minor(found["torchaudio"]):
            return Check("torch pair", "ok", says)
        return Check("torch pair", "warn", f"{says} load, but were not made for each other", MEND_TORCH)
    torch, audio = _version("torch"), _version("torchaudio")
    if torch is None or audio is None:
        missing = [name for name, version in (("torch", torch), ("torchaudio", audio)) if version is None]
        return Check("torch pair", "fail", f"{' and '.join(missing)} not installed", MEND_TORCH)
    says = f"torch {torch} and torchaudio {audio} do not load: {_explain(torch, audio, error)}"
    return Check("torch pair", "fail", says, MEND_TORCH)


def _explain(torch: str, audio: str, error: str) -> str:
    """One sentence on why the pair does not load."""
    if torch.partition("+")[0] != audio.partition("+")[0]:
        why = "a torchaudio works only with the torch of the same number"
    elif "+cpu" in torch and "+cpu" not in audio or "CUDA" in error:
        why = "one is built for the CPU and the other for a GPU, or for another CUDA version"
    else:
        why = "the installation is damaged"
    return f"{why} ({error[:160]})"


def check_gpu(found: dict) -> Check:
    """Is there a GPU that torch can use? The course does not need one."""
    gpu = found.get("gpu")
    if gpu:
        return Check("gpu", "ok", f"{gpu[0]}, {gpu[1] / 2**30:.0f} GB: add --device cuda")
    if shutil.which("nvidia-smi") and found:
        says = "an NVIDIA driver is here, but this torch cannot use the GPU; the CPU will do"
        return Check("gpu", "warn", says, "nvidia-smi  (is the driver recent enough for this torch?)")
    return Check("gpu", "ok", "none; the course runs on the CPU")


def check_audio() -> Check:
    """Can this machine resample, and write and read Opus, the format of the built-in corpus?"""
    try:
        import numpy as np
        import soundfile
        import soxr

        tone = np.sin(2 * np.pi * 440 * np.arange(8000) / 8000).astype(np.float32) / 2  # one second at 8 kHz
        wav = soxr.resample(tone, 8000, 16_000)
        packet = io.BytesIO()
        soundfile.write(packet, wav, 16_000, format="OGG", subtype="OPUS")
        packet.seek(0)
        back, rate = soundfile.read(packet, dtype="float32")
    except (ImportError, OSError, RuntimeError, ValueError, TypeError) as error:
        return Check("audio", "fail", f"cannot write and read Opus audio: {_short(error)}", MEND_CORE)
    if rate != 16_000 or len(back) != len(wav):
        return Check("audio", "fail", f"Opus gave {len(back)} samples at {rate} Hz for {len(wav)} at 16000", MEND_CORE)
    says = f"soundfile {soundfile.__version__} writes and reads Opus, soxr {soxr.__version__} resamples"
    return Check("audio", "ok", says)


def check_corpus(folder: Path | None = None) -> Check:
    """Is the built-in corpus complete? `folder` is where its archives lie (default: inside this package)."""
    folder = Path(__file__).parent / "corpora" / "data" if folder is None else folder
    lists = sorted(folder.glob("*.jsonl.gz"))
    if not lists:
        return Check("mini corpus", "fail", f"not in {folder}", MEND_PACKAGE)
    clips = size = 0
    for path in lists:
        archive = path.with_name(path.name.replace(".jsonl.gz", ".zip"))
        try:
            with zipfile.ZipFile(archive) as file:
                there = set(file.namelist())
            lines = gzip.decompress(path.read_bytes()).decode().splitlines()
            wanted = {f"{json.loads(line)['id']}.opus" for line in lines}
        except (OSError, EOFError, zipfile.BadZipFile, ValueError, KeyError) as error:
            return Check("mini corpus", "fail", f"{archive} or {path.name} is damaged: {_short(error)}", MEND_PACKAGE)
        if not wanted <= there:
            says = f"{archive} lacks {len(wanted - there)} of {len(wanted)} clips"
            return Check("mini corpus", "fail", says, MEND_PACKAGE)
        clips, size = clips + len(wanted), size + archive.stat().st_size
    return Check("mini corpus", "ok", f"{clips} clips, {size / 1e6:.1f} MB, inside the package")


def check_disk(folder: Path) -> Check:
    """Is there room for stored features under `folder` (which need not exist yet)?"""
    features = folder / "features"
    free, used = _eviction.free_bytes(folder), _eviction.used_bytes(features)
    bound = _eviction.default_bound(free, used) / 1e9
    free /= 1e9
    says = (
        f"{free:.1f} GB free for stored features in {features}, which take {used / 1e9:.1f} of at most {bound:.1f} GB "
        f"({_eviction.VARIABLE}) and may be deleted"
    )
    fix = "free some space, or set SUPERB_LITE_CACHE to a folder on another disk"
    if free < NEEDED_GB:
        return Check("disk", "fail", f"{says}; {NEEDED_GB:g} GB are needed", fix)
    if free < COMFORTABLE_GB:
        return Check("disk", "warn", f"{says}; {COMFORTABLE_GB:g} GB would be comfortable", fix)
    return Check("disk", "ok", says)


def check_writing(cache: Path, here: Path) -> Check:
    """May we write features into `cache`, and results into `here`, the folder you stand in?"""
    for folder, fix in ((cache, "set SUPERB_LITE_CACHE to a folder of yours"), (here, "cd to a folder of yours")):
        try:
            with tempfile.TemporaryFile(dir=_existing(folder)) as file:
                file.write(b"superb_lite")
        except OSError as error:
            return Check("writing", "fail", f"cannot write in {folder}: {error.strerror or error}", fix)
    return Check("writing", "ok", "features and results can be written")


def check_lab() -> Check:
    """Are JupyterLab, a Python kernel and the notebook checker here? The command line works without them."""
    versions = {name: _version(name) for name in ("jupyterlab", "ipykernel", "nbval")}
    missing = [name for name, version in versions.items() if version is None]
    if missing:
        says = f"{', '.join(missing)} not installed; needed for the notebooks, unless another editor opens them"
        return Check("notebooks", "warn", says, MEND_LAB)
    return Check("notebooks", "ok", ", ".join(f"{name} {version}" for name, version in versions.items()))


def check_espeak() -> Check:
    """Is the synthesiser here? Only data_scripts/make_mini.py needs it, so its absence is fine."""
    if importlib.util.find_spec("espeakng_loader") is not None:
        return Check("espeak", "ok", f"espeakng-loader {_version('espeakng-loader')}")
    says = "not installed, and not needed unless you make a new corpus"
    return Check("espeak", "ok", says, 'python -m pip install -e ".[make]"')


def examine() -> list[Check]:
    """Run all checks, in the order in which a reader should mend them. A check that breaks is a failed check."""
    found, error = probe_torch()
    cache = cache_folder()
    checks: list[tuple[str, Callable[[], Check]]] = [
        ("python", check_python),
        ("torch pair", lambda: check_torch(found, error)),
        ("gpu", lambda: check_gpu(found)),
        ("audio", check_audio),
        ("mini corpus", check_corpus),
        ("disk", lambda: check_disk(cache)),
        ("writing", lambda: check_writing(cache, Path.cwd())),
        ("notebooks", check_lab),
        ("espeak", check_espeak),
    ]
    report = []
    for name, run in checks:
        try:
            report.append(run())
        except Exception as broken:  # noqa: BLE001  (a doctor that crashes helps nobody; the line says what broke)
            report.append(Check(name, "fail", f"the check itself broke: {_short(broken)}"))
    return report


def exit_code(report: Sequence[Check]) -> int:
    """1 if the course cannot run on this machine, else 0 (warnings do not count)."""
    return int(any(check.status == "fail" for check in report))


def cache_folder() -> Path:
    """Where stored features go: SUPERB_LITE_CACHE, else the system's cache folder for superb_lite.

    The same rule as files.cache_root, which cannot be asked here because it needs more than the standard library.
    """
    given = os.environ.get("SUPERB_LITE_CACHE")
    if given:
        return Path(given).expanduser()
    try:
        import pooch
    except ImportError:
        return Path.home()
    return Path(pooch.os_cache("superb_lite"))


def _existing(folder: Path) -> Path:
    """The folder itself, or its nearest parent that exists."""
    folder = folder.absolute()
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder


def _version(name: str) -> str | None:
    """The installed version of package `name`, or None."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _minor(version: str) -> tuple[str, ...]:
    """("2", "11") of "2.11.0+cu128"."""
    return tuple(version.split("+")[0].split(".")[:2])


def _short(error: BaseException) -> str:
    """An error as one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__
