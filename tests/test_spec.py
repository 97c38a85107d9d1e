import math
import pathlib

import pytest

from kd_keras import spec
from kd_keras.errors import InputError
from kd_keras.spec import Spec

PACKAGE = "kd_keras.losses"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("kd", Spec("kd")),
        ("kd()", Spec("kd")),
        ("  kd( )  ", Spec("kd")),
        ("kd(weight=0.9, temperature=4)", Spec("kd", {"weight": 0.9, "temperature": 4})),
        ("f(a=-1, b=+2, c=1e-3, d=True, e=None)", Spec("f", {"a": -1, "b": 2, "c": 1e-3, "d": True, "e": None})),
        ("f(a=(1, 2), b=[3], c={'k': 4}, d=())", Spec("f", {"a": (1, 2), "b": [3], "c": {"k": 4}, "d": ()})),
        ("""f(a='x', b="it's", c='a=b, (c) + d')""", Spec("f", {"a": "x", "b": "it's", "c": "a=b, (c) + d"})),
        ("f(3, 'x', k=1)", Spec("f", {"k": 1}, (3, "x"))),
        ("f(a=g(b=h(1)))", Spec("f", {"a": Spec("g", {"b": Spec("h", {}, (1,))})})),
        ("f(g(a=1), h)", Spec("f", {}, (Spec("g", {"a": 1}), Spec("h")))),
        ("f(\n  a=1,\n)", Spec("f", {"a": 1})),
        ("f(a=g(b=1) + h + i())", Spec("f", {"a": (Spec("g", {"b": 1}), Spec("h"), Spec("i"))})),
    ],
)
def test_parse(text, expected):
    parsed = spec.parse(text)
    assert parsed == expected
    assert {key: type(value) for key, value in parsed.kwargs.items()} == {
        key: type(value) for key, value in expected.kwargs.items()
    }


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("  ", []),
        ("none", []),
        (" none ", []),
        ("a", ["a()"]),
        ("a + b(x=1) + c('+')", ["a()", "b(x=1)", "c('+')"]),
        ("a() + (b + c)", ["a()", "b()", "c()"]),
        ("ce(weight=0.1) +\n kd(weight=0.9)", ["ce(weight=0.1)", "kd(weight=0.9)"]),
    ],
)
def test_parse_many(text, expected):
    assert [str(one) for one in spec.parse_many(text)] == expected


@pytest.mark.parametrize(
    "text",
    [
        "kd()",
        "kd(weight=0.9, temperature=4.0)",
        "f(1, 'it\\'s', g(x=(1, 2)), k=None)",
        "f(path='C:\\\\new\\\\data', name=\"a'b\", text='é\\n')",
        "kd(temperature=exponential_decay(start=0.5, rate=0.95, floor=0.3, per='epoch'))",
        "f(a=-1.5e-07, b=[True, {'k': ()}])",
        "assistant(resnet(depth=32) + cnn(filters=(4, 8)), direct=True)",
        "f(a=g(b=h() + i()) + j())",
    ],
)
def test_text_round_trip(text):
    one = spec.parse(text)
    assert spec.parse(str(one)) == one
    assert str(spec.parse(str(one))) == str(one)


