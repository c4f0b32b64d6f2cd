"""cached_forward in real torchdistill boxes: equal to the running teacher, run once, and refused where it cannot be right."""

import gc
import logging
from types import SimpleNamespace

import pytest

pytest.importorskip("torchdistill", reason="the plug-in needs torchdistill: pip install '.[test]'")
pytest.importorskip("torchvision.datasets", reason="torchdistill needs torchvision: pip install '.[test]'")

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, RandomSampler, Subset, TensorDataset
from torchdistill.core.distillation import get_distillation_box
from torchdistill.datasets.registry import register_collate_func
from torchdistill.losses.registry import register_mid_level_loss

from akd_ext.logit_cache import LogitCacheError
from akd_ext.torchdistill import IndexedDatasetWrapper, cached_forward, skip_forward
from akd_ext.torchdistill.forward_procs import CachedOutput
from akd_ext.torchdistill.teacher_logits import _in_memory

CPU = torch.device("cpu")
SAMPLES, BATCH, CLASSES = 50, 8, 3


class Net(nn.Sequential):
    """A network whose eval mode differs from its train mode, and which counts the samples it saw."""

    def __init__(self):
        super().__init__(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.Dropout(0.5), nn.Linear(16, CLASSES))
        self.seen = 0

    def forward(self, samples):
        self.seen += len(samples)
        return super().forward(samples)


@register_mid_level_loss
class WatchedMSE(nn.Module):
    """Keeps what it was given."""

    def __init__(self):
        super().__init__()
        self.given = []

    def forward(self, student_io_dict, teacher_io_dict, targets=None):
        student, teacher = student_io_dict["."]["output"], teacher_io_dict["."]["output"]
        self.given.append(teacher)
        student, teacher = (getattr(output, "logits", output) for output in (student, teacher))
        return nn.functional.mse_loss(student, teacher)


@register_mid_level_loss
class OnlyTheStudent(nn.Module):
    def forward(self, student_io_dict, teacher_io_dict, targets=None):
        assert teacher_io_dict["."]["output"] is None
        return getattr(student_io_dict["."]["output"], "logits", student_io_dict["."]["output"]).square().mean()


def stage(
    num_epochs=1, *, teacher="cached_forward", loss="WatchedMSE", wrapper=True, wrapper_kwargs=None, **teacher_more
):
    loader = {"dataset_id": "data", "sampler": {"class_or_func": RandomSampler}, "kwargs": {"batch_size": BATCH}}
    if wrapper:
        loader["dataset_wrapper"] = {"key": "IndexedDatasetWrapper", "kwargs": wrapper_kwargs}
    return {
        "num_epochs": num_epochs,
        "train_data_loader": loader,
        "teacher": {"forward_proc": teacher, "requires_grad": False, **teacher_more},
        "student": {"forward_proc": "forward_batch_only"},
        "optimizer": {"key": "SGD", "kwargs": {"lr": 0.1}},
        "criterion": {
            "key": "WeightedSumLoss",
            "kwargs": {"sub_terms": {"x": {"criterion": {"key": loss, "kwargs": {}}, "weight": 1.0}}},
        },
        "pre_epoch_process": "annealing_pre_epoch_process",
    }


def data(n=SAMPLES):
    generator = torch.Generator().manual_seed(5)
    return TensorDataset(torch.randn(n, 4, generator=generator), torch.arange(n) % CLASSES)


def make_box(config, teacher=None, dataset=None):
    torch.manual_seed(1)
    teacher = Net() if teacher is None else teacher
    return get_distillation_box(
        teacher, Net(), {"data": data() if dataset is None else dataset}, config, CPU, None, False, 1
    )


def train(box, epochs=None):
    """As torchdistill's image_classification.py does it; returns what the losses were given and asked for."""
    for epoch in range(box.num_epochs if epochs is None else epochs):
        box.pre_epoch_process(epoch=epoch)
        for samples, targets, supp_dict in box.train_data_loader:
            box.post_forward_process(box.forward_process(samples, targets, supp_dict))
        if epoch < box.num_epochs - 1:
            box.post_epoch_process()


