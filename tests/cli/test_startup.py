"""Nothing heavy is imported before a command runs."""

import subprocess
import sys

import pytest

HEAVY = {"accelerate", "datasets", "numpy", "scipy", "sklearn", "torch", "transformers"}

HELP = """
from graftwork.cli import main
try:
    main(["--help"])
except SystemExit as end:
    assert not end.code
"""


@pytest.mark.parametrize(
    ("statements", "absent"),
    [
        pytest.param("import graftwork; dir(graftwork); graftwork.__version__", {*HEAVY, "pydantic"}, id="import"),
        pytest.param(HELP, HEAVY, id="help"),
        pytest.param(HELP.replace('"--help"', '"tune", "--help"'), HEAVY, id="tune help"),
    ],
)
def test_nothing_heavy_is_imported(statements, absent):
    program = f"{statements}\nimport sys\nprint('modules:', *sys.modules)"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    modules = {name.partition(".")[0] for name in ran.stdout.rpartition("modules:")[2].split()}
    assert "graftwork" in modules
    assert modules & absent == set()


def test_a_run_says_at_once_that_libraries_are_loaded(tmp_path):
    """Before torch is imported; and nothing of it when quiet."""
    code = (
        "import sys\n"
        "from graftwork.cli.starting import say_start\n"
        "say_start(quiet=True)\nsay_start(quiet=False)\nassert 'torch' not in sys.modules\n"
        "sys.modules['torch'] = None\nsay_start(quiet=False)\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (ran.stdout, ran.stderr) == ("", "loading torch and transformers\n")
