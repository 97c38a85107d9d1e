import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import pytest

from kd_keras import schedules, spec
from kd_keras.errors import InputError
from kd_keras.run import config
from kd_keras.spec import Spec


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
    assert made.data == Spec("digits") and made.student == Spec("cnn") and made.scheme == Spec("offline")
    assert made.teacher == () and made.teachers == {} and made.teacher_epochs is None
    assert list(map(str, made.loss)) == ["ce(weight=0.1)", "kd(weight=0.9, temperature=4.0)"]
    assert made.teacher_loss == made.baseline_loss == (Spec("ce"),)
    assert made.learning_rate == made.teacher_learning_rate == schedules.constant(0.001)
    assert made.optimizer == made.teacher_optimizer == Spec("adam")
    assert made.augment == () and made.export == ("float32", "float16", "dynamic", "int8")
    assert (made.epochs, made.batch_size, made.seed, made.baseline, made.flagfile) == (10, 64, 0, True, None)


def test_every_flag_reaches_its_field():
    flags = {
        "data": "digits()",
        "teacher": "resnet(depth=20) + cnn()",
        "student": "resnet(depth=8)",
        "loss": "kd(temperature=2.0) + hint(weight=100)",
        "teacher_loss": "ce(label_smoothing=0.1)",
        "baseline_loss": "ce(weight=2)",
        "scheme": "offline()",
        "baseline": "True",
        "epochs": "7",
        "teacher_epochs": "5",
        "pretrain_epochs": "2",
        "batch_size": "32",
        "optimizer": "sgd(momentum=0.9)",
        "teacher_optimizer": "adamw(weight_decay=0.1)",
        "learning_rate": "cosine(start=0.1, end=0.01, per='step')",
        "teacher_learning_rate": "warmup(to=0.1, over=2, per='epoch')",
        "augment": "pad_crop(pixels=4) + flip()",
        "seed": "5",
        "train_examples": "100",
        "precision": "mixed_bfloat16",
        "teacher_dtype": "bfloat16",
        "teacher_stop_at_val_accuracy": "0.5",
        "teacher_stop_check_steps": "7",
        "teacher_from": f"{os.path.abspath('other')},{os.path.abspath('third')}",
        "baseline_from": os.path.abspath("fourth"),
        "cache_views": "3",
        "cache_taps": "pooled,stage2",
        "cache_dtype": "float32",
        "cache_top_k": "5",
        "cache_seed": "7",
        "cache_limit_gb": "1.5",
        "cache_folder": os.path.abspath("caches"),
        "strategy": "one",
        "worker_timeout": "5",
        "deterministic": "True",
        "jit_compile": "false",
        "steps_per_execution": "4",
        "threads": "2",
        "export": "int8,float32",
        "export_beside": "teacher,baseline",
        "keep_float": "logits",
        "layer_report": "True",
        "compress": "prune(sparsity=0.5) + qat(); cluster()",
        "compress_loss": "ce()",
        "compress_controls": "untaught",
        "compress_epochs": "2",
        "compress_optimizer": "sgd(momentum=0.5)",
        "compress_learning_rate": "cosine(start=0.01, end=0.0, per='step')",
        "compress_export": "int8,float16",
        "max_accuracy_drop": "0.01",
        "workdir": os.path.abspath("somewhere"),
        "tracking": "none",
        "tracking_uri": "http://127.0.0.1:5000",
        "experiment": "mine",
        "progress": "none",
    }
    made = read(*(f"--{name}={value}" for name, value in flags.items()))
    resolved = made.resolved()
    assert resolved.pop("flagfile") == "none"
    flags["teacher_learning_rate"] = "warmup(to=constant(value=0.1), over=2, per='epoch')"
    assert resolved == flags
    # What it resolved to is a command line that resolves to the same.
    assert read(*(f"--{name}={value}" for name, value in resolved.items())) == made
    assert made.workdir == pathlib.Path("somewhere").absolute()
    assert isinstance(made.loss, tuple) and made.loss[1] == Spec("hint", {"weight": 100})
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.epochs = 8


def test_every_flag_is_a_field_or_an_option_of_data_or_models():
    fields = {field.name for field in dataclasses.fields(config.Config)}
    assert set(config.FLAGS) - fields == {"val_fraction", "image_size", "skip_bad_images", "pretrained"}
    assert fields - set(config.FLAGS) == {"flagfile"}


