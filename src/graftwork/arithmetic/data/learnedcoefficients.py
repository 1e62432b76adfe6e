"""AdaMerging: how much each adapter counts in a merge is learned from texts without labels.

Yang et al. 2024, "AdaMerging: Adaptive Model Merging for Multi-Task Learning", arXiv:2310.02575:
    θ^l = θ_0^l + Σ_i λ_i^l τ_i^l,    λ minimises Σ_tasks mean over x of H(softmax f_task(x; θ)),
with each task's own head frozen. One λ for each adapter (task-wise), or for each adapter and tensor (layer-wise, as the
authors' code has it); with ++ the τ are trimmed and their signs elected before. λ starts at 0.3 and is
trained by Adam, 1e-3, 500 steps of two batches of 16 a task. It is not clamped: a clamped λ has no gradient.

The authors learn λ on the very inputs on which they score. Here a part of the split's rows is learned on, and scores
are given on that part (transductive) and on the others (inductive) apart.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from graftwork.adapters import Adapter
from graftwork.arithmetic.adapters.bodies import Bodies
from graftwork.arithmetic.adapters.commonbasis import Formula
from graftwork.arithmetic.adapters.heads import head_groups
from graftwork.arithmetic.adapters.mergeable import changing_bodies_of
from graftwork.arithmetic.adapters.merging import MergedAdapters, name_of, named_adapters, with_heads
from graftwork.arithmetic.adapters.scores import scores_on
from graftwork.arithmetic.adapters.vectors import Vector
from graftwork.arithmetic.data.keeping import Kept, put_by
from graftwork.arithmetic.data.likelihoods import answer_type, entropies
from graftwork.arithmetic.data.linearforms import Interpolated, LinearForm, linear_form
from graftwork.arithmetic.data.reading import Rows, rows_of, source_for
from graftwork.arithmetic.data.settings import AdaMergingSettings
from graftwork.backbones import Backbone
from graftwork.errors import DivergedError, MethodError
from graftwork.model import AdaptedModel
from graftwork.tasks import SplitName
from graftwork.training.display import SILENT, Display, shown_on_stderr

BETAS, EPSILON = (0.9, 0.999), 1e-8
"""Adam's, as PyTorch has them."""


@dataclass(frozen=True)
class AdaMerged:
    """Adapters merged with learned coefficients.

    Attributes:
        merged: an adapter for each task, with its own head.
        coefficients: λ by adapter, then by tensor; `all` for task-wise ones.
        entropy: the mean entropy of each task's answers before and after, on the rows that were learned on.
        transductive: scores by task on the rows that were learned on.
        inductive: scores by task on the other rows of the split.
    """

    merged: MergedAdapters
    coefficients: Mapping[str, Mapping[str, float]]
    entropy: Mapping[str, tuple[float, float]]
    transductive: Mapping[str, Mapping[str, float]]
    inductive: Mapping[str, Mapping[str, float]]


