"""What holds for every scheme. A new file of kd_keras/schemes is tested here on arrival, with one teacher."""

import keras
import numpy as np
import pytest

from kd_keras import spec
from kd_keras.errors import InputError
from kd_keras.run import callbacks
from tests.schemes.tiny import checked, record, records, stage_of, trained, weights

PACKAGE = "kd_keras.schemes"
A, B = "cnn(filters=(4,), dense=())", "cnn(filters=(3,), dense=())"
#: Flags of a tiny run of each, and who teaches whom in it, in the order of training.
CASES = {
    "offline": ([f"--teacher={A}"], {"teacher": None, "baseline": None, "student": "teacher"}),
    "ensemble": (
        [f"--teacher={A} + {B}", "--scheme=ensemble()", "--nobaseline"],
        {"teacher1": None, "teacher2": None, "student": "ensemble"},
    ),
    "assistant": (
        [f"--teacher={A}", f"--scheme=assistant(chain={B} + {A})", "--nobaseline"],
        {"teacher": None, "assistant1": "teacher", "assistant2": "assistant1", "student": "assistant2"},
    ),
    "born_again": (
        ["--teacher=none", "--scheme=born_again(generations=3, ensemble=True)"],
        {"baseline": None, "generation1": "baseline", "generation2": "generation1", "student": "generation2"},
    ),
    "pretrain": (
        [f"--teacher={A}", "--scheme=pretrain(loss=hint(pairs='pooled:pooled'), probe=True)"],
        {
            "teacher": None,
            "baseline": None,
            "untrained_probe": None,
            "pretrained": "teacher",
            "pretrained_probe": None,
            "student": "teacher",
        },
    ),
    "mutual": (["--teacher=none", f"--scheme=mutual(peers={A} + {B})"], {"baseline": None, "peers": None}),
    "self_distillation": (
        ["--teacher=none", "--scheme=self_distillation(export_exits=True)", "--student=cnn(filters=(2, 3), dense=())"],
        {"baseline": None, "exits": None},
    ),
}
NAMES = spec.names(PACKAGE)
TAUGHT = [name for name in NAMES if name not in ("mutual", "self_distillation")]


def flags(name):
    return CASES[name][0] if name in CASES else [f"--teacher={A}", f"--scheme={name}()"]


def taught_by(runner):
    """Who teaches in each finished training."""
    stages = {name: stage_of(runner, name) for name in records(runner)}
    return {name: None if stage.teacher is None else stage.teacher.name for name, stage in stages.items()}


@pytest.fixture
def killed(monkeypatch):
    """Stops the run in the second epoch of the n-th training from now."""

    def after(count):
        begun = []

        def on_epoch_begin(self, epoch, logs=None):
            self.epoch = epoch
            if epoch == 0 or not begun:
                begun.append(epoch)
            if epoch == 1 and len(begun) == count:
                raise KeyboardInterrupt

        monkeypatch.setattr(callbacks.StopAtNaN, "on_epoch_begin", on_epoch_begin)

    yield after
    monkeypatch.undo()


@pytest.mark.parametrize("name", NAMES)
def test_its_source_is_named(name):
    assert "Reference:" in spec.builder(PACKAGE, name).__doc__


@pytest.mark.parametrize("name", NAMES)
def test_checking_writes_nothing(name, tmp_path):
    checked(tmp_path, *flags(name))
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize("name", NAMES)
def test_losses_and_models_that_do_not_fit_are_refused_before_training(name, tmp_path):
    with pytest.raises(InputError, match="stage9"):
        checked(tmp_path, *flags(name), "--loss=ce() + hint(pairs='pooled:stage9')")


# The scheme with most stages; the others differ in which there are.
@pytest.mark.parametrize(
    "name", [name if name == "assistant" else pytest.param(name, marks=pytest.mark.slow) for name in NAMES]
)
def test_a_run_that_was_killed_goes_on_with_the_stage_it_was_in(name, tmp_path, killed):
    stages = list(CASES[name][1]) if name in CASES else []
    runner = checked(tmp_path, *flags(name), "--epochs=2")
    killed(2)
    with pytest.raises(KeyboardInterrupt):
        runner.run()
    before = records(runner)
    assert list(before) == stages[:1] or not stages
    killed(0)
    runner = trained(tmp_path, *flags(name), "--epochs=2")
    after = records(runner)
    assert {stage: after[stage] for stage in before} == before
    assert all(len(left["series"]["loss"]) == 2 for left in after.values())
    models = runner.plan.models
    assert runner.plan.students[0].role == "student distilled" and set(runner.plan.students) <= set(models)
    assert runner.plan.reference in models or (runner.plan.reference is None and name not in TAUGHT)
    assert len({model.role for model in models}) == len(models)
    assert all((runner.store.folder(model) / "model.keras").exists() for model in models)
    if stages:
        assert taught_by(runner) == CASES[name][1]
    if name == "born_again":
        _check_generations([runner.load(model) for model in models])