def prepared(config, **kwargs):
    box = make_box(config, **kwargs)
    box.pre_epoch_process(epoch=0)
    return box


def teacher_logits(box, index):
    return cached_forward_of(box)(None, torch.zeros(len(index), 4), supp_dict={"index": torch.as_tensor(index)})


def cached_forward_of(box):
    assert box.teacher_forward_proc.func is cached_forward
    return box.teacher_forward_proc


@pytest.fixture(params=["memory", "file"])
def place(request, tmp_path):
    return {} if request.param == "memory" else {"cache_dir": str(tmp_path / "cache")}


# -- the same as the teacher --------------------------------------------------------------------------------------------


def test_the_logits_are_those_of_the_teacher_in_eval_mode(place):
    """Bit for bit: the same batches as in the one pass."""
    box = prepared(stage(wrapper_kwargs=place))
    samples = data().tensors[0]
    with torch.no_grad():
        expected = [box.teacher_model.eval()(batch) for batch in samples.split(BATCH)]
    assert torch.equal(teacher_logits(box, range(SAMPLES)), torch.cat(expected))


def test_every_batch_gets_its_own_rows(place):
    box = prepared(stage(wrapper_kwargs=place))
    for samples, targets, supp_dict in box.train_data_loader:
        logits, _ = box.get_teacher_output(samples, targets, supp_dict)
        with torch.no_grad():
            # Other neighbours may be added up in another order: 4 + 16 products, sums below 16, roundings of 2^-24.
            torch.testing.assert_close(logits, box.teacher_model(samples), rtol=0, atol=20 * 16 * 2**-24)


def test_training_is_the_same_whether_the_cache_is_computed_or_found(tmp_path):
    """Also the order of the batches: the pass draws no random numbers."""
    weights = []
    for _ in range(2):
        box = make_box(stage(2, wrapper_kwargs={"cache_dir": str(tmp_path)}))
        train(box)
        weights.append(torch.cat([p.flatten() for p in box.student_model.parameters()]))
    assert torch.equal(*weights)


def test_no_random_number_is_drawn():
    box = make_box(stage())
    before = torch.get_rng_state()
    box.pre_epoch_process(epoch=0)
    assert torch.equal(torch.get_rng_state(), before)


def test_logits_come_on_the_device_of_the_batch():
    box = prepared(stage())
    batch = torch.zeros(2, 4, device="meta")  # the one other device that every machine has
    assert cached_forward_of(box)(None, batch, supp_dict={"index": torch.tensor([1, 2])}).device.type == "meta"


@pytest.mark.cuda
def test_on_cuda_the_cache_lies_beside_the_batches(place):
    torch.manual_seed(1)
    box = get_distillation_box(
        Net(), Net(), {"data": data()}, stage(wrapper_kwargs=place), torch.device("cuda"), None, False, 1
    )
    box.pre_epoch_process(epoch=0)
    assert box.teacher_forward_proc.keywords["cache"].logits.is_cuda
    for samples, targets, supp_dict in box.train_data_loader:
        logits, _ = box.get_teacher_output(samples.cuda(), targets, supp_dict)
        with torch.no_grad():
            # As above; TF32 is off unless somebody turns it on.
            torch.testing.assert_close(logits, box.teacher_model(samples.cuda()), rtol=0, atol=20 * 16 * 2**-24)


def test_the_stored_dtype_can_be_chosen(place):
    exact = teacher_logits(prepared(stage()), range(SAMPLES))
    logits = teacher_logits(prepared(stage(wrapper_kwargs={**place, "cache_dtype": "bfloat16"})), range(SAMPLES))
    assert torch.equal(logits, exact.bfloat16())