def adamerging(
    adapters: Mapping[str, Adapter] | Sequence[Adapter],
    backbone: Backbone,
    *,
    settings: AdaMergingSettings | None = None,
    elect: Formula | None = None,
    split: SplitName = "validation",
    data: Mapping[str, str] | None = None,
    working: str | Path | None = None,
    progress: bool = False,
) -> AdaMerged:
    """Merge adapters, or fully fine-tuned models, with coefficients learned from inputs without labels.

    Args:
        adapters: by name, or a list, whose names are then those of their tasks. Their heads are over classes, choices
            or several labels: others have no entropy.
        backbone: of all of them. It is in use meanwhile, by no other model.
        settings: how coefficients are learned.
        elect: for AdaMerging++, a formula that trims and elects signs, such as `partial(ties, keep=0.2)`: the entries
            that it trims from a vector, and those with another sign than the elected one, are cut. None: nothing is.
        split: whose inputs are learned on, and scored.
        data: other data than those that an adapter was tuned on, by its name.
        working: a folder in which it is kept how far it is; None: it is not.
        progress: report progress on standard error.

    Raises:
        MethodError: a head has no entropy over classes, or vectors of which sums make no sense (bottlenecks).
        DataError: the data of an adapter are not known, or cannot be read.
        DivergedError: the entropy is not finite.
    """
    own = settings or AdaMergingSettings()
    named = named_adapters(adapters)
    bodies = changing_bodies_of(named, backbone)
    refuse_unlearnable(named, type(bodies))
    folder = None if working is None else Path(working)
    form = linear_form(
        bodies,
        None if elect is None else elected(bodies.vectors, elect),
        put=partial(put_by, folder) if folder is not None else lambda name, tensors: tensors,
    )
    count = len(form.names) if own.coefficients == "layer" else 1
    with shown_on_stderr(shown=progress) as display:
        parts = {}
        for name, adapter in named.items():
            rows = rows_of(adapter, backbone, split, data=(data or {}).get(name), labelled=False)
            parts[name] = _parted(rows, own.share, own.seed)
        kept = Kept(
            folder,
            "coefficients",
            {
                "adapters": {name: adapter.digest for name, adapter in named.items()},
                "rows": {name: rows.origin for name, (rows, _, _) in parts.items()},
                "elect": None if elect is None else name_of(elect),
                **own.model_dump(),
            },
        )
        learner = _Learner(form, torch.full((len(named), count), own.initial), named, backbone)
        seen = {name: (rows, places) for name, (rows, places, _) in parts.items()}
        try:
            before = learner.mean_entropies(seen, own.batch_size)
            learner.learn(seen, own, kept, display)
            after = learner.mean_entropies(seen, own.batch_size)
        finally:
            learner.model.detach()
        coefficients = learner.coefficients.detach()
        said = {"adamerging": {**own.model_dump(), "split": split, "plus": elect is not None}}
        merged = with_heads(form.body(coefficients), head_groups(named, "keep"), named, backbone, said)
        transductive, inductive = {}, {}
        for name, adapter in merged.adapters.items():
            _, places, others = parts[name]
            given = (data or {}).get(name)
            transductive[name] = scores_on(adapter, backbone, split, places, data=given, display=display)
            inductive[name] = scores_on(adapter, backbone, split, others, data=given, display=display)
    return AdaMerged(
        merged,
        {
            name: dict(zip(form.names if own.coefficients == "layer" else ("all",), row.tolist(), strict=True))
            for name, row in zip(named, coefficients, strict=True)
        },
        {name: (before[name], after[name]) for name in named},
        transductive,
        inductive,
    )


def refuse_unlearnable(adapters: Mapping[str, Adapter], kind: type[Bodies]) -> None:
    """Refuse adapters of which no coefficients can be learned.

    Args:
        adapters: by name.
        kind: as what they are calculated with.

    Raises:
        MethodError: a head has no entropy over classes, or sums of them make no sense.
    """
    for name, adapter in adapters.items():
        if answer_type(adapter.head) not in ("classes", "labels"):
            raise MethodError(
                f"the answers of adapter {name!r}, of kind {adapter.kind}, have no entropy over classes",
                expected="tasks of classification, multi-label classification or multiple choice",
            )
    if kind.linear_only:
        raise MethodError(f"adapters {', '.join(adapters)} cannot be summed: {kind.linear_only}")


def elected(vectors: Sequence[Vector], elect: Formula) -> Iterator[Vector]:
    """Vectors less the entries that a merge of them leaves out: those that it trimmed, or whose sign it did not elect
    (AdaMerging++). Each is made when it is asked for.

    Args:
        vectors: τ_i.
        elect: such as TIES: the sign of what it makes of all is the elected one, and what it makes of a vector alone is
            what it trims that to.
    """
    signs = {name: tensor.sign().to(torch.int8) for name, tensor in elect(vectors).items()}
    for vector in vectors:
        left = elect([vector])
        yield {n: t.where((t.sign() == signs[n]) & (left[n] != 0), 0.0) for n, t in vector.items()}


