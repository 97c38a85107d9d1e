"""What the schemes share: teachers, the baseline, a student that is taught, and the terms of its losses."""

from kd_keras.errors import InputError
from kd_keras.schemes.plan import Build, Cache, Measure, Model, Part, Recipe, Samples, Term, Train
from kd_keras.spec import Spec

#: The teacher as one voice: each loss is computed once, with the whole teacher.
WHOLE = ((1.0, (("teacher", 1.0),)),)
BASELINE, STUDENT = "baseline (no teacher)", "student distilled"


def new(config, facts, spec: Spec, variant: int = 0) -> Build:
    """A model of a family, not trained. Models of one spec and different variants start from different weights."""
    model = _new(facts, spec, config.training.seed + variant, config.hardware.precision)
    layers = config.student.freeze
    if not layers:
        return model
    what = Part("freeze_layers", {"names": layers})
    return Build(architecture=model.architecture, what=what, of=(model,), precision=model.precision)


def _new(facts, spec, seed, precision, image_shape=None, **labels) -> Build:
    weights = facts.weights(spec)
    seed = None if weights is not None and facts.comes_trained(spec) else seed
    return Build(
        image_shape=image_shape,
        what=facts.part("models", spec),
        seed=seed,
        weights=weights,
        precision=facts.precision(precision),
        architecture=str(spec),
        **labels,
    )


def joined(config, facts, name: str, role: str, models, **how) -> Build:
    """Several models as one; the weighted mean of their logits or probabilities is its output.

    Args:
        **how: ``combine``, ``prefix`` and, for weights that differ, ``shares``.
    """
    return Build(
        name=name,
        role=role,
        architecture=" + ".join(model.architecture for model in models),
        what=Part("join", how),
        of=tuple(models),
        precision=facts.precision(config.hardware.precision),
    )


def specs(scheme: str, argument: str, given, example: str) -> tuple[Spec, ...]:
    """The models that a scheme's argument names, one or several joined by ``+``; raises InputError if it names none."""
    models = given if isinstance(given, tuple) else (given,)
    if not models or not all(isinstance(spec, Spec) for spec in models):
        raise InputError(f"{scheme}({argument}={given!r}): give models, {argument}={example}")
    return models


def teachers(config, facts, scheme: str, least: int = 0, most: int | None = 1) -> list[Model]:
    """The teachers: trained here, or taken as they come.

    Raises:
        InputError: the scheme takes fewer or more.
    """
    count = len(config.teacher.models)
    if most == 0 and count:
        raise InputError(f"--scheme={scheme}() takes no teacher, and --teacher names {count}: give --teacher=none")
    if most is not None and count > most:
        raise InputError(
            f"--teacher names {count} models and --scheme={scheme}() takes one: name one, or give --scheme='ensemble()'"
        )
    if count < least:
        raise InputError(
            f"--scheme={scheme}() takes {least} teacher{'s or more' * (least > 1)}, and --teacher names "
            f"{count or 'none'}"
        )
    names = config.teacher.by_stage.items()
    return [_teacher(config, facts, name, spec, number) for number, (name, spec) in enumerate(names)]


def _teacher(config, facts, name, spec, variant) -> Model:
    settings = config.teacher
    labels = {"name": name, "role": name if name == "teacher" else f"teacher {variant + 1}"}
    if settings.folders:
        return facts.borrowed(spec, settings.folders, variant, **labels, architecture=str(spec))
    seed = settings.seed + variant
    epochs = settings.epochs
    if epochs is None:
        epochs = 0 if facts.comes_trained(spec) else config.training.epochs
    if not epochs:
        if settings.stop_at_val_accuracy is not None:
            raise InputError(
                f"--teacher_stop_at_val_accuracy={settings.stop_at_val_accuracy} but {spec} is not trained: give "
                "--teacher_epochs"
            )
        return _scaled(facts, spec, seed, settings, **labels)
    accuracy = settings.stop_at_val_accuracy
    model = _scaled(facts, spec, seed, settings)
    losses = terms(settings.loss, facts, model, None, flag="--teacher_loss")
    data = facts.data(settings.seed, config.data.teacher_labelled_examples, "teacher_labelled_examples")
    return Train(
        **labels,
        architecture=str(spec),
        model=model,
        terms=losses,
        recipe=recipe(
            facts,
            settings,
            epochs,
            stop=None if accuracy is None else (accuracy, settings.stop_check_steps),
            patience=settings.patience,
        ),
        samples=_samples(facts, data, losses, settings.batch_size, settings.augment),
        seed=settings.seed,
    )


