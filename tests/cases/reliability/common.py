"""What all cases share: starting the command line, judging what it said, and finding a workdir's files by name.

Only this file knows how a workdir is laid out (`FILES`), so it alone changes when that does.

The environment variable KD_KERAS_ROOT names the project's root (default: the current folder).
RELIABILITY_FRESH=1 starts each command as a new process; by default it is a fork of one process that has imported
TensorFlow already, which saves five seconds a case and is otherwise the same: ``python -m kd_keras.run …``.
"""

import atexit
import contextlib
import json
import os
import pathlib
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
ROOT = pathlib.Path(os.environ.get("KD_KERAS_ROOT", os.getcwd())).resolve()
FRESH = os.environ.get("RELIABILITY_FRESH") == "1"
#: No bad input may take longer than this, and no server may hold a run up for longer.
HANG = 60.0
#: How many lines of its own a refused command may print.
MOST_LINES = 3

MODELS = ["--teacher=cnn(filters=(4,))", "--student=cnn(filters=(2,))"]
SHORT = [
    "--epochs=1",
    "--teacher_epochs=1",
    "--tracking=none",
    "--export=none",
    "--teacher_dtype=none",
    "--progress=none",
]
#: The smallest whole experiment.
TINY = ["--data=digits()", *MODELS, "--train_examples=100", *SHORT]

#: A workdir's files by what they are; globs relative to the workdir. The first that matches counts.
FILES = {
    "settings": ["config.json"],
    "data record": ["workdir.json"],
    "teacher record": ["@teacher/record.json"],
    "baseline record": ["@baseline/record.json"],
    "student record": ["@student/record.json"],
    "teacher dtype record": ["@teacher-dtype/record.json"],
    "teacher measured": ["@teacher-quality/record.json"],
    "teacher logits": ["@teacher-quality/logits.npy"],
    "student logits": ["@student-quality/logits.npy"],
    "all measured": ["summary.json"],
    "tracking runs": ["workdir.json"],
    "checkpoint": ["store/checkpoints/*.npz"],
    "teacher model": ["teacher.keras", "@teacher/model.keras"],
    "baseline model": ["baseline.keras", "@baseline/model.keras"],
    "student model": ["student.keras", "@student/model.keras"],
    "student file": ["student_float32.tflite", "student_*.tflite"],
    "table": ["results.json"],
    "table as csv": ["results.csv"],
    "curves": ["curves.png"],
    "mlflow store": ["mlflow.db"],
    "cache record": ["store/teacher_cache/*/view*.json"],
    "cache block": ["store/teacher_cache/*/view*.npy"],
    "cache identity": ["store/teacher_cache/*/identity.json"],
}


def find(workdir, what):
    """The file of a workdir that is ``what``; an AssertionError names this table where the layout has changed."""
    for pattern in FILES[what]:
        found = _matching(workdir, pattern)
        if found:
            return found[0]
    raise AssertionError(f"no {what} in {workdir}: has the layout changed? Mend common.FILES")


def has(workdir, what):
    """Whether a workdir has such a file."""
    return any(_matching(workdir, pattern) for pattern in FILES[what])


def _matching(workdir, pattern):
    """Files by a glob; of ``@stage/name`` the file of that name that a stage has left in the store."""
    if not pattern.startswith("@"):
        return sorted(pathlib.Path(workdir).glob(pattern))
    stage, _, name = pattern[1:].partition("/")
    found = []
    for record in sorted(pathlib.Path(workdir).glob("store/*/*/record.json")):
        with contextlib.suppress(OSError, ValueError):
            if json.loads(record.read_text())["stage"] == stage and (record.parent / name).exists():
                found.append(record.parent / name)
    return found


# ---- a command and what came of it ----

