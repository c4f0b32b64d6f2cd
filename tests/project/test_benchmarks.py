"""The benchmark's own arithmetic, and the one promise of it that does not depend on a clock: peak memory."""

import json

import pytest
import torch
from places import ROOT

import akd_ext


@pytest.fixture(autouse=True)
def _benchmarks_can_be_imported(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))


def peak(loss_of, direction, dtype):
    from benchmarks.cases import Case, make_inputs, step
    from benchmarks.measure import peak_bytes

    case = Case((256, 1000), dtype, direction)
    (inputs,) = make_inputs(case, "cpu", 1)
    one = step(case, "cpu", loss_of)
    one(inputs)
    return peak_bytes(one, inputs, "cpu") / case.tensor_bytes


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("direction", "tensors"), [("forward", 0), ("forward+backward", 1), ("upstream 3", 1), ("masked", 1)]
)
def test_peak_memory_is_one_gradient(direction, tensors, dtype):
    assert akd_ext.backend("cpu") == "cpu", "the op runs without its C++ kernel here"
    found = peak(lambda i: akd_ext.annealed_mse_loss(i.student, i.teacher, 0.7, mask=i.mask), direction, dtype)
    assert tensors <= found < tensors + 0.01


@pytest.mark.parametrize("direction", ["row-strided", "weighted", "divisor"])
def test_other_calls_are_the_same_loss_for_every_contender_and_copy_no_logits(direction):
    from benchmarks.cases import FALLBACK, OURS, Case, cases, contenders, make_inputs

    case = Case((256, 1000), torch.float32, direction)
    assert case in cases("cpu")
    (inputs,) = make_inputs(case, "cpu", 1)
    assert inputs.student.is_contiguous() == (direction != "row-strided")
    assert (inputs.weight is not None, inputs.divisor is not None) == (direction == "weighted", direction == "divisor")
    found = {name: float(loss_of(inputs).detach()) for name, loss_of in contenders(case, "cpu", compiled=False)}
    assert {OURS, FALLBACK, "eager"} <= set(found)
    assert all(value == pytest.approx(found[FALLBACK], rel=1e-5) for value in found.values())
    ours = dict(contenders(case, "cpu", compiled=False))[OURS]
    assert 1 <= peak(ours, direction, torch.float32) < 1.02  # the gradient, and nothing else


def test_peak_memory_counts_every_allocation():
    def three_at_once(inputs):
        a = inputs.student * 2
        b = a * 2
        return (a, b, b * 2)[0].sum()

    assert peak(three_at_once, "forward", torch.float32) == pytest.approx(3, abs=0.01)


def test_ratios_are_taken_within_a_repetition():
    from benchmarks.measure import Result, ratios

    # The machine became four times slower half-way: no effect on a ratio.
    slow, fast = Result([2.0, 2.0, 8.0, 8.0]), Result([1.0, 1.0, 4.0, 4.0])
    assert ratios(slow, fast) == (2.0, 2.0, 2.0)


def test_one_case_from_the_command_line(tmp_path, capsys):
    from benchmarks import kernels

    code = kernels.main(
        [
            "--device",
            "cpu",
            "--only",
            "^32x2 float32 forward",
            "--no-compile",
            "--minutes",
            "0.01",
            "--out",
            str(tmp_path),
        ]
    )
    assert code == 0
    assert "ours, float phi" in capsys.readouterr().out
    record = json.loads((tmp_path / "kernels-cpu-part.json").read_text())
    names = {(line["direction"], line["contender"]) for line in record["results"]}
    assert {
        ("forward", "eager"),
        ("forward+backward", "floor: add(s, t)"),
        ("forward+backward", "our fallback"),
    } <= names
    assert all(line["failure"] is None for line in record["results"])
    assert "| aim | met | measured |" in (tmp_path / "kernels-cpu-part.md").read_text()
    assert not (tmp_path / "kernels-cpu.md").exists()  # a part never replaces a whole run


def test_names_of_kernels_and_instruction_counts():
    from benchmarks import resources

    same = "_ZN3akd4cuda14forward_kernelI13__nv_bfloat16S2_Li8ELNS0_4PathE0EEEvNS0_4WorkE"
    mixed = "_ZN3akd4cuda14forward_kernelIf6__halfLi4ELNS0_4PathE2EEEvNS0_4WorkE"
    masked = "_ZN3akd4cuda14forward_kernelIffLi4ELNS0_4PathE1EEEvNS0_4WorkE"
    assert resources.readable(same) == "forward bf16 x bf16, 8 elements"
    assert resources.readable(mixed) == "forward fp32 x fp16, 4 elements, rows"
    assert resources.readable(masked) == "forward fp32 x fp32, 4 elements, mask"
    sass = "Function : k\n /*0010*/ LDG.E.128.CONSTANT R4, desc[UR4] ;\n /*0020*/ LDG.E.U8 R4 ;\n /*0030*/ STG.E.128 desc ;\n"
    assert resources.instructions(sass)["k"] == {"LDG.E.128": 1, "STG.E.128": 1, "LDG": 1, "STG": 0, "LDL": 0, "STL": 0}
