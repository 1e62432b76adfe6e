"""Which files of the repository are pages of the site: a hook of mkdocs, which by itself reads `docs/` alone.

Pages lie on the site where they lie in the repository, so that the same links work in both.
"""

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]

SHOWN = (
    *("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "LICENSE"),
    *("docs/**/*.md", "studies/*.md", "studies/*.svg", "benchmarks/RESULTS.md", "examples/*.*"),
)
"""As patterns. What is no page, such as a script of the examples, is copied."""


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """The repository's files in the place of those of `docs/` alone; the theme's own stay."""
    docs = Path(config.docs_dir)
    theme = [file for file in files if not Path(file.abs_src_path or "").is_relative_to(docs)]
    paths = sorted({path for pattern in SHOWN for path in ROOT.glob(pattern) if path.is_file()})
    names = [path.relative_to(ROOT).as_posix() for path in paths]
    return Files([*theme, *(File(name, str(ROOT), config.site_dir, config.use_directory_urls) for name in names)])
