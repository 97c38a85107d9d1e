"""What the command says of data."""

import numpy as np
import PIL.Image

from kd_keras.run import commands


def draw(folder, counts):
    """Noise of 16 by 16 pixels: images of each class in each split."""
    noise = np.random.default_rng(0)
    for split, classes in counts.items():
        for name, count in classes.items():
            place = folder / split / name
            place.mkdir(parents=True)
            for number in range(count):
                PIL.Image.fromarray(noise.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(place / f"{number}.png")


def test_a_folder_with_much_that_is_doubtful(tmp_path, capsys):
    draw(tmp_path, {"train": {"cat": 30, "dog": 2}, "val": {"cat": 2, "dog": 2}, "test": {"cat": 3, "dog": 2}})
    (tmp_path / "test" / "dog" / "1.png").write_bytes((tmp_path / "train" / "cat" / "4.png").read_bytes())
    (tmp_path / "train" / "cat" / "bad.png").write_bytes(b"no image")
    assert commands.main(["check-data", str(tmp_path)]) == 1
    out = " ".join(capsys.readouterr().out.split())
    assert "cat 30 2 3" in out and "dog 2 2 2" in out and "images of 16×16×3 32 4 5" in out
    assert "1 of the 5 test images are in train too" in out and "have different labels" in out
    assert "cat has 15 times as many training images as dog" in out and "3 doubts" in out


def test_data_without_a_fault_and_mistakes(tmp_path, capsys):
    assert commands.main(["check-data", "--data=digits()", "--near"]) in (0, 1)  # digits of one hand look alike
    assert "images of 8×8×1" in capsys.readouterr().out
    draw(tmp_path, {"train": {"a": 5, "b": 5}, "val": {"a": 2, "b": 2}, "test": {"a": 2, "b": 2}})
    assert commands.main(["check-data", str(tmp_path), "--near"]) == 0
    assert "nothing doubtful was found" in capsys.readouterr().out
    for argv in (["check-data"], ["check-data", str(tmp_path), "--data=digits()"]):
        assert commands.main(argv) == 2
        assert "takes a folder or --data" in capsys.readouterr().err