def _check_generations(models):
    *kinds, ensemble = models
    assert len(kinds) == 4
    first = [kind.weights[0].numpy() for kind in kinds]
    assert not any(np.allclose(a, b) for i, a in enumerate(first) for b in first[:i])
    x = np.random.default_rng(0).uniform(0, 255, (4, 8, 8, 1)).astype("float32")
    mean = np.mean([keras.ops.softmax(kind(x)) for kind in kinds[1:]], axis=0)
    np.testing.assert_allclose(keras.ops.softmax(ensemble(x)), mean, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_killed_in_every_stage_it_gives_the_same_models(name, tmp_path, killed):
    whole = trained(tmp_path / "whole", *flags(name), "--epochs=2")
    for number in range(len(records(whole))):
        # The second time, the training that was interrupted ends, and the next one is.
        killed(2 if number else 1)
        with pytest.raises(KeyboardInterrupt):
            trained(tmp_path, *flags(name), "--epochs=2")
    killed(0)
    again = trained(tmp_path, *flags(name), "--epochs=2")
    series = [{name: left["series"] for name, left in records(runner).items()} for runner in (again, whole)]
    assert series[0] == series[1]
    for model in whole.plan.models:
        ours, theirs = (weights(runner, model.name) for runner in (again, whole))
        assert all(np.array_equal(x, y) for x, y in zip(ours, theirs, strict=True))


@pytest.mark.slow
def test_the_student_is_also_taught_directly(tmp_path):
    flags = [f"--teacher={A}", f"--scheme=assistant(chain={B}, direct=True)", "--nobaseline"]
    runner = trained(tmp_path, *flags)
    assert [model.name for model in runner.plan.models] == ["teacher", "assistant1", "direct", "student"]
    assert taught_by(runner) == {"teacher": None, "assistant1": "teacher", "direct": "teacher", "student": "assistant1"}
    # It is the offline student by its key: the same training.
    offline = checked(tmp_path / "offline", flags[0], "--nobaseline")
    assert stage_of(offline, "student").key == stage_of(runner, "direct").key
    assert record(runner, "direct")["series"] != record(runner, "student")["series"]


BAD = {
    "two teachers of one student": (
        [f"--teacher={A} + {B}", "--scheme=offline()"],
        r"--teacher names 2 models and --scheme=offline\(\) takes one: .*--scheme='ensemble\(\)'",
    ),
    "two teachers of a chain": ([f"--teacher={A} + {B}", f"--scheme=assistant(chain={A})"], "takes one"),
    "two teachers of generations": ([f"--teacher={A} + {B}", "--scheme=born_again()"], "takes one"),
    "a chain of nothing": ([f"--teacher={A}", "--scheme=assistant()"], "lacks the key 'chain'"),
    "a chain of numbers": ([f"--teacher={A}", "--scheme=assistant(chain=3)"], "give models, chain="),
    "an unknown assistant": ([f"--teacher={A}", "--scheme=assistant(chain=cmn())"], "did you mean 'cnn'"),
    "an assistant without teacher": (["--teacher=none", f"--scheme=assistant(chain={A})"], "takes 1 teacher, and"),
    "assistants that are taught nothing": (
        [f"--teacher={A}", f"--scheme=assistant(chain={A})", "--loss=ce()"],
        r"--scheme=assistant\(\) but no loss of --loss reads a teacher",
    ),
    "direct in words": ([f"--teacher={A}", f"--scheme=assistant(chain={A}, direct='no')"], "True or False"),
    "no generation": (["--scheme=born_again(generations=0)"], "whole number of at least 1"),
    "an ensemble of one": (["--scheme=born_again(generations=1, ensemble=True)"], "one generation is no ensemble"),
    "ensemble in words": (["--scheme=born_again(ensemble=1)"], "True or False"),
    "nothing to begin with": (["--scheme=born_again()", "--nobaseline"], "has nothing to begin with"),
    "generations that are taught nothing": (["--scheme=born_again()", "--loss=ce()"], "no loss of --loss reads"),
    "a teacher among peers": ([f"--teacher={A}", f"--scheme=mutual(peers={A})"], "takes no teacher, .*--teacher=none"),
    "no peers": (["--teacher=none", "--scheme=mutual(peers=2)"], "give models, peers="),
    "peers that do not teach": (
        ["--teacher=none", f"--scheme=mutual(peers={A})", "--loss=ce()"],
        "add one, such as kd",
    ),
    "peers and a cache": (["--teacher=none", f"--scheme=mutual(peers={A})", "--cache_views=1"], "reads a teacher"),
    "a student that changes": (["--teacher=none", f"--scheme=mutual(peers={A})", "--loss=sim_kd()"], "offline"),
    "exits of a single stage": (["--teacher=none", "--scheme=self_distillation()"], "two or more stages.*has stage1$"),
    "exits in words": (["--teacher=none", "--scheme=self_distillation(export_exits='no')"], "True or False"),
    "a stop of no training": (
        [f"--teacher={A}", "--teacher_epochs=0", "--teacher_stop_at_val_accuracy=0.5"],
        "is not trained: give --teacher_epochs",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_can_not_be_is_refused(case, tmp_path):
    flags, message = BAD[case]
    with pytest.raises(InputError, match=message) as error:
        checked(tmp_path, *flags)
    assert "\n" not in str(error.value)
