"""tools/benchmark.py: its statistics by golden values, and the real tool with tiny settings."""

import argparse
import json
import pathlib
import re
import resource
import subprocess
import sys
import time

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import benchmark  # noqa: E402
from benchmarks import measure, plan, show  # noqa: E402

TINY = "cnn(filters=(4, 4, 4), dense=(), pool='global')"
SMALL = [
    *("--quick", f"--teacher={TINY}", f"--student={TINY}", f"--loss_teacher={TINY}", f"--loss_student={TINY}"),
    *("--batch=4", "--image_size=8", "--rounds=3", "--loss_rounds=2", "--pipeline_rounds=2", "--latency_rounds=5"),
    *("--images=64", "--files=16", "--end_seconds=0.1", "--growth_steps=4", "--batches=4,8", "--class_counts=10,20"),
    *("--trees=200,400", "--plan_image_size=32", f"--plan_teacher={TINY}", f"--plan_student={TINY}"),
]


# ---- statistics ----


def test_summary_by_hand():
    # Sorted 1 2 3 4 10: the quartiles of five values are the second and the fourth.
    assert measure.summary([10.0, 1.0, 3.0, 2.0, 4.0]) == {"median": 3.0, "iqr": 2.0, "n": 5}


def test_a_ratio_is_taken_within_each_round():
    # The machine is ten times slower in the last round; the ratios 2, 3 and 4 don't see it.
    samples = {"a": [2.0, 6.0, 120.0], "b": [0.5, 1.0, 10.0], "c": [0.5, 1.0, 20.0]}
    assert measure.ratio(samples, ["a"], ["b", "c"]) == {"median": 3.0, "iqr": 1.0, "n": 3}
    assert measure.ratio(samples, ["b", "c"], ["a"])["median"] == pytest.approx(1 / 3)


def test_every_round_runs_every_variant_once_in_an_order_of_its_own():
    ran = []

    def call(name):
        return lambda: ran.append(name) or float(len(ran))

    samples = measure.interleave({name: call(name) for name in "abc"}, rounds=20, warmup=2)
    rounds = ["".join(ran[i : i + 3]) for i in range(0, len(ran), 3)]
    assert len(rounds) == 22
    assert {"".join(sorted(one)) for one in rounds} == {"abc"}
    assert len(set(rounds)) == 6
    # The first two rounds (six calls) are not counted.
    assert min(min(values) for values in samples.values()) == 7.0
    assert all(len(values) == 20 for values in samples.values())


def test_timed_gives_seconds_a_step():
    assert 0.01 <= measure.timed(lambda: __import__("time").sleep(0.04), steps=4)() < 0.03


@pytest.mark.parametrize(("limit", "holds"), [(1.5, True), (1.4, False)])
def test_a_claim_is_judged_by_its_median(limit, holds):
    judged = measure.Claim(("a",), limit, ("b", "c")).judge({"a": [3.0, 9.0], "b": [1.0, 4.0], "c": [1.0, 2.0]}, {})
    assert judged["claim"] == f"a ≤ {limit:.2f} × (b + c)"
    assert (judged["ratio"]["median"], judged["holds"]) == (1.5, holds)


def test_a_claim_on_what_was_not_measured_is_not_judged():
    judged = measure.Claim(("a",), 1.0, ("b",)).judge({"a": [1.0]}, {"b": "PyTorch is not installed"})
    assert judged["holds"] is None
    assert judged["void"] == "PyTorch is not installed"
    void = measure.Claim(("a",), 1.0, ("b",), void="no bfloat16").judge({"a": [1.0], "b": [9.0]}, {})
    assert void["holds"] is None


def test_peak_memory_is_that_of_the_process_itself():
    held = np.ones(40_000_000)  # 320 MB, which a child's getrusage would show as its own
    line = [sys.executable, "-c", "from benchmarks import measure; print(measure.peak_bytes())"]
    done = subprocess.run(line, check=True, capture_output=True, text=True, env=measure.child_environment())
    assert 5e6 < int(done.stdout) < 250e6
    assert measure.peak_bytes() > held.nbytes


