"""A torch without the private names that akd_ext uses: everything still works, and gives the same numbers."""

from __future__ import annotations

import ast
import re

import pytest
import torch
from places import ROOT
from subject_process import run

from akd_ext.op import private_torch

SOURCES = sorted((ROOT / "akd_ext").rglob("*.py"))
MODULE = ROOT / "akd_ext" / "op" / "private_torch.py"
# Of objects: PyTorch's users have relied on these for ten years.
KNOWN = {"_forward_hooks", "_forward_pre_hooks", "_modules", "_parameters", "_buffers", "_version", "_Loss"}
PRIVATE = re.compile(
    r"_(C|handle|schema|current_level|compiled_call_impl|iterator|get_iterator|functorch|dynamo|inductor|local_tensor|spec)"
)

# One process for all: each name goes in a child of its own, before akd_ext is imported. torch uses some of them itself,
# even while akd_ext is imported, so it has them back as soon as the module has made its choice.
EACH_NAME = """
import importlib.util, os, sys, torch
import torch.nn.functional as F
from torch.autograd import forward_ad

def use(name):
    path = name.split(".")
    owner = forward_ad if name == "_current_level" else torch._C
    for part in path[:-1]:
        owner = getattr(owner, part)
    value = getattr(owner, path[-1])
    delattr(owner, path[-1])
    if owner is not forward_ad:
        spec = importlib.util.spec_from_file_location("akd_ext.op.private_torch", "akd_ext/op/private_torch.py")
        private_torch = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(private_torch)
        setattr(owner, path[-1], value)
        assert private_torch.MISSING == ["torch._C." + name], private_torch.MISSING
    import akd_ext
    assert akd_ext.backend("cpu") == ("reference" if "cpu" in akd_ext.load_report() else "cpu")
    torch.manual_seed(0)
    model, x, teacher = torch.nn.Linear(4, 3), torch.randn(8, 4), torch.randn(8, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for criterion in (akd_ext.AnnealingKDLoss(4), lambda a, b: akd_ext.annealed_mse_loss(a, b, torch.tensor(0.25))):
        if isinstance(criterion, torch.nn.Module):
            criterion.temperature = 4
        loss = criterion(model(x), teacher)
        expected = F.mse_loss(model(x), 0.25 * teacher)
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(criterion(model(x).detach(), teacher), expected.detach())
        wanted = torch.autograd.grad(expected, model.weight)[0]
        optimizer.zero_grad()
        (2 * loss).backward(retain_graph=True)
        torch.testing.assert_close(model.weight.grad, 2 * wanted)
        loss.backward()
        torch.testing.assert_close(model.weight.grad, 3 * wanted)
        optimizer.step()
    gradient = torch.func.grad(lambda s: akd_ext.annealed_mse_loss(s, teacher, 0.5))(x[:, :3])
    torch.testing.assert_close(gradient, 2 * (x[:, :3] - 0.5 * teacher) / 24)

for name in sys.argv[1:]:
    child = os.fork()
    if child == 0:
        use(name)
        sys.stdout.flush()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, name
    print(name)
"""


def names() -> list[str]:
    found = re.findall(r'= _find\(\s*"([^"]+)"', MODULE.read_text())
    assert len(found) == 8
    return [*found, "_current_level"]


@pytest.mark.integration
def test_import_and_a_training_step_without_each_name():
    assert run(["-c", EACH_NAME, *names()]).split() == names()


def test_no_other_module_uses_a_private_name_of_torch():
    """torch._anything, and underscored attributes of anything that is not our own object or module."""
    strangers = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and node.attr not in KNOWN and PRIVATE.fullmatch(node.attr):
                if path != MODULE and not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")):
                    strangers.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.attr}")
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "torch":
                path_and_names = [*node.module.split("."), *(alias.name for alias in node.names)]
                if any(name.startswith("_") and name not in KNOWN for name in path_and_names):
                    strangers.append(f"{path.relative_to(ROOT)}:{node.lineno} from {node.module}")
    assert not strangers


def test_this_torch_has_all_of_them():
    assert not private_torch.MISSING


class Bare:
    """An object of a torch that calls its private attributes otherwise."""


def test_objects_without_the_attributes():
    assert (
        private_torch.has_schema(Bare(), "akd_ext::scale_(Tensor(a!) tensor, Tensor factor, float constant) -> ()")
        is None
    )
    assert not private_torch.is_compiled(Bare())
    assert private_torch.kept_iterator(Bare()) is None
    op = Bare()
    assert private_torch.without_overrides(op) is op


def test_a_compiled_module_and_a_kept_iterator_are_seen():
    module = torch.nn.Linear(1, 1)
    assert not private_torch.is_compiled(module)
    module.compile()
    assert private_torch.is_compiled(module)
    loader = torch.utils.data.DataLoader([1, 2])
    loader._iterator = kept = iter([])
    assert private_torch.kept_iterator(loader) is kept
    private_torch.forget_iterator(loader)
    assert private_torch.kept_iterator(loader) is None
