"""tools/conversions.py: a small model in some variants, into a page."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "tools"))

import conversions
import pytest


@pytest.mark.slow
def test_rows_say_size_and_error_or_what_was_refused(tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text("<!-- begin conversions -->\n<!-- end conversions -->\n")
    flags = ["--models=cnn(filters=(4,), dense=())", "--image_size=8", "--images=8"]
    assert conversions.main([*flags, "--variants=float32,int8,int4", f"--into={page}"]) == 0
    rows = [line.split(" | ") for line in page.read_text().splitlines() if line.startswith("| `cnn")]
    assert [row[1] for row in rows] == ["float32", "int8", "int4"]
    exact, rounded = (float(row[3]) for row in rows[:2])
    assert exact < 1e-4 < rounded < 0.2
    assert rows[2][2:5] == ["–"] * 3 and "unknown TFLite variant 'int4'" in rows[2][5]
    assert conversions.main(["--models=nix()"]) == 2
    assert "unknown name 'nix'" in capsys.readouterr().err
