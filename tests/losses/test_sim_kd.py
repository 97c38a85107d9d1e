import keras
import numpy as np
import pytest

from kd_keras import Distiller, losses
from kd_keras.errors import InputError
from kd_keras.models import resnet
from tests.losses import reference as ref


def models():
    keras.utils.set_random_seed(0)
    student = resnet.ResNet(4, (8, 8, 1), depth=8, width=0.25)
    return student, resnet.ResNet(4, (8, 8, 1), depth=8, width=0.5)


IMAGES = np.random.default_rng(0).integers(0, 255, (12, 8, 8, 1)).astype("float32")
LABELS = np.arange(12) % 4


def test_golden():
    s, t = ref.features(0, 4, 4, 5), ref.features(10, 4, 4, 5)
    term = losses.SimKD(pairs="stage1:stage1")
    actual = term({"sim_kd": s}, {"stage1": t}, ref.classes())
    np.testing.assert_allclose(actual, np.square(np.float64(s) - t).mean(axis=(1, 2, 3)), rtol=1e-5)


def test_the_student_is_backbone_projector_and_the_teachers_classifier():
    student, teacher = models()
    distiller = Distiller(student=student, teacher=teacher, losses=[losses.SimKD()])
    assert distiller.student is not student
    for features in (distiller.student.get_layer("sim_kd").output, teacher.get_layer("stage3").output):
        assert tuple(features.shape) == (None, 2, 2, 32)
    # Its classifier makes of any map what the teacher's makes of it.
    maps = ref.features(3, 2, 2, 32)
    of_teacher = keras.Model(teacher.get_layer("stage3").output, teacher.output)
    np.testing.assert_allclose(distiller.student.get_layer("classifier")(maps), of_teacher(maps), rtol=1e-5)
    names = [w.path for w in distiller.student.trainable_weights]
    assert not any("classifier" in name for name in names) and any("sim_kd_conv3" in name for name in names)


@pytest.mark.slow
def test_training_moves_backbone_and_projector_and_leaves_the_classifier():
    student, teacher = models()
    distiller = Distiller(student=student, teacher=teacher, losses=[losses.SimKD()])
    distiller.compile(optimizer=keras.optimizers.Adam(0.01), metrics=["accuracy"])
    before = [w.numpy() for w in distiller.student.trainable_weights]
    classifier = distiller.student.get_layer("classifier")
    kept, given = classifier.get_weights(), [w.numpy() for w in teacher.weights]
    history = distiller.fit(IMAGES, LABELS, batch_size=6, epochs=8, verbose=0).history
    assert history["sim_kd"][-1] < 0.8 * history["sim_kd"][0]
    assert all(not np.array_equal(w, now) for w, now in zip(before, distiller.student.trainable_weights, strict=True))
    for was, now in zip([*kept, *given], [*classifier.get_weights(), *teacher.weights], strict=True):
        np.testing.assert_array_equal(was, now)


@pytest.mark.slow
def test_a_reloaded_distiller_goes_on_with_the_same_student(tmp_path):
    student, teacher = models()
    distiller = Distiller(student=student, teacher=teacher, losses=[losses.SimKD()])
    distiller.compile(optimizer="adam")
    distiller.fit(IMAGES, LABELS, verbose=0)
    distiller.save(tmp_path / "distiller.keras")
    again = keras.models.load_model(tmp_path / "distiller.keras")
    np.testing.assert_allclose(again.predict(IMAGES, verbose=0), distiller.predict(IMAGES, verbose=0), rtol=1e-5)
    again.attach_teacher(teacher)
    again.fit(IMAGES, LABELS, verbose=0)
    assert len(again.student.layers) == len(distiller.student.layers)


def test_refuses_what_cannot_be():
    student, teacher = models()
    with pytest.raises(InputError, match="give Distiller the teacher"):
        Distiller(student=student, losses=[losses.SimKD()])
    with pytest.raises(InputError, match="projects one pair of maps, and 2 are given"):
        losses.SimKD(pairs="stage1:stage1,stage2:stage2")
    with pytest.raises(InputError, match="the student has no tap 'stage9'"):
        Distiller(student=student, teacher=teacher, losses=[losses.SimKD(pairs="stage9:stage3")])


@pytest.mark.slow
def test_a_larger_grid_is_pooled_and_the_student_ships():
    from kd_keras.export import tflite

    student, teacher = models()
    distiller = Distiller(student=student, teacher=teacher, losses=[losses.SimKD(pairs="stage2:stage3")])
    made = distiller.student
    assert [tuple(made.get_layer(name).output.shape[1:3]) for name in ("stage2", "sim_kd")] == [(4, 4), (2, 2)]
    pooled = keras.Model(made.input, [made.get_layer("stage2").output, made.get_layer("sim_kd_pool").output])
    before, after = (np.array(x) for x in pooled(IMAGES))
    np.testing.assert_allclose(after, before.reshape(12, 2, 2, 2, 2, -1).mean(axis=(2, 4)), rtol=1e-5, atol=1e-6)
    assert len(tflite.convert(made, "float32")) > 1000


def test_a_grid_that_is_no_multiple_is_refused():
    student = resnet.ResNet(4, (12, 12, 1), depth=8, width=0.25)
    teacher = resnet.ResNet(4, (12, 12, 1), depth=8, width=0.5)
    odd = keras.Model(
        teacher.input,
        keras.layers.Dense(4)(
            keras.layers.GlobalAveragePooling2D()(
                keras.layers.Conv2D(8, 2, name="odd")(teacher.get_layer("stage2").output)
            )
        ),
    )
    with pytest.raises(InputError, match=r"grid \(6, 6\) is no multiple of the teacher's \(5, 5\)"):
        Distiller(student=student, teacher=odd, losses=[losses.SimKD(pairs="stage2:odd")])


def test_a_teachers_softmax_is_taken_off():
    student, teacher = models()
    sure = keras.Model(teacher.input, keras.layers.Softmax()(teacher.output))
    made, plain = (Distiller(student=student, teacher=one, losses=[losses.SimKD()]).student for one in (sure, teacher))
    maps = ref.features(3, 2, 2, 32)
    np.testing.assert_allclose(
        made.get_layer("classifier")(maps), plain.get_layer("classifier")(maps), rtol=1e-5, atol=1e-6
    )
