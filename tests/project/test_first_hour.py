"""The first hour of a newcomer: the shell blocks of README and the quick start, in their order, as they stand.

Each command runs in bash, in one folder, with the commands that pyproject.toml declares. What is not literal:

- What installs (`pip install`, and `pytest`, which is this) is left out. That those lines work is what .ci/run and
  tests/packaging/test_extras.py show; a line that they do not run fails here.
- What trains for longer than a test may take gets BUDGET behind it: fewer runs, shorter ones. Every other word is the page's.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from places import ROOT

import akd_ext

pytest.importorskip("torchdistill", reason="the commands of the first hour train: pip install '.[test]'")

PAGES = ("README.md", "docs/quickstart.md")
TEACHER = "akd-train --config torchdistill_configs/digits/teacher.yaml --seed 0"
STUDENT = "akd-train --config torchdistill_configs/digits/annealing_kd.yaml --output_dir runs/annealing_kd --seed 0"
BUDGET = {
    "akd-reproduce digits": "--only scratch --seeds 1 --epochs_scale 0.02",
    STUDENT: "--set train.stage1.num_epochs=50 --set train.stage2.num_epochs=10",
}


def commands() -> list[tuple[str, str]]:
    """(page, command) of every line in a block of shell lines, cut at `&&`."""
    found = []
    for page in PAGES:
        for block in re.findall(r"^```sh\n(.*?)^```$", (ROOT / page).read_text(encoding="utf-8"), re.M | re.S):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if words:
                    text = line.partition("  #")[0]
                    found += [(page, part.strip()) for part in text.split("&&")]
    return found


def is_left_out(command: str) -> bool:
    return command == "pytest" or command.startswith("pip install")


def test_both_pages_show_commands_and_not_only_installation():
    for page in PAGES:
        shown = [command for where, command in commands() if where == page]
        assert any(is_left_out(command) for command in shown) and any(not is_left_out(command) for command in shown)
    assert {command for _, command in commands()} >= BUDGET.keys()


@pytest.mark.parametrize("command", sorted({command for _, command in commands() if is_left_out(command)}))
def test_what_is_left_out_here_is_what_ci_runs(command):
    ci = (ROOT / ".ci" / "run").read_text()
    extras = (ROOT / "tests" / "packaging" / "test_extras.py").read_text()
    if match := re.fullmatch(r'pip install "\.\[(\w+)\]"', command):
        assert "tests/packaging/test_extras.py" in ci and re.search(rf'^    "{match[1]}": \[', extras, re.M)
    elif command == "pytest":
        assert re.search(r'^step "pytest" ', ci, re.M)
    else:  # fetches gigabytes; `pip install ".[test]"`, with which .ci/run begins, fetches the same two
        assert command == "pip install torch torchvision" and 'pip install -q ".[test]"' in ci


@pytest.fixture
def shell(tmp_path):
    """Runs a line in a folder with the configs of a clone, with the akd_ext that is tested here."""
    bin, folder = tmp_path / "bin", tmp_path / "clone"
    for made in (bin, folder):
        made.mkdir()
    (folder / "torchdistill_configs").symlink_to(ROOT / "torchdistill_configs")
    for name, module, function in re.findall(
        r'^(akd-\w+) = "(\w+):(\w+)"', (ROOT / "pyproject.toml").read_text(), re.M
    ):
        script = bin / name
        script.write_text(f"#!{sys.executable}\nimport sys\nfrom {module} import {function}\nsys.exit({function}())\n")
        script.chmod(0o755)
    environment = {
        **os.environ,
        "PATH": os.pathsep.join([str(bin), os.path.dirname(sys.executable), os.environ["PATH"]]),
        "PYTHONPATH": str(Path(akd_ext.__file__).parents[1]),
        "OMP_NUM_THREADS": "1",
    }

    def run(line: str) -> str:
        done = subprocess.run(["bash", "-ec", line], cwd=folder, env=environment, text=True, stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip
        assert done.returncode == 0, f"{line}\n{done.stdout}"
        return done.stdout

    run.folder = folder
    return run


@pytest.mark.integration
def test_the_commands_work_in_their_order(shell):
    said = {}
    for _, command in commands():
        if not is_left_out(command):
            said[command] = shell(f"{command} {BUDGET.get(command, '')}")
    results = json.loads((shell.folder / "runs" / "annealing_kd" / "results.json").read_text())
    assert results["complete"] and len(results["epochs"]) == 60 and results["best"]["test_accuracy"] > 80
    assert (shell.folder / "runs" / "digits-x0.02" / "table.md").is_file()
    assert "the best model is in ./runs/digits/teacher/checkpoint.pt" in said[TEACHER]
    assert f"cpu tensors     {akd_ext.backend('cpu')}" in said["akd-info"]
