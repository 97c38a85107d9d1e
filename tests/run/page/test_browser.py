"""Reports in Chromium: axe finds no violation, nothing is wider than a phone, nothing is loaded.

Needs ``chromium`` on the PATH, and axe-core: ``npm install --no-save axe-core`` in the repository's root, or the path
of its ``axe.min.js`` in the environment variable ``AXE``.
"""

import base64
import html
import json
import os
import pathlib
import re
import shutil
import subprocess

import pytest

from kd_keras.run.page import folders, report
from tests.conftest import ROOT
from tests.run.page.made import make

AXE = pathlib.Path(os.environ.get("AXE", ROOT / "node_modules" / "axe-core" / "axe.min.js"))
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the PATH"),
    pytest.mark.skipif(
        not AXE.exists(), reason=f"no axe-core: npm install --no-save axe-core, or AXE=…; looked at {AXE}"
    ),
]
CHECK = """
document.querySelectorAll("details").forEach(part => part.open = true);
axe.run().then(found => {
  const names = performance.getEntriesByType("resource").map(entry => entry.name);
  const loaded = names.filter(name => !name.startsWith("data:"));
  const result = {
    violations: found.violations.map(rule => rule.id + ": " + rule.nodes[0].html),
    passes: found.passes.map(rule => rule.id),
    width: window.innerWidth, wider: document.documentElement.scrollWidth - window.innerWidth,
    dark: matchMedia("(prefers-color-scheme: dark)").matches, loaded};
  const place = document.createElement("pre");
  place.id = "found";
  place.textContent = btoa(unescape(encodeURIComponent(JSON.stringify(result))));
  parent.document.body.append(place);
});
"""


def checked(page: str, folder: pathlib.Path, width: int, *flags: str) -> dict:
    """Opens a page with axe in it, in a frame: a window is never as narrow as a phone. What axe has found."""
    path = folder / "page.html"
    scripts = f"<script>{AXE.read_text('utf-8')}</script><script>{CHECK}</script>"
    inside = html.escape(page.replace("</body>", f"{scripts}</body>"))
    frame = f'<iframe style="width: {width}px; height: 900px; border: 0" srcdoc="{inside}"></iframe>'
    path.write_text(f'<!DOCTYPE html><meta charset="utf-8"><body>{frame}</body>', encoding="utf-8")
    line = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}", *flags]
    line += ["--virtual-time-budget=20000", "--dump-dom", path.as_uri()]
    ended = subprocess.run(line, capture_output=True, text=True, timeout=300, check=True)
    return json.loads(base64.b64decode(re.search(r'<pre id="found">([^<]*)</pre>', ended.stdout)[1]))


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """A run of three classes, one of two hundred, and a sweep."""
    root = tmp_path_factory.mktemp("pages")
    make(root / "one", warnings=("a warning",))
    make(root / "many", classes=tuple(f"a class with a rather long name {i}" for i in range(200)), images=1000)
    for seed in range(3):
        for loss in ("kd()", "ce() + kd(temperature=8.0)"):
            make(root / "sweep" / f"loss={loss},seed={seed}-0123456789abcdef", f"--loss={loss}", seed=seed)
    found = {name: [folders.Run(root / name)] for name in ("one", "many")}
    found["sweep"], _ = folders.find([root / "sweep"])
    return {name: report.page(runs) for name, runs in found.items()}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("name", ["one", "many", "sweep"])
def test_axe_finds_nothing(name, width, scheme, pages, tmp_path):
    flags = ["--blink-settings=preferredColorScheme=0"] if scheme == "dark" else []
    found = checked(pages[name], tmp_path, width, *flags)
    assert (found["width"], found["dark"]) == (width, scheme == "dark")
    assert found["violations"] == [] and "color-contrast" in found["passes"] and "image-alt" in found["passes"]
    assert found["wider"] <= 0 and found["loaded"] == []


def test_axe_would_find_something(pages, tmp_path):
    broken = pages["one"].replace("--soft: #4d5963", "--soft: #d0d0d0").replace(' lang="en"', "")
    rules = {text.partition(":")[0] for text in checked(broken, tmp_path, 1280)["violations"]}
    assert {"color-contrast", "html-has-lang"} <= rules
