"""akd-train in two processes: what is written, what is measured, and how it ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from places import ROOT, SUPPORT, TINY

pytest.importorskip("torchdistill", reason="akd-train runs torchdistill's boxes; pip install '.[experiments]'")

from two_processes import in_two_processes

pytestmark = pytest.mark.integration

# 47 samples in batches of 2 x 16: the last step has 15; 29 and 23 to measure, so that no half is the other's.
SIZES = [f"--set=datasets.tiny/{split}.init.kwargs.size={n}" for split, n in (("train", 47), ("val", 29), ("test", 23))]
# In per cent. The tiny student's scores are so alike that float32, whose sums depend on the padding and on who adds what,
# shows in the fourth digit; a correlation of one half of the 15 sentences is another by units.
CORRELATION = 0.01
CACHED = [
    "--set=dependencies=[train_fixture, akd_ext.torchdistill]",
    "--set=train.stage1.pre_epoch_process=annealing_pre_epoch_process",
    "--set=train.stage2.pre_epoch_process=annealing_pre_epoch_process",
    "--set=train.stage1.teacher.forward_proc=cached_forward",  # and, by its alias, that of stage 2
]


def tiny(folder, *more, out="out"):
    return ["--config", TINY, "--device", "cpu", "--seed", "0", "--quiet", "--output_dir", str(Path(folder) / out),
            f"--set=models.teacher_model.src_ckpt={folder}/teacher.pt", *SIZES, *more]  # fmt: skip


def read(folder):
    return json.loads((Path(folder) / "results.json").read_text())


def weights(folder, name="last"):
    from safetensors.torch import load_file

    return load_file(Path(folder) / f"{name}.safetensors")


@pytest.fixture
def teacher(tmp_path):
    import train_fixture

    torch.manual_seed(0)
    torch.save(train_fixture.tiny_net(width=8).state_dict(), tmp_path / "teacher.pt")


# ---- in the two processes -------------------------------------------------------------------------------------------


def akd_train(folder, number, *arguments):
    """Run ``number`` of akd-train, in which the two processes meet without a launcher."""
    from akd_ext.train.cli import main

    assert main([*arguments, "--dist_url", f"file://{folder}/meeting-{number}"]) == 0


def alone_images(rank, folder):
    from akd_ext.train import build
    from akd_ext.train import trainer as run

    run.draw_curves = lambda *args: None
    seen, first = 0, []

    def teacher_ran(module, inputs):
        nonlocal seen
        seen += len(inputs[0]) if torch.is_inference_mode_enabled() else 0  # no test, no random samples

    original = build.ImageClassification.prepare

    def prepare(*args):
        teacher, student = original(*args)
        teacher.register_forward_pre_hook(teacher_ran)
        first.append(torch.cat([p.flatten() for p in student.parameters()]).tolist())
        return teacher, student

    build.ImageClassification.prepare = prepare
    akd_train(folder, 1, *tiny(folder))
    akd_train(folder, 2, *tiny(folder, out="again"))
    assert first[0] == first[1]
    drawn = torch.rand(4).tolist()  # after a run the random numbers are each process's own
    Path(folder, f"seen-{rank}").write_text(json.dumps([first[0], drawn]))

    akd_train(folder, 3, *tiny(folder, *CACHED, "--set=train.stage1.train_data_loader.dataset_wrapper={key: IndexedDatasetWrapper}",
                               out="memory"))  # fmt: skip
    assert seen == 24 - rank  # half of the 47 samples, once
    seen = 0
    wrapper = f"{{key: IndexedDatasetWrapper, kwargs: {{cache_dir: {folder}/cache}}}}"
    akd_train(
        folder, 4, *tiny(folder, *CACHED, f"--set=train.stage1.train_data_loader.dataset_wrapper={wrapper}", out="file")
    )
    Path(folder, f"built-{rank}").write_text(str(seen))


def alone_text(rank, folder):
    import text_fixture
    from text_fixture import make_model, write_stsb

    from akd_ext.train import trainer as run

    run.draw_curves = lambda *args: None
    folder = Path(folder)
    if rank == 0:
        make_model(folder / "teacher", num_labels=1, layers=3)
        make_model(folder / "student", num_labels=1, seed=1)
        write_stsb(folder / "glue", train=21, dev=15)
        (folder / "text.yaml").write_text(text_fixture.bert_small("annealing_kd", "stsb"))
    meet = f"file://{folder}/meeting-files"
    torch.distributed.init_process_group("gloo", init_method=meet, rank=rank, world_size=2)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    akd_train(folder, "text", *text(folder))


def text(folder, *more, out="out"):
    return ["--config", f"{folder}/text.yaml", "--glue_dir", f"{folder}/glue", "--device", "cpu", "--seed", "0",
            "--teacher", f"{folder}/teacher", "--student", f"{folder}/student", "--output_dir", f"{folder}/{out}",
            "--set=train.stage1.num_epochs=2", "--set=train.stage2.num_epochs=1", "--length_buckets", "--quiet",
            "--set=train.stage1.train_data_loader.kwargs.batch_size=4", *more,
            "--set=train.stage1.optimizer.kwargs.lr=0.01", "--private_output", f"{folder}/private",
            f"--set=train.stage1.train_data_loader.dataset_wrapper.kwargs.cache_dir={folder}/cache"]  # fmt: skip


# ---- the tests ------------------------------------------------------------------------------------------------------


def test_images(tmp_path, teacher):
    in_two_processes(__file__, "alone_images", tmp_path, tmp_path)
    out = tmp_path / "out"
    assert sorted(path.name for path in out.iterdir()) == [
        "best.safetensors", "checkpoint.pt", "config.yaml", "last.safetensors", "results.json", "resume", "train.log",
    ]  # fmt: skip
    results = read(out)
    assert results["complete"]
    for entry in results["epochs"]:  # of 29 samples, each once
        assert entry["val_accuracy"] in [100 * n / 29 for n in range(30)]

    (first, drawn), (other, drawn_there) = (json.loads((tmp_path / f"seen-{i}").read_text()) for i in (0, 1))
    assert first == other  # the same student to begin with
    assert drawn != drawn_there
    one, same = weights(out), weights(tmp_path / "again")
    assert all(torch.equal(one[key], same[key]) for key in one)

    # A teacher that is looked up teaches what one that runs does; its logits came in other batches, hence the rounding.
    memory, file = read(tmp_path / "memory"), read(tmp_path / "file")
    for entry, looked_up in zip(memory["epochs"], file["epochs"], strict=True):
        assert looked_up["train_loss"] == pytest.approx(entry["train_loss"], rel=1e-5)
    assert sorted(int((tmp_path / f"built-{i}").read_text()) for i in (0, 1)) == [0, 47]  # one built, one waited
    assert len(list((tmp_path / "cache").iterdir())) == 1

    from akd_ext.train.cli import main

    assert main(tiny(tmp_path, "-test_only")) == 0  # one process measures the same with what two have saved
    alone = json.loads((out / "test.json").read_text())
    assert alone["student"] == results["best"]["test_accuracy"]
    assert alone["teacher"] == results["teacher"]["test_accuracy"]


def test_text(tmp_path):
    pytest.importorskip("transformers", reason="akd-train on text needs it: pip install '.[glue]'")
    in_two_processes(__file__, "alone_text", tmp_path, tmp_path)
    results = read(tmp_path / "out")
    answers = {path.name: path.read_text() for path in (tmp_path / "private").iterdir()}
    assert results["complete"] and len(answers) == 1

    from akd_ext.train.cli import main

    assert main(text(tmp_path, "-test_only")) == 0  # Pearson's correlation is no average of two
    alone = json.loads((tmp_path / "out" / "test.json").read_text())
    assert alone["student"] == pytest.approx(results["best"]["test_accuracy"], abs=CORRELATION)
    assert {path.name: path.read_text() for path in (tmp_path / "private").iterdir()} == answers


def test_when_one_fails_the_other_ends_at_once(tmp_path, teacher):
    """torchrun; the second process has a disk on fire when the first has begun to train."""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{SUPPORT}", "OMP_NUM_THREADS": "1"}
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc_per_node",
        "2",
        "-m",
        "akd_ext.train.cli",
    ]
    broken = "--set=train.stage1.pre_epoch_process=fails_in_the_second_process"
    done = subprocess.run(
        [*command, *tiny(tmp_path, broken)], capture_output=True, text=True, timeout=200, env=environment
    )
    assert done.returncode == 1
    assert "akd-train: error: process 1: RuntimeError: the disk is on fire" in done.stderr
    assert not (tmp_path / "out" / "last.safetensors").exists()


def test_refusals(tmp_path, teacher, capsys, monkeypatch):
    from akd_ext.train.cli import main
    from akd_ext.train.distributed import sampler as shares
    from akd_ext.train.system.errors import ConfigError

    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(tiny(tmp_path, "--dist_url", "nowhere://")) == 2
    assert "error: process 1: --dist_url nowhere://: the 2 processes did not meet" in capsys.readouterr().err
    monkeypatch.setattr(shares, "is_distributed", lambda: True)
    loader = {"batch_sampler": {"key": "Grouped"}, "kwargs": {}}
    for stage, name in (({"student": {"auxiliary_model_wrapper": {"key": "X"}}}, "auxiliary_model_wrapper"),
                        ({"train_data_loader": loader}, "batch_sampler 'Grouped'")):  # fmt: skip
        with pytest.raises(ConfigError, match=f"{name}.*: it needs one process"):
            shares.distribute_loaders({"train": stage}, seed=0)
