"""The built-in corpus: the reference text that ships inside every CPython.

It is real, mixed (prose, tables, code) and always there, so the whole chain runs offline. Documents and their keys, which are
the same on Python 3.11 to 3.14 wherever the thing itself exists:

    topic:assignment                language topics, from `pydoc_data.topics`
    module:csv                      module docstrings
    class:argparse.ArgumentParser   classes, with an outline of their public methods
    function:os.path.join           functions, under the shortest public name that exports them; builtins bare
    method:str.split                methods of the builtin types and of a few everyday classes (`METHOD_CLASSES`)

Algorithm. Sources are parsed, never imported: `import this` prints, `import antigravity` opens a browser. A definition
in a private file (`pathlib._local`) is named after the public module that re-exports it, which keeps keys stable while
CPython moves its code around. What is written in C has no source: a fixed list of modules free of side effects is
imported and asked for its docstrings; where a thing has both, the source wins. Left out: private names, tests, modules
that Python 3.12 or 3.13 removed, and documents with fewer than `MIN_WORDS` words of prose.

Cost: one pass over about 12 MB of source, 2 to 5 seconds on one core; about 3,000 documents, 2 MB of text.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import logging
import os
import re
import subprocess
import sys
import sysconfig
import types
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from zerogr.corpus.document import Document
from zerogr.corpus.pystdlib_names import C_MODULES, METHOD_CLASSES, PUBLIC_MODULE_NAMES, SKIPPED
from zerogr.errors import UserError

logger = logging.getLogger(__name__)

MIN_WORDS = 6
"""Words of prose below which a document says too little to be searched for."""

TABLE_LINE_FRACTION = 1 / 3
"""A topic is a table when more than this fraction of its non-blank lines are rows or rules of a text table."""

CODE_CHARACTER_FRACTION = 1 / 2
"""A document is code when more than this fraction of its characters are signatures or doctests."""

Function = ast.FunctionDef | ast.AsyncFunctionDef
Definition = Function | ast.ClassDef


@dataclass(slots=True)
class SourceModule:
    """What a parsed source file says about itself, before any name is resolved."""

    name: str
    """Dotted name of the file's module, such as `pathlib._local`."""
    is_package: bool
    """True for an `__init__.py`."""
    docstring: str = ""
    """As written, not yet cleaned."""
    exports: frozenset[str] | None = None
    """`__all__` where it is one plain list of strings; None where there is none or where it is computed."""
    definitions: dict[str, Definition] = field(default_factory=dict)
    """Top-level functions and classes, also those below `if` and `try`; the first with a docstring wins."""
    imports: list[tuple[str, str, str]] = field(default_factory=list)
    """(module, name there, name here) of each `from module import name`; `*` stands for every public name."""


def read_pystdlib() -> Iterator[Document]:
    """Yield the documents of the running interpreter's standard library, sorted by `doc_id`.

    Raises:
        UserError: the interpreter has no library sources or no `pydoc_data` (some minimal installations).
    """
    documents = {document.doc_id: document for document in _c_documents()}
    # Later entries replace earlier ones: the source's wording is the same everywhere and comes with full signatures.
    root = Path(sysconfig.get_path("stdlib"))
    documents |= {document.doc_id: document for document in _source_documents(_parse_library(root))}
    documents |= {document.doc_id: document for document in _topic_documents(root / "pydoc_data" / "topics.py")}
    for doc_id in sorted(documents):
        yield documents[doc_id]


# Topics


def _topic_documents(path: Path) -> Iterator[Document]:
    if not path.is_file():
        raise UserError(
            f"pystdlib: the language topics of CPython are not at {path}; install the full standard library."
        )
    assignments = (node for node in ast.parse(path.read_bytes()).body if isinstance(node, ast.Assign | ast.AnnAssign))
    topics = next(ast.literal_eval(node.value) for node in assignments if isinstance(node.value, ast.Dict))
    for name, text in topics.items():
        heading, _, body = text.strip().partition("\n")
        # The heading is underlined; title and text need not say it twice.
        body = body.lstrip("*=-\n").strip()
        yield Document(f"topic:{name}", heading.strip(), body, "table" if _is_table(body) else "text")


