"""The proof that a layout describes a model: the model is run on a tiny input, and each site is seen to be what the
table says. A model type that no table was made for is accepted by it or refused; tests prove every table with it.

What is proven: the modules at linear sites are called and have the widths of their sites; each attention site calls the
attention function once for each run of its layer, with the site's heads, and its values are those of the value site; a
gated feed-forward multiplies what comes of its gate with its up; each result is what is added to the residual, and a
norm that is said to follow the residual normalises just that sum; every parameter is read by a module that is called;
and the model is causal if the family is. On the meta device, which has no values, only calls and widths are. That our
attention function computes what the model's own does is proven in `agreement`.
"""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import sdpa_mask

from graftwork.backbones.attention import attention
from graftwork.backbones.families.family import Family, base_path
from graftwork.backbones.sites import Site, Sites

PROBE = "graftwork-probe"
"""Our attention function, which also notes what it is given."""

ROWS, TOKENS, PIXELS = 2, 5, 64
"""Size of the tiny input; images are that wide where the model does not say."""

FAILURES = (RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError)
"""What a foreign model's code may raise of an input that it was not made for."""


def disprove(model: PreTrainedModel, family: Family, sites: Sites) -> str:
    """Why the sites are not what they should be, in a clause; empty when they are. The model is left as it was."""
    wants_attention = bool(sites.of_kind("attention"))
    with undone(model):
        if wants_attention and not model._can_set_attn_implementation():
            return f"{type(model).__name__} does not let its attention function be chosen"
        if wants_attention:
            model.set_attn_implementation(PROBE)
        try:
            with torch.no_grad():
                return _Proof(model, family, sites).failure()
        except FAILURES as error:
            return f"it cannot be run on a tiny input ({type(error).__name__}: {error})"


