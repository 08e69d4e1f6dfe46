"""Counts that show how the code reads, printed as a table or as JSON.

    python -m tools.measure_code [FOLDER] [--json]

FOLDER is a package (default: mnist_ray). The folders jobs and tests beside FOLDER count in the last two rows only.

Functions
    Every `def` and `async def` counts, at module level, in classes and nested.
    A function's lines run from `def` to its last line. Decorators and the docstring do not count; blank lines and
    comments do. A nested function's lines count in the outer function too.
    The 90th percentile is the nearest rank.

One-use private functions
    A private function is any function whose name starts with one underscore.
    A mention is a name that is read, or an attribute, anywhere in the function's own file.
    The first figure is private functions mentioned exactly once, as a share of all functions. This rule gives 27 %
    for the code before the restructuring, 17 % for Optuna 5.0.0 and 5 % for httpx 0.28.1.
    The second figure is stricter. The one mention is a call, no decorator stands on the function, and no other file
    mentions the name without defining a function of that name. Functions passed as values drop out.
    Mentions go by name alone: two classes in one file that each call their own `_path` mention `_path` twice.

Untyped dictionaries
    `dict[str, Any]` counts wherever these six tokens follow each other, so in annotations, aliases and casts.
    `Mapping[str, Any]` and its kin (see MAPPINGS) count separately.

Event keys
    A constant string in `x["key"]` or `x.get("key")` counts where `x` is an untyped dictionary, or comes from one
    by loops, subscripts, methods or assignment. Untyped dictionaries are the results of LOADERS, variables, fields
    and functions annotated with one of the types above, and containers of them. Only the parts of FOLDER named in
    READERS are searched, without record/events.py. A table's column, `table["epoch"]`, is no event key.
    Where several functions or fields share a name, the name counts as untyped only if all of them are.
    Stage names are constant strings given to the functions in STAGE_CALLS, in the same files.

Parts of Ray that are not public
    A private part is an import from Ray with a component that starts with one underscore, a keyword that starts so in
    a call of something imported from Ray, or an attribute that starts so, in a file that imports Ray, of anything but
    `self` and other packages. An attribute that FOLDER itself defines counts only on an import from Ray and on
    `super()`. Each counts once a file, an import each time.
    An undocumented part is an import from UNDOCUMENTED.
    Options in a dictionary, methods that override private ones and `getattr` are not seen.
    RAY_ variables are all that a string names in full, apart from those only read by `.get` or `getenv`.

Lines
    Lines with code count, docstrings among them. Blank lines and lines with nothing but a comment do not.
"""

import argparse
import ast
import io
import json
import math
import re
import statistics
import tokenize
from collections import ChainMap, Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path, PurePath

MAPPINGS = ("Dict", "Mapping", "MutableMapping")
LOADERS = ("loads", "safe_load")
READERS = {
    *("record", "pipeline", "ray_backend", "report", "cli"),
    *("running", "reviewing", "cli.py", "remote_commands.py", "progress.py"),  # names before the restructuring
}
STAGE_CALLS = ("stage", "record_stage", "events")
UNDOCUMENTED = ("ray.train.v2", "ray.tune.execution")
PASSED_THROUGH = ("cast", "copy", "dict", "enumerate", "list", "next", "reversed", "sorted", "tuple", "zip")

UNTYPED = re.compile(rf"\b({'|'.join(('dict', *MAPPINGS))})\[str, Any\]")
RAY_VARIABLE = re.compile(r"RAY_\w+")
EMPTY_TOKENS = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}

Function = ast.FunctionDef | ast.AsyncFunctionDef
Trees = dict[PurePath, ast.Module]  # by path relative to the package


@dataclass(frozen=True)
class LongFunction:
    """A function's place and its number of lines."""

    where: str
    num_lines: int


@dataclass(frozen=True)
class Lengths:
    """How long functions are, in lines."""

    num_functions: int
    median: float
    percentile_90: int
    longest: list[LongFunction]


@dataclass(frozen=True)
class OneUse:
    """Private functions with one use, by the wide rule and by the strict one."""

    num_mentioned_once: int
    mentioned_once_percent: float
    num_called_once: int
    called_once_percent: float


