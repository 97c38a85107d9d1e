"""What a teacher gets to see of a batch's images: its own size, channels and scaling."""

import warnings
from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from kd_keras._compat import keras as graph
from kd_keras.errors import InputError, is_count
from kd_keras.models.applications import Preprocessing

#: Pixels x in 0…255 as y = factor · x + offset, by channel where there are three; 'caffe' then reverses the channels.
SCALINGS = {
    "0..255": (1.0, 0.0),
    "0..1": (1 / 255, 0.0),
    "-1..1": Preprocessing.TF,
    "imagenet": Preprocessing.TORCH,
    "caffe": Preprocessing.CAFFE,
}
# What the networks of keras.applications take, by the beginnings of their names. Those without a line scale inside.
_OF_APPLICATIONS = {
    "resnet50v2": "-1..1",
    "resnet101v2": "-1..1",
    "resnet152v2": "-1..1",
    "resnet": "caffe",
    "vgg": "caffe",
    "densenet": "imagenet",
    "xception": "-1..1",
    "inception": "-1..1",
    "nasnet": "-1..1",
    "mobilenetv2": "-1..1",
    "mobilenet_": "-1..1",
}


@keras.saving.register_keras_serializable(package="kd_keras")
class TeacherInputs:
    """How the teacher's images are made of the student's.

    Args:
        size: pixels, one side or (height, width); by default the teacher's, where it takes one size only.
        channels: 3 for colour, 1 for grey; by default the teacher's. Grey becomes colour by repetition.
        scaling: what the teacher takes: one of `SCALINGS`, or ``'auto'`` for a network of keras.applications, by its
            name. None leaves the values as they are.
        images: what the batches hold, ``'0..255'``, ``'0..1'`` or ``'-1..1'``.

    Raises:
        InputError: a value is not one of these.

    Reference: keras.applications' ``preprocess_input``, whose modes are ``'tf'`` ('-1..1'), ``'torch'`` ('imagenet')
    and ``'caffe'``.
    """

    def __init__(
        self,
        size: int | tuple[int, int] | None = None,
        channels: int | None = None,
        scaling: str | None = None,
        images: str = "0..255",
    ) -> None:
        sides = (size, size) if isinstance(size, int) else size
        if sides is not None and (len(sides) != 2 or not all(map(is_count, sides))):
            raise InputError(f"teacher_inputs: size={size!r}: give pixels, as 64 or (height, width)")
        if channels not in (None, 1, 3):
            raise InputError(f"teacher_inputs: channels={channels!r}: give 3 for colour or 1 for grey")
        if scaling not in (None, "auto", *SCALINGS):
            raise InputError(f"teacher_inputs: scaling={scaling!r}: known are {', '.join(SCALINGS)} and auto")
        if images not in ("0..255", "0..1", "-1..1"):
            raise InputError(f"teacher_inputs: images={images!r}: give '0..255', '0..1' or '-1..1'")
        self.size, self.channels, self.scaling, self.images = (
            None if sides is None else tuple(sides),
            channels,
            scaling,
            images,
        )

    def get_config(self) -> dict[str, Any]:
        return {"size": self.size, "channels": self.channels, "scaling": self.scaling, "images": self.images}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "TeacherInputs":
        return cls(**{**config, "size": config["size"] and tuple(config["size"])})

    def of(self, teacher: keras.Model, input_shape: tuple, student_shape: tuple) -> Callable[[Any], Any]:
        """The function from a batch's images to the teacher's.

        Args:
            teacher: for ``scaling='auto'``.
            input_shape: (H, W, C) of the teacher, a side None where it takes any; of several inputs a dict or list.
            student_shape: the same of the student, for each input that the teacher takes.

        Raises:
            InputError: the teacher's images can't be made of the student's.
        """
        if isinstance(input_shape, dict) and isinstance(student_shape, dict):
            # Each image by itself; other inputs stay as they are.
            parts = {
                name: (self if len(shape) == 3 else TeacherInputs()).of(teacher, shape, student_shape[name])
                for name, shape in input_shape.items()
            }
            return lambda images: {name: part(images[name]) for name, part in parts.items()}
        channels_first = keras.config.image_data_format() == "channels_first"
        differ = f"the teacher takes images of {input_shape}, the student of {student_shape}"
        if not all(isinstance(shape, tuple) and len(shape) == 3 for shape in (input_shape, student_shape)):
            if input_shape == student_shape and self.get_config() == TeacherInputs().get_config():
                return lambda images: images
            raise InputError(f"{differ}: only images (H, W, C) are changed; give teacher_inputs=function")
        order = (1, 2, 0) if channels_first else (0, 1, 2)
        height, width, channels = (input_shape[axis] for axis in order)
        given = student_shape[order[-1]]
        own = tuple(student_shape[axis] for axis in order[:2])
        # A student of any size takes its batches as they are, and so does the teacher, unless a size is given.
        size = self.size or (None if None in (height, width, *own) else (height, width))
        if size is not None and any(own not in (None, side) for own, side in zip((height, width), size, strict=True)):
            raise InputError(f"teacher_inputs has the size {size}, and the teacher takes images of {input_shape}")
        wanted = self.channels or channels or given
        if channels not in (None, wanted):
            raise InputError(f"teacher_inputs has {wanted} channels, and the teacher takes images of {input_shape}")
        if given != wanted and {given, wanted} != {1, 3}:
            raise InputError(
                f"{differ}: only grey (1 channel) and colour (3) are made of each other; put any other change inside a "
                "model, or give teacher_inputs=function"
            )
        scaling = _of_application(teacher) if self.scaling == "auto" else self.scaling
        if scaling in ("imagenet", "caffe") and wanted != 3:
            raise InputError(
                f"teacher_inputs: the scaling {scaling!r} is of three channels, and the teacher takes {wanted}"
            )
        axis = 1 if channels_first else -1
        if (self.size is None and size not in (None, own)) or (self.channels is None and wanted != given):
            warnings.warn(
                f"{differ}: the batch's images are resized for the teacher, and grey and colour made of each other; "
                "teacher_inputs=TeacherInputs(size=…, channels=…) says that this is meant",
                stacklevel=1,
            )

        def convert(images):
            # Grey images without an axis of channels.
            if len(images.shape) == len(student_shape) and given == 1:
                images = ops.expand_dims(images, axis)
            if size is not None and tuple(images.shape[2:] if channels_first else images.shape[1:3]) != size:
                images = ops.image.resize(
                    ops.cast(images, "float32"),
                    size,
                    antialias=True,
                    data_format="channels_first" if channels_first else "channels_last",
                )
            if images.shape[axis] != wanted:
                images = _recoloured(images, wanted, axis)
            return images if scaling is None else _scaled(images, self.images, scaling, axis)

        return convert


