"""A torchdistill YAML file as a tree that can be edited, checked and written back before anything in it is called.

torchdistill's tags (``!import_call`` and friends) build datasets while the file is being read. Overrides and checks
must come earlier than that, so they work on PyYAML's nodes, which still know their line, their tag and their anchor.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from torchdistill.common import yaml_util

from akd_ext.train.system.errors import ConfigError, nearest, one_sentence

# torchdistill's constructors: yaml_import_call serves the tag !import_call, and so on.
TAGS = {"!" + name[len("yaml_") :]: function for name, function in vars(yaml_util).items() if name.startswith("yaml_")}
_TEXT_TAGS = ("!join", "!pathjoin", "!expanduser", "!abspath")  # harmless: they only put strings together


@dataclass(frozen=True)
class Tagged:
    """Stands in the plain view for something that will only exist once the file is constructed."""

    tag: str
    value: Any


class _Loader(yaml.FullLoader):
    """FullLoader that remembers anchor names and says where in the file a constructor failed."""

    tree: YamlTree
    key_paths: dict[int, tuple[str, ...]]

    def compose_node(self, parent, index):
        anchor = None if self.check_event(yaml.AliasEvent) else self.peek_event().anchor
        node = super().compose_node(parent, index)
        if anchor is not None:
            node.anchor = anchor
        return node


class _PlainLoader(yaml.FullLoader):
    """Builds the view used for checking: strings are joined, everything that would import or call stays `Tagged`."""


class _Dumper(yaml.Dumper):
    """Writes nodes back under the anchor names of the original file."""

    def generate_anchor(self, node):
        return getattr(node, "anchor", None) or super().generate_anchor(node)


def _with_key_path(function):
    def construct(loader, node):
        try:
            return function(loader, node)
        except (ConfigError, yaml.YAMLError):
            raise
        except Exception as error:
            key_path = ".".join(loader.key_paths.get(id(node), ()))
            what = next((v.value for k, v in _pairs(node) if k.value in ("key", "package")), "")
            raise ConfigError(
                f"{key_path}: {node.tag} {what} failed with {type(error).__name__}: {one_sentence(error)} "
                f"({loader.tree._at(node)})"
            ) from error

    return construct


def _plain_tag(loader, node):
    if isinstance(node, yaml.MappingNode):
        value = loader.construct_mapping(node, deep=True)
    elif isinstance(node, yaml.SequenceNode):
        value = loader.construct_sequence(node, deep=True)
    else:
        value = loader.construct_scalar(node)
    return Tagged(node.tag, value)


def _plain_text(loader, node):
    parts = loader.construct_sequence(node, deep=True) if isinstance(node, yaml.SequenceNode) else []
    return _plain_tag(loader, node) if any(isinstance(p, Tagged) for p in parts) else TAGS[node.tag](loader, node)


for _tag, _function in TAGS.items():
    _Loader.add_constructor(_tag, _with_key_path(_function))
    _PlainLoader.add_constructor(_tag, _plain_text if _tag in _TEXT_TAGS else _plain_tag)


def _pairs(node: yaml.Node) -> list[tuple[yaml.Node, yaml.Node]]:
    return node.value if isinstance(node, yaml.MappingNode) else []


def _name_of(key: yaml.Node) -> str | int:
    """What tells a key from others of its mapping; one made by a tag equals no other."""
    return key.value if isinstance(key, yaml.ScalarNode) else id(key)


def _children(node: yaml.Node) -> Iterator[tuple[str, yaml.Node]]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield str(key.value), value
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield str(index), value


class YamlTree:
    """One YAML file: ``set`` edits it, ``plain`` shows it, ``construct`` builds it, ``dump`` writes it."""

    def __init__(self, path: str):
        self.path = path
        file = Path(path).expanduser()
        if file.is_dir():
            inside = sorted(inner.name for inner in file.glob("*.y*ml"))
            hint = f", such as '{Path(path) / inside[0]}'" if inside else ""
            raise ConfigError(f"--config: '{path}' is a folder; accepted: a YAML file{hint}")
        if not file.is_file():
            siblings = [p.name for p in file.parent.glob("*.y*ml")] if file.parent.is_dir() else []
            hint = f"; the nearest file there is '{nearest(file.name, siblings)}'" if siblings else ""
            raise ConfigError(f"--config: there is no file '{path}'{hint}")
        try:
            loader = _Loader(file.read_text(encoding="utf-8"))
            self.root = loader.get_single_node()
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ConfigError(_syntax_sentence(path, error)) from error
        if not isinstance(self.root, yaml.MappingNode):
            raise ConfigError(f"--config: '{path}' holds no YAML mapping (it needs datasets, models, train and test)")
        for node, key_path in self._nodes():
            self._check(node, key_path)
        for node, _ in self._nodes():
            if isinstance(node, yaml.MappingNode):  # resolve `<<` merges; the mapping's own keys win
                loader.flatten_mapping(node)
                node.value = list({_name_of(key): (key, value) for key, value in node.value}.values())

    def _check(self, node: yaml.Node, key_path: tuple[str, ...]) -> None:
        """Refuses what PyYAML drops in silence (a key given twice) or rejects without a place (an unknown tag)."""
        if node.tag.startswith("!") and node.tag not in TAGS:
            raise ConfigError(
                f"{'.'.join(key_path)}: the tag {node.tag} is not one torchdistill knows; "
                f"the nearest valid choice is {nearest(node.tag, TAGS)} ({self._at(node)})"
            )
        lines: dict[str, int] = {}
        for key, _ in _pairs(node):
            line = key.start_mark.line + 1
            if isinstance(key, yaml.ScalarNode) and lines.setdefault(key.value, line) != line:
                where = ".".join((*key_path, key.value))
                raise ConfigError(
                    f"{where}: this key is given twice in '{self.path}', lines {lines[key.value]} and {line}"
                )

    def _nodes(self) -> list[tuple[yaml.Node, tuple[str, ...]]]:
        """Every node once, in the order of the file, with the key path where it is written."""
        found: dict[int, tuple[yaml.Node, tuple[str, ...]]] = {}

        def walk(node, key_path):
            if id(node) not in found:
                found[id(node)] = (node, key_path)
                for name, child in _children(node):
                    walk(child, (*key_path, name))

        walk(self.root, ())
        return list(found.values())

    def _at(self, node) -> str:
        return f"{Path(self.path).name}, line {node.start_mark.line + 1}" if node.start_mark else f"{self.path}, --set"

    def key_paths(self) -> dict[int, tuple[str, ...]]:
        """Where each node is written: its first key path in the file. Every other one is an alias."""
        return {id(node): key_path for node, key_path in self._nodes()}

    def location(self, dotted: str) -> str:
        """'file.yaml, line 12' of the deepest part of ``dotted`` that exists. Of its key: a value may be an alias."""
        node, mark, parts = self.root, self.root, dotted.split(".")
        while parts:
            children = {str(key.value): (value, key) for key, value in _pairs(node)}
            children = children or {name: (value, value) for name, value in _children(node)}
            # A key may itself contain dots.
            size = next((n for n in range(len(parts), 0, -1) if ".".join(parts[:n]) in children), None)
            if size is None:
                break
            node, mark = children[".".join(parts[:size])]
            parts = parts[size:]
        return self._at(mark)

    def set(self, dotted: str, value: Any, *, parse: bool = False, may_add=lambda key_path, key: True) -> None:
        """Sets one value, as if the file had been edited by hand.

        A change where an anchor is written reaches all its aliases; a change at an alias stays there.

        Args:
            dotted: the key path, such as ``train.stage1.num_epochs``; list items by index.
            value: any plain value; with ``parse``, YAML text.
            may_add: told the key path of a mapping and a key it lacks; False makes that key an error.
        """
        new = _parse(dotted, str(value)) if parse else yaml.compose(yaml.safe_dump(value), Loader=yaml.SafeLoader)
        for child in _all(new):
            child.start_mark = None  # its line numbers mean nothing in this file
        key_paths = self.key_paths()
        node, done, left = self.root, (), dotted.split(".")
        while True:
            children = dict(_children(node))
            size = next((n for n in range(len(left), 0, -1) if ".".join(left[:n]) in children), 1)
            name, left = ".".join(left[:size]), left[size:]
            key_path = ".".join((*done, name))
            if name not in children:
                here = ".".join(done) or "the file"
                if left or not isinstance(node, yaml.MappingNode) or not may_add(done, name):
                    near = nearest(name, children)
                    hint = f"; the nearest valid choice is '{'.'.join((*done, near))}'" if near else ""
                    raise ConfigError(f"--set {dotted}: {here} has no '{name}'{hint} ({self._at(node)})")
                node.value.append((yaml.ScalarNode("tag:yaml.org,2002:str", name), new))
                return
            child, done = children[name], (*done, name)
            written_here = key_paths.get(id(child)) == done
            if not left:
                if written_here:  # become the new node in place, so that aliases follow
                    anchor = getattr(child, "anchor", None)
                    child.__class__, child.__dict__ = new.__class__, {**new.__dict__}
                    if anchor:
                        child.anchor = anchor
                else:
                    _replace(node, name, new)
                return
            if isinstance(child, yaml.ScalarNode):
                if child.tag != "tag:yaml.org,2002:null":
                    raise ConfigError(
                        f"--set {dotted}: {key_path} is a single value, not a mapping ({self._at(child)})"
                    )
                child.__class__, child.tag, child.value = yaml.MappingNode, "tag:yaml.org,2002:map", []
                child.flow_style = False
            if not written_here:  # an alias: give this place its own copy, one level at a time
                child = copy.copy(child)
                child.value = list(child.value)
                child.__dict__.pop("anchor", None)
                _replace(node, name, child)
                key_paths[id(child)] = done
            node = child

    def plain(self) -> dict:
        """The file as dicts, lists and scalars, with `Tagged` in place of everything that would be imported."""
        return self._build(_PlainLoader)

    def construct(self) -> dict:
        """What torchdistill would load: imports and calls everything the tags name."""
        return self._build(_Loader)

    def _build(self, loader_class) -> dict:
        loader = loader_class("")
        loader.tree, loader.key_paths = self, self.key_paths()
        try:
            return loader.construct_document(self.root)
        except yaml.YAMLError as error:
            raise ConfigError(_syntax_sentence(self.path, error)) from error

    def dump(self) -> str:
        """The edited file as YAML that can be run again."""
        return yaml.serialize(self.root, Dumper=_Dumper, width=120, allow_unicode=True)


def _parse(dotted: str, text: str) -> yaml.Node:
    try:
        node = yaml.compose(text, Loader=yaml.FullLoader)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {dotted}: '{text}' is not YAML: {one_sentence(error)}") from error
    if node is None:
        return yaml.ScalarNode("tag:yaml.org,2002:null", "")
    if isinstance(node, yaml.ScalarNode) and node.tag.endswith(":str") and node.style is None:
        try:
            return yaml.ScalarNode("tag:yaml.org,2002:float", repr(float(text)))  # YAML 1.1 reads 1e-3 as text
        except ValueError:
            pass
    return node


def _all(node: yaml.Node) -> Iterator[yaml.Node]:
    yield node
    for key, value in _pairs(node):
        yield from _all(key)
        yield from _all(value)
    if isinstance(node, yaml.SequenceNode):
        for value in node.value:
            yield from _all(value)


def _replace(parent: yaml.Node, name: str, new: yaml.Node) -> None:
    if isinstance(parent, yaml.MappingNode):
        parent.value = [(key, new if str(key.value) == name else value) for key, value in parent.value]
    else:
        parent.value[int(name)] = new


def _syntax_sentence(path: str, error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    at = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
    return (
        f"--config: '{path}'{at} is not valid YAML: {one_sentence(Exception(getattr(error, 'problem', None) or error))}"
    )
