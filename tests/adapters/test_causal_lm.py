"""The Trainer for causal language models against whole logits, without training."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import akd_ext

# The losses are float64, but transformers' RMSNorm and rotary embeddings compute in float32: 6e-8 a rounding, and the
# last bit of a gradient in float64 decides which way. A few roundings of gradients up to about 1.
EXACT = {"rtol": 1e-6, "atol": 1e-6}


@pytest.fixture(scope="module")
def toy():
    pytest.importorskip("transformers", reason="the adapter needs it: pip install '.[transformers]'")
    import causal_lm_fixture

    return causal_lm_fixture


FAMILIES = [
    ("Llama", {"tie_word_embeddings": False}), ("Llama", {"tie_word_embeddings": True}),
    ("Qwen2", {"tie_word_embeddings": False}), ("Qwen2", {"tie_word_embeddings": True}),
    ("GPT2", {"tie_word_embeddings": False}), ("GPT2", {"tie_word_embeddings": True}),
    ("Granite", {"logits_scaling": 3.0}), ("Cohere", {"logit_scale": 0.2, "pad_token_id": 0}),
    ("OPT", {"ffn_dim": 24, "word_embed_proj_dim": 8, "dropout": 0.0}),
]  # fmt: skip


def assert_equal(got, wanted):
    torch.testing.assert_close(got[0], wanted[0], **EXACT)
    assert set(got[1]) == set(wanted[1])
    for name in wanted[1]:
        torch.testing.assert_close(
            got[1][name], wanted[1][name], **EXACT, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("family, options", FAMILIES)
def test_the_loss_is_that_of_the_whole_logits(toy, tmp_path, family, options):
    student, teacher = toy.model(family, 16, 0, **options), toy.model("Llama", 24, 1)
    made, inputs = toy.trainer(tmp_path, student, teacher), toy.batch()
    wanted = toy.plain_loss_and_gradients(student, toy.plain_mse(student, teacher, inputs, 0.75))
    assert_equal(toy.loss_and_gradients(made, inputs), wanted)


@pytest.mark.parametrize("reduction", ["batchmean", "sum"])
@pytest.mark.parametrize("width", [16, 24])
def test_reductions_and_a_teacher_as_wide_as_the_student(toy, tmp_path, reduction, width):
    student, teacher = toy.model(), toy.model("GPT2", width, 1)
    criterion = toy.criterion(reduction=reduction)
    made, inputs = toy.trainer(tmp_path, student, teacher, criterion=criterion), toy.batch()
    wanted = toy.plain_loss_and_gradients(student, toy.plain_mse(student, teacher, inputs, 0.75, reduction))
    assert_equal(toy.loss_and_gradients(made, inputs), wanted)


def test_a_teacher_with_a_factor_and_options_of_the_loss(toy, tmp_path):
    student, teacher = toy.model(), toy.model("Granite", 24, 1, logits_scaling=0.5)
    inputs = toy.batch()
    made = toy.trainer(tmp_path, student, teacher, loss_options={"center": False})
    mask, _ = toy.counted(inputs)
    loss = F.mse_loss(toy.logits(student, inputs)[mask], 0.75 * toy.logits(teacher, inputs)[mask].detach())
    assert_equal(toy.loss_and_gradients(made, inputs), toy.plain_loss_and_gradients(student, loss))


def test_top_k_with_the_anchor(toy, tmp_path):
    student, teacher = toy.model(), toy.model("Llama", 24, 1)
    inputs, k = toy.batch(), 5
    made = toy.trainer(
        tmp_path, student, teacher, loss="topk", criterion=toy.criterion(),
        loss_options={"k": k, "anchor": lambda phi: phi / 3},
    )  # fmt: skip
    mask, _ = toy.counted(inputs)
    values, places = toy.logits(teacher, inputs)[mask].detach().topk(k)
    own = toy.logits(student, inputs)[mask].gather(1, places)
    kl = F.kl_div(own.log_softmax(-1), values.softmax(-1), reduction="batchmean")
    loss = kl + 0.25 * toy.plain_mse(student, teacher, inputs, 0.75)
    assert_equal(toy.loss_and_gradients(made, inputs), toy.plain_loss_and_gradients(student, loss))


def test_the_anchors_gram_matrix_of_the_teacher_is_made_once(toy, tmp_path, monkeypatch):
    from akd_ext.adapters.transformers import objectives

    calls, own = [], objectives.teacher_gram
    monkeypatch.setattr(objectives, "teacher_gram", lambda *given, **rest: calls.append(1) or own(*given, **rest))
    student, teacher = toy.model(), toy.model("Phi", 24, 1)
    options = {"k": 3, "topk": 0.0, "anchor_options": {"center": False, "implementation": "gram"}}
    made = toy.trainer(tmp_path, student, teacher, loss="topk", criterion=toy.criterion(), loss_options=options)
    for inputs in (toy.batch(), toy.batch()):
        mask, _ = toy.counted(inputs)
        loss = F.mse_loss(toy.logits(student, inputs)[mask], 0.75 * toy.logits(teacher, inputs)[mask].detach())
        assert_equal(toy.loss_and_gradients(made, inputs), toy.plain_loss_and_gradients(student, loss))
    assert len(calls) == 1


def test_kl_with_a_schedule(toy, tmp_path):
    student, teacher = toy.model(tie_word_embeddings=True), toy.model("Granite", 24, 1, logits_scaling=2.0)
    inputs = toy.batch()
    made = toy.trainer(
        tmp_path, student, teacher, loss="kl", criterion=toy.criterion(loss="kl"),
        loss_options={"label_weight": lambda phi: 1 - phi},
    )  # fmt: skip
    mask, labels = toy.counted(inputs)
    target = 0.75 * (0.75 * toy.logits(teacher, inputs)[mask].detach()).softmax(-1)
    target += 0.25 * F.one_hot(labels, toy.CLASSES)
    loss = F.kl_div(toy.logits(student, inputs)[mask].log_softmax(-1), target, reduction="batchmean")
    assert_equal(toy.loss_and_gradients(made, inputs), toy.plain_loss_and_gradients(student, loss))


def test_a_bias_of_the_teachers_head_is_frozen_as_its_weight_is(toy, tmp_path):
    """Phi's head has one, GPT-J's too."""
    student, teacher = toy.model(), toy.model("Phi", 24, 1)
    inputs = toy.batch()
    assert teacher.lm_head.bias.requires_grad
    mask, _ = toy.counted(inputs)
    target = (0.75 * toy.logits(teacher, inputs)[mask].detach()).softmax(-1)
    kl = F.kl_div(toy.logits(student, inputs)[mask].log_softmax(-1), target, reduction="batchmean")
    made = toy.trainer(tmp_path, student, teacher, loss="kl", criterion=toy.criterion(loss="kl"))
    assert_equal(toy.loss_and_gradients(made, inputs), toy.plain_loss_and_gradients(student, kl))
    made = toy.trainer(
        tmp_path, student, teacher, loss="topk", criterion=toy.criterion(), loss_options={"k": 3, "topk": 0.0}
    )
    squares = toy.plain_mse(student, teacher, inputs, 0.75)
    assert_equal(toy.loss_and_gradients(made, inputs), toy.plain_loss_and_gradients(student, squares))


@pytest.mark.parametrize("family", ["Llama", "Cohere", "GPT2"])
def test_cross_entropy_is_the_models_own_without_its_head(toy, tmp_path, family):
    student, inputs = toy.model(family, tie_word_embeddings=True), toy.batch()
    # What the model counts besides: the first token of a text padded at its beginning, predicted by padding.
    inputs["labels"][2, 2] = -100
    made = toy.trainer(tmp_path, student, loss="cross_entropy")
    wanted = toy.plain_loss_and_gradients(student, student(**inputs).loss.double())  # transformers' is float32
    student.lm_head.forward = None
    assert_equal(toy.loss_and_gradients(made, inputs), wanted)


def test_no_head_is_called_and_positions_that_do_not_count_are_not_read(toy, tmp_path):
    student, teacher = toy.model(), toy.model("GPT2", 24, 1)
    made, inputs = toy.trainer(tmp_path, student, teacher), toy.batch()
    wanted = toy.loss_and_gradients(made, inputs)

    def refuse(hidden):
        raise AssertionError("the head was called")

    def spoil(module, given, output):
        mask = F.pad(toy.counted(inputs)[0], (0, 1))
        return (output[0].masked_fill(~mask.unsqueeze(-1), float("nan")),)

    for language_model in (student, teacher):
        language_model.lm_head.forward = refuse
        language_model.base_model.register_forward_hook(spoil)
    assert_equal(toy.loss_and_gradients(made, inputs), wanted)
    assert student.lm_head.forward is refuse and "forward" not in vars(student)


def test_packed_rows_are_their_texts(toy, tmp_path):
    from transformers import DataCollatorWithFlattening

    student, teacher = toy.model(), toy.model("Qwen2", 24, 1)
    made = toy.trainer(tmp_path, student, teacher)
    texts = [[5, 6, 7, 8], [9, 10], [11, 12, 13, 14, 15]]
    packed = DataCollatorWithFlattening()([{"input_ids": text} for text in texts])
    losses = [toy.plain_mse(student, teacher, one(text), 0.75, "sum") for text in texts]
    loss = sum(losses) / (toy.CLASSES * sum(len(text) - 1 for text in texts))
    assert_equal(toy.loss_and_gradients(made, packed), toy.plain_loss_and_gradients(student, loss))


def one(text):
    return {"input_ids": torch.tensor([text]), "labels": torch.tensor([text])}


@pytest.mark.parametrize("side", ["right", "left", "packed", "no mask"])
def test_states_from_a_cache_are_the_teachers(toy, tmp_path, side):
    """With a head beside the states, or in their file."""
    student, teacher = toy.model(), toy.model("Llama", 24, 1)
    texts = [[5, 6, 7, 8], [9, 10], [11, 12, 13, 14, 15]]
    states = toy.States(teacher, texts)
    head = teacher.lm_head
    if side == "left":
        from akd_ext.logit_cache import HiddenStateCache

        def fill():
            for i, kept in enumerate(toy.States(teacher, texts).kept):
                yield torch.tensor([i]), kept.unsqueeze(0), torch.tensor([len(kept)])

        given, head = (head.weight.detach(), None, 1.0), None
        states = HiddenStateCache.build_or_open(None, {"teacher": "random"}, fill, num_samples=len(texts), head=given)
    made = toy.trainer(tmp_path, student, teacher_states=states, teacher_head=head)
    order = [2, 0, 1]
    if side == "packed":
        from transformers import DataCollatorWithFlattening

        inputs = DataCollatorWithFlattening()([{"input_ids": texts[i]} for i in order])
        index = torch.tensor([[*order, -1]])
    else:
        inputs, index = padded([texts[i] for i in order], side == "left"), torch.tensor(order)
        if side == "no mask":
            del inputs["attention_mask"]
    online = toy.trainer(tmp_path, student, teacher)
    wanted = toy.loss_and_gradients(online, inputs)
    assert_equal(toy.loss_and_gradients(made, inputs | {"index": index}), wanted)


def padded(texts, on_the_left):
    length = max(map(len, texts))
    inputs = {name: torch.zeros(len(texts), length, dtype=torch.long) for name in ("input_ids", "attention_mask")}
    inputs["labels"] = torch.full((len(texts), length), -100)
    for row, text in enumerate(texts):
        where = slice(length - len(text), None) if on_the_left else slice(len(text))
        inputs["input_ids"][row, where] = inputs["labels"][row, where] = torch.tensor(text)
        inputs["attention_mask"][row, where] = 1
    return inputs


def test_a_cache_of_other_texts_and_a_batch_without_its_places(toy, tmp_path):
    student, teacher = toy.model(), toy.model("Llama", 24, 1)
    states = toy.States(teacher, [[5, 6, 7, 8], [9, 10]])
    made, inputs = toy.trainer(tmp_path, student, teacher_states=states, teacher_head=teacher), padded([[9, 10]], False)
    with pytest.raises(ValueError, match="no column 'index', the place of each text in teacher_states; it has"):
        toy.loss_and_gradients(made, inputs)
    with pytest.raises(
        ValueError, match=r"teacher_states has 4 tokens for index \[0\], the batch 2; accepted: the same"
    ):
        toy.loss_and_gradients(made, inputs | {"index": torch.tensor([0])})
    with pytest.raises(ValueError, match="teacher_head is missing: teacher_states holds none"):
        toy.trainer(tmp_path, student, teacher_states=states)


def test_a_head_that_the_states_were_not_made_for(toy, tmp_path):
    from akd_ext.linear import output_head
    from akd_ext.logit_cache import HiddenStateCache, describe_head

    student, teacher, other = toy.model(), toy.model("Llama", 24, 1), toy.model("Llama", 24, 2)
    kept = toy.States(teacher, [[5, 6, 7]]).kept[0].unsqueeze(0)
    identity = {"teacher": "random", "head": describe_head(output_head(teacher))}
    states = HiddenStateCache.build_or_open(
        None, identity, lambda: [(torch.tensor([0]), kept, torch.tensor([3]))], num_samples=1
    )
    toy.trainer(tmp_path, student, teacher_states=states, teacher_head=teacher)
    with pytest.raises(ValueError, match="teacher_head differs in values from the head in the identity of teacher_st"):
        toy.trainer(tmp_path, student, teacher_states=states, teacher_head=other.lm_head)
    with pytest.raises(ValueError, match="teacher_head differs in dtype, values from the head"):
        toy.trainer(tmp_path, student, teacher_states=states, teacher_head=teacher.lm_head.weight.float())


def test_heads_padded_to_unequal_lengths(toy, tmp_path):
    student, teacher = toy.model(vocab_size=64), toy.model("Llama", 24, 1, vocab_size=72)
    with pytest.raises(
        ValueError, match="the vocabularies have 64 and 72 entries; accepted: equal ones, or vocabulary="
    ):
        toy.trainer(tmp_path, student, teacher)
    with pytest.raises(ValueError, match="vocabulary is 65; accepted: 1 to 64"):
        toy.trainer(tmp_path, student, teacher, vocabulary=65)

    class Tokenizer(list):
        """As far as its length."""

    inputs = toy.batch()
    for given in ({"vocabulary": 61}, {"processing_class": Tokenizer(range(61))}):
        made = toy.trainer(tmp_path, student, teacher, **given)
        wanted = toy.plain_loss_and_gradients(student, toy.plain_mse(student, teacher, inputs, 0.75, classes=61))
        assert_equal(toy.loss_and_gradients(made, inputs), wanted)
    with pytest.raises(ValueError, match="64 and 72 entries, and the tokenizer 65 tokens"):
        toy.trainer(tmp_path, student, teacher, processing_class=Tokenizer(range(65)))


def test_evaluation_is_that_of_a_plain_trainer(toy, tmp_path):
    from transformers import Trainer

    student, teacher = toy.model(), toy.model("Llama", 24, 1)
    data = [{name: value[i] for name, value in toy.batch().items()} | {"index": i} for i in range(3)]
    made = toy.trainer(tmp_path, student, teacher, eval_dataset=data)
    wanted = Trainer(student, toy.arguments(tmp_path), eval_dataset=data).evaluate()["eval_loss"]
    assert made.evaluate()["eval_loss"] == wanted


def test_models_whose_logits_are_not_linear(toy, tmp_path):
    student, teacher = toy.model(), toy.model("Llama", 24, 1)
    gemma = toy.model("Gemma2", 16, 0, head_dim=8, final_logit_softcapping=30.0)
    with pytest.raises(ValueError, match="student: the model caps its logits"):
        toy.trainer(tmp_path, gemma, teacher)
    with pytest.raises(ValueError, match="teacher: the model caps its logits"):
        toy.trainer(tmp_path, student, gemma)
    adapted = toy.model()
    adapted.lm_head = nn.Sequential(adapted.lm_head)
    with pytest.raises(TypeError, match="student: the model's output head is a Sequential; accepted: torch.nn.Linear"):
        toy.trainer(tmp_path, adapted, teacher)
    with pytest.raises(TypeError, match="the student is a Linear, which has no base_model"):
        toy.trainer(tmp_path, nn.Linear(2, 2), teacher)
    mixture = toy.model("Mixtral", num_local_experts=2, output_router_logits=True)
    with pytest.raises(ValueError, match="the student's config has output_router_logits=True"):
        toy.trainer(tmp_path, mixture, teacher)


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_a_factor_that_the_config_does_not_tell(toy, tmp_path, role):
    """As Falcon-H1 and MiniCPM3 have them."""
    models = {"student": toy.model("GPT2"), "teacher": toy.model("Llama", 24, 1)}
    made, inputs = toy.trainer(tmp_path, **models), toy.batch()
    own = models[role].forward

    def forward(**given):
        output = own(**given)
        output["logits"] = output["logits"] * 1.5
        return output

    models[role].forward = forward
    with pytest.raises(ValueError, match=f"the logits of the {role}, a .*, are not 1 \\* head\\(hidden states\\)"):
        toy.loss_and_gradients(made, inputs)
    assert models[role].forward is forward


def test_arguments_that_do_not_go_together(toy, tmp_path):
    student, teacher = toy.model(), toy.model("Llama", 24, 1)
    for error, message, given in [
        (ValueError, "loss is 'ce'; accepted: 'mse', 'topk', 'kl', 'cross_entropy'", {"loss": "ce"}),
        (TypeError, "loss_options has 'k'; accepted for 'mse': center, class_weight", {"loss_options": {"k": 3}}),
        (ValueError, "neither of teacher and teacher_states is given", {"teacher": None}),
        (ValueError, "both of teacher and teacher_states is given", {"teacher_states": toy.States(teacher, [])}),
        (TypeError, "teacher is a str; accepted: a causal language model", {"teacher": "a name on the hub"}),
        (ValueError, "teacher is the student; accepted: another model", {"teacher": student}),
        (TypeError, "criterion is missing", {"criterion": None}),
        (TypeError, "criterion is a LinearAnnealingKDLoss; accepted: an akd_ext.AnnealingKDLoss",
         {"criterion": akd_ext.LinearAnnealingKDLoss(3, teacher_weight=torch.eye(3))}),
        (ValueError, "criterion has loss 'kl' beside loss='mse'", {"criterion": toy.criterion(loss="kl")}),
        (ValueError, "criterion has reduction 'none'", {"criterion": toy.criterion(reduction="none")}),
        (ValueError, "loss is 'cross_entropy', which takes no teacher", {"loss": "cross_entropy"}),
        (ValueError, "label_smoothing_factor is 0.1; accepted: 0", {"args": {"label_smoothing_factor": 0.1}}),
        (ValueError, "torch_compile is True; accepted: False", {"args": {"torch_compile": True}}),
        (ValueError, "unit is 'steps'", {"unit": "steps"}),
    ]:  # fmt: skip
        with pytest.raises(error, match=message):
            toy.trainer(tmp_path, student, **({"teacher": teacher} | given))
    with pytest.raises(ValueError, match="the student is what torch.compile returned; accepted: the model"):
        toy.trainer(tmp_path, torch.compile(student), teacher)
    made = toy.trainer(tmp_path, student, teacher)
    with pytest.raises(ValueError, match="the training batch has no column 'labels'; it has \\['input_ids'\\]"):
        made.compute_loss(student.train(), {"input_ids": torch.ones(1, 2, dtype=torch.long)})


def test_the_other_trainer_names_this_one(toy, tmp_path):
    from akd_ext.adapters.transformers import AnnealingTrainer

    with pytest.raises(ValueError, match="GPT2LMHeadModel, a causal language model.*CausalLMAnnealingTrainer"):
        AnnealingTrainer(toy.model("GPT2"), toy.arguments(tmp_path), criterion=toy.criterion())