def test_other_load_does_not_count_our_own():
    def used():
        """Seconds of processor time of ours and of our ended children, as another call of the system tells it."""
        usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        return sum(usage.ru_utime + usage.ru_stime for usage in usages)

    _, busy, _ = measure.OtherLoad._read()
    start, before = time.perf_counter(), used()
    with measure.OtherLoad() as others:
        spin = subprocess.Popen([sys.executable, "-c", "while True: pass"])
        measure.timed(lambda: [sum(range(1000)) for _ in range(20000)])()
        spin.kill()
        spin.wait()
    wall, own, busy = time.perf_counter() - start, used() - before, measure.OtherLoad._read()[1] - busy
    # We and our ended child were busy all the time; how busy the others were, no test can know.
    assert own > 0.3 * wall
    assert others.cores == pytest.approx(max(0, busy - own) / wall, abs=0.1)


# ---- the tool ----


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("benchmark")
    page = out / "page.md"
    marks = [
        f"<!-- begin {name} -->\nto be replaced\n<!-- end {name} -->"
        for name in ("machine", "step", "pipeline", "plan")
    ]
    page.write_text("\n".join(["# Page", *marks, "The end"]))
    assert benchmark.main([*SMALL, "--sections=step,pipeline,plan", f"--out={out}", f"--into={page}"]) == 0
    return out, json.loads((out / "benchmark.json").read_text())


@pytest.mark.slow
def test_the_json_holds_machine_samples_and_claims(finished):
    _, done = finished
    assert done["machine"]["cores"] >= 1
    assert {"tensorflow", "keras"} <= set(done["machine"]["versions"])
    step = done["sections"]["step"]
    for name in ("plain student", "teacher forward", "kd", "kd, cached", "keras.distillation + features"):
        assert step["samples"][name]["n"] == 3
        assert 0 < step["samples"][name]["median"] < 10
    claims = {claim["claim"]: claim for claim in step["claims"]}
    assert len(claims) == 9
    one = claims["kd + features ≤ 0.70 × keras.distillation + features"]
    assert one["holds"] == (one["ratio"]["median"] <= 0.70)


@pytest.mark.slow
def test_rows_of_equal_precision_come_first(finished):
    (table,) = finished[1]["sections"]["step"]["tables"]
    precision = [row[1] for row in table["rows"]]
    assert precision == sorted(precision, key=["float32", "bfloat16 teacher", "further settings"].index)
    assert precision.count("float32") == 13


@pytest.mark.slow
def test_the_page_is_filled_and_the_figure_drawn(finished):
    from PIL import Image

    out, done = finished
    page = (out / "page.md").read_text()
    assert "to be replaced" not in page
    assert page.startswith("# Page\n<!-- begin machine -->\n- ")
    assert page.endswith("The end")
    median = done["sections"]["step"]["samples"]["plain student"]["median"]
    assert f"| plain student | float32 | {1e3 * median:.2f} |" in page
    for path in (out / "step.png", out / "figures" / "step.png"):
        with Image.open(path) as figure:
            assert min(figure.size) > 300


@pytest.mark.slow
def test_pytorch_is_skipped_by_name_where_it_is_not(finished):
    (table,) = finished[1]["sections"]["step"]["tables"]
    rows = {row[0]: row[2] for row in table["rows"]}
    try:
        import torch  # noqa: F401
    except ImportError:
        assert rows["PyTorch"] == rows["PyTorch, channels-last"] == "skipped: PyTorch is not installed"
    else:
        assert float(rows["PyTorch"]) > 0