# Lines of TensorFlow's (and of what it brings) that no program can keep off stderr.
_FOREIGN = re.compile(
    r"^(WARNING: All log messages before absl|[IWEF]\d{4} |\d{4}-\d\d-\d\d [\d:.]+: [IWEF] |"
    r"WARNING:tensorflow:|WARNING:absl:At this time|To enable the following instructions|"
    r"INFO:tensorflow:|Assets written|INFO: Created TensorFlow Lite)"
)


class Result:
    """Exit code (128 + signal where it was killed), both streams, seconds, and the peak of resident memory in MB."""

    def __init__(self, code, out, err, seconds, peak=0.0, timed_out=False):
        self.code, self.out, self.err, self.seconds, self.peak = code, out, err, seconds, peak
        self.timed_out = timed_out

    @property
    def own(self):
        """Lines on stderr that are not TensorFlow's."""
        return [line for line in self.err.splitlines() if line.strip() and not _FOREIGN.match(line)]

    @property
    def traceback(self):
        """How many lines a traceback has (0: there is none)."""
        lines = self.err.splitlines()
        at = [i for i, line in enumerate(lines) if line.startswith("Traceback")]
        return len(lines) - at[0] if at else 0

    def __str__(self):
        how = "still running, killed" if self.timed_out else f"exit {self.code}"
        ends = [line[:200] for line in self.own[-3:]]
        return f"{how} after {self.seconds:.1f} s, traceback {self.traceback} lines, stderr ends: {ends}"


def refused(result, *names, codes=(1, 2)):
    """Asserts that bad input was told of as it should be: soon, by its name, in few lines, with a plain exit code."""
    assert not result.timed_out, f"it hangs: {result}"
    assert result.code in codes, f"the exit code is none of {codes}: {result}"
    assert "Traceback" not in result.err + result.out, f"a traceback: {result}"
    assert 1 <= len(result.own) <= MOST_LINES, f"{len(result.own)} lines of stderr: {result}"
    for name in names:
        options = name if isinstance(name, tuple) else (name,)
        assert any(str(option).lower() in result.err.lower() for option in options), f"{options} isn't named: {result}"


def went_on(result):
    """Asserts that a fault was healed: the run ended well, and without a traceback."""
    assert not result.timed_out, f"it hangs: {result}"
    assert result.code == 0, f"it does not go on: {result}"
    assert "Traceback" not in result.err, f"a traceback: {result}"


def healed_or_refused(result, *names):
    """Asserts either of both: made again and done, or one clear line."""
    if result.code == 0 and not result.timed_out:
        assert "Traceback" not in result.err, f"a traceback: {result}"
    else:
        refused(result, *names)


def environment(**extra):
    """The environment of a command; a value of None takes a variable away."""
    env = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    env.pop("TF_CONFIG", None)
    for name, value in extra.items():
        env.pop(name, None)
        if value is not None:
            env[name] = str(value)
    return env


