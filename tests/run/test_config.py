"""The settings: what is read, what is refused, what is written back."""

import dataclasses
import os
import pathlib
import random
import subprocess
import sys

import pytest

from kd_keras import schedules, spec
from kd_keras.errors import InputError
from kd_keras.run import config
from kd_keras.run.kinds import Alternatives, Choice, Folder, ImageSize, Items, Number, OrNone, Part, Rate, Sum, Switch
from kd_keras.run.settings import Follows, declared
from kd_keras.spec import Spec
from tests.conftest import ROOT

SETTINGS = declared(config.Config)


def read(*flags):
    return config.read(["kd_keras", *map(str, flags)])


@pytest.fixture
def flagfile(tmp_path):
    path = tmp_path / "study.flags"
    path.write_text(
        "# A comment.\n--epochs=3\n\n--loss=ce(weight=0.5) + kd(weight=0.5)\n"
        "--student=cnn(filters=(4,))\n--nobaseline\n"
    )
    return path


def test_defaults():
    made = read()
    assert made.data.source == Spec("digits") and made.student.model == Spec("cnn")
    assert made.training.scheme == Spec("offline")
    assert made.teacher.models == () and made.teacher.by_stage == {} and made.teacher.epochs is None
    assert list(map(str, made.student.loss)) == ["ce(weight=0.1)", "kd(weight=0.9, temperature=4.0)"]
    assert made.teacher.loss == made.student.baseline_loss == (Spec("ce"),)
    assert made.training.learning_rate == made.teacher.learning_rate == schedules.constant(0.001)
    assert made.export.variants == ("float32", "float16", "dynamic", "int8")
    assert (made.training.epochs, made.training.batch_size, made.training.seed, made.student.baseline) == (
        10,
        64,
        0,
        True,
    )
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.training.epochs = 8


# ---- Config -> text -> Config ----

WORDS = ["a", "none", "a,b", 'say "hi"', "it's", "x;y", "ünïcødé 🦊", "--epochs=3", "#x", ";", "a + b", "\\n", "(", "~"]


def some_spec(rng, package=None):
    is_ours = package not in (None, "optimizers")  # those are Keras'
    name = rng.choice(spec.names(f"kd_keras.{package}")) if is_ours else rng.choice(["sgd", "my.pkg:Part"])
    values = [
        lambda: rng.choice(WORDS),
        lambda: rng.choice([None, True, 0, -2.5e-7, 10**12]),
        lambda: Spec("linear", {"a": 1}),
    ]
    values.append(lambda: tuple(rng.choice(values[:2])() for _ in range(rng.randrange(3))))
    return Spec(name, {key: rng.choice(values)() for key in rng.sample(["b", "temperature", "ß"], rng.randrange(3))})


def some_value(kind, rng):
    """A value of a kind of setting."""
    if isinstance(kind, OrNone):
        return rng.choice([None, some_value(kind.inner, rng)])
    if isinstance(kind, Switch):
        return rng.random() < 0.5
    if isinstance(kind, Number):
        low = 0 if kind.minimum is None else kind.minimum
        return rng.randint(low, low + 9) if kind.type is int else low + rng.random()
    if isinstance(kind, Choice):
        return rng.choice(kind.words)
    if isinstance(kind, Folder):
        return pathlib.Path("/tmp") / rng.choice(["a,b", 'c"d', "x;y", "plain"])
    if isinstance(kind, ImageSize):
        return rng.choice([8, (8, 9)])
    if isinstance(kind, Part):
        return some_spec(rng, kind.package)
    if isinstance(kind, Sum):
        return tuple(some_spec(rng, kind.part.package) for _ in range(rng.randint(int(kind.required), 2)))
    if isinstance(kind, Alternatives):
        sums = {kind.sum.text(value): value for value in (some_value(kind.sum, rng) for _ in range(rng.randint(1, 2)))}
        return tuple(sums.values())
    if isinstance(kind, Rate):
        return rng.choice([schedules.constant(0.5), schedules.cosine(start=0.1)])
    if isinstance(kind, Items):
        return tuple(dict.fromkeys(some_value(kind.item, rng) for _ in range(rng.randint(1, 3))))
    return rng.choice(WORDS)


