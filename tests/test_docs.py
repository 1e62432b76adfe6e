"""The documents say of methods and families what is so."""

import ast
import json
import re
from pathlib import Path
from urllib.parse import unquote

import pytest

from graftwork import ops
from graftwork.backbones.families import FAMILIES
from graftwork.kinds import KINDS
from graftwork.methods import METHODS, NAMED, known_methods, make_method
from graftwork.tasks import BUILTIN, Cleaning, Task
from graftwork.tasks import METRICS as METRIC_TABLE
from graftwork.training.planning import survey

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
GROUPS = sorted((DOCS / "methods").glob("*.md"))
ABSENT = "–"
"""In a table of several methods, a setting that one of them has not."""


def prose(page):
    """A page without its fenced blocks."""
    return re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def tables(page, first):
    """The tables of a page whose first column has that title: for each its header and its rows, as lists of cells."""
    found, rows = [], []
    for line in [*prose(page).splitlines(), ""]:
        if line.startswith("|"):
            rows.append([cell.strip().replace("`", "") for cell in line.strip("|").split("|")])
        elif rows:
            header, _, *body = rows
            found += [(header, body)] if header[0] == first else []
            rows = []
    return found


def read(cell):
    """A value as the command line reads it."""
    try:
        return json.loads(cell)
    except json.JSONDecodeError:
        return cell


def documented_settings():
    """The settings of each method by name, as written in the column that its name heads."""
    found = {}
    for page in GROUPS:
        for header, rows in tables(page, "setting"):
            for column, method in enumerate(header[1:-1], start=1):
                assert method in METHODS, f"{page.name}: {method} heads a column and is no method"
                cells = {row[0]: row[column] for row in rows if row[column] != ABSENT}
                assert not found.get(method, {}).keys() & cells.keys(), f"{page.name}: a setting of {method} twice"
                found[method] = {**found.get(method, {}), **cells}
    return found


def documented_names():
    """Of each named method, the method that it is and what differs, as written."""
    found = {}
    for page in GROUPS:
        for _, rows in tables(page, "name"):
            for name, method, differs in rows:
                pairs = re.findall(r"(\w+) (\[.*\]|[^\s,]+)(?:, |$)", differs)
                found[name] = (method, dict(pairs))
    return found


def overview():
    """The rows of the table of all methods, by method."""
    ((header, rows),) = tables(DOCS / "methods.md", "group")
    return {row[1]: dict(zip(header, row, strict=True)) for row in rows}


SETTINGS = documented_settings()
OVERVIEW = overview()


@pytest.mark.parametrize("name", METHODS)
def test_every_setting_is_documented_with_its_default(name):
    known = METHODS[name].model_fields
    written = SETTINGS.get(name, {})
    assert sorted(written) == sorted(known)
    default = make_method(name)
    for setting, cell in written.items():
        assert make_method(name, {setting: read(cell)}) == default, f"{name}.{setting} is not {cell}"


@pytest.mark.parametrize("name", NAMED)
def test_every_named_method_is_documented_with_what_differs(name):
    method, differs = documented_names()[name]
    assert method == NAMED[name].method
    assert differs.keys() == NAMED[name].settings.keys()
    assert make_method(method, {setting: read(cell) for setting, cell in differs.items()}) == make_method(name)


def test_no_other_methods_are_documented():
    assert set(OVERVIEW) == {*METHODS, *NAMED}
    assert documented_names().keys() == NAMED.keys()


@pytest.mark.parametrize("name", OVERVIEW)
def test_the_overview_says_how_a_method_is_trained_and_whether_it_merges(name):
    method, row = make_method(name), OVERVIEW[name]
    rate, epochs = row["rate, epochs"].split(", ")
    assert (float(rate), int(epochs)) == (method.learning_rate, method.num_train_epochs)
    assert row["merges"].startswith("no" if method.unmergeable else "yes")
    assert row["when"] == known_methods()[name].when


def test_when_to_use_a_method_is_said_in_a_line():
    assert all(0 < len(named.when) <= 56 for named in known_methods().values())


@pytest.mark.parametrize("backbone", ["BERT-base", "MiniLM"])
def test_the_overview_has_the_counts(backbone, tmp_path):
    from transformers import BertConfig

    BertConfig().save_pretrained(tmp_path)
    counted = survey(str(tmp_path) if backbone == "BERT-base" else "minilm")
    assert {row.name: f"{row.trained:,}" for row in counted} == {n: row[backbone] for n, row in OVERVIEW.items()}


def test_the_words_have_every_op_by_the_name_that_is_printed():
    ((_, rows),) = tables(DOCS / "words.md", "op")
    assert {row[0] for row in rows} == {name for name, op in vars(ops).items() if is_op(op)}


def is_op(value):
    return isinstance(value, type) and issubclass(value, ops.Op) and value is not ops.Op


def test_every_family_and_its_model_types_are_documented():
    ((_, rows),) = tables(DOCS / "families.md", "family")[:1]
    written = {row[0]: set(re.findall(r"[\w-]+", re.sub(r"\(.*?\)", "", row[1]))) for row in rows}
    assert written == {family.name: set(family.model_types) for family in FAMILIES}


