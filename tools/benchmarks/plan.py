"""What a large training would take, extrapolated from rates measured here; every assumption is an option.

Nothing is measured: the seconds of a step and of a forward pass come from the section ``step``, the decoding rate from
``pipeline``, of this run or of the one given by ``--from``.
"""

import math

from benchmarks import nets
from kd_keras.errors import InputError
from kd_keras.evaluate import cost

TITLE = "A plan: ImageNet-1k (an extrapolation, not a measurement)"
# Bytes of what kd_keras.teacher_cache keeps: a logit, and for each row the largest, and the mass of the rest.
_LOGIT, _ROW = 2, 4


def run(options, done) -> dict:
    """Lays out cache size, hours and machines.

    Args:
        options: of the command.
        done: report of what was measured; needs ``step`` and ``pipeline``, taken with the models that it names.

    Raises:
        InputError: those sections are not there.
    """
    missing = [name for name in ("step", "pipeline") if name not in done["sections"]]
    if missing:
        raise InputError(f"the plan needs the sections {', '.join(missing)}: measure them too, or give --from=FILE")
    rates = measured_rates(done)
    costs = {"teacher": _macs(options.plan_teacher, options), "student": _macs(options.plan_student, options)}
    pixels = options.plan_image_size**2
    student = options.plan_student_rate or rates["student_macs"] / costs["student"]
    teacher = options.plan_teacher_rate or rates["teacher_macs"] / costs["teacher"]
    decoded = options.plan_decode_rate or rates["decoded_pixels"] / pixels
    return {
        "title": TITLE,
        "tables": layout(options, student=student, teacher=teacher, decoded=decoded, costs=costs),
        "claims": [],
        "samples": {},
    }


def measured_rates(done) -> dict[str, float]:
    """Multiply-accumulates a second of the plain student's step (forward pass's counted) and of the teacher's forward
    pass, and pixels decoded a second."""
    step, pipe = done["sections"]["step"], done["sections"]["pipeline"]
    seconds = {name: step["samples"][name]["median"] / step["batch"] for name in ("plain student", "teacher forward")}
    files = pipe["samples"]["JPEG folder, pad_crop + flip"]["median"] / pipe["batch"]
    return {
        "student_macs": step["macs"]["student"] / seconds["plain student"],
        "teacher_macs": step["macs"]["teacher"] / seconds["teacher forward"],
        "decoded_pixels": pipe["file_pixels"] / files,
    }


def layout(options, *, student, teacher, decoded, costs) -> list[dict]:
    """The tables of assumptions and of what follows from them.

    Args:
        options: ``plan_…``.
        student: training images a second of the plain student's step.
        teacher: images a second of the teacher's forward pass.
        decoded: files decoded a second.
        costs: multiply-accumulates of one image, for ``teacher`` and ``student``.
    """
    count, epochs, views, classes = (
        options.plan_images,
        options.plan_epochs,
        options.plan_views,
        options.plan_classes,
    )
    given = [
        ["training images", f"{count:,}", "--plan_images"],
        ["epochs", f"{epochs}", "--plan_epochs"],
        ["views in the cache, K", f"{views}", "--plan_views"],
        ["classes", f"{classes:,}", "--plan_classes"],
        ["kept classes of the top-k cache", f"{options.plan_top_k}", "--plan_top_k"],
        ["bytes of a kept class (value and number)", f"{options.plan_top_k_bytes}", "--plan_top_k_bytes"],
        ["image size, pixels", f"{options.plan_image_size}", "--plan_image_size"],
        ["teacher", f"{options.plan_teacher}, {costs['teacher'] / 1e9:.2f} GMACs an image", "--plan_teacher"],
        ["student", f"{options.plan_student}, {costs['student'] / 1e9:.2f} GMACs an image", "--plan_student"],
        ["student, training images/s of a machine", f"{student:,.1f}", "--plan_student_rate"],
        ["teacher, forward images/s of a machine", f"{teacher:,.1f}", "--plan_teacher_rate"],
        ["files decoded/s of a machine", f"{decoded:,.0f}", "--plan_decode_rate"],
        ["share of the speed kept on several machines", f"{options.plan_efficiency}", "--plan_efficiency"],
        ["days it may take", f"{options.plan_days}", "--plan_days"],
    ]
    entries = count * views
    full, top = classes * _LOGIT + _ROW, options.plan_top_k * options.plan_top_k_bytes + 2 * _ROW
    sizes = [
        [f"float16 logits of all {classes:,} classes", _gigabytes(entries * full)],
        [f"top {options.plan_top_k}, and the mass of the rest", _gigabytes(entries * top)],
    ]
    # Decoding runs beside the device's work: the slower of the two sets the pace.
    passes = count * epochs
    once = entries / min(teacher, decoded)
    step = 1 / min(student, decoded)
    live = 1 / min(1 / (1 / student + 1 / teacher), decoded)
    times = [
        ["teacher's outputs, once", *_hours(once, options)],
        ["student from the cache", *_hours(passes * step, options)],
        ["both", *_hours(once + passes * step, options)],
        ["student with a live teacher", *_hours(passes * live, options)],
    ]
    bound = "decoding" if decoded < student else "the student's step"
    note = (
        "Extrapolated: seconds grow with multiply-accumulates, decoding with pixels, machines with the share given."
        " Large networks often use a device better than small ones, memory may ask for a smaller batch, and evaluation"
        f" is left out. What limits the student from the cache: {bound}."
    )
    days = f"machines for {options.plan_days} days"
    return [
        {"title": "Assumptions", "columns": ["what", "value", "option"], "rows": given, "note": None},
        {"title": "Size of the teacher cache", "columns": ["form", "GB"], "rows": sizes, "note": None},
        {"title": TITLE, "columns": ["part", "hours on one machine", days], "rows": times, "note": note},
    ]


def _gigabytes(count):
    return f"{count / 1e9:,.2f}"


def _hours(seconds, options):
    wanted = seconds / (options.plan_days * 86400)
    machines = 1 if wanted <= 1 else math.ceil(wanted / options.plan_efficiency)
    return [f"{seconds / 3600:,.1f}", f"{machines:,}"]


def _macs(text, options):
    shape = {"classes": options.plan_classes, "image_size": options.plan_image_size}
    return cost.macs(nets.model(text, type("Shape", (), shape)))