def _is_table(text: str) -> bool:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return sum(line.startswith(("|", "+-", "+=")) for line in lines) > TABLE_LINE_FRACTION * len(lines)


# Modules with sources


def _parse_library(root: Path) -> dict[str, SourceModule]:
    """Parse every module of the library that is not skipped, private ones too: public modules re-export from them."""
    modules = {}
    for path in _source_files(root):
        parts = path.relative_to(root).with_suffix("").parts
        if is_package := parts[-1] == "__init__":
            parts = parts[:-1]
        module = SourceModule(".".join(parts), is_package)
        tree = ast.parse(path.read_bytes())
        module.docstring = ast.get_docstring(tree, clean=False) or ""
        _collect(tree.body, module)
        modules[module.name] = module
    if not modules:
        raise UserError(
            f"pystdlib: {root} holds no sources of the standard library; use an interpreter that ships them."
        )
    return modules


def _source_files(root: Path) -> Iterator[Path]:
    for folder, subfolders, files in os.walk(root):
        # Pruned on the way down: site-packages may hold a hundred thousand files. A dash marks build folders.
        subfolders[:] = sorted(name for name in subfolders if name not in SKIPPED and "-" not in name)
        for file in sorted(files):
            stem, suffix = os.path.splitext(file)
            if suffix == ".py" and stem not in SKIPPED and not stem.startswith("_sysconfigdata"):
                yield Path(folder, file)


def _collect(body: list[ast.stmt], module: SourceModule) -> None:
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            earlier = module.definitions.get(node.name)
            if earlier is None or not ast.get_docstring(earlier):
                module.definitions[node.name] = node
        elif isinstance(node, ast.ImportFrom):
            source = _absolute_name(node, module)
            module.imports += [(source, alias.name, alias.asname or alias.name) for alias in node.names]
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            if node.targets[0].id == "__all__" and isinstance(node.value, ast.List | ast.Tuple):
                is_plain = all(isinstance(element, ast.Constant) for element in node.value.elts)
                module.exports = frozenset(ast.literal_eval(node.value)) if is_plain else None
            elif node.targets[0].id == "__doc__" and isinstance(node.value, ast.Constant):
                module.docstring = str(node.value.value)
        elif isinstance(node, ast.AugAssign | ast.Expr) and ast.unparse(node).startswith("__all__"):
            module.exports = None  # `__all__ += ...` and `__all__.extend(...)`: computed
        elif isinstance(node, ast.If):
            _collect(node.body + node.orelse, module)
        elif isinstance(node, ast.Try):
            _collect(node.body + [line for handler in node.handlers for line in handler.body] + node.orelse, module)


def _absolute_name(node: ast.ImportFrom, module: SourceModule) -> str:
    """Dotted name of the module that `from ... import` reads, with leading dots resolved against `module`."""
    if not node.level:
        return node.module or ""
    parts = module.name.split(".")
    package = parts[: len(parts) - node.level + module.is_package]
    return ".".join(package + ([node.module] if node.module else []))


def _public_names(modules: dict[str, SourceModule]) -> dict[str, Definition]:
    """Map the shortest public name of every public definition to its syntax tree."""
    names: dict[tuple[str, str], set[str]] = {}
    for module in modules.values():
        public_module = PUBLIC_MODULE_NAMES.get(module.name, module.name)
        if _is_private(public_module):
            continue
        for name, origin in _namespace(module, modules).items():
            source = origin[0]
            if source == module.name:
                is_public = module.exports is None or name in module.exports
            elif module.exports is not None:
                is_public = name in module.exports
            else:
                # Without a plain __all__: what comes from a private file or an own submodule is meant for users.
                is_public = source.rpartition(".")[2].startswith("_") or source.startswith(module.name + ".")
            if is_public and not _is_private(name) and name not in ("main", "test"):
                names.setdefault(origin, set()).add(f"{public_module}.{name}")
    shortest = {
        min(candidates, key=lambda name: (name.count("."), name)): origin for origin, candidates in names.items()
    }
    return {name: modules[source].definitions[definition] for name, (source, definition) in sorted(shortest.items())}


