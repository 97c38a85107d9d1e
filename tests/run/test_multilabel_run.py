"""A run on data with several labels for each image, from the command line to the int8 file."""

import json

import keras
import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import average_precision_score, f1_score

from kd_keras import data
from kd_keras.export import metadata, tflite
from kd_keras.run import __main__ as run
from tests.conftest import ROOT

SLOW = pytest.mark.slow
FLAGS = [
    f"--flagfile={ROOT / 'experiments' / 'multilabel_digits.flags'}",
    *("--teacher=cnn(filters=(8,), dense=())", "--student=cnn(filters=(4,), dense=())", "--epochs=3"),
    *("--export=int8", "--tracking=none", "--progress=none"),
]


def main(*flags):
    return run.main(["kd_keras", *map(str, flags)])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run") / "pairs"
    assert main(*FLAGS, f"--workdir={workdir}") == 0
    return workdir, {row["stage"]: row for row in json.loads((workdir / "results.json").read_text())}


@SLOW
def test_the_table_has_what_independent_labels_have_and_no_accuracy(finished):
    _, rows = finished
    assert list(rows) == ["teacher", "baseline", "student", "student_int8"]
    for row in rows.values():
        assert row["test_accuracy"] is None and row["accuracy_change"] is None
        assert all(0 < row[name] < 1 for name in ("test_map", "auc", "f1", "f1_micro", "ece"))
        assert 0 <= row["subset_accuracy"] < 1
    assert 0 < rows["student"]["val_map"] < 1 and rows["student_int8"]["val_map"] is None
    low, change, high = (rows["student_int8"][f"map_change{end}"] for end in ("_low", "", "_high"))
    assert low <= change <= high and rows["student_int8"]["float_agreement"] > 0.8


@SLOW
def test_the_int8_files_figures_are_those_of_the_file_at_its_own_thresholds(finished):
    workdir, rows = finished
    file = workdir / "student_int8.tflite"
    test = data.DigitPairs().test
    images, labels = (np.asarray(part) for part in test.read(np.arange(len(test))))
    logits = tflite.load(file).predict(images.astype("float32"))
    row = rows["student_int8"]
    assert row["test_map"] == pytest.approx(average_precision_score(labels, logits), abs=1e-9)
    about = metadata.read(file)
    assert list(about["thresholds"]) == about["class_names"] == list("0123456789")
    assert "sigmoid" in about["output"]["meaning"]
    decided = 1 / (1 + np.exp(-np.float64(logits))) >= list(about["thresholds"].values())
    assert row["f1"] == pytest.approx(f1_score(labels, decided, average="macro", zero_division=0), abs=1e-9)
    assert row["subset_accuracy"] == pytest.approx((decided == labels).all(axis=1).mean())


@SLOW
def test_the_best_epoch_is_that_of_the_validation_map(finished):
    workdir, rows = finished
    val = data.DigitPairs().val
    images, labels = (np.asarray(part) for part in val.read(np.arange(len(val))))
    for name in ("teacher", "baseline", "student"):
        logits = keras.models.load_model(workdir / f"{name}.keras").predict(images.astype("float32"), verbose=0)
        assert rows[name]["val_map"] == pytest.approx(average_precision_score(labels, logits), abs=1e-6)
        (record,) = (
            json.loads(path.read_text())
            for path in (workdir / "store").glob("*/*/record.json")
            if json.loads(path.read_text())["stage"] == name
        )
        assert max(record["series"]["val_map"]) == pytest.approx(rows[name]["val_map"], abs=2e-3)


@SLOW
def test_figures_are_by_label(finished):
    workdir, rows = finished
    report = json.loads((workdir / "student_report.json").read_text())
    assert list(report) == list("0123456789")
    assert np.mean([row["average_precision"] for row in report.values()]) == pytest.approx(rows["student"]["test_map"])
    assert (workdir / "student_report.png").stat().st_size > 5000 and (workdir / "curves.png").exists()
    assert not list(workdir.glob("*_confusion.*"))


@SLOW
def test_the_report_is_by_map_and_says_what_it_does_not_show(finished):
    workdir, rows = finished
    page = (workdir / "report.html").read_text(encoding="utf-8")
    gain = abs(100 * (rows["student"]["test_map"] - rows["baseline"]["test_map"]))
    assert f"{gain:.2f} points of test mAP" in page and "average precision, student minus baseline" in page
    assert page.count("these images have several labels") == 3 and not (workdir / "predictions.npz").exists()


