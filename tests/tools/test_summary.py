"""The summary of the results."""

import pathlib
import sys

import numpy as np
import pytest
from scipy import stats

ROOT = pathlib.Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT / "tools"))

import summary  # noqa: E402

PAGE = """
<!-- begin one -->
Student minus baseline, paired by seed, test accuracy: +2.00 ± 1.00 points (+1.00, +2.00, +3.00), 95 % interval …
<!-- end one -->
<!-- begin study -->
| row_a | student distilled | `cnn()` | 3 | 50.00 ± 1.00 | +2.00 ± 1.00 |
| row_b | student distilled | `cnn()` | 5 | 50.00 ± 1.00 | -0.10 ± 0.20 |
<!-- end study -->
"""


def test_effects_are_read_from_both_kinds_of_table():
    of_values = summary.read(PAGE, summary.Question("?", "one"))
    of_spread = summary.read(PAGE, summary.Question("?", "study", "row_a"))
    half = stats.t.ppf(0.975, 2) / np.sqrt(3)
    for found in (of_values, of_spread):
        assert (found.mean, found.n) == (2, 3)
        np.testing.assert_allclose([found.low, found.high], [2 - half, 2 + half])
        assert found.verdict() == "undecided at n = 3"
    assert summary.read(PAGE, summary.Question("?", "study", "row_b")).verdict() == "equal within ± 1"
    with pytest.raises(SystemExit, match="section study has no gain over the baseline in row row_c"):
        summary.read(PAGE, summary.Question("?", "study", "row_c"))


def test_the_page_has_the_summary_of_its_sections(tmp_path):
    page = summary.RESULTS.read_text(encoding="utf-8")
    effects = {question: summary.read(page, question) for question in summary.QUESTIONS}
    effects = dict(sorted(effects.items(), key=lambda item: -item[1].mean))
    assert f"<!-- begin summary -->\n{summary.table(effects)}\n<!-- end summary -->" in page
    summary.draw(effects, tmp_path / "effects.png")
    assert (tmp_path / "effects.png").stat().st_size > 50_000
