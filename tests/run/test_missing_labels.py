"""Runs in which only some training images have a label."""

import json
import pathlib

import numpy as np
import pytest

from kd_keras import data
from kd_keras.run import __main__ as run

ROOT = pathlib.Path(__file__).parents[2]
DIGITS = [f"--flagfile={ROOT / 'experiments' / 'digits.flags'}", "--epochs=2", "--export=none", "--tracking=none"]


def main(workdir, *flags):
    return run.main(["kd_keras", *DIGITS, f"--workdir={workdir}", *flags])


@pytest.fixture(scope="module")
def quick_start(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run") / "digits"
    assert main(workdir) == 0
    return workdir


def rows(workdir):
    return {row["stage"]: row for row in json.loads((workdir / "results.json").read_text())}


def test_the_table_says_how_many_images_had_labels_and_how_many_updates_each_model_got(quick_start):
    seen = {
        stage: tuple(row[name] for name in ("labelled_images", "unlabelled_images", "updates"))
        for stage, row in rows(quick_start).items()
    }
    # 1 168 training images in batches of 64 are 19 updates an epoch.
    assert seen == {"teacher": (1168, 0, 38), "baseline": (100, 0, 38), "student": (100, 1068, 38)}


@pytest.mark.slow
def test_mixed_images_of_which_one_has_no_label_have_none(tmp_path):
    assert main(tmp_path, "--augment=mixup(alpha=0.2)", "--labelled_examples=300", "--epochs=6") == 0
    found = rows(tmp_path)
    # Half of chance and more: something was learned of the labels that are left.
    assert found["student"]["test_accuracy"] > 0.5 and found["student"]["unlabelled_images"] == 868


def test_a_sentence_says_what_was_gained(quick_start, capsys):
    assert main(quick_start) == 0
    printed = capsys.readouterr().out
    assert "1168 train (100 with labels)" in printed
    (line,) = (line for line in printed.splitlines() if line.startswith("distillation: "))
    found = rows(quick_start)
    gain = 100 * (found["student"]["test_accuracy"] - found["baseline"]["test_accuracy"])
    labels = data.Digits().test.labels
    right = {}
    for stage in ("student", "baseline"):
        (place,) = (
            path.parent for path in quick_start.glob("store/*/*/record.json") if named(path, f"{stage}-quality")
        )
        right[stage] = np.load(place / "logits.npy").argmax(axis=-1) == labels
    change = right["student"].astype(float) - right["baseline"]
    half = 1.96 * change.std(ddof=1) / np.sqrt(len(labels))
    np.testing.assert_allclose(100 * change.mean(), gain)
    assert f"{gain:+.2f} points" in line and f"the {len(labels)} test images" in line
    assert f"{gain - 100 * half:+.2f} to {gain + 100 * half:+.2f}" in line


def named(path, stage):
    return json.loads(path.read_text())["stage"] == stage


def test_a_student_of_losses_that_all_read_labels_is_refused(tmp_path, capsys):
    assert main(tmp_path, "--loss=ce() + dkd()") == 2
    error = capsys.readouterr().err
    assert "1068 of the training images have no label" in error and "(ce, dkd)" in error


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--labelled_examples=5"], "5 labelled examples cannot hold 10 classes"),
        (["--labelled_examples=5000"], "5000 labelled examples asked of a split of 1168"),
        (
            ["--labelled_examples=none", "--unlabelled_ratio=2"],
            "--unlabelled_ratio=2 but all training images have labels",
        ),
    ],
)
def test_what_cannot_be_is_refused(flags, reason, tmp_path, capsys):
    assert main(tmp_path, *flags) == 2
    assert reason in capsys.readouterr().err


@pytest.mark.slow
def test_a_plain_training_sees_the_labelled_images_alone(tmp_path):
    flags = ["--teacher=none", "--loss=ce()", "--labelled_examples=100", "--epochs=1"]
    assert main(tmp_path, *flags, "--loss=ce(label_smoothing=0.1)") == 0
    assert rows(tmp_path)["student"]["unlabelled_images"] == 0


@pytest.mark.slow
def test_a_teacher_of_few_labels_and_a_ratio(tmp_path):
    flags = ["--teacher_labelled_examples=150", "--unlabelled_ratio=3", "--epochs=1", "--cache_views=2"]
    assert main(tmp_path, *flags) == 0
    found = rows(tmp_path)
    assert (found["teacher"]["labelled_images"], found["teacher"]["unlabelled_images"]) == (150, 0)
    assert {row["updates"] for row in found.values()} == {19}