def some_config(rng):
    """A Config of random settings; None where they contradict each other."""
    sections = {}
    for flag in rng.sample(sorted(SETTINGS), 8):
        setting = SETTINGS[flag]
        sections.setdefault(setting.section, {})[setting.field] = some_value(setting.kind, rng)
    types = {field.name: field.default_factory for field in dataclasses.fields(config.Config)}
    try:
        return config.Config(**{name: types[name](**values) for name, values in sections.items()})
    except InputError:
        return None


def assert_is_read_back(made, folder):
    everything = [f"--{flag}={text}" for flag, text in made.texts().items() if flag != "workdir" or text != "none"]
    file = folder / "ünï.flags"
    file.write_text("# A comment.\n" + "\n".join(everything) + "\n", encoding="utf-8")
    for arguments in (everything, made.command_line(), [f"--flagfile={file}"]):
        again = read(*arguments, *(["--workdir=/w", "--store=/s"] if made.run.workdir is None else []))
        differing = {flag: (made[flag], again[flag]) for flag in SETTINGS if made[flag] != again[flag]}
        assert set(differing) <= ({"workdir", "store"} if made.run.workdir is None else set()), differing


@pytest.mark.parametrize("path", sorted((ROOT / "experiments").glob("*.flags")), ids=lambda path: path.stem)
def test_a_flagfiles_config_is_read_back_from_its_texts(path, tmp_path):
    assert_is_read_back(read(f"--flagfile={path}"), tmp_path)


def test_random_configs_are_read_back_from_their_texts(tmp_path):
    rng, count = random.Random(0), 0
    while count < 40:
        if (made := some_config(rng)) is not None:
            assert_is_read_back(made, tmp_path)
            count += 1


def test_options_of_the_data():
    made = read("--data=folder(path='/x')", "--val_fraction=0.2", "--skip_bad_images", "--image_size=64")
    expected = {"path": "/x", "val_fraction": 0.2, "skip_bad_images": True, "image_size": 64}
    assert made.data.source == Spec("folder", expected)
    assert "image_size" not in read("--data=digits()", "--image_size=64", "--image_size=none").data.source.kwargs
    assert read("--data=folder(path='/x')", "--image_size=64,48").data.source.kwargs["image_size"] == (64, 48)
    assert read("--data=folder(path='/x')", "--noskip_bad_images").data.source.kwargs == {"path": "/x"}


def test_teachers_are_named_by_number_where_there_are_several():
    assert read("--teacher=cnn()").teacher.by_stage == {"teacher": Spec("cnn")}
    assert read("--teacher=cnn() + cnn()").teacher.by_stage == {"teacher1": Spec("cnn"), "teacher2": Spec("cnn")}


def test_nopretrained_drops_the_key_from_every_model():
    models = ["--teacher=cnn(pretrained='imagenet') + cnn(width=2)", "--student=cnn(pretrained='a.h5', width=1)"]
    chain = "--scheme=offline(chain=cnn(pretrained='b.h5') + cnn(), one=cnn(pretrained='c.h5'))"
    assert str(read(*models, chain).student.model) == "cnn(pretrained='a.h5', width=1)"
    made = read(*models, chain, "--nopretrained")
    assert list(map(str, made.teacher.models)) == ["cnn()", "cnn(width=2)"]
    assert str(made.student.model) == "cnn(width=1)"
    assert str(made.training.scheme) == "offline(chain=cnn() + cnn(), one=cnn())"


def test_folders_of_teachers_may_have_commas():
    first, second = (pathlib.Path(name).absolute() for name in ("loss=a,seed=0", "b"))
    assert read("--teacher=cnn()", f"--teacher_from={first}").teacher.folders == (first,)
    assert read("--teacher=cnn() + cnn()", f'--teacher_from="{first}",b').teacher.folders == (first, second)


