"""What README and docs/ show is true: Python blocks run, YAML and commands are accepted, links lead somewhere."""

from __future__ import annotations

import ast
import contextlib
import functools
import inspect
import io
import re
import shlex

import pytest
import torch
from places import ROOT

pytest.importorskip("torchdistill", reason="the documents show the plug-in: pip install '.[test]'")
pytest.importorskip("torchvision.datasets", reason="torchdistill needs torchvision: pip install '.[test]'")

import torchdistill.losses.registry as losses
from torchdistill.core.interfaces import registry as processes
from torchdistill.datasets import registry as datasets
from torchdistill.models import registry as models
from torchdistill.optim import registry as optim

import akd_ext.torchdistill
from akd_ext.reproduce import cli as reproduce
from akd_ext.train import cli as train
from akd_ext.train.config import registries
from akd_ext.train.config.document import Tagged, YamlTree
from akd_ext.train.config.load import load_config

PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "csrc/README.md",
    ROOT / "torchdistill_configs/glue/README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
# A block right after such a comment is not run.
BLOCK = re.compile(r"(?:^<!-- not run: (?P<why>.+?) -->\n+)?^```(?P<kind>\w+)\n(?P<text>.*?)^```$", re.M | re.S)
LINK = re.compile(r"\]\(([^)\s]+)\)")

# Libraries that akd_ext has adapters for.
OPTIONAL = {"datasets", "transformers", "lightning", "modelopt", "textbrewer"}

# README shows lines, not programs: what they take for granted, block by block.
SETUP = {
    "README.md": [
        "import torch, akd_ext; student, teacher = (torch.nn.Linear(6, 3) for _ in range(2)); "
        "loader = [(torch.ones(4, 6), torch.zeros(4, dtype=torch.long))] * 2; "
        "num_epochs = 10; optimizer = torch.optim.SGD(student.parameters(), lr=0.1)",
    ],
    "docs/several-processes.md": [
        "import torch, akd_ext; from torch import distributed\n"
        "distributed.init_process_group('gloo', store=distributed.HashStore(), rank=0, world_size=1)\n"
        "mesh = distributed.init_device_mesh('cpu', (1,))\n"
        "student_logits, teacher_logits = torch.randn(4, 6, requires_grad=True), torch.ones(4, 6)",
    ],
}


def blocks(name, kind):
    """``(text, line, why it is not run)`` of each fenced block of that kind."""
    text = (ROOT / name).read_text(encoding="utf-8")
    return [
        (found["text"], text.count("\n", 0, found.start("text")) + 1, found["why"])
        for found in BLOCK.finditer(text)
        if found["kind"] == kind
    ]


def with_block(kind):
    return [name for name in NAMES if blocks(name, kind)]


@pytest.mark.integration
@pytest.mark.parametrize("name", with_block("python"))
def test_python_blocks_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace, setup = {"__name__": name}, iter(SETUP.get(name, []))
    try:
        for text, line, why in blocks(name, "python"):
            if why is None:
                exec(next(setup, ""), namespace)
                exec(compile("\n" * (line - 1) + text, ROOT / name, "exec"), namespace)
    except ModuleNotFoundError as error:
        if error.name.partition(".")[0] not in OPTIONAL:
            raise
        pytest.skip(f"{error.name} is not installed: pip install '.[dev]'")
    finally:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


# ---- commands ------------------------------------------------------------------------------------------------------


def commands():
    """``(page:line, words)`` of every akd-train and akd-reproduce in a block of shell lines."""
    for name in with_block("sh"):
        for text, line, _ in blocks(name, "sh"):
            text = re.sub(r"\$\(which ([\w-]+)\)", r"\1", text.replace("\\\n", "  "))
            for number, command in enumerate(text.splitlines()):
                for part in re.split(r"&&|;|\|", command):
                    words = shlex.split(part, comments=True)
                    words = words[words.index("--") + 1 :] if "--" in words else words
                    starts = [i for i, word in enumerate(words) if word.rpartition("/")[2] in COMMANDS]
                    if starts:
                        yield pytest.param(words[starts[0] :], id=f"{name}:{line + number}")


COMMANDS = {"akd-train": train.main, "akd-reproduce": reproduce.main}


@functools.cache
def options(command, *subcommand):
    """The options that ``command --help`` lists."""
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), contextlib.suppress(SystemExit):
        COMMANDS[command]([*subcommand, "--help"])
    return set(re.findall(r"(?<![\w-])--?[A-Za-z]\w*", shown.getvalue()))


