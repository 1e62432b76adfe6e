"""One product instead of several: low-rank ops at sites with the same input project it down together."""

from dataclasses import replace

import torch

from graftwork.ops.lowrank import Joint, LowRank
from graftwork.ops.op import Op, Ops
from graftwork.ops.rowdropout import Dropouts
from graftwork.ops.sharedlowrank import JointProduct, SharedLowRank

ONE_INPUT = {"attention": ("query", "key", "value"), "cross_attention": ("key", "value"), "ffn": ("gate", "up")}
"""Sub-layer -> those of its linear maps that are given the same input, in the order in which they run."""


def with_joint_shrinks(ops: Ops) -> Ops:
    """The same ops, in which those of sub-layers that are given one input have one A.

    Where an op finds that its input is another one after all, it computes its product by itself.
    """
    joint = {name: list(acting) for name, acting in ops.items()}
    for names in _with_one_input(ops):
        places = [[i for i, op in enumerate(ops[name]) if isinstance(op, LowRank)] for name in names]
        for turn, here in enumerate(zip(*places, strict=False)):
            own = [op for name, i in zip(names, here, strict=True) if isinstance(op := ops[name][i], LowRank)]
            if len({(op.A.shape, op.dropout, op.dropouts) for op in own}) == 1:
                first = own[0]
                A, key = torch.stack([op.A for op in own]), _name(names, turn, first.dropouts or first.dropout)
                for place, (name, i, op) in enumerate(zip(names, here, own, strict=True)):
                    joint[name][i] = replace(op, A=A, joint=Joint(key, place))
        _share_products(names, joint)
    return joint


def _share_products(names: list[str], joint: dict[str, list[Op]]) -> None:
    """Have one product with A of ops that share A, where each of the sites with one input has one such op."""
    places = [[i for i, op in enumerate(joint[name]) if isinstance(op, SharedLowRank)] for name in names]
    if any(len(own) != 1 for own in places):
        return
    found = [(name, i, joint[name][i]) for name, [i] in zip(names, places, strict=True)]
    own = [op for *_, op in found if isinstance(op, SharedLowRank)]
    if len({(op.A, op.dropout) for op in own}) == 1:
        product = JointProduct(f"{_name(names, 0, own[0].dropout)} {own[0].A.key[0]}", len(names))
        for name, i, op in found:
            joint[name][i] = replace(op, joint=product)  # type: ignore[call-arg] # it is one of these


def _name(sites: list[str], turn: int, dropout: float | Dropouts) -> str:
    """What tells a joint A from all others in a sub-layer, which other adapters may have there: the same in each layer,
    so that layers of one structure have one forward.
    """
    return f"{'+'.join('.'.join(site.split('.')[-2:]) for site in sites)} {turn} {dropout}"


def _with_one_input(ops: Ops) -> list[list[str]]:
    """The names of the sites at which ops act on one input, where there are several."""
    found: dict[str, list[str]] = {}
    for name in ops:
        path, _, role = name.rpartition(".")
        if role in ONE_INPUT.get(path.rpartition(".")[2], ()):
            found.setdefault(path, []).append(name)
    orders = {path: ONE_INPUT[path.rpartition(".")[2]] for path in found}
    several = {path: names for path, names in found.items() if len(names) > 1}
    return [
        sorted(names, key=lambda name: orders[path].index(name.rpartition(".")[2])) for path, names in several.items()
    ]