def test_autocast_around_the_pass_holds_for_it_and_is_told_apart(tmp_path):
    """As akd-train --amp does."""
    config = stage(wrapper_kwargs={"cache_dir": str(tmp_path)})
    with torch.autocast("cpu", torch.bfloat16):
        box = prepared(config)
    assert teacher_logits(box, [0]).dtype == torch.bfloat16
    assert teacher_logits(prepared(config), [0]).dtype == torch.float32


# -- how often the teacher runs -----------------------------------------------------------------------------------------


@pytest.mark.integration
def test_the_teacher_sees_every_sample_once_in_stage_one_and_none_in_stage_two(place):
    teacher = Net()
    stage1, stage2 = stage(3, wrapper_kwargs=place), stage(2, teacher="skip_forward", loss="OnlyTheStudent")
    del stage2["train_data_loader"]  # as in our YAML: the loader of stage I, with its wrapper
    box = make_box({"stage1": stage1, "stage2": stage2}, teacher)
    train(box, epochs=3)
    assert teacher.seen == SAMPLES
    assert box.stage_number == 2
    for epoch in (3, 4):
        box.pre_epoch_process(epoch=epoch)
        for samples, targets, supp_dict in box.train_data_loader:
            box.post_forward_process(box.forward_process(samples, targets, supp_dict))
    assert teacher.seen == SAMPLES
    assert box.student_model.seen == 5 * SAMPLES


@pytest.mark.integration
def test_a_later_run_finds_the_file(tmp_path):
    config = stage(2, wrapper_kwargs={"cache_dir": str(tmp_path)})
    train(make_box(config))
    again = Net()
    again.load_state_dict(make_box(config).teacher_model.state_dict())
    torch.manual_seed(99)
    train(make_box(config, again))
    assert again.seen == 0
    assert len(list(tmp_path.iterdir())) == 1


def test_a_wrapper_around_the_teacher_changes_nothing(tmp_path):
    config = stage(wrapper_kwargs={"cache_dir": str(tmp_path)})
    prepared(config)
    box = make_box(config)
    box.teacher_model = nn.DataParallel(box.teacher_model)
    box.pre_epoch_process(epoch=0)
    assert box.org_teacher_model.seen == 0


@pytest.mark.integration
def test_a_second_stage_finds_what_is_in_memory():
    teacher = Net()
    train(make_box({"stage1": stage(1), "stage2": stage(1)}, teacher))
    assert teacher.seen == SAMPLES


def test_memory_is_given_back_with_the_teacher():
    before = len(_in_memory)
    box = prepared(stage())
    assert len(_in_memory) == before + 1
    del box
    gc.collect()
    assert len(_in_memory) == before


# -- never the wrong cache ----------------------------------------------------------------------------------------------


def shuffled():
    return Subset(data(), torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(3)).tolist())


def moved():
    return TensorDataset(data().tensors[0] + 0.5, data().tensors[1])


@pytest.mark.parametrize("dataset", [shuffled, moved, lambda: data(SAMPLES - 1)])
def test_another_dataset_gets_another_cache(place, dataset):
    teacher = Net()
    prepared(stage(wrapper_kwargs=place), teacher=teacher)
    box = prepared(stage(wrapper_kwargs=place), teacher=teacher, dataset=dataset())
    other = dataset()
    samples = torch.stack([other[i][0] for i in range(len(other))])
    with torch.no_grad():
        expected = torch.cat([teacher.eval()(batch) for batch in samples.split(BATCH)])
    assert torch.equal(teacher_logits(box, range(len(other))), expected)


def test_another_teacher_gets_another_cache(place):
    torch.manual_seed(2)
    first, second = prepared(stage(wrapper_kwargs=place)), prepared(stage(wrapper_kwargs=place), teacher=Net())
    assert not torch.equal(teacher_logits(first, [0]), teacher_logits(second, [0]))
    assert second.teacher_model.seen == SAMPLES


def test_extra_facts_get_another_cache(tmp_path):
    for task in ("cola", "rte", "cola"):
        prepared(stage(wrapper_kwargs={"cache_dir": str(tmp_path), "cache_extra": {"task": task}}))
    assert len(list(tmp_path.iterdir())) == 2


