"""A Distiller's steps under TensorFlow, on one device or on several replicas; the one file here that imports it.

A `Step` for another backend is another such file, which distiller.py imports under that backend.
"""

import dataclasses
import functools
import itertools

import tensorflow as tf
from keras import ops

from kd_keras._compat import distribute
from kd_keras._compat import keras as compat
from kd_keras.distillation import checks
from kd_keras.distillation.batch import split_dicts
from kd_keras.distillation.tensorflow_labels import LabelChecks
from kd_keras.errors import InputError
from kd_keras.losses import labels


class Step(LabelChecks, compat.Trainer):
    """What `fit`, `evaluate` and `predict` do with a batch. The attributes that it reads are the `Distiller`'s."""

    def fit(self, x=None, y=None, *, validation_data=None, class_weight=None, **kwargs):
        strategy, x = self.distribute_strategy, split_dicts(x)
        if class_weight and isinstance(x, tf.data.Dataset) and strategy.num_replicas_in_sync > 1:
            # Keras can't weigh a data set that is already divided among replicas.
            x, class_weight = self._with_weights(x, class_weight), None
        x = self._with_checked_labels(x, self.reads_labels(training=True), self.labels_may_be_missing(training=True))
        with distribute.watch(strategy), self._faults_told():
            x, validation_data = self._divided(x), self._divided(validation_data)
            return super().fit(x, y, validation_data=validation_data, class_weight=class_weight, **kwargs)

    def evaluate(self, x=None, y=None, **kwargs):
        x = self._with_checked_labels(split_dicts(x), True, self.labels_may_be_missing(training=False))
        with distribute.watch(self.distribute_strategy), self._faults_told():
            return super().evaluate(self._divided(x), y, **kwargs)

    def train_on_batch(self, *args, **kwargs):
        with self._faults_told():
            return super().train_on_batch(*args, **kwargs)

    def test_on_batch(self, *args, **kwargs):
        with self._faults_told():
            return super().test_on_batch(*args, **kwargs)

    def _prepared(self, data, training):
        """A batch whose labels are checked and whole.

        Returns:
            The batch; the labels as they are; which samples have a label, (B,) booleans, or None where all have.
        """
        batch = self.unpack(data)
        checks.sample_weight(batch.sample_weight)
        if training and batch.sample_weight is not None:
            checks.can_be_weighted(self.terms)
        if batch.label is None:
            return batch, None, None
        if not self.reads_labels(training):
            return batch, batch.label, None
        if not self.jit_compile:
            label = self._checked_labels(batch.label, self.labels_may_be_missing(training))
            batch = dataclasses.replace(batch, label=label)
        label, has_label = labels.without_missing(batch.label, self.is_multilabel)
        return dataclasses.replace(batch, label=label), batch.label, has_label

    def _labelled(self, batch, has_label, local, total):
        """Samples that count where labels are read: (on this replica, on all).

        A sample of weight 0 counts nothing and stays in the divisor, as in Keras; one without a label does not.
        """
        if has_label is None:
            return local, total
        if batch.sample_weight is not None:
            has_label = tf.logical_or(has_label, tf.equal(tf.reshape(batch.sample_weight, (-1,)), 0))
        count = tf.reduce_sum(tf.cast(has_label, tf.float32))
        if self.distribute_strategy.num_replicas_in_sync == 1:
            return count, count
        return count, tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, count)

    def make_train_function(self, force=False):
        if self.train_function is None or force:
            super().make_train_function(force)
            self.train_function = self._after_a_look(self.train_function, "train")

    def make_test_function(self, force=False):
        if self.test_function is None or force:
            super().make_test_function(force)
            self.test_function = self._after_a_look(self.test_function, "test")

    def make_predict_function(self, force=False):
        if self.predict_function is None or force:
            super().make_predict_function(force)
            predict = self.predict_function

            def run(batches):
                self._look_at_whole(batches[0], "predict")
                return predict(batches)

            self.predict_function = run
        return self.predict_function

    def _after_a_look(self, function, mode):
        """Keras' function of an iterator, that looks at the first batch and puts it back."""

        def run(iterator):
            if mode in self._looked.value:
                return function(iterator)
            try:
                first = next(iterator)
            except StopIteration:
                raise InputError("there is nothing to train on or to evaluate: the data have no batch") from None
            self._look_at_whole(first, mode)
            if not isinstance(iterator, tf.data.Iterator):
                return function(itertools.chain([first], iterator))
            batches = [first, *itertools.islice(iterator, self.steps_per_execution - 1)]
            return function(_iterator_of(batches, iterator.element_spec))

        return run

    def _look_at_whole(self, batch, mode):
        if mode not in self._looked.value:
            joined = functools.partial(distribute.joined, self.distribute_strategy)
            self.look_at(tf.nest.map_structure(joined, batch), mode)

    def variable_scope(self):
        """The context in which new variables are placed like the model's own."""
        return self.distribute_strategy.scope()

    def train_step(self, data):
        # Data of unknown length end in the middle of a step, whose counters don't read them: they wait for the batch.
        present = [part for part in tf.nest.flatten(data) if tf.is_tensor(part)]
        with tf.control_dependencies([] if tf.executing_eagerly() else present):
            return self._pretrain_step(data) if self.is_pretraining else self._train_step(data)

    def _train_step(self, data):
        batch, given_label, has_label = self._prepared(data, training=True)
        student_names, teacher_names = self._tap_names.value
        replicas, local, total = self._batch_sizes(batch.image)
        labelled = self._labelled(batch, has_label, local, total)
        filled, real = self._without_empty(batch)
        with tf.GradientTape() as tape:
            taps = self._student_taps.value
            student = taps(taps.inputs_of(filled), student_names, training=True)
            # Neither forward pass waits for the other, and nothing of the teacher's is kept for the gradient.
            with tape.stop_recording():
                teacher = self._read_teacher(filled, teacher_names)
            loss, reported = 0.0, 0.0
            for term, tracker, manner in zip(self.terms, self._term_trackers, self.manners, strict=True):
                value = self._term_value(term, student, teacher, filled, real)
                weight, (here, everywhere) = term.now(term.weight), (local, total)
                if len(value.shape) == 0:
                    if batch.sample_weight is not None and not term.compares_samples:
                        raise InputError(
                            f"{term.name} returns one value for the whole batch, which sample_weight and class_weight "
                            "can't weight: let it return one for each sample, (B,)"
                        )
                    share, mean = value * (local / total), value
                else:
                    value = _weighted(real(value), batch.sample_weight)
                    if has_label is not None and manner.reads_labels:
                        value, (here, everywhere) = tf.where(has_label, value, 0.0), labelled
                    share = tf.math.divide_no_nan(tf.reduce_sum(value), everywhere)
                    mean = tf.math.divide_no_nan(tf.reduce_sum(value), here)
                tracker.update_state(mean, sample_weight=here)
                loss, reported = loss + weight * share, reported + weight * mean
            for regularization in self.losses:
                regularization = ops.cast(regularization, "float32")
                loss, reported = loss + regularization / replicas, reported + regularization
            scaled = self.optimizer.scale_loss(loss)
        variables = self.trainable_variables
        # The optimizer sums gradients over the replicas, so each loss is a share of the mean over the global batch.
        self.optimizer.apply_gradients(zip(tape.gradient(scaled, variables), variables, strict=True))
        compat.loss_tracker(self).update_state(reported, sample_weight=local)
        logs = self._metrics_of(batch, given_label, real(student["logits"]))
        for name, term in zip(self.term_names, self.terms, strict=True):
            for key, schedule in term.schedules.items():
                logs[f"{name}_{key}"] = ops.cast(term.now(schedule), "float32")
        self.step.assign_add(1)
        return self._for_keras(logs)

    def _pretrain_step(self, data):
        batch = self.unpack(data)
        pretrained = [
            (term, tracker, *names)
            for term, tracker in zip(self.terms, self._term_trackers, strict=True)
            if (names := term.pretrain_taps()) is not None
        ]
        student_names, teacher_names = (list(dict.fromkeys(n for p in pretrained for n in p[at])) for at in (2, 3))
        _, local, total = self._batch_sizes(batch.image)
        filled, real = self._without_empty(batch)
        with tf.GradientTape() as tape:
            # A student whose taps no loss reads must not run: its batch norm would move.
            taps = self._student_taps.value
            student = taps(taps.inputs_of(filled), student_names, training=True) if student_names else {}
            with tape.stop_recording():
                teacher = self._read_teacher(filled, teacher_names)
            # Keras casts the inputs of a layer's call to the layer's dtype, but not those of `pretrain`.
            student, teacher = (
                {name: ops.cast(tensor, "float32") for name, tensor in read.items()} for read in (student, teacher)
            )
            loss = 0.0
            for term, tracker, *_ in pretrained:
                value = _weighted(real(term.pretrain(student, teacher, filled.label)), batch.sample_weight)
                loss += tf.reduce_sum(value) / total
                tracker.update_state(tf.math.divide_no_nan(tf.reduce_sum(value), local), sample_weight=local)
            scaled = self.optimizer.scale_loss(loss)
        gradients = zip(tape.gradient(scaled, self.trainable_variables), self.trainable_variables, strict=True)
        self.optimizer.apply_gradients([(grad, variable) for grad, variable in gradients if grad is not None])
        tracker = compat.loss_tracker(self)
        tracker.update_state(tf.math.divide_no_nan(loss * total, local), sample_weight=local)
        return self._for_keras({metric.name: metric.result() for metric in (tracker, *(p[1] for p in pretrained))})

    def test_step(self, data):
        batch, given_label, has_label = self._prepared(data, training=False)
        if batch.label is None:
            raise InputError("evaluation needs labels, and there are none: its loss is the cross-entropy with them")
        filled, real = self._without_empty(batch)
        logits = real(self(self._student_taps.value.inputs_of(filled), training=False))
        cross_entropy = labels.binary_cross_entropy if self.is_multilabel else labels.cross_entropy
        value = _weighted(cross_entropy(batch.label, logits), batch.sample_weight)
        _, local, total = self._batch_sizes(batch.image)
        local, _ = self._labelled(batch, has_label, local, total)
        if has_label is not None:
            value = tf.where(has_label, value, 0.0)
        mean = tf.math.divide_no_nan(tf.reduce_sum(value), local)
        compat.loss_tracker(self).update_state(mean, sample_weight=local)
        logs = self._metrics_of(batch, given_label, logits)
        return self._for_keras({name: value for name, value in logs.items() if name not in self.term_names})

    def _metrics_of(self, batch, label, logits):
        """Updates the compiled metrics, which are given what the student itself gives; without labels, none."""
        if label is None:
            return {metric.name: metric.result() for metric in compat.metrics_of_its_own(self)}
        taps = self._student_taps.value
        output = taps.head.to_output(logits, taps.units)
        return self.compute_metrics(batch.image, label, output, sample_weight=batch.sample_weight)

    def predict_step(self, data):
        filled, real = self._without_empty(self.unpack(data))
        return real(self(self._student_taps.value.inputs_of(filled), training=False))

    def epoch_logs(self, logs):
        # Metrics are read across the replicas here. A step's own logs are those of one replica, and their average is
        # wrong where the last batch was divided unevenly.
        if compat.compiled_metrics_are_empty(self):
            metrics = {metric.name: metric.result() for metric in compat.metrics_of_its_own(self)}
        elif self.is_pretraining:  # the compiled metrics have not been updated
            metrics = {tracker.name: tracker.result() for tracker in (compat.loss_tracker(self), *self._term_trackers)}
        else:
            metrics = self.get_metrics_result()
        return {name: metrics.get(name, value) for name, value in logs.items()}

    def _term_value(self, term, student, teacher, batch, real):
        """The unweighted value of a term, one per sample or a scalar for the batch."""
        extra = {name: getattr(batch, name) for name in ("index", "sample_weight") if name in term.needs}
        targets = batch.label
        if term.compares_samples:
            # A blank sample must not be compared with.
            student, teacher, targets, extra = tf.nest.map_structure(real, (student, teacher, targets, extra))
        value = ops.cast(term(student, teacher, targets, training=True, **extra), "float32")
        return value if len(value.shape) == 0 else ops.reshape(value, (-1,))

    def _read_teacher(self, batch, names):
        """The teacher's taps: those in the batch, or else its forward pass."""
        if not names:
            return {}
        if not batch.teacher:
            return self._teacher_taps.value(self.images_of_teacher(batch), names, training=False)
        if missing := [name for name in names if name not in batch.teacher]:
            raise InputError(
                f"the batches contain the teacher's {', '.join(batch.teacher)}, and not {', '.join(missing)}"
            )
        teacher = {name: batch.teacher[name] for name in names}
        if "logits" in teacher:
            logits = checks.teacher_logits(teacher["logits"], self._student_taps.value.num_classes)
            # A row for each image: one row alone would be spread over all of them.
            logits = ops.reshape(logits, (_count(batch.image), logits.shape[-1]))
            head = self._given_head.value
            teacher["logits"] = ops.cast(logits, "float32") if head is None else head.to_logits(logits)
        return teacher

    def _batch_sizes(self, image):
        """(replicas, samples on this replica, samples on all), the last two as float32 scalars."""
        local = tf.cast(_count(image), tf.float32)
        if self.distribute_strategy.num_replicas_in_sync == 1:
            return 1, local, local
        # A sum, not a product: the last batch of an epoch may be divided unevenly.
        context = tf.distribute.get_replica_context()
        return context.num_replicas_in_sync, local, context.all_reduce(tf.distribute.ReduceOp.SUM, local)

    def _without_empty(self, batch):
        """(the batch, with one blank sample where this replica has none; a function that cuts the blank one off).

        The last batch of an epoch may have fewer samples than there are replicas, and kernels on a CPU fail for an
        empty batch. What a blank sample yields is cut off before anything is summed.
        """
        if self.distribute_strategy.num_replicas_in_sync == 1:
            return batch, lambda tensor: tensor
        count = _count(batch.image)

        def fill(tensor):
            missing = tf.maximum(1 - count, 0)
            return None if tensor is None else tf.pad(tensor, [[0, missing], *[[0, 0]] * (len(tensor.shape) - 1)])

        names = ("image", "label", "index", "teacher", "teacher_image", "inputs")
        fields = {name: getattr(batch, name) for name in names}

        def real(tensor):
            return None if tensor is None else tensor[:count]

        return dataclasses.replace(batch, **tf.nest.map_structure(fill, fields)), real

    def _for_keras(self, logs):
        # Keras averages a step's logs over machines along their first axis, which a scalar does not have.
        if distribute.worker(self.distribute_strategy)[1] == 1:
            return logs
        return {name: tf.reshape(value, (1,)) for name, value in logs.items()}

    def _divided(self, data):
        """A data set divided among the replicas; anything else as it is."""
        data = split_dicts(data)
        return distribute.feed(self.distribute_strategy, data) if isinstance(data, tf.data.Dataset) else data

    def _with_weights(self, dataset, class_weight):
        """A data set of ``(image, label)`` with the weight of each sample's class."""
        if len(dataset.element_spec) > 2:
            raise InputError("class_weight and sample_weight were both given: give one of them")
        table = [class_weight.get(number, 1.0) for number in range(self._student_taps.value.num_classes)]
        return dataset.map(lambda x, y: (x, y, tf.gather(tf.constant(table, tf.float32), labels.classes(y))))


def _iterator_of(batches, spec):
    """An iterator of batches, of the type that has this spec: of another one Keras' function would be traced again."""

    def of_spec(*parts):
        return tf.nest.map_structure(
            lambda part, its: tf.compat.v1.placeholder_with_default(part, its.shape),
            parts[0] if len(parts) == 1 and not isinstance(spec, tuple) else parts,
            spec,
        )

    datasets = [tf.data.Dataset.from_tensors(batch).map(of_spec) for batch in batches]
    return iter(functools.reduce(tf.data.Dataset.concatenate, datasets))


def _count(image):
    """How many images there are, a symbolic scalar."""
    return tf.shape(tf.nest.flatten(image)[0])[0]


def _weighted(value, sample_weight):
    """Values times their weights; a weight of 0 counts nothing, whatever the value."""
    if sample_weight is None:
        return value
    weight = ops.cast(ops.reshape(sample_weight, (-1,)), "float32")
    return tf.where(weight == 0, 0.0, value * weight)
