"""Data sets, one per file, and the pipeline that feeds them to training.

`Digits` of ``digits.py`` is ``digits(seed=1)`` on the command line. Each gives `Splits` of random-access sources, which
`batches` turns into tf.data. A data set of your own is checked by `kd_keras.testing.check_data`.
"""

from kd_keras import _lazy

__getattr__, __dir__, __all__ = _lazy.exports(
    __name__,
    {
        **_lazy.parts(__name__),
        "ArraySource": "sources",
        "FileSource": "sources",
        "Source": "sources",
        "Splits": "sources",
        "Views": "pipeline",
        "augmentations": "augment",
        "batches": "pipeline",
        "doubts": "overlaps",
        "lookalikes": "likeness",
        "join": "missing_labels",
        "keep_labels": "missing_labels",
        "labelled": "missing_labels",
        "steps_per_epoch": "pipeline",
        "take": "carving",
        "without_labels": "missing_labels",
    },
)
