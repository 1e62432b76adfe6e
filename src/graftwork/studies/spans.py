"""The scores of an adapter without its ops in each span of layers, in as few runs of layers as there can be.

Notation: N layers, numbered from 0; the span x..y has both ends; B rows, T tokens, d hidden size.

A span x..y gives what the adapter gives but for what enters layer y + 1, so nothing before is run again:

1. one whole pass, which leaves what enters each layer x with the adapter: N runs of a layer;
2. from each x, a pass in which no layer has ops: it is the span x..N-1, and leaves what enters each layer y + 1 after
   the span x..y: N - x runs;
3. from each y + 1, for each x, a pass with the adapter: it is the span x..y, in N - 1 - y runs.

That is N + N (N + 1) / 2 + (N - 1) N (N + 1) / 6 runs, as many as (N² + 3 N + 8) / 6 evaluations, in the place of
1 + N (N + 1) / 2 evaluations. Fewer is not possible with exact scores: each of those runs gets an input that no other
gets. Layers without ops need none of their own: spans are cut to those layers that have some.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from graftwork.adapters.declared import usable_sites
from graftwork.bank import Bypassed, Version
from graftwork.errors import AdapterError, BackboneError
from graftwork.inference.predicting import Inference
from graftwork.model import AdaptedModel
from graftwork.passes.starts import CACHED_STATES, LayerStart
from graftwork.training.display import SILENT, Display
from graftwork.training.scoring import Answers, Scorer

Span = tuple[int, int]
"""The first and the last layer, both included."""

Scores = Mapping[str, float]
"""The loss and the task's metrics, by name."""


@dataclass(frozen=True)
class Layers:
    """The layers that run for an adapter, from the input on.

    Attributes:
        names: of each, as `3`, or `decoder 3` where there are two stacks.
        sites: of each, the sites at which the adapter acts.
    """

    names: tuple[str, ...]
    sites: tuple[tuple[str, ...], ...]

    @classmethod
    def of(cls, version: Version) -> "Layers":
        """Those of an adapter.

        Raises:
            AdapterError: it does not act in any layer.
        """
        acting = [version.backbone.sites[name] for name in version.sites]
        usable = usable_sites(version.backbone, version.adapter.head).values()
        there = {(site.stack, site.layer): -site.height for site in usable if site.layer is not None}
        layers = sorted(there, key=lambda layer: there[layer])
        sites = tuple(tuple(own.name for own in acting if (own.stack, own.layer) == layer) for layer in layers)
        if not any(sites):
            raise AdapterError(
                f"the adapter's method, {version.adapter.method.name}, does not act in any layer, so that there is "
                "nothing to bypass",
                expected="an adapter whose method acts in layers, such as houlsby or lora",
            )
        return cls(tuple(f"{stack} {layer}".strip() for stack, layer in layers), sites)

    def __len__(self) -> int:
        return len(self.names)

    def within(self, span: Span) -> list[str]:
        """The sites in a span at which the adapter acts."""
        return [name for own in self.sites[span[0] : span[1] + 1] for name in own]

    @property
    def spans(self) -> list[Span]:
        """All N (N + 1) / 2."""
        return [(x, y) for x in range(len(self)) for y in range(x, len(self))]

    def cut(self, span: Span) -> Span | None:
        """The span less the layers without ops at its ends; None where there are no others."""
        acting = [layer for layer in range(span[0], span[1] + 1) if self.sites[layer]]
        return (acting[0], acting[-1]) if acting else None


@dataclass(frozen=True)
class Measured:
    """What was measured.

    Attributes:
        whole: of the adapter as it is.
        spans: of every span.
        evaluations: what it cost, in passes through all layers.
        apart: why no pass began with the states of another one, in a clause; empty where they did.
    """

    whole: Scores
    spans: Mapping[Span, Scores]
    evaluations: float
    apart: str = ""


def measure(scorer: Scorer, *, display: Display = SILENT) -> tuple[Layers, Measured]:
    """The scores of a finished adapter as it is, and without its ops in each span of layers.

    Args:
        scorer: of the adapter, over the rows.
        display: where a bar shows how far it is.

    Raises:
        AdapterError: the adapter does not act in any layer.
        DivergedError: a loss or score is not finite.
    """
    version = scorer.model.residents.named(scorer.name)
    assert isinstance(version, Version)
    layers = Layers.of(version)
    needed = list(dict.fromkeys(span for own in layers.spans if (span := layers.cut(own)) is not None))
    why = _obstacle(scorer)
    with ExitStack() as stack:
        if not why:
            start = LayerStart(version.backbone, len(layers) - 1, of_adapter=True)
            try:
                stack.enter_context(scorer.model.beginning(start))
            except BackboneError as error:
                why = error.problem
        if why:
            display.say(f"each span takes a whole evaluation: {why}")
            whole, found = apart(scorer, version, layers, needed, display)
            evaluations = 1.0 + len(needed)
        else:
            whole, found = together(scorer, version, layers, needed, start, display)
            evaluations = runs(len(layers), needed) / len(layers)
    spans = {span: whole if (own := layers.cut(span)) is None else found[own] for span in layers.spans}
    return layers, Measured(whole, spans, evaluations, why)