@pytest.mark.slow
def test_check_fails_where_a_claim_does(finished, tmp_path):
    done = json.loads(json.dumps(finished[1]))
    for holds, status in ((True, 0), (None, 0), (False, 1)):
        for section in done["sections"].values():
            for claim in section["claims"]:
                claim["holds"] = None if claim["void"] else True
        done["sections"]["step"]["claims"][0]["holds"] = holds
        source = tmp_path / "changed.json"
        source.write_text(json.dumps(done))
        assert benchmark.main([f"--from={source}", "--check", f"--out={tmp_path}"]) == status
        assert benchmark.main([f"--from={source}", f"--out={tmp_path}"]) == 0


@pytest.mark.slow
def test_sections_of_two_machines_are_not_mixed(finished, tmp_path, capsys):
    done = json.loads(json.dumps(finished[1]))
    done["machine"]["processor"] = "another"
    source = tmp_path / "elsewhere.json"
    source.write_text(json.dumps(done))
    assert benchmark.main([*SMALL, f"--from={source}", "--sections=pipeline", f"--out={tmp_path}"]) == 2
    assert "measured with other processor" in capsys.readouterr().err
    # The plan measures nothing.
    assert benchmark.main([*SMALL, f"--from={source}", "--sections=plan", f"--out={tmp_path}"]) == 0


@pytest.mark.parametrize("slow", ["kd, cached", pytest.param("plain student", marks=pytest.mark.slow)])
def test_a_slowed_variant_decides_its_claim(slow):
    import contextlib

    from benchmarks import step

    options = benchmark.read(SMALL)
    names = ("plain student", "kd, cached")
    with contextlib.ExitStack() as stack:
        every = list(step.variants(options, stack))
        calls = {name: build() for name, _, build in every if name in names}
        quick = calls[slow]
        calls[slow] = lambda: quick() + 1.0
        samples = measure.interleave(calls, 3)
    skipped = {name: "left out" for name, _, _ in every if name not in names}
    found = step.result(options, samples, {name: group for name, group, _ in every}, skipped, ["amx_bf16"])
    (claim,) = (one for one in found["claims"] if one["holds"] is not None)
    assert claim["claim"] == "kd, cached ≤ 1.05 × plain student"
    assert claim["holds"] is (slow == "plain student")


