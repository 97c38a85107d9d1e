"""What is taken from other runs, and when it is refused."""

import json
import pathlib

import pytest

from kd_keras.errors import InputError
from kd_keras.run import config, other_runs

A, B = "cnn(filters=(4,))", "cnn(filters=(8,))"
DATA = {"train": 1168, "val": 270, "test": 359, "classes": ["0", "1"], "image_shape": [8, 8, 1]}
ENSEMBLE = ["--scheme=ensemble()", f"--teacher={A} + {B}"]


def read(*flags):
    return config.read(["kd_keras", *flags])


@pytest.fixture
def lender(tmp_path):
    """A workdir as a run with these flags leaves it; of its models there is only the name."""

    def make(name, *flags, stages=None, **records):
        made = read(*flags, f"--workdir={tmp_path / name}")
        config.claim_workdir(made)
        state = tmp_path / name / "state"
        state.mkdir(exist_ok=True)
        (state / "data.json").write_text(json.dumps(DATA))
        for stage in stages or [*made.teachers, "baseline"]:
            (state / f"{stage}.json").write_text(json.dumps({"architecture": "x", **records}))
            (state / f"{stage}-measured.json").write_text(stage)
            for end in (".keras", "_report.png"):
                (tmp_path / name / f"{stage}{end}").write_text(f"{name} {stage}")
        return tmp_path / name

    return make


def stages(*flags, **data):
    found = other_runs.sources(read(*flags), {**DATA, **data})
    return {stage: (one.folder.name, one.stage) for stage, one in found.items()}


def test_nothing_is_taken_unless_asked(lender):
    assert stages(f"--teacher={A}") == {}


def test_what_is_here_already_is_not_asked_for_again(lender, tmp_path):
    asked = read(*ENSEMBLE, f"--teacher_from={lender('b', f'--teacher={A}')},{tmp_path / 'gone'}")
    with pytest.raises(InputError, match="gone holds no finished teacher"):
        other_runs.sources(asked, DATA, ["teacher1"])
    assert list(other_runs.sources(asked, DATA, ["teacher2"])) == ["teacher1"]
    alone = read(f"--teacher={A}", f"--baseline_from={tmp_path / 'gone'}")
    assert other_runs.sources(alone, DATA, ["baseline"]) == {}


def test_runs_of_one_teacher_feed_an_ensemble(lender):
    one, two = lender("a", f"--teacher={A}"), lender("b", f"--teacher={B}")
    assert stages(*ENSEMBLE, f"--teacher_from={one},{two}") == {
        "teacher1": ("a", "teacher"),
        "teacher2": ("b", "teacher"),
    }
    with pytest.raises(InputError, match=r"has --teacher=cnn\(filters=\(8,\)\), not cnn\(filters=\(4,\)\)"):
        stages(*ENSEMBLE, f"--teacher_from={two},{one}")


def test_an_ensemble_lends_each_of_its_teachers(lender):
    folder = lender("e", *ENSEMBLE)
    both = {"teacher1": ("e", "teacher1"), "teacher2": ("e", "teacher2")}
    assert stages(*ENSEMBLE, f"--teacher_from={folder},{folder}") == both
    assert stages(f"--teacher={B}", f"--teacher_from={folder}") == {"teacher": ("e", "teacher2")}


def test_teachers_of_one_spec_are_told_apart(lender):
    folder = lender("e", "--scheme=ensemble()", f"--teacher={A} + {A}")
    twice = ["--scheme=ensemble()", f"--teacher={A} + {A}"]
    both = {"teacher1": ("e", "teacher1"), "teacher2": ("e", "teacher2")}
    assert stages(*twice, f"--teacher_from={folder},{folder}") == both
    single = lender("s", f"--teacher={A}")
    # The one of its own number, where that is free.
    one_each = {"teacher1": ("s", "teacher"), "teacher2": ("e", "teacher2")}
    assert stages(*twice, f"--teacher_from={single},{folder}") == one_each
    with pytest.raises(InputError, match="would give the same teacher twice: an ensemble of equals is one"):
        stages(*twice, f"--teacher_from={single},{single}")


@pytest.mark.parametrize(
    ("theirs", "ours", "message"),
    [
        ([], ["--data=cifar10()"], r"has --data=digits\(\), not cifar10\(\)"),
        ([], ["--teacher_stop_at_val_accuracy=0.5"], "has --teacher_stop_at_val_accuracy=none, not 0.5"),
    ],
)
def test_another_teacher_is_refused(lender, theirs, ours, message):
    folder = lender("a", f"--teacher={A}", *theirs)
    with pytest.raises(InputError, match=message):
        stages(f"--teacher={A}", f"--teacher_from={folder}", *ours)


