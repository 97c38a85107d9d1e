"""``--compress``: its stages, what they leave, what is measured of them, and what is refused."""

import json

import keras
import numpy as np
import pytest

from kd_keras.errors import InputError
from kd_keras.export import metadata
from kd_keras.run import __main__ as run
from kd_keras.run import compressed, config, training
from tests.schemes.tiny import TINY, checked

STUDENT = "--student=cnn(filters=(4, 6), dense=())"
TEACHER = "--teacher=cnn(filters=(4,), dense=())"
PRUNE = "prune(sparsity=0.5, frequency=1)"


def read(path):
    return json.loads(path.read_text())


def trained(tmp_path, *flags):
    """What ``compressed.run`` returns, of a run that is not measured."""
    scheme, experiment = checked(tmp_path, STUDENT, *flags)
    compressed.check(experiment)
    config.claim_workdir(experiment.config)
    experiment.begin()
    models, exported, _ = scheme.run(experiment)
    return compressed.run(experiment, models, exported[0])


def kernels(folder, stage):
    model = keras.models.load_model(folder / f"{stage}.keras", compile=False)
    return [model.get_layer(one).get_weights()[0] for one in ("stage1_conv1", "stage2_conv1", "logits")]


def run_whole(folder, *flags):
    given = [STUDENT, TEACHER, "--epochs=6", "--compress_epochs=2", "--max_accuracy_drop=0.0"]
    assert run.main(["kd_keras", *TINY, *given, *flags, f"--workdir={folder}"]) == 0
    return folder


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    return run_whole(tmp_path_factory.mktemp("done") / "w", f"--compress={PRUNE}; {PRUNE} + qat()", "--nobaseline")


@pytest.mark.slow
def test_what_is_compressed_beside_has_no_teacher(tmp_path):
    folder = run_whole(tmp_path / "w", "--compress=qat()", "--compress_controls=untaught,baseline")
    records = {of: read(folder / "state" / f"qat-{of}.json") for of in ("student", "untaught", "baseline")}
    taught = {of: record["taught_by"] for of, record in records.items()}
    assert taught == {"student": "teacher", "untaught": None, "baseline": None}
    assert {of for of, record in records.items() if "kd" in record["series"]} == {"student"}
    rows = {row["role"]: row for row in read(folder / "results.json")}
    for of, untaught in (("student distilled", ""), ("student distilled", ", untaught"), ("student without KD", "")):
        row = rows[f"{of}, qat(){untaught}, TFLite int8"]
        assert row["accuracy_change"] == pytest.approx(row["test_accuracy"] - rows[of]["test_accuracy"], abs=1e-9)


def test_every_way_is_a_stage_and_the_teacher_teaches_on(done):
    for stage, epochs, taught_by in (
        ("prune-student", 2, "teacher"),
        ("prune-qat-student", 2, "teacher"),
    ):
        record = read(done / "state" / f"{stage}.json")
        assert (len(record["series"]["loss"]), record["taught_by"]) == (epochs, taught_by), stage
        assert ("kd" in record["series"]) == (taught_by is not None)
        assert not (done / "state" / f"{stage}.npz").exists()


def test_what_is_left_are_keras_models_with_the_compressed_weights(done):
    stages = ("student", "prune-student", "prune-qat-student")
    for before, pruned, quantised in zip(*(kernels(done, stage) for stage in stages), strict=True):
        assert abs(np.mean(pruned == 0) - 0.5) <= 1 / pruned.size and 0 < np.abs(before - pruned).max() < 1
        assert np.mean(quantised == 0) >= 0.49 and 0 < np.abs(pruned - quantised).max() < 1


@pytest.mark.slow
def test_a_chain_of_all_ways(tmp_path):
    folder = run_whole(tmp_path / "w", f"--compress={PRUNE} + cluster(clusters=4) + qat()", "--nobaseline")
    for kernel in kernels(folder, "prune-cluster-student"):
        assert np.mean(kernel == 0) >= 0.49 and len(np.unique(kernel)) <= 4
    assert (folder / "prune-cluster-qat-student_int8.tflite").exists()


def test_their_rows_say_what_is_lost(done):
    rows = {row["role"]: row for row in read(done / "results.json")}
    of = "student distilled"
    ours = [f"{of}, {PRUNE}", f"{of}, {PRUNE}, TFLite int8", f"{of}, {PRUNE} + qat(), TFLite int8"]
    assert [role for role in rows if role.startswith(f"{of}, ")] == ours
    for role in ours:
        row = rows[role]
        change = row["test_accuracy"] - rows[of]["test_accuracy"]
        assert row["accuracy_change"] == pytest.approx(change, abs=1e-9)
        assert row["accuracy_change_low"] <= change <= row["accuracy_change_high"]
        assert row["marked"] == (change < 0)
        if "TFLite" in role:
            assert row["zip_bytes"] < row["bytes"] and row["latency_all_threads_ms_median"] > 0
    marked = [row for row in rows.values() if row["marked"]]
    notes = read(done / "state" / "measured.json")["notes"]
    assert any(note.startswith("‡ less accurate than the Keras student") for note in notes) == bool(marked)


def test_the_files_say_what_they_are(done):
    record = metadata.read(done / "prune-qat-student_int8.tflite")
    assert record["class_names"] == [str(n) for n in range(10)] and "CONV_2D" in record["operators"]
    assert record["architecture"].endswith(" + qat()") and record["input"]["shape"] == [1, 8, 8, 1]


