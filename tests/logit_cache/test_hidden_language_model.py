"""A language model's hidden states, cached: the head applied to them gives the model's own logits; what the identity notices."""

import copy

import pytest
import torch

from akd_ext.linear import output_head
from akd_ext.logit_cache import HiddenStateCache, LogitCacheError, describe_language_model, hidden_states_of

transformers = pytest.importorskip("transformers", reason="needs transformers: pip install '.[transformers]'")

TEXTS = [torch.arange(2, 2 + n) % 40 for n in (7, 3, 1, 5)]


def llama(**changes):
    config = transformers.LlamaConfig(**{
        "vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
        "max_position_embeddings": 32, "attention_dropout": 0.5, **changes,
    })  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval()


def gpt2():
    config = transformers.GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=2, n_positions=32)
    return transformers.GPT2LMHeadModel(config).eval()


def batches(padding="right", size=2, labels=False):
    for index in torch.arange(len(TEXTS)).split(size):
        chosen = [TEXTS[i] for i in index]
        ids = torch.nn.utils.rnn.pad_sequence(chosen, batch_first=True, padding_side=padding)
        mask = torch.nn.utils.rnn.pad_sequence([x * 0 + 1 for x in chosen], batch_first=True, padding_side=padding)
        more = {"labels": ids.masked_fill(mask == 0, -100)} if labels else {}
        yield {"index": index, "input_ids": ids, "attention_mask": mask, **more}


def build(place, model, **given):
    head = output_head(model)
    identity = describe_language_model(model, head, None, TEXTS)
    states = lambda: hidden_states_of(model, batches(**given))  # noqa: E731
    return HiddenStateCache.build_or_open(place, identity, states, num_samples=len(TEXTS), head=head)


def logits_of_cache(cache, batch):
    hidden = cache.padded(batch["index"], mask=batch["attention_mask"])
    return torch.nn.functional.linear(hidden, cache.head.weight, cache.head.bias)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("padding", ["right", "left"])
@pytest.mark.parametrize("make", [llama, lambda: llama(tie_word_embeddings=True), gpt2], ids=["llama", "tied", "gpt2"])
@torch.no_grad()
def test_cached_states_times_the_head_are_the_models_logits(tmp_path, make, padding, dtype):
    """Bit for bit: the same product of the same numbers, at every token that is there."""
    model = make().to(dtype)
    cache = build(tmp_path, model, padding=padding)
    assert cache.hidden.dtype == dtype and cache.lengths.tolist() == [7, 3, 1, 5]
    for batch in batches(padding):
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        there = batch["attention_mask"].bool()
        assert torch.equal(logits_of_cache(cache, batch)[there], model(**inputs).logits[there])


def test_labels_count_for_nothing_and_a_mask_may_be_missing():
    model = llama()
    with_labels = build(None, model, labels=True)
    single = ({name: batch[name] for name in ("index", "input_ids")} for batch in batches(size=1))
    alone = [hidden[0] for _, hidden, _ in hidden_states_of(model, single)]
    for one, other in zip(with_labels, alone, strict=True):
        torch.testing.assert_close(
            one, other, rtol=0, atol=2e-6
        )  # other batches, other order of the sums: measured 6e-7


def test_the_head_is_never_called_and_modes_are_as_before():
    model = llama().train()
    model.model.layers[1].eval()
    model.lm_head.register_forward_hook(lambda *_: pytest.fail("the head was called"))
    before = [module.training for module in model.modules()]
    first, second = (list(hidden_states_of(model, batches())) for _ in range(2))
    assert all(torch.equal(a[1], b[1]) for a, b in zip(first, second, strict=True))  # no dropout
    assert not any(hidden.requires_grad for _, hidden, _ in first)
    assert [module.training for module in model.modules()] == before
    assert torch.is_grad_enabled()


