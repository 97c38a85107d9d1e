"""Prints the names of all losses, models, data sets and other parts, and of the experiments."""

from kd_keras import flagfiles, signatures, spec
from kd_keras.errors import InputError

_EXPERIMENTS = "experiments"


def main(argv: list[str]) -> int:
    """Prints every part by kind, with the first line of its docstring.

    Args:
        argv: kinds, such as ``losses``; by default all. ``experiments`` are the names that ``--flagfile`` takes.

    Raises:
        InputError: an unknown kind.
    """
    known = [*signatures.KINDS, _EXPERIMENTS]
    for kind in argv:
        if kind not in known:
            raise InputError(spec.unknown(kind, "kinds of parts", known))
    for kind in argv or known:
        about = dict(map(_experiment, flagfiles.names()) if kind == _EXPERIMENTS else _parts(kind))
        width = max(map(len, about), default=0)
        print(f"{kind}:")
        for name, text in about.items():
            print(f"  {name:<{width}}  {text}")
        print()
    print("kd-keras describe NAME prints the arguments of a part.")
    return 0


def _parts(kind: str):
    for part in (signatures.read(kind, name) for name in signatures.names(kind)):
        yield part.name, part.docstring.partition("\n")[0]


def _experiment(name: str) -> tuple[str, str]:
    return name, flagfiles.find(name).read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")
