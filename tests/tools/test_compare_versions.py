"""tools/compare_versions.py: what counts as a difference, by hand-made workdirs, and real runs of two checkouts."""

import io
import json
import os
import pathlib
import shutil
import subprocess
import sys
import time
import zipfile

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import compare_versions  # noqa: E402
from versions import cases, differences, runs  # noqa: E402

ROW = {
    **{"role": "student without KD", "test_accuracy": 0.75, "parameters": 10},
    **{"bytes": 1000, "zip_bytes": None, "latency_ms_median": 1.0},
}
NEW_ROW = {"stage": "baseline", **ROW, "role": "baseline (no teacher)", "latency_ms_median": 2.0}


def save(path, arrays):
    """A file in the layout of ``.keras``: weights by path."""
    import h5py

    packed = io.BytesIO()
    with h5py.File(packed, "w") as file:
        for name, array in arrays.items():
            file[name] = array
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model.weights.h5", packed.getvalue())


@pytest.fixture
def workdirs(tmp_path):
    """Two workdirs with equal models and, but for what may differ, equal tables."""
    arrays = {"layers/conv2d/vars/0": np.arange(6, dtype="float32"), "layers/dense/vars/0": np.ones(3, "float32")}
    folders = [tmp_path / name for name in ("old", "new")]
    for folder, row in zip(folders, (ROW, NEW_ROW), strict=True):
        folder.mkdir()
        save(folder / "student.keras", arrays)
        (folder / "results.json").write_text(json.dumps([row]))
    return *folders, arrays


def test_texts_of_roles_and_times_do_not_count(workdirs):
    old, new, _ = workdirs
    result = differences.compare(old, new)
    assert (result.models, result.rows, result.differences, result.notes) == (["student.keras"], 1, [], [])


def test_the_smallest_change_of_a_weight_counts(workdirs):
    old, new, arrays = workdirs
    changed = arrays["layers/conv2d/vars/0"].copy()
    changed[3] = np.nextafter(changed[3], np.float32(9))
    save(new / "student.keras", {**arrays, "layers/conv2d/vars/0": changed})
    (text,) = differences.compare(old, new).differences
    assert text == "student.keras: 1 of 2 weight arrays differ, by up to 2.38e-07"


def test_layers_of_another_name_do_not_count_but_other_arrays_do(workdirs):
    old, new, arrays = workdirs
    renamed = {name.replace("conv2d", "convolution"): array for name, array in arrays.items()}
    save(new / "student.keras", renamed)
    assert differences.compare(old, new).differences == []
    save(new / "student.keras", {**renamed, "layers/dense/vars/0": np.zeros(3, "float32")})
    assert "other arrays" in differences.compare(old, new).differences[0]
    save(new / "student.keras", {**arrays, "layers/dense/vars/0": np.ones((3, 1), "float32")})
    assert differences.compare(old, new).differences == ["student.keras: shapes of weights differ"]


def test_optimizers_are_not_compared(workdirs):
    old, new, arrays = workdirs
    save(new / "student.keras", {**arrays, "optimizer/vars/0": np.zeros(2)})
    assert differences.compare(old, new).differences == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"test_accuracy": 0.7500000001}, "test_accuracy: 0.75 and 0.7500000001"),
        ({"parameters": None}, "parameters: 10 and None"),
    ],
)
def test_a_number_of_the_table_counts(workdirs, change, message):
    old, new, _ = workdirs
    (new / "results.json").write_text(json.dumps([{**NEW_ROW, **change}]))
    (text,) = differences.compare(old, new).differences
    assert text == f"results.json, row 1 (student without KD), {message}"


