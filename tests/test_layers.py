"""The layers of the project: a layer imports only from those on its left, and no module imports itself in a circle."""

import ast
from fnmatch import fnmatch
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# From left to right. Layers of one step do not import each other.
STEPS = (
    ("utils",),
    ("data", "modules"),
    ("plots",),
    ("training", "search"),
    ("reports",),
    ("baselines",),
    ("main_*",),
    ("run",),
    ("dataset",),  # scripts that prepare a dataset
    ("tests",),
    ("benchmarks",),
)


def sources(folder):
    """Every Python file in `folder` and in its packages (folders with an `__init__.py`); no images, no environment."""
    for path in sorted(folder.iterdir()):
        if path.suffix == ".py":
            yield path
        elif (path / "__init__.py").is_file():
            yield from sources(path)


def module_name(path, root):
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_names(tree, package):
    """(module, name) of every import in a file, also of those inside functions; name is "" for `import module`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            module = ".".join([*parts, *([node.module] if node.module else [])])
            yield from ((module, alias.name) for alias in node.names)


def import_graph(root):
    """{module: the modules of the project that it imports}; modules by dotted name."""
    paths = {module_name(path, root): path for path in sources(root)}
    graph = {}
    for module, path in paths.items():
        package = module if path.name == "__init__.py" else module.rpartition(".")[0]
        tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
        graph[module] = set()
        for source, name in imported_names(tree, package):
            # `from utils import files` imports utils.files; `from data import Split` imports data.
            imported = f"{source}.{name}" if f"{source}.{name}" in paths else source
            if imported in paths:
                graph[module].add(imported)
    return graph


def step_of(layer):
    return next((number for number, step in enumerate(STEPS) if any(fnmatch(layer, name) for name in step)), None)


def wrong_imports(graph):
    """One message for each import that is not from the left, and for each layer that STEPS does not list."""
    found = []
    for module, imported in sorted(graph.items()):
        layer = module.partition(".")[0]
        if step_of(layer) is None:
            found.append(f"{module} belongs to no layer; add {layer} to STEPS")
            continue
        for other in sorted(imported):
            target = other.partition(".")[0]
            if target == layer or step_of(target) is None:
                continue
            if step_of(target) > step_of(layer):
                found.append(f"{module} imports {other}, which is to the right of {layer}")
            elif step_of(target) == step_of(layer):
                found.append(f"{module} imports {other}, but {layer} and {target} are side by side")
    return found


def cycle(graph):
    """One cycle of imports, as "a → b → a"; "" where there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return " → ".join(reversed(error.args[1]))
    return ""


# ---- The project ----


def test_every_import_is_from_the_left():
    graph = import_graph(ROOT)
    assert {"utils.files", "data", "modules.gcn.layers", "search.store", "run", "benchmarks.step"} <= graph.keys()
    assert {"data", "training.loop"} <= graph["main_tomm"]
    wrong = wrong_imports(graph)
    assert not wrong, "\n".join(wrong)


def test_no_module_imports_itself_in_a_circle():
    found = cycle(import_graph(ROOT))
    assert not found, f"cycle of imports: {found}"


def test_utils_stays_small():
    files = list(sources(ROOT / "utils"))
    assert len(files) <= 15, f"utils/ has {len(files)} files; what only one package needs belongs into that package"
    for path in files:
        lines = len(path.read_text(encoding="utf-8").splitlines())
        assert lines <= 400, f"utils/{path.name} has {lines} lines; split it"


# ---- The checks themselves, on small trees ----


def tree(root, files):
    """The import graph of a project with the given files, {path: content}."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        for folder in path.relative_to(root).parents[:-1]:
            (root / folder / "__init__.py").touch()
        path.write_text(content)
    return import_graph(root)


@pytest.mark.parametrize(
    ("path", "content", "message"),
    [
        ("utils/x.py", "import training.y", "utils.x imports training.y, which is to the right of utils"),
        ("utils/x.py", "from training import y", "utils.x imports training.y, which is to the right of utils"),
        ("utils/x.py", "from training.y import z", "utils.x imports training.y, which is to the right of utils"),
        ("utils/__init__.py", "from training import z", "utils imports training, which is to the right of utils"),
        ("data/x.py", "import modules.gcn.y", "data.x imports modules.gcn.y, but data and modules are side by side"),
        ("training/x.py", "import search.y", "training.x imports search.y, but training and search are side by side"),
        ("main_a.py", "import main_b", "main_a imports main_b, but main_a and main_b are side by side"),
        ("reports/x.py", "import baselines.y", "reports.x imports baselines.y, which is to the right of reports"),
        ("baselines/x.py", "import main_b", "baselines.x imports main_b, which is to the right of baselines"),
        ("main_a.py", "import run", "main_a imports run, which is to the right of main_a"),
        ("run.py", "import tests.y", "run imports tests.y, which is to the right of run"),
        ("plots/x.py", "def f():\n    from training import y", "plots.x imports training.y, which is to the right of"),
        ("engine/x.py", "", "engine.x belongs to no layer; add engine to STEPS"),
    ],
)
def test_a_wrong_import_is_reported(tmp_path, path, content, message):
    others = ("training/y.py", "modules/gcn/y.py", "search/y.py", "baselines/y.py", "tests/y.py", "main_b.py", "run.py")
    found = wrong_imports(tree(tmp_path, {**dict.fromkeys(others, ""), path: content}))
    assert any(one.startswith(message) for one in found), found


def test_imports_from_the_left_and_of_libraries_are_allowed(tmp_path):
    files = {
        "utils/x.py": "import os, torch.nn\nfrom datasets import y",
        "data/y.py": "from utils.x import z\nfrom . import w\nfrom .w import v",
        "data/w.py": "",
        "baselines/y.py": "import reports.y, training.y, modules.y",
        "main_a.py": "from baselines import y\nfrom data.y import z",
        "run.py": "import main_a\nfrom utils import x",
        **dict.fromkeys(("reports/y.py", "training/y.py", "modules/y.py"), ""),
    }
    graph = tree(tmp_path, files)
    assert not wrong_imports(graph) and not cycle(graph)
    assert graph["data.y"] == {"utils.x", "data.w"} and graph["utils.x"] == set()


@pytest.mark.parametrize(
    "files",
    [
        {"utils/a.py": "import utils.b", "utils/b.py": "from utils import a"},
        {"utils/a.py": "from utils.b import x", "utils/b.py": "def f():\n    from utils.a import y"},
        {"utils/a.py": "from .b import x", "utils/b.py": "from . import a"},
        {"utils/a.py": "import utils.c", "utils/c.py": "import utils.b", "utils/b.py": "import utils.a"},
    ],
)
def test_a_cycle_is_reported(tmp_path, files):
    found = cycle(tree(tmp_path, files)).split(" → ")
    assert set(found) == {module_name(tmp_path / name, tmp_path) for name in files} and found[0] == found[-1]
    assert not wrong_imports(import_graph(tmp_path))


def test_a_package_that_imports_from_its_own_front_is_a_cycle(tmp_path):
    files = {"data/__init__.py": "from data.a import x", "data/a.py": "from data import x"}
    assert cycle(tree(tmp_path, files)) in ("data → data.a → data", "data.a → data → data.a")
