"""What a run makes and makes again: settings of the device, damaged files, borrowed models, compression, the table."""

import json
import re
import shutil
import sys

import keras
import numpy as np
import pytest

from kd_keras.data import digits
from kd_keras.distillation import device
from kd_keras.errors import InputError
from kd_keras.export import metadata
from kd_keras.run import __main__ as run
from kd_keras.run import callbacks, hardware
from tests.schemes.tiny import TINY, checked, record, records, stage_of, trained, weights

A, B = "cnn(filters=(4,), dense=())", "cnn(filters=(3,), dense=())"
STUDENT = "--student=cnn(filters=(4, 6), dense=())"
PRUNE = "prune(sparsity=0.5, frequency=1)"


def main(folder, *flags, code=0):
    assert run.main(["kd_keras", *TINY, *flags, f"--workdir={folder}"]) == code
    return folder


def table(workdir):
    return {row["stage"]: row for row in json.loads((workdir / "results.json").read_text())}


def figures(workdir):
    """The table without what a clock or a process measures."""
    return {
        stage: {key: value for key, value in row.items() if not key.startswith(("latency", "memory"))}
        for stage, row in table(workdir).items()
    }


def made(workdir):
    """When each finished stage was written, by kind and key."""
    return {path.parent: path.stat().st_mtime_ns for path in (workdir / "store").glob("*/*/record.json")}


def names(workdir, folders):
    return sorted(json.loads((folder / "record.json").read_text())["stage"] for folder in folders)


def made_again(workdir, before):
    """Names of the stages that are new since `made`."""
    return names(workdir, [folder for folder, time in made(workdir).items() if before.get(folder) != time])


# ---- parts of the user's own code, and files that may run code ----

PARTS = """
import keras

from kd_keras import losses, schedules
from kd_keras.compress import Prune
from kd_keras.data import Digits
from kd_keras.data.augment import SampleOp
from kd_keras.schemes.offline import plan


@keras.saving.register_keras_serializable("own_parts")
class Apart(losses.Loss):
    def call(self, student, teacher, labels):
        return keras.ops.mean(keras.ops.square(student["logits"] - teacher["logits"]), axis=-1)


def network(num_classes, input_shape, units=3):
    inner = [keras.layers.Flatten(), keras.layers.Dense(units), keras.layers.Dense(num_classes)]
    return keras.Sequential([keras.Input(input_shape), *inner])


class Layer(keras.layers.Layer):
    def call(self, x):
        return 2 * x


def unregistered(num_classes, input_shape):
    inner = [Layer(), keras.layers.Flatten(), keras.layers.Dense(num_classes)]
    return keras.Sequential([keras.Input(input_shape), *inner])


class Inverted(SampleOp):
    def __call__(self, images, noise):
        return 255 - images


class Descent(keras.optimizers.SGD):
    pass


class Sparse(Prune):
    pass


def digits(seed=0):
    return Digits(seed=seed)


def falling(start):
    return schedules.cosine(start=start)


def number():
    return 3
"""


@pytest.fixture
def own_parts(tmp_path, monkeypatch):
    """A module in the current folder, which is not on the path, as for a console command."""
    (tmp_path / "own_parts.py").write_text(PARTS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [folder for folder in sys.path if folder not in ("", str(tmp_path))])
    yield tmp_path
    sys.modules.pop("own_parts", None)


@pytest.mark.slow
def test_every_kind_of_part_can_be_of_the_users_own(own_parts):
    flags = {
        "loss": "ce() + own_parts:Apart(weight=0.5)",
        "teacher": "own_parts:network(units=5)",
        "student": "own_parts:network()",
        "data": "own_parts:digits(seed=1)",
        "scheme": "own_parts:plan()",
        "augment": "own_parts:Inverted()",
        "optimizer": "own_parts:Descent(momentum=0)",
        "learning_rate": "own_parts:falling(start=1e-5)",
        "compress": "own_parts:Sparse(sparsity=0.5, frequency=1)",
    }
    folder = main(own_parts / "w", *(f"--{flag}={value}" for flag, value in flags.items()))
    assert {"teacher", "student", "Sparse-student"} <= set(table(folder))
    sparse = keras.models.load_model(folder / "Sparse-student.keras")
    kernels = [weight for weight in sparse.get_weights() if weight.ndim == 2]
    assert all((kernel == 0).mean() == pytest.approx(0.5, abs=0.1) for kernel in kernels)


