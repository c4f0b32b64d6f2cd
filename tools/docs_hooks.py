"""What mkdocs.yml asks for beside MkDocs itself; the pages stay readable where they lie, in docs/.

- A link out of docs/ takes its file along: a Markdown file becomes a page, anything else is copied, at the place that
  it has in the repository.
- ``<!-- include: PATH#Heading -->`` is replaced by what stands under that heading, without it by all but the title.
- ``<!-- help: COMMAND -->`` is replaced by what the command prints.
- Formulas become MathML, which a browser shows without a script.
- The search index is also written as a script, which a browser reads from a folder.
"""

from __future__ import annotations

import html
import os
import posixpath
import re
import subprocess
import sys
from pathlib import Path

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"\[([^\]]*)\]\(([^)\s#:]+)(#[^)\s]*)?\)")
CODE = re.compile(r"(^```.*?^```$|`[^`\n]*\]\([^`\n]*`)", re.DOTALL | re.MULTILINE)  # what only looks like a link
INCLUDE = re.compile(r"^<!-- include: (\S+?)(?:#(.+?))? -->$", re.MULTILINE)
HELP = re.compile(r"^<!-- help: (.+?) -->$", re.MULTILINE)
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)
AIMS = re.compile(r"^## Aims.*?(?=^## |\Z)", re.MULTILINE | re.DOTALL)
COMMANDS = {"akd-train": "akd_ext.train.cli", "akd-reproduce": "akd_ext.reproduce.cli"}


def on_files(files, config):
    """Adds what the pages link to, and what that links to."""
    todo = [(file.src_uri, f"docs/{file.src_uri}") for file in files.documentation_pages()]
    todo += [(uri, uri) for uri in ("CONTRIBUTING.md", "csrc/README.md")]
    while todo:
        uri, source = todo.pop()
        if files.get_file_from_path(uri) is None:
            files.append(File.generated(config, uri, abs_src_path=str(ROOT / source)))
        if not uri.endswith(".md"):
            continue
        for target in _targets(source):
            place = _site_uri(target)
            if place != target or files.get_file_from_path(place) is not None or not (ROOT / target).is_file():
                continue  # MkDocs says what is missing
            todo.append((place, target))
    return files


def on_page_markdown(markdown, page, config, files):
    if page.file.src_uri.startswith("benchmarks/"):
        page.meta["search"] = {"exclude": True}  # hundreds of tables of numbers
        markdown = AIMS.sub("", markdown)  # what we asked of ourselves; in the repository it stays beside the numbers
    source = _source(page.file.src_uri)
    return _move_links(_expanded(markdown, source), source, page.file.src_uri)


def on_page_content(content, page, config, files):
    from latex2mathml.converter import convert

    def mathml(match):
        display = "inline" if match[2] == "(" else "block"
        return convert(html.unescape(match[3]).strip(), display=display)

    return FORMULA.sub(mathml, content)


def on_post_build(config):
    index = Path(config.site_dir) / "search" / "search_index.json"
    index.with_suffix(".js").write_text(f"var __index = {index.read_text(encoding='utf-8')}", encoding="utf-8")


def _source(uri: str) -> str:
    """Where a page of the site is in the repository."""
    return f"docs/{uri}" if (ROOT / "docs" / uri).is_file() else uri


def _site_uri(path: str) -> str:
    """Where a file of the repository is in the site."""
    return path.removeprefix("docs/")


def _targets(source: str) -> set[str]:
    """The files that a page links to, also by what it includes."""
    text = (ROOT / source).read_text(encoding="utf-8")
    found = {_resolved(source, match[2]) for match in LINK.finditer(_without_code(text))}
    for path, _ in INCLUDE.findall(text):
        found |= _targets(_resolved(source, path))
    return found


def _resolved(source: str, link: str) -> str:
    return posixpath.normpath(posixpath.join(posixpath.dirname(source), link))


def _without_code(text: str) -> str:
    return CODE.sub("", text)


def _expanded(markdown: str, source: str) -> str:
    def include(match):
        path = _resolved(source, match[1])
        return _relinked(_section((ROOT / path).read_text(encoding="utf-8"), match[2], path), path, source)

    return HELP.sub(lambda match: f"```text\n{_help(match[1])}\n```", INCLUDE.sub(include, markdown))


def _section(text: str, heading: str | None, path: str) -> str:
    if heading is None:
        return re.sub(r"\A# .*\n", "", text)
    found = re.search(rf"^(#+) {re.escape(heading)}\n(.*?)(?=^#{{1,6}} |\Z)", text, re.MULTILINE | re.DOTALL)
    if found is None:
        raise PluginError(f"{path} has no heading '{heading}'")
    return found[2]


def _help(command: str) -> str:
    name, *arguments = command.split()
    code = f"import sys; from {COMMANDS[name]} import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments, "--help"],
        env={**os.environ, "COLUMNS": "100", "PYTHON_COLORS": "0"},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        raise PluginError(f"{command} --help: exit code {done.returncode}\n{done.stderr}")
    return done.stdout.strip()


def _relinked(text: str, source: str, page: str) -> str:
    """Links of a file at ``source`` as they are on a page at ``page``, both in the repository."""
    folder = posixpath.dirname(page) or "."
    return _map_links(text, source, lambda target: posixpath.relpath(target, folder))


def _move_links(text: str, source: str, uri: str) -> str:
    """Links of a file of the repository as they are in the site."""
    folder = posixpath.dirname(uri) or "."
    return _map_links(text, source, lambda target: posixpath.relpath(_site_uri(target), folder))


def _map_links(text: str, source: str, change) -> str:
    def changed(match):
        target = _resolved(source, match[2])
        if (ROOT / target).is_dir():
            return match[1]  # the site has no listings
        return f"[{match[1]}]({change(target)}{match[3] or ''})"

    parts = CODE.split(text)  # every second part is code
    for index in range(0, len(parts), 2):
        parts[index] = LINK.sub(changed, parts[index])
    return "".join(parts)
