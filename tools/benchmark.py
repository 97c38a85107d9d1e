"""Measures what a distillation step, and all around it, costs; prints ratios, writes JSON and figures.

    python tools/benchmark.py                                   everything, about 20 minutes on two idle cores
    python tools/benchmark.py --quick                           about 2 minutes, to see that it works
    python tools/benchmark.py --sections=step --check           exit status 1 if a claim does not hold
    python tools/benchmark.py --from=runs/benchmark/benchmark.json --into=docs/performance.md
                                                                puts what was measured into a page

What can share a process is run in turns within it, round by round; other processes (PyTorch, start-up) take turns
too. With ``--into``, what stands between ``<!-- begin NAME -->`` and ``<!-- end NAME -->`` in that file is replaced for
every section that was measured, and for ``machine``, where the page has such marks; with ``--section``, for that one.
Figures go beside the page.
"""

import argparse
import importlib
import json
import os
import pathlib
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# On a GPU the processes that take turns share its memory; TensorFlow would take all of it.
os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")

import results
from benchmarks import measure, show
from rich.console import Console
from rich.text import Text

from kd_keras import spec
from kd_keras.errors import InputError
from kd_keras.run.report import tables

#: In the order in which they are run; each is a file of `benchmarks`.
SECTIONS = ("step", "losses", "pipeline", "tflite", "startup", "growth", "plan")
#: What ``--quick`` makes smaller, (full, quick).
_SIZES = {
    "rounds": (20, 6),
    "loss_rounds": (30, 8),
    "pipeline_rounds": (10, 4),
    "images": (16384, 4096),
    "files": (2048, 512),
    "ends": (2, 1),
    "end_seconds": (6.5, 3.0),
    "latency_rounds": (300, 50),
    "startup_rounds": (3, 1),
    "growth_steps": (15, 6),
    "memory_losses": (None, 1),
    "batches": ((8, 32, 64, 128, 512), (8, 64)),
    "class_counts": ((10, 100, 1000, 10000), (10, 1000)),
    "replicas": ((1, 2, 4), (1, 2)),
    "trees": ((1000, 4000, 16000), (500, 2000)),
}


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--sections", help=f"of {','.join(SECTIONS)}; all, or with --from none")
    made.add_argument("--quick", action="store_true", help="few rounds and points")
    made.add_argument("--check", action="store_true", help="exit status 1 if a claim does not hold")
    made.add_argument("--out", type=pathlib.Path, default="runs/benchmark", help="folder for JSON and figures")
    made.add_argument("--from", dest="source", type=pathlib.Path, help="JSON of an earlier run, to show or to add to")
    made.add_argument("--into", type=pathlib.Path, help="page whose marked sections are filled")
    made.add_argument("--section", help="the one section that --into fills")
    made.add_argument("--teacher", default="resnet(depth=56)", help="model spec, of the sections step and tflite")
    made.add_argument("--student", default="resnet(depth=20)")
    made.add_argument("--loss_teacher", default="resnet(depth=20)", help="of the sections losses, startup and growth")
    made.add_argument("--loss_student", default="resnet(depth=8)")
    made.add_argument("--batch", type=int, default=64)
    made.add_argument("--classes", type=int, default=10)
    made.add_argument("--image_size", type=int, default=32)
    made.add_argument("--torch_python", default=sys.executable, help="a Python that has PyTorch")
    for name, (full, quick) in _SIZES.items():
        kind = _numbers if isinstance(full, tuple) else float if isinstance(full, float) else int
        made.add_argument(f"--{name}", type=kind, help=f"default {_shown(full)}, quick {_shown(quick)}")
    plan = made.add_argument_group("the plan's assumptions")
    plan.add_argument("--plan_images", type=int, default=1_281_167)
    plan.add_argument("--plan_epochs", type=int, default=300)
    plan.add_argument("--plan_views", type=int, default=10)
    plan.add_argument("--plan_classes", type=int, default=1000)
    plan.add_argument("--plan_top_k", type=int, default=32)
    plan.add_argument("--plan_top_k_bytes", type=int, default=4, help="float16 value, 16-bit class number")
    plan.add_argument("--plan_image_size", type=int, default=224)
    plan.add_argument("--plan_teacher", default="resnet(depth=50)")
    plan.add_argument("--plan_student", default="resnet(depth=18)")
    plan.add_argument("--plan_student_rate", type=float, help="images/s, in place of the extrapolated rate")
    plan.add_argument("--plan_teacher_rate", type=float)
    plan.add_argument("--plan_decode_rate", type=float)
    plan.add_argument("--plan_efficiency", type=float, default=0.9)
    plan.add_argument("--plan_days", type=float, default=7)
    return made


