"""Settings that were measured, by the situation that they are for.

    kd_keras.distill(student, teacher, (images, labels), **recipes.settings("few_labels", labelled_examples=100))

On the command line a recipe is its experiment, with your data and models after it:

    kd-keras run --flagfile=unlabelled_cifar10_500 --data="folder(path='mine')" --teacher=… --student=…
"""

import dataclasses
from typing import Any

from kd_keras import flagfiles
from kd_keras.errors import InputError
from kd_keras.spec import closest


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Settings of an experiment that are worth taking over.

    Attributes:
        experiment: the flagfile's name, whose header says how it was measured and what it gave.
        situation: when to take it.
    """

    experiment: str
    situation: str


#: By name.
RECIPES = {
    "few_labels": Recipe(
        "unlabelled_cifar10_500", "many images, of which few have labels, and a teacher that knows more"
    ),
    "many_labels": Recipe(
        "cifar_resnet", "all images have labels, and a teacher clearly better than the student alone"
    ),
    "microcontroller": Recipe("edge_fashion_mnist", "a student of 8 bits, trained for them with the teacher"),
    "vit_teacher": Recipe("s3_cifar10_vit_cnn", "a vision transformer teaches a small convolutional network"),
    "several_labels": Recipe("multilabel_digits", "each image has several labels, independent of each other"),
}
# What is the user's own: data, models, places.
_OWN = ("data", "labelled_examples", "train_examples", "teacher", "student", "experiment", "export", "export_beside")


def settings(name: str, **changes: Any) -> dict[str, Any]:
    """A recipe's settings, as `kd_keras.distill` takes them: losses, temperature, epochs, optimizers, augmentation.

    They were measured on small images; sizes that go with them, such as ``pad_crop(pixels=4)`` of 32×32 images, are
    worth a look.

    Args:
        name: of `RECIPES`.
        **changes: further settings, or other values.

    Raises:
        InputError: there is no such recipe.
    """
    if name not in RECIPES:
        raise InputError(f"there is no recipe {name!r}{closest(name, list(RECIPES))}: there are {', '.join(RECIPES)}")
    lines = flagfiles.flags_in(flagfiles.find(RECIPES[name].experiment))
    given = dict(line.removeprefix("--").split("=", 1) for line in lines)
    return {flag: text for flag, text in given.items() if flag not in _OWN} | changes
