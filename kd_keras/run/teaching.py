"""What a training reads of its teacher: a copy in the dtype that it computes in, or its outputs from a cache."""

import time

import keras
import numpy as np
from absl import logging

from kd_keras import data as datasets
from kd_keras._compat import distribute
from kd_keras.distillation import device
from kd_keras.distillation import fast_teacher as frozen
from kd_keras.distillation.distiller import Distiller
from kd_keras.distillation.teacher_cache import TeacherCache
from kd_keras.errors import InputError
from kd_keras.evaluate import quality
from kd_keras.run.config import Config

# Enough validation images to tell an agreement of 99.5 % from one of 99 %.
_AGREEMENT_IMAGES = 4096


def check(config: Config, teacher: keras.Model) -> None:
    """Raises InputError where the teacher can't be run in the dtype that is asked for."""
    asked = config.teacher_dtype
    if asked not in (None, "auto") and not frozen.can_be_copied(teacher):
        raise InputError(f"--teacher_dtype={asked} takes a functional teacher: give auto or none")


def dtype(experiment, stage: str, teacher: keras.Model) -> str | None:
    """What a teacher computes in; chosen once, so that a run that goes on elsewhere goes on with the same.

    Args:
        experiment: the `Experiment`.
        stage: the teacher's.
        teacher: its model.

    Returns:
        ``'float32'``, ``'bfloat16'`` or ``'float16'``; None where the teacher is run as it is.
    """
    asked = experiment.config.teacher_dtype
    if asked is None:
        return None
    name = f"{stage}-dtype"

    def choose():
        # One that was taken from another run may have been asked for something else.
        if (kept := experiment.done(name)) is not None and kept["asked"] == asked:
            return
        done = experiment.finish(name, _choice(experiment, asked, teacher))
        if done["agreement"] is not None:
            experiment.console.print(
                f"{stage:<8} computes in {done['dtype']}: the class that it gives in float32 for "
                f"{done['agreement']:.2%} of {done['images']} validation images",
                highlight=False,
            )

    experiment.by_chief(choose, [experiment.state / f"{name}.json"])
    return experiment.done(name)["dtype"]


def _choice(experiment, asked, teacher) -> dict:
    chosen = device.teacher_dtype() if asked == "auto" else asked
    exact = {"asked": asked, "dtype": "float32", "agreement": None, "images": 0}
    if asked == "auto" and not frozen.can_be_copied(teacher):
        return {**exact, "dtype": None}
    if chosen == "float32":
        return exact
    source = experiment.splits.val
    if len(source) > _AGREEMENT_IMAGES:
        source = datasets.take(source, _AGREEMENT_IMAGES, experiment.config.seed)
    full, fast = (
        quality.predict(quality.logits(model), experiment.batches(source))[0]
        for model in (frozen.fast_copy(teacher, "float32"), frozen.fast_copy(teacher, chosen))
    )
    agreement = quality.agreement(fast, full) if np.isfinite(fast).all() else 0.0
    if agreement < frozen.LEAST_AGREEMENT:
        told = f"in {chosen} the teacher gives the class that it gives in float32 for only {agreement:.2%}"
        if asked == "auto":
            logging.warning("%s of %d validation images: it computes in float32", told, len(full))
            return exact
        logging.warning("%s of %d validation images: consider --teacher_dtype=float32", told, len(full))
    return {"asked": asked, "dtype": chosen, "agreement": agreement, "images": len(full)}


def cache(experiment, distiller: Distiller) -> TeacherCache | None:
    """The teacher cache that a training would read, not filled; None where there is none to be read.

    Raises:
        InputError: it would exceed ``--cache_limit_gb``, or a tap of ``--cache_taps`` does not exist.
    """
    config = experiment.config
    if experiment.views is None or not distiller.teacher_taps:
        return None
    return TeacherCache(
        config.cache_folder,
        experiment.views,
        distiller.teacher,
        tuple(dict.fromkeys((*distiller.teacher_taps, *config.cache_taps))),
        dtype=config.cache_dtype,
        top_k=config.cache_top_k,
        teacher_dtype=distiller.teacher_dtype,
        limit_gb=config.cache_limit_gb,
    )


def fill(experiment, stage: str, cache: TeacherCache) -> None:
    """Runs the teacher over what its cache lacks; ``state/<stage>-cache.json`` says how much that was."""
    console, views, n = experiment.console, cache.views.count, len(cache.views)
    console.print(
        f"cache    {cache.nbytes / 1e6:.1f} MB: {', '.join(cache.taps)} of {views} views of {n} images, in "
        f"{cache.folder}",
        highlight=False,
    )
    start = time.perf_counter()
    images = 0
    if len(set(distribute.gather(experiment.strategy, int(cache.folder.name[:7], 16)))) > 1:
        raise InputError(
            "the workers' teacher caches differ, since their data or teachers do: share the data set's folder, or "
            "copy it with the times of its files"
        )

    def run():
        nonlocal images
        with console.status("running the teacher") as status:
            # A forward pass keeps a layer or two, a training step all of them.
            images = cache.fill(
                4 * experiment.config.batch_size,
                lambda done, total: status.update(f"running the teacher: {done} of {total} images"),
            )

    with experiment.timed("teacher cache"):
        experiment.by_chief(run, cache.records)
    seconds = round(time.perf_counter() - start, 1)
    found = "the teacher's outputs are there already" if not images else f"the teacher ran on {images} images"
    console.print(f"cache    {found}, {seconds} s", highlight=False)
    before = experiment.done(f"{stage}-cache") or {"images": 0, "seconds": 0}
    experiment.finish(
        f"{stage}-cache",
        {
            "folder": str(cache.folder),
            "bytes": cache.nbytes,
            "images": before["images"] + images,
            "seconds": before["seconds"] + seconds,
        },
    )
