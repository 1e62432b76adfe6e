"""A merge by `mergekit`, timed: run by `benchmarks.merge` with a Python that has that package.

Arguments: the folder with the checkpoints 0, 1 and 2, and which merge. Prints the seconds that it takes, without
imports.
"""

import shutil
import sys
import time
from pathlib import Path

import yaml
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions

folder, name = Path(sys.argv[1]), sys.argv[2]
paths = [str(folder / f"{i}") for i in range(3)]
if name == "linear":
    models = [{"model": path, "parameters": {"weight": 1.0}} for path in paths]
    config = {"merge_method": "linear", "models": models, "dtype": "float32"}
else:
    models = [{"model": path, "parameters": {"weight": 1.0, "density": 0.2}} for path in paths[1:]]
    config = {"merge_method": "ties", "base_model": paths[0], "models": models, "dtype": "float32"}
parsed = MergeConfiguration.model_validate(yaml.safe_load(yaml.safe_dump(config)))
start = time.perf_counter()
run_merge(parsed, str(folder / "mergekit"), options=MergeOptions(copy_tokenizer=False, quiet=True))
taken = time.perf_counter() - start
shutil.rmtree(folder / "mergekit")
print(taken)