def test_a_second_box_with_the_same_teacher_may_take_turns_with_the_first():
    teacher = Net()
    first = prepared(stage(), teacher=teacher)
    second = prepared(stage(), teacher=teacher, dataset=moved())
    assert not torch.equal(teacher_logits(first, [0]), teacher_logits(second, [0]))


def test_a_damaged_file_stops_the_run(tmp_path):
    config = stage(wrapper_kwargs={"cache_dir": str(tmp_path)})
    prepared(config)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(LogitCacheError, match=f"{file.name} cannot be used: it is cut off.*Delete it"):
        prepared(config)


# -- where it cannot be right -------------------------------------------------------------------------------------------


class Augmented(Dataset):
    def __len__(self):
        return SAMPLES

    def __getitem__(self, index):
        return torch.full((4,), float(index)) + 0.1 * torch.randn(4), index % CLASSES


def test_augmentation_is_refused(place):
    with pytest.raises(
        ValueError, match="Augmented, or its collate function, gives other samples.*without random augmentation"
    ):
        prepared(stage(wrapper_kwargs=place), dataset=Augmented())


def test_augmentation_in_the_collate_function_is_refused():
    @register_collate_func
    def noisy_collate(samples):
        images, targets, supp_dict = torch.utils.data.default_collate(samples)
        return images + torch.randn_like(images), targets, supp_dict

    config = stage()
    config["train_data_loader"]["collate_fn"] = "noisy_collate"
    with pytest.raises(ValueError, match="gives other samples"):
        prepared(config)


def test_a_dataset_without_the_wrapper_is_refused():
    with pytest.raises(ValueError, match="is a BaseDatasetWrapper, which does not say.*IndexedDatasetWrapper"):
        prepared(stage(wrapper=False))


def test_a_teacher_that_is_trained_is_refused():
    with pytest.raises(ValueError, match="the teacher is being trained.*requires_grad: False"):
        prepared(stage(requires_grad=True))


def test_a_teacher_with_hooks_is_refused():
    with pytest.raises(ValueError, match="forward_hook lists '3', but it does not run"):
        prepared(stage(forward_hook={"output": ["3"]}))


def test_a_teacher_whose_every_process_must_take_part_is_refused(monkeypatch):
    monkeypatch.setattr("akd_ext.torchdistill.teacher_logits.check_if_fsdp_wrapped", lambda model: True)
    with pytest.raises(ValueError, match="wrapped by FSDP"):
        prepared(stage())


def test_extra_facts_must_fit_into_the_file(place):
    with pytest.raises(TypeError, match="identity: .* accepted: what JSON can hold"):
        prepared(stage(wrapper_kwargs={**place, "cache_extra": {"tokenizer": object()}}))


def test_without_the_pre_epoch_process_it_is_an_error():
    config = stage()
    del config["pre_epoch_process"]
    with pytest.raises(RuntimeError, match="were not computed; add `pre_epoch_process: 'annealing_pre_epoch_process'`"):
        train(make_box(config))


@pytest.mark.parametrize("supp_dict", [None, {}])
def test_a_batch_without_index_is_an_error(supp_dict):
    box = prepared(stage())
    with pytest.raises(ValueError, match="does not say which samples it holds.*IndexedDatasetWrapper"):
        box.forward_process(torch.zeros(2, 4), torch.zeros(2), supp_dict)


def test_a_wrong_cache_dtype_is_an_error():
    with pytest.raises(ValueError, match="cache_dtype is 'int8', accepted are"):
        IndexedDatasetWrapper(data(), cache_dtype="int8")


# -- whole batches ------------------------------------------------------------------------------------------------------


class Whole(TensorDataset):
    """Serves whole batches as CIFAR in one tensor does; single samples must then not be asked for."""

    def __getitem__(self, index):
        raise AssertionError("a single sample was fetched")

    def __getitems__(self, indices):
        return tuple(tensor[indices] for tensor in self.tensors)


