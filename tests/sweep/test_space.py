"""What a search varies: paths into flags, ranges, and the flags that a trial's values make."""

import pytest

from kd_keras import signatures, spec
from kd_keras.errors import InputError
from kd_keras.run import config as configuration
from kd_keras.sweep import space
from kd_keras.sweep.space import Choice, Range

LOSS = "--loss=ce(weight=0.1) + kd(weight=0.9, temperature=4.0)"


def config(*flags):
    return configuration.read(["kd_keras", "--teacher=cnn()", "--epochs=30", LOSS, *flags])


def read(*texts, flags=()):
    return space.read(texts, config(*flags))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("loss.kd.temperature: 1..20 log", Range(1.0, 20.0, log=True)),
        ("loss.kd.temperature: 1..20 step 0.5", Range(1.0, 20.0, step=0.5)),
        ("loss.kd.weight: x0.1..x10 log", Range(0.09, 9.0, log=True)),
        ("epochs: 10..40", Range(10, 40)),
        ("epochs: 10..40 step 10", Range(10, 40, step=10)),
        ("epochs: x0.5..x2", Range(15, 60)),
        ("learning_rate: 1e-4..1e-2 log", Range(1e-4, 1e-2, log=True)),
        ("student.cnn.filters: (8, 16) | (16, 32)", Choice(("(8, 16)", "(16, 32)"))),
        ("augment: none | flip()", Choice(("none", "flip()"))),
        ("optimizer: adam() | sgd(momentum=0.9)", Choice(("adam()", "sgd(momentum=0.9)"))),
    ],
)
def test_ranges(text, expected):
    (domain,) = read(text).domains.values()
    assert domain == expected and (isinstance(expected, Choice) or type(domain.low) is type(expected.low))


@pytest.mark.parametrize(
    ("flags", "path", "value", "made"),
    [
        ((), "loss.kd.temperature", 2.34567, "--loss=ce(weight=0.1) + kd(weight=0.9, temperature=2.346)"),
        (("--loss=kd(0.5) + kd()",), "loss.kd#2.weight", 3.0, "--loss=kd(0.5) + kd(weight=3.0)"),
        ((), "epochs", 12, "--epochs=12"),
        ((), "learning_rate", 0.002, "--learning_rate=0.002"),
        (
            ("--learning_rate=cosine(start=0.1)",),
            "learning_rate.cosine.start",
            0.2,
            "--learning_rate=cosine(start=0.2)",
        ),
        (
            ("--learning_rate=warmup(to=cosine(start=0.1), over=5)",),
            *("learning_rate.warmup.to.cosine.start", 0.2),
            "--learning_rate=warmup(to=cosine(start=0.2), over=5)",
        ),
        (("--optimizer=sgd(momentum=0.9)",), "optimizer.sgd.momentum", 0.5, "--optimizer=sgd(momentum=0.5)"),
    ],
)
def test_a_value_is_written_into_its_flag(flags, path, value, made):
    top = value * 2
    searched = read(f"{path}: {value / 2 if isinstance(value, float) else 1}..{top}", flags=flags)
    assert searched.flags({path: value}) == [made]
    configuration.read(["kd_keras", made])


def test_a_choice_inside_of_a_spec_is_a_literal():
    searched = read("student.cnn.filters: (8,) | (16, 32)")
    assert searched.flags({"student.cnn.filters": "(8,)"}) == ["--student=cnn(filters=(8,))"]


def test_what_another_leaves_of_one():
    searched = read("loss.kd.weight: 0..1; loss.ce.weight: 1 - loss.kd.weight")
    assert searched.flags({"loss.kd.weight": 0.7}) == ["--loss=ce(weight=0.3) + kd(weight=0.7)"]
    assert list(searched.domains) == ["loss.kd.weight"] and searched.start() == {"loss.kd.weight": 0.9}
    other = read("loss.kd.weight: 0..1; loss.ce.weight: 1 - loss.kd.weight", flags=["--loss=ce() + kd(0.9)"])
    assert other.start() is None


