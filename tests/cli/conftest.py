"""Fixtures of the tests of the command line: the program in this process, and adapters to use."""

from dataclasses import dataclass

import pytest
from training.workbench import FAST, backbone_folder, data, flags, one_thread, other_backbone_folder

from graftwork.cli import main

__all__ = ["backbone_folder", "data", "one_thread", "other_backbone_folder"]


@dataclass
class Run:
    """What a command left: its exit status and what it printed."""

    status: int
    out: str
    err: str


@pytest.fixture
def graftwork(capsys):
    """Run a command as a shell would; gives a `Run`."""

    def graftwork(*arguments):
        capsys.readouterr()
        status = 0
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
        captured = capsys.readouterr()
        return Run(status, captured.out, captured.err)

    return graftwork


@pytest.fixture(scope="session")
def adapters(backbone_folder, data, tmp_path_factory):
    """One adapter for each kind of task, tuned by the command line: classes, pairs, numbers."""
    folder = tmp_path_factory.mktemp("adapters")
    columns = {
        "classes": ["--text", "text"],
        "pairs": ["--text", "first", "--text-pair", "second"],
        "numbers": ["--text", "text", "--kind", "regression"],
    }
    for kind, named in columns.items():
        arguments = ["--backbone", str(backbone_folder), "--dtype", "float32", "--method", "lora", "--quiet"]
        settings = ["--method.rank", "4", *flags(FAST | {"baseline": "auto"}), "--output", str(folder / kind)]
        with pytest.raises(SystemExit) as end:
            main(["tune", "--data", str(data[kind]), *named, *arguments, *settings])
        assert end.value.code == 0
    return folder
