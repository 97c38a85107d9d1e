"""Specs: ``kd(temperature=4.0)`` on the command line is the class `KD` of ``losses/kd.py``, made with these arguments.

There is no table of names. A spec names a file of a package (``kd_keras.losses``) or a public function of a module
(``kd_keras.schedules``), and its keys are the arguments of the class or function that is named as the file: a new file
is a new name. ``my_package.my_module:MyLoss(gamma=2.0)`` names a class or function of the user's own.
Text is parsed with `ast`, never evaluated.
"""

import ast
import dataclasses
import difflib
import functools
import importlib
import importlib.util
import inspect
import os
import pathlib
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any

from kd_keras.errors import InputError

# What a file defines at top level. A part's class or function has the name of its file: `ResNet` in resnet.py.
_DEFINED = re.compile(r"^(?:class|def) (\w+)", re.MULTILINE)
# A scheme's function has one name in every file.
_SCHEME = re.compile(r"^def (plan)\(", re.MULTILINE)
# package.module:name outside quotes. Python's grammar has no such name, so it is parsed as one identifier, in which two
# letters that nobody types stand for the colon and the dots.
_FOREIGN = re.compile(r"""('(?:\\.|[^'\\])*+'?|"(?:\\.|[^"\\])*+"?)|(?<![\w.])([^\W\d][\w.]*+:[^\W\d]\w*)""")
# More is a mistake, or somebody's attempt to exhaust the parser.
_MOST_CHARACTERS, _MOST_TERMS, _DEEPEST = 200_000, 200, 30
_ENCODE, _DECODE = str.maketrans(":.", "ǃǀ"), str.maketrans("ǃǀ", ":.")


@dataclasses.dataclass(frozen=True, repr=False)
class Spec:
    """A name and its values: literals, or further specs (a schedule, a backbone), or a sum of specs as a tuple.

    Values without a key (``args``) stand for the builder's first keys. ``str()`` gives the canonical text, from which
    `parse` makes an equal spec.
    """

    name: str
    kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    args: tuple = ()

    def __str__(self) -> str:
        values = [*map(_text, self.args), *(f"{key}={_text(value)}" for key, value in self.kwargs.items())]
        return f"{self.name}({', '.join(values)})"

    def __hash__(self) -> int:
        return hash(str(self))

    # A message that quotes a value, such as stem=cifar() of who forgot the quotes, shows what was written.
    __repr__ = __str__


def _text(value: Any) -> str:
    if isinstance(value, tuple) and value and all(isinstance(one, Spec) for one in value):
        return " + ".join(map(str, value))
    return str(value) if isinstance(value, Spec) else repr(value)


def parse(text: str) -> Spec:
    """Parses one spec.

    Args:
        text: ``"kd(weight=0.9, temperature=4.0)"``; the parentheses may be left out.

    Raises:
        InputError: the text is no spec, or holds more than one.
    """
    specs = parse_many(text)
    if len(specs) != 1:
        raise InputError(f"{text!r} names {len(specs)} specs where one is taken: give a single name(key=value)")
    return specs[0]


