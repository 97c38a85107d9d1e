"""Pretraining that some losses need before the student is trained: FT's paraphraser, AB's and FSP's first stage."""

import contextlib
from collections.abc import Iterator

from keras import ops

from kd_keras.errors import InputError


@contextlib.contextmanager
def pretraining(distiller) -> Iterator[None]:
    """A context in which a Distiller's `fit` minimises what its losses pretrain.

    It trains with a new optimizer, configured like the compiled one. Afterwards the compiled optimizer and the counters
    of epochs and steps, which schedules read, are back as they were.

    Raises:
        InputError: no loss needs pretraining, or there is no teacher.
    """
    distiller.require_teacher()
    if not distiller.pretrains:
        raise InputError("no loss needs pretraining: of the losses here ft, ab and fsp do")
    optimizer = distiller.optimizer
    counters = [(counter, ops.convert_to_numpy(counter)) for counter in (distiller.epoch, distiller.step)]
    _switch(distiller, True)
    try:
        with distiller.variable_scope():
            distiller.optimizer = type(optimizer).from_config(optimizer.get_config())
            distiller.optimizer.build(distiller.trainable_variables)
        yield
    finally:
        distiller.optimizer = optimizer
        _switch(distiller, False)
        for counter, value in counters:
            counter.assign(value)


def _switch(distiller, on: bool):
    distiller.is_pretraining, distiller.train_function = on, None
    for term in distiller.terms:
        term.pretraining(on)


def check_pretrained(terms) -> None:
    """Raises InputError where a loss needs pretraining and has not had it."""
    for term in terms:
        if not term.pretrained():
            raise InputError(f"{term.name} needs pretraining first: call distiller.pretrain before fit")
