"""Threads, forks, workers: a race, a leak or a stale cache would show here as wrong bits, a crash or a hang."""

import copy
import os
import pickle
import signal
import sys
import threading
from pathlib import Path

import pytest
import torch
from places import SUPPORT
from subject_process import run
from torch.utils.data import DataLoader, Dataset

from akd_ext import AnnealingKDLoss, AnnealingSchedule, annealed_mse_loss

# Long enough for several blocks, so that the kernel's own threads run as well.
LENGTH = 3 * 16384 + 7


def case(seed, device="cpu"):
    generator = torch.Generator().manual_seed(seed)
    dtype = (torch.float32, torch.bfloat16, torch.float16, torch.float64)[seed % 4]
    student, teacher = (torch.randn(7, LENGTH // 7, generator=generator).to(device, dtype) for _ in "st")
    return student.requires_grad_(), teacher, (seed % 10) / 10


def answer(seed, device="cpu"):
    student, teacher, phi = case(seed, device)
    student = student.detach().clone().requires_grad_()
    loss = annealed_mse_loss(student, teacher, phi)
    (gradient,) = torch.autograd.grad(3 * loss, student)
    return loss.detach().cpu(), gradient.cpu()


def equal(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_eight_threads_at_once(device):
    """Different problems at the same time, forward and backward; all as if each had been alone."""
    expected = [answer(seed, device) for seed in range(8)]
    wrong, start = [], threading.Barrier(8)

    def work(seed):
        try:
            start.wait()
            for _ in range(25):
                if not equal(answer(seed, device), expected[seed]):
                    wrong.append(f"seed {seed}: other bits")
        except Exception as error:
            wrong.append(f"seed {seed}: {error!r}")

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.integration
def test_first_call_from_eight_threads():
    """The choice of the instruction set happens in the first call: here it is made eight times at once."""
    code = (
        "import threading, torch, akd_ext\n"
        "start, losses = threading.Barrier(8), []\n"
        "def work():\n"
        "    s, t = torch.ones(100, 1000), torch.zeros(100, 1000)\n"
        "    start.wait()\n"
        "    losses.append(akd_ext.annealed_mse_loss(s, t, 0.5).item())\n"
        "threads = [threading.Thread(target=work) for _ in range(8)]\n"
        "[t.start() for t in threads]; [t.join() for t in threads]\n"
        "assert losses == [1.0] * 8, losses\n"
    )
    run(["-c", code], OMP_NUM_THREADS="2")


def test_one_student_and_teacher_shared_by_threads(device):
    """Data-parallel style: the threads' backward passes all add into one leaf."""
    student = torch.randn(64, 10, device=device, requires_grad=True)
    teacher = torch.randn(64, 10, device=device)
    (unit,) = torch.autograd.grad(annealed_mse_loss(student, teacher, 0.5), student)
    losses = [annealed_mse_loss(student, teacher, 0.5) for _ in range(8)]
    threads = [threading.Thread(target=loss.backward) for loss in losses]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    torch.testing.assert_close(student.grad, 8 * unit)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("used_before", [False, True])
def test_fork_after_import(used_before):
    """The child of a process that has imported, and perhaps used, the kernels gets the same bits and does not hang.

    With used_before, the parent's thread pool exists when it forks: PyTorch itself then needs one thread in the child.
    """
    expected = (
        pickle.dumps([t.view(torch.uint8).tolist() for t in (x.flatten() for x in answer(3))]) if used_before else None
    )
    torch.set_num_threads(torch.get_num_threads())
    child = os.fork()
    if child == 0:
        status = 1
        try:
            torch.set_num_threads(1)
            signal.alarm(60)
            got = pickle.dumps([t.view(torch.uint8).tolist() for t in (x.flatten() for x in answer(3))])
            status = 0 if expected in (None, got) else 2
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    assert not os.WIFSIGNALED(status), f"the child died of signal {os.WTERMSIG(status)}"
    assert os.WEXITSTATUS(status) == 0


class Losses(Dataset):
    """Computes the loss inside the worker process."""

    def __init__(self):
        self.criterion = AnnealingKDLoss(10)
        self.schedule = AnnealingSchedule(10, 16)

    def __len__(self):
        return 16

    def __getitem__(self, index):
        self.criterion.set_temperature(self.schedule.temperature(index))
        student, teacher, _ = case(index)
        (gradient,) = torch.autograd.grad(self.criterion(student, teacher), student)
        return self.criterion(student.detach(), teacher).double(), gradient.double().sum()


@pytest.mark.integration
@pytest.mark.parametrize("start", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_data_loader_workers(start):
    """The criterion and the schedule travel to the workers (by pickle when spawned) and work there."""
    if start == "spawn":
        losses_in_workers(start)
    elif hasattr(
        os, "fork"
    ):  # from a process in which no test before has started autograd's threads: they do not survive
        paths = [str(Path(__file__).parent), str(SUPPORT)]
        run(["-c", f"import sys; sys.path[:0] = {paths!r}; import test_robustness as t; t.losses_in_workers('fork')"])
    else:
        pytest.skip("no fork on this platform")


def losses_in_workers(start):
    dataset = Losses()
    expected = [dataset[index] for index in range(16)]
    loader = DataLoader(dataset, batch_size=4, num_workers=1 if start == "spawn" else 2, multiprocessing_context=start)
    losses, sums = (torch.cat(column) for column in zip(*loader, strict=True))
    assert torch.equal(losses, torch.stack([loss for loss, _ in expected]))
    torch.testing.assert_close(sums, torch.stack([total for _, total in expected]))


@pytest.mark.integration
def test_many_calls_do_not_grow_the_process():
    """A thousand megabytes of gradients come and go; what stays is less than a tenth."""
    resource = pytest.importorskip("resource")
    student, teacher = torch.randn(500, 1000, requires_grad=True), torch.randn(500, 1000)

    def steps(count):
        for _ in range(count):
            loss = annealed_mse_loss(student, teacher, 0.5)
            (3 * loss).backward(retain_graph=True)
            torch.autograd.grad(loss, student)
            student.grad = None

    steps(5)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    steps(250)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before  # KiB on Linux
    assert grown < 100 * 1024


@pytest.mark.integration
def test_a_loss_without_backward_frees_its_gradient():
    resource = pytest.importorskip("resource")
    student, teacher = torch.randn(500, 1000, requires_grad=True), torch.randn(500, 1000)
    for _ in range(5):
        annealed_mse_loss(student, teacher, 0.5)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(250):
        annealed_mse_loss(student, teacher, 0.5)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024


def test_deepcopy_of_a_model_in_the_middle_of_training():
    model = torch.nn.ModuleDict({"student": torch.nn.Linear(3, 2), "criterion": AnnealingKDLoss(4)})
    x, teacher = torch.randn(5, 3), torch.randn(5, 2)
    model["criterion"](model["student"](x), teacher).backward()
    twin = copy.deepcopy(model)
    for each in (model, twin):
        each.zero_grad()
        each["criterion"](each["student"](x), teacher).backward()
    assert torch.equal(model["student"].weight.grad, twin["student"].weight.grad)


@pytest.mark.integration
def test_distributed_data_parallel(tmp_path):
    """Two processes over gloo: the averaged gradient is that of the whole batch."""
    script = tmp_path / "ddp.py"
    script.write_text(
        "import os, sys, torch, torch.distributed as dist, torch.multiprocessing as mp\n"
        "from akd_ext import AnnealingKDLoss\n"
        "def work(rank, init):\n"
        "    dist.init_process_group('gloo', init_method=init, rank=rank, world_size=2)\n"
        "    torch.manual_seed(0)\n"
        "    layer, x, teacher = torch.nn.Linear(4, 3), torch.randn(8, 4), torch.randn(8, 3)\n"
        "    criterion = AnnealingKDLoss(4)\n"
        "    model = torch.nn.parallel.DistributedDataParallel(layer)\n"
        "    part = slice(4 * rank, 4 * rank + 4)\n"
        "    criterion(model(x[part]), teacher[part]).backward()\n"
        "    got = layer.weight.grad.clone(); layer.zero_grad()\n"
        "    criterion(layer(x), teacher).backward()\n"
        "    torch.testing.assert_close(got, layer.weight.grad)\n"
        "    dist.destroy_process_group()\n"
        "if __name__ == '__main__':\n"
        "    mp.start_processes(work, (sys.argv[1],), nprocs=2, start_method='fork')\n"
    )
    run([str(script), f"file://{tmp_path}/init"], OMP_NUM_THREADS="1")
