"""A Distiller's steps under TensorFlow, on one device or on several replicas; the one file here that imports it.

A `Step` for another backend is another such file, which distiller.py imports under that backend.
"""

import dataclasses

import tensorflow as tf
from keras import ops

from kd_keras._compat import distribute
from kd_keras._compat import keras as compat
from kd_keras.distillation.batch import split_dicts, unpack_batch
from kd_keras.errors import InputError
from kd_keras.losses import labels


class Step(compat.Trainer):
    """What `fit`, `evaluate` and `predict` do with a batch. The attributes that it reads are the `Distiller`'s."""

    def fit(self, x=None, y=None, *, validation_data=None, class_weight=None, **kwargs):
        strategy, x = self.distribute_strategy, split_dicts(x)
        if class_weight and isinstance(x, tf.data.Dataset) and strategy.num_replicas_in_sync > 1:
            # Keras can't weigh a data set that is already divided among replicas.
            x, class_weight = self._with_weights(x, class_weight), None
        with distribute.watch(strategy):
            x, validation_data = self._divided(x), self._divided(validation_data)
            return super().fit(x, y, validation_data=validation_data, class_weight=class_weight, **kwargs)

    def evaluate(self, x=None, y=None, **kwargs):
        """As `keras.Model.evaluate`, of the student alone; ``loss`` is the cross-entropy with the labels."""
        with distribute.watch(self.distribute_strategy):
            return super().evaluate(self._divided(x), y, **kwargs)

    def variable_scope(self):
        """The context in which new variables are placed like the model's own."""
        return self.distribute_strategy.scope()

    def train_step(self, data):
        if self.is_pretraining:
            return self._pretrain_step(data)
        batch = unpack_batch(data)
        student_names, teacher_names = self._tap_names.value
        replicas, local, total = self._batch_sizes(batch.image)
        filled, real = self._without_empty(batch)
        with tf.GradientTape() as tape:
            student = self._student_taps.value(filled.image, student_names, training=True)
            # Neither forward pass waits for the other, and nothing of the teacher's is kept for the gradient.
            with tape.stop_recording():
                teacher = self._read_teacher(filled, teacher_names)
            loss, reported = 0.0, 0.0
            for term, tracker in zip(self.terms, self._term_trackers, strict=True):
                value = self._term_value(term, student, teacher, filled, real)
                weight = term.now(term.weight)
                if len(value.shape) == 0:
                    share, mean = value * (local / total), value
                else:
                    value = _weighted(real(value), batch.sample_weight)
                    share, mean = tf.reduce_sum(value) / total, tf.math.divide_no_nan(tf.reduce_sum(value), local)
                tracker.update_state(mean, sample_weight=local)
                loss, reported = loss + weight * share, reported + weight * mean
            for regularization in self.losses:
                regularization = ops.cast(regularization, "float32")
                loss, reported = loss + regularization / replicas, reported + regularization
            scaled = self.optimizer.scale_loss(loss)
        variables = self.trainable_variables
        # The optimizer sums gradients over the replicas, so each loss is a share of the mean over the global batch.
        self.optimizer.apply_gradients(zip(tape.gradient(scaled, variables), variables, strict=True))
        compat.loss_tracker(self).update_state(reported, sample_weight=local)
        logits = real(student["logits"])
        logs = self.compute_metrics(batch.image, batch.label, logits, sample_weight=batch.sample_weight)
        for name, term in zip(self.term_names, self.terms, strict=True):
            for key, schedule in term.schedules.items():
                logs[f"{name}_{key}"] = ops.cast(term.now(schedule), "float32")
        self.step.assign_add(1)
        return self._for_keras(logs)

    def _pretrain_step(self, data):
        batch = unpack_batch(data)
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
            student = taps(filled.image, student_names, training=True) if student_names else {}
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
        batch = unpack_batch(data)
        filled, real = self._without_empty(batch)
        logits = real(self(filled.image, training=False))
        value = _weighted(labels.cross_entropy(batch.label, logits), batch.sample_weight)
        _, local, _ = self._batch_sizes(batch.image)
        mean = tf.math.divide_no_nan(tf.reduce_sum(value), local)
        compat.loss_tracker(self).update_state(mean, sample_weight=local)
        logs = self.compute_metrics(batch.image, batch.label, logits, sample_weight=batch.sample_weight)
        return self._for_keras({name: value for name, value in logs.items() if name not in self.term_names})

    def predict_step(self, data):
        filled, real = self._without_empty(unpack_batch(data))
        return real(self(filled.image, training=False))

    def epoch_logs(self, logs):
        # Metrics are read across the replicas here. A step's own logs are those of one replica, and their average is
        # wrong where the last batch was divided unevenly.
        if self.is_pretraining:  # the compiled metrics have not been updated
            metrics = {tracker.name: tracker.result() for tracker in (compat.loss_tracker(self), *self._term_trackers)}
        else:
            metrics = self.get_metrics_result()
        return {name: metrics.get(name, value) for name, value in logs.items()}

    def _term_value(self, term, student, teacher, batch, real):
        """The unweighted value of a term, one per sample or a scalar for the batch."""
        extra = {"index": batch.index} if "index" in term.needs else {}
        targets = batch.label
        if term.compares_samples:
            # A blank sample must not be compared with.
            student, teacher, targets, extra = tf.nest.map_structure(real, (student, teacher, targets, extra))
        return term(student, teacher, targets, training=True, **extra)

    def _read_teacher(self, batch, names):
        """The teacher's taps: those in the batch, or else its forward pass."""
        if not names:
            return {}
        teacher = batch.teacher or self._teacher_taps.value(batch.image, names, training=False)
        return {name: teacher[name] for name in names}

    def _batch_sizes(self, image):
        """(replicas, samples on this replica, samples on all), the last two as float32 scalars."""
        local = tf.cast(tf.shape(tf.nest.flatten(image)[0])[0], tf.float32)
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


def _weighted(value, sample_weight):
    return value if sample_weight is None else value * ops.cast(ops.reshape(sample_weight, (-1,)), "float32")
