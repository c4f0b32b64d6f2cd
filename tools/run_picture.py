"""Draws docs/run.svg, the way of an `akd-train` run, from the calls in the code: python tools/run_picture.py

It begins at `trainer.run` and follows the calls, in the order of the source, through the files that tell a run (SPINE). What those
call elsewhere in akd_ext is a row of its own and not followed; what was shown before, and what raises or logs, is left out.
"""

from __future__ import annotations

import ast
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "docs" / "run.svg"
TRAIN = "akd_ext.train"
SPINE = tuple(f"{TRAIN}.{name}" for name in ("trainer", "build", "epoch"))
UNTOLD = (f"{TRAIN}.system.errors", f"{TRAIN}.system.failures")
COLOURS = {
    "trainer": "#1b4f72", "build": "#1b4f72", "epoch": "#1b4f72", "config": "#7d6608", "tasks": "#6c3483", "checkpoint": "#922b21",
    "reporting": "#196f3d", "distributed": "#935116", "boxes": "#4d5656", "system": "#4d5656", "run_folder": "#922b21",
}  # fmt: skip
ROW, INDENT, WIDTH = 22, 26, 1180


class Module:
    """What a file defines, and what the names in it mean."""

    def __init__(self, name: str):
        self.name = name
        path = ROOT / (name.replace(".", "/") + ".py")
        tree = ast.parse((path if path.exists() else path.with_suffix("") / "__init__.py").read_text(encoding="utf-8"))
        self.defined = {node.name: node for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
        self.imported: dict[str, str] = {}
        package = name.rsplit(".", 1)[0]
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                source = f"{package}.{node.module}" if node.level else node.module or ""
                for alias in node.names if source.startswith("akd_ext") else ():
                    self.imported[alias.asname or alias.name] = f"{source}.{alias.name}"

    def method(self, owner: str, name: str) -> ast.FunctionDef | None:
        body = getattr(self.defined.get(owner), "body", [])
        return next((node for node in body if isinstance(node, ast.FunctionDef) and node.name == name), None)


MODULES: dict[str, Module | None] = {}


def module(name: str) -> Module | None:
    if name not in MODULES:
        there = (ROOT / (name.replace(".", "/") + ".py")).exists() or (
            ROOT / name.replace(".", "/") / "__init__.py"
        ).exists()
        MODULES[name] = Module(name) if there else None
    return MODULES[name]


def find(dotted: str) -> tuple[Module, str] | None:
    """Where a name of akd_ext is defined: (module, "function" or "Class" or "Class.method")."""
    parts = dotted.split(".")
    for cut in (1, 2):
        home, inside = module(".".join(parts[:-cut])), parts[-cut:]
        if home is None:
            continue
        if inside[0] in home.imported and inside[0] not in home.defined:
            return find(".".join([home.imported[inside[0]], *inside[1:]]))
        if inside[0] in home.defined and (cut == 1 or home.method(*inside)):
            return home, ".".join(inside)
    return None


def dotted_call(node: ast.expr, home: Module, owner: str) -> str | None:
    """The dotted name that a call's function has in akd_ext, as far as the names themselves tell."""
    if isinstance(node, ast.Name):
        return f"{home.name}.{node.id}" if node.id in home.defined else home.imported.get(node.id)
    if not isinstance(node, ast.Attribute):
        return None
    value = node.value
    if isinstance(value, ast.Call):  # Epoch(...).run()
        made = dotted_call(value.func, home, owner)
        return made and f"{made}.{node.attr}"
    word = value.id if isinstance(value, ast.Name) else value.attr if isinstance(value, ast.Attribute) else ""
    if word == "self":
        return f"{home.name}.{owner}.{node.attr}"
    if word in home.imported and word[:1].islower():
        return f"{home.imported[word]}.{node.attr}"
    classes = [*home.defined, *home.imported]  # `checkpointer.finish()` is the Checkpointer's
    named = next(
        (name for name in classes if name.lower() == word.replace("_", "").lower() and name[0].isupper()), None
    )
    if named is None:
        return None
    return f"{home.name}.{named}.{node.attr}" if named in home.defined else f"{home.imported[named]}.{node.attr}"


def calls_of(function: ast.AST) -> list[ast.Call]:
    found = [node for node in ast.walk(function) if isinstance(node, ast.Call)]
    return sorted(found, key=lambda node: (node.func.end_lineno, node.func.end_col_offset))


def sentence(node: ast.AST) -> str:
    text = " ".join((ast.get_docstring(node) or "").split("\n\n")[0].split())
    return text.split(". ")[0].split(": see")[0].rstrip(".").replace("``", "").replace("`", "")


def rows() -> list[tuple[int, str, str, str]]:
    """(depth, room, name, sentence) of each call, in the order in which the code stands."""
    found, seen = [], set()

    def follow(dotted: str, depth: int) -> None:
        place = find(dotted)
        if place is None or (place[0].name, place[1]) in seen or place[0].name.startswith(UNTOLD):
            return
        home, inside = place
        owner, _, method = inside.rpartition(".")
        node = home.method(owner, method) if owner else home.defined[inside]
        if node is None or not home.name.startswith(TRAIN):
            return
        seen.add((home.name, inside))
        room = home.name.removeprefix(f"{TRAIN}.").split(".")[0]
        told, spine = sentence(node), home.name in SPINE
        if told or spine:
            found.append((depth, room, f"{home.name.removeprefix(TRAIN + '.')}.{inside}", told))
        if spine and isinstance(node, ast.FunctionDef):
            for call in calls_of(node):
                name = dotted_call(call.func, home, owner)
                if name is not None:
                    follow(name, depth + 1)

    follow(f"{TRAIN}.trainer.run", 0)
    return found


def draw() -> str:
    lines, all_rows = [], rows()
    for number, (depth, room, name, told) in enumerate(all_rows):
        x, y, colour = 12 + depth * INDENT, 14 + number * ROW, COLOURS.get(room, "#4d5656")
        width = 8 * len(name) + 12
        text = told if len(told) <= 95 else told[:94].rstrip() + "…"
        lines.append(f'<rect x="{x}" y="{y}" width="{width}" height="{ROW - 4}" rx="3" fill="{colour}"/>')
        lines.append(
            f'<text x="{x + 6}" y="{y + 13}" fill="#fff" font-family="monospace" font-size="13">{escape(name)}</text>'
        )
        lines.append(f'<text x="{x + width + 8}" y="{y + 13}" fill="#222">{escape(text)}</text>')
    height = 28 + ROW * len(all_rows)
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>', *lines, "</svg>\n",
    ])  # fmt: skip


if __name__ == "__main__":
    PICTURE.write_text(draw(), encoding="utf-8")
