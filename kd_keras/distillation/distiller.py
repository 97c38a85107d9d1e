"""A student model trained by a teacher: `Distiller`, and `Taps`, which reads a model's intermediates by name.

TensorFlow only: `train_step` differentiates with `tf.GradientTape`.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from kd_keras._compat import distribute
from kd_keras._compat import keras as graph
from kd_keras.distillation import fast_teacher as frozen
from kd_keras.errors import InputError
from kd_keras.losses import labels


@dataclasses.dataclass(frozen=True)
class Batch:
    """What a training batch holds.

    Attributes:
        image: (B, H, W, C).
        label: classes (B,), or class weights (B, K); None when predicting.
        sample_weight: (B,) or None.
        index: number of each sample in its split (B,), or None.
        teacher: the teacher's taps for these very views, by name; where given, the teacher is not run.
    """

    image: Any
    label: Any = None
    sample_weight: Any = None
    index: Any = None
    teacher: Any = None


def unpack_batch(data) -> Batch:
    """Reads a batch in any form that Keras or the pipeline gives.

    Args:
        data: ``image``, ``(image, label)``, ``(image, label, sample_weight)``, or a dict with the fields of `Batch`;
            such a dict may also stand in the image's place, as `Distiller.fit` passes it through Keras.
    """
    image, label, weight = (*data, None, None)[:3] if isinstance(data, (tuple, list)) else (data, None, None)
    if not _is_batch_dict(image):
        return Batch(image, label, weight)
    fields = {key: image[key] for key in ("image", "label", "sample_weight", "index", "teacher") if key in image}
    given = {"label": label, "sample_weight": weight}
    return Batch(**{**fields, **{key: value for key, value in given.items() if value is not None}})


def _is_batch_dict(value) -> bool:
    return isinstance(value, Mapping) and "image" in value


def _through_keras(data):
    """A data set of batch dicts as (dict, label, sample_weight), which is what Keras' own code takes apart."""
    if not isinstance(data, tf.data.Dataset):
        return data
    if not (_is_batch_dict(data.element_spec) and "label" in data.element_spec):
        return data

    def split(batch):
        rest = {key: value for key, value in batch.items() if key not in ("label", "sample_weight")}
        weight = (batch["sample_weight"],) if "sample_weight" in batch else ()
        return (rest, batch["label"], *weight)

    return data.map(split)


def _shared_out(data, strategy):
    return distribute.feed(strategy, data) if isinstance(data, tf.data.Dataset) else data


