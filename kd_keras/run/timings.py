"""How long a training step takes on this machine: measured by finished trainings, read by ``--dry_run``."""

import hashlib
import json

from kd_keras import files
from kd_keras.data.downloads import cache_folder
from kd_keras.run.building import architecture
from kd_keras.schemes.plan import Train


def timings_file():
    """Where this machine's timings are kept, for all runs."""
    return cache_folder("kd_keras") / "timings.json"


def read_timings() -> dict[str, float]:
    """Seconds of a step by what is trained; see `likeness`."""
    try:
        return dict(json.loads(timings_file().read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


def keep_timing(session, stage: Train, seconds: float) -> None:
    """Keeps the seconds of a training's step for dry runs to come."""
    files.write(timings_file(), json.dumps({**read_timings(), likeness(session, stage): seconds}, indent=1) + "\n")


def likeness(session, stage: Train) -> str:
    """What the time of a step depends on, hashed."""
    teacher = None if stage.teacher is None or stage.answers else architecture(stage.teacher)
    losses = [str(term.loss) for term in stage.terms]
    machine = [session.machine, session.strategy.num_replicas_in_sync, session.splits.image_shape]
    what = [architecture(stage.model), teacher, losses, stage.samples.batch_size, stage.pretraining, machine]
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:16]
