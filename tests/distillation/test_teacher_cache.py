"""The teacher cache: exact, whole or not at all, never another teacher's."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf

from kd_keras import Distiller, Taps, TeacherCache, losses
from kd_keras.data import ArraySource, Views, batches
from kd_keras.data import augment as _augment
from kd_keras.distillation import device
from kd_keras.errors import InputError

L = keras.layers
N, K = 30, 5
RNG = np.random.default_rng(0)
SOURCE = ArraySource(RNG.integers(0, 256, (N, 8, 8, 3), np.uint8), np.arange(N) % K)
AUGMENT = (_augment.pad_crop(pixels=2), _augment.flip())


def model(seed, classes=K, filters=4, size=8, scale=3.0):
    keras.utils.set_random_seed(seed)
    image = keras.Input((size, size, 3))
    x = L.Conv2D(filters, 3, activation="relu", name="stage1")(L.Rescaling(1 / 127.5, -1, name="pixels")(image))
    x = L.GlobalAveragePooling2D(name="pooled")(x)
    return keras.Model(image, L.Dense(classes, kernel_initializer=keras.initializers.RandomNormal(0, scale))(x))


@pytest.fixture(scope="module")
def teacher():
    return model(1, filters=16)


def views(count=2, seed=0, source=SOURCE):
    return Views(source, count, AUGMENT, seed)


def filled(folder, teacher, *args, count=2, **kwargs):
    cache = TeacherCache(folder, views(count), teacher, *args, **kwargs)
    cache.fill(batch_size=7)
    return cache


def losses_by_step(teacher, terms, cache=None, **kwargs):
    """The loss of each step of three epochs; without a cache the live teacher sees the views of epoch modulo 2."""
    student = model(2)
    d = Distiller(student=student, teacher=teacher, losses=terms)
    d.compile(keras.optimizers.SGD(0.05))
    seen = []
    record = keras.callbacks.LambdaCallback(on_train_batch_end=lambda step, logs: seen.append(logs["loss"]))
    stream = batches(SOURCE, 8, training=True, epochs=3, augment=AUGMENT, cache=cache or Twice(), **kwargs)
    if cache is None:
        stream = stream.map(lambda batch: {key: batch[key] for key in ("image", "label")})
    d.fit(stream, epochs=3, steps_per_epoch=4, callbacks=[record], verbose=0)
    return np.array(seen), [np.array(v) for v in student.weights]


class Twice:
    """Views in the cycle of a cache, but nothing of a teacher."""

    views = Views(SOURCE, 2, AUGMENT)

    def read(self, view, index):
        return {"logits": tf.zeros((tf.size(index), K))}


def terms():
    return [losses.CE(weight=0.1), losses.KD(weight=0.9), losses.Hint(pairs="pooled:pooled", weight=0.5)]


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("float32", 1e-5), pytest.param("float16", 1e-3, marks=pytest.mark.slow)]
)
def test_training_from_the_cache_is_training_with_the_teacher(tmp_path, teacher, dtype, tolerance):
    cache = filled(tmp_path, teacher, ("logits", "pooled"), dtype=dtype)
    live, live_weights = losses_by_step(teacher, terms())
    cached, weights = losses_by_step(teacher, terms(), cache)
    np.testing.assert_allclose(cached, live, rtol=tolerance)
    for a, b in zip(weights, live_weights, strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)
    # Had the cache shown one view for both, the losses would differ.
    wrong, _ = losses_by_step(teacher, terms(), filled(tmp_path, teacher, ("logits", "pooled"), dtype=dtype, count=1))
    assert np.abs(wrong / live - 1).max() > 0.01


@pytest.mark.parametrize("op", [_augment.mixup(alpha=0.5), _augment.cutmix()])
def test_mixed_images_are_cached_as_they_are_seen(tmp_path, teacher, op):
    """Function matching, arXiv:2106.05237: the teacher has answered for the very images that the student is shown."""
    augment = (*AUGMENT, op)
    cache = TeacherCache(tmp_path, Views(SOURCE, 2, augment), teacher, dtype="float32")
    cache.fill(batch_size=7)
    stream = batches(SOURCE, 8, training=True, epochs=3, augment=augment, num_classes=K, cache=cache, seed=5)
    for batch in stream.as_numpy_iterator():
        np.testing.assert_allclose(batch["teacher"]["logits"], teacher.predict(batch["image"], verbose=0), atol=1e-5)


def test_the_teacher_is_not_run_where_the_batches_bring_it(tmp_path, teacher, monkeypatch):
    cache, runs = filled(tmp_path, teacher), []
    d = Distiller(student=model(2), teacher=teacher, losses=[losses.KD()])
    run = Taps.__call__
    monkeypatch.setattr(Taps, "__call__", lambda taps, *args, **kw: runs.append(taps.role) or run(taps, *args, **kw))
    d.compile("sgd")
    d.fit(batches(SOURCE, 8, training=True, augment=AUGMENT, cache=cache), verbose=0)
    assert runs.count("teacher") == 1 and "student" in runs  # to compare the first batch


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_golden_top_k(tmp_path, dtype):
    teacher = model(3, classes=9, filters=16, scale=2.0)
    cache = filled(tmp_path, teacher, top_k=3, dtype=dtype)
    images = np.concatenate(list(views().batches(1, 30).as_numpy_iterator()))
    full = teacher.predict(images, verbose=0).astype(np.float64)
    got = cache.read(1, tf.range(N, dtype=tf.int64))["logits"].numpy()
    order = np.argsort(-full, axis=1)
    top, rest = order[:, :3], order[:, 3:]
    rows = np.arange(N)[:, None]
    exact = 2e-3 if dtype == "float16" else 1e-5
    np.testing.assert_allclose(got[rows, top], full[rows, top], atol=20 * exact if dtype == "float16" else exact)
    # The others are alike and have, together, the probability that they had.
    assert np.ptp(got[rows, rest], axis=1).max() < 1e-5
    p = np.exp(full - full.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    q = np.exp(got - got.max(1, keepdims=True).astype(np.float64))
    q /= q.sum(1, keepdims=True)
    np.testing.assert_allclose(q[rows, rest].sum(1), p[rows, rest].sum(1), atol=exact)
    np.testing.assert_allclose(q[rows, top], p[rows, top], atol=exact)


def test_a_certain_teacher_leaves_no_mass_and_no_nan(tmp_path):
    teacher = model(3, classes=9, scale=0.0)
    teacher.layers[-1].bias.assign([2000.0, 0, 0, 0, 0, 0, 0, 0, -3000.0])
    got = filled(tmp_path, teacher, top_k=2, dtype="float32").read(0, tf.range(4))["logits"].numpy()
    assert np.isfinite(got).all() and (got.argmax(1) == 0).all() and got[0, 0] == 2000


def test_all_logits_are_kept_where_top_k_asks_for_all(tmp_path, teacher):
    assert TeacherCache(tmp_path, views(), teacher, top_k=K).folder == TeacherCache(tmp_path, views(), teacher).folder


def test_size(tmp_path, teacher):
    def size(*args, **kwargs):
        return TeacherCache(tmp_path, views(3), teacher, *args, **kwargs).nbytes / (3 * N)

    assert size(dtype="float32") == 4 * K
    assert size() == 2 * K + 4
    assert size(("logits", "pooled")) == 2 * K + 4 + 2 * 16
    # Two values and their places in 2 bytes each, the largest and the rest in 4.
    assert size(top_k=2) == 2 * (2 + 2) + 8
    cache = filled(tmp_path, teacher, ("logits", "stage1"), top_k=2)
    on_disk = sum(path.stat().st_size for path in cache.folder.glob("*.npy"))
    assert cache.nbytes < on_disk < cache.nbytes + 128 * len(list(cache.folder.glob("*.npy"))) + 1


def test_the_disk_has_to_have_room_for_what_is_missing(tmp_path, teacher, monkeypatch):
    cache = TeacherCache(tmp_path, views(), teacher)
    full = SimpleNamespace(free=10)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: full)
    with pytest.raises(InputError, match="more than the disk's free space"):
        cache.fill()
    full.free = 10**9
    cache.fill()
    full.free = 0
    assert TeacherCache(tmp_path, views(), teacher).fill() == 0


def test_a_teacher_that_has_changed_since_gets_another_cache(tmp_path):
    teacher = model(1)
    cache = filled(tmp_path, teacher, dtype="float32")
    before, folder = cache.read(0, np.arange(3))["logits"].numpy(), cache.folder
    teacher.layers[-1].bias.assign([1.0, 0, 0, 0, 0])
    with pytest.raises(InputError, match="the teacher has changed since"):
        cache.read(0, np.arange(3))
    assert cache.fill() == 2 * N and cache.folder != folder and folder.exists()
    np.testing.assert_allclose(cache.read(0, np.arange(3))["logits"], before + np.array([1.0, 0, 0, 0, 0]), atol=1e-5)
    assert cache.fill() == 0


def test_a_limit(tmp_path, teacher):
    with pytest.raises(InputError, match=r"would take 8.4e-07 GB, more than limit_gb \(8e-07 GB\): store fewer views"):
        TeacherCache(tmp_path, views(), teacher, limit_gb=8e-7)
    TeacherCache(tmp_path, views(), teacher, limit_gb=9e-7)


def test_what_is_there_is_not_computed_again(tmp_path, teacher):
    first = filled(tmp_path, teacher, count=1)
    written = {path.name: path.stat().st_mtime_ns for path in first.folder.iterdir()}
    more = TeacherCache(tmp_path, views(3), teacher, ("logits", "pooled"))
    assert more.missing == [(0, "pooled"), (1, "logits"), (1, "pooled"), (2, "logits"), (2, "pooled")]
    calls = []
    assert more.fill(batch_size=20, progress=lambda *at: calls.append(at)) == 3 * N
    assert calls == [(20, 90), (30, 90), (50, 90), (60, 90), (80, 90), (90, 90)]
    assert all((more.folder / name).stat().st_mtime_ns == time for name, time in written.items())
    assert TeacherCache(tmp_path, views(3), teacher, ("pooled",)).fill() == 0
    assert not list(more.folder.glob("*.partial"))


def test_a_killed_writing_leaves_nothing_half_and_goes_on(tmp_path, teacher):
    cache = TeacherCache(tmp_path, views(3), teacher)

    def stop(count, total):
        if count > N + 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.fill(batch_size=10, progress=stop)
    assert cache.missing == [(1, "logits"), (2, "logits")] and not list(cache.folder.glob(".*.partial"))
    with pytest.raises(InputError, match=r"lacks 2 parts: call fill\(\) first"):
        cache.read(0, tf.range(3))
    assert cache.fill() == 2 * N
    assert cache.read(2, tf.range(3))["logits"].shape == (3, K)


def test_two_writers_at_once_leave_one_cache(tmp_path, teacher):
    cache, other = (TeacherCache(tmp_path, views(1), teacher) for _ in range(2))
    cache.fill(batch_size=10, progress=lambda count, total: other.fill() if count == 20 else None)
    assert np.array_equal(cache.read(0, tf.range(N))["logits"], other.read(0, tf.range(N))["logits"])


def test_another_teacher_or_other_views_are_another_cache(tmp_path, teacher):
    folder = filled(tmp_path, teacher).folder
    changed = keras.models.clone_model(teacher)
    changed.set_weights(teacher.get_weights())
    assert TeacherCache(tmp_path, views(), changed).folder == folder
    kernel = changed.layers[-1].kernel
    kernel.assign(keras.ops.convert_to_numpy(kernel) + 1e-3)
    less = Views(SOURCE, 2, AUGMENT[:1])
    image, logits = teacher.inputs[0], teacher.outputs[0]
    pooled = teacher.get_layer("pooled").output
    wired = [keras.Model(image, logits * 0.5), keras.Model(image, logits * 0.25)]
    twice = keras.Model(image, teacher.layers[-1](pooled * 1.0))
    folders = {TeacherCache(tmp_path, views(), model).folder for model in (*wired, twice, teacher)}
    assert len(folders) == 4
    for other in (
        TeacherCache(tmp_path, views(), changed),
        TeacherCache(tmp_path, views(seed=1), teacher),
        TeacherCache(tmp_path, less, teacher),
        TeacherCache(tmp_path, views(source=SOURCE.subset(range(20))), teacher),
        TeacherCache(tmp_path, views(), teacher, dtype="float32"),
        TeacherCache(tmp_path, views(), teacher, top_k=2),
        TeacherCache(tmp_path, views(), teacher, teacher_dtype="bfloat16"),
    ):
        assert other.folder != folder and other.missing


def test_auto_is_the_dtype_that_it_stands_for(tmp_path, teacher):
    cache, other = (TeacherCache(tmp_path, views(), teacher, teacher_dtype=d) for d in ("auto", device.teacher_dtype()))
    assert cache.folder == other.folder


def test_taps_are_told_apart_by_their_place(tmp_path):
    """Names that Keras numbers anew in each process must not stand for another layer."""

    def make(names):
        keras.utils.set_random_seed(0)
        x = image = keras.Input((8, 8, 3))
        for name in names:
            x = L.Conv2D(3, 1, name=name)(x)
        return keras.Model(image, L.Dense(K, name="logits")(L.Flatten(name="flat")(x)))

    cache = TeacherCache(tmp_path, views(1), make(["conv_1", "conv_2"]), ("conv_2",))
    cache.fill()
    other = TeacherCache(tmp_path, views(1), make(["conv_2", "conv_1"]), ("conv_2",))
    assert other.folder == cache.folder and other.missing == [(0, "conv_2")]


def test_a_cache_under_a_wrong_name_is_refused(tmp_path, teacher):
    folder = filled(tmp_path, teacher).folder
    record = folder / "identity.json"
    identity = json.loads(record.read_text())
    record.write_text(json.dumps({**identity, "teacher": "another", "samples": "others"}))
    with pytest.raises(InputError, match="was made with another teacher, samples: remove it"):
        TeacherCache(tmp_path, views(), teacher)
    record.write_text("{")
    with pytest.raises(InputError, match=r"identity\.json can't be read: remove"):
        TeacherCache(tmp_path, views(), teacher)


@pytest.mark.parametrize("damage", ["a byte", "cut short", "gone", "another shape"])
def test_a_damaged_file_is_refused(tmp_path, teacher, damage):
    cache = filled(tmp_path, teacher)
    path = cache.folder / "view001-logits-values.npy"
    data = path.read_bytes()
    if damage == "gone":
        path.unlink()
    elif damage == "another shape":
        np.save(path, np.zeros((3, K), np.float16))
    else:
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]) if damage == "a byte" else data[:-20])
    with pytest.raises(InputError, match=r"view001-logits-values\.npy is damaged: remove"):
        TeacherCache(tmp_path, views(), teacher).read(0, tf.range(3))


def test_bad_values(tmp_path, teacher):
    for kwargs, message in (
        ({"dtype": "int8"}, "dtype='int8': a teacher cache stores float16 or float32"),
        ({"top_k": 0}, "top_k=0: give a whole number"),
        ({"taps": ("stage9",)}, "the teacher has no tap 'stage9'"),
    ):
        with pytest.raises(InputError, match=message):
            TeacherCache(tmp_path, views(), teacher, **kwargs)
    with pytest.raises(InputError, match="a cache needs known sizes"):
        TeacherCache(tmp_path, views(), model(1, size=None), ("stage1",))


@pytest.mark.parametrize(("value", "message"), [(np.nan, "is not finite"), (1e6, "too large for float16")])
def test_a_teacher_that_cannot_be_kept_is_refused(tmp_path, value, message):
    bad = model(1)
    bad.layers[-1].bias.assign([0.0, 0, 0, 0, -value])
    with pytest.raises(InputError, match=message):
        filled(tmp_path, bad)
    assert not list(tmp_path.rglob("*.npy")) + list(tmp_path.rglob("*.partial"))


def test_losses_that_read_more_than_the_cache_has_are_refused(tmp_path, teacher):
    d = Distiller(student=model(2), teacher=teacher, losses=terms())
    d.compile("sgd")
    with pytest.raises(InputError, match="contain the teacher's logits, and the losses also read pooled"):
        d.fit(batches(SOURCE, 8, training=True, augment=AUGMENT, cache=filled(tmp_path, teacher)), verbose=0)


def test_a_teacher_in_another_dtype(tmp_path, teacher):
    full, half = (filled(tmp_path, teacher, teacher_dtype=dtype).read(0, tf.range(N)) for dtype in (None, "bfloat16"))
    np.testing.assert_allclose(half["logits"], full["logits"], atol=0.2)
    assert np.abs(half["logits"] - full["logits"]).max() > 1e-3


@pytest.mark.slow
def test_another_process_finds_the_same_cache(tmp_path, teacher):
    teacher.save(tmp_path / "teacher.keras")
    SCRIPT = """
import sys, keras, numpy as np
sys.path.insert(0, sys.argv[2])
from tests.distillation.test_teacher_cache import views
from kd_keras import TeacherCache
cache = TeacherCache(sys.argv[1], views(), keras.models.load_model(sys.argv[1] + "/teacher.keras"))
print("images", cache.fill(), cache.folder.name)
"""
    root = pathlib.Path(__file__).parents[2]
    cache = filled(tmp_path, keras.models.load_model(tmp_path / "teacher.keras"))
    command = [sys.executable, "-c", SCRIPT, str(tmp_path), str(root)]
    out = subprocess.run(command, capture_output=True, text=True, env=os.environ, cwd=root, check=True).stdout
    assert out.split("images ")[1].split() == ["0", cache.folder.name]
