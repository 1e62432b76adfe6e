"""What the tests of sharded backbones run in two processes: passes of tiny models, whole and in parts.

Run as `python sharded_passes.py CASE...`, a case being KIND:METHOD or KIND:METHOD:recomputed, of tests/tiny.py. Prints
one line of JSON for each process.
"""

import json
import os
import socket
import sys
from pathlib import Path
from typing import Any

import torch
from tiny import GENERATORS, SAMPLES, bits, inputs_for, make_adapter, make_backbone
from torch.distributed.fsdp import fully_shard

from graftwork.backbones import Backbone
from graftwork.backbones.sharding import sharded
from graftwork.model import AdaptedModel
from graftwork.training.processes import Processes

CPU = torch.device("cpu")


def seen(backbone: Backbone, method: str, index: int, *, recomputed: bool) -> dict[str, torch.Tensor]:
    """What passes say, with gradients and without, on rows of this process's own; and the gradients."""
    adapter = make_adapter(backbone, SAMPLES[method], trained=True)
    model = AdaptedModel(backbone)
    if recomputed:
        model.gradient_checkpointing_enable()
    model.add("a", adapter, trainable=True)
    batch = inputs_for(backbone.model, *[(7, 3, 5), (4, 6)][index], seed=index)
    labels = torch.arange(len(next(iter(batch.values())))) % 3
    found = {"before": model.inference("a").output(batch, "a").logits}
    model.train()
    for step in range(2):  # the second as after a step: what is gathered is gathered again
        torch.manual_seed(step)
        output = model(**batch, labels=labels)
        output.loss.backward()
        found[f"logits {step}"] = output.logits
    found |= {n: t.grad for n, t in model.in_training("a").tensors().items() if t.grad is not None}
    found["after"] = model.inference("a").output(batch, "a").logits
    if backbone.generates:
        same = inputs_for(backbone.model, 7, 3)  # all generate the same
        same.pop("decoder_input_ids", None)
        found["tokens"] = model.generate(**same, adapters="a", max_new_tokens=4, do_sample=False)
    model.detach()
    return {name: tensor.detach().clone() for name, tensor in found.items() if tensor is not None}


def held(backbone: Backbone) -> int:
    """Bytes of the layers' weights that this process holds."""
    every = [p for path in backbone.layer_paths() for p in backbone.model.get_submodule(path).parameters()]
    return sum((p.to_local() if hasattr(p, "to_local") else p).untyped_storage().nbytes() for p in every)


def hooks_of(backbone: Backbone) -> list[list[str]]:
    """The hooks of each of its modules."""
    modules = backbone.model.modules()
    return [[*map(repr, m._forward_pre_hooks.values()), *map(repr, m._forward_hooks.values())] for m in modules]


def check(case: str, index: int) -> dict[str, Any]:
    kind, method, *rest = case.split(":")
    backbone = make_backbone(kind, head=kind in GENERATORS, dtype=torch.float64 if kind == "t5" else torch.float32)
    classes = [type(module) for module in backbone.model.modules()]
    kept = [vars(module).keys() for module in backbone.model.modules()]
    before, fingerprint, whole = bits(backbone.model), backbone.fingerprint, held(backbone)
    expected = seen(backbone, method, index, recomputed=bool(rest))
    hooks = hooks_of(backbone)  # transformers may have put some there
    found = []
    for _ in range(2):  # a backbone can be sharded again
        with sharded(backbone, CPU):
            assert backbone.fingerprint == fingerprint
            parts = held(backbone)
            found.append(seen(backbone, method, index, recomputed=bool(rest)))
            assert held(backbone) == parts, "between passes, each has its part"
            layers = [backbone.model.get_submodule(path) for path in backbone.layer_paths()]
            shared = {id(fully_shard.state(layer)._comm_ctx) for layer in layers}
            assert len(shared) == 1, "else each layer would keep what was gathered of it last"
    assert bits(backbone.model) == before, "and all of it is as it was"
    assert [type(module) for module in backbone.model.modules()] == classes
    assert [vars(module).keys() for module in backbone.model.modules()] == kept
    assert backbone.fingerprint == fingerprint
    assert hooks_of(backbone) == hooks
    again = seen(backbone, method, index, recomputed=bool(rest))
    assert all(other.keys() == expected.keys() for other in (*found, again))
    differ = {
        name: float((tensor - other[name]).abs().max() / tensor.abs().max())
        for other in (*found, again)
        for name, tensor in expected.items()
        if not torch.equal(tensor, other[name])
    }
    return {"differ": differ, "share": parts / whole}


def main(cases: list[str]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ.update({"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)})
    children = []
    for rank in range(2):
        child = os.fork()
        if child:
            children.append(child)
            continue
        status = 1
        try:
            os.environ["RANK"] = str(rank)
            processes, found = Processes.here(), {}
            for case in cases:
                found[case] = check(case, processes.index)
            Path(f"{rank}.json").write_text(json.dumps(found))
            status = 0
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    ended = [os.waitstatus_to_exitcode(os.wait()[1]) for _ in children]
    print(json.dumps([ended, *(json.loads(Path(f"{rank}.json").read_text()) for rank in range(2))]))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1:])
