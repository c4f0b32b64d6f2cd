"""``python -m benchmarks.gpu_suite`` without a GPU, and the parts of it that can be tried without one."""

import json
import os
import subprocess
import sys

import pytest
from places import ROOT


@pytest.fixture
def gpu_suite(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks import gpu_suite

    return gpu_suite


@pytest.mark.integration
def test_without_a_device_it_says_so_and_fails(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu_suite", "--out", str(tmp_path)], cwd=ROOT, capture_output=True, text=True,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    assert done.returncode == 2
    assert "not run" in done.stderr and "CUDA" in done.stderr
    outcomes = json.loads((tmp_path / "suite.json").read_text())
    assert outcomes.pop("of").endswith(" on none")
    assert {outcome["status"] for outcome in outcomes.values()} == {"not run"}
    assert set(outcomes) >= {"build", "tests", "memcheck", "racecheck", "kernels", "dram", "experiment"}
    assert (tmp_path / "suite.md").read_text().count("| not run |") == len(outcomes)


def test_an_unknown_part_is_an_error(gpu_suite, tmp_path):
    with pytest.raises(SystemExit) as stopped:
        gpu_suite.main(["--parts", "tests,nonsense", "--out", str(tmp_path)])
    assert stopped.value.code == 2


def test_a_data_folder_without_cifar_10_is_an_error(gpu_suite, tmp_path):
    with pytest.raises(SystemExit) as stopped:
        gpu_suite.main(["--data_dir", str(tmp_path), "--out", str(tmp_path)])
    assert stopped.value.code == 2


def test_the_experiment_is_cifar_where_the_data_is(gpu_suite, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_suite.importlib.util, "find_spec", lambda name: True)
    calls = []
    for data_dir in (None, tmp_path):
        suite = gpu_suite.Suite(tmp_path, 1, data_dir)
        suite.call = lambda name, command, limit: calls.append(command) or (0, "done")
        gpu_suite.experiment(suite)
    assert "digits" in calls[0] and "cifar10-resnet" in calls[1] and str(tmp_path) in calls[1]


def test_results_are_written_part_by_part(gpu_suite, tmp_path):
    suite = gpu_suite.Suite(tmp_path, minutes=1)
    suite.part("first", lambda: gpu_suite.Outcome("passed", "fine"))
    assert json.loads((tmp_path / "suite.json").read_text())["first"]["status"] == "passed"
    suite.part("second", lambda: 1 / 0)
    suite.part("third", lambda: gpu_suite.Outcome("passed", "never"), needs=("second",))
    suite.part("fourth", lambda: gpu_suite.Outcome("passed", "never"), least=3600)
    outcomes = {
        name: o["status"] for name, o in json.loads((tmp_path / "suite.json").read_text()).items() if name != "of"
    }
    assert outcomes == {"first": "passed", "second": "failed", "third": "not run", "fourth": "not run"}
    assert "ZeroDivisionError" in (tmp_path / "suite.md").read_text()


def test_a_command_over_its_limit_is_stopped(gpu_suite, tmp_path):
    suite = gpu_suite.Suite(tmp_path, minutes=1)
    code, text = suite.call(
        "sleep", [sys.executable, "-c", "print('begun', flush=True); import time; time.sleep(60)"], 3
    )
    assert code is None
    assert gpu_suite.verdict(code, text).status == "failed"
    assert suite.left() > 30


def test_a_missing_sanitizer_is_reported(gpu_suite, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_suite.shutil, "which", lambda name: None)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    outcome = gpu_suite.sanitizer(gpu_suite.Suite(tmp_path, minutes=1), "memcheck")
    assert outcome.status == "not run" and "compute-sanitizer" in outcome.text


def test_dram_rows_of_a_profile(gpu_suite):
    text = (
        "==PROF== Connected\ncase\t8x8 float32 forward\t200\ncase\t8x8 float32 loss and gradient\t300\n"
        '"ID","Kernel Name","Metric Name","Metric Unit","Metric Value"\n'
        '"0","forward_kernel","dram__bytes_read.sum","byte","1,205"\n"0","forward_kernel","dram__bytes_write.sum","byte","3"\n'
        '"1","forward_kernel","dram__bytes_read.sum","byte","206"\n"1","forward_kernel","dram__bytes_write.sum","byte","99"\n'
    )
    assert gpu_suite.dram_rows(text) == [
        ("8x8 float32 forward", 1205.0, 3.0, 200.0),
        ("8x8 float32 loss and gradient", 206.0, 99.0, 300.0),
    ]
    assert gpu_suite.dram_rows("nothing was profiled") == []


def test_a_second_run_goes_on_where_the_first_one_was_cut_short(gpu_suite, tmp_path, monkeypatch):
    """Whole main() with the device faked: a part crashes, one runs out of time; started again only those run."""
    monkeypatch.setattr(gpu_suite.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu_suite.torch.cuda, "get_device_name", lambda index: "a fake")
    ran = []

    def part(name, outcome):
        return name, lambda suite: ran.append(name) or outcome(), 0, ()

    fine = lambda: gpu_suite.Outcome("passed", "fine")  # noqa: E731
    first = [part("build", fine), part("tests", lambda: 1 / 0), ("kernels", lambda suite: fine(), 3600.0, ())]
    monkeypatch.setattr(gpu_suite, "PARTS", tuple(first))
    assert gpu_suite.main(["--out", str(tmp_path), "--minutes", "1"]) == 1
    assert ran == ["build", "tests"]
    monkeypatch.setattr(gpu_suite, "PARTS", (part("build", fine), part("tests", fine), part("kernels", fine)))
    assert gpu_suite.main(["--out", str(tmp_path), "--minutes", "1"]) == 0
    assert ran == ["build", "tests", "tests", "kernels"]
    monkeypatch.setattr(gpu_suite.torch.cuda, "get_device_name", lambda index: "another one")
    assert gpu_suite.main(["--out", str(tmp_path), "--minutes", "1"]) == 0
    assert ran[4:] == ["build", "tests", "kernels"]


def test_what_is_measured_is_shown_beside_the_prediction(gpu_suite, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_suite.torch.cuda, "get_device_name", lambda index: "NVIDIA H100 80GB HBM3")
    monkeypatch.setattr(gpu_suite, "PREDICTION", tmp_path / "prediction.json")
    case = {"shape": [256, 1000], "dtype": "bfloat16"}
    guess = {
        "gpu": "H100",
        "kernel": "masked",
        "dtype": "bf16",
        "shape": [256, 1000],
        "seconds": 4e-6,
        "bound": "launches",
    }
    (tmp_path / "prediction.json").write_text(json.dumps([guess]))
    record = case | {"direction": "masked", "contender": "ours, float phi", "median_seconds": 6e-6}
    (tmp_path / "kernels-cuda-part.json").write_text(json.dumps({"results": [record]}))
    gpu_suite.beside_the_prediction(gpu_suite.Suite(tmp_path, 1))
    assert "| 256x1000 bf16 masked | 6.0 | 4.0 | 1.50 | launches |" in (tmp_path / "predicted.md").read_text()


def test_the_first_parts_fit_in_eight_minutes(gpu_suite, tmp_path, monkeypatch):
    """Each stopped at its limit; the tests' own limits are shares of the time that is left."""
    limits = {}
    suite = gpu_suite.Suite(tmp_path, minutes=25)
    suite.call = lambda name, command, limit, **environment: limits.setdefault(name, limit) and (1, "stopped")
    for name, run, *_ in gpu_suite.PARTS[:5]:
        suite.part(name, lambda run=run: run(suite))
    assert set(limits) == {"build", "rows", "linear", "kernels_quick", "numerics"}
    assert sum(limits.values()) <= gpu_suite.FIRST_MINUTES * 60


@pytest.mark.integration
@pytest.mark.parametrize("part", ["rows", "linear", "amp", "two_gpus", "adapters", "numerics"])
def test_a_part_runs_with_a_cpu_in_the_place_of_the_gpu(gpu_suite, tmp_path, monkeypatch, part):
    """Two processes over gloo stand in for two GPUs; of the adapters' tests one file is tried."""
    monkeypatch.setattr(gpu_suite, "DEVICE", "cpu")
    monkeypatch.setattr(gpu_suite, "ADAPTER_TESTS", "tests/adapters/test_adapters.py")
    monkeypatch.setattr(gpu_suite, "SANITIZED", ("tests/op/test_op_layouts.py",))
    monkeypatch.setattr(gpu_suite.torch.cuda, "device_count", lambda: 2)
    run = next(run for name, run, *_ in gpu_suite.PARTS if name == part)
    outcome = run(gpu_suite.Suite(tmp_path, minutes=5))
    assert outcome.status == "passed", outcome.text + (tmp_path / f"{part}.log").read_text()


def test_two_gpus_need_two(gpu_suite, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_suite.torch.cuda, "device_count", lambda: 1)
    outcome = gpu_suite.two_gpus(gpu_suite.Suite(tmp_path, minutes=1))
    assert outcome.status == "not run" and "takes two" in outcome.text


def test_instructions_of_a_trip_are_counted_on_the_shortest_way_that_does_all_of_it():
    """Not the whole code between the loop's ends, nor ways that leave out a load, a product or a store."""
    from benchmarks import sass

    words = [
        "MOV R0", "LDG.E.128 R4", "@P0 BRA 0xa0", "LDG.E.128 R8", "FMUL R4", "@P1 BRA 0x0", "FMUL R5", "STG.E.128 R4",
        "@P2 BRA 0x0", "EXIT", "FADD R1", "FADD R2", "BRA 0x0",
    ]  # fmt: skip
    text = "Function : k\n" + "".join(f" /*{16 * i:04x}*/ {word} ;\n" for i, word in enumerate(words))
    code = sass.functions(text)["k"]
    assert sass.trip(code, loads=2, stores=1, products=2) == 9
    assert sass.trip(code, loads=2, stores=0, products=1) == 6
    assert sass.trip(code, loads=1, stores=0, products=0) == 6
    assert sass.trip(code, loads=2, stores=1, products=3) == 0


def test_the_prediction_cuts_as_the_kernel_does():
    from benchmarks import prediction

    assert prediction.cut(100_000, 4) == (25, 25)
    assert prediction.cut(8192 * 128256, 8) == (128256, 8016)
    h100, kernel = prediction.GPUS[0], prediction.Kernel(56, {"forward+backward": 100})
    large = prediction.predict(h100, kernel, (8192, 128256), 2, "forward+backward")
    assert large["bound"] == "memory" and 0.9 < large["fraction_of_dram_peak"] < 0.92
    starved = prediction.predict(h100, kernel, (256, 1000), 4, "forward+backward")
    assert starved["fraction_of_dram_peak"] < 0.3
