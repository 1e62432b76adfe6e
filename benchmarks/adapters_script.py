"""A fusion by the package `adapters`, timed: run by `benchmarks.fuse` with a Python that has that package.

Arguments: the backbone's folder, pfeiffer or houlsby, the precision, and the numbers of parts, rows, tokens, rounds and
warmups. Prints a JSON line with the median seconds of a pass of the backbone (`backbone`) and of the fusion (`fused`),
and the median of their ratios (`ratio`).
"""

import json
import sys
import time
from statistics import median

import adapters
import torch
from adapters import DoubleSeqBnConfig, SeqBnConfig
from adapters.composition import Fuse
from transformers import BertModel

folder, method, dtype, *given = sys.argv[1:]
parts, rows, tokens, rounds, warmups = map(int, given)
CONFIGS = {"pfeiffer": SeqBnConfig(reduction_factor=16), "houlsby": DoubleSeqBnConfig(reduction_factor=6)}

model = BertModel.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
plain = BertModel.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
adapters.init(model)
names = [f"part-{i}" for i in range(parts)]
for name in names:
    model.add_adapter(name, config=CONFIGS[method])
model.add_adapter_fusion(Fuse(*names))
model.set_active_adapters(Fuse(*names))
model.to(getattr(torch, dtype)).eval()
ids = torch.randint(1_000, 20_000, (rows, tokens), generator=torch.Generator().manual_seed(0))
batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
times: dict[str, list[float]] = {"backbone": [], "fused": []}
with torch.no_grad():
    for turn in range(warmups + rounds):
        for name, run in (("backbone", plain), ("fused", model)):
            start = time.perf_counter()
            run(**batch)
            if turn >= warmups:
                times[name].append(time.perf_counter() - start)
own, bare = times["fused"], times["backbone"]
shares = median(a / b for a, b in zip(own, bare, strict=True))
print(json.dumps({"backbone": median(bare), "fused": median(own), "ratio": shares}))
