"""What is in the key of a stage: plans of tiny models, built without variables; nothing is trained."""

import dataclasses
import json
import shutil
import sys

import keras
import numpy as np
import PIL.Image
import pytest

from kd_keras._compat.keras import shapes_only
from kd_keras.errors import InputError
from kd_keras.losses import kd
from kd_keras.run import config
from kd_keras.run.runner import plan_of
from kd_keras.run.session import Session
from kd_keras.run.settings import declared
from kd_keras.schemes.plan import Export, Measure, Train

DATA = ["--data=digits()"]
MODELS = ["--teacher=cnn(filters=(4,), dense=())", "--student=cnn(filters=(2,), dense=())"]
#: Settings of the teacher that follow the student's: given, so that a change of the student's changes the student's.
PINNED = ["--teacher_epochs=10", "--teacher_optimizer=adam()", "--teacher_learning_rate=0.001"]
PINNED += ["--teacher_batch_size=64", "--teacher_augment=none", "--teacher_seed=0", "--teacher_precision=float32"]
CACHED, COMPRESSED = ["--cache_views=2"], ["--compress=prune()"]
BASE = [*DATA, *MODELS, *PINNED, *CACHED, *COMPRESSED, "--loss=ce() + kd()", "--baseline", "--export=float32,int8"]
#: Stages by what `affects` calls them, and the models that each of them is made from.
STAGES = {
    "teacher": "teacher",
    "baseline": "baseline",
    "cache": "teacher-cache-logits",
    "student": "student",
    "compress": "prune-student",
}
MADE_FROM = {"cache": ["teacher"], "student": ["teacher", "cache"], "compress": ["teacher", "cache", "student"]}


@pytest.fixture(scope="module")
def plan():
    """A function of flags that gives their plan. Plans are made once, but for ``fresh``; models of a data set too."""
    models, plans = {}, {}

    def plan(*flags, base=BASE, precision="float32", fresh=False):
        case = (flags, tuple(base), precision)
        if fresh:
            return make(*case)
        if case not in plans:
            plans[case] = make(*case)
        return plans[case]

    def make(flags, base, precision):
        resolved = config.read(["kd_keras", *base, "--tracking=none", "--workdir=nowhere", *flags])
        session = Session(resolved, precision=precision)
        session.facts._models, session.facts._taps = models.setdefault(session.splits.image_shape, ({}, {}))
        with shapes_only():
            return plan_of(resolved, session.facts)

    return plan


def keys(plan):
    """The keys of the models and caches, as `affects` names them."""
    by_name = {stage.name: stage.key for stage in (*plan.roots, *plan.stages)}
    return {kind: by_name[name] for kind, name in STAGES.items() if name in by_name}


def files(plan):
    """What is written and measured: stages of two kinds, by name and key."""
    return {(stage.name, stage.key) for stage in plan.stages if isinstance(stage, (Export, Measure))}


def changed(before, after):
    before, after = keys(before), keys(after)
    return {kind for kind in before if before[kind] != after.get(kind, before[kind])}


def closure(kinds):
    """These and all that is made from them."""
    return {kind for kind in STAGES if kind in kinds or set(kinds) & set(MADE_FROM.get(kind, ()))}


