"""The prefix cache: what comes before everything that is trained is computed once for each text, and cached in a file
for later epochs, runs and methods.

Where passes begin follows from where a method acts: at the lowest layer in which something is trained, or, when nothing
of the backbone is, at the head. States are cached in the precision in which they are computed: nothing is rounded.
"""

import hashlib
import json
import logging
from array import array
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from graftwork.adapters import Adapter
from graftwork.adapters.identity import library_versions
from graftwork.backbones import Backbone
from graftwork.backbones.devices import arithmetic_of
from graftwork.backbones.fingerprint import cache_folder
from graftwork.encoding import ChoiceEncoder, Encoder, ImageEncoder, Row, Rows
from graftwork.errors import BackboneError, RecipeError
from graftwork.model import AdaptedModel
from graftwork.passes.starts import CACHED_STATES, HeadStart, LayerStart, Start
from graftwork.training.display import SILENT, Bar, Display
from graftwork.training.scoring import Scorer
from graftwork.training.settings import TrainingSettings
from graftwork.training.statefiles import DamagedError, StateFiles, size_of
from graftwork.training.trainer import AdapterTrainer

LAYOUT = 3
"""Part of a key: a new number when what is cached changes."""

BATCH = 64
"""Texts in one pass of filling. It is the same in every run, because rounding depends on it."""

GIGABYTE = 10**9

INPUTS = ("input_ids", "token_type_ids", "attention_mask")
"""What the states of a text follow from."""

Text = dict[str, list[int]]
"""One text as the backbone takes it, unpadded."""

logger = logging.getLogger(__name__)


class UnsuitableError(RecipeError):
    """A run in which nothing can be cached."""


@contextmanager
def prefix_cache(
    trainer: AdapterTrainer, scorer: Scorer, settings: TrainingSettings, display: Display = SILENT
) -> Iterator[None]:
    """Inside, trainer and scorer begin their passes with cached states of the rows, where that can be.

    Args:
        settings: resolved ones.
        display: where a bar shows how far the cache is filled.

    Raises:
        RecipeError: it was asked for and cannot be; says why.
    """
    with ExitStack() as stack:
        try:
            if settings.prefix_cache != "off":
                stack.enter_context(_cached(trainer, scorer, settings, display))
        except (RecipeError, OSError) as error:
            problem = error.problem if isinstance(error, RecipeError) else f"it cannot be written: {error}"
            if settings.prefix_cache == "on":
                raise RecipeError(
                    f"the prefix cache cannot be used: {problem}", change="--train.prefix_cache"
                ) from error
            if not isinstance(error, UnsuitableError):
                logger.warning("the prefix cache is not used, so training takes longer: %s", problem)
        yield


@contextmanager
def _cached(trainer: AdapterTrainer, scorer: Scorer, settings: TrainingSettings, display: Display) -> Iterator[None]:
    model, name, encoder, collate = trainer.adapted, trainer.adapter_name, scorer.encoder, trainer.data_collator
    if settings.backbone_dropout == "keep":
        raise UnsuitableError("the backbone's dropout is kept, so that no two passes over a text are the same")
    if settings.prefix_cache == "auto" and _epochs(trainer) < 2:
        raise UnsuitableError("fewer than two epochs are trained, and filling it would cost what it saves")
    if isinstance(encoder, ImageEncoder):
        raise UnsuitableError("the inputs are images, and only texts can be cached")
    with ExitStack() as stack:
        start = start_for(model.backbone, model.residents.named(name).adapter)
        try:
            stack.enter_context(model.beginning(start))
        except BackboneError as error:
            raise UnsuitableError(error.problem) from error
        rows: Any = trainer.train_dataset
        texts = Texts(encoder, [rows, scorer.encoded])
        bounds, states = _states(model, name, start, texts, int(settings.prefix_cache_gb * GIGABYTE), display)
        scorer.encoder = reader = CachedEncoder(encoder, texts, bounds, states, by_token=start.by_token)
        trainer.data_collator = reader.collate
        try:
            yield
        finally:
            scorer.encoder, trainer.data_collator = encoder, collate


def _epochs(trainer: AdapterTrainer) -> float:
    """How often the run goes over its rows."""
    args = trainer.args
    if args.max_steps < 0:
        return args.num_train_epochs
    return args.max_steps * args.gradient_accumulation_steps / len(trainer.batches)


def start_for(backbone: Backbone, adapter: Adapter) -> Start:
    """Where passes can begin.

    Raises:
        UnsuitableError: only at their beginning.
    """
    if adapter.task.added_tokens:
        raise UnsuitableError("embeddings of added tokens are trained, and no layer is below them")
    sites = [backbone.sites[name] for name in adapter.sites]
    reads = adapter.head.reads
    if not sites and reads == "vocabulary":
        raise UnsuitableError("nothing is trained but what scores the vocabulary")
    if not sites:
        return HeadStart(backbone, adapter.head)
    if reads == "layers":
        raise UnsuitableError("the head reads the states of all layers")
    if backbone.is_encoder_decoder:
        raise UnsuitableError("the backbone is an encoder-decoder, and both of its stacks run")
    lowest = max(sites, key=lambda site: site.height)
    layer = backbone.sites.num_layers - lowest.height - (0 if lowest.layer is None else 1)
    if layer == 0:
        raise UnsuitableError(f"method {adapter.method.name!r} acts at {lowest.name}, and no layer is below that")
    return LayerStart(backbone, layer)


