"""The examples in the docstrings of the plug-in and of the table tools give what they say."""

import doctest
import importlib

import pytest

pytest.importorskip("torchdistill", reason="the plug-in needs torchdistill: pip install '.[test]'")
pytest.importorskip("torchvision.datasets", reason="torchdistill needs torchvision: pip install '.[test]'")

MODULES = [
    "akd_ext.experiments.configs",
    "akd_ext.experiments.configs_yaml",
    "akd_ext.experiments.figure2",
    "akd_ext.experiments.glue_configs",
    "akd_ext.experiments.glue_paper",
    "akd_ext.experiments.landscape",
    "akd_ext.experiments.report",
    "akd_ext.experiments.text.examples",
    "akd_ext.experiments.text.metrics",
    "akd_ext.experiments.text.models",
    "akd_ext.experiments.text.submission",
    "akd_ext.torchdistill.cifar",
    "akd_ext.torchdistill.datasets",
    "akd_ext.torchdistill.forward_procs",
    "akd_ext.torchdistill.frozen",
    "akd_ext.torchdistill.losses",
    "akd_ext.torchdistill.models",
    "akd_ext.torchdistill.pre_epoch",
    "akd_ext.torchdistill.text",
]


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name):
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted > 0
    assert result.failed == 0