@pytest.mark.parametrize("text", ["none", "", " none "])
def test_none(text):
    made = read(f"--teacher={text}", f"--augment={text}", f"--export={text}")
    assert (made.teacher.models, made.data.augment, made.export.variants) == ((), (), ())


def test_the_teacher_shares_what_it_is_not_given():
    made = read(
        "--optimizer=sgd()", "--learning_rate=cosine(start=0.1)", "--seed=3", "--batch_size=8", "--augment=flip()"
    )
    teacher = made.teacher
    assert (teacher.optimizer, teacher.learning_rate) == (Spec("sgd"), schedules.cosine(start=0.1))
    assert (teacher.seed, teacher.batch_size, teacher.augment, teacher.precision) == (3, 8, (Spec("flip"),), "float32")
    other = read("--optimizer=sgd()", "--teacher_optimizer=adam()", "--seed=3", "--teacher_seed=1")
    assert (other.training.optimizer, other.teacher.optimizer, other.teacher.seed) == (Spec("sgd"), Spec("adam"), 1)


def test_every_training_setting_has_a_teacher_form_that_follows_it():
    following = {flag for flag, setting in SETTINGS.items() if isinstance(setting.default, Follows)}
    for flag in ("optimizer", "learning_rate", "batch_size", "augment", "seed", "precision"):
        assert f"teacher_{flag}" in following


def test_a_student_from_a_file_has_no_baseline():
    assert read("--student_from=a.keras").student.baseline is False
    assert read("--student_from=a.keras", "--baseline").student.baseline is True


def test_export_names_each_file_once():
    assert read("--export= int8 ,float32,int8").export.variants == ("int8", "float32")


def test_reading_again_starts_afresh():
    assert read("--epochs=3", "--nobaseline", "--image_size=3").training.epochs == 3
    again = read()
    assert (again.training.epochs, again.student.baseline, again.data.source) == (10, True, Spec("digits"))


def test_a_dry_run_may_be_timed():
    texts = {flag: read(*flag).run.dry_run for flag in ((), ("--dry_run",), ("--dry_run=time",), ("--nodry_run",))}
    assert list(texts.values()) == ["false", "true", "time", "false"]


