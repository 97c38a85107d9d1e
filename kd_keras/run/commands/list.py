"""Prints the names of all losses, models, data sets and other parts."""

from kd_keras import signatures, spec
from kd_keras.errors import InputError


def main(argv: list[str]) -> int:
    """Prints every part by kind, with the first line of its docstring.

    Args:
        argv: kinds, such as ``losses``; by default all.

    Raises:
        InputError: an unknown kind.
    """
    for kind in argv:
        if kind not in signatures.KINDS:
            raise InputError(spec.unknown(kind, "kinds of parts", list(signatures.KINDS)))
    for kind in argv or signatures.KINDS:
        parts = [signatures.read(kind, name) for name in signatures.names(kind)]
        width = max(len(part.name) for part in parts)
        print(f"{kind}:")
        for part in parts:
            print(f"  {part.name:<{width}}  {part.docstring.partition(chr(10))[0]}")
        print()
    print("kd-keras describe NAME prints the arguments of a part.")
    return 0
