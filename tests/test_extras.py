"""Packages that are required or optional: what setup.cfg lists, and what is said where an optional one is missing."""

import ast
import configparser
import pathlib
import re
import sys

import pytest
import tensorflow as tf
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import kd_keras
from kd_keras.errors import InputError, needs

ROOT = pathlib.Path(__file__).parent.parent
FILES = sorted((ROOT / "kd_keras").rglob("*.py"))
# Names of distributions by the module that is imported, where they differ.
DISTRIBUTIONS = {
    "PIL": "pillow",
    "absl": "absl-py",
    "sklearn": "scikit-learn",
    "IPython": "ipython",
    "google": "protobuf",
}


def requirements() -> dict[str, set[str]]:
    """Names of distributions by extra; ``""`` for those that are required."""
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    lists = {"": parser["options"]["install_requires"], **parser["options.extras_require"]}
    return {
        extra: {re.match(r"[\w-]+", line)[0] for line in text.split("\n") if line.strip() and line[0] != "#"}
        for extra, text in lists.items()
    }


def imported(path: pathlib.Path) -> dict[str, bool]:
    """The distributions that a file imports, and whether each is imported outside any function, as the file is read."""
    found = {}

    def visit(node, late, guarded):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module]
        for name in names:
            root = name.partition(".")[0]
            if root not in sys.stdlib_module_names and root != "kd_keras":
                name = DISTRIBUTIONS.get(root, root.replace("_", "-"))
                found[name] = found.get(name, False) or not (late or guarded)
        late = late or isinstance(node, ast.FunctionDef)
        guarded = guarded or (isinstance(node, ast.With) and "needs(" in ast.unparse(node.items[0]))
        for child in ast.iter_child_nodes(node):
            visit(child, late, guarded)

    visit(ast.parse(path.read_text("utf-8")), False, False)
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_import_is_listed_and_optional_packages_are_imported_late(path):
    lists = requirements()
    optional = set().union(*(names for extra, names in lists.items() if extra))
    for name, at_once in imported(path).items():
        assert name in lists[""] | optional, f"setup.cfg does not list {name}"
        if name not in lists[""] and path.parent.name != "tfds_builders":
            assert not at_once, f"{name} is optional: import it in a function, or within errors.needs"


def test_every_hint_names_an_extra():
    hints = {extra for path in FILES for extra in re.findall(r'with needs\("[^"]+", "(\w+)"', path.read_text("utf-8"))}
    assert hints == {"qat", "tfds", "augment", "hub", "search", "tables", "tensorboard", "wandb", "system"}
    assert hints <= requirements().keys()


def test_needs_passes_other_errors_on():
    with (
        pytest.raises(InputError, match=r"^x\(\) needs Nothing \(.*nothing_at_all.*\): pip install 'kd_keras\[hub\]'$"),
        needs("Nothing", "hub", "x()"),
    ):
        import nothing_at_all  # noqa: F401
    with pytest.raises(ZeroDivisionError), needs("Nothing", "hub", "x()"):
        1 / 0  # noqa: B018
    with needs("json", "hub", "x()"):
        import json
    assert json


def _use_qat():
    import keras

    from kd_keras import compress

    compress.prepare(keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten()]), None, steps=1)


def _use_tfds():
    sys.modules.pop("kd_keras.data.tfds", None)
    import kd_keras.data.tfds  # noqa: F401


def _use_cifar():
    from kd_keras.data import cifar_files

    cifar_files._read_tfds(None, "folder")


def _use_augment():
    from kd_keras.data import augmentations

    augmentations("keras_cv()")


def _use_hub():
    from kd_keras.models import networks

    networks.keras_hub()


def _use_search():
    from kd_keras.sweep import study

    study.optuna()


@pytest.mark.parametrize(
    ("missing", "extra", "use"),
    [
        ("tensorflow_model_optimization", "qat", _use_qat),
        ("tf_keras", "qat", _use_qat),
        ("tensorflow_datasets", "tfds", _use_tfds),
        ("tensorflow_datasets", "tfds", _use_cifar),
        ("keras_cv", "augment", _use_augment),
        ("keras_hub", "hub", _use_hub),
        ("optuna", "search", _use_search),
    ],
)
def test_a_missing_package_is_named_with_its_extra(monkeypatch, missing, extra, use):
    # TensorFlow resolves its own name for Keras once, and not while a package is hidden.
    assert tf.keras.callbacks
    before = sys.modules.get("kd_keras.data.tfds")
    monkeypatch.setitem(sys.modules, missing, None)
    try:
        with pytest.raises(InputError) as caught:
            use()
    finally:
        if before is not None:
            sys.modules["kd_keras.data.tfds"] = before
    assert str(caught.value).endswith(f": pip install 'kd_keras[{extra}]'") and "\n" not in str(caught.value)


@pytest.mark.parametrize("path", sorted((ROOT / "tools" / "constraints").glob("*.txt")), ids=lambda path: path.stem)
def test_constraints_are_of_packages_that_are_accepted(path):
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    pinned = {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in lines)}
    for text in (parser["options"]["install_requires"], *parser["options.extras_require"].values()):
        for line in filter(None, text.split("\n")):
            if line.startswith(("#", "kd_keras[")):
                continue
            wanted = Requirement(line)
            assert wanted.specifier.contains(pinned[canonicalize_name(wanted.name)]), line


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == kd_keras.__version__ and {"authors", "title", "message"} <= set(citation)
