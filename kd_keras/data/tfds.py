"""Any prepared image classification data set of TensorFlow Datasets.

Importing this module registers two builders with TensorFlow Datasets, ``mura`` and ``chest_xray``, whose files are
downloaded by hand::

    import kd_keras.data.tfds
    import tensorflow_datasets as tfds

    config = tfds.download.DownloadConfig(manual_dir="…/MURA-v1.1")
    data = tfds.load("mura", download_and_prepare_kwargs={"download_config": config})
"""

import hashlib
import itertools
import os
import re
from collections.abc import Iterator

import numpy as np
import tensorflow as tf

from kd_keras.data.arrays import mapped_images
from kd_keras.data.carving import carve, carve_three
from kd_keras.data.decoding import fit
from kd_keras.data.downloads import existing_folder
from kd_keras.data.fingerprints import of_rows
from kd_keras.data.image_files import checked_size
from kd_keras.data.sources import NumpySource, Source, Splits
from kd_keras.errors import InputError, check_switch, needs

with needs("TensorFlow Datasets", "tfds", "tfds(…)"):
    import tensorflow_datasets as tfds

    from kd_keras.data.tfds_builders import chest_xray, mura  # noqa: F401 (importing registers them)

_BATCH = 64  # images that are decoded together
_PATIENT = "patient"
_VAL_NAMES = ("validation", "val", "valid", "dev")


def TFDS(
    name: str,
    data_dir: str | None = None,
    label: str | None = None,
    image_size: int | tuple[int, int] | None = None,
    channels: int | None = None,
    train_split: str = "train",
    val_split: str | None = None,
    test_split: str | None = None,
    val_fraction: float = 0.1,
    test_fraction: float = 0.1,
    group: str | None = None,
    seed: int = 0,
    download: bool = False,
) -> Splits:
    """A prepared data set with its splits; missing splits are carved from train, stratified.

    TensorFlow Datasets reads in sequence, so each split's images are written once to Keras' cache
    (N · H · W · C bytes in ``$KERAS_HOME/datasets/kd_keras/images``, with a warning) and mapped from there. Labels are
    read again at each start.

    Args:
        name: name for `tfds.load`: ``'mnist'``, ``'cmaterdb/bangla'``, ``'cats_vs_dogs:4.0.1'``.
        data_dir: folder of prepared data sets; by default that of TensorFlow Datasets (``$TFDS_DATA_DIR``, or
            ``~/tensorflow_datasets``).
        label: name of the label, if it is not that of the supervised keys: ``'coarse_label'``.
        image_size: pixels, one side or (height, width), to which images are resized; needed where sizes vary.
        channels: 3 for colour, 1 for grey; by default those of the data set.
        train_split: TFDS split for training, or a slice of one: ``'train[:50%]'``.
        val_split: TFDS split for validation; by default ``validation``, ``val``, ``valid`` or ``dev``, if it exists and
            no other argument names it.
        test_split: TFDS split for testing; by default ``test``, likewise.
        val_fraction: without a validation split: part of train for it.
        test_fraction: without a test split: part of train for it.
        group: feature by whose value samples stay together when a split is carved; by default ``'patient'`` if the data
            set has it (``mura``, ``chest_xray``).
        seed: of these splits.
        download: let TensorFlow Datasets download and prepare a missing data set; without a network it retries for
            minutes.

    Raises:
        InputError: the data set is unknown, not prepared, damaged, or not a classification of images into one of
            several classes; sizes vary and ``image_size`` is not given; a split or feature does not exist; splits share
            samples; or the disk has no room.
    """
    if channels not in (None, 1, 3):
        raise InputError(f"channels={channels!r}: give 3 for colour or 1 for grey")
    check_switch("download", download)
    size = checked_size(image_size)
    builder = _builder(name, data_dir, download)
    keys = _keys(name, builder, label, group)
    shape = _shape(name, builder.info.features[keys["image"]], size, channels)
    available = builder.info.splits
    wanted = {"train": train_split, "val": val_split, "test": test_split}
    for kind, known in (("val", _VAL_NAMES), ("test", ("test",))):
        # A split that another argument names is taken: with test_split='validation', val is carved from train.
        free = (split for split in known if split in available and split not in wanted.values())
        wanted[kind] = wanted[kind] or next(free, None)
    _refuse_shared_samples(name, available, wanted)
    read = {kind: _read(name, builder, split, keys, shape) for kind, split in wanted.items() if split is not None}
    splits = _carved(read, val_fraction, test_fraction, seed)
    return Splits(*splits, tuple(builder.info.features[keys["label"]].names), shape)


