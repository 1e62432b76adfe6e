"""Weights in parts: each of several processes holds a part of every layer of a backbone (FSDP), by torch's own
`fully_shard`.

A layer's weights are gathered when it runs, forward or backward, and let go of when it has run. All processes therefore
run the same passes in the same order. What stands outside of the layers, such as embeddings and a language-model head,
stays whole on each process.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
import torch.distributed as dist
import torch.nn as nn
from torch import Tensor

from graftwork.backbones.backbone import Backbone
from graftwork.backbones.devices import on
from graftwork.backbones.holding import is_held_by_another
from graftwork.backbones.offloading import offloaded
from graftwork.errors import BackboneError

FLAG = "--train.fsdp"

HOOKS = ("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs", "_forward_hooks", "_forward_hooks_with_kwargs")
"""Where torch keeps the hooks of a layer's passes."""


@contextmanager
def sharded(backbone: Backbone, device: torch.device) -> Iterator[None]:
    """Inside, each process of the default group holds its part of the layers' weights. Afterwards each has the whole
    again; after an exception, which the others may not have had, nobody has, and the backbone cannot be used.

    Args:
        backbone: in use by nobody, and the same on all processes.
        device: where it is run.

    Raises:
        BackboneError: weights of its layers cannot be in parts; somebody uses it; a run failed that had them so; or
            torch is too old.
    """
    try:
        from torch.distributed.fsdp import share_comm_ctx
    except ImportError:
        raise BackboneError(
            f"torch {torch.__version__} cannot shard layers that run by themselves (share_comm_ctx)",
            expected="a newer torch",
            change=FLAG,
        ) from None

    if is_held_by_another(backbone.model):
        raise BackboneError(
            f"backbone {backbone.name!r} is in use by an AdaptedModel, and its weights cannot be sharded now",
            change="call detach() on the AdaptedModel, or load the backbone again",
        )
    backbone.weights.require_whole(backbone.name)
    layers = {path: backbone.model.get_submodule(path) for path in backbone.layer_paths()}
    _refuse(backbone, layers)
    _ = backbone.fingerprint  # it is over whole weights, and kept
    backbone.weights.in_parts = True
    try:
        inside = {module for layer in layers.values() for module in layer.modules()}
        with torch.inference_mode(False), torch.no_grad(), on(device):
            for module in backbone.model.modules():
                if module not in inside:
                    module._apply(lambda tensor: tensor.to(device), recurse=False)  # type: ignore[no-untyped-call]
            parts = [_Sharded(layer, device) for layer in layers.values()]
            # Of what is gathered the last layer's is kept until the next one is: else each would keep its own.
            share_comm_ctx([own.part for own in parts])
            # The room for gathered weights is made now: if it were in inference mode, no later pass could have
            # gradients.
            for own in parts:
                own.part.unshard()
                own.part.reshard()
        yield
        with torch.inference_mode(False), torch.no_grad(), on(device):
            for own in parts:
                own.gather()
    except BaseException:
        backbone.weights.lost = True
        raise
    backbone.weights.in_parts = False


class _Sharded:
    """One layer in parts."""

    def __init__(self, layer: nn.Module, device: torch.device) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        self.layer, self.kind = layer, type(layer)
        self.parameters = [
            (module, name, parameter)
            for module in layer.modules()
            for name, parameter in module._parameters.items()
            if parameter is not None and parameter.dim()
        ]
        for _, _, parameter in self.parameters:
            parameter.data = parameter.data.contiguous()
        before = {module: set(vars(module)) for module in layer.modules()}
        hooks = {name: set(vars(layer)[name]) for name in HOOKS}
        self.part = fully_shard(
            layer,
            mesh=init_device_mesh(device.type, (dist.get_world_size(),)),
            reshard_after_forward=True,
            ignored_params={parameter for parameter in layer.parameters() if not parameter.dim()},
        )
        # torch has no way back: what it adds is noted.
        self.added = [(module, vars(module).keys() - known) for module, known in before.items()]
        self.hooks = {name: set(vars(layer)[name]) - known for name, known in hooks.items()}
        for _, _, parameter in self.parameters:
            parameter.data = parameter.new_empty(0)

    def gather(self) -> None:
        """Have the layer be as it was."""
        from torch.distributed._composable_state import _module_state_mapping

        self.part.unshard()
        gathered: dict[nn.Parameter, Tensor] = {}
        for module, name, parameter in self.parameters:
            found = module._parameters[name]
            assert found is not None
            gathered.setdefault(parameter, found.detach().clone())
        self.part.reshard()
        for module, name, parameter in self.parameters:
            parameter.data = gathered[parameter]
            module._parameters[name] = parameter
        for name, own in self.hooks.items():
            for key in own:
                del vars(self.layer)[name][key]
        self.layer.__class__ = self.kind
        for module, names in self.added:
            for name in names:
                del module.__dict__[name]
        _module_state_mapping.pop(self.layer, None)


def _refuse(backbone: Backbone, layers: Mapping[str, nn.Module]) -> None:
    """Refuse weights that cannot be in parts.

    Raises:
        BackboneError: names them.
    """
    owners: dict[int, str] = {}
    for path, module in backbone.model.named_modules():
        layer = next((own for own in layers if path == own or path.startswith(f"{own}.")), "")
        why = ""
        for name, tensor in module._parameters.items():
            if tensor is None:
                continue
            other = owners.setdefault(id(tensor), layer)
            if other != layer:
                why = f"is tied to a weight {f'of {other}' if other else 'outside of the layers'}"
            elif offloaded(module) or tensor.is_meta:
                why = "is offloaded"
            elif layer and not (tensor.is_floating_point() and type(tensor) is nn.Parameter):
                why = f"is quantised or of another library ({type(tensor).__name__}, {tensor.dtype})"
            if why:
                raise BackboneError(
                    f"the weights of backbone {backbone.name!r} cannot be sharded: {path}.{name} {why}",
                    expected="a backbone whose layers have weights of their own, of floating point, on the device",
                    change=f"{FLAG}, or --backbone",
                )
