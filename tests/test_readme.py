import pathlib
import re

import numpy as np

ROOT = pathlib.Path(__file__).parent.parent


def test_the_python_of_the_readme_runs(tmp_path, monkeypatch):
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
    assert (tmp_path / "student.keras").exists()


def test_the_guides_own_loss_is_one_file(tmp_path):
    """The loss of docs/distiller.md, put where it says, is known by its file's name."""
    import kd_keras.losses
    from kd_keras import spec

    page = (ROOT / "docs" / "distiller.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (tmp_path / "my_loss.py").write_text(code, encoding="utf-8")
    kd_keras.losses.__path__.append(str(tmp_path))
    try:
        loss = spec.build("kd_keras.losses", spec.parse("my_loss(weight=0.5)"))
    finally:
        kd_keras.losses.__path__.pop()
    assert loss.name == "my_loss"
    assert float(loss({"logits": np.array([[1.0, 3.0]])}, {"logits": np.array([[0.0, 1.0]])}, np.array([0]))[0]) == 2.5
