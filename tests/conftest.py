"""What holds for every test: no network, one thread, and every module with shape annotations checked at run time.

The environment and the import hook must be in place before anything imports transformers or graftwork.
"""

import gc
import os
import signal
from importlib.util import find_spec
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["OMP_NUM_THREADS"] = "1"  # the models are tiny: threads would only wait for each other

# A shell has what it runs in the background ignore interrupts, and what that starts as well: tests send some.
signal.signal(signal.SIGINT, signal.default_int_handler)

import torch
import typechecks
from hypothesis import HealthCheck, settings

# How long it takes to make an example says how busy the machine is, and not how good the code is.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")

if dtype := os.environ.get("GRAFTWORK_TEST_DTYPE"):
    # What `dtype: auto` asks of a processor, so that the tests can be run as on one that has the other answer.
    assert dtype in ("float32", "bfloat16"), f"GRAFTWORK_TEST_DTYPE={dtype}: float32 or bfloat16"
    torch.cpu._is_amx_tile_supported = torch.cpu._is_avx512_bf16_supported = lambda: dtype == "bfloat16"

[source] = find_spec("graftwork").submodule_search_locations
shaped = [path for path in Path(source).rglob("*.py") if "jaxtyping import" in path.read_text(encoding="utf-8")]
names = [".".join(["graftwork", *path.relative_to(source).with_suffix("").parts]) for path in shaped]
typechecks.install(names)


def pytest_addoption(parser):
    parser.addoption("--stress-seconds", type=float, default=0.0, help="how long threads are let loose on one model")


def pytest_runtest_setup():
    typechecks.begin()


def pytest_collection_finish():
    """What was imported stays: the collections that transformers asks for after each run need not look through it."""
    gc.freeze()
