"""docs/architecture.md shows what is there: the rooms, who may import whom, the way of a run."""

from __future__ import annotations

import re
import runpy

from places import ROOT

PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


def test_the_picture_of_a_run_is_that_of_the_code():
    drawn = runpy.run_path(str(ROOT / "tools" / "run_picture.py"))
    assert drawn["PICTURE"].read_text(encoding="utf-8") == drawn["draw"](), "draw it again: python tools/run_picture.py"
    names = [name for _, _, name, _ in drawn["rows"]()]
    assert names[0] == "trainer.run"
    assert any(name.startswith("epoch.") for name in names)
    assert "checkpoint.checkpointer.Checkpointer" in names


def test_the_import_rule_is_that_of_lint_imports():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    contracts = re.findall(r'^name = "(the rooms[^"]*)"\n.*?^layers = \[\n(.*?)^\]', text, re.M | re.S)
    assert len(contracts) == 2
    for name, layers in contracts:
        shown = "\n".join(
            "  " + layer.translate({40: None, 41: None}) for layer in re.findall(r'^  "(.*)",', layers, re.M)
        )
        assert f"{name}\n{shown}\n" in PAGE


def test_every_room_is_in_the_tree():
    rooms = [path.parent.name for path in (ROOT / "akd_ext").rglob("__init__.py")]
    missing = [room for room in rooms if f"{room}/" not in PAGE and room not in ("text", "figures")]
    assert not missing