@pytest.mark.slow
def test_killed_in_a_way_it_goes_on_as_if_it_had_not_been(tmp_path, monkeypatch):
    # A projector of the loss's and dropout's masks go on too.
    flags = [
        *(TEACHER, "--nobaseline", "--student=cnn(filters=(4, 6), dense=(8,), dropout=0.3)"),
        *("--loss=ce() + kd() + hint(weight=0.1, pairs='stage1:stage1')", "--compress_epochs=2"),
        "--compress=prune(sparsity=0.5, frequency=2) + qat()",
    ]
    (whole,) = trained(tmp_path / "whole", *flags)
    begun = []

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch
        if epoch == 1:
            begun.append(epoch)
            if len(begun) in (1, 3):
                raise KeyboardInterrupt

    # In the second epoch of pruning, and, run again, in that of quantisation.
    monkeypatch.setattr(training.StopAtNaN, "on_epoch_begin", on_epoch_begin)
    for stage in ("prune-student", "prune-qat-student"):
        with pytest.raises(KeyboardInterrupt):
            trained(tmp_path, *flags)
        assert (tmp_path / "w" / "state" / f"{stage}.npz").exists()
    (again,) = trained(tmp_path, *flags)
    assert again.trained.series == whole.trained.series
    ours, theirs = (one.trained.path.with_suffix(".npz") for one in (again, whole))
    with np.load(ours) as ours, np.load(theirs) as theirs:
        assert set(ours) == set(theirs) and all(np.array_equal(ours[name], theirs[name]) for name in ours)


def test_a_pruned_student_is_kept_from_an_epoch_in_which_it_is_sparse(tmp_path):
    flags = [TEACHER, "--nobaseline", "--compress=prune(sparsity=0.9, frequency=1, end=0.75)", "--compress_epochs=4"]
    (one,) = trained(tmp_path, *flags)
    assert one.trained.best_epoch == 3 or one.trained.best_epoch == 2
    weights = keras.models.load_model(one.trained.path, compile=False).get_layer("logits").get_weights()[0]
    assert abs(np.mean(weights == 0) - 0.9) <= 1 / weights.size


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--compress=qat() + prune()"], r"each way once, prune\(\) before cluster\(\) before qat\(\)"),
        (["--compress=prune() + prune()"], "each way once"),
        (["--compress=qatt()"], "unknown name 'qatt' in compress: known are cluster, prune, qat"),
        (["--compress=prune(sparsit=0.5)"], "prune has no key 'sparsit'"),
        (["--compress=qat(); "], "empty chain"),
        (["--compress_epochs=3"], "--compress_epochs has no effect without --compress"),
        (
            ["--compress=qat()", "--compress_export=float32"],
            "float32 but qat.. learns for integers: add int8 or int8_io",
        ),
        (["--compress=qat()", "--compress_export=int4"], "unknown name 'int4' in compress_export"),
        (["--compress=qat()", "--compress_controls=baseline", "--nobaseline"], "=baseline but --nobaseline"),
        (["--compress=qat()", "--compress_controls=teacher"], "unknown name 'teacher' in compress_controls"),
        (["--compress=qat(); qat()"], "names a chain twice"),
        (["--compress=qat()", "--compress_export=none"], r"none but qat.. learns for integers: add int8 or int8_io"),
        (["--export_beside=teachers"], "unknown name 'teachers' in export_beside"),
        (["--export_beside=teacher", "--teacher=none"], "=teacher but --teacher=none"),
        (["--export_beside=baseline", "--nobaseline"], "=baseline but --nobaseline"),
        (["--keep_float=logits"], "--keep_float is of the int8 file: add it to --export"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_flags_that_do_not_fit_are_refused(flags, told, tmp_path):
    with pytest.raises(InputError, match=told) as caught:
        read_config = config.read(["kd_keras", *TINY, TEACHER, f"--workdir={tmp_path / 'w'}", *flags])
        compressed.check_chains(read_config)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (
            ["--scheme=mutual(peers=cnn(filters=(3,)))", "--compress=qat()"],
            "there is none for a student to be compressed by",
        ),
        ([TEACHER, "--compress=qat(keep_float='nix')"], "names 'nix', which the student does not have"),
    ],
)
def test_a_student_that_does_not_fit_is_refused_before_training(flags, told, tmp_path):
    _, experiment = checked(tmp_path, *flags)
    with pytest.raises(InputError, match=told):
        compressed.check(experiment)
    assert not (tmp_path / "w").exists()


def test_ranges_that_the_converter_cant_bring_together_are_refused_before_training(tmp_path):
    image = keras.Input((8, 8, 1))
    x = keras.layers.ELU(name="elu")(keras.layers.Conv2D(4, 3, padding="same")(image))
    x = keras.layers.Concatenate()([x, keras.layers.Conv2D(4, 3, padding="same", activation="relu")(x)])
    logits = keras.layers.Dense(10, name="logits")(keras.layers.GlobalAveragePooling2D()(x))
    keras.Model(image, logits).save(tmp_path / "elu.keras")
    given = (TEACHER, f"--student=saved(path='{tmp_path / 'elu.keras'}')")
    _, experiment = checked(tmp_path, *given, "--compress=qat()")
    with pytest.raises(InputError, match=r"operator tfl.concatenation; keep the layers at it in float32, qat\(keep"):
        compressed.check(experiment)
    _, experiment = checked(tmp_path, *given, "--compress=qat(keep_float='elu')")
    compressed.check(experiment)