def _scaled(facts, spec, seed, settings, **labels) -> Build:
    """A new teacher, in the scaling that it takes."""
    is_scaled = settings.scaling is not None
    model = _new(facts, spec, seed, settings.precision, facts.teacher_shape(spec), **({} if is_scaled else labels))
    if not is_scaled:
        return model
    return Build(
        **labels,
        architecture=str(spec),
        what=Part("scale", {"scaling": settings.scaling}),
        of=(model,),
        precision=model.precision,
    )


def recipe(facts, settings, epochs: int, **options) -> Recipe:
    """How long and how a model is trained, by a section of the settings."""
    options = {"learning_rate": settings.learning_rate, **options}
    return Recipe(epochs=epochs, optimizer=facts.part("optimizers", settings.optimizer), **options)


def _samples(facts, data, terms, batch_size, augment, views=None, unlabelled_ratio=None) -> Samples:
    """All images where a term learns from those without a label; else those with one, as often as it takes."""
    unlabelled = data.count - data.labels
    if unlabelled_ratio is not None and not unlabelled:
        raise InputError(
            f"--unlabelled_ratio={unlabelled_ratio:g} but all training images have labels: give --labelled_examples, "
            "or data with unlabelled images"
        )
    fields = {"val": data.val, "batch_size": batch_size, "augment": facts.parts("data.augment", augment)}
    fields |= {"views": views, "labelled": data.labels}
    if not unlabelled or any(map(facts.learns_without_labels, terms)):
        return Samples(train=data.train, unlabelled=unlabelled, unlabelled_ratio=unlabelled_ratio, **fields)
    if any(term.teachers for term in terms):
        names = ", ".join(dict.fromkeys(term.loss.name for term in terms))
        raise InputError(
            f"{unlabelled} of the training images have no label, and each loss of --loss reads labels ({names}): add "
            "one that does not, such as kd(), or use only labelled images (--train_examples)"
        )
    return Samples(train=data.labelled, length=data.count, **fields)


def baseline(config, facts) -> list[Train]:
    """The student trained without a teacher, where it is wanted."""
    if not config.student.baseline:
        return []
    model = new(config, facts, config.student.model)
    losses = terms(config.student.baseline_loss, facts, model, None, flag="--baseline_loss")
    return [train(config, facts, "baseline", BASELINE, model, losses)]


def student(
    config, facts, teacher: Model | None, *, name="student", role=STUDENT, spec=None, variant=0, voices=WHOLE
) -> Model:
    """A model taught by ``--loss``, or the trained one that ``--student_from`` names."""
    if config.student.file is not None and name == "student":
        what, weights = facts.saved(config.student.file)
        return Build(name=name, role="student", what=what, weights=weights, architecture=str(what))
    spec = spec or config.student.model
    model = new(config, facts, spec, variant)
    losses = terms(config.student.loss, facts, model, teacher, voices=voices)
    return train(config, facts, name, role, model, losses, teacher)


def train(config, facts, name, role, model, terms, teacher=None, *, architecture=None) -> Train:
    """A training, with the pretraining that ``--pretrain_epochs`` adds."""
    architecture = architecture or model.architecture
    for loss in (term.loss for term in terms if facts.grafts(term.loss)):
        model = Build(what=Part("graft", {"loss": loss}), of=(model, teacher), precision=model.precision)
    fields = taught_fields(config, facts, model, terms, teacher)
    settings = config.training
    pretrained, epochs = [term.loss for term in terms if facts.pretrains(term.loss)], config.student.pretrain_epochs
    needy = [loss.name for loss in pretrained if facts.needs_pretraining(loss)]
    if needy and not epochs:
        raise InputError(f"--loss has {', '.join(needy)}, which needs pretraining: give --pretrain_epochs=10, say")
    first = None
    if epochs and pretrained:
        first = Train(name=f"{name}-pretraining", recipe=recipe(facts, settings, epochs), pretraining=True, **fields)
    labels = {"name": name, "role": role, "architecture": architecture}
    return Train(
        **labels,
        recipe=recipe(facts, settings, settings.epochs, patience=settings.patience),
        after=first,
        **fields,
    )