def _numbers(text):
    return tuple(int(part) for part in text.split(","))


def _shown(value):
    return "all" if value is None else ",".join(map(str, value)) if isinstance(value, tuple) else value


def read(arguments: list[str]) -> argparse.Namespace:
    """The options, with ``--quick`` worked in.

    Raises:
        InputError: a section that does not exist, or a file that can't be read.
    """
    options = parser().parse_args(arguments)
    for name, sizes in _SIZES.items():
        if getattr(options, name) is None:
            setattr(options, name, sizes[options.quick])
    if options.sections is None:
        options.sections = () if options.source else SECTIONS
    else:
        options.sections = tuple(options.sections.split(","))
    for name in (*options.sections, *filter(None, [options.section])):
        if name not in (*SECTIONS, *(["machine"] if name == options.section else [])):
            raise InputError(spec.unknown(name, "sections", SECTIONS))
    if options.source and not options.source.exists():
        raise InputError(f"--from={options.source} is not there: give the benchmark.json of an earlier run")
    if options.into and not options.into.exists():
        raise InputError(f"--into={options.into} is not there: give a page with marks, such as docs/performance.md")
    return options


def run(options, console) -> dict:
    """Measures the sections that were asked for, printing each; gives the whole report.

    Raises:
        InputError: see `check_machine`, and the sections.
    """
    if options.source:
        done = json.loads(options.source.read_text(encoding="utf-8"))
        check_machine(options, done)
    else:
        done = {"machine": measure.machine(), "sections": {}}
    shown = options.sections or tuple(done["sections"])
    for name in shown:
        if name in options.sections:
            console.print(Text(f"{name} …", style="dim"))
            section = importlib.import_module(f"benchmarks.{name}")
            with measure.OtherLoad() as others:
                done["sections"][name] = section.run(options, done)
            done["sections"][name]["other_load"] = others.cores
            # At once: a long run that is stopped keeps what it has.
            tables.write_json(done, options.out / "benchmark.json")
        show.on_screen(done["sections"][name], console)
    return done


def check_machine(options, done) -> None:
    """Raises InputError where measured sections would be added to those of another machine, or of other versions."""
    if set(options.sections) <= {"plan"}:
        return
    here, there = (
        {key: value for key, value in one.items() if key != "load_at_start"}
        for one in (measure.machine(), done["machine"])
    )
    if differing := [key for key in here if here[key] != there.get(key)]:
        raise InputError(
            f"--from={options.source} was measured with other {', '.join(differing)}: measure all of it here"
        )


def main(arguments: list[str]) -> int:
    """Runs the command; gives its exit status: 0, 1 with ``--check`` where a claim fails, 2 for bad input."""
    console = Console() if sys.stdout.isatty() else Console(width=140)
    try:
        options = read(arguments)
        done = run(options, console)
        figures = show.figures(done["sections"], options.out)
        if options.into:
            fill(options, done)
    except InputError as error:
        print(f"benchmark: {error}", file=sys.stderr)
        return 2
    for path in (*([options.out / "benchmark.json"] if options.sections else []), *figures):
        console.print(Text(str(path)))
    failed = [claim for section in done["sections"].values() for claim in section["claims"] if claim["holds"] is False]
    for claim in failed:
        console.print(Text(f"does not hold: {claim['claim']} ({claim['ratio']['median']:.3f})", style="bold red"))
    return 1 if failed and options.check else 0


def fill(options, done) -> None:
    """Puts the sections into the page, and their figures into the folder ``figures`` beside it.

    Raises:
        InputError: the section was not measured.
    """
    texts = {"machine": show.machine_markdown(done["machine"])}
    texts |= {name: show.markdown(section) for name, section in done["sections"].items()}
    if options.section:
        if options.section not in texts:
            raise InputError(f"the section {options.section} was not measured: add --sections={options.section}")
        texts = {options.section: texts[options.section]}
    else:
        page = options.into.read_text(encoding="utf-8")
        texts = {name: text for name, text in texts.items() if f"<!-- begin {name} -->" in page}
    for name, text in texts.items():
        results.put(options.into, name, text)
    drawn = {name: section for name, section in done["sections"].items() if name in texts}
    show.figures(drawn, options.into.parent / "figures")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
