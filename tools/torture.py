"""Kills a run at random moments, starts it again each time, and compares it with an undisturbed run, to the bit.

    python tools/torture.py --kills=20
    python tools/torture.py --kills=5 -- --flagfile=experiments/cifar_resnet.flags --epochs=2

What stands after ``--`` are flags of `kd_keras.run`; by default the quick start. Weights, tables and TFLite files have
to be equal. Exit code 1: something differs.
"""

import argparse
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time

from versions.differences import compare

ROOT = pathlib.Path(__file__).resolve().parent.parent
QUICK_START = ["--flagfile=experiments/digits.flags", "--cache_views=2"]


def start(flags, workdir) -> subprocess.Popen:
    """A run in a process of its own; what it prints goes to a file beside its folder."""
    line = [sys.executable, "-m", "kd_keras.run", *flags, f"--workdir={workdir}", "--tracking=none", "--progress=none"]
    with open(f"{workdir}.log", "ab") as log:
        return subprocess.Popen(line, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)


def main(argv: list[str]) -> int:
    """Runs undisturbed, then killed; prints each kill, and what differs."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=20, help="how often the run is killed (SIGKILL)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("flags", nargs="*", default=QUICK_START, help="flags of kd_keras.run, after --")
    options = parser.parse_args(argv)
    draw = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        whole, killed = pathlib.Path(folder, "whole"), pathlib.Path(folder, "killed")
        begin = time.monotonic()
        if start(options.flags, whole).wait():
            print(pathlib.Path(f"{whole}.log").read_text()[-2000:])
            return 1
        seconds = time.monotonic() - begin
        print(f"undisturbed: {seconds:.0f} s", flush=True)
        count = 0
        while count < options.kills:
            process = start(options.flags, killed)
            moment, begin = draw.uniform(0.1, 0.9) * seconds, time.monotonic()
            try:
                code = process.wait(timeout=moment)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.wait()
                count += 1
                print(f"kill {count} after {moment:.1f} s", flush=True)
                continue
            if code:
                print(pathlib.Path(f"{killed}.log").read_text()[-2000:])
                return 1
            # It ended before it was killed: again from nothing, in the time that it takes now.
            print("ended; a new run is killed", flush=True)
            differing = compare(whole, killed).differences
            if differing:
                break
            killed, seconds = killed.with_name(f"{killed.name}+"), time.monotonic() - begin
        else:
            if code := start(options.flags, killed).wait():
                print(pathlib.Path(f"{killed}.log").read_text()[-2000:])
                return 1
            differing = compare(whole, killed).differences
    print("\n".join(differing) or f"{options.kills} kills: identical")
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
