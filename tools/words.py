"""Counts words that make the package's texts slow to read, in the working tree and in an older commit.

    python tools/words.py
    python tools/words.py --commit=08fd9bd

Counted are whole words, in upper or lower case, in ``kd_keras/*.py``, README.md, CONTRIBUTING.md and ``docs/*.md``: in
code as in prose, since names of variables are read too.
"""

import argparse
import fnmatch
import pathlib
import re
import subprocess

ROOT = pathlib.Path(__file__).resolve().parent.parent
PATHS = ("kd_keras/*.py", "README.md", "CONTRIBUTING.md", "docs/*.md")
WORDS = ("one", "own", "found", "kept", "told", "done", "behind", "beside", "untaught", "a way|way of")


def count(texts: list[str]) -> dict[str, int]:
    """How often each of `WORDS` occurs in the texts, as a whole word."""
    patterns = {word: re.compile(r"\b(?:" + word.replace(" ", r"\s+") + r")\b", re.IGNORECASE) for word in WORDS}
    return {word: sum(len(pattern.findall(text)) for text in texts) for word, pattern in patterns.items()}


def read_tree() -> list[str]:
    """The counted files of the working tree."""
    names = _git("ls-files", "--", *PATHS).splitlines()
    return [(ROOT / name).read_text(encoding="utf-8") for name in names if (ROOT / name).exists()]


def read_commit(commit: str) -> list[str]:
    """The counted files of a commit."""
    names = _git("ls-tree", "-r", "--name-only", commit).splitlines()
    # As in git's patterns, * also matches slashes.
    counted = [name for name in names if any(fnmatch.fnmatch(name, path) for path in PATHS)]
    return [_git("show", f"{commit}:{name}") for name in counted]


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, check=True, capture_output=True, encoding="utf-8").stdout


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--commit", help="a commit to compare with")
    commit = parser.parse_args().commit
    columns = {"now": read_tree()}
    if commit is not None:
        columns = {commit: read_commit(commit), **columns}
    counts = {name: count(texts) for name, texts in columns.items()}
    print(f"{'word':<14}{''.join(f'{name:>10}' for name in columns)}")
    for word in WORDS:
        print(f"{word:<14}{''.join(f'{counts[name][word]:>10}' for name in columns)}")
    lines = {name: sum(text.count("\n") for text in texts) for name, texts in columns.items()}
    print(f"{'(lines)':<14}{''.join(f'{lines[name]:>10}' for name in columns)}")


if __name__ == "__main__":
    main()
