"""What a module of medialib/ must keep to so that amalgamate.py can put it into one file.

A breach raises RuleError, whose text is `path:line: message`.
"""

from __future__ import annotations

import ast
import builtins
import sys
from pathlib import Path

NEWER_BUILTINS = {"aiter", "anext", "EncodingWarning", "BaseExceptionGroup", "ExceptionGroup",
                  "PythonFinalizationError"}
BUILTINS = {name for name in dir(builtins) if name[0] != "_"} | NEWER_BUILTINS
PURE = {  # what may be called while a module is imported: builtins and modules without effects
    "bytes", "chr", "dict", "float", "frozenset", "getattr", "hasattr", "int", "len", "list", "map",
    "max", "min", "object", "ord", "property", "range", "set", "sorted", "str", "sum", "tuple",
    "type", "zip", "collections", "contextlib", "dataclasses", "datetime", "enum", "functools",
    "ipaddress", "itertools", "logging", "math", "operator", "re", "string", "struct", "threading",
    "types", "typing",
}
BANNED = {"__file__", "__name__", "__doc__", "__all__", "TYPE_CHECKING", "ProcessPoolExecutor",
          "pickle", "shelve", "marshal", "copyreg", "multiprocessing", "__future__", "medialib"}
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
TOP_LEVEL = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign)
IMPORTS = (ast.Import, ast.ImportFrom)
FUTURE = ast.dump(ast.parse("from __future__ import annotations").body[0])


class RuleError(Exception):
    """A source breaks a rule; the text is `path:line: message`."""

    def __init__(self, path: str, line: int, message: str):
        super().__init__(f"{path}:{line}: {message}")


def read_text(root: Path, shown: str) -> str:
    """A source as text: UTF-8, LF only, with a last newline."""
    try:
        text = (root / shown).read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RuleError(shown, 1, f"cannot be read as UTF-8 text: {error}") from None
    for odd in "\r\0\ufeff\f":
        if odd in text:
            raise RuleError(shown, text[:text.index(odd)].count("\n") + 1, f"holds {odd!r}")
    if not text.endswith("\n"):
        raise RuleError(shown, text.count("\n") + 1, "does not end with a newline")
    return text


def is_optional_import(node: ast.AST) -> bool:
    """Whether it is `try: import name` / `except ImportError: name = None` and nothing else."""
    if not (isinstance(node, ast.Try) and isinstance(node.body[0], IMPORTS)):
        return False
    absent = [f"    {alias.name} = None\n" for alias in node.body[0].names]
    wanted = ast.parse("try:\n    pass\nexcept ImportError:\n" + "".join(absent)).body[0]
    wanted.body = node.body[:1]
    return ast.dump(node) == ast.dump(wanted)


def fills_a_table(node: ast.AST) -> bool:
    """Whether it is `NAME.update(...)`: making one's own table in two steps."""
    called = getattr(getattr(node, "value", None), "func", None)
    return (isinstance(node, ast.Expr) and isinstance(called, ast.Attribute)
            and called.attr == "update" and isinstance(called.value, ast.Name))


