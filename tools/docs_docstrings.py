"""For mkdocstrings: docstrings are written for a terminal, with Sphinx roles and doctests; this makes them Markdown."""

from __future__ import annotations

import re

from griffe import Extension

ROLE = re.compile(r":(?:func|class|mod|meth):`~?([^`]+)`")
LITERAL = re.compile(r"::$", re.MULTILINE)
DOCTEST = re.compile(r"^(?P<indent> *)>>> .*?(?=\n *\n|\Z)", re.MULTILINE | re.DOTALL)
SECTION = re.compile(r"^Example:$", re.MULTILINE)


class Docstrings(Extension):
    """Rewrites every docstring that griffe has read."""

    def on_object(self, *, obj, loader, **kwargs):
        """Called by griffe, once an object."""
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)


def as_markdown(text: str) -> str:
    """Roles become code, ``::`` before a code block a colon, a doctest a block of its own."""
    text = SECTION.sub("Examples:", LITERAL.sub(":", ROLE.sub(r"`\1`", text)))
    return DOCTEST.sub(_fenced, text)


def _fenced(match: re.Match) -> str:
    indent = match["indent"]
    return match[0] if indent else f"```pycon\n{match[0]}\n```"
