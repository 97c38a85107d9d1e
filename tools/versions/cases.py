"""The command lines that compare_versions.py runs in both trees: as small as each still trains all of its models."""

import dataclasses
import pathlib

import numpy as np

_TINY = (
    *("--data=digits()", "--teacher=cnn(filters=(8, 16), dense=())", "--student=cnn(filters=(4, 8), dense=())"),
    *("--loss=ce(weight=0.1) + kd(weight=0.9, temperature=4.0)", "--epochs=2", "--export=none"),
)
_PAIR = "--teacher=cnn(filters=(8, 16), dense=()) + cnn(filters=(8, 8), dense=())"
_PIPELINES = (
    *("prune(sparsity=0.5)", "cluster(clusters=8)", "qat()", "prune(sparsity=0.5) + qat()"),
    *("cluster(clusters=8) + qat()", "prune(sparsity=0.5) + cluster(clusters=8) + qat()"),
)
#: Stands in a case's flags for the folder of images.
IMAGES = "{images}"


@dataclasses.dataclass(frozen=True)
class Case:
    """A command line that is run in both trees.

    Attributes:
        name: its name on the command line of compare_versions.py.
        about: what it covers.
        flags: of `kd_keras.run`; `IMAGES` in them is replaced by the folder of images.
        workers: processes of one run, on the loopback interface if there are several.
        killed: whether it is run a second time, killed (SIGKILL) during training and resumed, and both are compared.
        code: the exit code that both versions must give.
    """

    name: str
    about: str
    flags: tuple[str, ...]
    workers: int = 1
    killed: bool = False
    code: int = 0


def _tiny(name: str, about: str, *flags: str, **kwargs) -> Case:
    return Case(name, about, (*_TINY, *flags), **kwargs)


CASES = (
    Case("digits", "the quick start, as it is", ("--flagfile=experiments/digits.flags",)),
    Case(
        "cifar",
        "a CIFAR flagfile, shrunk",
        (
            *("--flagfile=experiments/cifar_resnet.flags", f"--data=folder(path='{IMAGES}')", "--epochs=2"),
            *("--teacher=resnet(depth=14)", "--student=resnet(depth=8)", "--train_examples=160", "--export=int8"),
        ),
    ),
    _tiny(
        "offline",
        "offline, kd with schedules, files of the teacher and the baseline",
        "--loss=ce(weight=complement(linear(start=0.9, end=0.5, over=2))) "
        "+ kd(weight=linear(start=0.9, end=0.5, over=2), temperature=exponential_decay(start=4.0, rate=0.9))",
        *("--augment=pad_crop(pixels=1)", "--export=int8,float16", "--export_beside=teacher,baseline"),
    ),
    _tiny("hint", "offline, hint", "--loss=ce() + kd() + hint(weight=0.1)"),
    _tiny("attention_rkd", "offline, attention and rkd", "--loss=ce() + attention() + rkd()"),
    _tiny("crd", "offline, crd", "--loss=ce() + crd()"),
    _tiny("sim_kd", "offline, sim_kd and the file of its student", "--loss=sim_kd()", "--export=int8"),
    _tiny("ft", "offline, ft with pretraining", "--loss=ce() + ft()", "--pretrain_epochs=1"),
    _tiny("ab", "offline, ab with pretraining", "--loss=ce() + ab()", "--pretrain_epochs=1"),
    _tiny("mixup", "offline, mixup", "--augment=pad_crop(pixels=1) + mixup(alpha=0.2)"),
    _tiny(
        "stopped_teacher",
        "offline, a teacher stopped early",
        *("--teacher_stop_at_val_accuracy=0.2", "--teacher_stop_check_steps=5"),
    ),
    _tiny(
        "cache",
        "a teacher cache with cache_views and cache_top_k",
        *("--augment=pad_crop(pixels=1) + flip()", "--cache_views=2", "--cache_top_k=3"),
    ),
    _tiny(
        "mixup_cache",
        "mixup and cutmix with cache_views and cache_top_k: refused",
        *("--augment=mixup(alpha=0.2) + cutmix()", "--cache_views=2", "--cache_top_k=3"),
        code=2,
    ),
    _tiny(
        "assistant", "assistant, direct too", "--scheme=assistant(chain=cnn(filters=(6, 12), dense=()), direct=True)"
    ),
    _tiny("born_again", "born_again and its ensemble", "--scheme=born_again(generations=2, ensemble=True)"),
    _tiny("ensemble_logits", "ensemble of logits", "--scheme=ensemble()", _PAIR),
    _tiny(
        "ensemble_probabilities",
        "ensemble of probabilities, weighted",
        *("--scheme=ensemble(combine='probabilities', weights=(1, 3))", _PAIR),
    ),
    _tiny("ensemble_terms", "ensemble of terms", "--scheme=ensemble(combine='terms')", _PAIR),
    _tiny(
        "mutual",
        "mutual, three peers",
        "--scheme=mutual(peers=cnn(filters=(6, 12), dense=()) + cnn(filters=(4, 8), dense=()))",
        "--teacher=none",
    ),
    _tiny(
        "self_distillation",
        "self_distillation and the files of its exits",
        "--scheme=self_distillation(export_exits=True)",
        *("--teacher=none", "--loss=ce() + kd() + hint(weight=0.03)", "--export=int8"),
    ),
    _tiny(
        "compress",
        f"{len(_PIPELINES)} pipelines of compression steps, both controls",
        *(f"--compress={'; '.join(_PIPELINES)}", "--compress_controls=untaught,baseline", "--compress_epochs=1"),
    ),
    _tiny("workers", "two workers, with a teacher cache", "--strategy=multi_worker", "--cache_views=2", workers=2),
    _tiny("killed", "killed during training and resumed", "--epochs=60", "--augment=pad_crop(pixels=1)", killed=True),
)


def draw_images(folder: pathlib.Path, classes: int = 10, images: int = 30, side: int = 32) -> pathlib.Path:
    """Draws a tree of images (PNG, side × side, three channels): each class has its colour, under noise.

    Args:
        folder: is made; holds ``train/<class>/*.png``.
        classes: number of classes.
        images: images in each class.
        side: pixels.

    Returns:
        The folder.
    """
    from PIL import Image

    rng = np.random.default_rng(0)
    for label in range(classes):
        place = folder / "train" / f"class{label}"
        place.mkdir(parents=True)
        color = rng.integers(0, 256, 3)
        for number in range(images):
            pixels = np.clip(color + rng.normal(0, 40, (side, side, 3)), 0, 255).astype("uint8")
            Image.fromarray(pixels).save(place / f"{number:03d}.png")
    return folder