@pytest.mark.parametrize(
    ("flag", "says"),
    [
        ("--loss=own_parts:number()", "own_parts:number gives int, and Loss is needed"),
        ("--student=own_parts:number()", "own_parts:number has to take num_classes and input_shape"),
        ("--augment=own_parts:number()", "own_parts:number gives int, and SampleOp or BatchOp is needed"),
        ("--data=own_parts:number()", "own_parts:number gives int, and Splits is needed"),
        ("--scheme=own_parts:nothing()", "own_parts has no class or function 'nothing'"),
        ("--student=own_parts:unregistered()", "register_keras_serializable"),
        ("--optimizer=broken_part:f()", "broken_part can't be imported (RuntimeError: no licence)"),
    ],
)
def test_a_part_of_the_users_own_that_is_none(own_parts, capsys, flag, says):
    (own_parts / "broken_part.py").write_text("raise RuntimeError('no licence')")
    main(own_parts / "w", flag, code=2)
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert flag in line and says in line


@pytest.mark.slow
def test_a_model_whose_code_is_allowed_teaches_and_is_trained(tmp_path, capsys):
    image = keras.Input((8, 8, 1))
    x = keras.layers.Lambda(lambda pixels: pixels / 255)(image)
    model = keras.Model(image, keras.layers.Dense(10)(keras.layers.Flatten()(x)))
    # One that only guesses would stop the run.
    train = digits.Digits().train
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(train.read(range(len(train)))[0], train.labels, epochs=5, verbose=0)
    model.save(file := tmp_path / "code.keras")
    flags = [f"--teacher=saved(path='{file}')", f"--student=saved(path='{file}')", "--teacher_epochs=0"]
    main(tmp_path / "w", *flags, code=2)
    assert f"--allow_code_in={file}" in capsys.readouterr().err
    main(tmp_path / "w", *flags, "--allow_code_in=elsewhere.keras", code=2)
    assert "elsewhere.keras is no file that a model of this run is read from" in capsys.readouterr().err
    folder = main(tmp_path / "w", *flags, f"--allow_code_in={file}")
    assert {"teacher", "student"} <= set(table(folder))


# ---- before training ----


@pytest.mark.parametrize(
    ("flag", "key"),
    [
        ("--student=cnn(filtres=(4,))", "filtres"),
        ("--teacher=cnn() + resnet(deep=8)", "deep"),
        ("--loss=ce() + kd(temp=4)", "temp"),
        ("--teacher_loss=ce(smoothing=0.1)", "smoothing"),
        ("--baseline_loss=ce(smoothing=0.1)", "smoothing"),
    ],
)
def test_unknown_keys_are_refused_before_the_data_are_read(flag, key, tmp_path):
    with pytest.raises(InputError, match=f"has no key '{key}'"):
        checked(tmp_path, "--data=folder(path='no/such')", flag)


def distiller(runner, name="student"):
    stage, facts = stage_of(runner, name), runner.session.facts
    return runner.trainer.distiller(stage, facts.model(stage.model), None, None)


def test_compile_settings_are_the_devices_unless_named(tmp_path, monkeypatch):
    alone = ["--teacher=none", "--loss=ce()", "--nobaseline"]
    plain = distiller(checked(tmp_path, *alone))
    assert (plain.jit_compile, plain.steps_per_execution) == (False, 1)
    # 100 images are 2 batches of 64.
    named = distiller(checked(tmp_path, *alone, "--jit_compile=true", "--steps_per_execution=2"))
    assert (named.jit_compile, named.steps_per_execution) == (True, 2)
    with pytest.raises(InputError, match="--steps_per_execution=3 does not divide the 2 steps of an epoch: give 1, 2"):
        checked(tmp_path, *alone, "--steps_per_execution=3")
    monkeypatch.setattr(hardware, "jit_compile", lambda strategy: True)
    monkeypatch.setattr(hardware, "precision", lambda: "mixed_bfloat16")
    chosen = distiller(checked(tmp_path, *alone, "--precision=auto"))
    assert chosen.jit_compile and chosen.student.get_layer("pooled").compute_dtype == "bfloat16"
    assert chosen.student.output.dtype == "float32"


