"""Files that a reader never meets half of, and downloads that end."""

import contextlib
import hashlib
import os
import pathlib
import shutil
import socket
import uuid
from collections.abc import Callable, Iterator
from typing import BinaryIO


def write(path: str | os.PathLike, content: bytes | str | Callable[[BinaryIO], None]) -> None:
    """Writes a file beside its place, and moves it there once it is safely on disk.

    Args:
        path: the file; its folder is made where it is missing.
        content: bytes, text (written as UTF-8), or a function that writes to the open file.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = partial(path)
    try:
        with open(unfinished, "wb") as file:
            if callable(content):
                content(file)
            else:
                file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def update(path: str | os.PathLike, text: str) -> None:
    """Writes text to a file, unless that is what it holds already: the file's time then says when it last changed."""
    path = pathlib.Path(path)
    if not path.exists() or path.read_bytes() != text.encode():
        write(path, text)


def copy(source: str | os.PathLike, target: str | os.PathLike) -> None:
    """Copies a file; a reader of ``target`` never meets half of it."""
    with open(source, "rb") as read:
        write(target, lambda file: shutil.copyfileobj(read, file))


def partial(path: pathlib.Path) -> pathlib.Path:
    """A name beside a file for what is to take its place, no other process' own."""
    # Not by the process' number: in containers that share a disk each may be number 1.
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")


@contextlib.contextmanager
def download_timeout(seconds: float = 10.0) -> Iterator[None]:
    """Within it a download from a host that says nothing for so long raises an error, and the run does not hang."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def sha256(path: str | os.PathLike) -> str:
    """A file's SHA-256, hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