def test_the_start_is_what_the_flags_give():
    texts = "epochs: 10..40; loss.kd.temperature: 1..20; augment: flip() | none; student.cnn.filters: (8,) | (32, 64)"
    values = {"epochs": 30, "loss.kd.temperature": 4.0, "augment": "none", "student.cnn.filters": "(32, 64)"}
    assert read(texts).start() == values
    assert read("epochs: 31..40").start() is None and read("epochs: 20..45 step 7").start() is None


def test_auto_takes_the_ranges_of_settings_and_losses():
    searched = read("auto; epochs: 5 | 10", flags=["--learning_rate=warmup(to=0.1, over=2)"])
    assert searched.domains == {
        "epochs": Choice(("5", "10")),
        "learning_rate.warmup.to": Range(0.01, 1.0, log=True),
        "loss.kd.weight": Range(0.09, 9.0, log=True),
        "loss.kd.temperature": Range(1.0, 20.0, log=True),
    }
    # A weight alone only scales the learning rate; a schedule and a 0 have no multiples.
    alone = read("auto", flags=["--loss=dkd(beta=0, temperature=linear(start=1, end=4, over=5))"])
    assert list(alone.domains) == ["epochs", "learning_rate"]
    two = read("auto", flags=["--loss=kd() + kd(temperature=2)"])
    assert {"loss.kd#1.weight", "loss.kd#2.temperature"} < set(two.domains)


@pytest.mark.parametrize("name", spec.names("kd_keras.losses"))
def test_the_ranges_of_a_loss_are_of_its_arguments(name):
    ranges = spec.builder("kd_keras.losses", name).search
    assert set(ranges) <= set(signatures.read("losses", name).arguments)
    for key, text in ranges.items():
        domain = read(f"loss.{name}.{key}: {text}", flags=[f"--loss=ce() + {name}(weight=0.5)"]).domains
        assert isinstance(domain[f"loss.{name}.{key}"], Range)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "names no range: give auto"),
        ("epochs 5..10", "give auto, or a path and its range"),
        ("epochs: 5..10; epochs: 5..20", "names epochs twice"),
        ("loss: kd() | dkd(); loss.kd.weight: 0..1", r"names both loss and loss\.kd\.weight, a key of it"),
        ("epoch: 5..10", "unknown name 'epoch' in flags: .*mean 'epochs'"),
        ("loss.kdd.weight: 1..2", "unknown name 'kdd' in the parts.*mean 'kd'"),
        ("loss.kd#2.weight: 1..2", "unknown name 'kd#2'"),
        ("loss.kd.temprature: 1..20", "unknown name 'temprature' in the keys of kd.*mean 'temperature'"),
        ("loss.kd: 1..20", "a path is a flag, or a flag, a part and a key"),
        ("loss.kd.weight.linear.start: 1..2", "has no parts: end the path there"),
        ("loss: 1..2", "no number: name a key of it"),
        ("epochs: 20..10", "give the lower end first"),
        ("epochs: 0.5..10", "takes whole numbers"),
        ("epochs: x1..10", "multiples, x0.1..x10"),
        ("loss.kd.weight: 0..1 log", "on a log scale above 0"),
        ("augment: none", "different values"),
        ("augment: none | none", "different values"),
        ("seed: 0..9", "a seed is no setting to choose"),
        ("data: digits() | fashion_mnist()", "compared on different images"),
        ("export: none | int8", "changes nothing of the student's accuracy"),
        ("compress_epochs: 1..5", "changes nothing of the student's accuracy"),
        ("loss.kd.weight: 0..2; loss.ce.weight: 1 - loss.kd.weight", "a range within 0..1"),
    ],
)
def test_mistakes_are_refused(text, message):
    with pytest.raises(InputError, match=message):
        read(text)


def test_a_schedule_is_not_replaced_by_a_number():
    with pytest.raises(InputError, match="name a key of it"):
        read("learning_rate: 1e-4..1e-2 log", flags=["--learning_rate=cosine(start=0.1)"])


def test_a_grid_is_of_values():
    assert Range(1, 4).grid() == [1, 2, 3, 4] and Range(0.0, 1.0, step=0.25).grid() == [0, 0.25, 0.5, 0.75, 1]
    for uncounted in (Range(1.0, 2.0), Range(1, 100, log=True)):
        with pytest.raises(InputError, match="a grid needs values"):
            uncounted.grid()
