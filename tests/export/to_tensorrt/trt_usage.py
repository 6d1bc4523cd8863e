"""Uses of TensorRT's Python bindings in our source, and the API that the bindings have.

`dump` (run in a fresh interpreter) writes down every class, member and signature of a bindings module; pybind11 puts
signatures into docstrings. `Usage` walks our source, follows the types of the bindings through it by those signatures,
and notes every member with how it is used.
"""

from __future__ import annotations

import ast
import importlib
import json
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MODULE = "module"
ROOTS = {"trt": MODULE, "logger": "ILogger"}
"""Names of variables and attributes that hold the module, and the logger that the adapter makes."""
PARAMETERS = {
    "builder": "Builder",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "complaint": "ParserError",
    "config": "IBuilderConfig",
    "tensor": "ITensor",
    "runtime": "Runtime",
    "engine": "ICudaEngine",
    "context": "IExecutionContext",
}
"""Names that hold such a thing wherever its type is not seen: parameters annotated `Any`, attributes of objects, and
results whose type a signature does not tell."""
BUILT_IN = ("__init__", "__members__")

Api = dict[str, dict[str, dict[str, Any]]]


def dump(module: str) -> Api:
    """Class name (or `module`) to member to its kind, signatures, type and whether it can be assigned."""
    loaded = importlib.import_module(module)
    api: Api = {MODULE: {}}
    for name in dir(loaded):
        value = getattr(loaded, name)
        if isinstance(value, type):
            _dump_class(api, name, value)
            api[MODULE][name] = {"kind": "class"}
        else:
            api[MODULE][name] = {"kind": "value"}
    return api


def _dump_class(api: Api, path: str, cls: type) -> None:
    members: dict[str, dict[str, Any]] = {}
    for name in dir(cls):
        if name.startswith("_") and name not in BUILT_IN:
            continue
        value = getattr(cls, name)
        if isinstance(value, type):
            members[name] = {"kind": "class"}
            if name not in ("__class__",) and path.count(".") < 2:
                _dump_class(api, f"{path}.{name}", value)
        elif isinstance(value, property):
            given = signatures(getattr(value.fget, "__doc__", None) or "")
            members[name] = {"kind": "property", "returns": given[0]["returns"] if given else None}
            members[name]["settable"] = value.fset is not None
        elif callable(value):
            members[name] = {"kind": "method", "signatures": signatures(value.__doc__ or "")}
        else:
            members[name] = {"kind": "value", "enumerator": isinstance(value, cls)}
    api[path] = members


def signatures(doc: str) -> list[dict[str, Any]]:
    """Every signature in a docstring of pybind11: the parameters behind self, how many must be given, the result."""
    found = []
    for match in re.finditer(r"^(?:\d+\. )?\w*\(((?:self|arg0): .*)\) -> (.*)$", doc, re.MULTILINE):
        parameters = _split(match[1])[1:]
        names = [parameter.partition(":")[0].strip() for parameter in parameters]
        required = sum("=" not in parameter for parameter in parameters)
        found.append({"names": names, "required": required, "returns": match[2].rsplit(".", 1)[-1].strip()})
    return found


def _split(text: str) -> list[str]:
    parts, depth = [""], 0
    for character in text:
        depth += (character in "[(<{") - (character in "])>}")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts


@dataclass(frozen=True, order=True)
class Touch:
    """One use of a member."""

    owner: str
    member: str
    kind: str
    """``read``, ``call``, ``assign`` or ``override``."""
    arguments: int = 0
    keywords: tuple[str, ...] = ()
    where: str = ""

    def problem(self, api: Api) -> str | None:
        """The reason why the bindings do not allow this use; None if they do."""
        if self.owner not in api:
            return f"{self.where}: there is no class {self.owner}"
        member = api[self.owner].get(self.member)
        label = f"{self.where}: {self.owner}.{self.member}"
        if member is None:
            return f"{label} does not exist"
        if self.kind == "assign":
            return None if member.get("settable") else f"{label} cannot be assigned"
        if self.kind == "read":
            return f"{label} is a method, and is not called" if member["kind"] == "method" else None
        if self.owner == MODULE and member["kind"] == "value":
            return None  # a function of the module, written in Python
        if member["kind"] != "method":
            return f"{label} is a {member['kind']}, and is called"
        if any(self._fits(signature) for signature in member["signatures"]):
            return None
        return f"{label} takes {member['signatures']}, and is given {self.arguments} and {list(self.keywords)}"

    def _fits(self, signature: dict[str, Any]) -> bool:
        names = signature["names"]
        if self.arguments < 0:  # of unknown number
            return True
        if self.kind == "override":
            return self.arguments == len(names)
        total = self.arguments + len(self.keywords)
        return signature["required"] <= total <= len(names) and set(self.keywords) <= set(names[self.arguments :])


