"""CIFAR-10: 60 000 colour images of 32×32 in 10 classes (Krizhevsky, 2009)."""

from kd_keras.data import cifar_files as _cifar
from kd_keras.data.sources import Splits

FORM = _cifar.Form(
    name="cifar10",
    published="cifar-10",
    python_folder="cifar-10-batches-py",
    binary_folder="cifar-10-batches-bin",
    train=tuple(f"data_batch_{number}" for number in range(1, 6)),
    train_rows=10_000,
    test="test_batch",
    test_rows=10_000,
    meta="batches.meta",
    label_key="labels",
    names_key="label_names",
    names_file="batches.meta.txt",
    label_bytes=1,
    label_byte=0,
    tfds_label="label",
    num_classes=10,
    sha256="6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
)


def CIFAR10(folder: str | None = None, val_fraction: float = 0.1, seed: int = 0) -> Splits:
    """CIFAR-10, 32×32×3.

    Args:
        folder: holds the published files (Python or binary, unpacked or as archive) or a TFDS-prepared data set;
            by default Keras' cache, to which they are downloaded once.
        val_fraction: part of the 50 000 training images for validation, stratified.
        seed: of this split.

    Raises:
        InputError: files are missing, corrupt or truncated, or the download fails.

    Reference: https://www.cs.toronto.edu/~kriz/cifar.html
    """
    return _cifar.load(FORM, folder, val_fraction, seed)