def runs(count: int, spans: Sequence[Span]) -> int:
    """How often a layer runs for each batch.

    Args:
        count: number of layers.
        spans: those whose scores are needed.
    """
    last = max(y for _, y in spans)
    bare = sum(count - x for x in {x for x, _ in spans})
    return count + bare + sum(count - 1 - y for _, y in spans if y < last)


def _obstacle(scorer: Scorer) -> str:
    """Why no pass can begin with the states of another one, in a clause; empty where nothing is known to be so."""
    backbone, head = scorer.model.backbone, scorer.head
    if scorer.kind.generates:
        return "texts are generated"
    if backbone.is_encoder_decoder:
        return "the backbone is an encoder-decoder, and its decoder reads the encoder's states in every layer"
    return "the head reads the states of all layers" if head.reads == "layers" else ""


@contextmanager
def _bypassed(model: AdaptedModel, version: Version, sites: Sequence[str]) -> Iterator[str]:
    """Inside, a name for an adapter without its ops at some sites."""
    name = f"{version.serial} without layers"
    resident = Bypassed(version, sites)
    with model.residents.reserved_name(name), model.residents.room(resident, name):
        model.residents.put(name, resident)
    try:
        yield name
    finally:
        model.residents.drop(name)


def apart(
    scorer: Scorer, version: Version, layers: Layers, spans: Sequence[Span], display: Display
) -> tuple[Scores, dict[Span, Scores]]:
    """Each span by an evaluation of its own."""
    name = scorer.name
    whole, found = scorer(), dict[Span, Scores]()
    with display.bar(f"{name}, spans of layers", len(spans), "spans") as bar:
        try:
            for span in spans:
                with _bypassed(scorer.model, version, layers.within(span)) as bypassed:
                    scorer.name = bypassed
                    found[span] = scorer()
                bar.advance(1)
        finally:
            scorer.name = name
    return whole, found


def together(
    scorer: Scorer, version: Version, layers: Layers, spans: Sequence[Span], start: LayerStart, display: Display
) -> tuple[Scores, dict[Span, Scores]]:
    """All spans, batch by batch, from what enters each layer."""
    everywhere = layers.within((0, len(layers) - 1))
    last = max(y for _, y in spans)
    whole, answers = Answers(scorer), {span: Answers(scorer) for span in spans}
    with (
        _bypassed(scorer.model, version, everywhere) as bare,
        display.bar(f"{scorer.name}, spans of layers", len(scorer.encoded), "rows") as bar,
    ):
        inference = scorer.model.inference([scorer.name, bare])
        for places, batch in scorer.encoder.batches(scorer.encoded, scorer.batch_size):
            asked = _Asked(scorer, inference, batch, start)
            output, entered = asked.run(scorer.name)
            whole.add(places, inference, output)
            for x in dict.fromkeys(x for x, _ in spans):
                output, left = asked.run(bare, x, entered[x])
                answers[x, last].add(places, inference, output)
                for y in (y for first, y in spans if first == x and y < last):
                    output, _ = asked.run(scorer.name, y + 1, left[y + 1])
                    answers[x, y].add(places, inference, output)
            bar.advance(len(places))
    return _scores(whole), {span: _scores(own) for span, own in answers.items()}


def _scores(answers: Answers) -> Scores:
    return answers.scores(answers.outcome())


@dataclass(frozen=True)
class _Asked:
    """One batch, and passes over it."""

    scorer: Scorer
    inference: Inference
    batch: Mapping[str, Tensor]
    start: LayerStart

    def run(self, name: str, layer: int = 0, states: Tensor | None = None) -> tuple[Any, dict[int, Tensor]]:
        """A pass, and what entered the layers that ran.

        Args:
            name: the adapter's.
            layer: where it begins.
            states: what enters there; None: the pass begins at the input.
        """
        self.start.layer = layer
        given = {} if states is None else {CACHED_STATES: self._by_row(states)}
        with self.start.noting() as entered:
            output = self.inference.output({**self.batch, **given}, name, self.scorer.counts)
        return output, entered

    def _by_row(self, states: Tensor) -> Tensor:
        """The states of each row: of a multiple choice, a row has a text for each choice."""
        ids = self.batch.get("input_ids")
        return states if ids is None or ids.dim() < 3 else states.view(*ids.shape[:2], *states.shape[1:])