def test_options_of_the_data():
    made = read("--data=folder(path='/x')", "--val_fraction=0.2", "--skip_bad_images", "--image_size=64")
    expected = {"path": "/x", "val_fraction": 0.2, "skip_bad_images": True, "image_size": 64}
    assert made.data == Spec("folder", expected)
    assert "image_size" not in read("--data=digits()", "--image_size=64", "--image_size=none").data.kwargs
    assert read("--data=folder(path='/x')", "--image_size=64,48").data.kwargs["image_size"] == (64, 48)
    assert read("--data=folder(path='/x')", "--noskip_bad_images").data.kwargs == {"path": "/x"}


def test_teachers_are_named_by_number_where_there_are_several():
    assert read("--teacher=cnn()").teachers == {"teacher": Spec("cnn")}
    assert read("--teacher=cnn() + cnn()").teachers == {"teacher1": Spec("cnn"), "teacher2": Spec("cnn")}


def test_nopretrained_drops_the_key_from_every_model():
    models = ["--teacher=cnn(pretrained='imagenet') + cnn(width=2)", "--student=cnn(pretrained='a.h5', width=1)"]
    chain = "--scheme=offline(chain=cnn(pretrained='b.h5') + cnn(), one=cnn(pretrained='c.h5'))"
    kept = read(*models, chain)
    assert str(kept.student) == "cnn(pretrained='a.h5', width=1)" and "pretrained" in str(kept.scheme)
    made = read(*models, chain, "--nopretrained")
    assert list(map(str, made.teacher)) == ["cnn()", "cnn(width=2)"] and str(made.student) == "cnn(width=1)"
    assert str(made.scheme) == "offline(chain=cnn() + cnn(), one=cnn())"


def test_one_lenders_cache_is_shared():
    flags = ["--teacher=cnn() + cnn()", "--workdir=w"]
    assert read(*flags, "--teacher_from=a,a").cache_folder == pathlib.Path("a/teacher_cache").absolute()
    assert read(*flags, "--teacher_from=a,b").cache_folder == pathlib.Path("w/teacher_cache").absolute()


def test_folders_of_teachers_may_have_commas():
    one, two = (pathlib.Path(name).absolute() for name in ("loss=a,seed=0", "b"))
    assert read("--teacher=cnn()", f"--teacher_from={one}").teacher_from == (one,)
    assert read("--teacher=cnn() + cnn()", f'--teacher_from="{one}",b').teacher_from == (one, two)
    for folders in ((one,), (one, two), (two, one, one)):
        teachers = " + ".join(["cnn()"] * len(folders))
        text = config.folders_text(folders)
        assert read(f"--teacher={teachers}", f"--teacher_from={text}").teacher_from == folders


@pytest.mark.parametrize("text", ["none", "", " none "])
def test_none(text):
    made = read(f"--teacher={text}", f"--augment={text}", f"--export={text}")
    assert (made.teacher, made.augment, made.export) == ((), (), ())


def test_the_teacher_shares_what_it_is_not_given():
    made = read("--optimizer=sgd()", "--learning_rate=cosine(start=0.1)")
    assert made.teacher_optimizer == Spec("sgd")
    assert made.teacher_learning_rate == schedules.cosine(start=0.1)
    own = read("--optimizer=sgd()", "--teacher_optimizer=adam()", "--teacher_learning_rate=1e-3")
    assert (own.optimizer, own.teacher_optimizer) == (Spec("sgd"), Spec("adam"))
    assert own.teacher_learning_rate == own.learning_rate == schedules.constant(0.001)


def test_export_names_each_file_once():
    assert read("--export= int8 ,float32,int8").export == ("int8", "float32")


def test_reading_again_starts_afresh():
    assert read("--epochs=3", "--nobaseline", "--image_size=3").epochs == 3
    again = read()
    assert (again.epochs, again.baseline, again.data) == (10, True, Spec("digits"))