@pytest.mark.parametrize("words", list(commands()))
def test_commands_are_accepted(words, capsys):
    command, arguments = words[0].rpartition("/")[2], words[1:]
    figure = arguments[:1] if arguments[:1] in (["figure2"], ["figure3"]) else []
    unknown = {word.partition("=")[0] for word in arguments if word.startswith("-")} - options(command, *figure)
    assert not unknown
    if not figure:
        module = {"akd-train": train, "akd-reproduce": reproduce}[command]
        try:
            args = module.parser().parse_args(arguments)
        except SystemExit:
            pytest.fail(capsys.readouterr().err)
        config = getattr(args, "config", None)
        if config and config.startswith("torchdistill_configs/"):
            assert (ROOT / config).is_file()


# ---- YAML ----------------------------------------------------------------------------------------------------------

# Where a value names something that is registered, and with what.
REGISTERED = {
    "forward_proc": "forward process",
    "pre_epoch_process": "pre-epoch process",
    "collate_fn": "collate function",
    "func2extract_model_loss": "function to extract the model's loss",
}
KEY_OF = {
    "criterion": ("loss", "high-level loss"),
    "criterion_wrapper": ("loss wrapper",),
    "dataset_wrapper": ("dataset wrapper",),
    "optimizer": ("optimizer",),
    "scheduler": ("scheduler",),
    "teacher_model": ("model",),
    "student_model": ("model",),
    "model": ("model",),
}


@pytest.mark.parametrize("name", with_block("yaml"))
def test_yaml_blocks_are_accepted(name, tmp_path):
    for text, line, _ in blocks(name, "yaml"):
        path = tmp_path / f"line{line}.yaml"
        path.write_text(text, encoding="utf-8")
        tree = YamlTree(str(path))
        plain = tree.plain()
        if {"datasets", "models", "train", "test"} <= plain.keys():
            load_config(str(path), needs_teacher=False)
        check_names(plain, f"{name}:{line}")


def check_names(value, place, parent=None):
    if isinstance(value, Tagged):
        return check_names(value.value, place)
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value if isinstance(value, list) else ()):
        if key in REGISTERED:
            assert inner in registries.choices(REGISTERED[key]), f"{place}: {key}: {inner}"
        if key == "key" and parent in KEY_OF:
            assert any(inner in registries.choices(kind) for kind in KEY_OF[parent]), f"{place}: {parent}.key: {inner}"
        check_names(inner, place, key)


# ---- links ---------------------------------------------------------------------------------------------------------


@functools.cache
def anchors(page):
    """The anchors of a page's headings, as GitHub and Python-Markdown both make them."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    headings = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r" ", "-", re.sub(r"[^\w\s-]", "", heading.lower())) for heading in headings}


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name):
    page = ROOT / name
    text = re.sub(r"^```.*?^```$|`[^`\n]+`", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    for link in LINK.findall(text):
        if re.match(r"\w+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target), link


# ---- the guide to the plug-in --------------------------------------------------------------------------------------


def registered():
    """Everything of ours in torchdistill's registries, by key."""
    modules = (losses, processes, optim, models, datasets)
    kinds = [found for module in modules for name, found in vars(module).items() if name.endswith("_DICT")]
    return {
        key: value
        for kind in kinds
        for key, value in kind.items()
        if getattr(value, "__module__", "").startswith("akd_ext.")
    }


# What torchdistill gives, and a YAML does not.
GIVEN = {
    "self", "epoch", "model", "sample_batch", "targets", "supp_dict", "cache", "student_outputs", "batch", "org_dataset",
    "optimizer", "last_epoch", "kwargs", "paths", "args", "dataset",
}  # fmt: skip


def section_of(page, key):
    """What the page says about a key: from its heading to the next one."""
    found = re.search(rf"^### .*`{key}`.*\n(.*?)(?=^#|\Z)", page, re.M | re.S)
    return found and found[0]


@pytest.mark.parametrize(
    ("key", "value"), sorted({**registered(), "LengthBucketSampler": akd_ext.torchdistill.LengthBucketSampler}.items())
)
def test_the_guide_names_every_key_and_argument(key, value):
    page = (ROOT / "docs/torchdistill.md").read_text(encoding="utf-8")
    section = section_of(page, key)
    assert section, f"docs/torchdistill.md has no heading ### with `{key}`"
    for name in inspect.signature(value).parameters:
        assert name in GIVEN or f"`{name}`" in section, f"docs/torchdistill.md, {key}: the argument {name}"


# ---- the error messages --------------------------------------------------------------------------------------------


@functools.cache
def messages():
    """Every text in akd_ext, the parts that are filled in cut out."""
    found = []
    for path in (ROOT / "akd_ext").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "\0" for part in node.values]
                found.append("".join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def shown_messages():
    page = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8").partition("## Messages of others")[0]
    return re.findall(r"^### `(.+)`$", page, re.M)


@pytest.mark.parametrize("message", shown_messages())
def test_messages_are_those_of_the_code(message):
    pattern = re.compile(".*".join(re.escape(part.strip()) for part in message.split("…")), re.S)
    assert any(pattern.search(text) for text in messages())