class Texts:
    """The texts of some rows, each once, the longest first: in the same order whatever the order of the rows is.

    Args:
        encoder: how the rows were made.
        splits: rows, of one split after the other.
    """

    def __init__(self, encoder: Encoder, splits: Sequence[Rows]) -> None:
        self._several, self._splits = isinstance(encoder, ChoiceEncoder), splits
        found = {
            _digest(text): (len(text["input_ids"]), split, i, choice)
            for split, rows in enumerate(splits)
            for i, row in enumerate(rows)
            for choice, text in enumerate(self.of(row))
        }
        order = sorted(found, key=lambda digest: (-found[digest][0], digest))
        self._found = [found[digest] for digest in order]
        self._places = {digest: place for place, digest in enumerate(order)}
        self.digest = hashlib.sha256(b"".join(order)).hexdigest()

    def __len__(self) -> int:
        return len(self._found)

    def __getitem__(self, place: int) -> Text:
        _, split, row, choice = self._found[place]
        return self.of(self._splits[split][row])[choice]

    def of(self, row: Row) -> list[Text]:
        """Those of a row: one, or one a choice."""
        own = {name: row[name] for name in INPUTS if name in row}
        if not self._several:
            return [own]
        return [dict(zip(own, values, strict=True)) for values in zip(*own.values(), strict=True)]

    def place(self, text: Text) -> int:
        """Which of them a text is."""
        return self._places[_digest(text)]

    def bounds(self, *, by_token: bool) -> Tensor:
        """(N + 1): where the rows of numbers of each begin and end, of which each has one, or one a token."""
        sizes = [length if by_token else 1 for length, *_ in self._found]
        return torch.tensor([0, *sizes]).cumsum(dim=0)


class CachedEncoder(Encoder):
    """An encoder whose batches have the cached states of their rows.

    Args:
        inner: it makes the batches.
        texts: among which are those of all rows.
        bounds, states: those of them; see `statefiles`.
        by_token: whether that is one row of numbers a token, or one a text.
    """

    def __init__(self, inner: Encoder, texts: Texts, bounds: Tensor, states: Tensor, *, by_token: bool) -> None:
        super().__init__(inner.backbone, inner.task)
        self.inner, self.texts, self.by_token = inner, texts, by_token
        self.bounds, self.states = bounds.tolist(), states

    def encode(self, inputs: Sequence[object], labels: Sequence[object] | None = None) -> Rows:
        return self.inner.encode(inputs, labels)

    def lengths(self, rows: Rows) -> list[int]:
        return self.inner.lengths(rows)

    def collate(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        batch = self.inner.collate(rows)
        *several, length = batch["input_ids"].shape
        cached = self.states.new_zeros((*several, length if self.by_token else 1, self.states.shape[-1]))
        for row, own in zip(rows, cached.view(len(rows), -1, *cached.shape[-2:]), strict=True):
            for text, room in zip(self.texts.of(row), own, strict=False):
                place = self.texts.place(text)
                start, end = self.bounds[place : place + 2]
                room[: end - start] = self.states[start:end]
        return {**batch, CACHED_STATES: cached if self.by_token else cached.squeeze(-2)}


def _states(
    model: AdaptedModel, name: str, start: Start, texts: Texts, limit: int, display: Display
) -> tuple[Tensor, Tensor]:
    """The states of texts, out of their file, which is made where it is not there."""
    first = _states_of(model, name, start, [texts[0]])
    bounds, width = texts.bounds(by_token=start.by_token), first.shape[-1]
    size = size_of(bounds, width, first.dtype)
    if size > limit:
        raise RecipeError(
            f"the states of {len(texts)} texts take {size / GIGABYTE:.2f} GB, and there is room for "
            f"{limit / GIGABYTE:g} GB (--train.prefix_cache_gb)"
        )
    files, backbone = StateFiles(cache_folder() / "states", limit), model.backbone
    key = key_of(backbone, start, first.dtype, texts.digest)
    try:
        found = files.read(key)
    except DamagedError as error:
        logger.warning("cached states were damaged and are computed again: %s", error)
        found = None
    if found is None:
        places = [range(i, min(i + BATCH, len(texts))) for i in range(0, len(texts), BATCH)]

        def pieces(bar: Bar) -> Iterator[Tensor]:
            for batch in places:
                yield _states_of(model, name, start, [texts[place] for place in batch])
                bar.advance(len(batch))

        def write() -> tuple[Tensor, Tensor]:
            with display.bar(f"{name}, prefix cache", len(texts), "texts") as bar:
                return files.write(key, bounds, width, first.dtype, pieces(bar))

        try:
            found = write()
        except FileNotFoundError:  # the folder was deleted while it was filled
            found = write()
    return found


def key_of(backbone: Backbone, start: Start, dtype: torch.dtype, texts: str) -> str:
    """The key of the cached states of texts: all that decides them, to the last bit. A run then learns the same
    whether its states were there already or not, also where machines share a folder.

    Args:
        dtype: of the states, which need not be that of the weights: a vector of a text is always float32.
        texts: their digest.
    """
    parts = [
        *(LAYOUT, library_versions(), arithmetic_of(backbone.device)),
        *(backbone.fingerprint, backbone.digest_of_weights(), backbone.config._attn_implementation),
        *(start.name, str(dtype), texts),
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _states_of(model: AdaptedModel, name: str, start: Start, texts: Sequence[Text]) -> Tensor:
    """(rows, n): the states of texts, one after the other."""
    tokenizer, device = model.backbone.require_tokenizer(), model.backbone.device
    batch = {name: tensor.to(device) for name, tensor in tokenizer.pad(list(texts), return_tensors="pt").items()}
    found = model.states_to_cache(name, **batch).cpu()
    if not start.by_token:
        return found
    lengths = torch.tensor([len(text["input_ids"]) for text in texts])
    return found[torch.arange(found.shape[1]) < lengths[:, None]]


def _digest(text: Text) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for name in INPUTS:
        digest.update(array("q", text.get(name, ())).tobytes())
        digest.update(b"|")
    return digest.digest()