@pytest.mark.parametrize(
    ("rates", "is_told"), [((0.0, 0.01), True), pytest.param((0.01, 0.0), False, marks=pytest.mark.slow)]
)
def test_a_teacher_that_does_not_beat_the_baseline_is_told_of_before_a_student_is_trained(
    rates, is_told, tmp_path, caplog
):
    main(tmp_path, f"--teacher={A}", f"--teacher_learning_rate={rates[0]}", f"--learning_rate={rates[1]}", "--epochs=4")
    said = [message for message in caplog.messages if "does not beat the baseline on validation data" in message]
    assert len(said) == is_told
    assert ("so the distilled row says nothing" in (tmp_path / "results.txt").read_text()) == is_told


def test_a_teacher_has_settings_of_its_own(tmp_path):
    flags = [f"--teacher={A}", "--teacher_seed=4", "--teacher_batch_size=16", "--teacher_augment=flip()"]
    runner = checked(tmp_path, *flags, "--teacher_precision=mixed_bfloat16", "--seed=1")
    teacher, baseline = (stage_of(runner, name) for name in ("teacher", "baseline"))
    assert (teacher.seed, teacher.model.seed, teacher.samples.batch_size) == (4, 4, 16)
    assert [part.name for part in teacher.samples.augment] == ["flip"] and teacher.model.precision == "mixed_bfloat16"
    assert (baseline.seed, baseline.samples.batch_size, baseline.samples.augment) == (1, 64, ())
    # --train_examples are drawn by each one's seed.
    assert teacher.samples.train != baseline.samples.train


# ---- made once, made again ----


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "w"
    return main(folder, f"--teacher={A}", "--export=float32,int8")


@pytest.fixture
def copy(finished, tmp_path):
    """A finished run that may be damaged; moving it is no reason to make anything again."""
    return shutil.copytree(finished, tmp_path / "moved")


GIVEN = [f"--teacher={A}", "--export=float32,int8"]


@pytest.mark.slow
def test_a_moved_run_is_finished(copy):
    before = made(copy)
    assert made_again(main(copy, *GIVEN), before) == []


@pytest.mark.slow
def test_another_file_is_one_file(copy):
    before = made(copy)
    main(copy, f"--teacher={A}", "--export=float32,int8,float16")
    assert made_again(copy, before) == [
        *("student_float16", "student_float16-latency", "student_float16-quality"),
    ]
    assert list(table(copy)) == [
        *("teacher", "baseline", "student", "student_float32", "student_int8", "student_float16"),
    ]
    assert main(copy, *GIVEN, "--max_accuracy_drop=0.5") and "student_float16" not in table(copy)


@pytest.mark.slow
def test_the_layer_report_is_a_file_of_the_workdir(copy):
    before = made(copy)
    main(copy, *GIVEN, "--layer_report")
    assert made_again(copy, before) == ["student_int8_layers"]
    assert "logits" in (copy / "student_int8_layers.csv").read_text()


