"""Finds the files of published data sets: in the user's folder, in Keras' cache, or by download."""

import os
import pathlib

import keras

from kd_keras import files
from kd_keras.errors import InputError


def existing_folder(folder: str | os.PathLike, key: str = "folder") -> pathlib.Path:
    """The user's folder as a path.

    Raises:
        InputError: it does not exist, or is not a folder.
    """
    if not isinstance(folder, (str, os.PathLike)):
        raise InputError(f"{key}={folder!r} is not a path: give the folder's name in quotes")
    try:
        path = pathlib.Path(folder).expanduser()
        problem = None if path.is_dir() else "is a file" if path.exists() else "does not exist"
    except (RuntimeError, OSError, ValueError) as error:  # no home of that user, a name too long, a null character
        problem = f"is no name of a folder ({getattr(error, 'strerror', None) or error})"
    if problem:
        raise InputError(f"{key}={str(folder)!r} {problem}: give the folder that holds the data")
    return path


def cache_folder(name: str = "") -> pathlib.Path:
    """Keras' cache of data sets (``$KERAS_HOME/datasets``, by default ``~/.keras/datasets``), or a folder in it."""
    home = os.environ.get("KERAS_HOME") or os.path.join("~", ".keras")
    return pathlib.Path(home).expanduser() / "datasets" / name


def fetch(
    url: str, file_hash: str | None, instead: str, *, target: str, subdir: str = "", extract: bool = False
) -> pathlib.Path:
    """Downloads a file to Keras' cache, once.

    Args:
        url: address of the file.
        file_hash: published SHA-256, hexadecimal; None where reading the file checks it.
        instead: end of the error message, what the user can do without a network.
        target: the file's name in the cache (with ``extract``: the extracted folder's).
        subdir: folder of the cache.
        extract: unpack the archive.

    Returns:
        The file, or the extracted folder.

    Raises:
        InputError: the download fails, or the cache holds another file under that name.
    """
    folder = cache_folder(subdir)
    archive = folder / (f"{target}_archive" if extract else target)
    # Checked first, because Keras deletes a file whose hash differs, which the user may have put there.
    if file_hash and archive.exists() and files.sha256(archive) != file_hash:
        raise InputError(f"{archive} is not the published file (its hash differs): move it away, or {instead}")
    try:
        # Keras uses a temporary folder if its home does not exist.
        folder.mkdir(parents=True, exist_ok=True)
        with files.download_timeout():
            path = keras.utils.get_file(
                target,
                url,
                file_hash=file_hash,
                extract=extract,
                cache_dir=str(cache_folder().parent),
                cache_subdir=os.path.join("datasets", subdir) if subdir else "datasets",
            )
    except Exception as error:  # Keras raises plain Exception for a failed download
        reason = " ".join(str(error).split())
        raise InputError(f"could not download {url} ({reason}): {instead}") from error
    return pathlib.Path(path)