def _builder(name, data_dir, download):
    if not isinstance(name, str):
        raise InputError(f"name={name!r}: give a data set's name in quotes, such as 'mnist'")
    if data_dir is not None and not download:
        data_dir = str(existing_folder(data_dir, "data_dir"))
    where = data_dir or "TensorFlow Datasets' folder ($TFDS_DATA_DIR, by default ~/tensorflow_datasets)"
    try:
        # try_gcs=False: a missing data set is not looked up in a cloud.
        builder = tfds.builder(name, data_dir=data_dir, try_gcs=False)
    # A missing version raises AssertionError.
    except (tfds.core.DatasetNotFoundError, ValueError, RuntimeError, OSError, AssertionError) as error:
        what = f"{name!r} is no data set that TensorFlow Datasets knows or finds in {where} ({_first(error)})"
        raise InputError(
            f"{what}: take a name of tensorflow.org/datasets/catalog, or name the folder of your own as data_dir"
        ) from error
    if builder.is_prepared():
        return builder
    if not download:
        raise InputError(
            f"{name!r} is not prepared in {where}: add download=True to fetch it (which takes a network), or prepare "
            f'it elsewhere by tfds.load("{name}") and give the folder as data_dir'
        )
    try:
        builder.download_and_prepare()
    except Exception as error:  # builders may raise anything
        raise InputError(f"{name!r} could not be prepared in {where}: {_first(error)}") from error
    return builder


def _first(error) -> str:
    """An error of TensorFlow Datasets in one line, without the list of all data sets."""
    return " ".join(str(error).partition("Available datasets:")[0].split())[:300]


def _keys(name, builder, label, group) -> dict[str, str]:
    """Names of the features for image and label and, where samples are grouped, group."""
    features, supervised = builder.info.features, builder.info.supervised_keys
    pair = supervised if supervised is not None and len(supervised) == 2 else ("image", "label")
    keys = {"image": pair[0], "label": label or pair[1]}
    known = dict(features) if isinstance(features, tfds.features.FeaturesDict) else {}
    if group is not None or _PATIENT in known:
        keys["group"] = group or _PATIENT
    kinds = {"image": tfds.features.Image, "label": tfds.features.ClassLabel}
    for role, key in keys.items():
        if not isinstance(key, str) or key not in known:
            raise InputError(f"{name!r} has no feature {key!r} for the {role}: it has {', '.join(sorted(known))}")
        if role in kinds and not isinstance(known[key], kinds[role]):
            kind = f"{type(known[key]).__name__} where {kinds[role].__name__} belongs"
            raise InputError(f"{name!r} is no image classification: its feature {key!r} is a {kind}")
        if role == "group" and known[key].shape != ():
            raise InputError(f"{name!r}: the feature {key!r} is no single value, by which samples could be grouped")
    return keys


def _shape(name, feature, size, channels):
    height, width, given = feature.shape
    if feature.dtype != np.uint8 or given not in (1, 3, 4):
        raise InputError(f"{name!r} has images of {given} channels of {feature.dtype} where 1, 3 or 4 of uint8 belong")
    if size is None and (height is None or width is None):
        raise InputError(f"{name!r} has images of varying sizes: set image_size to resize them, such as image_size=224")
    return (*(size or (height, width)), channels or min(given, 3))