@dataclass(frozen=True)
class EventKeys:
    """Places where a string picks a part of an event, by file."""

    subscripts: dict[str, int]
    stage_names: dict[str, int]


@dataclass(frozen=True)
class RayParts:
    """Parts of Ray that are not public, by file."""

    private: dict[str, list[str]]
    undocumented: dict[str, list[str]]
    variables: dict[str, list[str]]


@dataclass(frozen=True)
class Measurements:
    """All counts of one package."""

    lengths: Lengths
    one_use: OneUse
    num_dict_str_any: int
    num_mapping_str_any: int
    event_keys: EventKeys
    ray: RayParts
    num_product_lines: int
    num_test_lines: int


def main() -> None:
    """Print the counts for the folder on the command line."""
    parser = argparse.ArgumentParser(description="Count how the code reads.")
    parser.add_argument("folder", nargs="?", type=Path, default=Path(__file__).parents[1] / "mnist_ray")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    try:
        found = measure(options.folder.resolve())
    except (SyntaxError, ValueError) as error:
        parser.error(f"{options.folder}: {error}")
    print(json.dumps(asdict(found), indent=2) if options.json else table(found))


def measure(folder: Path) -> Measurements:
    """Count everything in a package and in the folders beside it. Raises SyntaxError, ValueError without functions."""
    sources = {path.relative_to(folder): path.read_text() for path in sorted(folder.rglob("*.py"))}
    trees: Trees = {path: ast.parse(source, str(path)) for path, source in sources.items()}
    untyped = Counter(kind for source in sources.values() for kind in untyped_annotations(source))
    return Measurements(
        lengths=function_lengths(trees),
        one_use=one_use_functions(trees),
        num_dict_str_any=untyped["dict"],
        num_mapping_str_any=sum(untyped[kind] for kind in MAPPINGS),
        event_keys=event_keys(trees),
        ray=ray_parts(trees),
        num_product_lines=sum(map(num_code_lines, sources.values())) + _lines_below(folder.parent / "jobs"),
        num_test_lines=_lines_below(folder.parent / "tests"),
    )


# --- functions


def functions(tree: ast.AST) -> list[Function]:
    """All functions, nested ones among them."""
    return [node for node in ast.walk(tree) if isinstance(node, Function)]


def num_lines(function: Function) -> int:
    """Lines from `def` to the end, without the docstring."""
    assert function.end_lineno is not None
    lines = function.end_lineno - function.lineno + 1
    if ast.get_docstring(function, clean=False) is not None:
        docstring = function.body[0]
        assert docstring.end_lineno is not None
        lines -= docstring.end_lineno - docstring.lineno + 1
    return max(lines, 1)


def function_lengths(trees: Trees) -> Lengths:
    """Lengths of all functions. Raises ValueError if there are none."""
    found = [
        LongFunction(f"{path}:{function.lineno} {function.name}", num_lines(function))
        for path, tree in trees.items()
        for function in functions(tree)
    ]
    if not found:
        raise ValueError("no functions: name the folder of a package with Python files")
    found.sort(key=lambda each: each.num_lines)
    lengths = [each.num_lines for each in found]
    rank = math.ceil(0.9 * len(lengths))
    return Lengths(len(found), statistics.median(lengths), lengths[rank - 1], found[:-4:-1])


def one_use_functions(trees: Trees) -> OneUse:
    """Private functions with one use."""
    mentions = {path: Counter(_mentions(tree)) for path, tree in trees.items()}
    names = {path: {function.name for function in functions(tree)} for path, tree in trees.items()}
    num_functions = sum(len(functions(tree)) for tree in trees.values())
    num_mentioned_once = num_called_once = 0
    for path, tree in trees.items():
        calls = Counter(_name(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call))
        for function in functions(tree):
            name = function.name
            if not _is_private(name) or mentions[path][name] != 1:
                continue
            num_mentioned_once += 1
            elsewhere = any(mentions[other][name] and name not in names[other] for other in trees if other != path)
            num_called_once += calls[name] == 1 and not function.decorator_list and not elsewhere
    shares = [100 * number / max(num_functions, 1) for number in (num_mentioned_once, num_called_once)]
    return OneUse(num_mentioned_once, shares[0], num_called_once, shares[1])


