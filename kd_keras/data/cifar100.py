"""CIFAR-100: 60 000 colour images of 32×32 in 100 classes, or 20 superclasses (Krizhevsky, 2009)."""

import dataclasses

from kd_keras.data import cifar_files as _cifar
from kd_keras.data.sources import Splits

FORM = _cifar.Form(
    name="cifar100",
    published="cifar-100",
    python_folder="cifar-100-python",
    binary_folder="cifar-100-binary",
    train=("train",),
    train_rows=50_000,
    test="test",
    test_rows=10_000,
    meta="meta",
    label_key="fine_labels",
    names_key="fine_label_names",
    names_file="fine_label_names.txt",
    label_bytes=2,
    label_byte=1,
    tfds_label="label",
    num_classes=100,
    sha256="85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",
)


def CIFAR100(folder: str | None = None, coarse: bool = False, val_fraction: float = 0.1, seed: int = 0) -> Splits:
    """CIFAR-100, 32×32×3.

    Args:
        folder: holds the published files (Python or binary, unpacked or as archive) or a TFDS-prepared data set;
            by default Keras' cache, to which they are downloaded once.
        coarse: the 20 superclasses instead of the 100 classes.
        val_fraction: part of the 50 000 training images for validation, stratified.
        seed: of this split.

    Raises:
        InputError: files are missing, corrupt or truncated, or the download fails.

    Reference: https://www.cs.toronto.edu/~kriz/cifar.html
    """
    form = FORM
    if coarse:
        form = dataclasses.replace(
            form,
            label_key="coarse_labels",
            names_key="coarse_label_names",
            names_file="coarse_label_names.txt",
            label_byte=0,
            tfds_label="coarse_label",
            num_classes=20,
        )
    return _cifar.load(form, folder, val_fraction, seed)
