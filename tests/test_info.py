"""``python -m akd_ext.info``."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

import akd_ext
from akd_ext import info


def test_text_names_backends_and_versions(capsys):
    assert info.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "backend"
    assert f"  {'cpu tensors':<16}{akd_ext.backend('cpu')}" in lines
    assert f"  {'torch':<16}{torch.__version__}" in lines


def test_json_has_the_same_sections(capsys):
    assert info.main(["--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert list(report) == ["backend", "why not", "versions", "build", "machine"]
    assert report == info.info()


def test_every_kernel_that_is_off_has_a_reason():
    report = info.info()
    for name in ("cpu", "cuda"):
        assert (report["backend"][f"{name} tensors"] == "reference") == (name in report["why not"])


def test_the_build_says_why_a_kernel_was_not_built(tmp_path, monkeypatch):
    build = tmp_path / "build.json"
    kernel = {"built": False, "why_not": "no C++ compiler that runs", "compiler": "", "flags": [], "archs": []}
    build.write_text(json.dumps({"mode": "auto", "torch": "", "cpu": kernel, "cuda": kernel}))
    monkeypatch.setattr(info, "BUILD", build)
    monkeypatch.setattr(akd_ext, "load_report", lambda: {"cuda": "does not load: X"})
    report = info.info()
    assert report["why not"] == {"cuda": "does not load: X"}
    assert report["build"]["cpu kernel"] == "not built: no C++ compiler that runs"


def test_a_tree_nothing_was_built_into_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(info, "BUILD", tmp_path / "build.json")
    assert "nothing was built" in info.info()["build"]["-"]


@pytest.mark.integration
def test_command(tmp_path):
    # in the package's own folder's parent, so that the akd_ext under test is the one that runs
    env = {**os.environ, "PYTHONPATH": os.path.dirname(os.path.dirname(akd_ext.__file__))}
    command = [sys.executable, "-m", "akd_ext.info", "--json"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["versions"]["torch"] == torch.__version__