def test_a_new_loss_is_measured_or_named_without_a_table(tmp_path):
    from benchmarks import nets

    import kd_keras.losses

    head = "from kd_keras.losses import base\n\n\nclass {name}(base.Loss):\n    "
    (tmp_path / "new_plain.py").write_text(
        head.format(name="NewPlain") + "def call(self, student, teacher, labels):\n        return 0 * labels\n"
    )
    (tmp_path / "new_memory.py").write_text(
        head.format(name="NewMemory") + "needs = frozenset({'index', 'samples'})\n\n"
        "    def __init__(self, samples, **kwargs):\n        super().__init__(**kwargs)\n\n"
        "    def call(self, student, teacher, labels, index):\n        return 0 * index\n"
    )
    (tmp_path / "new_argument.py").write_text("def NewArgument(size):\n    raise AssertionError\n")
    kd_keras.losses.__path__.append(str(tmp_path))
    try:
        found, skipped = nets.each_loss(benchmark.read(SMALL))
    finally:
        kd_keras.losses.__path__.pop()
    assert {"ce", "kd", "hint", "new_plain", "new_memory"} <= set(found)
    assert "lacks the key 'size'" in skipped["new_argument"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sections=stepp"], "did you mean 'step'"),
        (["--from=nowhere.json"], "nowhere.json is not there"),
        (["--sections=plan"], "needs the sections step, pipeline"),
    ],
)
def test_a_mistake_is_one_line(arguments, message, capsys, tmp_path):
    assert benchmark.main([*arguments, f"--out={tmp_path}"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_the_plan_by_hand():
    options = argparse.Namespace(
        **{"plan_images": 1_000_000, "plan_epochs": 3, "plan_views": 2, "plan_classes": 50, "plan_top_k": 3},
        **{"plan_top_k_bytes": 4, "plan_image_size": 64, "plan_teacher": "t", "plan_student": "s"},
        **{"plan_efficiency": 0.5, "plan_days": 0.5},
    )
    rates = {"student": 5.0, "teacher": 20.0, "decoded": 10.0, "costs": {"teacher": 1e9, "student": 1e9}}
    given, sizes, times = plan.layout(options, **rates)
    assert all(row[2].startswith("--plan_") for row in given["rows"])
    # 2 million entries of 50 × 2 + 4 bytes, or of 3 × 4 + 8.
    assert [row[1] for row in sizes["rows"]] == ["0.21", "0.04"]
    hours = {row[0]: row[1:] for row in times["rows"]}
    # 2 million views at 10/s (decoding is the slower) are 55.6 hours: 4.6 times 12, at half the speed each 9.3.
    assert hours["teacher's outputs, once"] == ["55.6", "10"]
    # 3 million images at 5/s; live at 1 / (1/5 + 1/20) = 4/s.
    assert hours["student from the cache"] == ["166.7", "28"]
    assert hours["student with a live teacher"] == ["208.3", "35"]
    # One machine shares its work with nobody.
    options.plan_days = 8.7
    assert {row[2] for row in plan.layout(options, **rates)[2]["rows"][:2]} == {"1"}


def test_a_pipe_does_not_end_a_markdown_cell():
    table = {"title": "t", "columns": ["a|b", "ms"], "rows": [["c|d", "1.0"]], "note": "n"}
    text = show.markdown({"tables": [table], "claims": [], "samples": {}})
    assert text.splitlines()[2:] == [r"| a\|b | ms |", "| --- | ---: |", r"| c\|d | 1.0 |", "", "n"]


def test_the_pages_have_a_place_for_every_section_and_name_options_that_exist():
    pages = ("performance.md", "scaling.md", "losses.md")
    page = "".join((ROOT / "docs" / name).read_text(encoding="utf-8") for name in pages)
    for name in (*benchmark.SECTIONS, "machine"):
        assert page.count(f"<!-- begin {name} -->\n") == page.count(f"<!-- end {name} -->") == 1
    known = {option for action in benchmark.parser()._actions for option in action.option_strings}
    for line in re.findall(r"tools/benchmark\.py(.*)", page):
        assert set(re.findall(r"--\w+", line)) <= known


def test_the_torch_network_is_the_same_network(tmp_path):
    """At 33 pixels TensorFlow pads a strided convolution on both sides, as PyTorch does."""
    pytest.importorskip("torch")
    import contextlib

    from benchmarks import nets, step

    options = benchmark.read([*SMALL, "--image_size=33"])
    teacher, student = (nets.model("resnet(depth=8)", options) for _ in range(2))
    data = nets.batch(options)
    with contextlib.ExitStack() as stack:
        torch = step.Torch(options, teacher, student, ["stage1"], data, stack)
        logits = np.array(torch.ask("logits")["logits"])
        assert torch.call("features channels_last")() > 0
    np.testing.assert_allclose(logits, teacher.predict(data[0], verbose=0), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_the_sections_that_take_processes_of_their_own(tmp_path):
    arguments = [*SMALL, "--sections=losses,tflite,startup,growth", f"--out={tmp_path}"]
    assert benchmark.main(arguments) == 0
    done = json.loads((tmp_path / "benchmark.json").read_text())["sections"]
    assert {"ce", "kd", "hint"} <= set(done["losses"]["samples"])
    assert {"float32", "int8"} <= set(done["tflite"]["samples"])
    assert done["startup"]["samples"]["import kd_keras"]["median"] < 1
    growth = done["growth"]["samples"]
    assert {"batch=4", "batch=8", "classes=20", "replicas=2", "files=400"} <= set(growth)
    assert all(1e8 < point["peak_bytes"] < 1e10 for point in growth.values())
    assert (tmp_path / "growth.png").exists()