BAD = {
    "an unknown flag": (["--epoch=3"], "Unknown command line flag 'epoch'. Did you mean: epochs"),
    "a flag of another package": (["--verbosity=1"], "Unknown command line flag 'verbosity'"),
    "an argument that is no flag": (["--epochs=3", "digits"], "unexpected argument 'digits': every setting is a flag"),
    "a flag without its value": (["--epochs"], "Missing value for flag --epochs"),
    "text for a number": (["--epochs=many"], "--epochs=many: give a whole number of at least 1"),
    "a fraction for an integer": (["--epochs=1.5"], "--epochs=1.5: give a whole number"),
    "more than 32 bits": ([f"--batch_size={2**31}"], f"--batch_size={2**31}: give a number below {2**31}"),
    "no epochs": (["--epochs=0"], "--epochs=0: give a whole number of at least 1"),
    "a negative teacher": (["--teacher_epochs=-1"], "teacher_epochs=-1"),
    "no batch": (["--batch_size=0"], "batch_size=0"),
    "a negative seed": (["--seed=-1"], "seed=-1"),
    "no steps": (["--steps_per_execution=0"], "steps_per_execution=0"),
    "no images": (["--train_examples=0"], "train_examples=0"),
    "text for yes or no": (["--baseline=maybe"], "baseline=maybe"),
    "an unknown precision": (["--precision=float16"], "precision=float16.*mixed_float16"),
    "an unknown strategy": (["--strategy=multi"], "strategy=multi.*mirrored"),
    "an unknown dtype": (["--teacher_dtype=int8"], "teacher_dtype=int8.*bfloat16"),
    "an unknown tracker": (["--tracking=comet"], "tracking=comet.*mlflow"),
    "no such file": (["--flagfile=no/such.flags"], "no/such.flags"),
    "an unknown data set": (["--data=digit()"], "unknown name 'digit' in data: .*digits.*did you mean 'digits'"),
    "an unknown model": (["--student=resent()"], "unknown name 'resent' in models: .*did you mean 'resnet'"),
    "an unknown teacher": (["--teacher=resent()"], "unknown name 'resent' in models"),
    "a teacher that is no spec": (["--teacher=cnn() + 1"], "--teacher=.*: '1' in .* is not a spec"),
    "one unknown teacher of two": (["--teacher=cnn() + resent()"], "unknown name 'resent' in models"),
    "no data": (["--data="], "--data=: '' names 0 specs"),
    "no student": (["--student=none"], "--student=none: 'none' names 0 specs"),
    "an unknown scheme": (["--scheme=online()"], "unknown name 'online' in schemes: known are .*offline"),
    "an unknown loss": (["--loss=ce() + dk()"], "unknown name 'dk' in losses: known are ab, .*kd"),
    "an unknown teacher's loss": (["--teacher_loss=xe()"], "unknown name 'xe' in losses"),
    "an unknown baseline's loss": (["--baseline_loss=xe()"], "unknown name 'xe' in losses"),
    "no loss": (["--loss="], "--loss=: give at least one"),
    "no baseline's loss": (["--baseline_loss=none"], "--baseline_loss=none: give at least one"),
    "open brackets": (["--loss=ce("], "'ce.' cannot be read as name.*brackets"),
    "open brackets of a model": (["--student=cnn("], "--student=.*: 'cnn.' cannot be read"),
    "an augmentation that is no spec": (["--augment=4"], "'4' in '4' is not a spec"),
    "two optimizers": (["--optimizer=sgd + adam"], "names 2 specs"),
    "an unknown schedule": (["--learning_rate=kosine(start=1)"], "unknown name 'kosine' in schedules"),
    "a schedule's unknown key": (["--learning_rate=cosine(begin=1)"], "cosine has no key 'begin'"),
    "no learning rate": (["--learning_rate="], "names 0 specs"),
    "a negative learning rate": (["--learning_rate=-0.1"], "learning_rate=-0.1 reaches -0.1: .*0 or more"),
    "a learning rate that is no number": (["--teacher_learning_rate=nan"], "learning_rate=nan reaches nan"),
    "a falling learning rate": (["--learning_rate=linear(start=1, end=-1)"], "reaches -1"),
    "an unknown file": (["--export=float32,int4"], "--export=float32,int4: give one of float32, .*did you mean 'int8'"),
    "an image size in words": (["--image_size=big"], "--image_size=big: give pixels: 64, or height,width"),
    "half an image size": (["--image_size=64,"], "--image_size=64,: give pixels"),
    "epochs of no teacher": (
        ["--teacher=none", "--teacher_epochs=3"],
        "--teacher_epochs=3 has no effect without --teacher",
    ),
    "a stop of no teacher": (["--teacher_stop_at_val_accuracy=0.5"], "accuracy=0.5 has no effect without --teacher"),
    "no teacher of another run": (["--teacher_from=a,b"], "--teacher_from=.*a,.*b has no effect without --teacher"),
    "an accuracy that is no number": (["--teacher=cnn()", "--teacher_stop_at_val_accuracy=nan"], "accuracy=nan: give"),
    "a limit that is no number": (["--cache_limit_gb=nan"], "--cache_limit_gb=nan: give a number"),
    "an accuracy in per cent": (["--teacher_stop_at_val_accuracy=50"], "accuracy=50"),
    "checks for no stop": (["--teacher=cnn()", "--teacher_stop_check_steps=5"], "has no effect without"),
    "a folder for two teachers": (["--teacher=cnn + cnn", "--teacher_from=a"], "names 1 folders for 2 teachers"),
    "a baseline that is not wanted": (
        ["--baseline_from=a", "--nobaseline"],
        "--baseline_from=.*a has no effect without --baseline",
    ),
    "compression in the wrong words": (["--compress=qat(); "], "--compress=.*give at least one"),
    "compression of nothing": (["--compress_epochs=3"], "--compress_epochs=3 has no effect without --compress"),
    "a pipeline twice": (["--compress=qat(); qat()"], "the same is given twice"),
    "a control that is not there": (
        ["--compress=qat()", "--compress_controls=baseline", "--nobaseline"],
        "=baseline but --nobaseline",
    ),
    "a control of another name": (
        ["--compress=qat()", "--compress_controls=teacher"],
        "give one of untaught, baseline",
    ),
    "a teacher's file without a teacher": (["--export_beside=teacher"], "=teacher but --teacher=none"),
    "a float layer of no int8 file": (["--export=float32", "--keep_float=logits"], "add int8 to --export"),
    "a norm of nothing": (["--clipnorm=0"], "--clipnorm=0: give a number above 0"),
    "gradients clipped twice": (
        ["--clipnorm=1", "--teacher_optimizer=adam(global_clipnorm=2.0)", "--teacher=cnn()"],
        "--clipnorm=1 but --teacher_optimizer=adam.global_clipnorm=2.0. has global_clipnorm",
    ),
    "no patience": (["--patience=0"], "--patience=0"),
    "layers frozen in a model that is not trained": (["--freeze=stem*", "--student_from=s.keras"], "--freeze is for a"),
    "taps of no cache": (["--cache_taps=pooled"], "--cache_taps=pooled has no effect without --cache_views"),
}


