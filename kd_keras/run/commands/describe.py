"""Prints the arguments, defaults and docstring of a part: kd-keras describe kd."""

import difflib

from kd_keras import signatures
from kd_keras.errors import InputError

_SINGULAR = {
    "losses": "loss",
    "models": "model",
    "data": "data set",
    "schemes": "scheme",
    "compress": "compression step",
    "augmentations": "augmentation",
    "schedules": "schedule",
}


def main(argv: list[str]) -> int:
    """Prints what each name stands for; of a name that several kinds have, all.

    Args:
        argv: names of parts, as ``kd-keras list`` prints them.

    Raises:
        InputError: no name, or an unknown one; the message names the closest.
    """
    if not argv:
        raise InputError("describe needs the name of a part, such as kd: kd-keras list prints all")
    print("\n\n\n".join(text for name in argv for text in describe(name)))
    return 0


def describe(name: str) -> list[str]:
    """Kind, signature and docstring of each part of that name.

    Raises:
        InputError: there is none.
    """
    found = [signatures.read(kind, name) for kind in signatures.KINDS if name in signatures.names(kind)]
    if not found:
        known = {known for kind in signatures.KINDS for known in signatures.names(kind)}
        closest = "".join(f", did you mean {close!r}?" for close in difflib.get_close_matches(name, known, n=1))
        raise InputError(f"unknown part {name!r}{closest or ':'} kd-keras list prints all")
    return [_text(part) for part in found]


def _text(part: signatures.Part) -> str:
    kind = _SINGULAR[part.kind]
    article = "an" if kind[0] in "aeiou" else "a"
    return f"{part.name}: {article} {kind} ({part.python_name})\n\n  {part}\n\n{part.docstring}"
