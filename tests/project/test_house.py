"""The house rules that ruff does not know: short files, short functions, few arguments, rooms that say what they are for, no twins.

Who may import whom is `lint-imports`, in pyproject.toml.
"""

from __future__ import annotations

import ast
import io
import tokenize
from collections import defaultdict
from pathlib import Path

import pytest
from places import ROOT

FILE_LINES, FUNCTION_LINES, ARGUMENTS, TWIN_LINES = 400, 60, 6, 10
PACKAGE = ROOT / "akd_ext"
FILES = sorted(path for path in PACKAGE.rglob("*.py") if "lib" not in path.relative_to(PACKAGE).parts)

# Signatures with more arguments, and why.
MANY_ARGUMENTS = {
    # The registered op's schema: torch calls them with all of its arguments.
    "akd_ext.op.autograd._annealed_mse_fallback",
    "akd_ext.op.autograd._annealed_mse_fake",
    # The public loss, and what checks, computes and defines it with the same arguments.
    "akd_ext.loss.annealed_mse_loss",
    "akd_ext.loss._checked_loss",
    "akd_ext.loss._in_plain_pytorch",
    "akd_ext.loss._annealed_kl_loss",
    "akd_ext.reference.annealed_mse",
    "akd_ext.reference.annealed_mse_gradient",
    "akd_ext.reference.annealed_kl",
    # The linear losses: hidden states and head of either side, and how tokens count; what defines them.
    "akd_ext.linear.loss.linear_annealed_mse_loss",
    "akd_ext.linear.module.LinearAnnealingKDLoss.__init__",
    "akd_ext.linear.module.LinearAnnealingKDLoss.forward",
    "akd_ext.linear.topk.linear_topk_kl_loss",
    "akd_ext.linear.scheduled_kl.linear_scheduled_kl_loss",
    "akd_ext.linear.family.linear_cosine_loss",
    "akd_ext.linear.family.linear_standardized_mse_loss",
    "akd_ext.linear.reference.linear_annealed_mse",
    "akd_ext.linear.reference.scheduled_kl",
    # autograd.Function: every tensor is an argument of its own.
    "akd_ext.linear.chunked.ChunkedMSE.forward",
    "akd_ext.linear.divergence.ChunkedKL.forward",
    "akd_ext.linear.gram.GramMSE.forward",
    "akd_ext.linear.family._InnerProducts.forward",
    # What it distils from and how, beside all that a Trainer takes.
    "akd_ext.adapters.transformers.causal_lm.CausalLMAnnealingTrainer.__init__",
    # Hyper-parameters that a YAML gives by name.
    "akd_ext.torchdistill.losses.AnnealingKDLoss.__init__",
    "akd_ext.torchdistill.large_heads.LinearAnnealingKDLoss.__init__",
    "akd_ext.torchdistill.cifar._FastCIFAR.__init__",
}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def functions(path: Path):
    """(dotted name, node) of every function and method in a file."""

    def inside(node, prefix):
        for child in ast.iter_child_nodes(node):
            named = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
            name = f"{prefix}.{child.name}" if named else prefix
            if named and not isinstance(child, ast.ClassDef):
                yield name, child
            yield from inside(child, name)

    yield from inside(ast.parse(path.read_text(encoding="utf-8")), name_of(path).removesuffix(".py").replace("/", "."))


def lines_of(function) -> int:
    """Lines from `def` to the end without the docstring; decorators are not counted."""
    first = function.body[0]
    docstring = ast.get_docstring(function, clean=False) is not None
    return function.end_lineno - function.lineno + 1 - (first.end_lineno - first.lineno + 1 if docstring else 0)


def arguments_of(function) -> int:
    """Named parameters but `self` and `cls`; `*args` and `**kwargs` do not count."""
    given = function.args
    names = [a.arg for a in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    return len(names) - (names[:1] in (["self"], ["cls"]))


def code_lines(path: Path) -> list[tuple[int, str]]:
    """(line number, the line's tokens) without comments, docstrings and imports: what two places can have in common."""
    text = path.read_text(encoding="utf-8")
    left_out = set()
    for node in ast.walk(ast.parse(text)):
        constant = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if isinstance(node, (ast.Import, ast.ImportFrom)) or (constant and isinstance(node.value.value, str)):
            left_out.update(range(node.lineno, node.end_lineno + 1))
    found = defaultdict(list)
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE) and token.string.strip():
            found[token.start[0]].append(token.string)
    return [(number, " ".join(tokens)) for number, tokens in sorted(found.items()) if number not in left_out]


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_files_functions_and_argument_lists_are_short(path):
    count = len(path.read_text(encoding="utf-8").splitlines())
    assert count <= FILE_LINES, f"{count} lines"
    long = {name: lines_of(function) for name, function in functions(path) if lines_of(function) > FUNCTION_LINES}
    assert not long, f"lines of a function, docstring left out: {long}"
    wide = {name: arguments_of(function) for name, function in functions(path) if arguments_of(function) > ARGUMENTS}
    assert not {name: n for name, n in wide.items() if name not in MANY_ARGUMENTS}, "too many arguments"


def test_the_list_of_wide_signatures_holds_no_others():
    wide = {name for path in FILES for name, function in functions(path) if arguments_of(function) > ARGUMENTS}
    assert wide >= MANY_ARGUMENTS


@pytest.mark.parametrize("path", [path for path in FILES if path.name == "__init__.py"], ids=name_of)
def test_every_room_says_what_it_is_for(path):
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))


def test_no_two_places_share_more_than_ten_lines():
    places = defaultdict(list)
    for path in FILES:
        lines = code_lines(path)
        for start in range(len(lines) - TWIN_LINES):
            run = tuple(text for _, text in lines[start : start + TWIN_LINES + 1])
            places[run].append(f"{name_of(path)}:{lines[start][0]}")
    assert not [where for where in places.values() if len(where) > 1]