def test_every_field_of_a_task_is_documented_with_its_default():
    ((_, rows),) = tables(DOCS / "tasks.md", "field")
    assert [row[0] for row in rows] == list(Task.model_fields)
    for name, default, _ in rows:
        field = Task.model_fields[name]
        if default == "needed":
            assert field.is_required()
        elif field.default is None:
            assert default in ("none", "of the data"), name
        elif default not in ("of the kind", "a line break", "image for images"):
            assert read(default) == field.default or (
                default == "none" and not field.get_default(call_default_factory=True)
            ), name


def test_every_metric_is_documented_with_its_kinds_and_which_value_is_best():
    ((_, rows),) = tables(DOCS / "tasks.md", "metric")
    written = {row[0]: (tuple(row[1].split(", ")), row[2]) for row in rows}
    assert written == {n: (m.kinds, "highest" if m.greater_is_better else "lowest") for n, m in METRIC_TABLE.items()}


def test_every_built_in_task_is_documented_as_it_is():
    ((_, rows),) = tables(DOCS / "tasks.md", "task")
    assert [row[0] for row in rows] == list(BUILTIN)
    for name, kind, columns, labels, metrics, _ in rows:
        task = BUILTIN[name]
        assert (kind, columns, metrics) == (task.kind, ", ".join(task.columns), ", ".join(task.metrics))
        assert task.labels is None if labels in ("numbers", "texts", "of the data") else int(labels) == len(task.labels)


def test_every_key_of_cleaning_is_documented_with_its_default():
    ((_, rows),) = tables(DOCS / "tasks.md", "key")
    assert [row[0] for row in rows] == list(Cleaning.model_fields)
    for name, default, _ in rows:
        field = Cleaning.model_fields[name].get_default(call_default_factory=True)
        assert field == {"none": type(field)(), "[utf-8]": ("utf-8",), "false": False}[default], name


def test_every_kind_of_task_is_documented():
    ((_, rows),) = tables(DOCS / "tasks.md", "kind")
    assert [row[0] for row in rows] == list(KINDS)


def anchors(page):
    """What links into a page can name: its headings, as GitHub writes them."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_local_link_resolves(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = unquote(link).partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name}: {link}"
        assert not anchor or anchor in anchors(target), f"{page.name}: {link}"


INNER = ("slab", "slot", "route", "coroutine")
"""Of the inner words, those that plain English does not use in a sentence."""


def inner_words(text):
    return sorted(set(re.findall(rf"\b(?:{'|'.join(INNER)})s?\b", text)))


MEASURED = re.compile(r"\]\([./]*((?:studies|benchmarks)/[A-Z_]+\.md)")
NUMBER = re.compile(r"(?<![\w.])\d*\.\d+")


@pytest.mark.parametrize(
    ("page", "said"),
    [
        pytest.param(page, said, id=f"{page.relative_to(ROOT)}, {i}")
        for page in sorted([ROOT / "README.md", *DOCS.rglob("*.md")])
        for i, said in enumerate(re.split(r"\n\s*\n", page.read_text(encoding="utf-8")))
        if MEASURED.search(said)
    ],
)
def test_what_is_said_of_a_measurement_is_what_was_measured(page, said):
    pages = "".join((ROOT / measured).read_text(encoding="utf-8") for measured in MEASURED.findall(said))
    numbers = [float(number) for number in NUMBER.findall(pages)]
    for number in NUMBER.findall(MEASURED.sub("", said)):
        digits = len(number.partition(".")[2])
        assert any(f"{known:.{digits}f}" == f"{float(number):.{digits}f}" for known in numbers), number


def test_inner_words_are_those_of_the_table():
    ((_, rows),) = tables(ROOT / "CONTRIBUTING.md", "word")
    assert set(INNER) < {row[0] for row in rows}


def test_inner_words_are_those_of_the_code():
    ((_, rows),) = tables(ROOT / "CONTRIBUTING.md", "word")
    files = (ROOT / "src" / "graftwork").rglob("*.py")
    classes = set(
        re.findall(r"^class (\w+)", "\n".join(file.read_text(encoding="utf-8") for file in files), re.MULTILINE)
    )
    assert {row[2].strip("`") for row in rows} <= classes


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "CONTRIBUTING.md"], ids=lambda page: page.name)
def test_users_meet_no_inner_words(page):
    # The attribute of `Memory` is public.
    assert inner_words(page.read_text(encoding="utf-8").replace("`memory().slabs`", "")) == []


def test_no_error_says_an_inner_word():
    for file in (ROOT / "src" / "graftwork").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not ast.unparse(node.func).endswith("Error"):
                continue
            texts = [part.value for part in ast.walk(node) if isinstance(part, ast.Constant)]
            said = " ".join(text for text in texts if isinstance(text, str))
            assert inner_words(said) == [], f"{file.name}: {said}"