def parse_many(text: str) -> list[Spec]:
    """Parses specs joined by ``+``; empty text (or ``none``) is an empty list.

    Raises:
        InputError: the text is not a sum of specs.
    """
    if text.strip() in ("", "none"):
        return []
    if len(text) > _MOST_CHARACTERS:
        raise InputError(f"it has {len(text)} characters: give at most {_MOST_CHARACTERS}")
    if (depth := _depth(text)) > _DEEPEST:
        raise InputError(f"it is nested {depth} deep: give at most {_DEEPEST} brackets in each other")
    encoded = _FOREIGN.sub(lambda match: match[1] or match[2].translate(_ENCODE), text.strip())
    try:
        # In brackets, so that a long sum may go over several lines.
        tree = ast.parse(f"({encoded})", mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise InputError(f"{text!r} cannot be read as name(key=value) + …: check its brackets and quotes") from error
    terms = _terms(tree)
    if len(terms) > _MOST_TERMS:
        raise InputError(f"it is a sum of {len(terms)}: give at most {_MOST_TERMS}")
    return [_spec(node, text) for node in terms]


def _depth(text: str) -> int:
    """How deep brackets stand in each other."""
    depth = deepest = 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        deepest = max(deepest, depth)
    return deepest


def _terms(node: ast.expr) -> list[ast.expr]:
    """The terms of a sum. Not by recursion: Python's grammar nests them as deep as there are terms."""
    terms, left = [], [node]
    while left:
        node = left.pop()
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            left += [node.left, node.right]
        else:
            terms.append(node)
    return terms[::-1]


def _spec(node: ast.expr, text: str) -> Spec:
    if isinstance(node, ast.Name):
        return Spec(node.id.translate(_DECODE))
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
        raise InputError(f"{ast.unparse(node)!r} in {text!r} is not a spec: write name(key=value)")
    if any(keyword.arg is None for keyword in node.keywords):
        raise InputError(f"{ast.unparse(node)!r} unpacks a dict: write name(key=value)")
    kwargs = {keyword.arg: _value(keyword.value, text) for keyword in node.keywords}
    if len(kwargs) < len(node.keywords):
        raise InputError(f"{ast.unparse(node)!r} gives a key twice: give each one once")
    return Spec(node.func.id.translate(_DECODE), kwargs, tuple(_value(value, text) for value in node.args))


def _value(node: ast.expr, text: str) -> Any:
    terms = _terms(node)
    if all(isinstance(term, (ast.Call, ast.Name)) for term in terms):
        found = tuple(_spec(term, text) for term in terms)
        return found if len(found) > 1 else found[0]
    try:
        return ast.literal_eval(node)
    except (RecursionError, MemoryError) as error:
        raise InputError(f"a value in {text!r} has too many signs: put text in quotes") from error
    except (ValueError, TypeError, SyntaxError) as error:
        message = f"{ast.unparse(node)!r} in {text!r} is neither a literal nor a spec: put text in quotes"
        raise InputError(message) from error


def names(package: str) -> list[str]:
    """The names that a package or module offers to specs, sorted; no file of a package is imported.

    Args:
        package: dotted name, such as ``"kd_keras.losses"`` or ``"kd_keras.schedules"``.
    """
    return sorted(parts(package))


def parts(package: str) -> dict[str, str]:
    """The name in a spec → the name in Python of each part of a package or module: ``{"kd": "KD", …}``.

    A file is a part if it defines, at top level, a class or function with the file's name, underscores and case aside.
    """
    folders = importlib.util.find_spec(package).submodule_search_locations
    if folders is None:
        return {name: name for name in importlib.import_module(package).__all__}
    result = {}
    for folder in folders:
        # A plan asks thousands of times; a file that is added or taken away changes the folder's time.
        result |= _parts_in(folder, pathlib.Path(folder).stat().st_mtime_ns, package.endswith("schemes"))
    return result


@functools.lru_cache
def _parts_in(folder: str, changed: int, schemes: bool) -> dict[str, str]:
    defined = _SCHEME if schemes else _DEFINED  # the one exception: schemes
    result = {}
    for path in pathlib.Path(folder).glob("*.py"):
        for name in defined.findall(path.read_text("utf-8")):
            if schemes or name.lower() == path.stem.replace("_", ""):
                result[path.stem] = name
    return result


def constant(package: str, name: str, constant: str) -> bool:
    """Whether a part's file says ``CONSTANT = True``; nothing is imported."""
    if ":" in name:
        foreign(name)
        return bool(getattr(importlib.import_module(name.partition(":")[0]), constant, False))
    check_name(package, name)
    folders = importlib.util.find_spec(package).submodule_search_locations
    return f"\n{constant} = True\n" in pathlib.Path(folders[0], f"{name}.py").read_text("utf-8")


def builder(package: str, name: str):
    """The class or function that builds ``name``.

    Raises:
        InputError: the package has no such name; the message lists the known names and the closest.
    """
    if ":" in name:
        return foreign(name)
    known = check_name(package, name)
    is_module = importlib.util.find_spec(package).submodule_search_locations is None
    return getattr(importlib.import_module(package if is_module else f"{package}.{name}"), known[name])


def check_name(package: str, name: str) -> dict[str, str]:
    """The parts of a package; raises InputError where the name is none of them, and none of the user's own code."""
    known = parts(package)
    if name not in known and ":" not in name:
        raise InputError(unknown(name, package.rpartition(".")[2], sorted(known)))
    return known


def foreign(name: str) -> Callable:
    """The class or function that ``package.module:name`` names. The current folder is importable.

    Raises:
        InputError: the module can't be imported, whatever the reason, or has no such class or function.
    """
    module, _, attribute = name.partition(":")
    search_current_folder()
    try:
        found = getattr(importlib.import_module(module), attribute, None)
    # The user's module may raise anything while it is imported.
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        advice = ": put its folder on PYTHONPATH" if isinstance(error, ImportError) else ""
        raise InputError(f"{name}: {module} can't be imported ({reason}){advice}") from error
    if not callable(found):
        raise InputError(f"{name}: {module} has no class or function {attribute!r}: name one that it defines")
    return found


def search_current_folder() -> None:
    """Lets modules be imported from the current folder, as ``python -m`` does and a console command does not."""
    if not {"", os.getcwd()} & set(sys.path):
        sys.path.insert(0, os.getcwd())


def check(package: str, spec: Spec, given: tuple[str, ...] = ()) -> dict[str, Any]:
    """Checks that a spec's name and keys exist, without building anything.

    Args:
        package: where the name is looked up.
        spec: what was asked for.
        given: keys that the caller adds itself, and that a spec must not name.

    Returns:
        The spec's values by key.

    Raises:
        InputError: unknown name, unknown key, or a required key left out.
    """
    return bind(builder(package, spec.name), spec, given)


def bind(function: Callable, spec: Spec, given: tuple[str, ...] = ()) -> dict[str, Any]:
    """A spec's values by the keys of the function that takes them; see `check`."""
    parameters = inspect.signature(function).parameters.values()
    known = [p.name for p in parameters if p.kind is not p.VAR_KEYWORD and p.name not in given]
    keys = ", ".join(known) or "none"
    if len(spec.args) > len(known):
        raise InputError(f"{spec} has {len(spec.args)} values without a key: known keys are {keys}")
    values = dict(zip(known, spec.args, strict=False))
    for key, value in spec.kwargs.items():
        if key not in known:
            raise InputError(f"{spec.name} has no key {key!r}: known keys are {keys}{closest(key, known)}")
        if key in values:
            raise InputError(f"{spec} gives {key!r} twice: once without its key, once with it")
        values[key] = value
    for p in parameters:
        if p.name in known and p.default is p.empty and p.name not in values:
            raise InputError(f"{spec} lacks the key {p.name!r}: write {spec.name}({p.name}=…)")
    return values


def build(package: str, spec: Spec, **given: Any) -> Any:
    """Builds what a spec names: the class or function of ``package/name.py``, called with its keys.

    Args:
        package: where the name is looked up.
        spec: name and keys.
        **given: what the caller adds (``num_classes``, ``input_shape`` …).

    Raises:
        InputError: see `check`.
    """
    values, function = check(package, spec, tuple(given)), builder(package, spec.name)
    parameters = inspect.signature(function).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    if (missing := [key for key in given if key not in parameters]) and not takes_any:
        raise InputError(f"{spec.name} has to take {' and '.join(missing)}, which a run gives to each of its kind")
    return function(**given, **values)


def check_kind(given: Spec, made: Any, *kinds: type) -> Any:
    """What a spec has built; raises InputError where code of the user's own has built something else."""
    if not isinstance(made, kinds):
        needed = " or ".join(kind.__name__ for kind in kinds)
        raise InputError(f"{given.name} gives {type(made).__name__}, and {needed} is needed")
    return made


def unknown(name: str, kind: str, known: list[str]) -> str:
    """What to say of a name that is not among the known ones of its kind."""
    return f"unknown name {name!r} in {kind}: known are {', '.join(known)}{closest(name, known)}"


def closest(word: str, known: list[str]) -> str:
    """The known name that is most like a word, as a question in brackets; nothing where none is."""
    close = difflib.get_close_matches(word, known, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