BAD = {
    "an unknown flag": (["--epoch=3"], "Unknown command line flag 'epoch'. Did you mean: epochs"),
    "a flag of another package": (["--verbosity=1"], "Unknown command line flag 'verbosity'"),
    "an argument that is no flag": (["--epochs=3", "digits"], "unexpected argument 'digits': every setting is a flag"),
    "a flag without its value": (["--epochs"], "Missing value for flag --epochs"),
    "text for a number": (["--epochs=many"], "epochs.*many"),
    "a fraction for an integer": (["--epochs=1.5"], "epochs.*1.5"),
    "no epochs": (["--epochs=0"], "epochs=0.*lower bounded|epochs=0.*positive"),
    "a negative teacher": (["--teacher_epochs=-1"], "teacher_epochs=-1"),
    "no batch": (["--batch_size=0"], "batch_size=0"),
    "a negative seed": (["--seed=-1"], "seed=-1"),
    "no steps": (["--steps_per_execution=0"], "steps_per_execution=0"),
    "no images": (["--train_examples=0"], "train_examples=0"),
    "text for yes or no": (["--baseline=maybe"], "baseline=maybe"),
    "an unknown precision": (["--precision=float16"], "precision=float16.*mixed_float16"),
    "an unknown strategy": (["--strategy=multi"], "strategy=multi.*mirrored"),
    "an unknown dtype": (["--teacher_dtype=int8"], "teacher_dtype=int8.*bfloat16"),
    "an unknown tracker": (["--tracking=wandb"], "tracking=wandb.*mlflow"),
    "no such file": (["--flagfile=no/such.flags"], "no/such.flags"),
    "an unknown data set": (["--data=digit()"], "unknown name 'digit' in data: .*digits.*did you mean 'digits'"),
    "an unknown model": (["--student=resent()"], "unknown name 'resent' in models: .*did you mean 'resnet'"),
    "an unknown teacher": (["--teacher=resent()"], "unknown name 'resent' in models"),
    "a teacher that is no spec": (["--teacher=cnn() + 1"], "--teacher: '1' in .* is not a spec"),
    "one unknown teacher of two": (["--teacher=cnn() + resent()"], "unknown name 'resent' in models"),
    "no data": (["--data="], "--data: '' names 0 specs"),
    "no student": (["--student=none"], "--student: 'none' names 0 specs"),
    "an unknown scheme": (["--scheme=online()"], "unknown name 'online' in schemes: known are .*offline"),
    "an unknown loss": (["--loss=ce() + dk()"], "unknown name 'dk' in losses: known are ab, .*kd"),
    "an unknown teacher's loss": (["--teacher_loss=xe()"], "unknown name 'xe' in losses"),
    "an unknown baseline's loss": (["--baseline_loss=xe()"], "unknown name 'xe' in losses"),
    "no loss": (["--loss="], "--loss is empty: give at least one loss, such as ce"),
    "no baseline's loss": (["--baseline_loss=none"], "--baseline_loss is empty"),
    "open brackets": (["--loss=ce("], "'ce.' cannot be read as name.*brackets"),
    "open brackets of a model": (["--student=cnn("], "--student: 'cnn.' cannot be read"),
    "an augmentation that is no spec": (["--augment=4"], "'4' in '4' is not a spec"),
    "two optimizers": (["--optimizer=sgd + adam"], "names 2 specs"),
    "an unknown schedule": (["--learning_rate=kosine(start=1)"], "unknown name 'kosine' in schedules"),
    "a schedule's unknown key": (["--learning_rate=cosine(begin=1)"], "cosine has no key 'begin'"),
    "no learning rate": (["--learning_rate="], "names 0 specs"),
    "a negative learning rate": (["--learning_rate=-0.1"], "learning_rate=-0.1 reaches -0.1: .*0 or more"),
    "a learning rate that is no number": (["--teacher_learning_rate=nan"], "learning_rate=nan reaches nan"),
    "a falling learning rate": (["--learning_rate=linear(start=1, end=-1)"], "reaches -1"),
    "an unknown file": (["--export=float32,int4"], "unknown name 'int4' in export: .*did you mean 'int8'"),
    "an image size in words": (["--image_size=big"], "--image_size='big': give pixels, 64 or height,width"),
    "half an image size": (["--image_size=64,"], "--image_size='64,': give pixels"),
    "epochs of no teacher": (["--teacher=none", "--teacher_epochs=3"], "--teacher_epochs=3 but --teacher=none"),
    "a stop of no teacher": (["--teacher_stop_at_val_accuracy=0.5"], "accuracy=0.5 but --teacher=none"),
    "no teacher of another run": (["--teacher_from=a,b"], "--teacher_from=a,b but --teacher=none"),
    "an accuracy that is no number": (["--teacher=cnn()", "--teacher_stop_at_val_accuracy=nan"], "accuracy=nan: give"),
    "a limit that is no number": (["--cache_limit_gb=nan"], "--cache_limit_gb=nan: give a number"),
    "an accuracy in per cent": (["--teacher_stop_at_val_accuracy=50"], "accuracy=50"),
    "checks for no stop": (["--teacher=cnn()", "--teacher_stop_check_steps=5"], "has no effect without"),
    "a folder for two teachers": (["--teacher=cnn + cnn", "--teacher_from=a"], "names 1 folders for 2 teachers"),
    "a baseline that is not wanted": (["--baseline_from=a", "--nobaseline"], "but --nobaseline"),
}