def test_a_batch_without_an_index_is_an_error():
    with pytest.raises(ValueError, match=r"a batch has \['input_ids'\]; accepted: index, input_ids"):
        next(hidden_states_of(llama(), [{"input_ids": torch.ones(1, 2, dtype=torch.int64)}]))


# -- the identity ------------------------------------------------------------------------------------------------------


class Words:
    """What is looked at in a tokenizer."""

    def __init__(self, words, special):
        self._words, self.special_tokens_map = words, special

    def get_vocab(self):
        return self._words


WORDS = Words({"a": 0, "b": 1, "</s>": 2}, {"eos_token": "</s>"})


def describe(model, tokenizer=WORDS, texts=TEXTS):
    return describe_language_model(model, output_head(model), tokenizer, texts)


def changed(a, b):
    return {
        f"{name}.{key}"
        for name in a
        for key in {**(a[name] or {}), **(b[name] or {})}
        if (a[name] or {}).get(key) != (b[name] or {}).get(key)
    }


@torch.no_grad()
def bend(parameter):
    parameter.view(-1)[3] = torch.nextafter(parameter.view(-1)[3], torch.tensor(9.0))


@pytest.mark.parametrize(
    ("change", "keys"),
    [
        (lambda model: bend(model.model.layers[0].mlp.up_proj.weight), {"teacher.weights"}),
        (lambda model: bend(model.lm_head.weight), {"head.values"}),
        (lambda model: setattr(model.config, "rms_norm_eps", 1e-3), {"teacher.config"}),
        (lambda model: setattr(model.config, "_name_or_path", "elsewhere"), set()),
        (lambda model: model.train(), set()),
    ],
)
def test_the_identity_notices_another_teacher_or_head(change, keys):
    model = llama()
    other = copy.deepcopy(model)
    change(other)
    assert changed(describe(model), describe(other)) == keys


@pytest.mark.parametrize(
    ("tokenizer", "keys"),
    [
        (Words({"a": 1, "b": 0, "</s>": 2}, {"eos_token": "</s>"}), {"tokenizer.vocabulary"}),
        (Words({"</s>": 2, "b": 1, "a": 0}, {"eos_token": "</s>"}), set()),
        (Words(WORDS.get_vocab(), {"eos_token": "</s>", "pad_token": "</s>"}), {"tokenizer.special"}),
    ],
)
def test_the_identity_notices_another_tokenizer(tokenizer, keys):
    model = llama()
    assert changed(describe(model), describe(model, tokenizer)) == keys


@pytest.mark.parametrize(
    ("texts", "keys"),
    [
        ([x.tolist() for x in TEXTS], set()),
        ([x.int() for x in TEXTS], set()),
        (TEXTS[::-1], {"texts.ids"}),
        ([*TEXTS[:3], TEXTS[3].roll(1)], {"texts.ids"}),
        ([torch.cat(TEXTS[:2]), TEXTS[2][:0], *TEXTS[2:]], {"texts.ids"}),
        (TEXTS[:3], {"texts.ids", "texts.samples", "texts.tokens"}),
    ],
)
def test_the_identity_notices_other_texts(texts, keys):
    model = llama()
    assert changed(describe(model), describe(model, texts=texts)) == keys


def test_texts_of_another_form_are_an_error():
    with pytest.raises(ValueError, match=r"sample 0 has ids of shape \[1, 7\]; accepted: \[tokens\]"):
        describe(llama(), texts=[TEXTS[0].unsqueeze(0)])


def test_a_saved_and_loaded_teacher_is_the_same_teacher(tmp_path):
    model = llama()
    model.save_pretrained(tmp_path)
    assert changed(describe(model), describe(transformers.LlamaForCausalLM.from_pretrained(tmp_path))) == set()


def test_another_teachers_states_are_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    model = llama()
    build(path, model)
    bend(model.model.norm.weight)
    with pytest.raises(LogitCacheError, match="the states of something else: teacher.weights is"):
        build(path, model)
