"""How the tree stands: imports run one way."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# A room imports from itself and from those after it. Among the modules of the package's own folder, `model` and `ops`
# have a place in the order; the others are everybody's.
ORDER = (
    "scripts",
    "tools",
    "runs",
    "tasks",
    "viz",
    "inference",
    "training",
    "model",
    "weights",
    "data",
    "ops",
    "kernels",
)
EVERYBODYS = ("", "commands", "config", "errors", "files", "recipes")
FILES = [*ROOT.glob("*.py"), *(ROOT / "tools").rglob("*.py"), *(ROOT / "resnet_min").rglob("*.py")]


def room(module: str) -> str:
    """The room of a module, given from the repository's root: "resnet_min.data.cache" is "data"."""
    first, _, rest = module.partition(".")
    name = rest.partition(".")[0] if first == "resnet_min" else first if first == "tools" else "scripts"
    return "ops" if name == "reference" else name


def imported(file: Path) -> list[str]:
    """The modules of ours that a file imports, wherever in it, but for what only type checkers see."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    package = file.relative_to(ROOT).parent.parts
    typing = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    modules = []
    for node in ast.walk(tree):
        if node in typing:
            continue
        if isinstance(node, ast.Import):
            modules += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            parent = ".".join([*base, *([node.module] if node.module else [])])
            modules += [f"{parent}.{alias.name}" for alias in node.names]  # a module or a name in one
    return [module for module in modules if module.split(".")[0] in ("resnet_min", "tools", "train", "eval")]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_run_one_way(file):
    here = room(".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"))
    for module in imported(file):
        there = room(module)
        if module.startswith("resnet_min.") and there not in ORDER + EVERYBODYS:
            there = ""  # a name of the package itself, such as __version__
        if there in EVERYBODYS or here == "" or (here, there) == ("tools", "scripts"):
            continue
        assert here in ORDER and ORDER.index(here) <= ORDER.index(there), f"{file} imports {module}"


def test_no_file_is_long_and_no_folder_full():
    """350 lines and nine modules: beyond that a room has a reason, and a line here."""
    assert not [str(file) for file in FILES if len(file.read_text(encoding="utf-8").splitlines()) > 350]
    for folder in {file.parent for file in FILES} - {ROOT}:
        most = 10 if folder.name == "benchmark" else 9  # a table a file, what times them, and the command
        assert len([file for file in folder.glob("*.py") if file.name != "__init__.py"]) <= most, folder
