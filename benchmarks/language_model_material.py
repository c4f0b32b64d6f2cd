"""What `benchmarks.language_model` works on: a teacher, a student cut out of it, text that every Python has."""

from __future__ import annotations

import ast
import copy
import platform
import random
import sysconfig
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from akd_ext.filesystem import replacing
from akd_ext.linear import output_head

MOST_TOP_LOGITS = 64
# Held-out documents: one in so many.
HELD_OUT_OF = 8
# Repeated paragraphs longer than this (characters) are taken once: pydoc's topics share some.
LONG_PARAGRAPH = 40
NOT_DOCUMENTATION = {"test", "tests", "idlelib", "lib2to3", "pydoc_data", "site-packages", "ensurepip", "turtledemo"}


class Amounts(NamedTuple):
    length: int = 128  # tokens of a block
    blocks: int = 384  # to train on
    held_out: int = 16
    most_of_a_document: int = 8
    most_of_a_held_out_document: int = 2


class Material(NamedTuple):
    """Frozen tensors and the student as it begins. Shapes: blocks, length, hidden size or k."""

    student: nn.Module
    head: Tensor  # [vocabulary, hidden size], of both
    ids: Tensor
    states: Tensor  # the teacher's hidden states, what its head is applied to
    top_values: Tensor
    top_indices: Tensor
    held_out_ids: Tensor
    held_out_targets: Tensor  # the teacher's log-probabilities
    layers: list[int]  # of the teacher, which the student has
    facts: dict[str, str]


def load(folder: str) -> tuple[nn.Module, Any]:
    """A Hugging Face model and its tokenizer from a folder, which may hold one GGUF file instead."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    files = [path.name for path in Path(folder).glob("*.gguf")]
    options = {"gguf_file": files[0]} if files else {}
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options).eval()
    return model, AutoTokenizer.from_pretrained(folder, **options)


def tiny() -> nn.Module:
    """A random teacher whose tokens are bytes."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=6,
                         num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True, initializer_range=0.2)  # fmt: skip
    torch.manual_seed(0)
    return LlamaForCausalLM(config).eval()


def prepare(folder: str | None, layers: list[int] | None, amounts: Amounts, cache: Path) -> Material:
    """Everything that is done once; the teacher's pass is kept in ``cache``. Layers: else the first and last two."""
    if folder is None:
        model, tokenize, name = tiny(), lambda text: list(text.encode()), "random"
    else:
        model, tokenizer = load(folder)
        tokenize = lambda text: tokenizer(text, add_special_tokens=False).input_ids  # noqa: E731
        name = next((path.stem for path in Path(folder).glob("*.gguf")), Path(folder).name)
    decoder, head = model.get_decoder(), output_head(model).weight.detach()
    identity = {
        "teacher": name,
        "head": float(head.double().square().sum()),
        "python": platform.python_version(),
        "amounts": list(amounts),
    }
    kept = _read(cache / "teacher.pt", identity)
    if kept is None:
        begin = time.process_time()
        kept = {"identity": identity, **_teacher_pass(decoder, head, tokenize, amounts)}
        kept["cpu_seconds"] = time.process_time() - begin
        cache.mkdir(parents=True, exist_ok=True)
        with replacing(cache / "teacher.pt") as temporary:
            torch.save(kept, temporary)
    deep = decoder.config.num_hidden_layers
    layers = [0, 1, deep - 2, deep - 1] if layers is None else layers
    student = shortened(decoder, layers)
    learning = sum(p.numel() for p in student.parameters() if p.requires_grad)
    classes, width = head.shape
    facts = {
        "teacher": f"{name}, {deep} layers, H {width}, V {classes:,}; held-out perplexity "
                   f"{kept['held_out_perplexity']:.1f}",
        "student": f"the teacher's layers {', '.join(map(str, layers))}; {learning / 1e6:.1f} M parameters learn; "
                   "embedding and head are the teacher's, frozen",
        "text": f"{kept['text']}; Python {platform.python_version()}",
        "done before the clock starts": f"the teacher's hidden states and its top {kept['top_values'].shape[-1]} logits of "
                                        f"all blocks, {kept['cpu_seconds']:.0f} CPU s once for all runs",
    }  # fmt: skip
    targets = torch.cat([F.linear(part, head).log_softmax(-1) for part in kept["held_out_states"].split(4)])
    return Material(student, head, *(kept[name] for name in Material._fields[2:7]), targets, layers, facts)


def _read(path: Path, identity: dict[str, Any]) -> dict[str, Any] | None:
    if not path.exists():
        return None
    kept = torch.load(path, weights_only=True)
    return kept if kept["identity"] == identity else None


