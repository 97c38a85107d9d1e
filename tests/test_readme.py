"""README.md and the guides: every Python snippet is executed, every command is read by what it starts.

A snippet that can't be executed here has a comment on the line before it, ``<!-- not executed: why -->``; what it
imports of the package is imported all the same. The snippets of a page are executed in order, in one namespace, which
has the variables of `variables` at the start. Trainings are shortened to an epoch.
"""

import ast
import dataclasses
import importlib
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys

import numpy as np
import pytest

from kd_keras.errors import InputError
from kd_keras.run import commands, config
from kd_keras.run.commands import check_data
from kd_keras.sweep import __main__ as sweep

ROOT = pathlib.Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "AGENTS.md", *sorted((ROOT / "docs").rglob("*.md"))]
_FENCE = re.compile(
    r"^(?:<!-- not executed: (?P<why>[^\n]+) -->\n)?(?P<indent> *)```(?P<language>\w*)\n(?P<text>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)
# What starts a command, or a line of flags alone.
_COMMAND = re.compile(r"(?:python -m kd_keras(?:\.\w+)?|kd-keras|^\s*(?=--\w))(?=\s|$|--)")
# What ends a command in a shell, where it stands outside of quotes.
_ENDS = {"&&", "||", "|", ";", "#", ">", ">>", "2>", "&"}


@dataclasses.dataclass(frozen=True)
class Block:
    """A fenced block of a page.

    Attributes:
        where: page and line.
        language: what stands after the fence.
        text: its lines.
        why: why it is not executed, or None.
    """

    where: str
    language: str
    text: str
    why: str | None


def read_blocks(path: pathlib.Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    page = path.read_text(encoding="utf-8")
    found = []
    for match in _FENCE.finditer(page):
        line = page.count("\n", 0, match.start("text"))
        found.append(Block(f"{path.name}:{line}", match["language"], match["text"], match["why"]))
    assert sum(block.language == "python" for block in found) == page.count("```python"), f"{path.name}: lost a snippet"
    return found


def read_commands(text: str) -> list[list[str]]:
    """The commands of a block, as lists of words: ``python -m kd_keras…``, ``kd-keras …``, and lines of flags alone."""
    found = []
    pending = ""
    for line in text.replace("\\\n", " ").splitlines():
        pending = f"{pending}\n{line}" if pending else line
        match = _COMMAND.search(pending)
        if match is None or (rest := _words(pending[match.start() :])) is None:
            # Without a command the next line begins anew; with one, its quotes are still open.
            pending = "" if match is None else pending
            continue
        found.append(rest)
        pending = ""
    if pending:
        # The command stands in quotes of its own, that end on its last line: bash -c '…'.
        match = re.search(r"python -m kd_keras.*", pending, re.DOTALL)
        found.append(_words(match[0].rpartition("'")[0]))
    return found


def _words(text: str) -> list[str] | None:
    """The words of one command; None where a quote is open."""
    try:
        words = shlex.split(text)
    except ValueError:
        return None
    return words[: next((at for at, word in enumerate(words) if word in _ENDS), len(words))]


def start_of(words: list[str]) -> tuple[str, list[str]]:
    """What a command starts (``run``, ``sweep``, ``list`` …), and its arguments."""
    if words[:2] == ["python", "-m"]:
        program = words[2].partition(".")[2]
        return (program, words[3:]) if program else (words[3], words[4:])
    if words[0] == "kd-keras":
        return words[1], words[2:]
    # Flags alone are for any flagfile.
    return "run", ["--flagfile=experiments/digits.flags", *words]


BLOCKS = [block for path in PAGES for block in read_blocks(path)]
SHELL = [block for block in BLOCKS if block.language != "python"]
COMMANDS = [(block.where, words) for block in SHELL for words in read_commands(block.text)]


@pytest.fixture
def variables(tmp_path, monkeypatch):
    """What the guides' snippets take for granted: digits, a small pair, a TFLite file, a teacher's logits in a file."""
    from kd_keras import Distiller, data, losses, models
    from kd_keras.export import metadata, tflite

    monkeypatch.chdir(tmp_path)
    splits = data.Digits()
    splits = dataclasses.replace(splits, train=data.take(splits.train, 200, seed=0))
    teacher, student = (models.CNN(10, splits.image_shape, filters=filters, dense=()) for filters in ((8, 8), (4, 4)))
    distiller = Distiller(student=student, teacher=teacher, losses=[losses.KD()])
    distiller.compile("adam", metrics=["accuracy"])
    images = np.zeros((4, *splits.image_shape), "float32")
    content = metadata.attach(tflite.convert(student, "int8", images), splits.class_names)
    (tmp_path / "student_int8.tflite").write_bytes(content)
    np.save(tmp_path / "teacher.npy", np.random.default_rng(0).normal(size=(len(splits.train), 10)))
    images, labels = (part.numpy() for part in splits.train.read(np.arange(64)))
    return {
        **{"data": data, "losses": losses, "models": models, "Distiller": Distiller},
        **{"splits": splits, "teacher": teacher, "student": student, "distiller": distiller},
        **{"images": images.astype("float32"), "labels": labels},
        **{"epochs": 1, "steps_per_epoch": data.steps_per_epoch(len(splits.train), 64)},
        "train": data.batches(splits.train, 64, training=True, epochs=1),
    }


PAGES_WITH_PYTHON = [path for path in PAGES if any(block.language == "python" for block in read_blocks(path))]


# The pages that most begin with; the others take longer.
_FAST = ("README.md",)


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, marks=() if path.name in _FAST else pytest.mark.slow, id=path.name)
        for path in PAGES_WITH_PYTHON
    ],
)
def test_the_python_of_a_page_runs(path, variables):
    for block in read_blocks(path):
        if block.language != "python":
            continue
        tree = ast.parse(block.text, block.where)
        if block.why is None:
            code = re.sub(r"\bepochs=\d+", "epochs=1", block.text)
            exec(compile(code, block.where, "exec"), variables)
        else:
            check_imports(tree, block.where)
    if path.name == "README.md":
        assert pathlib.Path("student.tflite").stat().st_size > 1000