def scaled(model: keras.Model, scaling: str) -> keras.Model:
    """A model of pixels in 0…255 around one that takes another scaling.

    Args:
        model: takes images (B, H, W, C).
        scaling: see `TeacherInputs`.

    Raises:
        InputError: the scaling does not fit the model.
    """
    shape = tuple(model.input_shape[1:])
    TeacherInputs(scaling=scaling).of(model, shape, shape)
    scaling = _of_application(model) if scaling == "auto" else scaling
    factor, offset = SCALINGS[scaling]
    inputs = x = keras.Input(shape)
    x = keras.layers.Rescaling(factor, offset, name="to_teacher", dtype="float32")(x)
    if scaling == "caffe":
        x = ops.flip(x, axis=-1)
    # Not model(x), which would nest its layers in one, and so rename its taps.
    return keras.Model(inputs, model.call(x) if graph.is_stock_graph(model) else model(x), name=model.name)


def _recoloured(images, channels, axis):
    if channels == 3:
        return ops.repeat(images, 3, axis=axis)
    # With the weights of the data sets' own grey images.
    data_format = "channels_first" if axis == 1 else "channels_last"
    return ops.image.rgb_to_grayscale(ops.cast(images, "float32"), data_format=data_format)


def _scaled(images, given, scaling, axis):
    """Pixels as the teacher takes them."""
    factor, offset = SCALINGS[given]
    images = (ops.cast(images, "float32") - offset) / factor
    factor, offset = (
        value
        if isinstance(value, float)
        else ops.reshape(ops.convert_to_tensor(value, "float32"), (3, 1, 1) if axis == 1 else (3,))
        for value in SCALINGS[scaling]
    )
    images = images * factor + offset
    return ops.flip(images, axis=axis) if scaling == "caffe" else images


def _of_application(teacher) -> str:
    """The scaling of a network of keras.applications."""
    name = teacher.name.lower()
    for beginning, scaling in _OF_APPLICATIONS.items():
        if name.startswith(beginning):
            return scaling
    if name.startswith(("efficientnet", "convnext", "mobilenetv3", "mobilenet3")):
        return "0..255"
    raise InputError(
        f"teacher_inputs: the scaling of {teacher.name!r} is not known, as its name is none of keras.applications': "
        f"give one of {', '.join(SCALINGS)}"
    )