def _mentions(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) or (isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)):
            yield _name(node)


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def _name(node: ast.AST) -> str:
    """The last component of a name or an attribute; empty for anything else."""
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


# --- tokens


def untyped_annotations(source: str) -> Iterator[str]:
    """The first word of each `dict[str, Any]` and `Mapping[str, Any]`."""
    tokens = [token.string for token in _tokens(source) if token.type in (tokenize.NAME, tokenize.OP)]
    for start, word in enumerate(tokens):
        if word in ("dict", *MAPPINGS) and tokens[start + 1 : start + 6] == ["[", "str", ",", "Any", "]"]:
            yield word


def num_code_lines(source: str) -> int:
    """Lines that are neither blank nor only a comment."""
    lines = source.splitlines()
    with_code = {
        number
        for token in _tokens(source)
        if token.type not in EMPTY_TOKENS
        for number in range(token.start[0], token.end[0] + 1)
    }
    return sum(1 for number in with_code if lines[number - 1].strip())


def _tokens(source: str) -> Iterator[tokenize.TokenInfo]:
    return tokenize.generate_tokens(io.StringIO(source).readline)


def _lines_below(folder: Path) -> int:
    return sum(num_code_lines(path.read_text()) for path in folder.rglob("*.py"))


# --- event keys


def event_keys(trees: Trees) -> EventKeys:
    """Constant strings that pick parts of events."""
    functions_, fields = _untyped_functions(trees), _untyped_fields(trees)
    subscripts: dict[str, int] = {}
    stage_names: dict[str, int] = {}
    for path, tree in trees.items():
        if path.parts[0] not in READERS or path == PurePath("record/events.py"):
            continue
        finder = KeyFinder(functions_, fields)
        finder.visit(tree)
        if finder.num_keys:
            subscripts[str(path)] = finder.num_keys
        if finder.num_stage_names:
            stage_names[str(path)] = finder.num_stage_names
    return EventKeys(subscripts, stage_names)


class KeyFinder(ast.NodeVisitor):
    """A walk through one file that follows untyped dictionaries and counts constant keys."""

    def __init__(self, functions: set[str], fields: set[str]) -> None:
        self.num_keys = 0
        self.num_stage_names = 0
        self._functions = functions
        self._fields = fields
        self._names: ChainMap[str, bool] = ChainMap()  # whether a variable is untyped, innermost function first

    def visit_FunctionDef(self, node: Function) -> None:
        self._names = self._names.new_child()
        for argument in ast.walk(node.args):
            if isinstance(argument, ast.arg):
                self._names[argument.arg] = _is_untyped(argument.annotation)
        self.generic_visit(node)
        self._names = self._names.parents

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_Assign(self, node: ast.Assign) -> None:
        self.generic_visit(node)
        for target in node.targets:
            self._bind(target, self._holds(node.value))

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        self.generic_visit(node)
        self._bind(node.target, _is_untyped(node.annotation))

    def visit_NamedExpr(self, node: ast.NamedExpr) -> None:
        self.generic_visit(node)
        self._bind(node.target, self._holds(node.value))

    def visit_For(self, node: ast.For) -> None:
        self._bind(node.target, self._holds(node.iter))
        self.generic_visit(node)

    def _visit_comprehension(self, node: ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp) -> None:
        self._names = self._names.new_child()
        for loop in node.generators:
            self._bind(loop.target, self._holds(loop.iter))
        self.generic_visit(node)
        self._names = self._names.parents

    visit_ListComp = visit_SetComp = visit_GeneratorExp = visit_DictComp = _visit_comprehension

    def visit_Subscript(self, node: ast.Subscript) -> None:
        self.generic_visit(node)
        self.num_keys += _is_string(node.slice) and self._holds(node.value)

    def visit_Call(self, node: ast.Call) -> None:
        self.generic_visit(node)
        if not node.args or not _is_string(node.args[0]):
            return
        self.num_stage_names += _name(node.func) in STAGE_CALLS
        if isinstance(node.func, ast.Attribute) and node.func.attr == "get":
            self.num_keys += self._holds(node.func.value)

    def _bind(self, target: ast.expr, is_untyped: bool) -> None:
        """Note a new value of the variables in an assignment's target; subscripts and attributes keep theirs."""
        if isinstance(target, ast.Name):
            self._names[target.id] = is_untyped
        elif isinstance(target, ast.Tuple | ast.List | ast.Starred):
            for part in ast.iter_child_nodes(target):
                if isinstance(part, ast.expr):
                    self._bind(part, is_untyped)

    def _holds(self, node: ast.expr) -> bool:
        """Whether a value is an untyped dictionary, holds some, or comes out of one."""
        match node:
            case ast.Name(id=name):
                return self._names.get(name, name in self._functions)
            case ast.Attribute(attr=name):
                return name in self._functions or name in self._fields
            case ast.Subscript(value=value) | ast.NamedExpr(value=value) | ast.Starred(value=value):
                return self._holds(value)
            case ast.BoolOp(values=values) | ast.Tuple(elts=values) | ast.List(elts=values):
                return any(map(self._holds, values))
            case ast.IfExp(body=body, orelse=orelse):
                return self._holds(body) or self._holds(orelse)
            case ast.Call(func=func, args=args):
                return self._returns(func) or (_name(func) in PASSED_THROUGH and any(map(self._holds, args)))
            case ast.ListComp(elt=element) | ast.GeneratorExp(elt=element):
                return self._yields(node.generators, element)
        return False

    def _returns(self, func: ast.expr) -> bool:
        return self._holds(func) or (isinstance(func, ast.Attribute) and self._holds(func.value))

    def _yields(self, loops: list[ast.comprehension], element: ast.expr) -> bool:
        self._names = self._names.new_child()
        for loop in loops:
            self._bind(loop.target, self._holds(loop.iter))
        holds = self._holds(element)
        self._names = self._names.parents
        return holds


