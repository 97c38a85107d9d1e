"""tools/words.py: whole words of a text, and of a commit."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "tools"))

import words


def test_whole_words_are_counted():
    counts = words.count(["One none ONE done", "of its own, a\nway of one's own"])
    assert counts == {**dict.fromkeys(words.WORDS, 0), "one": 3, "done": 1, "own": 2, "a way|way of": 1}


def test_the_tree_has_every_kind_of_page():
    texts = words.read_tree()
    names = ("# kd_keras\n", "# Contributing\n", "# Losses\n", '"""Settings that are declared once.\n')
    assert all(any(text.startswith(name) for text in texts) for name in names)