RESNET = "resnet(depth=50, pretrained='imagenet')"
#: The other value of every setting, and what the plan needs beside `BASE` for the setting to matter.
OTHER = {
    "data": ["digits(val_fraction=0.3)"],
    "train_examples": ["400"],
    "labelled_examples": ["400"],
    "teacher_labelled_examples": ["400"],
    "unlabelled_ratio": ["2", "--labelled_examples=400", "--nobaseline"],
    "val_fraction": ["0.3"],
    "image_size": ["40", "--data=FOLDER"],
    "skip_bad_images": ["true", "--data=FOLDER"],
    "max_image_pixels": ["1000000", "--data=FOLDER"],
    "augment": ["flip()"],
    "teacher": ["cnn(filters=(5,), dense=())"],
    "teacher_loss": ["ce(label_smoothing=0.1)"],
    "teacher_epochs": ["11"],
    "teacher_optimizer": ["sgd()"],
    "teacher_learning_rate": ["0.002"],
    "teacher_batch_size": ["32"],
    "teacher_patience": ["3"],
    "teacher_augment": ["flip()"],
    "teacher_seed": ["1"],
    "teacher_precision": ["mixed_bfloat16"],
    "teacher_stop_at_val_accuracy": ["0.5"],
    "teacher_stop_check_steps": ["20", "--teacher_stop_at_val_accuracy=0.5"],
    "teacher_from": ["WORKDIR"],
    "teacher_image_size": ["16"],
    "teacher_channels": ["3"],
    "teacher_scaling": ["-1..1"],
    "teacher_dtype": ["float32"],
    "student": ["cnn(filters=(3,), dense=())"],
    "student_from": ["SAVED"],
    "freeze": ["stage1*"],
    "loss": ["kd()"],
    "pretrain_epochs": [
        "2",
        "--loss=ce() + kd() + ft(pairs='stage1:stage1')",
        "--pretrain_epochs=1",
        "--compress_loss=ce()",
    ],
    "baseline": ["false"],
    "baseline_loss": ["ce(label_smoothing=0.1)"],
    "baseline_from": ["elsewhere"],
    "pretrained": ["false", "--data=FOLDER", "--compress=none", f"--teacher={RESNET}", f"--student={RESNET}"],
    "scheme": ["assistant(chain=cnn(filters=(3,), dense=()))"],
    "epochs": ["20"],
    "batch_size": ["32"],
    "patience": ["3", "--teacher_patience=2"],
    "clipnorm": ["1"],
    "optimizer": ["sgd()"],
    "learning_rate": ["0.002"],
    "seed": ["1"],
    "cache_views": ["3"],
    "cache_taps": ["pooled"],
    "cache_dtype": ["float32"],
    "cache_top_k": ["3"],
    "cache_seed": ["1"],
    "cache_limit_gb": ["5"],
    "cache_folder": ["elsewhere"],
    "precision": ["mixed_bfloat16"],
    "strategy": ["one"],
    "worker_timeout": ["5"],
    "jit_compile": ["true"],
    "steps_per_execution": ["2"],
    "export": ["float32,int8,float16"],
    "export_beside": ["teacher,baseline"],
    "keep_float": ["logits"],
    "layer_report": ["true"],
    "licence": ["CC0"],
    "max_accuracy_drop": ["0.5"],
    "compress": ["prune(sparsity=0.3)"],
    "compress_loss": ["ce()"],
    "compress_controls": ["untaught,baseline"],
    "compress_epochs": ["5"],
    "compress_optimizer": ["sgd()"],
    "compress_learning_rate": ["0.002"],
    "compress_export": ["float32"],
    "tracking": ["mlflow"],
    "tracking_uri": ["sqlite:///x.db"],
    "experiment": ["another"],
    "run_name": ["another"],
    "tracking_system_metrics": ["true", "--tracking=mlflow"],
    "workdir": ["elsewhere"],
    "store": ["elsewhere"],
    "allow_code_in": ["SAVED", "--student_from=SAVED"],
    "wait": ["true"],
    "dry_run": ["true"],
    "progress": ["none"],
}
#: They change the process that reads them, and no stage's fields: see test_run.
NOT_HERE = {"threads", "deterministic"}


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Folders and files that flags name: images, a saved model, the workdir of a run with a teacher."""
    root = tmp_path_factory.mktemp("places")
    draw(root / "images")
    model = build(4)
    model.save(root / "saved.keras")
    (root / "run").mkdir()
    model.save(root / "run" / "teacher.keras")
    session = Session(config.read(["kd_keras", *DATA, "--teacher=none", "--loss=ce()"]))
    models = {"teacher": {"architecture": "cnn(filters=(4,), dense=())", "content": "x"}}
    state = {"data": session.data_record(), "models": models}
    (root / "run" / "workdir.json").write_text(json.dumps(state))
    return root


def build(filters, seed=0):
    from kd_keras.models import cnn

    keras.utils.set_random_seed(seed)
    return cnn.CNN(10, (8, 8, 1), filters=(filters,), dense=())


def draw(folder, seed=0):
    """A folder of noise in two classes."""
    noise = np.random.default_rng(seed)
    for split, count in (("train", 10), ("val", 4), ("test", 4)):
        for number in range(count):
            path = folder / split / "ab"[number % 2] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            PIL.Image.fromarray(noise.integers(0, 256, (32, 32, 3), np.uint8)).save(path)
    return folder


def put(text, places):
    """A flag's text with the names of real places."""
    for name, path in {"FOLDER": f"folder(path='{places / 'images'}')", "SAVED": places / "saved.keras"}.items():
        text = text.replace(name, str(path))
    return text.replace("WORKDIR", str(places / "run"))