def check_imports(tree: ast.Module, where: str) -> None:
    """Imports what a snippet imports of the package."""
    for node in tree.body:
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("kd_keras"):
                    importlib.import_module(alias.name)
        elif isinstance(node, ast.ImportFrom) and node.module.startswith("kd_keras"):
            module = importlib.import_module(node.module)
            missing = [alias.name for alias in node.names if not hasattr(module, alias.name)]
            assert not missing, f"{where}: {node.module} has no {', '.join(missing)}"


def test_pages_and_commands_are_found():
    assert sum(block.language == "python" for block in BLOCKS) >= 7
    starts = [start_of(words)[0] for _, words in COMMANDS]
    assert starts.count("run") >= 12 and starts.count("sweep") >= 2 and {"list", "describe"} <= set(starts)


@pytest.mark.parametrize(("where", "words"), COMMANDS, ids=[f"{where}-{words[-1]}"[:60] for where, words in COMMANDS])
def test_a_command_of_a_page_is_read(where, words, monkeypatch):
    monkeypatch.chdir(ROOT)
    name, arguments = start_of(words)
    if name == "run" and "--help" not in arguments:
        config.read(["kd_keras.run", *arguments])
    elif name in ("evaluate", "export"):  # of files that are the reader's
        config.read(["kd_keras.run", *(word for word in arguments if word.startswith("-"))])
    elif name == "sweep":
        sweep.check(["kd_keras.sweep", *arguments])
    elif name in ("report", "compare", "track"):
        importlib.import_module(f"kd_keras.run.commands.{name}").parser().parse_args(arguments)
    elif name == "check-data":
        config.read(["kd_keras.run", *check_data.parser().parse_known_args(arguments)[1]])
    else:
        assert commands.main([name, *arguments]) == 0


def test_the_commands_of_a_block():
    text = """
# a comment with 'a quote
A=1 python -m kd_keras.run --epochs=3 \\
  --loss='ce() | kd()' || exit 1
pip install x && kd-keras describe kd  # it is quick
exec bash -c '
  exec python -m kd_keras.run --epochs=4
'
--compress='prune()
  + qat()' --epochs=5
--teacher=none
"""
    head, _, tail = text.partition("exec bash")
    assert read_commands(head) == [
        ["python", "-m", "kd_keras.run", "--epochs=3", "--loss=ce() | kd()"],
        ["kd-keras", "describe", "kd"],
    ]
    tail, _, flags = tail.partition("'\n--")
    assert read_commands(f"exec bash{tail}'") == [["python", "-m", "kd_keras.run", "--epochs=4"]]
    assert read_commands(f"--{flags}") == [["--compress=prune()\n  + qat()", "--epochs=5"], ["--teacher=none"]]


