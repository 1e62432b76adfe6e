"""The project's own files agree with one another."""

import re
import runpy
import shutil
import subprocess
import sys
import tomllib
from importlib import import_module
from importlib.metadata import version
from inspect import isclass, isroutine
from itertools import chain
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def find_code(markdown: str) -> list[str]:
    """Return the lines of fenced blocks and the inline code spans."""
    fenced = re.compile(r"^```.*?\n(.*?)^```", re.MULTILINE | re.DOTALL)
    lines = [line.strip() for block in fenced.findall(markdown) for line in block.splitlines()]
    return lines + re.findall(r"`([^`\n]+)`", fenced.sub("", markdown))


def list_tracked_files() -> list[Path]:
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]


def test_version_is_the_same_everywhere():
    import graftwork

    declared = PYPROJECT["project"]["version"]
    assert graftwork.__version__ == declared
    assert version("graftwork") == declared


def test_public_names_are_there():
    import graftwork
    from graftwork import errors

    assert sorted(graftwork.__all__) == list(graftwork._HOMES)
    assert all(getattr(graftwork, name).__name__ == name for name in graftwork.__all__)
    own = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)}
    assert own <= set(graftwork.__all__)


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_make_targets_in_the_documents_exist(name):
    targets = set(re.findall(r"^([a-z-]+):", read("Makefile"), re.MULTILINE))
    commands = [re.match(r"(?:\$ )?make ([a-z][\w-]*)", code) for code in find_code(read(name))]
    named = {command[1] for command in commands if command}
    assert named, f"{name} names no make target"
    assert named <= targets


def test_constraints_pin_every_package_and_torch_to_one_version():
    lines = [line for line in read("constraints.txt").splitlines() if line and not line.startswith("#")]
    assert "torch==2.13.0" in lines
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines)


def test_constraints_cover_every_declared_dependency():
    def normalise(name: str) -> str:
        return re.sub(r"[-_.]+", "-", name).lower()

    project = PYPROJECT["project"]
    declared = list(chain(project["dependencies"], *project["optional-dependencies"].values()))
    pinned = {normalise(line.partition("==")[0]) for line in read("constraints.txt").splitlines()}
    assert {normalise(re.match(r"[\w.-]+", requirement)[0]) for requirement in declared} <= pinned


def test_licence_is_there():
    assert PYPROJECT["project"]["license"] == "Apache-2.0"
    assert re.match(r"\s*Apache License\s+Version 2.0, January 2004", read("LICENSE"))


def test_typing_marker_is_shipped():
    assert (ROOT / "src" / "graftwork" / "py.typed").is_file()


def test_no_tracked_file_names_a_path_of_one_machine():
    own = [re.escape(str(path)) for path in (ROOT, Path.home()) if len(path.parts) > 2]
    usual = r"/(?:home|root|Users|work|workspaces?|mnt|scratch)/\w"
    pattern = re.compile(r"(?<![\w.~}\-/])(?:" + "|".join([usual, *own]) + ")")
    found = []
    for path in list_tracked_files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(text.splitlines(), start=1):
            if match := pattern.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {match[0]}")
    assert not found


PUBLIC = (
    "",
    "adapters",
    "arithmetic",
    "backbones",
    "combine",
    "heads",
    "kinds",
    "methods",
    "model",
    "studies",
    "tasks",
    "training",
)
"""The packages whose names users import."""


def test_the_reference_has_every_public_name():
    pages = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs" / "reference").glob("*.md"))
    listed = re.findall(r"^::: graftwork\.([\w.]+)$", pages, re.MULTILINE)
    assert len(listed) == len({*listed})
    shown = [getattr(import_module(f"graftwork.{module}".rstrip(".")), name) for module, name in map(divide, listed)]
    missing = [
        f"{package}.{name}"
        for package in PUBLIC
        for module in [import_module(f"graftwork.{package}".rstrip("."))]
        for name in module.__all__
        if not any(getattr(module, name) is value for value in shown)
    ]
    assert not missing
    described = zip(listed, shown, strict=True)
    assert not [name for name, value in described if (isclass(value) or isroutine(value)) and not value.__doc__]


def divide(path: str) -> tuple[str, str]:
    """A dotted path as its module's and a name in that."""
    module, _, name = path.rpartition(".")
    return module, name


def test_every_page_of_docs_is_in_the_navigation():
    def pages(entry: object) -> list[str]:
        if isinstance(entry, str):
            return [entry]
        parts = entry.values() if isinstance(entry, dict) else entry
        return [page for part in parts for page in pages(part)]

    named = pages(yaml.safe_load(read("mkdocs.yml"))["nav"])
    assert len(named) == len({*named})
    assert all((ROOT / page).is_file() for page in named)
    docs = {path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert docs <= {*named}


def test_the_house_is_as_it_is_drawn():
    checked = subprocess.run([sys.executable, ROOT / "scripts" / "house.py", "--check"], capture_output=True, text=True)
    assert checked.stdout == ""
    assert checked.returncode == 0


def test_what_the_house_is_checked_for(tmp_path):
    """Arrows upward, circles, long modules and silent ones are found."""
    house = runpy.run_path(str(ROOT / "scripts" / "house.py"))
    files = {
        "errors": '"""A."""\nimport graftwork.cli.a',
        "cli": '"""B."""',
        "cli.a": '"""C."""\n' + "x = 1\n" * 400,
        "attic": "",
    }
    known = {name: tmp_path / f"{name}.py" for name in files}
    for name, text in files.items():
        known[name].write_text(text)
    graph = {"errors": house["imported"](known["errors"], known), "cli": {"cli.a"}, "cli.a": {"cli"}, "attic": set()}
    found = house["problems"](known, graph)
    assert found[:4] == [
        "attic is no room of the house: attic",
        "errors imports cli.a, which is in a room above it",
        "cli.a has 401 lines, more than 400",
        "attic does not say what it answers",
    ]
    assert found[4].startswith("modules import each other in a circle: cli")