class Taps:
    """Reads named intermediates of a model in one forward pass.

    In a functional or Sequential model every layer's name is a tap, and ``logits`` is the output. A subclassed model
    offers what its own ``taps(x, training)`` method returns (a dict with ``logits`` in it), or else logits only.

    A final softmax is taken off: ``logits`` are what went into it.

    Args:
        model: a built `keras.Model` with one input and one output of shape (B, K).
        role: how the model is called in messages.

    Attributes:
        model: the model, as it was given.
        names: the taps on offer.
        input_shape: (H, W, C) …
        num_classes: K.

    Raises:
        InputError: the model is not built, has several inputs or outputs, or ends in a softmax that can't be removed.
    """

    def __init__(self, model: keras.Model, role: str = "model"):
        self.model, self.role = model, role
        self._functions: dict[tuple[str, ...], Callable] = {}
        # Functional and Sequential models are graphs of operations; only those can be cut at a layer.
        self._is_graph = graph.is_graph(model)
        if not model.built:
            raise InputError(f"the {role} is not built: call it once on a batch, or give it an Input")
        if self._is_graph:
            self._read_graph()
        else:
            self._read_subclassed()
        self.names = list(self._shapes)
        logits = self._shapes["logits"]
        # One output is one class, whose softmax is always 1: a loss on it would train nothing.
        if len(logits) != 2 or logits[1] in (None, 1):
            raise InputError(f"the {role}'s output has shape {logits}: a classifier's is (batch, classes), classes ≥ 2")
        self.num_classes = logits[1]

    def _read_graph(self):
        model = self.model
        if len(model.inputs) != 1 or len(model.outputs) != 1:
            counts = f"{len(model.inputs)} inputs and {len(model.outputs)} outputs"
            raise InputError(f"the {self.role} has {counts}: a classifier has one of each")
        self.input_shape = tuple(model.inputs[0].shape[1:])
        tensors, outputs = {}, {}
        for operation, node in graph.uses(model.outputs):
            outputs.setdefault(id(operation), []).extend(node.output_tensors)
        for layer in model.layers:
            if not isinstance(layer, keras.layers.InputLayer) and len(outputs.get(id(layer), ())) == 1:
                tensors[layer.name] = outputs[id(layer)][0]
        tensors["logits"] = self._logits(model)
        self._tensors = tensors
        self._shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}

    def _logits(self, model):
        output = model.outputs[0]
        last, node = graph.made_by(output)
        if not _ends_in_softmax(last):
            return output
        if graph.is_softmax(last) or isinstance(last, keras.layers.Activation):
            return node.input_tensors[0]
        if isinstance(last, keras.layers.Dense):
            logits = ops.matmul(node.input_tensors[0], last.kernel)
            return logits if last.bias is None else ops.add(logits, last.bias)
        raise self._softmax_error(last)

    def _softmax_error(self, layer):
        return InputError(
            f"the {self.role} ends in a softmax inside {layer.name!r}, which can't be taken off: "
            "let the model return logits"
        )

    def _read_subclassed(self):
        model = self.model
        config = model.get_build_config() or {}
        shape = config.get("input_shape")
        if not isinstance(shape, (tuple, list)) or any(size is None for size in shape[1:]):
            raise InputError(f"the {self.role}'s input shape is not known: call it once on a batch of images")
        self.input_shape = tuple(shape[1:])
        outputs = self._call_subclassed(ops.zeros((1, *self.input_shape)), training=False)
        if "logits" not in outputs:
            raise InputError(f"the {self.role}'s taps() returns {', '.join(outputs)}: 'logits' has to be among them")
        # The order of a subclassed model's layers says nothing of which comes last; what comes out does.
        if _are_probabilities(outputs["logits"]):
            raise self._softmax_error(model)
        self._shapes = {name: (None, *value.shape[1:]) for name, value in outputs.items()}

    def _call_subclassed(self, x, training):
        if hasattr(self.model, "taps"):
            return self.model.taps(x, training=training)
        return {"logits": self.model(x, training=training)}

    def shapes(self, names: Sequence[str]) -> dict[str, tuple]:
        """Shapes (None, …) of the named taps."""
        return {name: self._shapes[name] for name in names}

    def require(self, names: Sequence[str]) -> None:
        """Raises InputError where a tap does not exist."""
        for name in names:
            if name not in self._shapes:
                raise InputError(f"the {self.role} has no tap {name!r}: it has {', '.join(self.names)}")

    def logits_model(self) -> keras.Model:
        """The model, or where it ends in a softmax, one that gives the logits with the same weights."""
        if not self._is_graph or self._tensors["logits"] is self.model.outputs[0]:
            return self.model
        return keras.Model(self.model.inputs[0], self._tensors["logits"], name=self.model.name)

    def __call__(self, x, names: Sequence[str], training: bool) -> dict[str, Any]:
        """The named taps for images (B, H, W, C); ``logits`` in float32. The model runs once."""
        names = tuple(names)
        if self._is_graph:
            if names not in self._functions:
                outputs = {name: self._tensors[name] for name in names}
                self._functions[names] = keras.Model(self.model.inputs[0], outputs)
            outputs = self._functions[names](x, training=training)
        else:
            outputs = self._call_subclassed(x, training)
        return {name: ops.cast(outputs[name], "float32") if name == "logits" else outputs[name] for name in names}