def test_every_setting_is_in_the_table():
    assert set(OTHER) | NOT_HERE == set(declared(config.Config)) and not set(OTHER) & NOT_HERE


@pytest.mark.parametrize("flag", OTHER)
def test_a_setting_changes_the_keys_that_it_declares(flag, plan, places):
    value, *needs = (put(text, places) for text in OTHER[flag])
    before, after = plan(*needs), plan(*needs, f"--{flag}={value}")
    affects = set(declared(config.Config)[flag].affects)
    expected = set(STAGES) if "data" in affects else closure(affects)
    if flag in ("skip_bad_images", "max_image_pixels"):
        expected = set()  # all images can be read, and none is large
    if flag == "baseline_loss":
        expected = {"baseline"}  # the student learns by it in some schemes
    assert changed(before, after) == expected & set(keys(before))
    if not affects:
        assert files(before) == files(after)
    elif affects == {"files"}:
        stages = [{(stage.name, stage.key) for stage in p.stages} for p in (before, after)]
        assert stages[0] != stages[1]


def test_a_student_that_learns_by_the_baselines_loss_has_it_in_its_key(plan):
    flags = ["--scheme=self_distillation()", "--teacher=none", "--student=cnn(filters=(2, 3), dense=())"]
    base = [*DATA, *flags, "--loss=ce() + kd()", "--compress_loss=ce()", *COMPRESSED]
    before, after = plan(base=base), plan("--baseline_loss=ce(label_smoothing=0.1)", base=base)
    assert changed(before, after) == {"baseline", "student", "compress"}


def test_a_compression_step_may_have_a_training_of_its_own(plan):
    text = "prune(epochs=3, learning_rate=cosine(start=0.01)) + cluster(epochs=4) + qat()"
    made = plan(f"--compress={text}", "--compress_epochs=2", "--compress_learning_rate=0.002", "--compress_export=int8")
    trained = {stage.name: stage for stage in made.stages if isinstance(stage, Train) and stage.is_wrapped}
    seen = [(stage.recipe.epochs, str(stage.recipe.learning_rate)) for stage in trained.values()]
    assert seen == [
        (3, "cosine(start=0.01, end=0.0, per='epoch')"),
        (4, "constant(value=0.002)"),
        (2, "constant(value=0.002)"),
    ]
    per_epoch = {stage.model.what.kwargs["steps"] / stage.recipe.epochs for stage in trained.values()}
    assert len(per_epoch) == 1


def test_a_teachers_setting_that_is_not_given_follows_the_students(plan):
    base = [flag for flag in BASE if flag not in PINNED]
    for flag in ("--seed=1", "--learning_rate=0.002", "--batch_size=32", "--epochs=20", "--precision=mixed_bfloat16"):
        assert changed(plan(base=base), plan(flag, base=base)) == set(STAGES), flag
    # Followed or given: the key is of the value.
    assert keys(plan(base=base)) == keys(plan())


def test_the_seed_draws_the_images_of_the_student_alone(plan):
    flags = ["--train_examples=400"]
    assert changed(plan(*flags), plan(*flags, "--seed=1")) == set(STAGES) - {"teacher"}
    assert changed(plan(*flags), plan(*flags, "--teacher_seed=1")) == set(STAGES) - {"baseline"}


# ---- spelling ----


