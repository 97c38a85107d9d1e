"""Runs that differ in their seeds alone are a group; what it shows is that of the formulas."""

import json
import math
import shutil

import numpy as np
import pytest
from scipy import stats

from kd_keras.errors import InputError
from kd_keras.run import workdir
from kd_keras.run.page import classes, figures, folders, groups, headline
from tests.run.page.made import make, write


def right(made, model):
    return made[model].argmax(-1) == made["labels"]


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """Two losses by three seeds: the folder, and what the models said by (loss, seed)."""
    root, said = tmp_path_factory.mktemp("sweep"), {}
    for loss, share in (("kd()", 0.75), ("ce() + kd()", 0.85)):
        for seed in range(3):
            models = {"teacher": 0.9, "baseline": 0.6, "student": share}
            name = f"{loss[:2]}-{seed}"
            said[loss, seed] = make(root / name, f"--loss={loss}", models=models, seed=seed)
    (root / "store").mkdir()
    return root, said


def test_the_gain_is_the_paired_t_interval_over_the_seeds(sweep):
    root, said = sweep
    runs, unfinished = folders.find([root])
    found, repeated = groups.group(runs)
    assert unfinished == repeated == []
    assert [group.values for group in found] == [{"loss": "ce() + kd()"}, {"loss": "kd()"}]
    for group in found:
        made = [said[group.values["loss"], seed] for seed in range(3)]
        gains = np.array([100 * (right(m, "student").mean() - right(m, "baseline").mean()) for m in made], np.float64)
        half = stats.t.ppf(0.975, 2) * gains.std(ddof=1) / math.sqrt(3)
        assert group.gain.mean == pytest.approx(gains.mean())
        assert (group.gain.low, group.gain.high) == pytest.approx((gains.mean() - half, gains.mean() + half))
    first, second = found
    pairs = [
        right(said["kd()", s], "student").mean() - right(said["ce() + kd()", s], "student").mean() for s in range(3)
    ]
    assert second.against(first).mean == pytest.approx(100 * np.mean(pairs))
    assert second.against(first).p == pytest.approx(stats.ttest_1samp(pairs, 0).pvalue)
    assert groups.ranked(found) == [first, second]


def test_holms_correction_is_over_the_groups(sweep):
    found, _ = groups.group(folders.find([sweep[0]])[0])
    p_values = sorted(group.gain.p for group in found)
    adjusted = sorted(groups.corrected([group.gain for group in found]))
    assert adjusted == pytest.approx([min(1, 2 * p_values[0]), min(1, max(2 * p_values[0], p_values[1]))])
    assert groups.corrected([None, found[0].gain]) == [None, pytest.approx(found[0].gain.p)]


def test_a_copy_of_a_run_is_no_further_evidence(sweep, tmp_path):
    shutil.copytree(sweep[0] / "kd-0", tmp_path / "copy")
    runs, _ = folders.find([sweep[0], tmp_path / "copy"])
    found, repeated = groups.group(runs)
    assert [len(group.runs) for group in found] == [3, 3]
    assert repeated == ["copy has the settings and seeds of kd-0: it is left out, as it is no further evidence."]


def test_settings_that_follow_others_do_not_make_columns(tmp_path):
    for i, flags in enumerate((("--epochs=3",), ("--epochs=5",), ("--epochs=5", "--learning_rate=0.1"))):
        make(tmp_path / str(i), *flags, "--compress=qat()", images=20)
    runs, _ = folders.find([tmp_path])
    # The teacher's settings and those of compression follow the student's.
    assert groups.differing(runs) == ["epochs", "learning_rate"]


def test_a_setting_of_a_later_version_is_at_its_default_in_an_older_run(tmp_path):
    for name in ("old", "new"):
        make(tmp_path / name, images=20)
    path = tmp_path / "old" / workdir.SETTINGS
    texts = json.loads(path.read_text())
    del texts["optimizer"], texts["teacher_optimizer"], texts["batch_size"]
    write(path, texts)
    runs, _ = folders.find([tmp_path])
    assert groups.differing(runs) == []


