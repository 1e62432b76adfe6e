"""RegMean: the linear map that is nearest to each model's own on what enters it there.

Jin et al. 2023, "Dataless Knowledge Fusion by Merging Weights of Language Models", arXiv:2212.09849:
    W = (Σ_i W_i G_i) (Σ_i G_i)⁻¹,    G_i = X_iᵀ X_i / n_i,
over the n_i tokens X_i that enter the map in model i, with the off-diagonal entries of G_i multiplied by α. It needs no
labels and no gradients. What is no weight of a linear map is averaged.

Computed as mean + (Σ_i (W_i - mean) G_i) (Σ_i G_i)⁺: the same, and where nothing ever enters along a direction, the
mean. All of it is in float64.

Shapes: W_i (out, in), X_i (n_i, in), G_i (in, in).
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

from graftwork.adapters import Adapter
from graftwork.arithmetic.adapters.bodies import Bodies, LowRankBodies, WeightBodies
from graftwork.arithmetic.adapters.commonbasis import M, given_back
from graftwork.arithmetic.adapters.heads import HeadsMode, head_groups
from graftwork.arithmetic.adapters.mergeable import changing_bodies_of
from graftwork.arithmetic.adapters.merging import MergedAdapters, named_adapters, with_heads
from graftwork.arithmetic.adapters.vectors import Computed, Vector
from graftwork.arithmetic.data.fisher import refuse_other_shapes
from graftwork.arithmetic.data.keeping import Kept, release_memory
from graftwork.arithmetic.data.reading import Rows, rows_of
from graftwork.arithmetic.data.settings import RegMeanSettings
from graftwork.backbones import Backbone, Site
from graftwork.errors import MethodError
from graftwork.heads import IGNORED, Head
from graftwork.model import AdaptedModel
from graftwork.training.display import SILENT, Display, shown_on_stderr

NOTHING = 1e-10
"""An eigenvalue of Σ G_i that is at most so much of the largest is one along which nothing enters."""


def regmean(weights: Sequence[M], grams: Sequence[Vector], alpha: float = 0.9) -> M:
    """Merge models by what enters their linear maps.

    Args:
        weights: W_i and other tensors, N vectors with the same names and shapes, `Weights` or plain mappings.
        grams: G_i by the name of the weight, N; the weights that have none are averaged.
        alpha: the factor of the off-diagonal entries of G_i, from 0 to 1.

    Returns:
        The merged vector, of the same kind, float32.

    Raises:
        MethodError: names or shapes do not fit, or alpha is out of its range.
    """
    if not 0.0 <= alpha <= 1.0:
        raise MethodError(f"alpha is {alpha:g}", expected="a number from 0 to 1", change="--method.alpha")
    if len(grams) != len(weights):
        raise MethodError(
            f"{len(weights)} models and {len(grams)} sets of inputs are given", expected="as many of each"
        )
    refuse_other_shapes(weights)
    refuse_other_shapes(grams)
    return given_back(weights, dict(regression_means(weights, grams, alpha)))


def regression_means(weights: Sequence[Vector], grams: Sequence[Vector], alpha: float = 0.9) -> Vector:
    """What `regmean` makes, each tensor when it is asked for."""

    def merged(name: str) -> Tensor:
        mean = torch.zeros_like(weights[0][name], dtype=torch.float64)
        for vector in weights:
            mean += vector[name]
        mean /= len(weights)
        if name not in grams[0]:
            return mean.float()
        total, apart = torch.zeros_like(grams[0][name], dtype=torch.float64), torch.zeros_like(mean)
        for vector, own in zip(weights, grams, strict=True):
            scaled = _off_diagonal(own[name].double(), alpha)
            total += scaled
            apart += (vector[name].double() - mean) @ scaled
        inverse: Tensor = torch.linalg.pinv(total, rtol=NOTHING, hermitian=True)
        return (mean + apart @ inverse).float()

    return Computed([*weights[0]], merged)


def regmean_adapters(
    adapters: Mapping[str, Adapter] | Sequence[Adapter],
    backbone: Backbone,
    *,
    settings: RegMeanSettings | None = None,
    rank: int | None = None,
    heads: HeadsMode = "auto",
    data: Mapping[str, str] | None = None,
    working: str | Path | None = None,
    progress: bool = False,
) -> MergedAdapters:
    """Merge adapters that change weights, or fully fine-tuned models, by RegMean.

    Args:
        adapters: by name, or a list, whose names are then those of their tasks.
        backbone: of all of them. It is in use meanwhile, by no other model.
        settings: what is read, and how.
        rank: of the LoRA that the result is to be; None: the result says the merge exactly.
        heads: what becomes of the heads; see `merge_adapters`.
        data: other data than those that an adapter was tuned on, by its name.
        working: a folder in which it is kept how far it is; None: it is not.
        progress: report progress on standard error.

    Raises:
        MethodError: the adapters change no weights, as bottlenecks and IA3's vectors do not.
        DataError: the data of an adapter are not known, or cannot be read.
    """
    own = settings or RegMeanSettings()
    named = named_adapters(adapters)
    bodies = changing_bodies_of(named, backbone)
    refuse_weightless(named, type(bodies))
    groups = head_groups(named, heads)
    folder = None if working is None else Path(working)
    with shown_on_stderr(shown=progress) as display:
        grams = []
        for name, adapter in named.items():
            rows = rows_of(
                adapter, backbone, "train", data=(data or {}).get(name), examples=own.examples, seed=own.seed
            )
            kept = Kept(
                folder, f"inputs.{name}", {"adapter": adapter.digest, "rows": rows.origin, "size": own.batch_size}
            )
            grams.append(
                grams_of(adapter, bodies, rows, batch_size=own.batch_size, kept=kept, display=display, label=name)
            )
    body = bodies.written(regression_means(bodies.vectors, grams, own.alpha), rank)
    return with_heads(body, groups, named, backbone, {"regmean": own.model_dump()})


def refuse_weightless(adapters: Mapping[str, Adapter], kind: type[Bodies]) -> None:
    """Refuse adapters that change no weights.

    Args:
        adapters: by name.
        kind: as what they are calculated with.

    Raises:
        MethodError: they change none.
    """
    if not issubclass(kind, LowRankBodies | WeightBodies):
        first = next(iter(adapters.values()))
        raise MethodError(
            f"adapters of method {first.method.name!r} have no weights of linear maps that RegMean could merge",
            expected="adapters of LoRA, full fine-tuning or another method that is merged into weights",
        )


def grams_of(
    adapter: Adapter,
    bodies: Bodies,
    rows: Rows,
    *,
    batch_size: int,
    kept: Kept | None = None,
    display: Display = SILENT,
    label: str = "adapter",
) -> Vector:
    """XᵀX / n of what enters the linear maps under an adapter, by the name of the weight, float32 on the CPU. Those
    that are kept are read when they are asked for.

    Padding does not count, of the decoder's inputs neither.

    Args:
        adapter: the adapter.
        bodies: whose vectors' weights they are for.
        rows: of its task.
        batch_size: rows in one pass.
        kept: where it is kept how far it is.
        display: where it is shown.
        label: what is shown beside.
    """
    backbone = bodies.backbone
    names = [name for name in bodies.vectors[0] if _is_linear(name, backbone)]
    paths = {name: backbone.weights.where(name).path for name in names}
    state = None if kept is None else kept.read()
    done = 0 if state is None else int(state[1]["done"])
    if state is not None and done == len(rows):
        return _means(state[0], paths)
    model = AdaptedModel(backbone)
    try:
        model.add("a", adapter)
        inputs = _Inputs(model, names, adapter.head)
        if state is not None:
            inputs.restore(state[0])
        with display.bar(f"{label}, inputs of linear maps", len(rows), "rows", done=done, stays=False) as bar:
            for count, batch in rows.batches(batch_size, start=done):
                with torch.no_grad(), inputs.counted(batch):
                    model(**batch, adapters="a")
                bar.move(count)
                if kept is not None:
                    kept.write(inputs.state(), {"done": count}, now=count == len(rows))
    finally:
        model.detach()
    del model
    whole = None if kept is None else kept.read()
    if whole is not None:
        inputs.sums.clear()
    release_memory()
    return _means(inputs.state() if whole is None else whole[0], paths)


def _means(state: Mapping[str, Tensor], paths: Mapping[str, str]) -> Vector:
    """XᵀX / n of what is kept, each when it is asked for.

    Args:
        state: see `_Inputs.state`.
        paths: the module of each weight.
    """

    def mean(name: str) -> Tensor:
        return (state[f"sum.{paths[name]}"] / max(1, int(state[f"count.{paths[name]}"]))).float()

    return Computed([*paths], mean)


class _Inputs:
    """Sums of XᵀX of what enters linear maps. Those with one input have one sum."""

    def __init__(self, model: AdaptedModel, names: Sequence[str], head: Head) -> None:
        self.model, self.head = model, head
        backbone = model.backbone
        places = {name: backbone.weights.where(name) for name in names}
        self.sums = {
            place.path: torch.zeros(place.shape[1], place.shape[1], dtype=torch.float64) for place in places.values()
        }
        self.counts = dict.fromkeys(self.sums, 0)
        # Whether tokens of the decoder enter, by the path.
        self.decodes = {
            place.path: backbone.is_encoder_decoder and not _enters_encoded(backbone.sites[place.site])
            for place in places.values()
            if place.site is not None
        }

    @contextmanager
    def counted(self, batch: Mapping[str, Tensor]) -> Iterator[None]:
        """Inside, what enters is added; padding by the masks of the tokens that enter."""
        masks = (_flat(batch.get("attention_mask")), _flat(_decoded(batch, self.head)))
        root = self.model.graft.root
        hooks = [
            root.get_submodule(path).register_forward_pre_hook(self._hook(path, masks[self.decodes[path]]))
            for path in self.sums
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _hook(self, path: str, mask: Tensor | None) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            x = args[0].detach()
            # A pooler reads one token of each row, which is never padding.
            by_token = mask is not None and mask.shape == x.shape[:-1]
            rows = (x[mask] if by_token else x.flatten(0, -2)).double()
            self.sums[path] += (rows.T @ rows).cpu()
            self.counts[path] += len(rows)

        return hook

    def state(self) -> dict[str, Tensor]:
        counts = {f"count.{path}": torch.tensor(count) for path, count in self.counts.items()}
        return {**{f"sum.{path}": tensor for path, tensor in self.sums.items()}, **counts}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        self.sums = {path: state[f"sum.{path}"].clone() for path in self.sums}
        self.counts = {path: int(state[f"count.{path}"]) for path in self.counts}


def _enters_encoded(site: Site) -> bool:
    """Whether what enters a linear map of an encoder-decoder are the encoder's tokens, as in cross-attention's keys and
    values."""
    crossing = site.sublayer == "cross_attention" and site.name.endswith((".key", ".value"))
    return site.stack == "encoder" or crossing


def _decoded(batch: Mapping[str, Tensor], head: Head) -> Tensor | None:
    """Which inputs of a decoder are real: the wanted tokens, moved by one place. None: each row has one start token."""
    tokens = batch.get("labels") if head.labels_are_tokens else batch.get("targets")
    return None if tokens is None else tokens != IGNORED


def _flat(mask: Tensor | None) -> Tensor | None:
    """A mask with choices as rows."""
    return None if mask is None else mask.flatten(0, -2).bool()


def _is_linear(name: str, backbone: Backbone) -> bool:
    """Whether a tensor is the weight of a linear map that is no other module's as well."""
    place = backbone.weights.where(name)
    site = None if place.site is None else backbone.sites[place.site]
    return site is not None and site.kind == "linear" and name == f"{site.name}.weight" and not place.tied


def _off_diagonal(gram: Tensor, alpha: float) -> Tensor:
    return alpha * gram + (1.0 - alpha) * torch.diag(gram.diagonal())