@pytest.mark.parametrize(
    ("file", "damage", "again"),
    [
        ("student.keras", "delete", []),
        ("teacher.keras", "zero", []),
        ("student_int8.tflite", "truncate", []),
        ("store/train/student/model.keras", "delete", ["student"]),
        ("store/train/teacher/model.keras", "zero", ["teacher"]),
        ("store/export/student_int8/model.tflite", "truncate", ["student_int8"]),
    ],
)
def test_a_damaged_file_is_made_again_from_what_is_whole(file, damage, again, copy, finished):
    if file.startswith("store"):
        _, kind, stage, name = file.split("/")
        (path,) = (
            path.parent / name
            for path in (copy / "store" / kind).glob("*/record.json")
            if json.loads(path.read_text())["stage"] == stage
        )
    else:
        path = copy / file
    size = path.stat().st_size
    {
        "delete": path.unlink,
        "zero": lambda: path.write_bytes(bytes(size)),
        "truncate": lambda: path.write_bytes(path.read_bytes()[: size // 2]),
    }[damage]()
    before = made(copy)
    main(copy, *GIVEN)
    assert made_again(copy, before) == again
    assert figures(copy) == figures(finished) and path.stat().st_size == size
    for name in ("teacher", "baseline", "student"):
        ours, theirs = (keras.models.load_model(folder / f"{name}.keras") for folder in (copy, finished))
        assert all(np.array_equal(a, b) for a, b in zip(ours.get_weights(), theirs.get_weights(), strict=True))


@pytest.mark.slow
def test_the_same_stage_under_two_names_is_made_once(tmp_path):
    flags = [f"--teacher={A}", f"--student={A}", "--nobaseline", "--loss=ce() + kd()"]
    main(tmp_path / "a", *flags, "--baseline")
    assert names(tmp_path / "a", made(tmp_path / "a")).count("baseline") == 0
    assert set(table(tmp_path / "a")) == {"teacher", "baseline", "student"}


@pytest.mark.slow
def test_runs_share_a_store(tmp_path):
    flags = [f"--teacher={A}", f"--store={tmp_path / 'store'}"]
    main(tmp_path / "a", *flags)
    main(tmp_path / "b", *flags, "--loss=ce() + kd(temperature=2.0)")
    trainings = [json.loads(p.read_text())["stage"] for p in (tmp_path / "store").glob("train/*/record.json")]
    assert sorted(trainings) == ["baseline", "student", "student", "teacher"]
    assert table(tmp_path / "a")["teacher"] == table(tmp_path / "b")["teacher"]


# ---- taken from elsewhere ----


def test_a_teacher_and_a_baseline_of_other_runs(finished, tmp_path, capsys):
    lent = [f"--teacher={A}", f"--teacher_from={finished}", f"--baseline_from={finished}"]
    main(tmp_path / "w", *lent, "--loss=ce() + kd(temperature=2.0)")
    assert f"baseline taken from {finished}" in capsys.readouterr().out
    assert names(tmp_path / "w", (tmp_path / "w" / "store" / "train").iterdir()) == ["baseline", "student"]
    ours, theirs = figures(tmp_path / "w"), figures(finished)
    assert ours["teacher"] == theirs["teacher"] and ours["baseline"] == theirs["baseline"]
    # A finished run needs the lender no more for what it has.
    for name in ("teacher", "student"):
        assert (tmp_path / "w" / f"{name}.keras").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([f"--teacher={B}", "--teacher_from={0}"], r"holds no finished teacher cnn\(filters=\(3,\)"),
        ([f"--teacher={A}", "--teacher_from={0}", "--data=digits(val_fraction=0.3)"], "has other data .another val"),
        ([f"--teacher={A} + {A}", "--scheme=ensemble()", "--teacher_from={0},{0}"], "the same teacher twice"),
        ([f"--teacher={A}", "--teacher_from=no/such"], "holds no run"),
        ([f"--teacher={A}", "--baseline_from=no/such"], "holds no store"),
        ([f"--teacher={A}", "--baseline_from={0}", "--epochs=2"], "holds no finished baseline .*epochs was 1, is 2.:"),
    ],
)
def test_what_another_run_has_not_is_refused(flags, message, finished, tmp_path, capsys):
    main(tmp_path / "w", *(flag.format(finished) for flag in flags), code=2)
    error = capsys.readouterr().err
    assert re.search(message, error) and error.count("\n") == 1
    assert not (tmp_path / "w").exists()


def test_a_baseline_that_is_gone_when_its_turn_comes_is_refused(finished, tmp_path):
    lender = shutil.copytree(finished, tmp_path / "lender")
    runner = checked(tmp_path, f"--teacher={A}", f"--baseline_from={lender}")
    shutil.rmtree(lender / "store" / "train")
    with pytest.raises(InputError, match="holds no finished baseline with these settings and data: train it here"):
        runner.run()


@pytest.mark.slow
def test_an_ensemble_takes_its_teachers_from_runs_of_one_each(finished, tmp_path):
    trained(tmp_path, f"--teacher={B}", "--nobaseline")
    main(tmp_path / "other", f"--teacher={B}", "--nobaseline")
    lent = [f"--teacher={A} + {B}", "--scheme=ensemble()", f"--teacher_from={finished},{tmp_path / 'other'}"]
    main(tmp_path / "w", *lent, "--nobaseline")
    rows = table(tmp_path / "w")
    assert list(rows) == ["teacher1", "teacher2", "ensemble", "student"]
    assert rows["ensemble"]["parameters"] == rows["teacher1"]["parameters"] + rows["teacher2"]["parameters"]
    assert rows["teacher1"]["teacher_agreement"] is None and rows["ensemble"]["teacher_agreement"] is None
    assert "agreement is with the teacher ensemble" in (tmp_path / "w" / "results.txt").read_text()


