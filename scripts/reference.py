"""How docstrings are shown in the reference: an extension of griffe, which reads them from the sources.

- A class of settings (a pydantic model) has no constructor in the source. It is shown with one: its fields are the
  arguments, inherited ones too, with their defaults and with what the classes say of them under `Attributes`.
- A method is shown with its paper, and with what its module says of it: the formula and the shapes.
- Where a docstring says one thing of several names (`heads, head_dim: …`), each name has a row of its own.
"""

import ast
import re
from collections.abc import Iterator
from typing import Any

import griffe

SETTINGS = {"pydantic.BaseModel", "pydantic.main.BaseModel"}
METHOD = "graftwork.methods.method.Method"

NAMES = r"\*{0,2}\w+(?:, \*{0,2}\w+)*"
ENTRY = re.compile(rf"({NAMES}): (.*)", re.DOTALL)


class Reference(griffe.Extension):
    """See the module."""

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        found = list(_within(pkg))
        for part in found:
            if part.docstring:
                for section in ("Args", "Attributes", "Raises"):
                    part.docstring.value = _split_names(part.docstring.value, section)
        classes = [part for part in found if isinstance(part, griffe.Class)]
        said = {one.path: _entries(one.docstring.value if one.docstring else "", "Attributes") for one in classes}
        for one in classes:
            lineage = [*reversed(one.mro()), one]
            if any(base.canonical_path in SETTINGS for each in lineage for base in _bases(each)):
                _construct(one, lineage, said)
            if METHOD in [each.path for each in one.mro()] and "paper" in one.members:
                _tell_paper(one)


def _within(module: griffe.Module | griffe.Class) -> Iterator[griffe.Object]:
    """All that is defined in a module or class."""
    for member in module.members.values():
        if isinstance(member, griffe.Object):
            yield member
            if isinstance(member, griffe.Module | griffe.Class):
                yield from _within(member)


def _bases(found: griffe.Class) -> list[griffe.Expr]:
    return [base for base in found.bases if isinstance(base, griffe.Expr)]


def _section(text: str, title: str) -> re.Match[str] | None:
    """A section of a docstring, with what is indented below its title."""
    return re.search(rf"^{title}:\n((?: {{4}}.*(?:\n+|\Z))+)", text, re.MULTILINE)


def _entries(text: str, title: str) -> dict[str, str]:
    """What a section says of each name, each as one line.

    Raises:
        ValueError: an entry does not begin with a name and a colon.
    """
    section = _section(text, title)
    body = re.sub(r"^ {4}", "", section[1], flags=re.MULTILINE).strip() if section else ""
    found: dict[str, list[str]] = {}
    for line in re.split(r"\n(?=\S)", body) if body else []:
        entry = ENTRY.fullmatch(line)
        if entry is None:
            raise ValueError(f"{line!r} under {title} does not begin with a name and a colon")
        for name in entry[1].split(", "):
            found.setdefault(name, []).append(" ".join(entry[2].split()))
    return {name: " ".join(lines) for name, lines in found.items()}


def _split_names(text: str, title: str) -> str:
    """A docstring with one name an entry in a section."""
    section = _section(text, title)
    if section is None or not re.search(rf"^ {{4}}{NAMES.replace(')*', ')+')}: ", section[1], re.MULTILINE):
        return text
    lines = "".join(f"    {name}: {line}\n" for name, line in _entries(text, title).items())
    return f"{text[: section.start()]}{title}:\n{lines}\n{text[section.end() :]}".rstrip()


def _construct(settings: griffe.Class, lineage: list[griffe.Class], said: dict[str, dict[str, str]]) -> None:
    """Give a class of settings the constructor that pydantic makes."""
    fields: dict[str, griffe.Attribute] = {}
    lines: dict[str, str] = {}
    for each in lineage:
        lines |= said.get(each.path, {})
        for name, member in each.members.items():
            field = isinstance(member, griffe.Attribute) and member.annotation is not None
            if field and "instance-attribute" in member.labels and not name.startswith("_"):
                fields[name] = member
    if not fields:
        return
    this = griffe.Parameter("self", kind=griffe.ParameterKind.positional_or_keyword)
    given = [
        griffe.Parameter(
            name,
            annotation=field.annotation,
            kind=griffe.ParameterKind.keyword_only,
            default=_default(field.value),
        )
        for name, field in fields.items()
    ]
    settings.set_member("__init__", griffe.Function("__init__", parameters=griffe.Parameters(this, *given)))
    if settings.docstring:
        text = settings.docstring.value
        section = _section(text, "Attributes")
        others = {name: line for name, line in said[settings.path].items() if name not in fields}
        if unknown := [name for name in others if not any(name in each.members for each in lineage)]:
            raise ValueError(f"{settings.path} has no {', '.join(unknown)}, which its docstring describes")
        rest = [f"    {name}: {line}\n" for name, line in others.items()]
        kept = "Attributes:\n" + "".join(rest) + "\n" if rest else ""
        if section:
            text = text[: section.start()] + kept + text[section.end() :]
        arguments = "".join(f"    {name}: {lines[name]}\n" for name in fields if name in lines)
        settings.docstring.value = text.rstrip() + (f"\n\nArgs:\n{arguments}" if arguments else "")


def _default(value: griffe.Expr | str | None) -> griffe.Expr | str | None:
    """A field's default; of `Field(default=…)`, that one; `…` where it depends on others."""
    if not isinstance(value, griffe.ExprCall) or str(value.function) != "Field":
        return value
    given = {one.name: one.value for one in value.arguments if isinstance(one, griffe.ExprKeyword)}
    return given.get("default", "..." if "default_factory" in given else None)


def _tell_paper(method: griffe.Class) -> None:
    """Add a method's paper, and its module's docstring, to its own."""
    paper = method.members["paper"]
    if method.docstring and isinstance(paper, griffe.Attribute) and paper.value is not None:
        text = method.docstring.value
        lines = [text, f"Paper: {ast.literal_eval(str(paper.value))}."]
        module = method.module.docstring
        if module:
            lines.append(f"```text\n{module.value}\n```")
        # What follows a section would belong to it.
        summary, _, sections = text.partition("\n\nArgs:\n")
        lines[0] = summary
        method.docstring.value = "\n\n".join([*lines, *([f"Args:\n{sections}"] if sections else [])])
