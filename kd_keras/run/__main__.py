"""The command line: ``python -m kd_keras.run --flagfile=experiments/digits.flags``.

Exit codes: 0 finished, 2 bad input (one line says what), 3 another machine has stopped or never started (likewise),
129, 130 or 143 ended by SIGHUP, Ctrl-C or SIGTERM; anything else is a bug.
"""

import os
import sys
import time

from kd_keras.processes import exit_code, show

_HELP = {"--help", "-help", "-h", "--helpfull", "--helpshort", "-?"}


def main(argv: list[str]) -> int:
    """Runs an experiment.

    Args:
        argv: as `sys.argv`.

    Returns:
        The exit code.
    """
    return exit_code(lambda: _run(argv), "stopped; the same command goes on from the last epoch")


def _run(argv) -> int:
    start = time.perf_counter()
    # Here, so that Ctrl-C while they are imported is told of in a line too.
    from kd_keras.run import config as configuration
    from kd_keras.run.workdir import Workdir

    if _HELP & set(argv[1:]):
        return show(configuration.help_page())
    config = configuration.read(argv)
    workdir = Workdir(config)
    workdir.check()
    # TensorFlow reports every instruction set that it was not built for; and a lost worker in many lines.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3" if config.hardware.strategy == "multi_worker" else "2")
    from kd_keras.run import execute

    return execute.execute(config, workdir, start)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
