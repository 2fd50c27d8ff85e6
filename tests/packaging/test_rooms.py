"""The package's folders are in the order of the data flow, and import only what is above them."""

from __future__ import annotations

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

import pytest

import dkn_engine

PACKAGE = Path(dkn_engine.__file__).parent
# Folders and modules of the root, from what everything may use to what uses everything.
ROOMS = (
    "_native",
    "errors",
    "showing",
    "files",
    "config",
    "types",
    "neurons",
    "seeds",
    "facts",
    "models",
    "ops",
    "forward",
    "selection",
    "attribution",
    "topology",
    "degeneracy",
    "statistics",
    "results",
    "store",
    "run",
    "interchange",
    "report",
    "plot",
    "analysis",
    "cli",
)
# The doors of the package: its public names, the program, EleutherAI's names.
DOORS = ("__init__", "__main__", "compat")
Modules = dict[str, Path]


def modules_of(package: Path) -> Modules:
    """Every module's file by its dotted name below the package; a folder by its own."""
    files = {p.relative_to(package).with_suffix(""): p for p in package.rglob("*.py")}
    return {".".join(name.parts).removesuffix(".__init__"): p for name, p in files.items()}


def imports_of(path: Path, modules: Modules) -> Iterator[tuple[str, int]]:
    """What a module imports of the package, and where: at the top, lazily, or for types alone."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            package, _, module = name.partition(".")
            if package == PACKAGE.name:
                is_module = module in modules or module == "_native"
                owner = module if is_module else module.rpartition(".")[0]
                yield owner or "__init__", node.lineno


def arrows_up(package: Path) -> list[str]:
    """Imports of a room that is further down."""
    modules = modules_of(package)
    wrong = []
    for name, path in modules.items():
        room = name.partition(".")[0]
        for imported, line in () if room in DOORS else imports_of(path, modules):
            target = imported.partition(".")[0]
            if target in DOORS or ROOMS.index(target) > ROOMS.index(room):
                wrong.append(f"{path.relative_to(package)}:{line} imports {imported}")
    return wrong


def require_no_cycle(package: Path) -> None:
    """Raises graphlib.CycleError, which names the modules, if imports go round."""
    modules = modules_of(package)
    graph = {
        name: {imported for imported, _ in imports_of(path, modules) if imported != name}
        for name, path in modules.items()
        if name not in DOORS
    }
    graphlib.TopologicalSorter(graph).prepare()


def hidden_modules(package: Path) -> list[str]:
    """Modules that cannot be reached as attributes, since their folder has the name for another."""
    modules = modules_of(package)
    wrong = []
    for name, path in modules.items():
        if path.name != "__init__.py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    inner = f"{name}.{alias.name}".removeprefix("__init__.")
                    imported = f"{node.module}.{alias.name}".partition(".")[2]
                    if inner in modules and imported != inner:
                        wrong.append(f"{inner} is hidden by {imported}")
    return wrong


def test_every_room_imports_only_from_those_above() -> None:
    assert arrows_up(PACKAGE) == []


def test_no_module_imports_itself_by_way_of_others() -> None:
    require_no_cycle(PACKAGE)


def test_no_folder_hides_a_module_behind_another_name() -> None:
    assert hidden_modules(PACKAGE) == []


def test_the_root_holds_the_rooms_and_few_modules() -> None:
    assert {name.partition(".")[0] for name in modules_of(PACKAGE)} == {*ROOMS[1:], *DOORS}
    assert len(list(PACKAGE.glob("*.py"))) <= 8


# Public verbs, whose settings are sections; EleutherAI's signatures; a kernel's contract.
WIDE = {
    *("answer_probability", "faithfulness", "complexity", "evolvability", "attribute"),
    *("get_coarse_neurons", "get_refined_neurons", "prefix_attention"),
}


def outsized(path: Path) -> list[str]:
    """Functions of more than 50 lines beside their docstring, or of more than 8 parameters."""
    wrong = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        first, last = node.body[0], node.end_lineno or node.lineno
        said = ast.get_docstring(node) is not None
        doc = (first.end_lineno or first.lineno) - first.lineno + 1 if said else 0
        arguments = node.args.posonlyargs + node.args.args + node.args.kwonlyargs
        n_given = len([a for a in arguments if a.arg not in {"self", "cls"}])
        if last - node.lineno + 1 - doc > 50 or (n_given > 8 and node.name not in WIDE):
            wrong.append(f"{path.name}:{node.lineno} {node.name}")
    return wrong


def test_functions_fit_a_screen() -> None:
    """Kernels take pointers and strides one by one, and are the loops that they are."""
    paths = [p for p in PACKAGE.rglob("*.py") if p.name != "triton.py" and "_numba" not in p.parts]
    assert [name for path in paths for name in outsized(path)] == []


def test_functions_that_do_not_fit_are_noticed(tmp_path: Path) -> None:
    path = tmp_path / "long.py"
    path.write_text(
        "def long():\n" + "    pass\n" * 50 + "def wide(a, b, c, d, e, f, g, h, *, i): ..."
    )
    assert outsized(path) == ["long.py:1 long", "long.py:52 wide"]


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """A package with an arrow up, lazily; a cycle, for types alone; and a hidden module."""
    package = tmp_path / "dkn_engine"
    files = {
        "__init__.py": "",
        "errors.py": "def why():\n    from dkn_engine import topology",
        "topology/__init__.py": "from dkn_engine.topology.graph import graph",
        "topology/graph.py": "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from dkn_engine.topology.tree import Tree\n"
        "def graph(): ...",
        "topology/tree.py": "import dkn_engine.topology.graph\nclass Tree: ...",
    }
    for name, text in files.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(text)
    return package


def test_each_fault_is_noticed(broken: Path) -> None:
    assert arrows_up(broken) == ["errors.py:2 imports topology"]
    assert hidden_modules(broken) == ["topology.graph is hidden by topology.graph.graph"]
    with pytest.raises(graphlib.CycleError, match=r"topology\.tree"):
        require_no_cycle(broken)
