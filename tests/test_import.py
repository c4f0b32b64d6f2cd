"""``import akd_ext`` needs torch and brings in nothing else."""

import json

import pytest
from subject_process import run

LOADED = "import json, sys; print(json.dumps(sorted(sys.modules)))"


def modules(statement):
    return set(json.loads(run(["-c", f"{statement}\n{LOADED}"]).splitlines()[-1]))


@pytest.fixture(scope="module")
def added():
    return modules("import torch, akd_ext") - modules("import torch")


@pytest.mark.integration
def test_no_other_package_is_imported(added):
    import sys

    foreign = {name for name in added if name.split(".")[0] not in sys.stdlib_module_names}
    assert {name for name in foreign if name.split(".")[0] not in ("akd_ext", "torch")} == set()


@pytest.mark.integration
@pytest.mark.parametrize("package", ["torchdistill", "torchvision", "numpy"])
def test_heavy_packages_stay_out(added, package):
    assert not [name for name in added if name.split(".")[0] == package]


def test_plug_in_and_commands_stay_out(added):
    assert not [
        name
        for name in added
        if name.startswith(("akd_ext.torchdistill", "akd_ext.adapters", "akd_ext.train", "akd_ext.reproduce"))
    ]


@pytest.mark.parametrize("package", ["torch._dynamo", "torch._inductor", "torch.fx.experimental.symbolic_shapes"])
def test_no_heavy_part_of_torch_is_pulled_in(added, package):
    assert package not in added


@pytest.mark.integration
def test_import_without_numpy():
    """A finder that refuses numpy, torchvision and torchdistill stands in for an environment without them."""
    code = (
        "import sys\n"
        "class Refuse:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('numpy', 'torchvision', 'torchdistill', 'yaml', 'sklearn'):\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Refuse())\n"
        "import torch, akd_ext\n"
        "student = torch.ones(2, 3, requires_grad=True)\n"
        "akd_ext.AnnealingKDLoss(4)(student, torch.zeros(2, 3)).backward()\n"
        "print(student.grad.sum().item())\n"
    )
    assert run(["-W", "ignore", "-c", code]).strip() == "2.0"


@pytest.mark.integration
def test_importing_twice_is_harmless_and_silent():
    code = (
        "import akd_ext, importlib, akd_ext.loss\n"
        "importlib.reload(akd_ext.loss)\n"
        "importlib.reload(akd_ext)\n"
        "[getattr(akd_ext, name) for name in akd_ext.__all__]\n"
    )
    run(["-W", "error::UserWarning", "-c", code])