@pytest.mark.parametrize("case", BAD)
def test_refuses_in_one_line(case):
    flags, message = BAD[case]
    with pytest.raises(InputError, match=message) as error:
        read(*flags)
    assert "\n" not in str(error.value)
    assert read().training.epochs == 10  # and leaves nothing behind


def test_what_follows_a_flagfile_replaces_it(flagfile):
    made = read(f"--flagfile={flagfile}")
    assert (made.training.epochs, made.student.model, made.student.baseline) == (
        3,
        Spec("cnn", {"filters": (4,)}),
        False,
    )
    changed = read(f"--flagfile={flagfile}", "--epochs=8", "--loss=ce()", "--baseline")
    assert (changed.training.epochs, changed.student.loss, changed.student.baseline) == (8, (Spec("ce"),), True)
    assert changed.student.model == made.student.model
    assert read("--epochs=8", f"--flagfile={flagfile}").training.epochs == 3


def test_a_flagfile_within_a_flagfile(flagfile):
    outer = flagfile.with_name("outer.flags")
    outer.write_text(f"--flagfile={flagfile}\n--seed=4\n--epochs=6\n")
    made = read(f"--flagfile={outer}")
    assert (made.training.epochs, made.training.seed, made.student.baseline) == (6, 4, False)
    # As in absl, a file that includes itself is read once.
    outer.write_text(f"--flagfile={outer}\n--epochs=5\n")
    assert read(f"--flagfile={outer}").training.epochs == 5


@pytest.mark.parametrize("form", ["--flagfile={}", "-flagfile={}", "--flagfile|{}"])
def test_flagfile_is_named_in_every_form(form, flagfile):
    assert read(*form.format(flagfile).split("|")).run.workdir.name.startswith("study-")


def test_a_flagfile_with_an_unknown_flag(flagfile):
    flagfile.write_text("--epocs=3\n")
    with pytest.raises(InputError, match=r"'epocs'.*epochs"):
        read(f"--flagfile={flagfile}")


def test_gradients_are_clipped_in_all_trainings():
    made = read("--clipnorm=0.5", "--optimizer=sgd(momentum=0.9)", "--teacher=cnn()", "--compress=qat()")
    clipped = Spec("sgd", {"momentum": 0.9, "clipnorm": 0.5})
    assert made.training.optimizer == made.teacher.optimizer == made.compress.optimizer == clipped
    own = read("--clipnorm=0.5", "--teacher=cnn()", "--teacher_optimizer=adam()")
    assert own.teacher.optimizer == Spec("adam", {"clipnorm": 0.5})


