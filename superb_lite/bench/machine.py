"""What every measurement needs: clocks, memory, and how fast this machine multiplies matrices.

Taught in notebook 02 (freeze, weigh, probe), which computes what freezing saves.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn

from superb_lite.types import Upstream

BUSY = 1.5  # wall time over processor time of a program with one thread, from which others had the processor too
LIBRARIES = ("superb-lite", "torch", "torchaudio", "numpy", "numba")


@dataclass(frozen=True)
class Took:
    """Seconds of one program: by the clock on the wall, and of all its threads on the processor."""

    wall: float
    processor: float


def timed(work: Callable[[], Any], device: str = "cpu") -> tuple[Any, Took]:
    """What `work` gives back, and how long it took, with everything it left for `device` to do."""
    wall, processor = now(device)
    done = work()
    wall_after, processor_after = now(device)
    return done, Took(wall_after - wall, processor_after - processor)


def now(device: str = "cpu") -> tuple[float, float]:
    """(wall clock, processor time of all threads) in seconds, when `device` has finished what it was given."""
    if torch.device(device).type != "cpu":
        torch.accelerator.synchronize(torch.device(device))
    return time.perf_counter(), time.process_time()


def typical(runs: Sequence[Took]) -> Took:
    """The median of each of the two clocks."""
    return Took(median(run.wall for run in runs), median(run.processor for run in runs))


def placed(upstream: Upstream, device: str) -> Upstream:
    """The upstream on `device`, if it has weights."""
    return upstream.to(device).eval() if isinstance(upstream, nn.Module) else upstream


def peak_bytes() -> int:
    """The most memory this process has had at once; 0 where the system does not tell (Windows).

    On Linux from /proc: getrusage counts that of the parent in.
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        try:
            import resource
        except ImportError:
            return 0
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def peak_dtype(device: str) -> torch.dtype:
    """The numbers in which the peak is measured: bfloat16 on a GPU, float32 elsewhere."""
    return torch.bfloat16 if torch.device(device).type == "cuda" else torch.float32


def matmul_peak(device: str = "cpu", side: int | None = None, repeats: int = 5) -> float:
    """Floating-point operations per second of a large matrix product, the best of several: what could be reached.

    side: rows and columns, 2048, or 8192 on a GPU. A product of two square matrices needs 2 side^3 operations
    """
    if side is None:
        side = 8192 if torch.device(device).type == "cuda" else 2048
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(side, side, generator=generator).to(device, peak_dtype(device))
    matrix @ matrix  # the first one looks for the best kernel
    return max(2 * side**3 / timed(lambda: matrix @ matrix, device)[1].wall for _ in range(repeats))


def facts(device: str) -> dict[str, Any]:
    """Where the numbers come from: processor, cores, threads, device, load, and versions of what computes."""
    from loky import cpu_count  # knows what this process may use, in containers too

    cuda = torch.device(device).type == "cuda"
    return {
        "device": torch.cuda.get_device_name(torch.device(device)) if cuda else device,
        "processor": f"{platform.processor() or platform.machine()}, {torch.backends.cpu.get_cpu_capability()}",
        "system": platform.system(),
        "cores": cpu_count(),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in LIBRARIES},
    }
