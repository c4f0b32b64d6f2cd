"""torchdistill's own GLUE script runs a generated YAML: a clone of torchdistill is named by AKD_EXT_TORCHDISTILL_CLONE.

What the script takes from the Hugging Face hub, the data set and the metric, is put in its place here; the script
itself is untouched.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from text_fixture import make_model, sentences

pytest.importorskip("torchdistill", reason="runs torchdistill's script: pip install '.[test]'")

import text_fixture

from akd_ext.train.config.document import YamlTree

CLONE = os.environ.get("AKD_EXT_TORCHDISTILL_CLONE")
SCRIPT = "examples/hf_transformers/general_language_understanding.py"

# The script reads these from the hub; everything else is its own.
STAND_IN = """
import json, runpy, sys
import datasets, evaluate
from akd_ext.train.tasks.text.metrics import compute
rows, script, metric, classes = json.loads(sys.argv.pop(1)), *(sys.argv.pop(1) for _ in range(3))
label = datasets.ClassLabel(names=classes.split(",")) if classes else datasets.Value("float32")
features = datasets.Features({**{k: datasets.Value("string") for k in rows["train"][0] if k != "label"}, "label": label})
made = datasets.DatasetDict({k: datasets.Dataset.from_list(v, features=features) for k, v in rows.items()})
datasets.load_dataset = lambda *args, **kwargs: made
class Metric:
    def __init__(self): self.p, self.r = [], []
    def add_batch(self, predictions, references): self.p += predictions.tolist(); self.r += references.tolist()
    def compute(self):
        # a value above 0, so that the script saves a checkpoint whatever a tiny model learns
        found = {k: 1.0 + v for k, v in compute([metric], self.p, self.r).items()}
        self.__init__()
        return found
evaluate.load = lambda *args, **kwargs: Metric()
sys.argv[0] = script
sys.path.insert(0, script.rpartition("/")[0])
runpy.run_path(script, run_name="__main__")
"""


@pytest.mark.skipif(not CLONE, reason="AKD_EXT_TORCHDISTILL_CLONE does not name a clone of torchdistill")
@pytest.mark.parametrize("task, classes, metric", [("cola", "unacceptable,acceptable", "accuracy"),
                                                   ("stsb", "", "pearson")])  # fmt: skip
def test_the_script_trains_both_stages_and_hands_the_best_over(tmp_path, task, classes, metric):
    for package in ("transformers", "accelerate", "datasets", "evaluate", "pandas"):
        pytest.importorskip(package, reason="torchdistill's GLUE script needs it: its requirements.txt")
    labels = 2 if classes else 1
    teacher = make_model(tmp_path / "teacher", num_labels=labels, layers=3)
    student = make_model(tmp_path / "student", num_labels=labels, seed=1)
    out = tmp_path / "out" / "checkpoint"
    (tmp_path / "run.yaml").write_text(text_fixture.bert_small("annealing_kd", task))
    tree = YamlTree(str(tmp_path / "run.yaml"))
    for role, path in (("teacher_model", teacher), ("student_model", student)):
        for part in ("config", "tokenizer", "model"):
            tree.set(f"models.{role}.{part}_kwargs.pretrained_model_name_or_path", path)
    tree.set("models.student_model.dst_ckpt", str(out))
    tree.set("train.stage2.student.src_folder", str(out))
    cache = "train.stage1.train_data_loader.dataset_wrapper.kwargs.cache_dir"
    tree.set(cache, str(tmp_path / "cache"))
    for stage in ("stage1", "stage2"):
        tree.set(f"train.{stage}.num_epochs", 2)
    tree.set("train.stage1.criterion.kwargs.sub_terms.annealing_kd.criterion.kwargs.tau_max", 2)
    (tmp_path / "run.yaml").write_text(tree.dump())

    def rows(n, seed, hidden=False):
        made = sentences(n, seed)
        texts = [{"sentence1": text, "sentence2": "good"} if task == "stsb" else {"sentence": text} for text, _ in made]
        return [{**t, "label": -1 if hidden else y} for t, (_, y) in zip(texts, made, strict=True)]

    data = {"train": rows(40, 1), "validation": rows(16, 2), "test": rows(4, 3, hidden=True)}
    arguments = ["--config", str(tmp_path / "run.yaml"), "--task_name", task, "--seed", "0",
                 "--private_output", str(tmp_path / "private")]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", STAND_IN, json.dumps(data), str(Path(CLONE) / SCRIPT), metric, classes, *arguments],
        capture_output=True, text=True, cwd=tmp_path, timeout=300, env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    said = done.stdout + done.stderr
    assert "has no use_fp16, which torchdistill reads: added to Accelerator and AcceleratorState" in said
    assert len(list((tmp_path / "cache").iterdir())) == 1
    assert f"stage 2 starts from {out}/model.safetensors" in said
    assert "Phi = 0.5000" in said and "Phi = 1.0000" in said
    assert len((tmp_path / "private" / ("CoLA.tsv" if task == "cola" else "STS-B.tsv")).read_text().splitlines()) == 5