def test_a_column_that_is_new_is_a_note_and_one_that_is_gone_counts(workdirs):
    old, new, _ = workdirs
    (new / "results.json").write_text(json.dumps([{**NEW_ROW, "f1": 0.5}]))
    compared = differences.compare(old, new)
    assert compared.differences == [] and compared.notes == ["results.json has new columns: f1"]
    (new / "results.json").write_text(json.dumps([{k: v for k, v in NEW_ROW.items() if k != "parameters"}]))
    (text,) = differences.compare(old, new).differences
    assert text.endswith("parameters: 10 and no such column")


def test_the_size_of_a_keras_file_is_a_note_while_its_weights_are_equal(workdirs):
    old, new, arrays = workdirs
    (new / "results.json").write_text(json.dumps([{**NEW_ROW, "bytes": 1015}]))
    result = differences.compare(old, new)
    assert result.differences == [] and result.notes == [
        "results.json, row 1 (student without KD), bytes: 1000 and 1015"
    ]
    save(new / "student.keras", {name: array + 1 for name, array in arrays.items()})
    assert len(differences.compare(old, new).differences) == 2


def test_what_is_missing_counts(workdirs):
    old, new, _ = workdirs
    (new / "results.json").write_text(json.dumps([NEW_ROW, NEW_ROW]))
    assert differences.compare(old, new).differences == ["results.json has 1 and 2 rows"]
    (new / "results.json").unlink()
    (new / "student.keras").rename(new / "other.keras")
    (old / "student_int8.tflite").touch()
    assert differences.compare(old, new).differences == [
        "student.keras is only in the old run",
        "other.keras is only in the new run",
        "student_int8.tflite is only in the old run",
        "no .keras file to compare",
        f"{new / 'results.json'} missing",
    ]


def test_metadata_of_a_tflite_file_is_a_note_and_its_network_is_not(workdirs):
    import keras
    import tensorflow as tf

    old, new, _ = workdirs
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    content = tf.lite.TFLiteConverter.from_keras_model(model).convert()
    for folder, row, text in ((old, ROW, "pixels"), (new, NEW_ROW, "pixels of the image")):
        path = folder / "student.tflite"
        path.write_bytes(content)
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr("metadata.json", text)
        table = [{**row, "bytes": path.stat().st_size, "zip_bytes": 7}]
        (folder / "results.json").write_text(json.dumps(table))
    result = differences.compare(old, new)
    assert result.differences == [] and result.notes[0] == "student.tflite: only metadata differ"
    assert "bytes" in result.notes[1] and len(result.notes) == 2

    model.layers[0].bias.assign([0.0, 1e-6])
    (new / "student.tflite").write_bytes(tf.lite.TFLiteConverter.from_keras_model(model).convert())
    assert differences.compare(old, new).differences[0] == "student.tflite: the networks differ"


def test_a_run_that_failed_in_both_versions_is_a_difference(tmp_path):
    log = tmp_path / "log"
    log.write_text("kd_keras: bad flag\n")
    ended = runs.Ended(tmp_path, [2], log)
    result = compare_versions.compare_ended(ended, ended)
    assert result.differences == [f"{which} run: exit code 2 (kd_keras: bad flag)" for which in ("old", "new")]
    assert compare_versions.compare_ended(ended, ended, code=2).differences == []
    other = runs.Ended(tmp_path, [1], log)
    assert compare_versions.compare_ended(ended, other, code=2).differences == [
        "old run: exit code 2",
        "new run: exit code 1 (kd_keras: bad flag)",
    ]


class Scripted(runs.Tree):
    """A tree whose runs end as a script says: (exit code, names of finished models) for each run."""

    def __init__(self, root, script):
        super().__init__("old", root, root, root, fresh=True)
        self.script, self.seconds = list(script), []

    def _run(self, name, flags, seconds=None):
        self.seconds.append(seconds)
        code, models = self.script.pop(0)
        workdir = self.root / name
        workdir.mkdir(exist_ok=True)
        for at, model in enumerate(models):
            path = workdir / f"{model}.keras"
            path.touch()
            # The longest time without a finished model is that of the student: 20 to 60 s after the start.
            moment = time.time() + (10, 20, 60)[at]
            os.utime(path, (moment, moment))
        return runs.Ended(workdir, [code], self.root / "log")


