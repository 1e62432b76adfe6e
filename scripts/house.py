"""Draw the house, its rooms and which of them use which, from the imports; or check that the picture is true.

    python scripts/house.py            # write the picture into docs/index.md
    python scripts/house.py --check    # fail where it is another one, or where a rule of the house is broken

The rules: a room uses only rooms below it; modules do not import each other in a circle; no module is longer than 400
lines; and each says in its first line what it answers.
"""

import ast
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "graftwork"
PAGE = ROOT / "docs" / "index.md"
START, END = "<!-- the house: made by scripts/house.py -->\n", "<!-- end of the house -->"

ROOMS = (
    "cli",
    "studies",
    "arithmetic",
    *(f"arithmetic.{name}" for name in ("landscapes", "merging", "data", "adapters", "alignment", "operations")),
    "arithmetic.values",
    *("combine", "training", "tasks", "distillation", "model", "inference", "passes", "bank"),
    *("adapters", "grafting", "kinds", "encoding", "heads", "methods", "ops", "backbones", "data", "settings"),
    *("folders", "errors"),
)
"""From the top to the bottom."""

MOST_LINES = 400

Graph = dict[str, set[str]]


def modules() -> dict[str, Path]:
    """Every module's name, within the package, and its file. A package goes by its own name."""
    files = {
        path.relative_to(PACKAGE).with_suffix("").as_posix().replace("/", "."): path
        for path in sorted(PACKAGE.rglob("*.py"))
    }
    return {
        name.removesuffix(".__init__"): path for name, path in files.items() if name not in ("__init__", "__main__")
    }


def imported(path: Path, known: dict[str, Path]) -> set[str]:
    """The modules that one imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {name for alias in node.names if (name := alias.name.removeprefix("graftwork.")) in known}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("graftwork"):
            module = (node.module or "").removeprefix("graftwork").removeprefix(".")
            for alias in node.names:
                inner = f"{module}.{alias.name}".removeprefix(".")
                found |= {inner} if inner in known else {module} if module in known else set()
    return found


def room(module: str) -> str:
    """The room that a module is in: its folder, or a folder within, where that is a room of its own."""
    inner = ".".join(module.split(".")[:2])
    return inner if inner in ROOMS else module.partition(".")[0]


def problems(known: dict[str, Path], graph: Graph) -> list[str]:
    """Where a rule of the house is broken."""
    found = [f"{room(name)} is no room of the house: {name}" for name in known if room(name) not in ROOMS]
    for name, path in known.items():
        lines = path.read_text(encoding="utf-8").splitlines()
        if len(lines) > MOST_LINES:
            found.append(f"{name} has {len(lines)} lines, more than {MOST_LINES}")
        if ast.get_docstring(ast.parse("\n".join(lines))) is None:
            found.append(f"{name} does not say what it answers")
        for other in graph[name]:
            if {room(name), room(other)} <= {*ROOMS} and ROOMS.index(room(other)) < ROOMS.index(room(name)):
                found.append(f"{name} imports {other}, which is in a room above it")
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        found.append(f"modules import each other in a circle: {' -> '.join(error.args[1])}")
    return found


def picture(known: dict[str, Path], graph: Graph) -> str:
    """The rooms from the top to the bottom, as a table, and what each uses: the ones that stand for all others, since
    who uses a room may use what is below it."""
    uses: Graph = {name: set() for name in ROOMS}
    for name, others in graph.items():
        uses[room(name)] |= {room(other) for other in others} - {room(name)}
    rows = []
    for name in ROOMS:
        path = known[name]
        count = sum(room(other) == name for other in known)
        files = f"{count} files" if count > 1 else "1 file"
        first = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split("\n\n")[0]
        below = ", ".join(f"`{other}`" for other in ROOMS if other in uses[name]) or "nothing"
        place = f"`{name.replace('.', '/')}/`" if path.name == "__init__.py" else f"`{name}.py`"
        rows.append(f"| {place} | {' '.join(first.split())} | {files} | {below} |")
    return "\n".join(["| room | what it answers | size | uses |", "|---|---|---|---|", *rows]) + "\n"


def main(arguments: list[str]) -> int:
    known = modules()
    graph = {name: imported(path, known) - {name} for name, path in known.items()}
    found = problems(known, graph)
    page = PAGE.read_text(encoding="utf-8")
    before, _, rest = page.partition(START)
    _, _, after = rest.partition(END)
    drawn = before + START + "\n" + picture(known, graph) + "\n" + END + after
    if "--check" not in arguments:
        PAGE.write_text(drawn, encoding="utf-8")
    elif drawn != page:
        found.append("docs/index.md shows another house: run python scripts/house.py")
    print("\n".join(found), end="\n" if found else "")
    return min(len(found), 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
