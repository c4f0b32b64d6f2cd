"""Two processes (DistributedDataParallel over gloo) make the update of one: the head is used inside the student's forward."""

import os

import pytest
import torch
from two_processes import in_two_processes

pytestmark = pytest.mark.integration


@pytest.mark.parametrize("tied", ["tied", "untied"])
def test_two_processes_train_as_one(tmp_path, tied):
    pytest.importorskip("transformers", reason="the adapter needs it: pip install '.[transformers]'")
    pytest.importorskip("datasets", reason="the texts are one: pip install '.[transformers]'")
    in_two_processes(__file__, "work", tmp_path, tmp_path, tied)


def work(rank, folder, tied):
    import causal_lm_fixture as toy
    from datasets import Dataset
    from torch.nn.parallel import DistributedDataParallel

    import akd_ext

    os.environ.update(
        MASTER_ADDR="127.0.0.1", MASTER_PORT="29500"
    )  # accelerate asks for them; the processes have met already
    torch.manual_seed(3)
    texts = []
    for length in [7, 3, 5, 7, 2, 6, 4, 7]:  # so that each process has another number of tokens
        ids, attention = torch.randint(1, toy.CLASSES, (7,)), (torch.arange(7) < length).long()
        texts.append({"input_ids": ids, "attention_mask": attention, "labels": ids})
    teacher = toy.model("Llama", 24, 1)
    args = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "num_train_epochs": 1}
    made = toy.trainer(
        folder, toy.model(tie_word_embeddings=tied == "tied"), teacher, args, criterion=akd_ext.AnnealingKDLoss(1),
        train_dataset=Dataset.from_list([{name: x.tolist() for name, x in text.items()} for text in texts]),
    )  # fmt: skip
    made.train()
    assert isinstance(made.model_wrapped, DistributedDataParallel) and made.state.global_step == 1
    plain = toy.model(tie_word_embeddings=tied == "tied")
    toy.plain_mse(
        plain, teacher, {name: torch.stack([text[name] for text in texts]) for name in texts[0]}, 1.0
    ).backward()
    for (name, got), wanted in zip(made.model.named_parameters(), plain.parameters(), strict=True):
        expected = wanted.detach() - 0.1 * wanted.grad
        # Float32 inside transformers' layers, see test_causal_lm.py; the updates are a tenth of the gradients.
        torch.testing.assert_close(
            got.detach(), expected, rtol=1e-6, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}"
        )