KILLED = cases.Case("k", "", (), killed=True)
ALL = ("teacher", "baseline", "student")


def test_a_run_is_killed_within_its_longest_training(tmp_path):
    tree = Scripted(tmp_path, [(0, ALL), (-9, ALL[:2]), (0, ALL)])
    ended = tree.run(KILLED)
    assert ended["resumed"].workdir.name == "k-old-resumed1" and ended["resumed"].codes == [0]
    assert tree.seconds[0] is tree.seconds[2] is None and 39 < tree.seconds[1] < 41


def test_a_run_that_ended_before_it_was_killed_is_killed_earlier(tmp_path):
    tree = Scripted(tmp_path, [(0, ALL), (0, ALL), (-9, ALL), (-9, ALL[:1]), (0, ALL)])
    assert tree.run(KILLED)["resumed"].workdir.name == "k-old-resumed3"
    assert tree.seconds[1] > tree.seconds[2] > tree.seconds[3] > 15
    tree = Scripted(tmp_path, [(0, ALL), *[(0, ALL)] * 3])
    (tmp_path / "other").mkdir()
    ((what, result),) = compare_versions.run_case(KILLED, (tree, Scripted(tmp_path / "other", [(1, ())])))
    assert what == "k" and result.differences == ["old: could not kill k-old-resumed during training in three attempts"]


def test_cases_have_names_of_their_own_and_are_listed(capsys):
    names = [case.name for case in cases.CASES]
    assert len(set(names)) == len(names)
    assert compare_versions.main(["compare_versions.py", "--list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == names


@pytest.mark.parametrize(
    ("options", "message"), [(["nothing"], "unknown case 'nothing'"), (["--new=/nowhere"], "holds no kd_keras")]
)
def test_wrong_options_are_refused(capsys, options, message):
    with pytest.raises(SystemExit) as caught:
        compare_versions.main(["compare_versions.py", *options])
    assert caught.value.code == 2 and message in capsys.readouterr().err


def test_a_commit_that_does_not_exist_is_refused(tmp_path):
    with (
        pytest.raises(SystemExit, match="--old=nothing is neither a commit nor"),
        compare_versions.checkout("nothing", tmp_path),
    ):
        pass


def run_tool(*options):
    line = [sys.executable, "tools/compare_versions.py", *map(str, options)]
    return subprocess.run(line, capture_output=True, text=True, cwd=ROOT, timeout=1200, check=False)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sim_kd", "cifar"])
def test_a_forked_process_gives_what_a_new_process_gives(tmp_path, name):
    for folder, options in (("forked", []), ("fresh", ["--fresh"])):
        ended = run_tool(name, f"--old={ROOT}", f"--keep={tmp_path / folder}", *options)
        assert ended.returncode == 0, ended.stdout + ended.stderr
    result = differences.compare(tmp_path / "forked" / f"{name}-old", tmp_path / "fresh" / f"{name}-old")
    assert result.differences == result.notes == [] and len(result.models) >= 3 and result.files


@pytest.mark.slow
def test_a_changed_formula_is_found(tmp_path):
    shutil.copytree(ROOT / "kd_keras", tmp_path / "kd_keras")
    path = tmp_path / "kd_keras" / "losses" / "kd.py"
    source = path.read_text(encoding="utf-8")
    assert source.count("return factor * ") == 1
    path.write_text(source.replace("return factor * ", "return 1.001 * factor * "), encoding="utf-8")
    ended = run_tool("mixup", f"--old={ROOT}", f"--new={tmp_path}")
    assert ended.returncode == 1
    assert "student.keras: " in ended.stdout and "weight arrays differ" in ended.stdout
    assert "teacher.keras" not in ended.stdout and "baseline.keras" not in ended.stdout