class Process:
    """A command that runs; see `start`."""

    def __init__(self, folder, pid, popen=None):
        self.folder, self.pid, self._popen = folder, pid, popen
        self.begun = time.monotonic()
        self._status = None

    @property
    def out(self):
        path = self.folder / "out"
        return path.read_text(errors="replace") if path.exists() else ""

    @property
    def err(self):
        path = self.folder / "err"
        return path.read_text(errors="replace") if path.exists() else ""

    def poll(self):
        """The wait status, or None while it runs."""
        if self._status is None:
            if self._popen is not None:
                code = self._popen.poll()
                if code is not None:
                    self._status = (128 - code if code < 0 else code, 0.0)
            elif (self.folder / "status").exists():
                code, peak = json.loads((self.folder / "status").read_text())
                self._status = (code, peak)
        return self._status

    def send(self, number):
        """Sends a signal, to this process alone."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def wait_for(self, text, seconds=HANG):
        """Waits until stdout holds ``text``."""
        until = time.monotonic() + seconds
        while text not in self.out:
            assert self.poll() is None, f"ended before it said {text!r}: {self.err[-1500:]}"
            assert time.monotonic() < until, f"has not said {text!r} in {seconds} s"
            time.sleep(0.02)

    def wait_until(self, condition, seconds=HANG):
        """Waits until ``condition()`` holds."""
        until = time.monotonic() + seconds
        while not condition():
            assert self.poll() is None, f"ended too early: {self.err[-1500:]}"
            assert time.monotonic() < until, f"not within {seconds} s"
            time.sleep(0.02)

    def result(self, timeout=90.0):
        """Waits for its end, and kills it after ``timeout`` seconds from its start."""
        until = self.begun + timeout
        timed_out = False
        ended = self.folder / "status"
        while self.poll() is None:
            if time.monotonic() > until and not timed_out:
                timed_out = True
                self.send(signal.SIGCONT)
                self.send(signal.SIGKILL)
            time.sleep(0.02)
        code, peak = self._status
        seconds = time.monotonic() - self.begun
        if ended.exists():  # it may have ended long before anybody asked
            seconds -= max(time.time() - ended.stat().st_mtime, 0)
        return Result(code, self.out, self.err, seconds, peak, timed_out)

    def kill(self):
        """Ends it whatever it does."""
        if self.poll() is None:
            self.send(signal.SIGCONT)
            self.send(signal.SIGKILL)
            self.result()


def start(*flags, module="kd_keras.run", env=None, cwd=None, limits=None, stdin="null", fresh=False, stdout=None):
    """Starts ``python -m <module> <flags>``.

    Args:
        *flags: of the command line; bytes where they are no UTF-8.
        module: what is run.
        env: of `environment`, what differs.
        cwd: current folder.
        limits: {"RLIMIT_FSIZE": bytes …}.
        stdin: ``null`` or ``closed``.
        fresh: as a new process whatever RELIABILITY_FRESH says (a variable that is read while Python starts).
        stdout: a file descriptor; by default a file.
    """
    folder = pathlib.Path(tempfile.mkdtemp(prefix="command-", dir=scratch()))
    flags = [os.fsdecode(flag) if isinstance(flag, bytes) else str(flag) for flag in flags]
    cwd = str(cwd or scratch())
    if fresh or FRESH or stdout is not None:

        def prepare():
            for name, value in (limits or {}).items():
                resource.setrlimit(getattr(resource, name), (value, value))
            if stdin == "closed":
                os.close(0)

        with open(folder / "out", "wb") as out, open(folder / "err", "wb") as err:
            popen = subprocess.Popen(
                [sys.executable, "-m", module, *map(os.fsencode, flags)],
                env=environment(**(env or {})),
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=out if stdout is None else stdout,
                stderr=err,
                preexec_fn=prepare,
                start_new_session=True,
            )
        process = Process(folder, popen.pid, popen)
    else:
        job = {
            "folder": str(folder),
            "module": module,
            "argv": flags,
            "env": environment(**(env or {})),
            "cwd": cwd,
            "limits": limits or {},
            "stdin": stdin,
        }
        process = Process(folder, _server().submit(job, folder))
    _STARTED.append(process)
    return process


def run(*flags, timeout=90.0, **kwargs):
    """Runs a command to its end; see `start`."""
    return start(*flags, **kwargs).result(timeout)


def run_each(commands, timeout=120.0, **kwargs):
    """Runs several commands one after the other in one process, and gives a `Result` for each.

    For bad input that is refused before anything is trained: what the process imports is imported once. Where one of
    them takes the process down, the rest are run in a process of their own.
    """
    results = []
    commands = [[os.fsdecode(flag) if isinstance(flag, bytes) else str(flag) for flag in one] for one in commands]
    while len(results) < len(commands):
        left = commands[len(results) :]
        folder = pathlib.Path(tempfile.mkdtemp(prefix="commands-", dir=scratch()))
        job = {
            "folder": str(folder),
            "module": kwargs.get("module", "kd_keras.run"),
            "each": left,
            "env": environment(**kwargs.get("env", {})),
            "cwd": str(kwargs.get("cwd") or scratch()),
            "limits": kwargs.get("limits", {}),
            "stdin": "null",
        }
        process = Process(folder, _server().submit(job, folder))
        _STARTED.append(process)
        whole = process.result(timeout)
        for number in range(len(left)):
            one = folder / str(number)
            if (one / "code").exists():
                code, seconds = json.loads((one / "code").read_text())
                out, err = ((one / name).read_text(errors="replace") for name in ("out", "err"))
                results.append(Result(code, out, err, seconds))
            else:
                out, err = (
                    (one / name).read_text(errors="replace") if (one / name).exists() else "" for name in ("out", "err")
                )
                results.append(Result(whole.code, out, err, whole.seconds, whole.peak, whole.timed_out))
                break
    return results


def script(text, *args, timeout=180.0, env=None):
    """Runs Python code that uses the documented API, as a process of its own."""
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", text, *map(str, args)],
        env=environment(**(env or {})),
        cwd=scratch(),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    return Result(done.returncode, done.stdout, done.stderr, time.monotonic() - begun)


# ---- the process that commands are forked from ----

_SERVER = r"""
import json, os, resource, select, signal, sys
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
control, answers = sys.argv[1:3]
null = os.open(os.devnull, os.O_RDWR)
import numpy, tensorflow, keras, sklearn.model_selection, scipy.optimize, absl.flags, absl.logging
import rich.console, rich.table, rich.progress
import PIL.Image, matplotlib
matplotlib.use("Agg")
import matplotlib.figure, matplotlib.backends.backend_agg
# What Keras and TensorFlow import when first used.
tensorflow.lite, tensorflow.function, tensorflow.data, tensorflow.image, keras.models, keras.layers, keras.export
keras.optimizers, keras.losses, keras.utils, keras.callbacks
source = open(control, "rb", buffering=0)
open(answers, "w").close()
pending, job, alive = b"", None, {}