def test_a_student_from_a_file_is_exported_as_it_is(finished, tmp_path):
    file = finished / "student.keras"
    main(tmp_path / "w", "--teacher=none", "--loss=ce()", f"--student_from={file}", "--export=int8")
    assert list(table(tmp_path / "w")) == ["student", "student_int8"]
    assert not (tmp_path / "w" / "store" / "train").exists()
    assert (
        figures(tmp_path / "w")["student_int8"]["test_accuracy"] == figures(finished)["student_int8"]["test_accuracy"]
    )
    flags = ["--teacher=none", f"--student_from={file}", f"--scheme=mutual(peers={A})"]
    with pytest.raises(InputError, match="trains its own student: leave out --student_from"):
        checked(tmp_path / "x", *flags)


# ---- compression ----


@pytest.fixture(scope="module")
def compressed(tmp_path_factory):
    given = [STUDENT, f"--teacher={A}", "--epochs=6", "--compress_epochs=2", "--max_accuracy_drop=0.0", "--nobaseline"]
    return main(tmp_path_factory.mktemp("c") / "w", *given, f"--compress={PRUNE}; {PRUNE} + qat()")


def kernels(folder, name):
    model = keras.models.load_model(folder / f"{name}.keras", compile=False)
    return [model.get_layer(layer).get_weights()[0] for layer in ("stage1_conv1", "stage2_conv1", "logits")]


@pytest.mark.slow
def test_every_compression_step_is_a_stage_and_pipelines_share_their_beginnings(compressed):
    stages = names(compressed, (compressed / "store" / "train").iterdir())
    assert stages == ["prune-qat-student-training", "prune-student-training", "student", "teacher"]


@pytest.mark.slow
def test_the_compressed_weights_are_in_keras_models(compressed):
    stages = ("student", "prune-student", "prune-qat-student")
    for before, pruned, quantised in zip(*(kernels(compressed, stage) for stage in stages), strict=True):
        assert abs(np.mean(pruned == 0) - 0.5) <= 1 / pruned.size and 0 < np.abs(before - pruned).max() < 1
        assert np.mean(quantised == 0) >= 0.49 and 0 < np.abs(pruned - quantised).max() < 1


@pytest.mark.slow
def test_rows_say_what_compression_loses(compressed):
    rows = table(compressed)
    assert list(rows)[2:] == ["prune-student", "prune-student_int8", "prune-qat-student_int8"]
    for stage in list(rows)[2:]:
        row, change = rows[stage], rows[stage]["test_accuracy"] - rows["student"]["test_accuracy"]
        assert row["role"].startswith(f"student distilled, {PRUNE}")
        assert row["accuracy_change"] == pytest.approx(change, abs=1e-9) and row["marked"] == (change < 0)
        assert row["accuracy_change_low"] <= change <= row["accuracy_change_high"]
    assert rows["prune-student_int8"]["zip_bytes"] < rows["prune-student_int8"]["bytes"]
    assert ("‡ less accurate" in (compressed / "results.txt").read_text()) == any(r["marked"] for r in rows.values())
    contract = metadata.read(compressed / "prune-qat-student_int8.tflite")
    assert contract["class_names"] == [str(n) for n in range(10)] and contract["architecture"].endswith(" + qat()")


@pytest.mark.slow
def test_controls_have_no_teacher(tmp_path):
    flags = [STUDENT, f"--teacher={A}", "--compress=qat()", "--compress_controls=untaught,baseline"]
    runner = trained(tmp_path, *flags)
    left = records(runner)
    taught = {name: "kd" in left[f"qat-{name}-training"]["series"] for name in ("student", "untaught", "baseline")}
    assert taught == {"student": True, "untaught": False, "baseline": False}


