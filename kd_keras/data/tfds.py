"""Any image classification set of TensorFlow Datasets that has been prepared.

Importing this module registers two more builders with TensorFlow Datasets, ``mura`` and ``chest_xray``, whose files
are fetched by hand::

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

from kd_keras.data.downloads import existing_folder
from kd_keras.data.fingerprints import of_rows
from kd_keras.data.image_files import checked_size, mapped_images
from kd_keras.data.sources import NumpySource, Source, Splits, carve, carve_three, fit
from kd_keras.errors import InputError, check_switch, needs

with needs("TensorFlow Datasets", "tfds", "tfds(…)"):
    import tensorflow_datasets as tfds

    from kd_keras.data.tfds_builders import chest_xray, mura  # noqa: F401 (importing registers them)

_BATCH = 64  # images that are decoded at a time to be written
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
    """A prepared data set, with its own splits; missing ones are carved from train, stratified.

    TensorFlow Datasets reads in sequence, so each split's images are written once to Keras' cache
    (``$KERAS_HOME/datasets/kd_keras/images``; N · H · W · C bytes, which are told beforehand) and mapped from there.
    Labels are read anew at each start.

    Args:
        name: as `tfds.load` takes it: ``'mnist'``, ``'cmaterdb/bangla'``, ``'cats_vs_dogs:4.0.1'``.
        data_dir: where prepared data sets lie; by default as TensorFlow Datasets has it
            (``$TFDS_DATA_DIR``, or ``~/tensorflow_datasets``).
        label: the label's name, where it is another than that of the supervised keys: ``'coarse_label'``.
        image_size: pixels, a side or (height, width), to which images are resized; needed where sizes vary.
        channels: 3 for colour, 1 for grey; by default as the data set has it.
        train_split: TFDS split to learn from, slices included: ``'train[:50%]'``.
        val_split: TFDS split for validation; by default ``validation``, ``val``, ``valid`` or ``dev``, where it is
            there and no other key names it.
        test_split: TFDS split to report; by default ``test``, likewise.
        val_fraction: where there is no validation split: part of train taken for it.
        test_fraction: where there is no test split: part of train taken for it.
        group: feature whose samples of one value are kept together where a split is carved; by default ``'patient'``
            where the data set has it (``mura``, ``chest_xray``).
        seed: of those splits.
        download: let TensorFlow Datasets download and prepare what is not there; without a network that ends after
            minutes of its own attempts.

    Raises:
        InputError: the data set is unknown, not prepared, no classification of images into one of several classes, or
            damaged; sizes vary and ``image_size`` is not given; a split or feature is not there; splits share samples;
            or the disk has no room.
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
        # What another key names is taken: with test_split='validation', validation images are carved from train.
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
        # try_gcs=False: what is not prepared here is not looked for in a cloud.
        builder = tfds.builder(name, data_dir=data_dir, try_gcs=False)
    # A version that is not there is an AssertionError.
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
    except Exception as error:  # builders raise whatever their downloads and readers do
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
    """Slices such as ``'train[:50%]'`` can hold what another split has."""
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
        parts += [(one.filename, one.skip, one.skip + one.take, split) for one in instructions]
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
        raise InputError(f"{what}: name one of {', '.join(builder.info.splits)}, or prepare it anew") from error
    if not table or len(columns["label"]) != count:
        found = len(columns["label"]) if table else 0
        raise InputError(f"split {split!r} of {name!r} has {found} of {count} samples: prepare it anew")
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
            raise InputError(f"{what} ({_first(error)}): prepare it anew") from error

    stats = [os.stat(path) for path in builder.info.splits[split].filepaths]
    known = [builder.info.full_name, str(builder.data_path), split, keys["image"], count, shape, tf.__version__]
    known += [(stat.st_size, stat.st_mtime_ns) for stat in stats]
    digest = hashlib.sha256(repr(known).encode())
    place = hashlib.sha256(f"{builder.data_path}\0{split}".encode()).hexdigest()[:12]
    file = f"tfds-{re.sub(r'[^0-9A-Za-z]+', '-', builder.info.full_name)}-{place}-{'x'.join(map(str, shape))}"
    pixels = mapped_images(file, digest.digest(), (count, *shape), images)
    # Over the labels too: one set of images may have several.
    return NumpySource(pixels, labels, of_rows(digest.digest(), len(labels))), columns.get("group")


def _carved(read, val_fraction, test_fraction, seed):
    """Train, val and test; what is missing is carved from train."""
    source, groups = read["train"]
    given = {kind: pair[0] for kind, pair in read.items() if kind != "train"}
    if not given:
        return [source.subset(rows) for rows in carve_three(source.labels, val_fraction, test_fraction, seed, groups)]
    for kind, fraction in (("val", val_fraction), ("test", test_fraction)):
        if kind not in given:
            kept, held_out = carve(source.labels, fraction, seed, groups)
            source, given[kind] = source.subset(kept), source.subset(held_out)
    return source, given["val"], given["test"]