# What changes the trained models, against what does not.
ESSENTIAL = [
    *("--epochs=11", "--loss=ce()", "--student=cnn(filters=(4,))", "--seed=1", "--learning_rate=0.002"),
    *("--batch_size=32", "--val_fraction=0.2", "--precision=mixed_bfloat16", "--teacher_seed=5"),
    *("--augment=flip()", "--optimizer=sgd()", "--teacher=cnn()", "--train_examples=50", "--data=fashion_mnist()"),
    *("--patience=3", "--clipnorm=1", "--freeze=stage1*"),
]
OTHER = [
    *("--tracking=none", "--tracking_uri=http://x", "--experiment=mine", "--progress=none", "--store=/x", "--wait"),
    *("--run_name=mine", "--tracking_system_metrics"),
    *("--export=int8", "--max_accuracy_drop=0.1", "--compress=qat()", "--nobaseline", "--dry_run"),
]


@pytest.mark.parametrize("flag", ESSENTIAL)
def test_the_workdir_differs_where_the_experiment_does(flag):
    assert read(flag).run.workdir != read().run.workdir


@pytest.mark.parametrize("flag", OTHER)
def test_the_workdir_is_the_same_where_the_experiment_is(flag):
    assert read(flag).run.workdir == read().run.workdir


def test_the_workdir_does_not_depend_on_spelling(flagfile):
    plain = ["--epochs=3", "--loss=ce(weight=0.5)+kd( weight = 0.5 )", "--student=cnn(filters=(4,))", "--nobaseline"]
    digest = read(f"--flagfile={flagfile}").run.workdir.name.rpartition("-")[2]
    assert read(*plain).run.workdir.name == f"run-{digest}"
    assert read("--learning_rate=1e-3").run.workdir == read("--learning_rate=constant(0.001)").run.workdir
    assert read(f"--flagfile={flagfile}").run.workdir.parent == pathlib.Path("runs").absolute()


def test_a_tilde_is_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert read("--workdir=~/run").run.workdir == tmp_path / "run"
    with pytest.raises(InputError, match=r"--workdir=~nobody-of-that-name/x: Could not determine home"):
        read("--workdir=~nobody-of-that-name/x")


def test_the_store_is_in_the_workdir_unless_named():
    assert read("--workdir=w").run.store == pathlib.Path("w/store").absolute()
    assert read("--workdir=w", "--store=s").run.store == pathlib.Path("s").absolute()


def test_lists_may_be_none():
    made = read("--export_beside=none", "--keep_float=none", "--cache_views=1", "--cache_taps=none")
    assert made.export.beside == made.export.keep_float == made.cache.taps == ()


def test_help_names_every_flag_with_its_default_and_every_name():
    text = config.help_page()
    for flag, setting in SETTINGS.items():
        assert f"--{flag}" in text or f"--[no]{flag}" in text
        assert setting.help.split()[0] in text
    assert "--epochs=N  [10]" in text and "  --workdir=FOLDER\n" in text
    for package in ("losses", "models", "data", "schemes", "schedules"):
        assert ", ".join(spec.names(f"kd_keras.{package}")) in text


def test_flagfiles_are_read_in_any_locale():
    code = "import sys; from kd_keras.run import config; config.read(['x', '--flagfile=' + sys.argv[1]])"
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    path = ROOT / "experiments" / "s2_cifar10_resnet50_resnet18_fixed.flags"
    line = [sys.executable, "-c", code, path]
    ended = subprocess.run(line, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert ended.returncode == 0, ended.stderr[-500:]


@pytest.mark.parametrize("flag", ["--help", "-h", "--helpfull", "--epochs=x"])
def test_help_and_mistakes_answer_without_tensorflow(flag):
    code = (
        "import sys; import kd_keras.run.__main__ as run; code = run.main(['kd_keras', sys.argv[1]]);"
        "heavy = {'tensorflow', 'keras', 'numpy', 'mlflow'} & set(sys.modules); assert not heavy, heavy; sys.exit(code)"
    )
    ended = subprocess.run([sys.executable, "-c", code, flag], capture_output=True, text=True, cwd=ROOT)
    if flag == "--epochs=x":
        assert ended.returncode == 2 and ended.stderr.startswith("kd_keras: ") and "epochs" in ended.stderr
    else:
        assert ended.returncode == 0 and ended.stdout.strip() == config.help_page()