def _namespace(
    module: SourceModule, modules: dict[str, SourceModule], visited: frozenset[str] = frozenset()
) -> dict[str, tuple[str, str]]:
    """Map each name bound in `module` to the (module, name) of its definition, following imports between sources."""
    if module.name in visited:  # modules of a package may import each other
        return {}
    visited |= {module.name}
    found: dict[str, tuple[str, str]] = {}
    for source, name, bound in module.imports:
        if source not in modules:  # written in C
            continue
        if name != "*" and name in modules[source].definitions:
            found[bound] = (source, name)
            continue
        there = _namespace(modules[source], modules, visited)
        if name == "*":
            exports = modules[source].exports
            found |= {
                key: origin
                for key, origin in there.items()
                if (key in exports if exports is not None else not _is_private(key))
            }
        elif name in there:
            found[bound] = there[name]
    return found | {name: (module.name, name) for name in module.definitions}


def _is_private(name: str) -> bool:
    return any(part.startswith("_") for part in name.split("."))


def _source_documents(modules: dict[str, SourceModule]) -> Iterator[Document]:
    for module in modules.values():
        name = PUBLIC_MODULE_NAMES.get(module.name, module.name)
        if not _is_private(name):
            yield from _document("module", name, "", module.docstring)
    for name, node in _public_names(modules).items():
        if not isinstance(node, ast.ClassDef):
            yield from _document("function", name, _source_signature(node), ast.get_docstring(node, clean=False) or "")
            continue
        methods = [child for child in node.body if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)]
        start = next((method for method in methods if method.name in ("__init__", "__new__")), None)
        docstrings = [ast.get_docstring(part, clean=False) or "" for part in (node, start) if part is not None]
        public = {method.name: method for method in methods if not _is_private(method.name)}
        outline = [(_source_signature(method), ast.get_docstring(method) or "") for method in public.values()]
        yield from _class_document(
            name, _source_signature(start)[len(start.name) :] if start else "", docstrings, outline
        )
        if name in METHOD_CLASSES:
            for key, method in public.items():
                yield from _document(
                    "method", f"{name}.{key}", _source_signature(method), ast.get_docstring(method, clean=False) or ""
                )


def _source_signature(node: Function) -> str:
    """`name(arguments)` as written, without the bound first argument."""
    arguments = ast.unparse(node.args)
    result = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return f"{node.name}({_without_self(arguments)}){result}"


def _without_self(arguments: str) -> str:
    return re.sub(r"^\$?(self|cls)\b(, /)?(, )?", "", arguments)


# Modules written in C


def _c_documents() -> Iterator[Document]:
    """Documents of the C modules, read in an interpreter of its own: programs replace functions such as `print`."""
    root = str(Path(__file__).parents[2])
    program = (
        f"import sys; sys.path.insert(0, {root!r}); from zerogr.corpus import pystdlib; pystdlib._print_c_documents()"
    )
    printed = subprocess.run([sys.executable, "-I", "-c", program], stdout=subprocess.PIPE, check=True).stdout
    for fields in json.loads(printed):
        yield Document(**fields)


def _print_c_documents() -> None:
    print(json.dumps([asdict(document) for document in _describe_c_modules()]))


