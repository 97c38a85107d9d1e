"""Seconds until something happens: the help, the imports, the first training step."""

import json
import subprocess
import sys

from benchmarks import measure

TITLE = "Start-up"


def run(options, done) -> dict:
    """Measures processes in alternation."""
    first = {
        "teacher": options.loss_teacher,
        "student": options.loss_student,
        "batch": options.batch,
        "classes": options.classes,
        "image_size": options.image_size,
        "steps": 1,
        "replicas": 1,
    }
    lines = {
        "python -c pass": ["-c", "pass"],
        "python -m kd_keras.run --help": ["-m", "kd_keras.run", "--help"],
        "import kd_keras": ["-c", "import kd_keras"],
        "import tensorflow, keras": ["-c", "import tensorflow, keras"],
        "until the first step": ["-m", "benchmarks.point", json.dumps(first)],
    }

    def process(arguments):
        line = [sys.executable, *arguments]
        return measure.timed(
            lambda: subprocess.run(line, check=True, capture_output=True, env=measure.child_environment())
        )

    calls = {name: process(arguments) for name, arguments in lines.items()}
    # One uncounted round brings the files into the system's cache.
    samples = measure.interleave(calls, options.startup_rounds, warmup=0 if options.quick else 1)
    kept = {name: measure.summary(values) for name, values in samples.items()}
    rows = [[name, f"{one['median']:.2f}", f"{one['iqr']:.2f}"] for name, one in kept.items()]
    note = (
        f"Seconds of a whole process, {options.startup_rounds} rounds. The first step: imports, building, tracing and"
        f" one step of `fit`, {options.loss_teacher} to {options.loss_student}."
    )
    return {
        "title": TITLE,
        "tables": [{"title": TITLE, "columns": ["what", "s", "IQR"], "rows": rows, "note": note}],
        "claims": [],
        "samples": kept,
    }