def _ends_in_softmax(layer) -> bool:
    while isinstance(layer, keras.Model) and layer.layers:
        layer = layer.layers[-1]
    return graph.is_softmax(layer) or getattr(layer, "activation", None) is keras.activations.softmax


def _are_probabilities(values) -> bool:
    values = ops.convert_to_numpy(ops.cast(values, "float32"))
    return bool((values >= 0).all() and (abs(values.sum(axis=-1) - 1) < 1e-2).all())


class _Untracked:
    """Holds something that Keras must not find: not in weights, not in checkpoints, not in `summary`."""

    def __init__(self, value=None):
        self.value = value


@keras.saving.register_keras_serializable(package="kd_keras")
class Accuracy(keras.metrics.Mean):
    """Share of samples whose largest logit is the label, for classes (B,) and for class weights (B, K) alike.

    After mixup the training labels are class weights while the validation labels are classes, and a metric of Keras'
    is settled on one form by the first batch.
    """

    def __init__(self, name="accuracy", dtype=None):
        super().__init__(name=name, dtype=dtype)
        # What Keras' callbacks read to know that more is better.
        self._direction = "up"

    def update_state(self, y_true, y_pred, sample_weight=None):
        right = ops.equal(labels.classes(y_true), ops.cast(ops.argmax(y_pred, axis=-1), "int32"))
        if sample_weight is not None:
            sample_weight = ops.reshape(sample_weight, (-1,))
        return super().update_state(ops.cast(right, self.dtype), sample_weight)