@pytest.mark.parametrize("case", BAD)
def test_refuses_in_one_line(case):
    flags, message = BAD[case]
    with pytest.raises(InputError, match=message) as error:
        read(*flags)
    assert "\n" not in str(error.value)
    assert read().epochs == 10  # and leaves nothing behind


def test_what_follows_a_flagfile_replaces_it(flagfile):
    made = read(f"--flagfile={flagfile}")
    assert (made.epochs, made.student, made.baseline) == (3, Spec("cnn", {"filters": (4,)}), False)
    changed = read(f"--flagfile={flagfile}", "--epochs=8", "--loss=ce()", "--baseline")
    assert (changed.epochs, changed.loss, changed.baseline) == (8, (Spec("ce"),), True)
    assert changed.student == made.student
    assert read("--epochs=8", f"--flagfile={flagfile}").epochs == 3


def test_a_flagfile_within_a_flagfile(flagfile):
    outer = flagfile.with_name("outer.flags")
    outer.write_text(f"--flagfile={flagfile}\n--seed=4\n--epochs=6\n")
    made = read(f"--flagfile={outer}")
    assert (made.epochs, made.seed, made.baseline, made.flagfile) == (6, 4, False, str(outer))


@pytest.mark.parametrize("form", ["--flagfile={}", "-flagfile={}", "--flagfile|{}"])
def test_flagfile_is_named_in_every_form(form, flagfile):
    assert read(*form.format(flagfile).split("|")).flagfile == str(flagfile)


def test_a_flagfile_with_an_unknown_flag(flagfile):
    flagfile.write_text("--epocs=3\n")
    with pytest.raises(InputError, match=r"'epocs'.*epochs"):
        read(f"--flagfile={flagfile}")


# What changes what is trained or measured, against what does not.
ESSENTIAL = [
    *("--epochs=11", "--loss=ce()", "--student=cnn(filters=(4,))", "--seed=1", "--learning_rate=0.002"),
    *("--batch_size=32", "--val_fraction=0.2", "--precision=mixed_bfloat16", "--nobaseline"),
    *("--augment=flip()", "--optimizer=sgd()", "--teacher=cnn()", "--train_examples=50", "--data=fashion_mnist()"),
    "--compress=qat()",
]
BESIDE = [
    *("--tracking=none", "--tracking_uri=http://x", "--experiment=mine", "--progress=none", "--workdir=/x"),
    *("--export=int8", "--max_accuracy_drop=0.1"),
]


@pytest.mark.parametrize("flag", ESSENTIAL)
def test_identity_tells_experiments_apart(flag):
    assert read(flag).identity() != read().identity()
    assert read(flag).workdir != read().workdir


@pytest.mark.parametrize("flag", BESIDE)
def test_identity_leaves_out_what_does_not_matter(flag):
    name = flag[2:].partition("=")[0]
    assert read(flag).identity() == read().identity()
    assert name in read().resolved() and name not in read().identity()
    assert name == "workdir" or read(flag).workdir == read().workdir


def test_identity_does_not_depend_on_spelling(flagfile):
    plain = read(
        "--epochs=3", "--loss=ce(weight=0.5)+kd( weight = 0.5 )", "--student=cnn(filters=(4,))", "--nobaseline"
    )
    assert plain.identity() == read(f"--flagfile={flagfile}").identity()
    assert read("--learning_rate=1e-3").identity() == read("--learning_rate=constant(0.001)").identity()


def test_workdir_defaults_to_the_flagfile_and_a_hash(flagfile):
    made = read(f"--flagfile={flagfile}")
    assert made.workdir.is_absolute() and made.workdir.parent == pathlib.Path("runs").absolute()
    name, _, digest = made.workdir.name.rpartition("-")
    assert name == "study" and len(digest) == 8 and set(digest) <= set("0123456789abcdef")
    assert read(f"--flagfile={flagfile}").workdir == made.workdir
    assert read(f"--flagfile={flagfile}", "--seed=1").workdir != made.workdir
    assert read().workdir.name.startswith("run-")