def test_other_test_images_are_another_group_and_not_compared(tmp_path):
    make(tmp_path / "a", images=20)
    make(tmp_path / "b", images=30)
    found, _ = groups.group(folders.find([tmp_path])[0])
    assert len(found) == 2 and found[1].against(found[0]) is None


def test_the_headline_of_one_run_is_over_its_images(tmp_path):
    made = make(tmp_path / "run")
    change = right(made, "student").astype(np.float64) - right(made, "baseline")
    half = 1.96 * change.std(ddof=1) / math.sqrt(200)
    found, _ = groups.group(folders.find([tmp_path / "run"])[0])
    says = headline.of_groups(found)
    assert says.text == f"Distillation gains {100 * change.mean():.2f} points of test accuracy over the baseline."
    ends = f"{100 * (change.mean() - half):+.2f} to {100 * (change.mean() + half):+.2f} points."
    assert says.interval.startswith(f"95 % interval over the 200 test images: {ends} This is one training")


@pytest.mark.parametrize(
    "gain, text",
    [
        ((0.05, 0.01, 0.09), "Distillation gains 5.00 points of test accuracy over the baseline."),
        ((-0.05, -0.09, -0.01), "Distillation loses 5.00 points of test accuracy against the baseline."),
        ((0.002, -0.004, 0.008), "Student and baseline are equal within 1 point: +0.20 points of test accuracy."),
        (
            (0.02, -0.02, 0.06),
            "It is undecided whether distillation helps: +2.00 points of test accuracy to the baseline.",
        ),
    ],
)
def test_the_headline_says_no_more_than_the_interval(gain, text, tmp_path):
    make(tmp_path / "run", images=20)
    path = tmp_path / "run" / "summary.json"
    about = json.loads(path.read_text())
    about["gain"] |= dict(zip(("change", "low", "high"), gain, strict=True))
    write(path, about)
    found, _ = groups.group(folders.find([tmp_path / "run"])[0])
    assert headline.of_groups(found).text == text


def test_seeds_that_are_wide_apart_decide_nothing(tmp_path):
    for seed, share in enumerate((0.3, 0.9)):
        make(tmp_path / str(seed), models={"teacher": 0.9, "baseline": 0.5, "student": share}, seed=seed)
    says = headline.of_groups(groups.group(folders.find([tmp_path])[0])[0])
    assert says.text.startswith("It is undecided") and says.interval.startswith("95 % interval over 2 seeds: -")


def test_without_a_baseline_the_score_has_its_wilson_interval(tmp_path):
    made = make(tmp_path / "run", models={"teacher": 0.9, "student": 0.8})
    says = headline.of_groups(groups.group(folders.find([tmp_path / "run"])[0])[0])
    share, n, z = right(made, "student").mean(), 200, stats.norm.ppf(0.975)
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    assert says.text == f"The student reaches {100 * share:.2f} % test accuracy."
    ends = f"{100 * (middle - half):.2f} to {100 * (middle + half):.2f} %"
    assert says.interval.startswith(f"95 % interval over the 200 test images: {ends}. There is no baseline")


def test_gains_by_class_are_recalls_tested_by_mcnemar_and_holm(tmp_path):
    made = make(tmp_path / "run", images=400, models={"teacher": 0.9, "baseline": 0.3, "student": 0.95})
    (group,), _ = groups.group(folders.find([tmp_path / "run"])[0])
    found = {item.name: item for item in classes.gains(group)["rows"]}
    p_values = {}
    for i, name in enumerate(("cat", "dog", "cow")):
        of_class = made["labels"] == i
        student, baseline = (right(made, model)[of_class] for model in ("student", "baseline"))
        won, lost = (student & ~baseline).sum(), (baseline & ~student).sum()
        assert found[name].gain.mean == pytest.approx(100 * (student.mean() - baseline.mean()))
        assert (found[name].images, found[name].won, found[name].lost) == (of_class.sum(), won, lost)
        smaller = sum(math.comb(int(won + lost), k) for k in range(min(won, lost) + 1))
        p_values[name] = min(1.0, 2 * smaller / 2 ** int(won + lost))
    highest = 0.0
    for rank, name in enumerate(sorted(p_values, key=p_values.get)):
        highest = max(highest, min(1.0, (3 - rank) * p_values[name]))
        assert found[name].p == pytest.approx(highest)


