"""`Taps` reads the named intermediate outputs (taps) of a model in one forward pass."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
from absl import logging
from keras import ops

from kd_keras._compat import keras as graph
from kd_keras._compat import ops as backend_ops
from kd_keras.distillation import heads, tap_views
from kd_keras.distillation.batch import Batch
from kd_keras.distillation.tap_graph import Place, Reader, places, position
from kd_keras.errors import InputError
from kd_keras.losses.features import require_tap

# (B, C, H, W) as (B, H, W, C).
_TO_LAST = (0, 2, 3, 1)


class Taps:
    """Reads named intermediate outputs of a model in one forward pass.

    In a functional or Sequential model the name of every layer is a tap, and ``logits`` is the output; layers inside a
    model that it contains are ``backbone/stage3``, the calls of a layer that is called several times ``conv#1``,
    ``conv#2``; see `tap_graph.places`. Maps are (B, H, W, C), also those of layers with ``data_format`` channels_first.

    Parts of taps have names too: ``stage3[pooled]``, ``blocks[class]``, ``blocks[patches]``; see `tap_views.views`.

    A subclassed model offers what its own method ``taps(x, training)`` returns, a dict of tensors that contains
    ``logits`` (B, K), with maps as (B, H, W, C); without that method it has only its logits. Where the output is
    probabilities, ``logits`` are the logits behind them; see `heads`.

    Args:
        model: a built `keras.Model` with one output of shape (B, K).
        role: what messages call the model.
        output: what the output is, one of `heads.KINDS`; by default it is found out from the first images.
        floor: see `heads.Head.to_logits`.
        is_multilabel: see `heads.find`.
        features: whether a model without a classifier's head will do, whose output (B, …, D) is the tap ``output``.
        several: whether a model of several inputs will do, a dict or a list of tensors.

    Attributes:
        model: the model, as given.
        role: as given.
        names: the available taps.
        input_shape: (H, W, C); of a model of several inputs a dict or list of shapes.
        input_names: the names of the inputs, where a dict of several is taken; else none.
        num_classes: K, the number of classes or labels; 2 for a head of one unit; None without a head.
        units: the width of the output.
        head: what the output is; None before it is known.

    Raises:
        InputError: the model is not built, or has several outputs, or several inputs.
    """

    def __init__(
        self,
        model: keras.Model,
        role: str = "model",
        output: str | None = None,
        floor: bool = True,
        is_multilabel: bool = False,
        features: bool = False,
        several: bool = False,
    ):
        if not isinstance(model, keras.Model):
            raise InputError(f"the {role} is {model!r:.60}: give a keras.Model")
        if output is not None and output not in heads.KINDS:
            raise InputError(f"{role}_output={output!r}: known are {', '.join(heads.KINDS)}")
        self.model, self.role, self.output, self._floor = model, role, output, floor
        self.is_multilabel, self.head = is_multilabel, None
        self._saw_images = False
        self._functions: dict[tuple[str, ...], Callable] = {}
        # Functional and Sequential models are graphs of operations; only those can be cut at a layer.
        self._is_graph = graph.is_stock_graph(model)
        if not model.built:
            raise InputError(f"the {role} is not built: call it once on a batch, or give it an Input")
        self._read_inputs(several)
        if self._is_graph:
            self._read_graph()
        else:
            self._read_subclassed()
        output_shape = self._shapes["logits"]
        self.is_headless = features and (len(output_shape) != 2 or output_shape[1] is None)
        if features:
            self._shapes["output"] = output_shape
            if self._is_graph:
                self._places["output"] = self._places["logits"]
        if self.is_headless:
            del self._shapes["logits"]
        self._views = tap_views.views(self._shapes)
        self.names = [*self._shapes, *self._views]
        self._shapes |= {name: view.shape for name, view in self._views.items()}
        self.units = self.num_classes = None
        if not self.is_headless:
            self._read_head()

    def _read_head(self):
        logits = self._shapes["logits"]
        if len(logits) != 2 or logits[1] is None:
            raise InputError(f"the {self.role}'s output has shape {logits}: a classifier's is (batch, classes)")
        self.units = logits[1]
        if self.units == 1 and (self.output or "").startswith("multilabel"):
            raise InputError(
                f"the {self.role} has one unit, which is two classes: {self.role}_output is 'logits' or 'probabilities'"
            )
        # The one unit of a binary head is the second of two classes.
        self.num_classes = max(logits[1], 2)
        self._shapes["logits"] = (*logits[:-1], self.num_classes)

    def shapes(self, names: Sequence[str]) -> dict[str, tuple]:
        """Shapes (None, …) of taps, by name."""
        return {name: self._shapes[name] for name in names}

    def require(self, names: Sequence[str]) -> None:
        """Raises InputError where a tap does not exist."""
        for name in names:
            require_tap(self.role, name, self.names)

    def are_independent(self) -> None:
        """Called where the labels are found to be independent, which the values of logits don't tell."""
        if not self.is_multilabel:
            self.is_multilabel, self.head, self._saw_images = True, None, False

    def position(self, name: str) -> str | None:
        """Where in the model's graph a tap is (see `tap_graph.position`); None for logits and subclassed models."""
        if name == "logits" or not self._is_graph:
            return None
        part = name.removeprefix(self.without_part(name))
        return position(self.model, self._places[self.without_part(name)]) + part

    def decide(self, images: Any = None) -> heads.Head:
        """Finds out what the output is.

        Args:
            images: a batch of the real data, which decides once and for all; without one noise has to do, until then.

        Raises:
            InputError: see `heads.find`.
        """
        if self._saw_images or (images is None and self.head is not None):
            return self.head
        try:
            with backend_ops.outside_of_graphs():
                looked_at = self._each_input(lambda shape, _: heads.noise(shape)) if images is None else images
                head = heads.find(self.model, self._read, looked_at, self.role, self.output, self.is_multilabel)
        # Noise is no evidence against a model, and one that was built for its shapes alone can't be called.
        except Exception:
            if images is not None:
                raise
            head = heads.Head(self.output or "logits")
        if images is not None:
            logging.info("the %s gives %s", self.role, head.reason)
        self.head, self._saw_images, self._functions = head, images is not None, {}
        if self._is_graph:
            self._places["logits"] = Place(self.model.outputs[0] if head.logits is None else head.logits)
        return head

    def _read(self, images, tensors):
        """The output on images, and the values of symbolic tensors; the model's state is put back."""
        images = keras.tree.map_structure(ops.convert_to_tensor, images)
        before = [(variable, ops.convert_to_numpy(variable)) for variable in self.model.non_trainable_variables]
        try:
            if not self._is_graph:
                return self._call_subclassed(images, training=False)["logits"], []
            outputs = {str(number): tensor for number, tensor in enumerate([self.model.outputs[0], *tensors])}
            values = keras.Model(self._inputs, outputs)(images, training=False)
            return values["0"], [values[str(number)] for number in range(1, len(outputs))]
        except Exception as error:
            shapes = ", ".join(str(tuple(part.shape)) for part in keras.tree.flatten(images))
            error.add_note(f"This is the {self.role}'s own call, on images of shape {shapes}.")
            raise
        finally:
            for variable, value in before:
                if not np.array_equal(value, ops.convert_to_numpy(variable)):
                    variable.assign(value)

    def logits_model(self) -> keras.Model:
        """The model itself or, where it gives probabilities, a model of the same weights that returns the logits."""
        head = self.decide()
        if head.way == "as it is" and self.units > 1:
            return self.model
        if self._is_graph:
            inputs, output = self._inputs, self._places["logits"].tensor
        else:
            inputs = self._each_input(lambda shape, name: keras.Input(shape, name=name))
            output = self.model(inputs)
        if head.way == "log" or self.units == 1:
            kind = head.kind if head.way == "log" else "logits"
            output = heads.ToLogits(kind, name="logits")(output)
        return keras.Model(inputs, output, name=self.model.name)

    def __call__(self, x, names: Sequence[str], training: bool) -> dict[str, Any]:
        """Taps of images (B, H, W, C) by name, ``logits`` in float32. Runs the model once."""
        names = tuple(names)
        has_values = all(map(backend_ops.has_values, keras.tree.flatten(x)))
        head = self.decide(x if has_values else None) if "logits" in names else None
        read = tuple(dict.fromkeys(self.without_part(name) for name in names))
        if self._is_graph:
            if read not in self._functions:
                self._functions[read] = self._function({name: self._places[name] for name in read})
            outputs = self._functions[read](x, training=training)
            outputs |= {name: ops.transpose(outputs[name], _TO_LAST) for name in read if name in self._channels_first}
        else:
            outputs = self._call_subclassed(x, training)
            outputs = {"output": outputs["logits"], **outputs}
        outputs |= {
            name: self._views[name].read(outputs[self._views[name].of]) for name in names if name in self._views
        }
        return {
            name: head.to_logits(outputs[name], self._floor) if name == "logits" else outputs[name] for name in names
        }

    def without_part(self, name: str) -> str:
        """The tap that a name such as ``stage3[pooled]`` is a part of; the name itself where it is a whole tap."""
        return self._views[name].of if name in self._views else name

    def _read_graph(self):
        model = self.model
        if len(model.outputs) != 1:
            raise InputError(f"the {self.role} has {len(model.outputs)} outputs: a classifier has one")
        self._places = {**places(model), "logits": Place(model.outputs[0])}
        self._shapes = {name: tuple(place.tensor.shape) for name, place in self._places.items()}
        self._channels_first = {n for n, place in self._places.items() if graph.is_channels_first(place.tensor)}
        for name in self._channels_first:
            self._shapes[name] = tuple(self._shapes[name][axis] for axis in _TO_LAST)

    def _function(self, wanted: dict[str, Place]) -> Callable:
        """A model or layer from images to some places by name."""
        if any(place.calls for place in wanted.values()):
            return Reader(self.model, wanted)
        return keras.Model(self._inputs, {name: place.tensor for name, place in wanted.items()})

    def _read_inputs(self, several):
        model, self._inputs, shapes = self.model, None, (self.model.get_build_config() or {}).get("input_shape")
        if graph.is_graph(model):
            self._inputs = model.inputs[0] if len(model.inputs) == 1 else model.input
            shapes = keras.tree.map_structure(lambda tensor: tuple(tensor.shape), self._inputs)
        self.input_shape = _without_batch(shapes)
        if self.input_shape is None or (not self._is_graph and None in keras.tree.flatten(self.input_shape)):
            raise InputError(f"the {self.role}'s input shape is not known: call it once on a batch of images")
        if not isinstance(self.input_shape, tuple) and not several:
            raise InputError(f"the {self.role} has {len(self.input_shape)} inputs, and here a model of one is needed")
        self.input_names = tuple(self.input_shape) if isinstance(self.input_shape, dict) else ()

    def inputs_of(self, batch: Batch) -> Any:
        """What the model takes of a batch: its images or, where the model has several inputs, a dict or list.

        Raises:
            InputError: the batch has not all that the model takes.
        """
        given = batch.image
        if self.input_names and not isinstance(given, Mapping):
            given = {"image": given, **batch.inputs}
        if isinstance(given, Mapping):
            names = self.input_names or (self._name_of_image(given),)
            if not set(names) <= set(given):
                wanted = f"the inputs {', '.join(self.input_names)}" if self.input_names else "one input"
                raise InputError(
                    f"the {self.role} takes {wanted}, and the batch has {', '.join(given)}: name the fields so"
                    + ", or give teacher_inputs=function" * (self.role == "teacher")
                )
            given = {name: given[name] for name in names}
            return given if self.input_names else given[names[0]]
        is_single = isinstance(self.input_shape, tuple) and isinstance(given, (list, tuple)) and len(given) == 1
        return given[0] if is_single else given

    def _name_of_image(self, given: Mapping) -> str:
        """Which of several fields a model of one input takes: that of its name, as in Keras, or ``image``."""
        if len(given) == 1:
            return next(iter(given))
        own = None if self._inputs is None else self._inputs.name
        return own if own in given else "image"

    @property
    def batch_shape(self) -> Any:
        """The shapes of the inputs with their first axis, None."""
        return self._each_input(lambda shape, _: (None, *shape))

    def shape_for(self, other: "Taps") -> Any:
        """The shapes, among those that this model takes, of what another takes of the same batches.

        An input that this model has not got will be another field of the batches, as the other model takes it.
        """
        own, wanted = self.input_shape, other.input_shape
        if isinstance(own, tuple) and isinstance(wanted, dict):
            own = {"image": own}
        if isinstance(own, dict):
            more = wanted if isinstance(wanted, dict) else {}
            return other.inputs_of(Batch({**more, **own}))
        return own

    def _each_input(self, make: Callable) -> Any:
        """A thing for each input, by its shape and name, as the model takes them."""
        if isinstance(self.input_shape, tuple):
            return make(self.input_shape, None)
        if self.input_names:
            return {name: make(shape, name) for name, shape in self.input_shape.items()}
        return [make(shape, None) for shape in self.input_shape]

    def _read_subclassed(self):
        zeros = self._each_input(lambda shape, _: ops.zeros((1, *shape)))
        outputs = self._call_subclassed(zeros, training=False)
        if "logits" not in outputs:
            raise InputError(f"the {self.role}'s taps() returns {', '.join(outputs)}: 'logits' has to be among them")
        self._shapes = {name: (None, *value.shape[1:]) for name, value in outputs.items()}

    def _call_subclassed(self, x, training):
        if hasattr(self.model, "taps"):
            return self.model.taps(x, training=training)
        output = self.model(x, training=training)
        if isinstance(output, Mapping) and "logits" in output:
            output = output["logits"]
        if not hasattr(output, "shape"):
            raise InputError(
                f"the {self.role} returns a {type(output).__name__} of outputs: give it a method taps(x, training) "
                "that returns a dict with 'logits' in it"
            )
        return {"logits": output}


def _without_batch(shapes):
    """Shapes without their first axis: a tuple or, of several, a dict or list of tuples; None for what is no shape."""
    if isinstance(shapes, Mapping):
        parts = {name: _without_batch(shape) for name, shape in shapes.items()}
        return None if None in parts.values() else parts
    if not isinstance(shapes, (list, tuple)) or not shapes:
        return None
    if all(size is None or isinstance(size, int) for size in shapes):
        return tuple(shapes[1:])
    parts = [_without_batch(shape) for shape in shapes]
    return None if None in parts else parts