@pytest.mark.parametrize(
    ("flag", "spellings"),
    [
        (
            "loss",
            [
                "kd()",
                "kd",
                "kd(temperature=4.0)",
                "kd(temperature=4)",
                "kd(1)",
                "kd(1.0, 4)",
                "kd(temperature=constant(4))",
                "kd(weight=constant(value=1.0))",
            ],
        ),
        (
            "loss",
            ["kd(weight=0.5, temperature=2)", "kd(temperature=2.0, weight=0.5)", "kd(0.5, constant(2))", "kd(0.5, 2)"],
        ),
        (
            "loss",
            [
                "kd(temperature=cosine(start=4, end=1, over=3))",
                "kd(temperature=cosine(end=1.0, start=4.0, over=3.0, per='epoch'))",
            ],
        ),
        ("loss", ["kd(temperature=warmup(to=2))", "kd(temperature=warmup(to=constant(2.0), over=1))"]),
        ("learning_rate", ["0.001", "1e-3", "constant(0.001)", "constant(value=0.001)"]),
        ("learning_rate", ["cosine(start=1)", "cosine(start=1.0, end=0.0)", "cosine(end=0, start=1, over=None)"]),
        ("learning_rate", ["warmup(to=0.1, over=5)", "warmup(over=5.0, to=constant(0.1), per='epoch')"]),
        ("optimizer", ["sgd()", "sgd(momentum=0.0)", "sgd(momentum=0)", "SGD(nesterov=False)"]),
        (
            "student",
            ["cnn(filters=(2,), dense=())", "cnn(dense=(), filters=(2,), convs=1)", "cnn(filters=[2], dense=[])"],
        ),
        ("augment", ["pad_crop(pixels=4)", "pad_crop(4)"]),
        ("compress", ["prune()", "prune(sparsity=0.8)", "prune(0.8, 0)"]),
        ("scheme", ["offline()", "offline"]),
        ("teacher_dtype", ["auto", " auto"]),
        ("steps_per_execution", ["none", "1", "4"]),
    ],
)
def test_equal_spellings_have_one_key(flag, spellings, plan):
    first, *others = (keys(plan(f"--{flag}={spelling}")) for spelling in spellings)
    for spelling, other in zip(spellings[1:], others, strict=True):
        assert other == first, spelling


@pytest.mark.parametrize(
    ("flag", "value", "other"),
    [
        ("loss", "kd(temperature=4)", "kd(temperature=4.001)"),
        ("loss", "kd(temperature=2)", "kd(temperature=cosine(start=2, end=1, over=3))"),
        ("loss", "ce() + kd()", "kd() + ce()"),  # sums round by their order
        ("learning_rate", "warmup(to=0.1, over=5)", "warmup(to=0.1, over=5, per='step')"),
        ("augment", "flip() + pad_crop(4)", "pad_crop(4) + flip()"),
        ("optimizer", "sgd()", "sgd(nesterov=True)"),
    ],
)
def test_other_values_have_other_keys(flag, value, other, plan):
    assert keys(plan(f"--{flag}={value}"))["student"] != keys(plan(f"--{flag}={other}"))["student"]


def test_a_default_that_is_written_out_changes_no_key(plan):
    """Every setting at once, as a record of the run has it."""
    resolved = config.read(["kd_keras", *BASE, "--tracking=none", "--workdir=nowhere"])
    texts = [f"--{flag}={text}" for flag, text in resolved.texts().items() if flag not in NOT_HERE]
    assert {stage.key for stage in plan(base=texts).stages} == {stage.key for stage in plan().stages}


def test_a_new_setting_of_a_part_or_stage_changes_no_key_at_its_default(plan, monkeypatch):
    before = keys(plan())

    class KD(kd.KD):
        def __init__(self, sharpness=0, **kwargs):
            super().__init__(**kwargs)

    KD.__module__ = kd.__name__
    monkeypatch.setattr(kd, "KD", KD)
    assert keys(plan(fresh=True)) == before
    assert keys(plan("--loss=ce() + kd(sharpness=1)"))["student"] != before["student"]
    stage = next(stage for stage in plan().stages if stage.name == "student")
    wider = dataclasses.make_dataclass("Train", [("warmup_steps", int, 0)], bases=(Train,), frozen=True, kw_only=True)
    values = {field.name: getattr(stage, field.name) for field in dataclasses.fields(stage)}
    assert wider(**values).key == stage.key != wider(**values, warmup_steps=1).key


def test_auto_is_in_no_key(plan):
    for precision in ("mixed_bfloat16", "float32"):
        resolved = plan("--precision=auto", "--teacher_precision=auto", precision=precision)
        named = plan(f"--precision={precision}", f"--teacher_precision={precision}")
        assert keys(resolved) == keys(named)
        assert not any('"auto"' in json.dumps(stage.content) for stage in resolved.stages)


# ---- what a key is free of, and what changes it ----