@pytest.mark.slow
def test_killed_in_a_compression_step_it_goes_on_as_if_it_had_not_been(tmp_path, monkeypatch):
    # A projector of the loss's and dropout's masks go on too.
    flags = [
        *(f"--teacher={A}", "--nobaseline", "--student=cnn(filters=(4, 6), dense=(8,), dropout=0.3)"),
        *("--loss=ce() + kd() + hint(weight=0.1, pairs='stage1:stage1')", "--compress_epochs=2"),
        "--compress=prune(sparsity=0.5, frequency=2) + qat()",
    ]
    whole = trained(tmp_path / "whole", *flags)
    begun = []

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch
        if epoch == 1:
            begun.append(epoch)
            if len(begun) in (1, 3):
                raise KeyboardInterrupt

    # In the second epoch of pruning, and, run again, in that of quantisation.
    monkeypatch.setattr(callbacks.StopAtNaN, "on_epoch_begin", on_epoch_begin)
    for name in ("prune-student-training", "prune-qat-student-training"):
        runner = checked(tmp_path, *flags)
        with pytest.raises(KeyboardInterrupt):
            runner.run()
        assert runner.store.checkpoint(stage_of(runner, name)).exists()
    again = trained(tmp_path, *flags)
    for name in ("prune-student-training", "prune-qat-student-training"):
        assert record(again, name)["series"] == record(whole, name)["series"]
        assert record(again, name)["content"] == record(whole, name)["content"]
    for name in ("prune-student", "prune-qat-student"):
        assert all(map(np.array_equal, weights(again, name), weights(whole, name)))


@pytest.mark.slow
def test_a_pruned_student_is_kept_from_an_epoch_in_which_it_is_sparse(tmp_path):
    flags = [f"--teacher={A}", "--nobaseline", "--compress=prune(sparsity=0.9, frequency=1, end=0.75)"]
    runner = trained(tmp_path, *flags, STUDENT, "--compress_epochs=4")
    assert record(runner, "prune-student-training")["best_epoch"] in (2, 3)
    kernel = runner.load(stage_of(runner, "prune-student")).get_layer("logits").get_weights()[0]
    assert abs(np.mean(kernel == 0) - 0.9) <= 1 / kernel.size


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--compress=qat() + prune()"], r"each step once, prune\(\) before cluster\(\) before qat\(\)"),
        (["--compress=prune() + prune()"], "each step once"),
        (["--compress=prune(sparsit=0.5)"], "prune has no key 'sparsit'"),
        (
            ["--compress=qat()", "--compress_export=float32"],
            "float32 but qat.. trains for integers: add int8 or int8_io",
        ),
        (["--compress=qat()", "--compress_export=none"], r"none but qat.. trains for integers: add int8 or int8_io"),
        (["--teacher=none", f"--scheme=mutual(peers={B})", "--compress=qat()"], "reads a teacher, and there is none"),
        (["--compress=qat(keep_float='nix')"], "'nix'"),
        (["--export=int8", "--keep_float=nix"], "--keep_float names 'nix'"),
    ],
)
def test_what_can_not_be_compressed_is_refused_before_training(flags, message, tmp_path):
    with pytest.raises(InputError, match=message) as error:
        checked(tmp_path, STUDENT, f"--teacher={A}", *flags)
    assert "\n" not in str(error.value) and not (tmp_path / "w").exists()


@pytest.mark.slow
def test_ranges_that_the_converter_cant_bring_together_are_refused_before_training(tmp_path):
    image = keras.Input((8, 8, 1))
    x = keras.layers.ELU(name="elu")(keras.layers.Conv2D(4, 3, padding="same")(image))
    x = keras.layers.Concatenate()([x, keras.layers.Conv2D(4, 3, padding="same", activation="relu")(x)])
    logits = keras.layers.Dense(10, name="logits")(keras.layers.GlobalAveragePooling2D()(x))
    keras.Model(image, logits).save(tmp_path / "elu.keras")
    given = (f"--teacher={A}", f"--student=saved(path='{tmp_path / 'elu.keras'}')")
    with pytest.raises(InputError, match=r"operator tfl.concatenation; keep .*in float32, qat\(keep"):
        checked(tmp_path, *given, "--compress=qat()")
    checked(tmp_path, *given, "--compress=qat(keep_float='elu')")


# ---- the table ----


