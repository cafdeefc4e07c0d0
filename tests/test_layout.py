"""What may look at what: no circle of files or packages, arrows one way, no private name taken from another module."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("migr", "reward", "stages", "eval")
# From the ground up: a module may import from its own level and from those above it in this list.
LEVELS = (
    ("migr.errors", "migr.launch", "migr.machine", "migr.settings", "migr.statistics"),
    ("migr.files", "migr.page"),
    ("migr.text.labels",),
    ("migr.cli",),
    ("migr.clips",),
    ("migr.omni", "migr.text"),
    ("migr.engine",),
    ("migr.importance", "migr.judge", "migr.memory"),
    ("migr.sources", "migr.rollout", "migr.planted"),
    ("migr.training", "migr.sentiment"),
    ("reward",),
    ("stages", "eval"),
)


def modules() -> dict[str, Path]:
    """Dotted name -> file."""
    files = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in files}


def imports(name: str, path: Path, known: dict[str, Path]) -> list[tuple[str, str]]:
    """(module, name taken from it) of every import of ours in a file, also of those inside functions."""
    taken = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            taken += [(alias.name, "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                taken.append((whole, "") if whole in known else (node.module, alias.name))
        elif isinstance(node, ast.ImportFrom):
            raise AssertionError(f"{name}: a relative import")
    return [(module, alias) for module, alias in taken if module in known and module != name]


KNOWN = modules()
IMPORTS = {name: imports(name, path, KNOWN) for name, path in KNOWN.items()}


def level(module: str) -> int:
    """The place of a module in `LEVELS`, by its longest prefix there."""
    prefixes = [
        (len(prefix), i) for i, row in enumerate(LEVELS) for prefix in row if f"{module}.".startswith(f"{prefix}.")
    ]
    return max(prefixes)[1] if prefixes else -1


def package(module: str) -> str:
    """The folder of a module; the commands in `stages` and `eval` are packages of their own."""
    return (
        module
        if module in ("migr", "reward", "stages", "eval") or KNOWN[module].name == "__init__.py"
        else module.rpartition(".")[0]
    )


def assert_no_circle(graph: dict[str, set[str]]) -> None:
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail("a circle: " + " -> ".join(error.args[1]))


def test_every_module_has_a_level():
    assert [name for name in KNOWN if level(name) < 0 and name != "migr"] == []


def test_no_circle_of_files():
    assert_no_circle({name: {module for module, _ in taken} for name, taken in IMPORTS.items()})


def test_no_circle_of_packages():
    """`migr.text.labels` stands below the rest of its folder, as files and sources need no more of it."""
    graph: dict[str, set[str]] = {}
    for name, taken in IMPORTS.items():
        if name != "migr.text.labels":
            others = {package(module) for module, _ in taken if module not in ("migr", "migr.text.labels")}
            graph.setdefault(package(name), set()).update(others - {package(name)})
    assert_no_circle(graph)


def test_arrows_go_one_way():
    wrong = [
        f"{name} -> {module}" for name, taken in IMPORTS.items() for module, _ in taken if level(module) > level(name)
    ]
    assert wrong == []


def test_eval_and_stages_are_apart_but_for_the_demo():
    wrong = [
        f"{name} -> {module}"
        for name, taken in IMPORTS.items()
        for module, _ in taken
        if {name.split(".")[0], module.split(".")[0]} == {"eval", "stages"} and not name.startswith("stages.demo.")
    ]
    assert wrong == []


def test_nobody_takes_a_private_name_from_another_module():
    private = [
        (name, module, alias) for name, taken in IMPORTS.items() for module, alias in taken if alias.startswith("_")
    ]
    for name, path in KNOWN.items():  # `module._name`, where the module was imported whole
        tree = ast.parse(path.read_text(encoding="utf-8"))
        whole = {
            alias.asname or alias.name
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
            if f"{node.module}.{alias.name}" in KNOWN
        }
        for node in ast.walk(tree):
            if not isinstance(node, ast.Attribute) or not isinstance(node.value, ast.Name):
                continue
            if node.value.id in whole and node.attr.startswith("_") and not node.attr.startswith("__"):
                private.append((name, node.value.id, node.attr))
    assert private == []


def test_tests_stand_where_their_subjects_stand():
    """The folders of tests/ have names of packages."""
    rooms = {part for name in KNOWN for part in name.split(".")}
    folders = {path.parent.relative_to(ROOT / "tests").as_posix() for path in (ROOT / "tests").rglob("test_*.py")}
    assert {folder for folder in folders if folder != "." and folder not in rooms} == set()