@dataclass
class Usage(ast.NodeVisitor):
    """Every use of the bindings in one source file.

    Args:
        api: the bindings whose signatures give the types; all that are supported give the same.
        source: a file of ours.
    """

    api: Api
    source: Path
    touches: set[Touch] = field(default_factory=set)
    _types: dict[str, str | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        tree = ast.parse(self.source.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            for child in ast.iter_child_nodes(node):
                child.parent = node  # type: ignore[attr-defined]
        self._attributes = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
        self._resolved: set[int] = set()
        self.visit(tree)

    def forgotten(self) -> list[str]:
        """Attributes that no type was found for, although they are named like something of the bindings alone."""
        distinctive = {
            member
            for owner, members in self.api.items()
            for member in members
            if owner != MODULE and "_" in member.strip("_") and not member.startswith("__")
        }
        return [
            f"{self.source.name}:{node.lineno}: .{node.attr}"
            for node in self._attributes
            if node.attr in distinctive and id(node) not in self._resolved
        ]

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        """Types of variables do not outlive their function."""
        before = dict(self._types)
        for argument in node.args.args:
            annotated = argument.annotation is None or ast.unparse(argument.annotation) == "Any"
            if argument.arg in PARAMETERS and annotated:
                self._types[argument.arg] = PARAMETERS[argument.arg]
        self.generic_visit(node)
        self._types = before

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        """Methods of a class that derives from one of the bindings override."""
        for base in node.bases:
            owner = self.type_of(base)
            if owner is not None and owner.startswith("class "):
                for method in node.body:
                    if isinstance(method, ast.FunctionDef) and not method.name.startswith("_"):
                        self._note(method, owner[6:], method.name, "override", len(method.args.args) - 1)
        self.generic_visit(node)

    def visit_Assign(self, node: ast.Assign) -> None:
        """A variable takes the type of what it is given."""
        self.visit(node.value)
        given = self.type_of(node.value)
        for target in node.targets:
            if isinstance(target, ast.Name):
                self._types[target.id] = given or PARAMETERS.get(target.id)
            elif isinstance(target, ast.Tuple):
                names = (name.id for name in target.elts if isinstance(name, ast.Name))
                self._types.update({name: PARAMETERS.get(name) for name in names})
            else:
                self.visit(target)

    def visit_Call(self, node: ast.Call) -> None:
        """Notes a call whether or not its result is used."""
        self.type_of(node)
        self.generic_visit(node)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        """Notes the member where its owner's type is known."""
        self.type_of(node)
        self.generic_visit(node)

    def type_of(self, node: ast.expr) -> str | None:
        """The bindings' class of an expression's value, ``class NAME`` for a class itself, or None."""
        if isinstance(node, ast.Name):
            return self._types.get(node.id, ROOTS.get(node.id))
        if isinstance(node, ast.Call):
            return self._call(node)
        if not isinstance(node, ast.Attribute):
            return None
        owner = self.type_of(node.value)
        if owner is None:
            return ROOTS.get(node.attr) or PARAMETERS.get(node.attr.lstrip("_"))
        self._resolved.add(id(node))
        path = owner.removeprefix("class ")
        member = self.api.get(path, {}).get(node.attr, {})
        called = isinstance(self._parent(node), ast.Call) and self._parent(node).func is node
        if member.get("kind") == "class":
            self._note(node, path, node.attr, "read")
            return "class " + (node.attr if path == MODULE else f"{path}.{node.attr}")
        if not called:
            self._note(node, path, node.attr, "assign" if isinstance(node.ctx, ast.Store) else "read")
        if member.get("enumerator"):
            return path
        returned: str | None = member.get("returns")
        return returned if returned in self.api else None

    def _call(self, node: ast.Call) -> str | None:
        function = node.func
        starred = any(isinstance(argument, ast.Starred) for argument in node.args)
        count = -1 if starred else len(node.args)
        keywords = tuple(keyword.arg or "" for keyword in node.keywords)
        called = self.type_of(function)
        if called is not None and called.startswith("class "):
            self._note(node, called[6:], "__init__", "call", count, keywords)
            return called[6:]
        if not isinstance(function, ast.Attribute):
            return None
        owner = self.type_of(function.value)
        if owner is None:
            return None
        path = owner.removeprefix("class ")
        if owner.startswith("class ") and function.attr == "__init__":
            count -= 1  # self is given
        self._note(node, path, function.attr, "call", count, keywords)
        results = self.api.get(path, {}).get(function.attr, {}).get("signatures") or [{}]
        returned: str | None = results[0].get("returns")
        return returned if returned in self.api else None

    def _note(
        self,
        node: ast.AST,
        owner: str,
        member: str,
        kind: str,
        arguments: int = 0,
        keywords: tuple[str, ...] = (),
    ) -> None:
        where = f"{self.source.name}:{node.lineno}"  # type: ignore[attr-defined]
        self.touches.add(Touch(owner, member, kind, arguments, keywords, where))

    @staticmethod
    def _parent(node: ast.AST) -> Any:
        return getattr(node, "parent", None)


if __name__ == "__main__":
    print(json.dumps(dump(sys.argv[1])))