class _EpochClock(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        self.model.epoch.assign(epoch)


@keras.saving.register_keras_serializable(package="kd_keras")
class Distiller(keras.Model):
    """Trains a student with a teacher's help; to everything but training it *is* the student.

    A step runs the teacher once without gradient (not at all where the batch brings its taps, or where no loss asks
    for one), the student once, and sums the weighted losses and the student's own regularisation losses, averaged
    over the global batch. `evaluate` gives the student's metrics, with ``loss`` the hard-label cross-entropy whatever
    is trained; `predict` gives the student's logits.

    The teacher is never trained, never tracked, never saved; the object that was given is left as it was. A reloaded
    Distiller predicts and evaluates at once, and takes a teacher by `attach_teacher` before `fit`.

    Args:
        student: a built classifier. Its final softmax, if any, is taken off for training and predictions.
        teacher: a built classifier of the same classes and input, or None where no loss asks for one.
        losses: the terms (`kd_keras.losses`), each with its own weight.
        teacher_dtype: ``'float32'``, ``'bfloat16'``, ``'float16'`` or ``'auto'`` runs a fast copy of a functional
            teacher in it (see `kd_keras.frozen`); None runs the teacher as it is.

    Attributes:
        student: the student, as it was given.
        terms: the losses (`losses` is Keras' own name for regularisation losses).

    Raises:
        InputError: teacher and student differ in classes or input, a loss asks for a tap that does not exist, or a
            model is no classifier.
    """

    def __init__(self, *, student, losses, teacher=None, teacher_dtype=None, **kwargs):
        super().__init__(**{"dtype": student.dtype_policy, "autocast": False, **kwargs})
        terms = list(losses)
        if not terms:
            raise InputError("a Distiller needs at least one loss, such as losses.CE()")
        for term in terms:
            if isinstance(term, type) or not hasattr(term, "taps"):
                raise InputError(f"{term!r} is no loss term: give those of kd_keras.losses, such as losses.KD()")
        whole = None if teacher is None else Taps(teacher, "teacher").logits_model()
        for term in terms:
            student = term.adapted(student, whole)
        self.student = student
        self.terms = terms
        self._pretraining = False
        self.teacher_dtype = teacher_dtype
        self.epoch = self._counter("epoch")
        self.step = self._counter("step")
        for term in terms:
            term.clock = lambda: (ops.cast(self.epoch, "float32"), ops.cast(self.step, "float32"))
        self.term_names = _unique([term.name for term in terms])
        self._term_trackers = [keras.metrics.Mean(name=name) for name in self.term_names]
        self._student_taps = _Untracked(Taps(student, "student"))
        self._teacher_taps = _Untracked()
        self._reads = _Untracked(self._match(None))
        if teacher is not None:
            self.attach_teacher(teacher)
        elif not self.needs_teacher:
            self._build_terms(None)
        self.built = True

    def _counter(self, name):
        return self.add_weight(
            name=name, shape=(), dtype="int64", initializer="zeros", trainable=False, aggregation="only_first_replica"
        )

    def _match(self, teacher):
        """Which taps the terms read: (student's names, teacher's names)."""
        student = self._student_taps.value
        reads = [term.taps(student.names, None if teacher is None else teacher.names) for term in self.terms]
        student_names = _unique_sum(["logits"], *(names for names, _ in reads))
        teacher_names = _unique_sum(*(names for _, names in reads))
        student.require(student_names)
        if teacher is not None:
            teacher.require(teacher_names)
        return student_names, teacher_names

    @property
    def needs_teacher(self) -> bool:
        """Whether some loss reads the teacher."""
        return bool(self._reads.value[1]) or self._awaits_teacher()

    @property
    def needs_index(self) -> bool:
        """Whether some loss reads each sample's number in its split."""
        return any("index" in term.needs for term in self.terms)

    @property
    def teacher_taps(self) -> tuple[str, ...]:
        """Names of the teacher's taps that the losses read: what a teacher cache has to hold."""
        return self._reads.value[1]

    def _awaits_teacher(self) -> bool:
        """Whether some loss can't even name its taps, nor make its adapters, before there is a teacher."""
        return self.teacher is None and any(
            term.taps(self._student_taps.value.names, None) == ((), ()) for term in self.terms
        )

    def require_teacher(self) -> None:
        """Raises InputError where a loss reads the teacher and there is none."""
        if self.needs_teacher and self.teacher is None:
            raise InputError("the losses read a teacher and there is none: call distiller.attach_teacher(model)")

    @property
    def teacher(self):
        """The teacher as it was given, or None."""
        return None if self._teacher_taps.value is None else self._teacher_taps.value.given

    def __dir__(self):
        # Keras saves and loads every model that dir() leads to: the teacher would be in each checkpoint, and loading
        # one would overwrite the user's own object.
        return [name for name in super().__dir__() if name != "teacher"]

    def attach_teacher(self, teacher: keras.Model) -> None:
        """Gives a Distiller (a reloaded one, say) its teacher.

        Raises:
            InputError: classes, input or taps don't fit the student, the losses or the adapters trained so far.
        """
        student = self._student_taps.value
        taps = Taps(teacher, "teacher")
        if taps.num_classes != student.num_classes:
            raise InputError(
                f"the teacher tells {taps.num_classes} classes apart, the student {student.num_classes}: "
                "they have to be the same"
            )
        same_rank = len(taps.input_shape) == len(student.input_shape)
        if not same_rank or any(
            None not in sizes and sizes[0] != sizes[1]
            for sizes in zip(taps.input_shape, student.input_shape, strict=True)
        ):
            raise InputError(
                f"the teacher takes images of {taps.input_shape}, the student of {student.input_shape}: "
                "they see the same batch, so put any resizing inside a model"
            )
        reads = self._match(taps)
        if self.teacher_dtype is not None:
            taps = Taps(frozen.frozen(teacher, self.teacher_dtype, keep=reads[1]), "teacher")
        taps.given = teacher
        self._build_terms(taps)
        self._reads.value, self._teacher_taps.value = reads, taps
        self.train_function = None

    def _build_terms(self, teacher):
        student = self._student_taps.value
        for term in self.terms:
            names, teacher_names = term.taps(student.names, None if teacher is None else teacher.names)
            shapes = student.shapes(names), {} if teacher is None else teacher.shapes(teacher_names)
            if not term.built:
                term.build(student_shape=shapes[0], teacher_shape=shapes[1])
            elif (before := term.get_build_config()) is not None:
                for was, now in zip(before.values(), shapes, strict=True):
                    if any(tuple(was[name])[1:] != tuple(now[name])[1:] for name in was):
                        raise InputError(
                            f"{term.name}'s adapters were made for {was}, but these models have {now}: "
                            "attach the teacher that they were trained with"
                        )

    def compile(self, optimizer="rmsprop", loss=None, metrics=None, **kwargs):
        """As `keras.Model.compile`, without a loss: the terms are given to the constructor.

        ``"accuracy"`` is taken for labels in either form (classes, or class weights after mixup).

        Raises:
            InputError: a loss is given.
        """
        if loss is not None:
            raise InputError("Distiller.compile takes no loss: give the terms to Distiller(losses=[…])")
        if isinstance(metrics, (list, tuple)):
            metrics = [Accuracy(name=m) if m in ("accuracy", "acc") else m for m in metrics]
        super().compile(optimizer=optimizer, metrics=metrics, **kwargs)

    def compile_from_config(self, config):
        # Keras leaves models with a compile of their own to compile themselves after loading.
        self.compile(**keras.saving.deserialize_keras_object(config))
        self.optimizer.build(self.trainable_variables)

    def call(self, inputs, training=None):
        """The student's float32 logits (B, K) for images, or for a batch dict."""
        image = unpack_batch(inputs).image
        return self._student_taps.value(image, ("logits",), training=bool(training))["logits"]

    def fit(self, x=None, y=None, *, callbacks=None, validation_data=None, **kwargs):
        """As `keras.Model.fit`; batches may also be dicts with the fields of `Batch`.

        Raises:
            InputError: a loss reads the teacher, and there is none.
        """
        brought = _brought_taps(x)
        if self._awaits_teacher() or brought is None:
            self.require_teacher()
        elif missing := [name for name in self._reads.value[1] if name not in brought]:
            raise InputError(
                f"the batches bring the teacher's {', '.join(brought)}, and the losses read {', '.join(missing)} too: "
                "make the teacher cache with these taps"
            )
        if self.needs_index and not _may_bring(x, "index"):
            raise InputError("a loss reads each sample's index: give batches {image, label, index}, with_index=True")
        if not self._pretraining:
            self._check_terms(x, kwargs)
        clock = _EpochClock()
        if isinstance(callbacks, keras.callbacks.CallbackList):
            clock.set_model(self)
            callbacks.callbacks.append(clock)
        else:
            callbacks = [clock, *(callbacks if isinstance(callbacks, (list, tuple)) else [callbacks] * bool(callbacks))]
        strategy = self.distribute_strategy
        if isinstance(x, tf.data.Dataset) and kwargs.get("class_weight") and strategy.num_replicas_in_sync > 1:
            # Keras can't weigh a data set any more once it is shared out over replicas.
            x = self._weigh(_through_keras(x), kwargs.pop("class_weight"))
        with distribute.watch(strategy):
            x, validation_data = (_shared_out(_through_keras(d), strategy) for d in (x, validation_data))
            return super().fit(x, y, callbacks=callbacks, validation_data=validation_data, **kwargs)

    def _check_terms(self, x, options):
        """Refuses what the terms would not count, or what would mean nothing."""
        for term in self.terms:
            if not term.pretrained():
                raise InputError(
                    f"{term.name} has a part that is trained ahead, and was not: call distiller.pretrain before fit"
                )
        weighted = options.get("class_weight") or options.get("sample_weight") is not None or _brings_weights(x)
        if weighted and (blind := [term.name for term in self.terms if term.compares_samples and not term.needs]):
            raise InputError(
                f"{', '.join(blind)} compares samples that all count alike: leave out sample_weight and class_weight"
            )

    def pretrain(self, x, *, epochs=1, **kwargs):
        """Trains what the losses have to train ahead: FT's paraphraser; the student by AB or FSP alone.

        With an optimizer of its own, like the one that was compiled; schedules of `fit` do not see it. Of a loss that
        its paper uses ahead only, set the weight to 0: this does not read it.

        Args:
            x: as for `fit`.
            epochs: as for `fit`.
            **kwargs: as for `fit`.

        Returns:
            Keras' History.

        Raises:
            InputError: no loss has a training of its own ahead; see also `fit`.
        """
        self.require_teacher()
        if not self.pretrains:
            raise InputError("no loss has a training of its own ahead of the student's: ft, ab and fsp do")
        optimizer, before = self.optimizer, (self.epoch.numpy(), self.step.numpy())
        self._pretraining, self.train_function = True, None
        for term in self.terms:
            term.pretraining(True)
        try:
            with self.distribute_strategy.scope():
                self.optimizer = type(optimizer).from_config(optimizer.get_config())
                self.optimizer.build(self.trainable_variables)
            return self.fit(x, epochs=epochs, **kwargs)
        finally:
            self._pretraining, self.train_function, self.optimizer = False, None, optimizer
            for term in self.terms:
                term.pretraining(False)
            for counter, value in zip((self.epoch, self.step), before, strict=True):
                counter.assign(value)

    @property
    def pretrains(self) -> bool:
        """Whether some loss has a training of its own ahead of the student's."""
        return any(term.pretrain_taps() is not None for term in self.terms)

    def evaluate(self, x=None, y=None, **kwargs):
        """As `keras.Model.evaluate`, of the student alone; ``loss`` is the hard-label cross-entropy."""
        strategy = self.distribute_strategy
        with distribute.watch(strategy):
            return super().evaluate(_shared_out(_through_keras(x), strategy), y, **kwargs)

    def _weigh(self, dataset, class_weight):
        if len(dataset.element_spec) > 2:
            raise InputError("class_weight and sample_weight were both given: give one of them")
        table = [class_weight.get(number, 1.0) for number in range(self._student_taps.value.num_classes)]
        return dataset.map(lambda x, y: (x, y, tf.gather(tf.constant(table, tf.float32), labels.classes(y))))

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        # Keras draws a batch to learn its shapes and reduces it over the replicas, which fails across machines (Keras
        # issue 20585) and where a first batch is shared out unevenly. The data set's own description does as well.
        if iterator is not None and self._distribute_strategy is not None:
            spec = iterator._distributed_dataset.element_spec
            data_batch = tf.nest.map_structure(lambda s: getattr(s, "_value_specs", (s,))[0], spec)
        super()._maybe_symbolic_build(None if data_batch is not None else iterator, data_batch)

    def _pretrain_step(self, data):
        batch = unpack_batch(data)
        ahead = [
            (term, tracker, *reads)
            for term, tracker in zip(self.terms, self._term_trackers, strict=True)
            if (reads := term.pretrain_taps()) is not None
        ]
        student_names, teacher_names = (_unique_sum(*(item[at] for item in ahead)) for at in (2, 3))
        _, local, total = self._batch_sizes(batch.image)
        filled, real = self._filled(batch)
        with tf.GradientTape() as tape:
            # A student that nobody asks for must not run: its batch norm would move.
            taps = self._student_taps.value
            student = taps(filled.image, student_names, training=True) if student_names else {}
            with tape.stop_recording():
                teacher = self._taught(filled, teacher_names)
            # A call casts what it is given by itself; this is none.
            student, teacher = ({name: ops.cast(t, "float32") for name, t in one.items()} for one in (student, teacher))
            loss = 0.0
            for term, tracker, *_ in ahead:
                value = _weighted(real(term.pretrain(student, teacher, filled.label)), batch.sample_weight)
                loss += tf.reduce_sum(value) / total
                tracker.update_state(tf.math.divide_no_nan(tf.reduce_sum(value), local), sample_weight=local)
            scaled = self.optimizer.scale_loss(loss)
        found = zip(tape.gradient(scaled, self.trainable_variables), self.trainable_variables, strict=True)
        self.optimizer.apply_gradients([(gradient, variable) for gradient, variable in found if gradient is not None])
        self._loss_tracker.update_state(tf.math.divide_no_nan(loss * total, local), sample_weight=local)
        return self._for_keras(
            {metric.name: metric.result() for metric in (self._loss_tracker, *(a[1] for a in ahead))}
        )

    def train_step(self, data):
        if self._pretraining:
            return self._pretrain_step(data)
        batch = unpack_batch(data)
        student_names, teacher_names = self._reads.value
        replicas, local, total = self._batch_sizes(batch.image)
        filled, real = self._filled(batch)
        with tf.GradientTape() as tape:
            student = self._student_taps.value(filled.image, student_names, training=True)
            # Neither pass waits for the other; nothing of the teacher's is kept for the gradient.
            with tape.stop_recording():
                teacher = self._taught(filled, teacher_names)
            loss, reported = 0.0, 0.0
            for term, tracker in zip(self.terms, self._term_trackers, strict=True):
                value = self._value(term, student, teacher, filled, real)
                weight = term.now(term.weight)
                if len(value.shape) == 0:
                    share, mean = value * (local / total), value
                else:
                    value = _weighted(real(value), batch.sample_weight)
                    share, mean = tf.reduce_sum(value) / total, tf.math.divide_no_nan(tf.reduce_sum(value), local)
                tracker.update_state(mean, sample_weight=local)
                loss, reported = loss + weight * share, reported + weight * mean
            for own in self.losses:
                own = ops.cast(own, "float32")
                loss, reported = loss + own / replicas, reported + own
            scaled = self.optimizer.scale_loss(loss)
        variables = self.trainable_variables
        # The optimizer sums over the replicas, so each brings its share of the mean over the global batch.
        self.optimizer.apply_gradients(zip(tape.gradient(scaled, variables), variables, strict=True))
        self._loss_tracker.update_state(reported, sample_weight=local)
        logits = real(student["logits"])
        logs = self.compute_metrics(batch.image, batch.label, logits, sample_weight=batch.sample_weight)
        for name, term in zip(self.term_names, self.terms, strict=True):
            for key, schedule in term.schedules.items():
                logs[f"{name}_{key}"] = ops.cast(term.now(schedule), "float32")
        self.step.assign_add(1)
        return self._for_keras(logs)

    def _value(self, term, student, teacher, batch, real):
        """A term's unweighted value, a sample or of the batch."""
        given = {"index": batch.index} if "index" in term.needs else {}
        labels_ = batch.label
        if term.compares_samples:
            # A blank sample is one too many to compare with.
            student, teacher, labels_, given = tf.nest.map_structure(real, (student, teacher, labels_, given))
        return term(student, teacher, labels_, training=True, **given)

    def _taught(self, batch, names):
        """The teacher's taps: those that the batch brings, or else its own forward pass."""
        if not names:
            return {}
        teacher = batch.teacher or self._teacher_taps.value(batch.image, names, training=False)
        return {name: teacher[name] for name in names}

    def _batch_sizes(self, image):
        """(replicas, samples on this replica, samples on all), the last two as float32 scalars."""
        local = tf.cast(tf.shape(tf.nest.flatten(image)[0])[0], tf.float32)
        if self.distribute_strategy.num_replicas_in_sync == 1:
            return 1, local, local
        # Summed rather than multiplied: the last batch of an epoch may be shared out unevenly.
        context = tf.distribute.get_replica_context()
        return context.num_replicas_in_sync, local, context.all_reduce(tf.distribute.ReduceOp.SUM, local)

    def _filled(self, batch):
        """(the batch, with a blank sample where this replica has none; what keeps the real samples of a tensor).

        The last batch of an epoch may have fewer samples than there are replicas, and the kernels of a CPU fail on an
        empty batch. What the blank sample gives is cut off before anything is summed.
        """
        if self.distribute_strategy.num_replicas_in_sync == 1:
            return batch, lambda tensor: tensor
        count = tf.shape(batch.image)[0]

        def fill(tensor):
            missing = tf.maximum(1 - count, 0)
            return None if tensor is None else tf.pad(tensor, [[0, missing], *[[0, 0]] * (len(tensor.shape) - 1)])

        fields = {name: getattr(batch, name) for name in ("image", "label", "index", "teacher")}
        return dataclasses.replace(batch, **tf.nest.map_structure(fill, fields)), lambda tensor: tensor[:count]

    def _for_keras(self, logs):
        # Keras averages a step's logs over machines along their first axis, which a scalar does not have.
        if distribute.worker(self.distribute_strategy)[1] == 1:
            return logs
        return {name: tf.reshape(value, (1,)) for name, value in logs.items()}

    def test_step(self, data):
        batch = unpack_batch(data)
        filled, real = self._filled(batch)
        logits = real(self(filled.image, training=False))
        value = _weighted(labels.cross_entropy(batch.label, logits), batch.sample_weight)
        _, local, _ = self._batch_sizes(batch.image)
        self._loss_tracker.update_state(tf.math.divide_no_nan(tf.reduce_sum(value), local), sample_weight=local)
        logs = self.compute_metrics(batch.image, batch.label, logits, sample_weight=batch.sample_weight)
        return self._for_keras({name: value for name, value in logs.items() if name not in self.term_names})

    def _get_metrics_result_or_logs(self, logs):
        # What Keras reports of an epoch. Metrics are read across the replicas here: a step's own logs are each
        # replica's, and averaging those is wrong where the last batch was shared out unevenly.
        if self._pretraining:  # those that were compiled have seen nothing
            metrics = {tracker.name: tracker.result() for tracker in (self._loss_tracker, *self._term_trackers)}
        else:
            metrics = self.get_metrics_result()
        return {name: metrics.get(name, value) for name, value in logs.items()}

    def predict_step(self, data):
        filled, real = self._filled(unpack_batch(data))
        return real(self(filled.image, training=False))

    def get_config(self):
        return {
            "student": keras.saving.serialize_keras_object(self.student),
            "losses": [keras.saving.serialize_keras_object(term) for term in self.terms],
            "teacher_dtype": self.teacher_dtype,
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        config = dict(config)
        config["student"] = keras.saving.deserialize_keras_object(config["student"], custom_objects=custom_objects)
        config["losses"] = [
            keras.saving.deserialize_keras_object(term, custom_objects=custom_objects) for term in config["losses"]
        ]
        return cls(**config)


def _weighted(value, sample_weight):
    return value if sample_weight is None else value * ops.cast(ops.reshape(sample_weight, (-1,)), "float32")


def _brought_taps(data) -> list[str] | None:
    """The teacher's taps that the batches of a data set bring, or None where they bring none."""
    spec = getattr(data, "element_spec", None)
    return list(spec["teacher"]) if _is_batch_dict(spec) and "teacher" in spec else None


def _may_bring(data, field) -> bool:
    """Whether batches have a field of `Batch`; of what does not tell, such as a generator, they may."""
    if isinstance(data, tf.data.Dataset):
        data = data.element_spec
        data = data[0] if isinstance(data, tuple) else data
    elif not isinstance(data, Mapping) and not hasattr(data, "shape"):
        return True
    return _is_batch_dict(data) and field in data


def _brings_weights(data) -> bool:
    spec = getattr(data, "element_spec", ())
    return "sample_weight" in spec if _is_batch_dict(spec) else isinstance(spec, tuple) and len(spec) > 2


def _unique(names: list[str]) -> list[str]:
    """``['kd', 'kd']`` as ``['kd', 'kd_2']``."""
    return [name if (n := names[:i].count(name)) == 0 else f"{name}_{n + 1}" for i, name in enumerate(names)]


def _unique_sum(*parts) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for part in parts for name in part))