def taught_fields(config, facts, model, terms, teacher) -> dict:
    """The fields of a training that say who is taught by whom: what ``--cache_views`` and ``--teacher_dtype`` add.

    Args:
        teacher: left out where no term reads it.
    """
    teacher = teacher if reads_teacher(terms) else None
    cache, seed = config.cache, config.training.seed
    views = (cache.views, cache.seed) if cache.views else None
    data, settings = facts.student_data(), config.data
    samples = _samples(
        facts, data, terms, config.training.batch_size, settings.augment, views, settings.unlabelled_ratio
    )
    fields = {"model": model, "terms": terms, "seed": seed, "samples": samples, "teacher": teacher}
    if teacher is None:
        return fields
    # A teacher of features alone need not know the classes.
    if facts.is_classifier(teacher):
        fields["verified"] = _verified(config, facts, teacher)
    fields["computes_in"] = computes_in = _dtype(config, facts, teacher)
    if cache.top_k is not None and facts.data().multi_label:
        raise InputError(
            f"--cache_top_k={cache.top_k} keeps the classes that a softmax thinks likeliest, and the data have several "
            "labels for an image: leave it out"
        )
    if views is not None:
        caches = {
            "teacher": teacher,
            "images": data.images,
            "views": views,
            "augment": samples.augment,
            "computes_in": computes_in,
            "dtype": cache.dtype,
            "top_k": cache.top_k,
        }
        taps = facts.teacher_taps(terms, model, teacher)
        fields["answers"] = tuple(Cache(name=f"{teacher.name}-cache-{tap}", tap=tap, **caches) for tap in taps)
    return fields


def terms(
    losses, facts, model, teacher, *, learner="student", taps=None, voices=WHOLE, flag="--loss"
) -> tuple[Term, ...]:
    """Losses as terms: who learns by each loss, and from whom.

    Args:
        losses: specs.
        model: the learner, for the names of its taps.
        teacher: the model that teaches, likewise; None for none.
        learner: the part of the trained model that learns.
        taps: the learner's taps, where they are not those of ``model``.
        voices: (share, teachers) of each term that a loss on logits becomes, see `Term`.
        flag: where the losses come from, for messages.
    """
    made = []
    for loss in facts.losses(losses, flag):
        offered = None if teacher is None else facts.taps(teacher, features=True)
        reads = facts.reads(loss, taps or facts.taps(model), offered)
        if reads and teacher is None:
            advice = "name one with --teacher" if flag == "--loss" else "leave such losses out, as in ce()"
            raise InputError(f"{flag} has {loss.name}, which reads a teacher, and there is none: {advice}")
        if not reads:
            made.append(Term(loss, learner))
        elif "logits" not in reads and voices != WHOLE and learner == "student":
            made.append(Term(loss, learner, WHOLE[0][1]))
        else:
            facts.check_voices(loss, reads, voices)
            made += [Term(loss, learner, heard, share) for share, heard in voices]
    return tuple(made)


def must_teach(scheme: str, terms) -> None:
    """Raises InputError where no loss reads a teacher, without which a scheme makes no sense."""
    if not any(term.teachers for term in terms):
        raise InputError(f"--scheme={scheme}() but no loss of --loss reads a teacher: add one, such as kd()")


def reads_teacher(terms) -> bool:
    """Whether a term reads the stage's teacher."""
    return any(part.startswith("teacher") for term in terms for part, _ in term.teachers)


def _verified(config, facts, teacher) -> tuple[Measure, ...]:
    """What may be wrong with a teacher: its classes in another order, or another class in the dtype asked for."""
    data, dtype = facts.data().val, config.teacher.dtype
    checks = []
    # Another run of the same data has trained the teachers of --teacher_from.
    if isinstance(teacher, Build) and teacher.is_one_from_elsewhere and not config.teacher.folders:
        checks.append(Measure(name=f"{teacher.name}-class-order", of=teacher, what="class_order", data=(data,)))
    if dtype not in (None, "auto", "float32"):
        checks.append(Measure(name=f"{teacher.name}-agreement", of=teacher, what="agreement", data=(data, dtype)))
    return tuple(checks)


def _dtype(config, facts, teacher) -> Measure | str | None:
    dtype = config.teacher.dtype
    facts.check_dtype(teacher, dtype)
    if dtype != "auto":
        return dtype
    if not facts.is_classifier(teacher):
        return None
    return Measure(name=f"{teacher.name}-dtype", of=teacher, what="dtype", data=(facts.data().val,))
