"""The settings that follow the machine."""

import pytest
import tensorflow as tf

from kd_keras._compat import tensorflow
from kd_keras.distillation import device
from kd_keras.run import hardware


@pytest.mark.parametrize("capability", [None, (7, 5), (9, 0)])
def test_training_settings_follow_the_machine(monkeypatch, capability):
    # No such machine is at hand: what TensorFlow reports of one is replaced.
    monkeypatch.setattr(tensorflow, "gpu_capability", lambda: capability)
    monkeypatch.setattr(device, "cpu_features", lambda: {"avx2"})
    dtypes = {None: "float32", (7, 5): "mixed_float16", (9, 0): "mixed_bfloat16"}
    assert hardware.precision() == dtypes[capability]
    strategy, has_gpu = tf.distribute.get_strategy(), capability is not None
    assert hardware.jit_compile(strategy) is has_gpu
    steps = [hardware.steps_per_execution(strategy, steps) for steps in (80, 19, 6)]
    assert steps == ([8, 1, 6] if has_gpu else [1, 1, 1])