def _refuse_shared_samples(name, available, wanted) -> None:
    """Refuses slices such as ``'train[:50%]'`` that share samples with another split."""
    parts = []
    for kind, split in wanted.items():
        if split is None:
            continue
        if not isinstance(split, str):
            raise InputError(f"{kind}_split={split!r} is not text: write for example {kind}_split='train[:50%]'")
        try:
            instructions = available[split].file_instructions
        except (ValueError, KeyError) as error:
            what = f"split {split!r} of {name!r} cannot be read ({_first(error)})"
            raise InputError(f"{what}: name one of {', '.join(available)}") from error
        parts += [(part.filename, part.skip, part.skip + part.take, split) for part in instructions]
    for (file, _, end, split), (other_file, start, _, other) in itertools.pairwise(sorted(parts)):
        if file == other_file and start < end:
            raise InputError(f"{name!r}: {split!r} and {other!r} share samples: give splits that have none in common")


def _read(name, builder, split, keys, shape) -> tuple[Source, np.ndarray | None]:
    """A split as a source, and the group of each sample."""
    config = tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False)  # one order in every pass

    def dataset(roles):
        used = {keys[role]: True for role in roles}
        return builder.as_dataset(
            split=split,
            read_config=config,
            decoders=tfds.decode.PartialDecoding(used),
        )

    try:
        rest = [role for role in keys if role != "image"]
        count = builder.info.splits[split].num_examples
        table = [batch for batch in dataset(rest).batch(1000).as_numpy_iterator()]
        columns = {role: np.concatenate([batch[keys[role]] for batch in table]) for role in rest} if table else {}
    except (tf.errors.OpError, OSError, ValueError, KeyError) as error:
        what = f"split {split!r} of {name!r} cannot be read ({_first(error)})"
        raise InputError(f"{what}: name one of {', '.join(builder.info.splits)}, or prepare it again") from error
    if not table or len(columns["label"]) != count:
        count_read = len(columns["label"]) if table else 0
        raise InputError(f"split {split!r} of {name!r} has {count_read} of {count} samples: prepare it again")
    labels, classes = columns["label"], builder.info.features[keys["label"]].num_classes
    if not 0 <= labels.min() <= labels.max() < classes:
        what = f"split {split!r} of {name!r} has labels outside 0…{classes - 1}, as where they are not published"
        raise InputError(f"{what}: name another by train_split, val_split or test_split")

    def images() -> Iterator[np.ndarray]:
        fitted = dataset(["image"]).map(
            lambda sample: fit(sample[keys["image"]][..., :3], shape), os.cpu_count() or 1, deterministic=True
        )
        try:
            yield from fitted.batch(_BATCH).prefetch(1).as_numpy_iterator()
        except tf.errors.OpError as error:
            what = f"split {split!r} of {name!r} has an image that cannot be read"
            raise InputError(f"{what} ({_first(error)}): prepare it again") from error

    stats = [os.stat(path) for path in builder.info.splits[split].filepaths]
    known = [builder.info.full_name, str(builder.data_path), split, keys["image"], count, shape, tf.__version__]
    known += [(stat.st_size, stat.st_mtime_ns) for stat in stats]
    digest = hashlib.sha256(repr(known).encode())
    place = hashlib.sha256(f"{builder.data_path}\0{split}".encode()).hexdigest()[:12]
    file = f"tfds-{re.sub(r'[^0-9A-Za-z]+', '-', builder.info.full_name)}-{place}-{'x'.join(map(str, shape))}"
    pixels = mapped_images(file, digest.digest(), (count, *shape), images)
    return NumpySource(pixels, labels, of_rows(digest.digest(), len(labels))), columns.get("group")


def _carved(read, val_fraction, test_fraction, seed):
    """Train, val and test; missing splits are carved from train."""
    source, groups = read["train"]
    given = {kind: pair[0] for kind, pair in read.items() if kind != "train"}
    if not given:
        return [source.subset(rows) for rows in carve_three(source.labels, val_fraction, test_fraction, seed, groups)]
    for kind, fraction in (("val", val_fraction), ("test", test_fraction)):
        if kind not in given:
            remaining, held_out = carve(source.labels, fraction, seed, groups)
            source, given[kind] = source.subset(remaining), source.subset(held_out)
    return source, given["val"], given["test"]
