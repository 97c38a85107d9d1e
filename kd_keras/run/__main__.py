"""The command line: ``python -m kd_keras.run --flagfile=experiments/digits.flags``.

Exit codes: 0 done, 2 bad input (one line says what), 3 another machine has stopped or never started (likewise),
130 interrupted; anything else is a bug.
"""

import os
import sys
import time

from kd_keras import spec
from kd_keras.errors import exit_code
from kd_keras.run import config as configuration

_HELP = {"--help", "-help", "-h", "--helpfull", "--helpshort", "-?"}


def main(argv: list[str]) -> int:
    """Runs an experiment.

    Args:
        argv: as `sys.argv`.

    Returns:
        The exit code.
    """
    if _HELP & set(argv[1:]):
        print(configuration.help_text())
        return 0
    return exit_code(lambda: _run(argv), "stopped; the same command goes on from the last epoch")


def _run(argv) -> int:
    start = time.perf_counter()
    config = configuration.read(argv)
    configuration.check_workdir(config)
    # TensorFlow tells of every instruction set it was not built for; and of a worker that is lost, in many lines.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3" if config.strategy == "multi_worker" else "2")
    from kd_keras._compat import distribute
    from kd_keras.run import compressed, measure
    from kd_keras.run.experiment import Experiment
    from kd_keras.run.report import tables

    # Before the data are read: its own mistakes are told at once.
    scheme = spec.build("kd_keras.schemes", config.scheme)
    compressed.check_chains(config)
    experiment = Experiment(config)
    if not experiment.finished:
        strategy = experiment.strategy
        with distribute.watch(strategy):
            scheme.check(experiment)
            compressed.check(experiment)
            measure.check(experiment)
        if experiment.chief:
            configuration.claim_workdir(config)
        experiment.begin()
        try:
            with distribute.watch(strategy):
                models, exported, teacher = scheme.run(experiment)
                smaller = compressed.run(experiment, models, exported[0])
                experiment.leave_cluster()
                if experiment.chief:
                    measure.measure(experiment, models, exported, teacher, smaller)
                # The others wait: should the chief stop while it measures, all have to start again to go on.
                distribute.gather(strategy, 1)
        except BaseException:
            experiment.tracker.close("FAILED")
            raise
        experiment.tracker.close()
        experiment.print_seconds(start)
    if experiment.chief:
        rows, notes = experiment.results()
        tables.print_table(rows, experiment.console, caption="\n".join(notes))
        experiment.print_places()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
