"""Outputs of a teacher that were made elsewhere: from arrays and files, in every form of batch, or refused."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from kd_keras import Distiller, losses, teacher_outputs
from kd_keras.errors import InputError

N, K, T = 12, 3, 2.0
RNG = np.random.default_rng(0)
X = RNG.random((N, 4, 4, 1)).astype("float32")
Y = (np.arange(N) % K).astype("int32")
Z = RNG.normal(0, 2, (N, K)).astype("float32")
NAMES = [f"image {i}.png" for i in RNG.permutation(N)]


def student(seed=1):
    init = keras.initializers.GlorotUniform(seed=seed)
    return keras.Sequential(
        [keras.Input((4, 4, 1)), keras.layers.Flatten(), keras.layers.Dense(K, kernel_initializer=init)]
    )


def compiled(teacher=None):
    d = Distiller(student=student(), teacher=teacher, losses=[losses.KD(temperature=T)])
    d.compile(keras.optimizers.SGD(0.0))
    return d


def log_softmax(z):
    z = np.asarray(z, np.float64)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def expected(z_t=Z):
    s, t = (log_softmax(np.asarray(z) / T) for z in (student()(X), z_t))
    return T**2 * (np.exp(t) * (t - s)).sum(-1).mean()


def slices(**more):
    return tf.data.Dataset.from_tensor_slices({"image": X, "label": Y, "index": np.arange(N), **more})


def table(path, values=Z, columns=("a", "b", "c"), **first):
    import pyarrow
    from pyarrow import csv, parquet

    columns = {**first, **{name: values[:, i] for i, name in enumerate(columns)}}
    written = pyarrow.table({name: np.asarray(column) for name, column in columns.items()})
    (csv.write_csv if path.suffix == ".csv" else parquet.write_table)(written, path)
    return path


@pytest.fixture(params=["array", "npy", "csv", "parquet"])
def source(request, tmp_path):
    if request.param == "array":
        return Z
    path = tmp_path / f"z.{request.param}"
    if request.param == "npy":
        np.save(path, Z)
        return path
    order = RNG.permutation(N)
    return table(path, Z[order], index=np.arange(N)[order])


def test_each_sample_gets_its_row_in_any_order(source):
    outputs = teacher_outputs(source, classes=K, samples=N)
    assert outputs.key == "index" and len(outputs) == N
    np.testing.assert_allclose(outputs[5], Z[5], rtol=1e-6)
    data = outputs.add_to(slices().shuffle(N, seed=1)).batch(4)
    assert compiled().fit(data, verbose=0).history["kd"][0] == pytest.approx(expected(), rel=1e-4)
    batched = outputs.add_to(slices().shuffle(N, seed=2).batch(5).map(lambda b: (b, b["label"])))
    assert compiled().fit(batched, verbose=0).history["kd"][0] == pytest.approx(expected(), rel=1e-4)


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_by_file_name(ending, tmp_path):
    order = RNG.permutation(N)
    path = table(tmp_path / f"z.{ending}", Z[order], file_name=np.array(NAMES)[order])
    outputs = teacher_outputs(path, samples=NAMES)
    np.testing.assert_allclose(outputs[NAMES[2]], Z[2], rtol=1e-6)
    data = outputs.add_to(slices(file_name=NAMES).shuffle(N, seed=1).batch(4))
    assert compiled().fit(data, verbose=0).history["kd"][0] == pytest.approx(expected(), rel=1e-4)


def test_probabilities_are_taken_for_what_they_are():
    p = np.exp(log_softmax(Z))
    data = teacher_outputs(p).add_to(slices().batch(4))
    assert compiled().fit(data, verbose=0).history["kd"][0] == pytest.approx(expected(), rel=1e-4)


def test_columns_are_chosen_by_the_names_of_classes(tmp_path):
    path = table(tmp_path / "z.csv", Z[:, [2, 0, 1]], ("c", "a", "b"), index=np.arange(N))
    np.testing.assert_allclose(teacher_outputs(path, classes=["a", "b", "c"])[3], Z[3], rtol=1e-6)


REFUSED = {
    "length": (lambda f: (Z[:7], {"samples": N}), "7 rows, and there are 12 samples"),
    "classes": (lambda f: (Z, {"classes": 5}), r"shape \(B, 3\), and there are 5 classes"),
    "column": (lambda f: (Z[:, :1], {"classes": K}), r"shape \(B, 1\), and there are 3 classes"),
    "flat": (lambda f: (Z[:, 0], {}), r"shape \(12,\): give \(N, K\)"),
    "nan": (lambda f: (np.where(np.arange(N)[:, None] == 4, np.nan, Z), {}), "the output of sample 4 is not finite"),
    "text": (lambda f: (np.array([["a", "b"]]), {}), "give numbers"),
    "no_file": (lambda f: (f / "z.npy", {}), "there is no such file"),
    "no_key": (lambda f: (table(f / "z.csv"), {}), "has to have a column index or file_name"),
    "two_keys": (lambda f: (table(f / "z.csv", index=range(N), file_name=NAMES), {}), "said by key="),
    "twice": (lambda f: (table(f / "z.csv", index=[0] * N), {}), "1 samples have several rows, such as 0"),
    "order": (lambda f: (table(f / "z.csv", Z, ("z10", "z2", "z9"), index=range(N)), {}), "in the order z10, z2, z9"),
    "class": (lambda f: (table(f / "z.csv", index=range(N)), {"classes": ["a", "b", "dog"]}), "lacks a column .*dog"),
    "missing": (lambda f: (table(f / "z.csv", Z, index=range(1, N + 1)), {"samples": N}), "no row for 1 samples"),
    "not_numbers": (lambda f: (table(f / "z.csv", Z, index=range(N), split=["train"] * N), {}), "'split' holds no num"),
    "ending": (
        lambda f: (table(f / "z.csv", index=range(N)).rename(f / "z.txt"), {}),
        "give an .npy, .csv or .parquet",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused_in_one_line(case, tmp_path):
    make, message = REFUSED[case]
    source, options = make(tmp_path)
    with pytest.raises(InputError, match=message) as error:
        teacher_outputs(source, **options)
    assert "\n" not in str(error.value)


def test_batches_without_the_key_and_samples_without_a_row_are_refused():
    with pytest.raises(InputError, match="keyed by index, and the data set has no field 'index'"):
        teacher_outputs(Z).add_to(tf.data.Dataset.from_tensor_slices((X, Y)))
    few = teacher_outputs(Z[:10]).add_to(slices().batch(4))
    with pytest.raises(InputError, match=r"^a sample of the data set has no row among the 10 outputs of the teacher"):
        compiled().fit(few, verbose=0)


# ---- the forms of batches ----


class Batches(keras.utils.PyDataset):
    def __init__(self, whole, **kwargs):
        super().__init__(**kwargs)
        self.whole = whole

    def __len__(self):
        return 3

    def __getitem__(self, i):
        return {name: value[4 * i : 4 * i + 4] for name, value in self.whole.items()}


def endless(whole):
    while True:
        for i in range(3):
            yield Batches(whole)[i]


SHAPES = [(N, K), (N, 1, 1, K), (N, K, 1)]
FORMS = {
    "arrays": lambda whole: ({"batch_size": 4}, whole),
    "dataset": lambda whole: ({}, tf.data.Dataset.from_tensor_slices(whole).batch(4)),
    "pydataset": lambda whole: ({}, Batches(whole)),
    "generator": lambda whole: ({"steps_per_epoch": 3}, endless(whole)),
}


@pytest.mark.parametrize("form, shape", [*((form, (N, 1, K)) for form in FORMS), *(("arrays", s) for s in SHAPES)])
def test_logits_in_every_form_of_batch(form, shape):
    options, data = FORMS[form]({"image": X, "label": Y, "teacher": Z.reshape(shape)})
    assert compiled().fit(data, verbose=0, **options).history["kd"][0] == pytest.approx(expected(), rel=1e-4)


@pytest.mark.parametrize("values", [Z[:, :1], Z[:, None, :1], np.tile(Z, 2), Z[:, :, None] * np.ones(K)])
@pytest.mark.parametrize("form", FORMS)
def test_logits_of_another_shape_are_refused_in_every_form(form, values):
    options, data = FORMS[form]({"image": X, "label": Y, "teacher": values.astype("float32")})
    with pytest.raises(InputError, match="the teacher's logits in the batch have the shape"):
        compiled().fit(data, verbose=0, **options)


def test_one_row_for_many_images_is_refused():
    class OneRow(Batches):
        def __getitem__(self, i):
            return {**super().__getitem__(i), "teacher": Z[i : i + 1]}

    with pytest.raises(InputError, match="4 images and 1 of the teacher's logits"):
        compiled().fit(OneRow({"image": X, "label": Y}), verbose=0)
    with pytest.raises(InputError, match=r"different lengths: .*'teacher': 5"):
        compiled().fit({"image": X, "label": Y, "teacher": Z[:5]}, verbose=0)


def test_outputs_of_another_order_are_warned_of_where_the_teacher_is_there(caplog):
    teacher = student(5)
    teacher.layers[-1].kernel.assign(20 * teacher.layers[-1].kernel)
    z_t = np.asarray(teacher(X))
    for values, told in ((z_t, False), (z_t.astype("float16"), False), (z_t[::-1], True)):
        caplog.clear()
        compiled(teacher).fit({"image": X, "label": Y, "teacher": values}, batch_size=N, shuffle=False, verbose=0)
        assert ("differ from those in the batches" in caplog.text) == told
