"""What holds for every test: no network, one thread, and every shape annotation checked at run time.

The environment and the import hook must be in place before anything imports transformers or graftwork.
"""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["OMP_NUM_THREADS"] = "1"  # the models are tiny: threads would only wait for each other

from jaxtyping import install_import_hook

install_import_hook("graftwork", "beartype.beartype")