@SLOW
def test_baseline_and_teacher_learn_by_bce(finished):
    workdir, _ = finished
    series = {}
    for path in (workdir / "store").glob("*/*/record.json"):
        record = json.loads(path.read_text())
        series[record["stage"]] = record.get("series", {})
    assert all("bce" in series[name] for name in ("teacher", "baseline", "student"))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--loss=ce() + kd()"], "--loss has ce, and --data=digit_pairs() has several labels for an image: take bce"),
        (["--baseline_loss=ce(label_smoothing=0.1)"], "--baseline_loss has ce, and"),
        (["--data=digits()"], "--loss has bce, and --data=digits() has one class for each image: take ce, kd"),
        (["--cache_views=1", "--cache_top_k=3"], "--cache_top_k=3 keeps the classes that a softmax"),
        (["--teacher_stop_at_val_accuracy=0.9"], "--teacher_stop_at_val_accuracy: several labels"),
    ],
)
def test_what_does_not_go_together_is_refused_before_training(tmp_path, capsys, flags, message):
    assert main(*FLAGS, *flags, f"--workdir={tmp_path / 'run'}") == 2
    assert message in capsys.readouterr().err
    assert not list((tmp_path / "run").glob("store/*/*"))


@SLOW
@pytest.mark.parametrize(
    "flags",
    [
        ["--cache_views=1", "--augment=none"],
        ["--teacher=cnn(filters=(8,)) + cnn(filters=(6,))", "--scheme=ensemble(combine='probabilities')"],
        ["--scheme=mutual(peers=cnn(filters=(5,), dense=()))", "--teacher=none"],
        ["--scheme=self_distillation()", "--student=cnn(filters=(4, 8), dense=())", "--teacher=none"],
        ["--loss=bce() + hint(weight=0.1) + sp(weight=1.0)"],
        ["--augment=mixup(alpha=1.0)", "--compress=qat()"],
        ["--train_examples=100"],
    ],
)
def test_other_parts_of_a_run_take_independent_labels(tmp_path, flags):
    assert main(*FLAGS, "--epochs=1", *flags, f"--workdir={tmp_path / 'run'}") == 0
    rows = json.loads((tmp_path / "run" / "results.json").read_text())
    assert all(0 < row["test_map"] <= 1 for row in rows)


@pytest.fixture(scope="module")
def stripes(tmp_path_factory):
    """A folder of images with a bright column for each of three labels, its table, and what tells a label's column."""
    root, labels = tmp_path_factory.mktemp("stripes"), np.random.default_rng(0).integers(0, 2, (80, 3))
    lines = ["file,left,middle,right"]
    for number, row in enumerate(labels):
        image = np.full((8, 8), 60, np.uint8)
        image[:, [1, 4, 6]] += 120 * row.astype(np.uint8)
        Image.fromarray(image).save(root / f"{number}.png")
        lines.append(",".join([f"{number}.png", *map(str, row)]))
    (root / "labels.csv").write_text("\n".join(lines))
    kernel = np.zeros((8, 8, 3), "float32")
    kernel[:, [1, 4, 6], [0, 1, 2]] = 0.01
    return f"folder(path='{root}', labels='labels.csv', channels=1, test_fraction=0.3)", kernel.reshape(64, 3)


def teacher_of(kernel, activation, path):
    model = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(3, activation)])
    model.layers[-1].set_weights([kernel, np.full(3, -9.6, "float32")])
    model.save(path)
    return f"--teacher=saved(path='{path}')"


@SLOW
def test_a_folder_with_a_table_and_a_teacher_of_sigmoids(stripes, tmp_path):
    source, kernel = stripes
    teacher = teacher_of(kernel, "sigmoid", tmp_path / "teacher.keras")
    assert main(*FLAGS, f"--data={source}", teacher, "--augment=none", f"--workdir={tmp_path / 'run'}") == 0
    rows = json.loads((tmp_path / "run" / "results.json").read_text())
    assert rows[0]["stage"] == "teacher" and rows[0]["test_map"] == 1 and rows[0]["subset_accuracy"] == 1
    assert metadata.read(tmp_path / "run" / "student_int8.tflite")["class_names"] == ["left", "middle", "right"]


@SLOW
def test_a_teacher_with_its_labels_in_another_order_is_refused(stripes, tmp_path, capsys):
    source, kernel = stripes
    teacher = teacher_of(kernel[:, [1, 2, 0]], "sigmoid", tmp_path / "teacher.keras")
    assert main(*FLAGS, f"--data={source}", teacher, "--augment=none", f"--workdir={tmp_path / 'run'}") == 2
    assert "but of 1.000 with its labels renamed: its label order is not the data's" in capsys.readouterr().err


@SLOW
def test_a_teacher_of_one_class_for_each_image_is_refused(stripes, tmp_path, capsys):
    source, kernel = stripes
    teacher = teacher_of(kernel, "softmax", tmp_path / "teacher.keras")
    assert main(*FLAGS, f"--data={source}", teacher, "--augment=none", f"--workdir={tmp_path / 'run'}") == 2
    assert "binary_kd is for independent labels" in (error := capsys.readouterr().err)
    assert "the teacher's output is that of one class for each image" in error