def _untyped_functions(trees: Trees) -> set[str]:
    found = (function for tree in trees.values() for function in functions(tree))
    return {*LOADERS, *_always_untyped((each.name, each.returns) for each in found)}


def _untyped_fields(trees: Trees) -> set[str]:
    bodies = (node.body for tree in trees.values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef))
    fields = (node for body in bodies for node in body if isinstance(node, ast.AnnAssign))
    return _always_untyped((_name(each.target), each.annotation) for each in fields)


def _always_untyped(annotated: Iterable[tuple[str, ast.expr | None]]) -> set[str]:
    """Names that are annotated as untyped wherever they are defined."""
    found: defaultdict[str, list[bool]] = defaultdict(list)
    for name, annotation in annotated:
        found[name].append(_is_untyped(annotation))
    return {name for name, answers in found.items() if all(answers)}


def _is_untyped(annotation: ast.expr | None) -> bool:
    return annotation is not None and UNTYPED.search(ast.unparse(annotation)) is not None


def _is_string(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


# --- Ray


def ray_parts(trees: Trees) -> RayParts:
    """What the package uses of Ray beyond its public interface."""
    parts = RayParts({}, {}, {})
    own = {name for tree in trees.values() for name in _own_names(tree)}
    for path, tree in trees.items():
        imported = [each.name for each in _imports(tree) if each.is_ray]
        private = [name for name in imported if any(map(_is_private, name.split(".")))]
        undocumented = [name for name in imported if name.startswith(UNDOCUMENTED) and name not in private]
        if imported:
            private += sorted(set(_private_attributes(tree, own)))
        for found, names in (
            (parts.private, private),
            (parts.undocumented, undocumented),
            (parts.variables, sorted(set(_ray_variables(tree)))),
        ):
            if names:
                found[str(path)] = names
    return parts


@dataclass(frozen=True)
class Imported:
    """A module or an object by its full name, and the variable that an import binds to it or to its package."""

    name: str
    variable: str

    @property
    def is_ray(self) -> bool:
        return self.name.split(".")[0] == "ray"


def _imports(tree: ast.AST) -> Iterator[Imported]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Imported(alias.name, alias.asname or alias.name.split(".")[0])
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            for alias in node.names:
                yield Imported(f"{node.module}.{alias.name}", alias.asname or alias.name)


def _own_names(tree: ast.AST) -> Iterator[str]:
    """Names of functions, classes and fields that a file defines."""
    for node in ast.walk(tree):
        if isinstance(node, Function | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.AnnAssign):
            yield _name(node.target)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and _root(node) == "self":
            yield node.attr


def _private_attributes(tree: ast.AST, own: set[str]) -> Iterator[str]:
    """Private attributes and keywords of what is Ray's, in a file that imports Ray."""
    from_ray = {each.variable for each in _imports(tree) if each.is_ray}
    from_others = {each.variable for each in _imports(tree)} - from_ray
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and _is_private(node.attr) and _root(node) not in {"self", *from_others}:
            if node.attr not in own or _root(node) in from_ray or ast.unparse(node.value) == "super()":
                yield ast.unparse(node)
        elif isinstance(node, ast.Call) and _root(node.func) in from_ray:
            yield from (f"{ast.unparse(node.func)}({key.arg}=)" for key in node.keywords if _is_private(key.arg or ""))


def _root(node: ast.expr) -> str:
    """The first component of a dotted name; empty for anything else."""
    while isinstance(node, ast.Attribute):
        node = node.value
    return _name(node)


def _ray_variables(tree: ast.AST) -> Iterator[str]:
    read = {
        id(node.args[0])
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and node.args and _name(node.func) in ("get", "getenv")
    }
    for node in ast.walk(tree):
        match node:
            case ast.Constant(value=str(text)) if id(node) not in read and RAY_VARIABLE.fullmatch(text):
                yield text


# --- the table


def table(found: Measurements) -> str:
    """All counts as text: a row a count, then places by file."""
    rows = list(_rows(found))
    width = max(len(name) for name, _ in rows)
    places = [
        *(f"  {long.num_lines:4}  {long.where}" for long in found.lengths.longest),
        *_counts("Event keys", found.event_keys.subscripts),
        *_counts("Stage names", found.event_keys.stage_names),
        *_names("Private parts of Ray", found.ray.private),
        *_names("Undocumented parts of Ray", found.ray.undocumented),
        *_names("RAY_ variables that are set", found.ray.variables),
    ]
    return "\n".join([*(f"{name:{width}}  {value}" for name, value in rows), "", "Longest functions", *places])


def _rows(found: Measurements) -> Iterator[tuple[str, str]]:
    lengths, one_use, keys, ray = found.lengths, found.one_use, found.event_keys, found.ray
    yield "functions", f"{lengths.num_functions}"
    longest = lengths.longest[0].num_lines
    yield (
        "function lines (median / 90th percentile / longest)",
        f"{lengths.median:g} / {lengths.percentile_90} / {longest}",
    )
    yield "private functions mentioned once", _share(one_use.num_mentioned_once, one_use.mentioned_once_percent)
    yield "of these called, nowhere else, undecorated", _share(one_use.num_called_once, one_use.called_once_percent)
    yield "dict[str, Any]", f"{found.num_dict_str_any}"
    yield "Mapping[str, Any] and kin", f"{found.num_mapping_str_any}"
    for name, places in (("event keys", keys.subscripts), ("stage names", keys.stage_names)):
        yield name, f"{sum(places.values())} in {len(places)} files"
    for name, parts in (("private", ray.private), ("undocumented", ray.undocumented)):
        yield f"{name} parts of Ray", f"{sum(map(len, parts.values()))} in {len(parts)} files"
    yield "lines of product (package and jobs)", f"{found.num_product_lines}"
    yield "lines of tests", f"{found.num_test_lines}"


def _share(number: int, percent: float) -> str:
    return f"{number} ({percent:.1f} % of all functions)"


def _counts(title: str, places: dict[str, int]) -> list[str]:
    return ["", title, *(f"  {number:4}  {path}" for path, number in sorted(places.items(), key=lambda item: -item[1]))]


def _names(title: str, places: dict[str, list[str]]) -> list[str]:
    return ["", title, *(f"  {path}: {', '.join(names)}" for path, names in places.items())]


if __name__ == "__main__":
    main()
