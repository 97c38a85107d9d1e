"""The figure of a sweep over one flag: what is drawn, and when there is nothing to draw."""

import types

import pytest

from kd_keras.run.report import figures
from kd_keras.sweep import curve
from kd_keras.sweep.statistics import effect

GAINS = {"45000": (1.0, 2.0, 3.0), "500": (5.0, 5.5, 6.0), "2000": (-1.0, 0.0, 1.0)}


def pairs(gains, flag="labelled_examples", teacher=0.9):
    made = []
    for value, of_seeds in gains.items():
        for seed, gain in enumerate(of_seeds):
            scores = {"baseline": 0.5, "student": 0.5 + gain / 100, "teacher": teacher}
            rows = {model: {"test_accuracy": score} for model, score in scores.items() if score is not None}
            made.append((types.SimpleNamespace(results=rows), {flag: value, "seed": str(seed)}))
    return made


@pytest.fixture
def drawn(monkeypatch):
    kept = []
    monkeypatch.setattr(figures, "save_figure", lambda figure, path: kept.append(figure))
    return kept


def test_scores_and_gains_stand_where_their_values_are(drawn, tmp_path):
    assert curve.draw(pairs(GAINS), tmp_path / "gains.png")
    left, right = drawn[0].axes
    means = next(line for line in right.lines if len(line.get_xdata()) == 3 and line.get_linestyle() == "-")
    assert means.get_xdata().tolist() == [500, 2000, 45000] and right.get_xscale() == "log"
    assert means.get_ydata() == pytest.approx([5.5, 0, 2])
    (band,) = right.collections
    corners = band.get_paths()[0].vertices
    low, high = (effect(GAINS["45000"]).low, effect(GAINS["45000"]).high)
    assert sorted({round(y, 6) for x, y in corners if x == 45000}) == [round(low, 6), round(high, 6)]
    assert [text.get_text() for text in left.get_legend().get_texts()] == list(curve._MODELS.values())


def test_values_that_are_no_numbers_stand_in_their_order(drawn, tmp_path):
    assert curve.draw(pairs({"vit()": (1.0,), "cnn()": (2.0,)}, "student", teacher=None), tmp_path / "gains.png")
    left, right = drawn[0].axes
    assert [text.get_text() for text in right.get_xticklabels()] == ["vit()", "cnn()"] and not right.collections
    assert len(left.get_legend().get_texts()) == 2


def test_there_is_nothing_to_draw(drawn, tmp_path):
    two_flags = [(run, {**varied, "epochs": "3"}) for run, varied in pairs(GAINS)]
    for given in (two_flags, pairs({"500": (1.0, 2.0)}), [(run, {"seed": "0"}) for run, _ in pairs(GAINS)]):
        assert not curve.draw(given, tmp_path / "gains.png")
    unfinished = [(types.SimpleNamespace(results=None), varied) for _, varied in pairs(GAINS)]
    assert not curve.draw(unfinished, tmp_path / "gains.png") and not drawn