@register_collate_func
def hand_on(batch):
    return batch


def test_a_dataset_that_serves_whole_batches_still_does(place):
    config = stage(wrapper_kwargs=place)
    config["train_data_loader"]["collate_fn"] = "hand_on"
    box = prepared(config, dataset=Whole(*data().tensors))
    samples, targets, supp_dict = next(iter(box.train_data_loader))
    index = supp_dict["index"]
    assert index.dtype == torch.int64
    assert torch.equal(samples, data().tensors[0][index])
    assert torch.equal(targets, data().tensors[1][index])
    assert torch.equal(teacher_logits(box, range(SAMPLES)), teacher_logits(prepared(stage()), range(SAMPLES)))
    assert box.teacher_model.seen == SAMPLES


def test_only_a_dataset_that_serves_many_samples_makes_the_wrapper_serve_them():
    assert not hasattr(IndexedDatasetWrapper(data()), "__getitems__")
    assert hasattr(IndexedDatasetWrapper(Whole(*data().tensors)), "__getitems__")


def test_a_list_of_samples_is_a_list_of_samples():
    """torch's Subset, and Hugging Face's datasets, serve many samples as a list."""
    subset = Subset(data(), [9, 4, 7])
    loader = DataLoader(IndexedDatasetWrapper(subset), batch_size=3)
    ((samples, targets, supp_dict),) = loader
    assert supp_dict["index"].tolist() == [0, 1, 2]
    assert torch.equal(samples, data().tensors[0][[9, 4, 7]])


def test_workers_get_the_wrapper_too():
    loader = DataLoader(IndexedDatasetWrapper(Subset(data(), [9, 4, 7])), batch_size=2, num_workers=1)
    assert [batch[2]["index"].tolist() for batch in loader] == [[0, 1], [2]]


# -- text ---------------------------------------------------------------------------------------------------------------


class Sentences(Dataset):
    """Samples as Hugging Face's datasets have them: a dict, the label inside, no target beside."""

    def __len__(self):
        return SAMPLES

    def __getitem__(self, index):
        return {"input_ids": [index % 7 + 1] * (1 + index % 5), "labels": index % 2}


class Encoder(nn.Module):
    """Takes and gives what a Hugging Face classifier does; padding (id 0) does not count. One logit, as for STS-B."""

    def __init__(self):
        super().__init__()
        self.embed, self.head, self.seen = nn.Embedding(8, 4, padding_idx=0), nn.Linear(4, 1), 0

    def forward(self, input_ids, labels=None):
        self.seen += len(input_ids)
        return SimpleNamespace(logits=self.head(self.embed(input_ids).sum(1)), loss=None)


@register_collate_func
def pad(samples):
    """As DataCollatorWithPadding: pads the ids, and makes a tensor of every other entry."""
    ids = [torch.tensor(sample["input_ids"]) for sample in samples]
    batch = {name: torch.tensor([sample[name] for sample in samples]) for name in samples[0] if name != "input_ids"}
    return {"input_ids": nn.utils.rnn.pad_sequence(ids, batch_first=True), **batch}


def text_stage(**kwargs):
    config = stage(**kwargs)
    config["train_data_loader"]["collate_fn"] = "pad"
    config["student"]["forward_proc"] = "forward_batch_only_as_kwargs"
    return config


def text_box(config):
    torch.manual_seed(1)
    return get_distillation_box(Encoder(), Encoder(), {"data": Sentences()}, config, CPU, None, False, 1)


def train_text(box):
    """As torchdistill's general_language_understanding.py does it."""
    for epoch in range(box.num_epochs):
        box.pre_epoch_process(epoch=epoch)
        for sample_batch in box.train_data_loader:
            loss = box.forward_process(sample_batch, targets=None, supp_dict=None)
            box.post_forward_process(loss=loss)
        box.post_epoch_process()