@torch.no_grad()
def _teacher_pass(decoder: nn.Module, head: Tensor, tokenize: Callable, amounts: Amounts) -> dict[str, Any]:
    held_out, training = split(documents())
    taken = [
        blocks(held_out, tokenize, amounts.length, amounts.most_of_a_held_out_document, amounts.held_out),
        blocks(training, tokenize, amounts.length, amounts.most_of_a_document, amounts.blocks),
    ]
    (held_out_ids, of_held_out), (ids, of_training) = taken
    k = min(MOST_TOP_LOGITS, head.shape[0])
    states, values, indices = [], [], []
    for part in ids.split(4):
        states.append(decoder(input_ids=part, use_cache=False).last_hidden_state)
        top = F.linear(states[-1], head).topk(k, -1)
        values.append(top.values)
        indices.append(top.indices)
    held_out_states = torch.cat(
        [decoder(input_ids=x, use_cache=False).last_hidden_state for x in held_out_ids.split(4)]
    )
    losses = [
        F.cross_entropy(F.linear(h[:-1], head), x[1:]) for h, x in zip(held_out_states, held_out_ids, strict=True)
    ]
    return {
        "ids": ids, "states": torch.cat(states), "top_values": torch.cat(values), "top_indices": torch.cat(indices),
        "held_out_ids": held_out_ids, "held_out_states": held_out_states,
        "held_out_perplexity": float(torch.stack(losses).mean().exp()),
        "text": f"docstrings of the standard library's modules and pydoc's topics: {ids.numel():,} tokens of {of_training} "
                f"documents to train on, {held_out_ids.numel():,} of {of_held_out} others held out, in blocks of "
                f"{amounts.length}",
    }  # fmt: skip


def shortened(decoder: nn.Module, layers: list[int]) -> nn.Module:
    """A decoder of these layers with the weights that they have; its embedding is frozen."""
    config = copy.deepcopy(decoder.config)
    config.num_hidden_layers = len(layers)
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[i] for i in layers]
    student, weights = type(decoder)(config), {}
    for name, value in decoder.state_dict().items():
        first, _, rest = name.partition(".")
        if first == "layers":
            number, _, rest = rest.partition(".")
            if int(number) not in layers:
                continue
            name = f"layers.{layers.index(int(number))}.{rest}"
        weights[name] = value
    student.load_state_dict(weights)
    student.get_input_embeddings().requires_grad_(False)
    return student.train()


def documents() -> dict[str, str]:
    """pydoc's topics, and the docstrings of each module of the standard library, by name."""
    from pydoc_data.topics import topics

    found = {f"topic {name}": text for name, text in topics.items()}
    folder = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(folder.rglob("*.py")):
        relative = path.relative_to(folder)
        if not NOT_DOCUMENTATION.intersection(relative.parts):
            text = "\n\n".join(_docstrings(path))
            if text:
                found[str(relative)] = text
    return found


def _docstrings(path: Path) -> Iterator[str]:
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            text = ast.get_docstring(node)
            if text:
                yield text


def split(found: dict[str, str]) -> tuple[list[str], list[str]]:
    """(held out, to train on) by document, in random order. A long paragraph occurs once in all of them."""
    names = sorted(found)
    random.Random(0).shuffle(names)
    seen: set[str] = set()
    parts: tuple[list[str], list[str]] = [], []
    chosen = names[::HELD_OUT_OF], [name for i, name in enumerate(names) if i % HELD_OUT_OF]
    for part, those in zip(parts, chosen, strict=True):
        part.extend("\n\n".join(_new_paragraphs(found[name], seen)) for name in those)
    return parts


def _new_paragraphs(text: str, seen: set[str]) -> Iterator[str]:
    for paragraph in text.split("\n\n"):
        key = " ".join(paragraph.split())
        if len(key) <= LONG_PARAGRAPH or key not in seen:
            seen.add(key)
            yield paragraph.strip("\n")


def blocks(texts: list[str], tokenize: Callable, length: int, most: int, count: int) -> tuple[Tensor, int]:
    """``count`` blocks of tokens, none across documents, at most ``most`` of one; and of how many documents they are."""
    found: list[list[int]] = []
    used = 0
    for text in texts:
        ids = tokenize(text[: 16 * length * most])
        new = [ids[i : i + length] for i in range(0, len(ids) - length + 1, length)][:most]
        used += bool(new)
        found += new
        if len(found) >= count:
            return torch.tensor(found[:count]), used
    raise RuntimeError(f"the standard library's documentation has {len(found)} blocks of {length} tokens, not {count}")
