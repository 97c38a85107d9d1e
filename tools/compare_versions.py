"""Shows that a change of the code changes no number: runs the same command lines in two versions, on this machine.

    python tools/compare_versions.py
    python tools/compare_versions.py hint crd --old=08fd9bd
    python tools/compare_versions.py --list

The old version is a commit, checked out for the time of the comparison, or a folder that holds a checkout. The new
version is this checkout, or the folder that --new names. Each case is run in both with that version's `python -m
kd_keras.run`; weights, tables and TFLite files must be equal to the bit. What is measured by a clock, and the texts of
the column `role`, are not compared. Exit code 1: something differs.
"""

import argparse
import concurrent.futures
import contextlib
import pathlib
import subprocess
import sys
import tempfile
import time

from rich.console import Console
from rich.table import Table
from versions import differences, runs
from versions.cases import CASES, Case, draw_images

ROOT = pathlib.Path(__file__).resolve().parent.parent
#: The last commit of version 0.1.
OLD = "08fd9bd"


def parse(argv: list[str]) -> argparse.Namespace:
    """The options; exits with code 2 if they are wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0], formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [case.name for case in CASES]
    parser.add_argument("cases", nargs="*", metavar="case", help="names of cases (see --list); by default all")
    parser.add_argument("--list", action="store_true", help="print the cases and exit")
    parser.add_argument("--old", default=OLD, help=f"a commit, or the folder of a checkout; by default {OLD}")
    parser.add_argument("--new", type=pathlib.Path, default=ROOT, help="folder of the other checkout; by default this")
    parser.add_argument("--images", type=pathlib.Path, help="images for folder(path=…); by default they are drawn")
    parser.add_argument("--keep", type=pathlib.Path, help="an empty folder for workdirs and logs, which are kept there")
    parser.add_argument("--fresh", action="store_true", help="a new Python process for each command line (slower)")
    options = parser.parse_args(argv)
    if unknown := set(options.cases) - set(names):
        parser.error(f"unknown case {sorted(unknown)[0]!r}: known are {', '.join(names)}")
    if options.keep and options.keep.exists() and any(options.keep.iterdir()):
        parser.error(f"--keep={options.keep} is not empty: name a new folder")
    if not (options.new / "kd_keras").is_dir():
        parser.error(f"--new={options.new} holds no kd_keras: name the folder of a checkout")
    return options


@contextlib.contextmanager
def checkout(old: str, root: pathlib.Path):
    """The folder of the old version: one that the user names, or a worktree of a commit, removed afterwards.

    Raises:
        SystemExit: neither a folder nor a commit; git says why.
    """
    if (pathlib.Path(old) / "kd_keras").is_dir():
        yield pathlib.Path(old).resolve()
        return
    folder = root / "old-version"
    git = ["git", "-C", str(ROOT), "worktree"]
    added = subprocess.run([*git, "add", "--detach", str(folder), old], capture_output=True, text=True, check=False)
    if added.returncode:
        sys.exit(f"--old={old} is neither a commit nor the folder of a checkout: {added.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run([*git, "remove", "--force", str(folder)], capture_output=True, check=False)


def run_case(case: Case, trees: tuple[runs.Tree, runs.Tree]) -> list[tuple[str, differences.Comparison]]:
    """Runs a case in both trees at once.

    Returns:
        (what was compared, the comparison), of a case that is killed several.
    """
    try:
        with concurrent.futures.ThreadPoolExecutor(len(trees)) as pool:
            old, new = pool.map(lambda tree: tree.run(case), trees)
    except RuntimeError as error:
        return [(case.name, differences.Comparison(differences=[str(error)]))]
    pairs = [(case.name, old["undisturbed"], new["undisturbed"])]
    if case.killed:
        pairs += [
            (f"{case.name}, {tree.name}: resumed and undisturbed", ended["undisturbed"], ended["resumed"])
            for tree, ended in zip(trees, (old, new), strict=True)
            if "resumed" in ended
        ]
    return [(what, compare_ended(*pair, case.code)) for what, *pair in pairs]


def compare_ended(old: runs.Ended, new: runs.Ended, code: int = 0) -> differences.Comparison:
    """Compares two runs that have ended; another exit code than this is a difference, even if both versions give it."""
    result = differences.Comparison()
    if {*old.codes, *new.codes} == {code}:
        return result if code else differences.compare(old.workdir, new.workdir)
    for which, ended in (("old", old), ("new", new)):
        lines = [line for line in ended.log.read_text(errors="replace").splitlines() if line.strip()]
        text = f" ({lines[-1][:200]})" if lines and any(each != code for each in ended.codes) else ""
        result.differences.append(f"{which} run: exit code {', '.join(map(str, ended.codes))}{text}")
    return result


def row(what: str, result: differences.Comparison, seconds: float) -> list[str]:
    """The cells of a comparison in the table."""
    counts = f"{len(result.models)} models, {len(result.files)} files, {result.rows} rows"
    verdict = "\n".join(result.differences) or "identical"
    if result.notes:
        verdict += "\n" + "\n".join(result.notes)
    return [what, counts, verdict, f"{seconds:.0f}"]


def main(argv: list[str]) -> int:
    """Compares, and prints a table.

    Returns:
        The exit code: 1 if anything differs.
    """
    options = parse(argv[1:])
    console = Console(width=None if sys.stdout.isatty() else 160)
    cases = [case for case in CASES if not options.cases or case.name in options.cases]
    if options.list:
        for case in cases:
            console.print(f"{case.name:24}{case.about}", highlight=False, markup=False)
        return 0
    table = Table("case", "compared", "result", "seconds")
    failed = False
    with contextlib.ExitStack() as stack:
        root = pathlib.Path(options.keep or stack.enter_context(tempfile.TemporaryDirectory())).resolve()
        root.mkdir(parents=True, exist_ok=True)
        old = stack.enter_context(checkout(options.old, root))
        images = options.images.resolve() if options.images else draw_images(root / "images")
        trees = tuple(
            runs.Tree(name, folder, root, images, options.fresh)
            for name, folder in (("old", old), ("new", options.new.resolve()))
        )
        for tree in trees:
            stack.callback(tree.close)
        for case in cases:
            start = time.monotonic()
            for what, result in run_case(case, trees):
                cells = row(what, result, time.monotonic() - start)
                console.print(f"{cells[0]}: {cells[2]} ({cells[1]}, {cells[3]} s)", highlight=False, markup=False)
                table.add_row(*cells)
                failed |= bool(result.differences)
    console.print(table)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