@pytest.mark.parametrize("data", [{"test": 358}, {"classes": ["1", "0"]}, {"image_shape": [8, 8, 3]}])
def test_what_was_measured_on_other_data_is_refused(lender, data):
    folder = lender("a", f"--teacher={A}")
    for flag in ("--teacher_from", "--baseline_from"):
        with pytest.raises(
            InputError, match=f"{flag}=.* has other data by the same --data .another {next(iter(data))}"
        ):
            stages(f"--teacher={A}", f"{flag}={folder}", **data)


def test_a_teacher_may_have_seen_more_images(lender):
    folder = lender("a", f"--teacher={A}")
    assert stages(f"--teacher={A}", f"--teacher_from={folder}", train=100) == {"teacher": ("a", "teacher")}
    with pytest.raises(InputError, match="another train"):
        stages(f"--teacher={A}", f"--baseline_from={folder}", train=100)


def test_a_defective_teacher_is_lent(lender):
    stop = {"at_val_accuracy": 0.5, "step": 3, "val_accuracy": 0.6}
    folder = lender("a", f"--teacher={A}", "--teacher_stop_at_val_accuracy=0.5", stop=stop)
    taken = [f"--teacher={A}", f"--teacher_from={folder}"]
    for asked in ([], ["--teacher_stop_at_val_accuracy=0.5"]):
        assert stages(*taken, *asked) == {"teacher": ("a", "teacher")}
    with pytest.raises(InputError, match=r"accuracy=0\.5, not 0\.7"):
        stages(*taken, "--teacher_stop_at_val_accuracy=0.7")


def test_what_is_not_finished_is_refused(lender, tmp_path):
    folder = lender("a", f"--teacher={A}", stages=["baseline"])
    for flags in ([f"--teacher={A}", f"--teacher_from={folder}"], [f"--baseline_from={tmp_path / 'no'}"]):
        with pytest.raises(InputError, match=r"holds no finished (teacher|baseline)") as error:
            stages(*flags)
        assert "\n" not in str(error.value)
    (folder / "config.json").write_text("[]]")
    with pytest.raises(InputError, match="holds no finished baseline"):
        stages(f"--baseline_from={folder}")


def test_a_baseline_is_lent_whatever_teaches(lender):
    folder = lender("a", f"--teacher={A}", "--loss=kd()")
    assert stages(f"--teacher={B}", "--loss=soft_ce()", f"--baseline_from={folder}") == {"baseline": ("a", "baseline")}


@pytest.mark.parametrize(
    "flag",
    [
        "--student=cnn(filters=(4,))",
        "--baseline_loss=ce(label_smoothing=0.1)",
        "--data=digits(val_fraction=0.3)",
        "--epochs=11",
        "--optimizer=sgd()",
        "--learning_rate=0.1",
        "--augment=flip()",
        "--batch_size=32",
        "--seed=1",
        "--train_examples=100",
        "--precision=mixed_bfloat16",
        "--cache_views=2",
    ],
)
def test_another_baseline_is_refused(lender, flag):
    folder = lender("a", f"--teacher={A}")
    name = flag.partition("=")[0]
    with pytest.raises(InputError, match=f"has {name}=.*the student without a teacher would be another"):
        stages(f"--teacher={A}", f"--baseline_from={folder}", flag)


def test_views_are_compared_with_their_seed(lender):
    cached = [f"--teacher={A}", "--cache_views=2"]
    folder = lender("a", *cached)
    assert stages(*cached, f"--baseline_from={folder}") == {"baseline": ("a", "baseline")}
    with pytest.raises(InputError, match="has --cache_seed=0, not 1"):
        stages(*cached, f"--baseline_from={folder}", "--cache_seed=1")


def test_files_are_copied_under_their_new_name(lender, tmp_path):
    folder = lender("e", *ENSEMBLE)
    other_runs.Source(folder, "teacher2").copy(tmp_path / "w", "teacher")
    found = sorted(path.relative_to(tmp_path / "w") for path in (tmp_path / "w").rglob("*") if path.is_file())
    assert list(map(str, found)) == ["state/teacher-measured.json", "teacher.keras", "teacher_report.png"]
    assert pathlib.Path(tmp_path / "w" / "teacher.keras").read_text() == "e teacher2"