def _describe_c_modules() -> Iterator[Document]:
    described: set[int] = set()  # builtins.open is _io.open
    for import_name, public_module in C_MODULES.items():
        try:
            module = importlib.import_module(import_name)
        except ModuleNotFoundError:
            logger.warning("pystdlib: this Python was built without %s; its documents are left out.", import_name)
            continue
        if public_module == import_name:
            yield from _document("module", public_module, "", module.__doc__ or "")
        for name, value in sorted(vars(module).items()):
            if _is_private(name) or not isinstance(value, type | types.BuiltinFunctionType):
                continue
            # An alias, such as IOError for OSError, is described under its own name.
            if value.__name__ != name or id(value) in described:
                continue
            described.add(id(value))
            name = name.removeprefix("openssl_")
            qualified = f"{public_module}.{name}" if public_module else name
            if isinstance(value, type):
                yield from _c_class_documents(qualified, value)
            else:
                yield from _document("function", qualified, name + _c_signature(value), value.__doc__ or "")


def _c_class_documents(name: str, cls: type) -> Iterator[Document]:
    methods = {
        key: value
        for key, value in sorted(vars(cls).items())
        if not _is_private(key)
        and isinstance(value, types.MethodDescriptorType | types.ClassMethodDescriptorType | staticmethod)
    }
    outline = [(key + _c_signature(value), inspect.cleandoc(value.__doc__ or "")) for key, value in methods.items()]
    yield from _class_document(name, _c_signature(cls), [cls.__doc__ or ""], outline)
    if name in METHOD_CLASSES:
        for key, value in methods.items():
            yield from _document("method", f"{name}.{key}", key + _c_signature(value), value.__doc__ or "")


def _c_signature(value: object) -> str:
    """`(arguments)`, or an empty string where the docstring itself tells how to call it."""
    signature = getattr(value, "__text_signature__", None)
    # An argument named with a dollar sign is passed by the interpreter, not by the caller.
    return re.sub(r"\(\$\w+(, /)?(, )?", "(", signature) if signature else ""


# Documents


def _class_document(
    name: str, arguments: str, docstrings: list[str], outline: list[tuple[str, str]]
) -> Iterator[Document]:
    """A class: its docstrings and, unless its methods are documents of their own, the summary of each method."""
    prose = "\n\n".join(inspect.cleandoc(docstring) for docstring in docstrings if docstring.strip())
    lines: list[str] = []
    if name not in METHOD_CLASSES:
        for signature, docstring in outline:
            if docstring:
                lines.append(f"    {signature}\n        {_first_sentence(docstring)}")
    text = prose + ("\n\nMethods:\n" if lines else "") + "\n".join(lines)
    code = "".join(signature for signature, docstring in outline if docstring) if lines else ""
    yield from _document("class", name, f"class {name.rpartition('.')[2]}{arguments}", text, extra_code=len(code))


def _first_sentence(docstring: str) -> str:
    """The first sentence of the first paragraph, on one line."""
    paragraph = " ".join(docstring.split("\n\n", maxsplit=1)[0].split())
    return re.split(r"(?<=\.) ", paragraph, maxsplit=1)[0]


def _document(sort: str, name: str, signature: str, docstring: str, extra_code: int = 0) -> Iterator[Document]:
    """One document, or none if the docstring is too short. `extra_code`: characters of it that are known to be code."""
    body = inspect.cleandoc(docstring).strip()
    if len(re.findall(r"[^\W\d_]+", body)) < MIN_WORDS:
        return
    text = f"{signature}\n\n{body}" if signature else body
    code = len(signature) + extra_code + _doctest_characters(body)
    kind = "code" if code > CODE_CHARACTER_FRACTION * len(text) else "text"
    yield Document(f"{sort}:{name}", name, text, kind)


def _doctest_characters(text: str) -> int:
    """Characters of the interactive examples in a text: from a `>>>` line to the next blank one."""
    return sum(len(block) for block in re.findall(r"^ *>>> .*(?:\n.*\S.*)*", text, flags=re.MULTILINE))
