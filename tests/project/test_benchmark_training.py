"""benchmarks.training runs both loops over the same stages, and its arithmetic is right."""

import logging
import multiprocessing
import threading

import pytest
from places import ROOT

pytest.importorskip("torchdistill", reason="it runs torchdistill's boxes: pip install '.[test]'")
pytest.importorskip("torchvision.datasets", reason="torchdistill needs torchvision: pip install '.[test]'")

import torch
from cifar_fixture import write_cifar


@pytest.fixture(autouse=True)
def _benchmarks_can_be_imported(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))


@pytest.fixture
def ask(tmp_path, monkeypatch):
    """Sends requests to a server that is a thread here, which therefore sees the small CIFAR."""
    from benchmarks.training_loops import PLAIN, Options, serve

    write_cifar(tmp_path, monkeypatch)
    monkeypatch.setattr(logging, "disable", lambda level: None)
    options = Options(str(tmp_path), str(tmp_path / "cache"), None, 8, 16, torch.get_num_threads())
    here, there = multiprocessing.Pipe()
    server = threading.Thread(target=serve, args=(there, PLAIN, options))
    server.start()

    def request(*what):
        here.send(what)
        answer = here.recv()
        if isinstance(answer, Exception):
            raise answer
        return answer

    yield request
    here.send(None)
    server.join()


@pytest.mark.integration
def test_every_loop_runs_every_case(ask, tmp_path, monkeypatch):
    from torchdistill.models.classification.resnet import ResNet4Cifar

    from benchmarks.training_loops import CASES, OURS, PLAIN, SKIPPED

    teacher_runs = []
    forward = ResNet4Cifar.forward
    monkeypatch.setattr(ResNet4Cifar, "forward", lambda self, x: (teacher_runs.append(1), forward(self, x))[1])
    for case in CASES:
        for name in (PLAIN, OURS) if case.stage == 1 else (PLAIN, SKIPPED, OURS):
            prepared = ask(name, case, 0)
            assert prepared[1:] == (0, 4)  # 60 images in batches of 16
            teacher_runs.clear()
            seconds, images, epoch_steps = ask(name, case, 3)
            assert seconds > 0
            # Batches 6, 7 and 8 of epochs of 16, 16, 16 and 12 images.
            assert (images, epoch_steps) == (16 + 16 + 12, 4)
            # frozen_forward runs a copy: the teacher itself is traced once and compared once.
            is_frozen = name == OURS and case.stage == 1 and case.augment
            assert len(teacher_runs) == (8 if name == PLAIN else 2 if is_frozen else 0)
    assert list((tmp_path / "cache").glob("*.safetensors"))


def test_an_error_comes_back_with_the_case(ask):
    from benchmarks.training_loops import PLAIN, Case

    with pytest.raises(RuntimeError, match="torchdistill, stage III, without augmentation: KeyError"):
        ask(PLAIN, Case(3, False), 0)


def made_up():
    from benchmarks.training import CASES, OURS, PLAIN, SKIPPED, Samples

    # Ours takes 1, 2 and 4 s a step; torchdistill's loop 13 times as long, in stage II once as long.
    results = {}
    for case in CASES:
        times = {PLAIN: 13.0, OURS: 1.0} if case.stage == 1 else {PLAIN: 13.0, SKIPPED: 1.0, OURS: 1.0}
        results[case] = {
            name: Samples([t, 2 * t, 4 * t], [128 / t, 64 / t, 32 / t], 10) for name, t in times.items()
        }  # fmt: skip
    return results


def test_ratios_epochs_and_aims():
    from benchmarks import training

    results = made_up()
    row = results[training.STAGE_1]
    assert training.ratios(row, training.PLAIN) == (13.0, 13.0, 13.0)  # within the rounds, though they differ by four
    assert row[training.OURS].epoch == 20.0  # ten steps of 2 s
    assert training.whole_run(results, fill=120.0) == (20 * 260.0, 120.0 + 20 * 20.0)
    verdicts = [met for _, met, _ in training.aims(results, 120.0, [4.0, 11.0])]
    assert verdicts == [True, True, False, False, False]


def test_the_report_says_what_was_measured():
    from benchmarks import training

    results, facts = made_up(), {"date": "today"}
    text = "\n".join(training.markdown(results, 120.0, [4.0], facts, ["busy"], 60))
    assert "20 epochs of stage I, without augmentation take 5200 s in torchdistill's loop and 520 s in ours" in text
    assert "**10.0 times** less" in text
    assert "| ours | 64 [48, 96] | 20.0 |  |" in text
    record = training.as_record(results, 120.0, [4.0], facts, ["busy"])
    assert len(record["results"]) == 10
    assert record["results"][0]["ours_is_faster_by"] == (13.0, 13.0, 13.0)
