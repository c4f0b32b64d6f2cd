"""The examples in the docstrings of every module give what they say; one that is not run says why."""

import doctest
import importlib
from pathlib import Path

import pytest

import akd_ext

PACKAGE = Path(akd_ext.__file__).parent
MODULES = sorted(
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
    for path in PACKAGE.rglob("*.py")
    if ">>> " in path.read_text(encoding="utf-8")
)


def examples(name):
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name.startswith("akd_ext"):
            raise
        pytest.skip(f"{name} needs {error.name}, which is not installed: pip install '.[test]'")


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name):
    result = doctest.testmod(examples(name))
    assert result.attempted > 0
    assert result.failed == 0


@pytest.mark.parametrize("name", MODULES)
def test_a_skipped_example_says_why(name):
    """The line before it is ``>>> # not run: REASON``, or belongs to another skipped one."""
    for found in doctest.DocTestFinder().find(examples(name)):
        lines, said = found.docstring.splitlines(), None
        for example in found.examples:
            before = example.lineno - 1
            if doctest.SKIP in example.options and before != said:
                assert lines[before].lstrip().startswith(">>> # not run: "), f"{found.name}: {example.source}"
            said = example.lineno if doctest.SKIP in example.options else None
