"""Recipes are the settings of experiments."""

import numpy as np
import pytest

import kd_keras
from kd_keras import flagfiles, recipes
from kd_keras.errors import InputError
from kd_keras.run import config


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_a_recipe_is_its_experiment_without_data_and_models(name):
    whole = config.read(["kd_keras", f"--flagfile={recipes.RECIPES[name].experiment}", "--workdir=w"])
    settings = recipes.settings(name)
    assert not {"data", "teacher", "student", "labelled_examples"} & set(settings)
    # With the experiment's own data and models nothing is missing.
    own = [f"--{flag}={whole.texts()[flag]}" for flag in ("data", "teacher", "student")]
    for flag in ("labelled_examples", "export", "export_beside", "experiment"):
        own.append(f"--{flag}={whole.texts()[flag]}")
    again = config.read(["kd_keras", "--workdir=w", *own, *(f"--{flag}={text}" for flag, text in settings.items())])
    assert again.texts() == whole.texts()


def test_a_recipe_runs_and_takes_changes():
    noise = np.random.default_rng(0)
    images, labels = noise.integers(0, 256, (60, 8, 8, 3), dtype=np.uint8), np.arange(60) % 3
    settings = recipes.settings("few_labels", labelled_examples=12, epochs=1, cache_views=1, precision="float32")
    assert settings["epochs"] == 1 and settings["batch_size"] == "128"
    given = {"loss": settings["loss"], **settings, "batch_size": 12}
    model = "cnn(filters=(2,), dense=())"
    result = kd_keras.distill(model, "cnn(filters=(4,), dense=())", (images, labels), verbose=False, **given)
    assert [row["role"] for row in result.table][-1] == "student distilled"


def test_a_name_that_is_no_recipe():
    with pytest.raises(
        InputError, match=r"no recipe 'few_label' \(did you mean 'few_labels'\?\): there are few_labels"
    ):
        recipes.settings("few_label")


def test_experiments_are_found_by_name_in_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert config.read(["kd_keras", "--flagfile=digits"]).run.workdir.name.startswith("digits-")
    assert flagfiles.find("digits").name == "digits.flags" and "digits" in flagfiles.names()
    # A file of that name comes first.
    (tmp_path / "digits").write_text("--epochs=77\n")
    assert config.read(["kd_keras", "--flagfile=digits"]).training.epochs == 77
    with pytest.raises(InputError, match=r"flagfile=digit is neither a file nor an experiment \(did you mean 'digits'"):
        flagfiles.find("digit")
    with pytest.raises(InputError, match=r"flagfile=x/digits.flags can't be read: No such file"):
        config.read(["kd_keras", "--flagfile=x/digits.flags"])
