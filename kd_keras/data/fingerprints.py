"""Content hashes of images. A table in the cache saves reading unchanged files again."""

import concurrent.futures
import hashlib
import os
import pathlib
from collections.abc import Sequence

import numpy as np
from absl import logging

from kd_keras import files
from kd_keras.data.downloads import cache_folder

#: Above so many files names and sizes stand for the content, as reading them all would take too long.
MOST_FILES = 100_000
# A file counts as unchanged while its path, size and time of change are the same.
_ENTRY = np.dtype([("key", "<u8"), ("digest", "V16")])


def of_images(images: np.ndarray) -> np.ndarray:
    """A hash of each of N images uint8 in memory: (N, 16) uint8."""
    return _rows(hashlib.blake2b(np.ascontiguousarray(image), digest_size=16).digest() for image in images)


def of_rows(content: bytes, count: int) -> np.ndarray:
    """A hash for each of ``count`` samples whose content is known as a whole only: (N, 16) uint8."""
    return _rows(hashlib.blake2b(content + b"%d" % row, digest_size=16).digest() for row in range(count))


def of_files(paths: Sequence[str]) -> np.ndarray:
    """A hash of the content of each of N files, (N, 16) uint8; the folder that they lie in does not count."""
    root = os.path.commonpath(paths)
    if len(paths) > MOST_FILES:
        texts = (os.fsencode(f"{os.path.relpath(path, root)}\0{os.stat(path).st_size}") for path in paths)
        return _rows(hashlib.blake2b(text, digest_size=16).digest() for text in texts)
    name = hashlib.sha256(os.fsencode(root)).hexdigest()[:12]
    table = cache_folder("kd_keras") / "fingerprints" / f"{os.path.basename(root)}-{name}"
    known, current = _read(table), keys(paths).tolist()
    new = {key: path for key, path in zip(current, paths, strict=True) if key not in known}
    if new:
        known |= dict(zip(new, _in_blocks(_digest, list(new.values())), strict=True))
        _write(table, known)
    return _rows(known[key] for key in current)


def _rows(digests) -> np.ndarray:
    return np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 16)


def keys(paths: Sequence[str], salt: str = "") -> np.ndarray:
    """A number (N,) uint64 for each file, which changes when its path, size or time of change does."""

    def key(path):
        stat = os.stat(path)
        text = f"{salt}\0{path}\0{stat.st_size}\0{stat.st_mtime_ns}"
        return int.from_bytes(hashlib.blake2b(os.fsencode(text), digest_size=8).digest())

    return np.array(_in_blocks(key, paths), np.uint64)


def _in_blocks(function, items: Sequence) -> list:
    """The function of each item; several blocks at a time, for the sake of disks behind a network."""
    blocks = [items[start : start + 1000] for start in range(0, len(items), 1000)]
    with concurrent.futures.ThreadPoolExecutor() as pool:
        results = list(pool.map(lambda block: [function(item) for item in block], blocks))
    return [result for block in results for result in block]


def _digest(path: str) -> bytes:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).digest()


def _read(table: pathlib.Path) -> dict[int, bytes]:
    """The table's entries; none where it is missing or damaged."""
    if not table.exists():
        return {}
    content = table.read_bytes()
    checksum, entries = content[:32], content[32:]
    if hashlib.sha256(entries).digest() != checksum:
        logging.warning("%s is damaged: the images are read again", table)
        return {}
    rows = np.frombuffer(entries, _ENTRY)
    return dict(zip(rows["key"].tolist(), [bytes(digest) for digest in rows["digest"]], strict=True))


def _write(table: pathlib.Path, known: dict[int, bytes]) -> None:
    entries = np.zeros(len(known), _ENTRY)
    entries["key"] = list(known)
    entries["digest"] = [np.void(digest) for digest in known.values()]
    content = entries.tobytes()
    try:
        files.write(table, hashlib.sha256(content).digest() + content)
    except OSError as error:
        logging.warning("%s can't be written (%s): the images are read again next time", table, error.strerror)
