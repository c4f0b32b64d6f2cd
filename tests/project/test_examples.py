"""Every file in examples/ runs, prints the three accuracies, and trains better than chance."""

import logging
import re
import runpy
import sys
import warnings

import pytest
import torch
from places import ROOT

pytestmark = pytest.mark.integration

EXAMPLES = ROOT / "examples"
# The modules without which an example cannot run; its first lines say what brings them.
NEEDS = {
    "plain_pytorch": ["sklearn"],
    "trainer_sentences": ["transformers", "datasets"],
    "language_model_cached": ["transformers"],
    "trl_sft": ["trl"],
    "lightning_digits": ["sklearn", "lightning"],
    "modelopt_digits": ["sklearn", "modelopt"],
    "textbrewer_digits": ["sklearn", "textbrewer"],
}


@pytest.fixture
def undisturbed(monkeypatch, tmp_path):
    """The examples are scripts: what they set for their process is set back."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(EXAMPLES))
    threads, level = torch.get_num_threads(), logging.root.manager.disable
    with warnings.catch_warnings():
        yield
    torch.set_num_threads(threads)
    logging.disable(level)
    sys.modules.pop("digits", None)


def test_none_is_forgotten():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {*NEEDS, "digits"}


@pytest.mark.parametrize("name", NEEDS)
def test_example(name, undisturbed, monkeypatch, capsys):
    for module in NEEDS[name]:
        pytest.importorskip(module, reason=f"the example needs {module}: see the first lines of examples/{name}.py")
    monkeypatch.setattr(sys, "argv", [name, "--epochs", "3"])
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    found = re.fullmatch(r"teacher (.*) %, scratch (.*) %, annealing_kd (.*) %", capsys.readouterr().out.strip())
    assert found
    # Ten digits: chance is 10. Letters: always the blank gives 16. Three epochs of 40 sentences teach nothing yet.
    least = {"trainer_sentences": 0, "language_model_cached": 18, "trl_sft": 18}.get(name, 50)
    assert min(map(float, found.groups())) > least


@pytest.mark.parametrize("name", NEEDS)
def test_the_header_says_what_how_and_what_comes_out(name):
    what, how, prints = (EXAMPLES / f"{name}.py").read_text().split('"""')[1].strip().splitlines()
    assert what.startswith("Annealing-KD")
    assert how.startswith(f"Run:    python examples/{name}.py")
    assert re.match(r"Prints: teacher \d.* %, scratch \d.* %, annealing_kd \d", prints)
