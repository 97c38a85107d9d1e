"""Interleaved timing, its statistics, and claims about ratios.

Every sample of one variant has a sample of every other beside it, taken within the same round, so that a machine that
slows down for a minute slows all of them. A ratio is therefore taken within a round, and the median is over the rounds.
"""

import dataclasses
import importlib.metadata
import json
import os
import pathlib
import platform
import random
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

import numpy as np

from kd_keras.errors import InputError

TOOLS = pathlib.Path(__file__).parent.parent
_PACKAGES = ("tensorflow", "keras", "numpy", "ai-edge-litert")


class Skip(Exception):
    """A variant that can't be measured here; the message says why, and is printed in its row."""


def summary(values: Sequence[float]) -> dict[str, float]:
    """Median, interquartile range (numpy's linear quantiles) and number of samples."""
    low, median, high = np.percentile(values, [25, 50, 75])
    return {"median": float(median), "iqr": float(high - low), "n": len(values)}


def ratio(samples: dict[str, list[float]], over: Sequence[str], under: Sequence[str]) -> dict[str, float]:
    """Summary over the rounds of (sum of ``over``) / (sum of ``under``), each taken within a round.

    Args:
        samples: seconds by variant, one a round.
        over: variants whose seconds are summed.
        under: variants whose seconds are summed.
    """
    upper, lower = (np.sum([samples[name] for name in names], axis=0) for names in (over, under))
    return summary(upper / lower)


def timed(call: Callable[[], object], steps: int = 1) -> Callable[[], float]:
    """The call, giving the seconds that each of its steps took."""

    def measured():
        start = time.perf_counter()
        call()
        return (time.perf_counter() - start) / steps

    return measured


def interleave(calls: dict[str, Callable[[], float]], rounds: int, warmup: int = 2) -> dict[str, list[float]]:
    """Seconds by variant, one a round. Each round runs every variant once, in an order of its own.

    Args:
        calls: by variant, a call that gives its seconds.
        rounds: samples of each.
        warmup: rounds that are not counted; the first traces and compiles.
    """
    # What runs before leaves its caches and clock speed behind: no variant always comes after the same one.
    order, names = random.Random(0), list(calls)
    samples = {name: [] for name in names}
    for number in range(-warmup, rounds):
        for name in order.sample(names, len(names)):
            seconds = calls[name]()
            if number >= 0:
                samples[name].append(seconds)
    return samples


@dataclasses.dataclass(frozen=True)
class Claim:
    """``over`` ≤ ``limit`` × ``under``, each a sum of variants.

    Attributes:
        over: variants.
        limit: greatest ratio that holds.
        under: variants.
        void: why the claim says nothing on this machine, if it does not.
    """

    over: tuple[str, ...]
    limit: float
    under: tuple[str, ...]
    void: str | None = None

    def __str__(self):
        over, under = (" + ".join(names) for names in (self.over, self.under))
        return f"{over} ≤ {self.limit:.2f} × {f'({under})' if len(self.under) > 1 else under}"

    def judge(self, samples: dict[str, list[float]], skipped: dict[str, str]) -> dict:
        """What is kept of a claim: text, ratio (median, iqr), limit, and whether it holds; None where it is void."""
        void = self.void or next((skipped[name] for name in (*self.over, *self.under) if name in skipped), None)
        row = {"claim": str(self), "limit": self.limit, "holds": None, "void": void}
        if void is not None:
            return row
        found = ratio(samples, self.over, self.under)
        return {**row, "ratio": found, "holds": bool(found["median"] <= self.limit)}


def child(module: str, payload: dict, python: str = sys.executable) -> dict:
    """Runs ``python -m module`` with the payload as JSON, and gives the JSON of its last line.

    Raises:
        RuntimeError: it failed; the message holds the end of what it wrote.
    """
    done = subprocess.run(
        [python, "-m", module, json.dumps(payload)], capture_output=True, text=True, env=child_environment()
    )
    if done.returncode:
        raise RuntimeError(f"{module} {payload} ended with {done.returncode}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def child_environment() -> dict[str, str]:
    """The environment in which a child finds these modules."""
    found = [str(TOOLS), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(found), "TF_CPP_MIN_LOG_LEVEL": "2"}


def peak_bytes() -> int:
    """Peak resident memory of this process.

    Raises:
        InputError: the system does not tell.
    """
    # Not getrusage: its ru_maxrss starts at that of the process which forked this one.
    status = pathlib.Path("/proc/self/status")
    if not status.exists():
        raise InputError("peak memory is read from /proc, which only Linux has: leave out --sections=growth")
    (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
    return 1024 * int(line.split()[1])


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


class OtherLoad:
    """How many cores the machine's other processes kept busy while a block ran.

    Attributes:
        cores: None while the block runs, and where the system does not tell.
    """

    cores = None

    def __enter__(self):
        self._start = self._read()
        return self

    def __exit__(self, *_):
        now, before = self._read(), self._start
        if now is not None:
            wall, busy, own = (late - early for late, early in zip(now, before, strict=True))
            self.cores = max(0.0, (busy - own) / wall)

    @staticmethod
    def _read():
        stat = pathlib.Path("/proc/stat")
        if not stat.exists():
            return None
        user, nice, system, _, _, interrupts, soft = map(int, stat.read_text().split("\n")[0].split()[1:8])
        busy = (user + nice + system + interrupts + soft) / os.sysconf("SC_CLK_TCK")
        # Children count once they have ended.
        return time.perf_counter(), busy, sum(os.times()[:4])


def machine() -> dict:
    """What the figures were measured on: processor, cores, memory, accelerators, versions, load at the start."""
    import tensorflow as tf

    info = pathlib.Path("/proc/cpuinfo")
    lines = dict(line.split(":", 1) for line in info.read_text().splitlines() if ":" in line) if info.exists() else {}
    facts = {key.strip(): value.strip() for key, value in lines.items()}
    gpus = [tf.config.experimental.get_device_details(gpu) for gpu in tf.config.list_physical_devices("GPU")]
    units = [name for name in ("amx_bf16", "avx512_bf16") if name in facts.get("flags", "").split()]
    units += [gpu["device_name"] for gpu in gpus if gpu.get("compute_capability", (0,))[0] >= 8]
    return {
        "processor": facts.get("model name", platform.processor() or platform.machine()),
        "cores": cores(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "gpus": [gpu.get("device_name", "unknown") for gpu in gpus],
        "bfloat16": units,
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
        "load_at_start": round(os.getloadavg()[0], 2),
    }