def test_text_in_two_stages(tmp_path):
    stage1 = text_stage(num_epochs=3, wrapper_kwargs={"cache_dir": str(tmp_path), "cache_extra": {"task": "stsb"}})
    stage2 = text_stage(num_epochs=2, teacher="skip_forward", loss="OnlyTheStudent")
    del stage2["train_data_loader"]
    box = text_box({"stage1": stage1, "stage2": stage2})
    loss = box.criterion.term_dict["x"][0]
    train_text(box)
    assert box.stage_number == 2
    assert box.org_teacher_model.seen == SAMPLES
    assert box.student_model.seen == 5 * SAMPLES
    assert all(isinstance(output, CachedOutput) and output.logits.shape[1:] == (1,) for output in loss.given)

    again = text_box(stage1)
    train_text(again)
    assert again.teacher_model.seen == 0
    assert isinstance(again.criterion.term_dict["x"][0].given[0], CachedOutput)


def test_text_logits_are_those_of_the_teacher():
    box = text_box(text_stage())
    box.pre_epoch_process(epoch=0)
    for batch in box.train_data_loader:
        with torch.no_grad():
            expected = box.teacher_model(batch["input_ids"]).logits
        output = box.teacher_forward_proc(box.teacher_model, batch, None, {})
        # Padding may add up in another order: 5 embeddings, then 4 products, sums below 16, roundings of 2^-24.
        torch.testing.assert_close(output.logits, expected, rtol=0, atol=9 * 16 * 2**-24)
        assert "index" not in batch


def test_a_dict_that_has_an_index_already_is_refused():
    wrapper = IndexedDatasetWrapper([{"input_ids": [1], "index": 5}])
    with pytest.raises(ValueError, match="already have an 'index'"):
        wrapper[0]


def test_skip_forward_takes_the_index_out_of_a_dict():
    batch = {"input_ids": torch.ones(2, 3), "index": torch.arange(2)}
    assert skip_forward(None, batch) is None
    assert list(batch) == ["input_ids"]


@pytest.mark.integration
def test_hugging_face_batches():
    """The real classes: Dataset, DataCollatorWithPadding's BatchEncoding, a tiny random BERT, its ModelOutput."""
    transformers = pytest.importorskip("transformers", reason="needs transformers: pip install transformers")
    datasets = pytest.importorskip("datasets", reason="needs datasets: pip install datasets")
    config = transformers.BertConfig(
        vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, num_labels=2
    )
    teacher = transformers.BertForSequenceClassification(config)
    rows = [Sentences()[i] for i in range(SAMPLES)]
    dataset = datasets.Dataset.from_list(rows)
    collate = lambda samples: transformers.BatchEncoding(pad(samples))  # noqa: E731  as the collator without a tokenizer
    register_collate_func(collate, key="hf_pad")
    stage1 = text_stage()
    stage1["train_data_loader"]["collate_fn"] = "hf_pad"
    torch.manual_seed(1)
    box = get_distillation_box(teacher, transformers.BertForSequenceClassification(config), {"data": dataset}, stage1,
                               CPU, None, False, 1)  # fmt: skip
    train_text(box)
    given = box.criterion.term_dict["x"][0].given
    assert sum(len(output["logits"]) for output in given) == SAMPLES
    assert not teacher.training


def test_of_an_object_only_the_logits_are_kept():
    output = CachedOutput(torch.ones(2, 3))
    with pytest.raises(KeyError, match="only 'logits' is kept"):
        output["hidden_states"]


def test_one_line_in_the_log(tmp_path, caplog):
    config = stage(wrapper_kwargs={"cache_dir": str(tmp_path)})
    with caplog.at_level(logging.INFO, "akd_ext.logit_cache.cache"):
        prepared(config)
        prepared(config)
    lines = [r.getMessage() for r in caplog.records if r.name == "akd_ext.logit_cache.cache"]
    assert len(lines) == 2
    assert all(line.startswith(f"teacher logits: 50 x 3 float32 (0.0006 MB) in {tmp_path}") for line in lines)
