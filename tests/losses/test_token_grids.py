"""Every loss between a convolutional network and a vision transformer: it trains, or says why it can't."""

import keras
import numpy as np
import pytest

from kd_keras import Distiller, losses, spec
from kd_keras.errors import InputError
from kd_keras.models import resnet, vit

SHAPE, CLASSES = (16, 16, 3), 5
RNG = np.random.default_rng(0)
BATCH = {
    "image": RNG.uniform(0, 255, (6, *SHAPE)).astype("float32"),
    "label": RNG.integers(0, CLASSES, 6),
    "index": np.arange(6),
}
MULTI_HOT = RNG.integers(0, 2, (6, CLASSES))
#: What has to be known to mend it is in the message.
REFUSED = {
    "ab": r"offers no stages \(stage1_pre, stage2_pre",
    "ofd": r"offers no stages \(stage1_pre, stage2_pre",
    "fsp": "channels",
}


@pytest.fixture(scope="module")
def models():
    keras.utils.set_random_seed(0)
    convolutional = resnet.ResNet(CLASSES, SHAPE, depth=8, width=0.5)
    tokens = vit.ViT(CLASSES, SHAPE, patch=4, depth=3, heads=2, width=12)
    return {"resnet": convolutional, "vit": tokens}


@pytest.mark.parametrize(
    ("student", "teacher"), [("resnet", "vit"), pytest.param("vit", "resnet", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("name", spec.names("kd_keras.losses"))
def test_a_transformers_tokens_are_maps_or_are_refused(models, name, student, teacher):
    given = {"samples": 6, "negatives": 4, "size": 4} if name == "crd" else {}
    if name == "teacher_free":
        given["kind"] = "self"
    # A copy, for SimKD changes it and all train it.
    learner = keras.models.clone_model(models[student])

    loss = spec.build("kd_keras.losses", spec.Spec(name, given))
    is_multilabel = "softmax" not in loss.heads
    hard, batch = (losses.BCE(), {**BATCH, "label": MULTI_HOT}) if is_multilabel else (losses.CE(), BATCH)

    def made():
        return Distiller(student=learner, teacher=models[teacher], losses=[hard, loss])

    refused = REFUSED.get(name) or ((name, teacher) == ("sim_kd", "vit") and r"class token: .*vit\(pool='mean'\)")
    if refused:
        with pytest.raises(InputError, match=refused):
            made()
        return
    distiller = made()
    distiller.compile(keras.optimizers.SGD(1e-3), run_eagerly=True)
    logs = distiller.train_step(batch)
    assert all(np.isfinite(float(value)) for value in logs.values())
    if name not in ("ce", "bce"):
        assert float(logs[distiller.term_names[1]]) != 0
