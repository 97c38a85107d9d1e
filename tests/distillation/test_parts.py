"""Schemes whose teacher is a part of the model that is trained: peers, and early exits."""

import itertools

import keras
import numpy as np
import pytest

from kd_keras import losses
from kd_keras.distillation import ensemble as joined
from kd_keras.distillation import exits
from kd_keras.distillation import parts as _terms
from kd_keras.distillation.distiller import Distiller
from kd_keras.models import cnn, resnet
from tests.losses import reference
from tests.schemes.tiny import stage_of, trained

SHAPE = (8, 8, 1)
A, B = "cnn(filters=(4,), dense=())", "cnn(filters=(3,), dense=())"
RNG = np.random.default_rng(0)
X, Y = RNG.uniform(0, 255, (6, *SHAPE)).astype("float32"), RNG.integers(0, 5, 6)


def step(distiller):
    distiller.compile(optimizer=keras.optimizers.SGD(0.1), run_eagerly=True)
    return distiller.train_on_batch(X, Y, return_dict=True)


def peers(count=3):
    models = [cnn.CNN(5, SHAPE, filters=(n + 2,), dense=()) for n in range(count)]
    return models, joined.join(models, "probabilities", prefix="peer")


def test_peers_learn_from_labels_and_from_each_other():
    models, together = peers()
    taps = [{"logits": f"peer{n}.logits"} for n in (1, 2, 3)]
    terms = [_terms.Within(term=losses.CE(), student=taps[i], name=f"peer{i + 1}_ce") for i in range(3)]
    for i, j in itertools.permutations(range(3), 2):
        names = {"student": taps[i], "teacher": taps[j], "name": f"peer{i + 1}_kd_peer{j + 1}"}
        terms.append(_terms.Within(term=losses.KD(temperature=1.0), share=1 / 2, **names))
    logs = step(Distiller(student=together, losses=terms))
    logits = [np.float64(model(X, training=True)) for model in models]
    p = [np.exp(reference.log_softmax(z)) for z in logits]
    for i in range(3):
        assert logs[f"peer{i + 1}_ce"] == pytest.approx(-np.log(p[i][range(6), Y]).mean(), rel=1e-5)
        others = [j for j in range(3) if j != i]
        for j in others:
            # Equation 7: over the number of the others.
            kl = (p[j] * (np.log(p[j]) - np.log(p[i]))).sum(axis=1).mean() / len(others)
            assert logs[f"peer{i + 1}_kd_peer{j + 1}"] == pytest.approx(kl, rel=1e-4, abs=1e-7)
    assert logs["loss"] == pytest.approx(sum(v for k, v in logs.items() if k.startswith("peer")), rel=1e-5)


def test_the_part_that_teaches_gets_no_gradient():
    _, together = peers(2)
    learner, source = ({"logits": f"peer{n}.logits"} for n in (1, 2))
    before = [w.numpy() for w in together.trainable_variables]
    step(Distiller(student=together, losses=[_terms.Within(term=losses.KD(), student=learner, teacher=source)]))
    moved = {
        w.path.partition(".")[0]
        for w, b in zip(together.trainable_variables, before, strict=True)
        if (w != b).numpy().any()
    }
    assert moved == {"peer1"}


def test_a_term_within_keeps_weight_schedule_and_share_and_is_saved_so(tmp_path):
    _, together = peers(2)
    learner, source = ({"logits": f"peer{n}.logits", "stage1": f"peer{n}.stage1"} for n in (1, 2))
    term = losses.KD(weight=0.5, temperature="exponential_decay(start=8.0, rate=0.5)")
    names = {"student": learner, "teacher": source}
    terms = [_terms.Within(term=term, share=0.25, **names), _terms.Within(term=losses.Hint(), **names)]
    distiller = Distiller(student=together, losses=terms)
    assert list(distiller.terms[0].schedules) == ["temperature"]
    distiller.epoch.assign(1)
    logs = step(distiller)
    assert logs["kd_temperature"] == 4.0
    assert logs["loss"] == pytest.approx(0.5 * logs["kd"] + logs["hint"], rel=1e-5)
    distiller.save(tmp_path / "d.keras")
    again = keras.models.load_model(tmp_path / "d.keras")
    for a, b in zip(distiller.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert again.terms[0].share == 0.25 and step(again)["hint"] == pytest.approx(step(distiller)["hint"], rel=1e-6)


@pytest.mark.slow
def test_peers_leave_as_models_of_their_own(tmp_path):
    runner = trained(tmp_path, "--teacher=none", f"--scheme=mutual(peers={A} + {B})")
    assert [stage.name for stage in runner.plan.students] == ["student", "peer2", "peer3"]
    students = [runner.load(stage) for stage in runner.plan.students]
    together = runner.load(stage_of(runner, "peers"))
    assert [model.get_layer("stage1").output.shape[-1] for model in students] == [2, 4, 3]
    mean = np.mean([keras.ops.softmax(model(X)) for model in students], axis=0)
    np.testing.assert_allclose(keras.ops.softmax(together(X)), mean, rtol=1e-4, atol=1e-6)


def test_exits_learn_from_the_deepest_which_learns_from_the_labels():
    student = resnet.ResNet(5, SHAPE, depth=8, stem="cifar")
    whole = exits.with_exits(student)
    maps = [tuple(whole.get_layer(f"exit{n}.map").output.shape) for n in (1, 2)]
    assert maps == [tuple(student.get_layer("stage3").output.shape)] * 2
    np.testing.assert_allclose(whole(X), student(X), rtol=1e-6)
    learner = {"logits": "exit1.logits", "stage3": "exit1.map", "pooled": "exit1.pooled"}
    deepest = {"logits": "logits", "stage3": "stage3", "pooled": "pooled"}
    terms = [
        _terms.Within(term=losses.KD(temperature=3.0), student=learner, teacher=deepest),
        _terms.Within(term=losses.Hint(), student=learner, teacher=deepest),
    ]
    distiller = Distiller(student=whole, losses=terms)
    before = {w.path: w.numpy() for w in whole.trainable_variables}
    step(distiller)
    moved = {w.path for w in whole.trainable_variables if (w.numpy() != before[w.path]).any()}
    # Stage 1 is on the way to the first exit; nothing after it is.
    assert any(path.startswith("exit1") for path in moved) and any(path.startswith("stage1") for path in moved)
    assert not any(path.startswith(("stage2", "stage3", "logits", "exit2")) for path in moved)


@pytest.mark.slow
def test_the_student_ships_without_its_exits(tmp_path):
    flags = ["--teacher=none", "--student=cnn(filters=(2, 3), dense=())", "--scheme=self_distillation()"]
    runner = trained(tmp_path, *flags, "--loss=ce(weight=0.7) + kd(weight=0.3, temperature=3.0) + hint(weight=0.03)")
    assert [stage.name for stage in runner.plan.students] == ["student"]
    student, exit1, whole = (runner.load(stage_of(runner, name)) for name in ("student", "exit1", "exits"))
    plain = cnn.CNN(10, SHAPE, filters=(2, 3), dense=())
    assert [layer.name for layer in student.layers] == [layer.name for layer in plain.layers]
    np.testing.assert_allclose(student(X), whole(X), rtol=1e-5)
    np.testing.assert_allclose(
        exit1(X), keras.Model(whole.inputs[0], whole.get_layer("exit1.logits").output)(X), rtol=1e-5
    )