def test_the_guides_own_loss_is_one_file(tmp_path):
    """The loss of docs/losses.md, put where it says, is known by its file's name."""
    import kd_keras.losses
    from kd_keras import spec

    (code,) = [block.text for block in read_blocks(ROOT / "docs" / "losses.md") if "class MyLoss" in block.text]
    (tmp_path / "my_loss.py").write_text(code, encoding="utf-8")
    kd_keras.losses.__path__.append(str(tmp_path))
    try:
        loss = spec.build("kd_keras.losses", spec.parse("my_loss(weight=0.5)"))
    finally:
        kd_keras.losses.__path__.pop()
    assert loss.name == "my_loss"
    assert float(loss({"logits": np.array([[1.0, 3.0]])}, {"logits": np.array([[0.0, 1.0]])}, np.array([0]))[0]) == 2.5


def test_the_guides_teacher_cache_is_filled(variables):
    (code,) = [block.text for block in read_blocks(ROOT / "docs" / "teacher_cache.md") if "TeacherCache" in block.text]
    exec(compile(re.sub(r"\bepochs=\d+", "epochs=1", code), "guide", "exec"), variables)
    assert len(list(pathlib.Path.cwd().glob("cache/*/view*-logits.json"))) == 4


@pytest.mark.slow
def test_what_the_migration_page_says_of_others_is_so(variables):
    import keras

    def run(*marks):
        for block in read_blocks(ROOT / "docs" / "migrate.md"):
            if block.language == "python" and any(mark in block.text for mark in marks):
                exec(compile(re.sub(r"\bepochs=\d+", "epochs=1", block.text), block.where, "exec"), variables)

    teacher = variables["teacher"]
    start = [weight.numpy() for weight in teacher.weights]
    variables["keras"] = keras
    run("class OldDistiller")
    assert any((weight.numpy() != before).any() for weight, before in zip(teacher.weights, start, strict=True))
    run("keras.distillation.Distiller", "import Distiller, losses", "z_s, z_t")
    np.testing.assert_allclose(variables["before"], np.mean(variables["after"]), rtol=1e-4)
    assert not teacher.trainable
    negative = -1 - np.abs(np.random.default_rng(0).normal(size=(2, 8, 10)))
    assert float(keras.distillation.LogitsDistillation().compute_loss(*negative)) == 0


@pytest.mark.slow
def test_the_guides_slurm_tasks_agree_on_their_cluster(tmp_path):
    """TensorFlow sorts the nodes by their names, Slurm by number: the index is the place of the node's own name."""
    (code,) = [b.text for b in read_blocks(ROOT / "docs" / "machines.md") if "SlurmClusterResolver" in b.text]
    nodes = [f"node{number}" for number in (9, 10)]
    step = {"SLURM_JOB_ID": "45", "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "1(x2)"}
    told = []
    for number, node in enumerate(nodes):
        own = {"SLURM_PROCID": str(number), "SLURMD_NODENAME": node, "SLURM_STEP_NODELIST": "node[9-10]"}
        environment = {**os.environ, **step, **own}
        out = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True).stdout
        told.append(json.loads(out))
    (workers,) = {tuple(config["cluster"]["worker"]) for config in told}
    assert [workers[config["task"]["index"]] for config in told] == [f"{node}:20045" for node in nodes]


# Flags within a sentence or a table. Some need another: these come first, and a later flag replaces an earlier one.
_INLINE = re.compile(r"`(--\w+=[^`]*)`")
_NEEDED = ["--flagfile=experiments/digits.flags", "--cache_views=1", "--compress=qat()", "--train_examples=100"]
_OF_OTHER_TOOLS = {"performance.md", "scaling.md", "conversions.md", "sweeps.md", "studies.md"}
INLINE = [
    (path.name, flags.replace(r"\|", "|"))
    for path in PAGES
    if path.name not in _OF_OTHER_TOOLS
    for flags in _INLINE.findall(path.read_text(encoding="utf-8"))
    if "…" not in flags and "<" not in flags
]


def test_flags_within_sentences_are_read(monkeypatch):
    monkeypatch.chdir(ROOT)
    refused = []
    for name, flags in INLINE:
        try:
            config.read(["kd_keras.run", *_NEEDED, *shlex.split(flags)])
        except InputError as error:
            refused.append(f"{name}: {flags}: {error}")
    assert len(INLINE) > 50 and refused == []


_LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)")


def anchors(path: pathlib.Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    heads = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("path", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    for target, anchor in _LINK.findall(path.read_text(encoding="utf-8")):
        page = path.parent / target if target else path
        assert page.exists(), target
        assert not anchor or anchor in anchors(page), f"{target}#{anchor}"