def test_text_is_canonical():
    assert str(spec.parse("f( 1,b = g , a='x')")) == "f(1, b=g(), a='x')"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kd(", "cannot be read as name.*check its brackets and quotes"),
        ("kd(path='x)", "cannot be read"),
        ("kd(lambda=1)", "cannot be read"),
        ("kd(1 2)", "cannot be read"),
        ("a; b", "cannot be read"),
        ("a = 1", "cannot be read"),
        ("kd(a\0)", "cannot be read"),
        ("kd(a=1, b)", "cannot be read"),
        ("4.0", "'4.0' in '4.0' is not a spec"),
        ("'kd'", "is not a spec: write name"),
        ("a - b", "'a - b' in 'a - b' is not a spec"),
        ("a + 1", "'1' in 'a . 1' is not a spec"),
        ("a, b", "is not a spec"),
        ("os.system('x')", "is not a spec"),
        ("kd()()", "is not a spec"),
        ("kd(**{'a': 1})", "unpacks a dict"),
        ("kd(*[1])", "neither a literal nor a spec"),
        ("kd(a=1, a=2)", "gives a key twice"),
        ("kd(a=1 + 2)", "'1 . 2' in .* is neither a literal nor a spec: put text in quotes"),
        ("kd(a=b + 2)", "'b . 2' in .* is neither a literal nor a spec: put text in quotes"),
        ("kd(path=/data/x)", "cannot be read"),
        ("kd(path=data/x)", "'data / x' in .* put text in quotes"),
        ("kd(a=[b])", "neither a literal nor a spec"),
        ("kd(a=f'{b}')", "neither a literal nor a spec"),
        ("kd(a=lambda: 1)", "neither a literal nor a spec"),
        ("x" * 200_001, "it has 200001 characters: give at most 200000"),
        (" + ".join(["kd()"] * 201), "it is a sum of 201: give at most 200"),
        ("f(" * 31 + "1" + ")" * 31, "it is nested 31 deep: give at most 30"),
        (f"f(a={'-' * 5000}1)", "cannot be read|too many signs"),
        (f"f(a={'+'.join('1' * 5000)})", "cannot be read|too many signs"),
    ],
)
def test_refuses_what_is_no_spec(text, message):
    with pytest.raises(InputError, match=message) as error:
        spec.parse(text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("text", "count"), [("", 0), ("none", 0), ("a + b", 2)])
def test_parse_takes_exactly_one(text, count):
    with pytest.raises(InputError, match=f"names {count} specs where one is taken"):
        spec.parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "kd(temperature=open({path!r}, 'w'))",
        "kd(open({path!r}, 'w'))",
        "open({path!r}, 'w')",
        "kd(temperature=__import__('pathlib').Path({path!r}).touch())",
        "__import__('pathlib').Path({path!r}).touch()",
        "kd(temperature=[open({path!r}, 'w')])",
        "kd(temperature=(lambda: open({path!r}, 'w'))())",
        "kd(temperature=[open({path!r}, 'w') for _ in 'a'])",
        "kd(temperature=f'{{open({path!r})}}')",
    ],
)
def test_never_evaluates(text, tmp_path):
    path = tmp_path / "touched"
    with pytest.raises(InputError):
        spec.build(PACKAGE, spec.parse(text.format(path=str(path))))
    assert not path.exists()


@pytest.mark.parametrize(
    ("room", "shared"),
    [
        ("losses", {"base", "building", "features", "labels", "relations"}),
        ("models", {"applications", "layers", "networks"}),
        (
            "data",
            {"arrays", "augment", "carving", "cifar_files", "decoding", "downloads", "fingerprints", "image_files"}
            | {"label_tables", "likeness", "missing_labels", "order", "overlaps", "pipeline", "sources"},
        ),
        ("compress", {"base", "bridge", "copied_layers", "learned_ranges", "wrapped"}),
    ],
)
def test_names_are_the_files_of_a_package_but_for_what_they_share(room, shared):
    folder = pathlib.Path(spec.__file__).parent / room
    files = {path.stem for path in folder.glob("*.py")} - {"__init__"}
    assert spec.names(f"kd_keras.{room}") == sorted(files - shared)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("repeated", ["a.b", "'\\", "'", "a:", '"', "a.b:c", "(", "-", "1+"])
def test_long_text_is_refused_soon(repeated):
    with pytest.raises(InputError):
        spec.parse_many(f"f({repeated * (190_000 // len(repeated))})")


def test_names_of_a_module_are_its_functions():
    assert spec.names("kd_keras.schedules") == [
        "complement", "constant", "cosine", "exponential_decay", "linear", "warmup",
    ]  # fmt: skip