@pytest.mark.slow
def test_teacher_and_baseline_become_files_too(tmp_path):
    folder = main(tmp_path / "w", f"--teacher={A}", "--export=int8", "--export_beside=baseline,teacher")
    rows = table(folder)
    assert list(rows)[3:] == ["teacher_float32", "baseline_float32", "student_int8"]
    for stage in ("teacher_float32", "baseline_float32"):
        model = rows[stage.removesuffix("_float32")]
        assert rows[stage]["role"] == f"{model['role']}, TFLite float32"
        assert rows[stage]["float_agreement"] == 1 and rows[stage]["parameters"] == model["parameters"]
    assert rows["teacher_float32"]["teacher_agreement"] == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scheme", "stages"),
    [
        (f"mutual(peers={A})", ["student", "peer2", "peers", "student_float32", "peer2_float32"]),
        ("self_distillation(export_exits=True)", ["exit1", "student", "student_float32", "exit1_float32"]),
    ],
)
def test_every_peer_and_exit_is_measured_and_exported(scheme, stages, tmp_path):
    flags = [STUDENT, "--teacher=none", "--nobaseline", "--export=float32", f"--scheme={scheme}"]
    folder = main(tmp_path / "w", *flags)
    rows = table(folder)
    assert list(rows) == stages
    for stage in stages[-2:]:
        assert rows[stage]["float_agreement"] == 1 and (folder / f"{stage}.tflite").exists()
        assert rows[stage]["parameters"] == rows[stage.removesuffix("_float32")]["parameters"]
    # What was trained as a whole is a file too, with a row or without.
    assert (folder / ("peers.keras" if "peers" in stages else "exits.keras")).exists()


@pytest.mark.slow
def test_a_file_that_cannot_be_made_is_reported_and_the_others_are_made(tmp_path):
    student = "--student=vit(patch=4, depth=1, heads=1, width=8)"
    flags = [student, "--teacher=none", "--loss=ce()", "--nobaseline", "--export=int16x8,float32"]
    folder = main(tmp_path / "w", *flags)
    assert list(table(folder)) == ["student", "student_float32"]
    notes = " ".join((folder / "results.txt").read_text().split())
    assert "TFLite int16x8 of model vit1_4 failed: " in notes and "leave the variant out" in notes
    before = made(folder)
    assert made_again(main(folder, *flags), before) == []


@pytest.mark.slow
def test_a_defective_teacher_is_recorded(tmp_path, caplog):
    flags = [f"--teacher={A}", "--nobaseline", "--teacher_epochs=3", "--teacher_stop_check_steps=1"]
    runner = trained(tmp_path / "a", *flags, "--teacher_stop_at_val_accuracy=0.01")
    stop = record(runner, "teacher")["stop"]
    assert stop["step"] == 1 and stop["val_accuracy"] >= 0.01 and "stop" not in record(runner, "student")
    runner = trained(tmp_path / "b", *flags, "--teacher_stop_at_val_accuracy=1.0")
    assert record(runner, "teacher")["stop"] == {"at_val_accuracy": 1.0, "step": None, "val_accuracy": None}
    assert "the teacher never reached --teacher_stop_at_val_accuracy=1" in caplog.text
    assert len(record(runner, "teacher")["series"]["loss"]) == 3


# ---- to the bit ----


@pytest.mark.slow
def test_stopped_after_the_choice_of_the_dtype_it_goes_on_to_the_bit(tmp_path, monkeypatch):
    """What version 0.1 did not: choosing the dtype drew random numbers before the student's adapters were made."""
    monkeypatch.setattr(device, "teacher_dtype", lambda: "bfloat16")
    flags = [f"--teacher={A}", "--nobaseline", "--loss=ce() + hint(pairs='pooled:pooled')", "--teacher_dtype=auto"]
    whole = trained(tmp_path / "whole", *flags)
    runner = checked(tmp_path, *flags)
    train = runner.trainer.train

    def stop(stage, *rest):
        if stage.name == "student":
            raise KeyboardInterrupt
        return train(stage, *rest)

    monkeypatch.setattr(runner.trainer, "train", stop)
    with pytest.raises(KeyboardInterrupt):
        runner.run()
    assert record(runner, "teacher-dtype")["dtype"] in ("bfloat16", "float32")
    again = trained(tmp_path, *flags)
    assert record(again, "student")["content"] == record(whole, "student")["content"]