def test_names_are_in_no_key(plan):
    for stage in plan().stages:
        renamed = dataclasses.replace(stage, name="another", role="other", architecture="else")
        assert renamed.key == stage.key
    # The student that a teacher teaches directly is the student of a run without assistants.
    direct = plan("--scheme=assistant(chain=cnn(filters=(3,), dense=()), direct=True)")
    by_name = {stage.name: stage.key for stage in direct.stages}
    assert by_name["direct"] == keys(plan())["student"] != by_name["student"]


def test_paths_are_in_no_key(plan, places, tmp_path):
    shutil.copytree(places / "images", tmp_path / "moved")
    here, there = (plan(f"--data=folder(path='{path}')") for path in (places / "images", tmp_path / "moved"))
    assert {stage.key for stage in here.stages} == {stage.key for stage in there.stages}
    other = plan(f"--data=folder(path='{draw(tmp_path / 'other', seed=1)}')")
    assert changed(here, other) == set(STAGES)
    shutil.copy(places / "saved.keras", tmp_path / "copy.keras")
    paths = [places / "saved.keras", tmp_path / "copy.keras"]
    base = [flag for flag in BASE if not flag.startswith("--teacher")]
    first, second = (plan(f"--teacher=saved(path='{path}')", base=base) for path in paths)
    assert {stage.key for stage in first.stages} == {stage.key for stage in second.stages}
    first, second = (plan(f"--student_from={path}") for path in paths)
    assert {stage.key for stage in first.stages} == {stage.key for stage in second.stages}
    build(4, seed=1).save(tmp_path / "others.keras")
    third = plan(f"--student_from={tmp_path / 'others.keras'}")
    assert keys(third)["student"] != keys(first)["student"]
    for plan_ in (here, first):
        assert not any(str(places) in json.dumps(stage.content) for stage in plan_.stages)


def test_a_borrowed_teacher_is_its_content(plan, places):
    base = [flag for flag in BASE if not flag.startswith("--teacher")]
    saved = plan(f"--teacher=saved(path='{places / 'run' / 'teacher.keras'}')", base=base)
    borrowed = plan(f"--teacher_from={places / 'run'}")
    assert keys(borrowed)["teacher"] == keys(saved)["teacher"]
    with pytest.raises(InputError, match="holds no run"):
        plan(f"--teacher_from={places / 'images'}")


PART = """
from kd_keras import losses


class MyLoss(losses.ResponseLoss):
    def __init__(self, weight=1.0, power=2, **kwargs):
        super().__init__(weight=weight, **kwargs)
        self.power = power

    def call(self, student, teacher, labels):
        return student["logits"][:, 0] * 0.0  # %s
"""


def test_a_part_of_the_users_own_is_keyed_by_its_source(plan, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    found = []
    for name, comment in (("first", "a"), ("first", "b"), ("first", "a")):
        (tmp_path / f"{name}_part.py").write_text(PART % comment)
        sys.modules.pop(f"{name}_part", None)
        found.append(keys(plan(f"--loss=ce() + {name}_part:MyLoss()", fresh=True)))
    assert found[0] == found[2] and found[0]["student"] != found[1]["student"]
    assert found[0]["teacher"] == found[1]["teacher"] and found[0]["baseline"] == found[1]["baseline"]
    assert found[0] == keys(plan("--loss=ce() + first_part:MyLoss(power=2.0)"))


def test_a_parts_version_is_in_the_keys_of_what_it_makes(plan, monkeypatch):
    before = plan()
    monkeypatch.setattr(kd, "VERSION", 2, raising=False)
    assert changed(before, plan(fresh=True)) == {"student", "compress"}
    monkeypatch.setattr(kd, "VERSION", 1)
    assert not changed(before, plan(fresh=True))


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("Train", set(STAGES)),
        ("Cache", {"cache", "student", "compress"}),
        ("Build", set(STAGES)),
        ("Measure", {"cache", "student", "compress"}),
        ("Export", set()),
    ],
)
def test_a_stages_version_is_in_its_key_and_in_those_made_from_it(kind, expected, plan, monkeypatch):
    from kd_keras.schemes import plan as stages

    before = plan()
    keys(before), files(before)  # keys are kept
    monkeypatch.setattr(getattr(stages, kind), "VERSION", 2)
    after = plan(fresh=True)
    assert changed(before, after) == expected
    assert files(before) != files(after)