def loop():
    global pending
    while True:
        ready, _, _ = select.select([source], [], [], 0.02)
        if ready:
            data = os.read(source.fileno(), 1 << 16)
            if not data:
                for pid in alive:
                    os.kill(pid, signal.SIGKILL)
                os._exit(0)
            pending += data
        while b"\n" in pending:
            line, pending = pending.split(b"\n", 1)
            job = json.loads(line)
            pid = os.fork()
            if pid == 0:
                return job
            alive[pid] = job["folder"]
            with open(job["folder"] + "/pid.part", "w") as file:
                file.write(str(pid))
            os.rename(job["folder"] + "/pid.part", job["folder"] + "/pid")
        while alive:
            pid, status, usage = os.wait4(-1, os.WNOHANG)
            if pid == 0:
                break
            code = 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
            folder = alive.pop(pid)
            with open(folder + "/status.part", "w") as file:
                json.dump([code, usage.ru_maxrss / 1024], file)
            os.rename(folder + "/status.part", folder + "/status")

job = loop()
# From here on this is the command's own process.
source.close()
os.setsid()
os.chdir(job["cwd"])
os.environ.clear()
os.environ.update(job["env"])
for name, value in job["limits"].items():
    resource.setrlimit(getattr(resource, name), (value, value))
def redirect(folder):
    for name, number in (("out", 1), ("err", 2)):
        file = os.open(os.path.join(folder, name), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(file, number)
        os.close(file)
if job["stdin"] == "closed":
    os.close(0)
    sys.stdin = None
else:
    os.dup2(null, 0)
sys.path[0] = job["cwd"]
sys.path.insert(1, job["env"]["PYTHONPATH"])
import runpy
if "each" in job:
    import time, traceback
    for number, argv in enumerate(job["each"]):
        folder = os.path.join(job["folder"], str(number))
        os.mkdir(folder)
        redirect(folder)
        begun = time.monotonic()
        sys.argv = [job["module"], *argv]
        try:
            runpy.run_module(job["module"], run_name="__main__", alter_sys=True)
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        except BaseException:
            traceback.print_exc()
            code = 1
        sys.stdout.flush(), sys.stderr.flush()
        with open(os.path.join(folder, "code"), "w") as file:
            json.dump([code, time.monotonic() - begun], file)
else:
    redirect(job["folder"])
    sys.argv = [job["module"], *job["argv"]]
    runpy.run_module(job["module"], run_name="__main__", alter_sys=True)
"""


class _Server:
    def __init__(self):
        folder = pathlib.Path(tempfile.mkdtemp(prefix="server-", dir=scratch()))
        control = folder / "control"
        os.mkfifo(control)
        (folder / "server.py").write_text(_SERVER)
        env = {**environment(), "OPENBLAS_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
        with open(folder / "log", "wb") as log:
            self.popen = subprocess.Popen(
                [sys.executable, str(folder / "server.py"), str(control), str(folder / "ready")],
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.control = open(control, "wb", buffering=0)
        until = time.monotonic() + 120
        while not (folder / "ready").exists():
            assert self.popen.poll() is None and time.monotonic() < until, (folder / "log").read_text()
            time.sleep(0.05)

    def submit(self, job, folder):
        self.control.write(json.dumps(job).encode() + b"\n")
        until = time.monotonic() + 60
        while not (folder / "pid").exists():
            assert self.popen.poll() is None and time.monotonic() < until, "the server has ended"
            time.sleep(0.005)
        return int((folder / "pid").read_text())

    def close(self):
        self.control.close()
        try:
            self.popen.wait(10)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            self.popen.wait()


_STARTED: list = []
_KEPT: dict = {}


def _server():
    if "server" not in _KEPT:
        _KEPT["server"] = _Server()
    return _KEPT["server"]


def scratch():
    """A folder of these cases' own, which is removed at their end."""
    if "scratch" not in _KEPT:
        _KEPT["scratch"] = pathlib.Path(tempfile.mkdtemp(prefix="reliability-"))
    return _KEPT["scratch"]


@atexit.register
def clean():
    """Ends what is left of all that was started, and removes its files."""
    for process in _STARTED:
        with contextlib.suppress(Exception):
            process.kill()
    if "server" in _KEPT:
        _KEPT.pop("server").close()
    if "scratch" in _KEPT:
        shutil.rmtree(_KEPT.pop("scratch"), ignore_errors=True)


# ---- workdirs and their damage ----


def rows(workdir):
    """A finished run's table by role, without what differs between two runs of the same numbers."""
    table = json.loads(find(workdir, "table").read_text())
    return {
        row["role"]: {key: row[key] for key in ("train_accuracy", "val_accuracy", "test_accuracy", "ece") if key in row}
        for row in table
    }


def copy(workdir, target):
    """A copy of a workdir."""
    shutil.copytree(workdir, target, symlinks=True)
    return pathlib.Path(target)


def truncate(path):
    """Cuts a file in half."""
    os.truncate(path, path.stat().st_size // 2)


def empty(path):
    """Leaves a file without a byte."""
    os.truncate(path, 0)


def garble(path):
    """Replaces a file's content: bytes that are neither UTF-8 nor any known format."""
    path.write_bytes(b"\xff\xfe\x00garbage" * 20)


def other_json(path):
    """Replaces a record by JSON of another kind."""
    path.write_text('[1, {"a": null}]')


def flip(path, at=None):
    """Flips one byte, by default three quarters into the file."""
    data = bytearray(path.read_bytes())
    place = 3 * len(data) // 4 if at is None else at
    data[place] ^= 0xFF
    path.write_bytes(bytes(data))


def children(pid):
    """Pids of a process' children."""
    found = []
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, IndexError, ValueError):
                if int((entry / "stat").read_text().rpartition(")")[2].split()[1]) == pid:
                    found.append(int(entry.name))
    return found


def alive(pid):
    """Whether a process runs (a zombie does not)."""
    with contextlib.suppress(OSError, IndexError):
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return False
