import pathlib
import re

import numpy as np

ROOT = pathlib.Path(__file__).parent.parent


def blocks(page):
    """The Python of a page."""
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)


def test_the_python_of_the_readme_runs(tmp_path, monkeypatch):
    (code,) = blocks("README.md")
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
    assert (tmp_path / "student.keras").exists()


def test_the_guides_own_loss_is_one_file(tmp_path):
    """The loss of docs/losses.md, put where it says, is known by its file's name."""
    import kd_keras.losses
    from kd_keras import spec

    (code,) = [block for block in blocks("docs/losses.md") if "class MyLoss" in block]
    (tmp_path / "my_loss.py").write_text(code, encoding="utf-8")
    kd_keras.losses.__path__.append(str(tmp_path))
    try:
        loss = spec.build("kd_keras.losses", spec.parse("my_loss(weight=0.5)"))
    finally:
        kd_keras.losses.__path__.pop()
    assert loss.name == "my_loss"
    assert float(loss({"logits": np.array([[1.0, 3.0]])}, {"logits": np.array([[0.0, 1.0]])}, np.array([0]))[0]) == 2.5


def test_the_guides_teacher_cache_trains(tmp_path, monkeypatch):
    from kd_keras import Distiller, losses
    from kd_keras.data import digits
    from kd_keras.models import cnn

    splits = digits.Digits()
    teacher, student = (cnn.CNN(10, splits.image_shape, filters=filters) for filters in ((16, 32), (4,)))
    distiller = Distiller(student=student, teacher=teacher, losses=[losses.KD()])
    distiller.compile("adam", metrics=["accuracy"])
    (code,) = [block for block in blocks("docs/distiller.md") if "TeacherCache" in block]
    monkeypatch.chdir(tmp_path)
    known = {"splits": splits, "teacher": teacher, "distiller": distiller}
    exec(compile(code.replace("epochs=30", "epochs=2").replace("...", "steps_per_epoch=19"), "guide", "exec"), known)
    assert len(list(tmp_path.glob("cache/*/view*-logits.json"))) == 4
