"""Hooks of mkdocs.yml: what the documentation site has beside the pages of docs/.

- A notebook becomes a page of the same name; its outputs are not shown.
- Files of the repository that pages link to, such as experiments/RESULTS.md, join the site under their path.
- ``<!-- names: kd_keras.losses -->`` becomes the docstrings of a package's public names, ``<!-- flags -->`` the flags
  of ``kd-keras run``.
"""

import itertools
import json
import os
import pathlib
import re

from mkdocs.structure.files import File

ROOT = pathlib.Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
# The target of a link that is not an address or an anchor alone.
_LINK = re.compile(r"(\]\()(?![a-z]+:|#)([^)#\s]+)")
# A link whose text is the name of its file, as is usual in a repository.
_NAMED = re.compile(r"\[[\w/]+\.md\](\((?![a-z]+:|#)([^)#\s]+))")
_FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
_PUBLIC = re.compile(r"^from (kd_keras\.[\w.]+) import (\w+)", re.MULTILINE)


def notebook_text(path: pathlib.Path) -> str:
    """The Markdown of a notebook's cells."""
    parts = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        text = "".join(cell["source"])
        parts.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
    title, *rest = parts
    return "\n\n".join([title, f"[Download this notebook]({path.name})", *rest]) + "\n"


def on_files(files, config):
    """Adds the notebooks' pages, and what pages link to outside docs/."""
    pages = [pathlib.Path(file.abs_src_path) for file in files.documentation_pages()]
    for notebook in DOCS.rglob("*.ipynb"):
        uri = notebook.relative_to(DOCS).with_suffix(".md").as_posix()
        files.append(File.generated(config, uri, content=notebook_text(notebook)))
        pages.append(notebook)
    for page in pages:  # which grows: pages that join may link to others
        for _, target in _LINK.findall(page.read_text(encoding="utf-8")):
            path = (page.parent / target).resolve()
            uri = path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else ""
            if path.is_file() and not path.is_relative_to(DOCS) and not files.get_file_from_path(uri):
                files.append(File.generated(config, uri, abs_src_path=str(path)))
                if path.suffix == ".md":
                    pages.append(path)
    return files


def on_page_markdown(markdown, page, config, files):
    """Fills in generated parts, and turns links between files of the repository into links of the site."""
    markdown = re.sub(r"<!-- names: ([\w.]+) -->", lambda match: public_names(match[1]), markdown)
    markdown = markdown.replace("<!-- flags -->", flag_tables() if "<!-- flags -->" in markdown else "")
    uri = page.file.src_uri
    source = DOCS / uri if (DOCS / uri).exists() or (DOCS / uri).with_suffix(".ipynb").exists() else ROOT / uri

    def titled(match):
        path = source.parent / match[2]
        title = re.search(r"^# (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE) if path.is_file() else None
        return f"[{title[1]}]{match[1]}" if title else match[0]

    def linked(match):
        path = pathlib.Path(os.path.normpath(source.parent / match[2]))
        if path.suffix == ".ipynb" and source.with_suffix(".ipynb") != path:
            path = path.with_suffix(".md")
        path = path / "index.md" if path.is_dir() else path
        target = path.relative_to(DOCS if path.is_relative_to(DOCS) else ROOT)
        return match[1] + pathlib.PurePath(os.path.relpath(target, pathlib.Path(uri).parent)).as_posix()

    return with_one_title(_LINK.sub(linked, _NAMED.sub(titled, markdown)))


def with_one_title(markdown: str) -> str:
    """The page with one heading of the highest level: where it has several, all but the first go a level down."""
    fences = _FENCED.findall(markdown)
    first, *rest = re.split(r"^(?=# )", _FENCED.sub("\0", markdown), flags=re.MULTILINE)[1:] or [markdown]
    if rest:
        title, _, text = first.partition("\n")
        lower = re.sub(r"^#", "##", "".join([text, *rest]), flags=re.MULTILINE)
        markdown = re.sub("\0", lambda _: fences.pop(0), f"{title}\n{lower}")
    return markdown


def public_names(package: str) -> str:
    """A directive of mkdocstrings for each public name of a package, as its stubs have them."""
    stubs = ROOT / package.replace(".", "/") / "__init__.pyi"
    return "\n\n".join(f"::: {module}.{name}" for module, name in _PUBLIC.findall(stubs.read_text(encoding="utf-8")))


def flag_tables() -> str:
    """A table of flags for each section of the settings."""
    from kd_keras.run.config import Config
    from kd_keras.run.settings import Follows, declared

    lines = []
    for section, settings in itertools.groupby(declared(Config).values(), lambda setting: setting.section):
        title = Config.__annotations__[section].__doc__.splitlines()[0]
        lines += [f"## {title}", "", "| flag | default | |", "|---|---|---|"]
        for setting in settings:
            default = setting.default.text if isinstance(setting.default, Follows) else setting.default
            shown = "" if default is None else f"`{default}`"
            accepts = setting.help.replace("|", "\\|").replace("<", "&lt;")
            lines.append(f"| `--{setting.flag}` | {shown} | {accepts} |")
        lines.append("")
    return "\n".join(lines)