class _Learner:
    """Coefficients that are learned.

    Args:
        form: what they scale.
        coefficients: where they start, (N, 1) or (N, L).
        adapters: by task; each has a head.
        backbone: where they run.
    """

    def __init__(
        self, form: LinearForm, coefficients: Tensor, adapters: Mapping[str, Adapter], backbone: Backbone
    ) -> None:
        self.coefficients = coefficients.to(backbone.device).requires_grad_(True)
        self.model = AdaptedModel(backbone)
        here = form.to(backbone.device)
        self.residents = {name: Interpolated(here, self.coefficients, a, backbone) for name, a in adapters.items()}
        for name, resident in self.residents.items():
            self.model.graft.attach(resident.sites)
            self.model.residents.put(name, resident)

    def entropy(self, name: str, batch: Mapping[str, Tensor]) -> Tensor:
        """The mean entropy of what is said of a task's rows, with a graph."""
        logits = self.model(**batch, adapters=name).logits
        return entropies(self.residents[name].adapter.head, logits).mean()

    def mean_entropies(self, rows: Mapping[str, tuple[Rows, Sequence[int]]], size: int) -> dict[str, float]:
        """Over all rows of each task."""
        found = {}
        with torch.no_grad():
            for name, (own, places) in rows.items():
                total = 0.0
                for start in range(0, len(places), size):
                    some = places[start : start + size]
                    total += float(self.entropy(name, own.batch(some))) * len(some)
                found[name] = total / len(places)
        return found

    def learn(
        self,
        rows: Mapping[str, tuple[Rows, Sequence[int]]],
        settings: AdaMergingSettings,
        kept: Kept,
        display: Display = SILENT,
    ) -> None:
        """Train the coefficients, from where it was kept."""
        adam = torch.optim.Adam([self.coefficients], lr=settings.learning_rate, betas=BETAS, eps=EPSILON)
        done = self._restore(adam, kept)
        with display.bar("coefficients", settings.steps, "steps", done=done) as bar:
            for step in range(done, settings.steps):
                total = self._step(step, rows, settings)
                adam.step()
                bar.move(step + 1, note=f"entropy {total:.4f}")
                state = adam.state[self.coefficients]
                tensors = {"coefficients": self.coefficients, "first": state["exp_avg"], "second": state["exp_avg_sq"]}
                kept.write(tensors, {"done": step + 1}, now=step + 1 == settings.steps)

    def _step(self, step: int, rows: Mapping[str, tuple[Rows, Sequence[int]]], settings: AdaMergingSettings) -> float:
        """The gradient of one step, task by task; gives the sum of entropies."""
        gradient, total = torch.zeros_like(self.coefficients), 0.0
        for number, (name, (own, places)) in enumerate(rows.items()):
            order = torch.randperm(len(places), generator=source_for(settings.seed, step, number)).tolist()
            for i in range(settings.batches):
                chosen = [places[j] for j in order[i * settings.batch_size : (i + 1) * settings.batch_size]]
                if not chosen:
                    break
                entropy = self.entropy(name, own.batch(chosen)) / settings.batches
                gradient += torch.autograd.grad(entropy, self.coefficients)[0]
                total += float(entropy.detach())
        if not bool(gradient.isfinite().all()):
            raise DivergedError(
                f"the entropy is {total} in step {step + 1}",
                expected="finite numbers",
                change="the learning rate (lower)",
            )
        self.coefficients.grad = gradient
        return total

    def _restore(self, adam: torch.optim.Adam, kept: Kept) -> int:
        state = kept.read()
        if state is None:
            return 0
        tensors, done = state[0], int(state[1]["done"])
        with torch.no_grad():
            self.coefficients.copy_(tensors["coefficients"])
        adam.state[self.coefficients] = {
            "step": torch.tensor(float(done)),
            "exp_avg": tensors["first"].to(self.coefficients),
            "exp_avg_sq": tensors["second"].to(self.coefficients),
        }
        return done


def _parted(rows: Rows, share: float, seed: int) -> tuple[Rows, list[int], list[int]]:
    """Rows, the places of those that are learned on, and of the others; at least one of each.

    Raises:
        MethodError: there is one row.
    """
    if len(rows) < 2:
        raise MethodError(f"task {rows.task.name!r} has {len(rows)} rows in the split", expected="two or more")
    order = torch.randperm(len(rows), generator=source_for(seed)).tolist()
    count = min(len(rows) - 1, max(1, round(share * len(rows))))
    return rows, sorted(order[:count]), sorted(order[count:])