def test_names_imports_no_file(tmp_path, monkeypatch):
    package = tmp_path / "kinds"
    package.mkdir()
    files = {
        "__init__": "",
        "good_one": "import math\n\nclass Helper: pass\n\ndef GoodOne(a, *, b=2): return a, b",
        "shared": "def share(): pass\n\nclass Other:\n    def shared(self): pass",
        "bad": "1 / 0\nclass BAD: pass",
    }
    for name, code in files.items():
        (package / f"{name}.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    assert spec.parts("kinds") == {"bad": "BAD", "good_one": "GoodOne"}
    assert spec.build("kinds", spec.parse("good_one(1)")) == (1, 2)
    assert spec.build("kinds", spec.parse("good_one(b=4, a=3)")) == (3, 4)
    (package / "later.py").write_text("def Later(): return 'here'")  # a new file is a new name
    assert spec.names("kinds") == ["bad", "good_one", "later"]
    assert spec.build("kinds", spec.parse("later")) == "here"


def test_unknown_name_lists_the_known_and_the_closest():
    with pytest.raises(InputError) as error:
        spec.builder(PACKAGE, "softce")
    known = ", ".join(spec.names(PACKAGE))
    assert str(error.value) == f"unknown name 'softce' in losses: known are {known} (did you mean 'soft_ce'?)"
    with pytest.raises(InputError, match=r"unknown name 'zzz' in losses: known are [a-z_0-9, ]+$"):
        spec.builder(PACKAGE, "zzz")


@pytest.mark.parametrize("name", ["base", "__init__", "../spec", "kd.KD", ""])
def test_what_is_no_public_file_is_no_name(name):
    with pytest.raises(InputError, match="unknown name"):
        spec.builder(PACKAGE, name)


@pytest.mark.parametrize("name", ["get", "check", "Schedule", "math"])
def test_what_a_module_does_not_offer_is_no_name(name):
    with pytest.raises(InputError, match=r"unknown name .* in schedules"):
        spec.builder("kd_keras.schedules", name)


def build(num_classes, depth, *, width=1.0, **others):
    return num_classes, depth, width


def test_bind():
    assert spec.bind(build, spec.parse("m(8, width=2)"), ("num_classes",)) == {"depth": 8, "width": 2}
    assert spec.bind(build, spec.parse("m(width=2, depth=8)"), ("num_classes",)) == {"depth": 8, "width": 2}
    assert spec.bind(build, spec.parse("m(1, 2, 3)")) == {"num_classes": 1, "depth": 2, "width": 3}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("m(8, widht=2)", r"m has no key 'widht': known keys are depth, width \(did you mean 'width'\?\)"),
        ("m(8, zz=2)", "m has no key 'zz': known keys are depth, width$"),
        ("m(8, others=2)", "m has no key 'others'"),
        ("m(8, num_classes=3)", "m has no key 'num_classes'"),
        ("m(width=2)", r"m\(width=2\) lacks the key 'depth': write m\(depth=…\)"),
        ("m(8, 2, 3)", r"m\(8, 2, 3\) has 3 values without a key: known keys are depth, width"),
        ("m(8, depth=9)", r"m\(8, depth=9\) gives 'depth' twice"),
    ],
)
def test_bind_refuses(text, message):
    with pytest.raises(InputError, match=message):
        spec.bind(build, spec.parse(text), ("num_classes",))


def test_bind_says_so_where_there_are_no_keys():
    with pytest.raises(InputError, match="known keys are none"):
        spec.bind(lambda: 0, spec.parse("m(a=1)"))


def test_build_adds_what_is_given():
    one = spec.parse("cnn(filters=(4,), dense=())")
    model = spec.build("kd_keras.models", one, num_classes=3, input_shape=(8, 8, 1))
    assert model.output_shape == (None, 3)
    assert spec.check("kd_keras.models", one, ("num_classes", "input_shape")) == {"filters": (4,), "dense": ()}
    with pytest.raises(InputError, match="has no key 'num_classes'"):
        spec.build("kd_keras.models", spec.parse("cnn(num_classes=4)"), num_classes=3, input_shape=(8, 8, 1))


def test_nested_values_reach_the_loss():
    term = spec.build(PACKAGE, spec.parse("kd(temperature=warmup(to=linear(start=1, end=3, over=2), over=4))"))
    assert term.temperature(epoch=1, step=0) == 2 * 2 / 4
    assert math.isclose(term.weight(epoch=0, step=0), 1)
