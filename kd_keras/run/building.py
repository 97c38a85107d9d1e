"""How a `Build` is made: a new network, or an operation on models that there are."""

import functools
import hashlib
import pathlib
import zipfile

import keras

from kd_keras import files, spec
from kd_keras import losses as loss_terms
from kd_keras.compress import imitate, prepare
from kd_keras.distillation import ensemble, exits, freezing
from kd_keras.distillation.teacher_inputs import scaled
from kd_keras.run import foreign
from kd_keras.schemes.plan import Build, Model, Train


def architecture(model: Model) -> str:
    """What a model is, but for its weights: one text for every seed, name and training."""
    if isinstance(model, Train):
        return architecture(model.model)
    return f"{model.what} {model.precision} {model.weights or ''} of [{', '.join(map(architecture, model.of))}]"


def make(build: Build, models: list[keras.Model], splits, trial: bool = False) -> keras.Model:
    """Makes what a `Build` describes.

    Args:
        build: the stage.
        models: those that it is made from.
        splits: the data, for the number of classes and the image shape.
        trial: whether the model is only looked at: a student to be compressed is then given the zeros and clusters
            that earlier steps would leave.
    """
    name, given = build.what.name, build.what.kwargs
    if name == "join":
        return ensemble.join(models, given["combine"], given.get("shares"), given["prefix"], splits.multi_label)
    if name == "member":
        return ensemble.member(models[0], given["prefix"])
    if name == "add_exits":
        return exits.with_exits(models[0])
    if name == "cut":
        return exits.cut_at(given["tap"])(models[0])
    if name == "graft":
        return loss_terms.from_spec(given["loss"], samples=1).adapted(*models)
    if name == "wrap":
        return prepared(build, models[0], trial).model
    if name == "strip":
        return models[1]
    if name == "freeze":
        return freezing.frozen_body(models[0])
    if name == "freeze_layers":
        return freezing.frozen(models[0], given["names"])
    if name == "scale":
        return scaled(models[0], given["scaling"])
    shape = build.image_shape or splits.image_shape
    model = spec.build("kd_keras.models", build.what, num_classes=splits.num_classes, input_shape=shape)
    if ":" in str(build.what):
        foreign.check_can_be_saved(spec.check_kind(build.what, model, keras.Model), build.what)
    return model


def prepared(build: Build, student: keras.Model, trial: bool = False):
    """A student in the wrappers of a compression step; see `kd_keras.compress.prepare`."""
    given = build.what.kwargs
    *earlier, step = (spec.build("kd_keras.compress", part) for part in (*given["before"], given["step"]))
    if not trial:
        return prepare(student, step, steps=given["steps"], before=tuple(earlier))
    weights = student.get_weights()
    imitate(student, earlier)
    try:
        return prepare(student, step, steps=given["steps"], before=tuple(earlier))
    finally:
        student.set_weights(weights)


@functools.cache
def file_content(name: str | pathlib.Path) -> str:
    """The content hash of a saved model or of a folder of weights; the name itself where it names published ones."""
    path = pathlib.Path(name).expanduser()
    if path.is_dir():
        parts = [(str(p.relative_to(path)), files.sha256(p)) for p in sorted(path.rglob("*")) if p.is_file()]
        return hashlib.sha256(repr(parts).encode()).hexdigest()
    if not path.is_file():
        return f"published {name}"
    if not zipfile.is_zipfile(path):
        return files.sha256(path)
    digest = hashlib.sha256()
    with zipfile.ZipFile(path) as archive:
        # The other member, metadata.json, holds the time of saving.
        for member in ("config.json", "model.weights.h5"):
            if member in archive.namelist():
                digest.update(archive.read(member))
    return digest.hexdigest()