def test_the_reliability_diagram_has_the_bins_of_the_calibration_error(tmp_path):
    made = make(tmp_path / "run")
    (group,), _ = groups.group([folders.Run(tmp_path / "run")])
    found = {item.name: item for item in figures.reliability(group)["models"]}
    z = made["student"] - made["student"].max(-1, keepdims=True)
    confidence = (np.exp(z) / np.exp(z).sum(-1, keepdims=True)).max(-1)
    bins, error = np.ceil(15 * confidence) - 1, 0.0
    for i in range(15):
        inside = bins == i
        if inside.any():
            error += inside.mean() * abs(right(made, "student")[inside].mean() - confidence[inside].mean())
            assert found["student distilled"].counts[i] == inside.sum()
    assert found["student distilled"].error == pytest.approx(error, abs=1e-6)


def test_images_are_those_on_which_the_models_differ(tmp_path):
    made = make(tmp_path / "run")
    (group,), _ = groups.group([folders.Run(tmp_path / "run")])
    teacher, baseline, student = (right(made, model) for model in ("teacher", "baseline", "student"))
    counts = {
        "Only the baseline is wrong": teacher & ~baseline & student,
        "Only the teacher is right": teacher & ~baseline & ~student,
        "The student is wrong, the baseline right": baseline & ~student,
        "The student is right, the teacher wrong": ~teacher & student,
    }
    for kind in classes.differing(group):
        indices = {image["index"] for image in kind["images"]}
        assert kind["count"] == counts[kind["name"]].sum() and len(indices) == min(8, kind["count"])
        assert all(counts[kind["name"]][list(indices)])


def test_what_can_not_be_compared_is_refused(tmp_path):
    make(tmp_path / "a", images=20)
    make(tmp_path / "b", images=20)
    rows = json.loads((tmp_path / "b" / "results.json").read_text())
    write(tmp_path / "b" / "results.json", [{**row, "test_map": 0.5} for row in rows])
    with pytest.raises(InputError, match="their scores can't be compared"):
        groups.group(folders.find([tmp_path])[0])


def test_folders_without_a_finished_run_are_refused_in_a_sentence(tmp_path):
    make(tmp_path / "run", images=20)
    (tmp_path / "empty").mkdir()
    shutil.copytree(tmp_path / "run", tmp_path / "begun")
    (tmp_path / "begun" / "results.json").unlink()
    shutil.copytree(tmp_path / "run", tmp_path / "old")
    (tmp_path / "old" / workdir.STATE).unlink()
    for names, message in {
        ("nothing",): "nothing is no folder: give the --workdir of a run or of a sweep",
        ("empty",): "empty holds no run: give the --workdir of a finished run",
        ("begun",): "begun holds a run that has not ended",
        ("old",): "old is a run of version 0.1",
        ("run", "run"): "run is named twice",
    }.items():
        with pytest.raises(InputError, match=message):
            folders.find([tmp_path / name for name in names])
    shutil.rmtree(tmp_path / "old")
    runs, unfinished = folders.find([tmp_path])
    assert [run.name for run in runs] == ["run"] and unfinished == [
        f"{tmp_path / 'begun'} has not ended: it is left out."
    ]


@pytest.mark.parametrize("name", ["results.json", "summary.json", "predictions.npz", "config.json"])
def test_a_damaged_file_is_an_error_of_one_line(name, tmp_path):
    make(tmp_path / "run", images=20)
    (tmp_path / "run" / name).write_bytes(b"{]")
    with pytest.raises(InputError, match=f"{name} can't be read"):
        run = folders.Run(tmp_path / "run")
        _ = run.rows, run.summary, run.predictions, run.settings
