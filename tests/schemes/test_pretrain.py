"""Pretraining by features: what moves, what is kept, and what a teacher without a head may do."""

import json

import keras
import numpy as np
import pytest

from kd_keras.evaluate import quality
from kd_keras.run import __main__ as run
from tests.schemes.tiny import checked, stage_of, trained, weights

A = "cnn(filters=(4,), dense=())"
LOSS = "loss=hint(pairs='pooled:output[pooled]')"


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    """A file of a network whose output is a map, in −1…1 and of 16×16 colour images."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((16, 16, 3))
    model = keras.Model(inputs, keras.layers.Conv2D(6, 5, strides=3, activation="relu")(inputs))
    path = tmp_path_factory.mktemp("backbone") / "backbone.keras"
    model.save(path)
    return path


def flags(backbone, scheme=LOSS, loss="ce()"):
    return [
        f"--teacher=saved(path='{backbone}', features=True)",
        "--teacher_scaling=-1..1",
        f"--scheme=pretrain({scheme})",
        f"--loss={loss}",
        "--labelled_examples=50",
    ]


def test_the_student_is_pretrained_by_all_images_and_trained_by_the_labelled(backbone, tmp_path):
    runner = trained(tmp_path, *flags(backbone, f"{LOSS}, epochs=2, probe=True"))
    pretrained, student = (stage_of(runner, name) for name in ("pretrained", "student"))
    seen = [(stage.samples.labelled, stage.samples.unlabelled) for stage in (pretrained, student)]
    assert seen == [(50, 50), (50, 0)] and student.model == pretrained
    assert pretrained.recipe.epochs == 2 and student.recipe.epochs == 1
    assert student.recipe == stage_of(runner, "baseline").recipe
    # All start alike; the features move in pretraining, and not in a probe.
    new, before = weights(runner, "untrained_probe"), weights(runner, "pretrained")
    after, probe = weights(runner, "student"), weights(runner, "pretrained_probe")
    body, head = slice(0, -2), slice(-2, None)
    assert not all(map(np.array_equal, new[body], before[body]))
    assert all(map(np.array_equal, before[body], probe[body])) and not all(
        map(np.array_equal, before[body], after[body])
    )
    assert not any(map(np.array_equal, before[head][:1], probe[head][:1]))


def test_the_fine_tuning_has_a_learning_rate_of_its_own(backbone, tmp_path):
    runner = checked(tmp_path, *flags(backbone, f"{LOSS}, finetune_learning_rate=cosine(start=0.01)"))
    rates = {name: str(stage_of(runner, name).recipe.learning_rate) for name in ("pretrained", "student", "baseline")}
    assert (
        rates["student"].startswith("cosine(start=0.01,")
        and rates["pretrained"] == rates["baseline"] != rates["student"]
    )


@pytest.mark.slow
def test_the_last_epoch_of_pretraining_is_kept(backbone, tmp_path):
    runner = trained(tmp_path, *flags(backbone, f"{LOSS}, epochs=3"))
    assert runner.store.record(stage_of(runner, "pretrained"))["best_epoch"] == 2


@pytest.mark.slow
def test_a_run_says_what_was_learned(backbone, tmp_path, capsys):
    given = ["--data=digits()", "--student=cnn(filters=(8,), dense=())", "--tracking=none", "--export=none"]
    given += flags(backbone, f"{LOSS}, probe=True, knn=True")
    assert run.main(["kd_keras", *given, "--epochs=2", f"--workdir={tmp_path}", "--progress=none"]) == 0
    rows = [row["stage"] for row in json.loads((tmp_path / "results.json").read_text())]
    # A teacher without classes has no row.
    assert rows == ["baseline", "untrained_probe", "pretrained_probe", "student"]
    printed = capsys.readouterr().out
    for which in ("untrained", "pretrained"):
        assert f"{which} student by its nearest neighbours: " in printed


def test_a_second_teacher_teaches_while_the_student_learns_from_labels(backbone, tmp_path):
    given = flags(backbone, loss="ce() + kd()")
    given[0] = f"--teacher=saved(path='{backbone}', features=True) + {A}"
    given[1] = "--teacher_scaling=none"
    runner = checked(tmp_path, *given)
    student = stage_of(runner, "student")
    assert student.teacher.name == "teacher2" and stage_of(runner, "pretrained").teacher.name == "teacher1"
    assert runner.plan.reference.name == "teacher2"


@pytest.mark.parametrize(
    ("scheme", "loss", "reason"),
    [
        ("loss=kd()", "ce()", "kd reads its logits|reads a teacher|offers no|reads the teacher's logits"),
        ("loss=ce()", "ce()", "has ce: give losses that read features and no labels"),
        ("loss=3", "ce()", "give losses on features"),
        (f"{LOSS}, epochs=0", "ce()", "epochs=0"),
        (f"{LOSS}, finetune_learning_rate=-1", "ce()", "finetune_learning_rate=-1"),
        (LOSS, "ce() + kd()", "logits"),
    ],
)
def test_what_cannot_be_is_refused(scheme, loss, reason, backbone, tmp_path):
    with pytest.raises(Exception, match=reason) as error:
        checked(tmp_path, *flags(backbone, scheme, loss))
    assert type(error.value).__name__ == "InputError"


def test_nearest_neighbours_are_those_of_the_paper():
    """arXiv:1805.01978, section 3.4, in float64."""
    draw = np.random.default_rng(0)
    train, test = draw.normal(size=(60, 5)), draw.normal(size=(40, 5))
    labels, truth = draw.integers(0, 3, 60), draw.integers(0, 3, 40)
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (train, test)]
    similar = unit[1] @ unit[0].T
    votes = np.zeros((40, 3))
    for row, near in enumerate(np.argsort(-similar, axis=1)[:, :20]):
        np.add.at(votes[row], labels[near], np.exp(similar[row, near] / 0.07))
    expected = (votes.argmax(1) == truth).mean()
    assert quality.knn_accuracy(train, labels, test, truth) == pytest.approx(expected)