def run_on_import(node: ast.AST):
    """The node and all below it that runs on import: neither function bodies nor annotations."""
    yield node
    for field, value in ast.iter_fields(node):
        if (field == "body" and isinstance(node, FUNCTIONS)) or field in ("annotation", "returns"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from run_on_import(child)


class Module:
    """One source, split into `imports` and `code` (syntax) and its `body` (text from `first`)."""

    def __init__(self, root: Path, name: str):
        self.name, self.path = name, f"medialib/{name}.py"
        self.text = read_text(root, self.path)
        try:
            tree = ast.parse(self.text, self.path, feature_version=(3, 8))
        except SyntaxError as error:
            raise RuleError(self.path, error.lineno or 1, f"not Python 3.8: {error.msg}") from None
        self.docstring = ast.get_docstring(tree)
        if not self.docstring or [ast.dump(node) for node in tree.body[1:2]] != [FUTURE]:
            self.stop(None, "must start with a docstring and `from __future__ import annotations`")
        kinds = [isinstance(node, IMPORTS) or is_optional_import(node) for node in tree.body[2:]]
        count = kinds.index(False) if False in kinds else len(kinds)
        self.imports, self.code = tree.body[2:count + 2], tree.body[count + 2:]
        last = tree.body[count + 1].end_lineno
        if self.code and self.code[0].lineno <= last:
            self.stop(self.code[0], "code on the line of an import")
        after = "\n".join(self.text.split("\n")[last:])
        self.body = after.strip("\n") + "\n"
        self.first = last + 1 + len(after) - len(after.lstrip("\n"))

    def stop(self, node: ast.AST, message: str):
        raise RuleError(self.path, getattr(node, "lineno", 1), message)

    def check_imports(self, earlier: dict, origins: dict) -> None:
        for statement in self.imports:
            node = statement.body[0] if isinstance(statement, ast.Try) else statement
            for alias in node.names:
                if alias.asname or alias.name == "*":
                    self.stop(node, "an import with an alias or a star")
                if getattr(node, "level", 0):
                    self.check_sibling(node, alias.name, earlier, origins)
                else:
                    self.check_outside(node, alias.name, node is not statement, origins)

    def check_sibling(self, node: ast.AST, name: str, earlier: dict, origins: dict) -> None:
        if node.level > 1 or node.module not in earlier:
            self.stop(node, f"{node.module or '.'} is not a module earlier in the tool's list")
        if origins.get(name) != earlier[node.module].path:
            self.stop(node, f"{earlier[node.module].path} does not make the name {name}")

    def check_outside(self, node: ast.AST, name: str, optional: bool, origins: dict) -> None:
        """An import from outside the package: standard library, or optional."""
        source = getattr(node, "module", None)
        top = (source or name).split(".")[0]
        if {top, name} & BANNED:
            self.stop(node, f"{top} may not be imported")
        if not optional and top not in getattr(sys, "stdlib_module_names", [top]):
            self.stop(node, f"{top} is not in the standard library: import it optionally")
        origin = f"{source}.{name}" if source else top
        self.claim(node, name if source else top, self.path if optional else origin, origins)

    def claim(self, node: ast.AST, name: str, origin: str, origins: dict) -> None:
        if origins.setdefault(name, origin) != origin:
            self.stop(node, f"the name {name} already comes from {origins[name]}")

    def claim_names(self, origins: dict) -> None:
        for node in self.code:
            for target in getattr(node, "targets", [getattr(node, "target", node)]):
                stored = [target] if isinstance(node, TOP_LEVEL[:3]) else ast.walk(target)
                for part in stored:
                    name = getattr(part, "name", getattr(part, "id", None))
                    if name and not isinstance(getattr(part, "ctx", None), ast.Load):
                        self.claim(part, name, self.path, origins)

    def check_code(self, origins: dict, loggers: list) -> None:
        for node in (part for statement in self.code for part in ast.walk(statement)):
            name = getattr(node, "attr", getattr(node, "id", None))
            if isinstance(node, IMPORTS + (ast.Global,)):
                self.stop(node, f"{type(node).__name__.lower()} below the imports")
            if name in BANNED and not (isinstance(node, ast.Attribute) and name[0] == "_"):
                self.stop(node, f"{name} is not allowed")
            if name == "getLogger" and (loggers.append(node) or len(loggers) > 1
                                        or 'getLogger("medialib")' not in self.text):
                self.stop(node, 'the logger is getLogger("medialib"), made once')
        for statement in self.code:
            if not isinstance(statement, TOP_LEVEL) and not fills_a_table(statement):
                self.stop(statement, "only definitions and assignments may stand at top level")
            for node in run_on_import(statement):
                self.check_import_time(node, origins)

    def check_import_time(self, node: ast.AST, origins: dict) -> None:
        if isinstance(node, ast.Attribute) and node.attr in ("environ", "argv"):
            self.stop(node, f"reads {node.attr} on import")
        called = node.func if isinstance(node, ast.Call) else None
        while isinstance(called, (ast.Attribute, ast.Call, ast.Subscript)):
            called = called.func if isinstance(called, ast.Call) else called.value
        if isinstance(called, ast.Name):
            origin = origins.get(called.id, "medialib/")
            if not origin.startswith("medialib/") and not {called.id, origin.split(".")[0]} & PURE:
                self.stop(node, f"calls {called.id} on import")


def load_modules(root: Path, names: list) -> list:
    """The modules of one bundle, each checked against those before it."""
    origins, earlier, loggers = dict.fromkeys(BUILTINS, "Python itself"), {}, []
    for name in names:
        module = Module(root, name)
        module.check_imports(earlier, origins)
        module.claim_names(origins)
        module.check_code(origins, loggers)
        earlier[name] = module
    return list(earlier.values())
