"""Peak memory of a TFLite file, in a process of its own: ``python -m kd_keras.export.memory student_int8.tflite``."""

import os
import pathlib
import subprocess
import sys

from absl import logging

_STATUS = pathlib.Path("/proc/self/status")


def peak(path) -> int | None:
    """Bytes that loading a file and running it once (one thread) add at most to a process.

    None where the system does not tell: elsewhere than on Linux, or in a container that keeps it to itself.
    """
    if not _STATUS.exists():
        return None
    # The package may be found by the working directory alone.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-m", "kd_keras.export.memory", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        logging.warning("peak memory is not measured: %s", (done.stderr.strip().splitlines() or ["no reason"])[-1])
        return None
    return int(done.stdout.split()[-1])


def _kilobytes(name):
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    raise KeyError(name)


def _measure(path):
    import numpy as np
    from ai_edge_litert.interpreter import Interpreter

    # What reading the code took at its highest is forgotten.
    pathlib.Path("/proc/self/clear_refs").write_text("5")
    before = _kilobytes("VmRSS")
    runner = Interpreter(model_path=path, num_threads=1)
    runner.allocate_tensors()
    (given,) = runner.get_input_details()
    runner.set_tensor(given["index"], np.zeros(given["shape"], given["dtype"]))
    runner.invoke()
    return 1024 * max(0, _kilobytes("VmHWM") - before)


if __name__ == "__main__":
    print(_measure(sys.argv[1]))