def test_claims_a_workdir_and_finds_it_again(tmp_path):
    workdir = tmp_path / "deep" / "er"
    made = read(f"--workdir={workdir}")
    config.check_workdir(made)
    assert not workdir.exists(), "checking writes nothing"
    config.claim_workdir(made)
    assert [path.name for path in workdir.iterdir()] == ["config.json"]
    assert json.loads((workdir / "config.json").read_text()) == made.identity()
    (workdir / "teacher.keras").write_text("")
    config.check_workdir(made)
    config.claim_workdir(read(f"--workdir={workdir}", "--tracking=none"))


def test_claims_a_folder_that_is_empty_or_holds_what_a_kill_left(tmp_path):
    (tmp_path / ".config.json.17.partial").write_text("{")
    config.claim_workdir(read(f"--workdir={tmp_path}"))
    assert (tmp_path / "config.json").exists()


def test_refuses_another_experiments_workdir(tmp_path):
    config.claim_workdir(read(f"--workdir={tmp_path}"))
    other = read(f"--workdir={tmp_path}", "--epochs=12", "--seed=3")
    for use in (config.check_workdir, config.claim_workdir):
        with pytest.raises(InputError, match=r"holds another .*epochs was 10, is 12; seed was 0, is 3.*name another"):
            use(other)
    assert json.loads((tmp_path / "config.json").read_text()) == read().identity()


def test_refuses_a_workdir_of_a_version_with_other_flags(tmp_path):
    made = read(f"--workdir={tmp_path}")
    for before, message in (({"size": "3"}, "size was 3, is None"), ({}, "epochs was None, is 10")):
        record = {**made.identity(), **before} if before else {}
        (tmp_path / "config.json").write_text(json.dumps(record))
        with pytest.raises(InputError, match=message):
            config.check_workdir(made)


def test_what_was_trained_can_be_compressed_afterwards(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(read().identity()))
    config.claim_workdir(read(f"--workdir={tmp_path}", "--compress=qat()"))
    with pytest.raises(InputError, match=r"compress was qat\(\), is prune\(\)"):
        config.check_workdir(read(f"--workdir={tmp_path}", "--compress=prune()"))


def test_lists_may_be_none():
    made = read("--export_beside=none", "--keep_float=none", "--cache_views=1", "--cache_taps=none")
    assert made.export_beside == made.keep_float == made.cache_taps == ()


def test_refuses_a_folder_with_other_files(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(InputError, match="is not empty and holds no experiment: name another folder"):
        config.claim_workdir(read(f"--workdir={tmp_path}"))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]x", b"3", b'["epochs"]', b"null"])
def test_refuses_a_broken_record(content, tmp_path):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(InputError, match=r"config\.json can't be read: name another --workdir"):
        config.check_workdir(read(f"--workdir={tmp_path}"))


def test_refuses_a_workdir_that_is_a_file(tmp_path):
    path = tmp_path / "file"
    path.write_text("x")
    with pytest.raises(InputError, match="can't be used: Not a directory"):
        config.check_workdir(read(f"--workdir={path}"))
    with pytest.raises(InputError, match=r"can't be (used|written): Not a directory"):
        config.claim_workdir(read(f"--workdir={path / 'below'}"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_refuses_a_workdir_that_cannot_be_written(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="can't be written: Permission denied"):
        config.claim_workdir(read(f"--workdir={tmp_path / 'x'}"))


def test_help_names_every_flag_with_its_default_and_every_name():
    text = config.help_text()
    for name in config.FLAGS:
        assert f"  --{name}" in text and config.FLAGS[name].help in text
    assert "--epochs [10]" in text and "--workdir\n" in text
    for package in ("losses", "models", "data", "schemes", "schedules"):
        assert ", ".join(spec.names(f"kd_keras.{package}")) in text


@pytest.mark.parametrize("flag", ["--help", "-h", "--helpfull", "--epochs=x"])
def test_help_and_mistakes_answer_without_tensorflow(flag):
    code = (
        "import sys; from kd_keras import run; code = run.main(['kd_keras', sys.argv[1]]);"
        "heavy = {'tensorflow', 'keras', 'numpy', 'mlflow'} & set(sys.modules); assert not heavy, heavy; sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code, flag], capture_output=True, text=True)
    if flag == "--epochs=x":
        assert done.returncode == 2 and done.stderr.startswith("kd_keras: ") and "epochs" in done.stderr
    else:
        assert done.returncode == 0 and done.stdout.strip() == config.help_text()
    assert "Traceback" not in done.stderr