class _Run:
    """One pass of the model, and what was seen: what enters and leaves each module, by path and in order of calls."""

    def __init__(self, model: PreTrainedModel, sites: Sites, paths: set[str], *, doubled: Site | None) -> None:
        self.model = model
        self.inputs: dict[str, list[Tensor]] = defaultdict(list)
        self.outputs: dict[str, list[Tensor]] = defaultdict(list)
        self.results: dict[str, list[Tensor]] = defaultdict(list)
        self.attended: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = defaultdict(list)
        self.doubled = doubled
        self._results = {site.path for site in sites.of_kind("result")}
        self._attentions = {site.path for site in sites.of_kind("attention")}
        self._generator = torch.Generator().manual_seed(0)
        with ExitStack() as hooks:
            for path in paths:
                module = model.get_submodule(path)
                before = module.register_forward_pre_hook(partial(self._before, path), with_kwargs=True)
                hooks.callback(before.remove)
                hooks.callback(module.register_forward_hook(partial(self._after, path)).remove)
            self.output = model(**tiny_input(model))

    def _before(self, path: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        entering = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        if entering:
            self.inputs[path].append(entering[0].clone())
        return (args, {**kwargs, "attended": self.attended[path]}) if path in self._attentions else None

    def _after(self, path: str, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        leaving = output if isinstance(output, Tensor) else output[0]
        if not isinstance(leaving, Tensor):
            return None
        self.outputs[path].append(leaving.clone())
        if path in self._results:
            # A result may be too small beside its residual to be seen: it is made of the same size as that.
            noise = torch.randn(leaving.shape, generator=self._generator)
            leaving = leaving + noise.to(leaving)
            self.results[path].append(leaving.clone())
            return leaving
        if self.doubled is not None and path == self.doubled.path:
            start, end = self.doubled.columns or (0, leaving.shape[-1])
            leaving = leaving.clone()
            leaving[..., start:end] *= 2
            return leaving
        return None


class _Proof:
    def __init__(self, model: PreTrainedModel, family: Family, sites: Sites) -> None:
        self.model, self.family, self.sites = model, family, sites
        prefix = base_path(model)
        self.layers = {
            (stack.name, i): path for stack in family.stacks for i, path in enumerate(stack.layer_paths(model, prefix))
        }
        self.paths = {site.path for site in sites.values() if site.kind != "stack"} | set(self.layers.values())
        self.values = model.device.type != "meta"
        self.run = _Run(model, sites, self.paths, doubled=None)

    def failure(self) -> str:
        """The first thing that is not as it should be."""
        return next(self._failures(), "")

    def _failures(self) -> Iterator[str]:
        yield from self._calls()
        for site in self.sites.of_kind("attention"):
            yield from self._attention(site)
        if self.values:
            for site in self.sites.of_kind("result"):
                yield from self._result(site)
            yield from self._gates()
            yield from self._causality()
            if not torch.equal(*(self.model(**tiny_input(self.model))[0] for _ in range(2))):
                yield "two passes over one input give different outputs"

    def _calls(self) -> Iterator[str]:
        run = self.run
        read = {site.owner for site in self.sites.values() if run.outputs[site.path]}
        for site in self.sites.values():
            if site.parameters and site.owner not in read:
                yield f"the module at {site.path!r} ({site.name}) is not called"
            layer = self._layer(site)
            if site.kind == "result" and len(run.results[site.path]) != len(run.outputs[layer]):
                yield f"the module at {site.path!r} ({site.name}) is not called once for each run of its layer"
            if site.kind in ("linear", "fused") and run.outputs[site.path]:
                entering, leaving = run.inputs[site.path][0], run.outputs[site.path][0]
                start, end = site.columns or (0, leaving.shape[-1])
                if entering.shape[-1] != site.in_features or end > leaving.shape[-1]:
                    yield f"the input or output of {site.path!r} ({site.name}) does not have the site's width"
                if end - start != site.out_features:
                    yield f"{site.path!r} gives {end - start} columns, not the {site.out_features} of {site.name}"

    def _attention(self, site: Site) -> Iterator[str]:
        seen = self.run.attended[site.path]
        if len(seen) != len(self.run.outputs[self._layer(site)]):
            yield f"the attention at {site.path!r} does not pass its arguments to transformers' attention interface"
            return
        query, key, value = seen[0]
        if (key.shape[1], key.shape[3], query.shape[1] * query.shape[3]) != (
            site.heads,
            site.head_dim,
            site.in_features,
        ):
            yield (
                f"the attention at {site.path!r} has keys of {key.shape[1]} heads of {key.shape[3]}, where its"
                f" configuration says {site.heads} of {site.head_dim}"
            )
        source = self.sites[site.name.removesuffix("kv") + "value"]
        start, end = source.columns or (0, source.out_features)
        given = self.run.outputs[source.path][0][..., start:end]
        if self.values and not torch.equal(value.transpose(1, 2).reshape(given.shape), given):
            yield f"the attention at {site.path!r} has values other than the output of {source.path!r} ({source.name})"

    def _result(self, site: Site) -> Iterator[str]:
        sublayer = site.name.removesuffix(".result")
        added = self.run.results[site.path]
        residual = self._entering(sublayer)
        norm = self.sites.get(f"{sublayer}.norm") if f"{sublayer}.norm" in self.sites else None
        if norm is not None and norm.follows_residual:
            residual = self.run.inputs[self.sites[str(site.source)].path]
            total = self.run.inputs[norm.path]
        else:
            later = self._next(site)
            total = self.run.outputs[self._layer(site)] if later is None else self._entering(later)
        if not all(_is_sum(*each) for each in zip(residual, added, total, strict=False)):
            yield f"the output of {site.path!r} ({site.name}) is not what is added to the residual"

    def _entering(self, sublayer: str) -> list[Tensor]:
        """The residual stream as it enters a sub-layer: before its norm, where it has one."""
        norm = f"{sublayer}.norm"
        first = norm if norm in self.sites else str(self.sites[f"{sublayer}.result"].source)
        return self.run.inputs[self.sites[first].path]

    def _next(self, site: Site) -> str | None:
        """The sub-layer after a result's own in its layer."""
        results = [s for s in self.sites.of_kind("result") if (s.stack, s.layer) == (site.stack, site.layer)]
        later = results[results.index(site) + 1 :]
        return later[0].name.removesuffix(".result") if later else None

    def _gates(self) -> Iterator[str]:
        """Twice the output of up gives twice the input of down, in the first layer of each stack."""
        for gate in (site for site in self.sites.values() if site.name.endswith("layers.0.ffn.gate")):
            up, down = (self.sites[gate.name.removesuffix("gate") + name] for name in ("up", "down"))
            run = _Run(self.model, self.sites, self.paths, doubled=up)
            once, twice = (each.inputs[down.path][0] for each in (self.run, run))
            if not _is_sum(once, once, twice):
                yield f"the input of {down.path!r} does not scale with the output of {up.path!r} ({up.name})"

    def _causality(self) -> Iterator[str]:
        if self.model.main_input_name == "pixel_values" or self.model.config.is_encoder_decoder:
            return
        inputs = tiny_input(self.model)
        changed = {**inputs, "input_ids": inputs["input_ids"].clone()}
        changed["input_ids"][:, -1] = (changed["input_ids"][:, -1] + 1) % int(self.model.config.vocab_size)
        first, second = (self.model(**each)[0][:, 0] for each in (inputs, changed))
        if torch.allclose(first, second) != self.family.causal:
            yield "a token attends to later tokens" if self.family.causal else "no token attends to later tokens"

    def _layer(self, site: Site) -> str:
        return "" if site.layer is None else self.layers[site.stack, site.layer]


def tiny_input(model: PreTrainedModel) -> dict[str, Tensor]:
    """Two short texts, or two images, for a model's forward."""
    config, generator = model.config, torch.Generator().manual_seed(1)
    if model.main_input_name == "pixel_values":
        size = getattr(config, "image_size", PIXELS)
        height, width = size if isinstance(size, (tuple, list)) else (size, size)
        pixels = torch.randn((ROWS, config.num_channels, height, width), generator=generator)
        return {"pixel_values": pixels.to(model.device, model.dtype)}
    ids = torch.randint(0, int(config.vocab_size), (ROWS, TOKENS), generator=generator)
    inputs = {"input_ids": ids}
    if config.is_encoder_decoder:
        inputs["decoder_input_ids"] = ids[:, 1:]
    return {name: tensor.to(model.device) for name, tensor in inputs.items()}


def _is_sum(first: Tensor, second: Tensor, total: Tensor) -> bool:
    rounding = 8 * torch.finfo(total.dtype).eps * max(float(t.abs().max()) for t in (first, second))
    return first.shape == total.shape and torch.allclose(first + second, total, rtol=0, atol=rounding)


@contextmanager
def undone(model: PreTrainedModel) -> Iterator[None]:
    """Evaluation mode inside; afterwards modes and attention implementation are as before, also after an exception."""
    modes = {module: module.training for module in model.modules()}
    chosen = model.config._attn_implementation
    model.train(False)
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        if model.config._attn_implementation != chosen:
            model.set_attn_implementation(chosen)


def _probe(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    attended: list[tuple[Tensor, Tensor, Tensor]] | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    if attended is not None:
        attended.append((query, key, value))
    return attention(module, query, key, value, attention_mask, **kwargs)


def _whole_mask(*args: Any, **kwargs: Any) -> Tensor | None:
    """The mask without looking at its values first, to leave it out where it masks nothing: on meta it has none."""
    skips = {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
    mask: Tensor | None = sdpa_mask(*args, **{**kwargs, **skips})
    return mask


AttentionInterface.register(PROBE, _probe)
AttentionMaskInterface.register(PROBE, _whole_mask)
