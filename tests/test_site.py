"""The documentation site: it is built without a warning, its links lead somewhere, and its notebooks run."""

import html.parser
import json
import os
import pathlib
import re
import resource
import subprocess
import sys
import urllib.parse

import pytest

ROOT = pathlib.Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "docs" / "tutorials").glob("*.ipynb"))


class Page(html.parser.HTMLParser):
    """What a page of HTML links to, what it loads, and its anchors."""

    def __init__(self, text: str):
        super().__init__()
        self.links, self.loaded, self.anchors = [], [], set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.anchors |= {given[name] for name in ("id", "name") if given.get(name)}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        elif tag in ("script", "img", "iframe", "source", "link") and (given.get("src") or given.get("href")):
            self.loaded.append(given.get("src") or given["href"])


def faults(folder: pathlib.Path) -> list[str]:
    """Links of a site's pages that lead nowhere, addresses that are none, and what would be fetched from a network."""
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in sorted(folder.rglob("*.html"))}
    found = []
    for path, page in pages.items():
        where = path.relative_to(folder)
        for target in [*page.links, *page.loaded]:
            parts = urllib.parse.urlsplit(target)
            if parts.scheme or parts.netloc:
                if target in page.loaded and parts.scheme != "data":
                    found.append(f"{where} loads {target}")
                elif parts.scheme not in ("http", "https", "data") or (
                    parts.scheme != "data" and "." not in parts.netloc
                ):
                    found.append(f"{where}: {target} is no address")
                continue
            file = (path.parent / urllib.parse.unquote(parts.path)).resolve() if parts.path else path
            file = file / "index.html" if file.is_dir() else file
            anchor = urllib.parse.unquote(parts.fragment)
            if not file.exists():
                # The page that a server shows for addresses that it does not have links from the server's root.
                found += [] if where.name == "404.html" else [f"{where}: there is no {target}"]
            elif anchor and file in pages and anchor not in pages[file].anchors:
                found.append(f"{where}: {target} has no such anchor")
    for path in sorted(folder.rglob("*.css")):
        remote = re.findall(r"(?:url\(|@import )[\"']?(https?:[^)\"']+)", path.read_text(encoding="utf-8"))
        found += [f"{path.relative_to(folder)} loads {address}" for address in remote]
    return found


def test_faults_of_links_are_found(tmp_path):
    (tmp_path / "b.html").write_text('<h1 id="here">b</h1>')
    links = ["b.html", "b.html#here", "#top", "https://keras.io/api/", "c.html", "b.html#there", "https://keras"]
    text = "".join(f'<a href="{link}">x</a>' for link in links)
    (tmp_path / "a.html").write_text(f'<p id="top">{text}<script src="https://unpkg.com/x.js"></script></p>')
    (tmp_path / "a.css").write_text("@import 'https://fonts.googleapis.com/css';")
    assert faults(tmp_path) == [
        "a.html: there is no c.html",
        "a.html: b.html#there has no such anchor",
        "a.html: https://keras is no address",
        "a.html loads https://unpkg.com/x.js",
        "a.css loads https://fonts.googleapis.com/css",
    ]


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> pathlib.Path:
    """The site, built from nothing."""
    for package in ("mkdocs", "material", "mkdocstrings"):
        pytest.importorskip(package, reason="the extra docs is not installed")
    folder = tmp_path_factory.mktemp("site")
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    line = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    # The theme prints a notice on the next version of MkDocs, which the extra docs excludes.
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    ended = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=500, env=environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "WARNING" not in ended.stderr, ended.stderr
    # Processor time: other work on the machine does not count.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 60
    return folder


@pytest.mark.slow
def test_links_lead_somewhere_and_nothing_is_loaded_from_elsewhere(site):
    assert len(list(site.rglob("*.html"))) > 35
    assert faults(site) == []


@pytest.mark.slow
def test_every_public_name_is_in_the_reference(site):
    pages = "".join(path.read_text(encoding="utf-8") for path in (site / "reference").glob("*.html"))
    for package in ("", "losses", "models", "data", "compress"):
        stubs = (ROOT / "kd_keras" / package / "__init__.pyi").read_text(encoding="utf-8")
        names = re.findall(r"^from (kd_keras\.[\w.]+) import (\w+)", stubs, re.MULTILINE)
        missing = [name for module, name in names if f'id="{module}.{name}"' not in pages]
        assert names and missing == []


@pytest.mark.slow
def test_every_flag_is_in_the_reference(site):
    from kd_keras.run.config import Config
    from kd_keras.run.settings import declared

    page = (site / "reference" / "flags.html").read_text(encoding="utf-8")
    assert [flag for flag in declared(Config) if f"<code>--{flag}</code>" not in page] == []


@pytest.mark.slow
def test_the_search_works_without_a_server(site):
    index = (site / "search" / "search_index.js").read_text(encoding="utf-8").partition("=")[2]
    places = {document["location"] for document in json.loads(index)["docs"]}
    assert {"index.html", "tutorials/few_labels.html", "faq.html#nan", "experiments/RESULTS.html"} <= places
    assert "assets/iframe-worker.js" in (site / "index.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_has_no_outputs(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in cells if cell["cell_type"] == "code")


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, tmp_path, monkeypatch):
    nbclient = pytest.importorskip("nbclient", reason="the extra docs is not installed")
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel", reason="the extra docs is not installed")
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
    notebook = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(notebook, timeout=500, resources={"metadata": {"path": str(tmp_path)}}).execute()
    printed = "".join(
        output.get("text", "") for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs
    )
    print(printed)
    gains = [float(value) for value in re.findall(r"(?:mean gain |distillation: )([+-][\d.]+)", printed)]
    assert gains or "student.cc" in printed, printed
    assert all(gain > 0 for gain in gains), printed
