"""kd-keras evaluate and kd-keras export: models that no run has made."""

import keras
import numpy as np
import pytest

from kd_keras import data, models
from kd_keras.export import interpreter, tflite
from kd_keras.run import commands

DATA = "--data=digits()"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model of probabilities that has learned a little, and its int8 file by the command."""
    folder = tmp_path_factory.mktemp("brought")
    splits = data.Digits()
    keras.utils.set_random_seed(0)
    logits = models.CNN(10, splits.image_shape, filters=(4,), dense=())
    model = keras.Sequential([logits, keras.layers.Softmax()])
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(data.batches(splits.train, 32, training=True, epochs=2), verbose=0)
    model.save(folder / "mine.keras")
    assert commands.main(["export", str(folder / "mine.keras"), "--export=int8", DATA]) == 0
    return folder


def test_the_file_lies_beside_the_model_and_agrees_with_it(folder, capsys):
    test = data.Digits().test
    images, labels = next(iter(data.batches(test, len(test))))
    model = keras.models.load_model(folder / "mine.keras")
    right = np.mean(model.predict(images, verbose=0).argmax(-1) == labels.numpy())
    file = interpreter.load(folder / "mine_int8.tflite")
    of_file = np.mean(file.predict(images.numpy()).argmax(-1) == labels.numpy())
    names = ["mine.keras", "mine_int8.tflite"]
    assert commands.main(["evaluate", *(str(folder / name) for name in names), DATA]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = {name: next(line for line in lines if line.startswith(name)) for name in names}
    assert f" {100 * right:.2f} " in rows["mine.keras"] and f" {100 * of_file:.2f} " in rows["mine_int8.tflite"]
    assert abs(right - of_file) < 0.02 and right > 0.3


def test_a_file_of_several_labels_is_measured(tmp_path, capsys):
    splits = data.DigitPairs()
    model = models.CNN(splits.num_classes, splits.image_shape, filters=(4,), dense=())
    (tmp_path / "pairs.tflite").write_bytes(tflite.convert(model, "float32"))
    assert commands.main(["evaluate", str(tmp_path / "pairs.tflite"), "--data=digit_pairs()"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("pairs.tflite") for line in lines) and any("mAP %" in line for line in lines)


def test_nothing_is_overwritten(folder, capsys):
    before = (folder / "mine_int8.tflite").read_bytes()
    assert commands.main(["export", str(folder / "mine.keras"), "--export=int8", DATA]) == 2
    assert "mine_int8.tflite is there already" in capsys.readouterr().err
    assert (folder / "mine_int8.tflite").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evaluate"], "evaluate needs a file"),
        (["evaluate", "{}/a.h5"], "does not end in .keras or .tflite"),
        (["evaluate", "{}/a.keras"], "there is no file"),
        (["export", "{}/mine_int8.tflite", DATA], "does not end in .keras"),
        (["evaluate", "{}/mine.keras", "--teacher=cnn()"], "--teacher has no meaning for a model that is not trained"),
        (["evaluate", "{}/mine.keras", "--data=digit_pairs()"], "images of shape"),
    ],
)
def test_mistakes_get_one_line_and_code_2(folder, capsys, arguments, message):
    assert commands.main([text.format(folder) for text in arguments]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("kd_keras: ") and message in error
