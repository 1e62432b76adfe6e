"""Token classification: a tag for each word of a text."""

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from graftwork.data.columns import TAGS, WORDS, Columns, Content, is_integer, label_ids, label_text, sorted_names
from graftwork.errors import DivergedError, RecipeError, nearest
from graftwork.kinds.classification import of_names
from graftwork.kinds.kind import Kind, Predictor, Request, TaskLike
from graftwork.kinds.metrics import Metric, span_f1, span_precision, span_recall, token_accuracy

if TYPE_CHECKING:
    import datasets
    from torch import Tensor

    from graftwork.backbones import Backbone, Pooling
    from graftwork.data.table import Table
    from graftwork.encoding import Encoder, Row
    from graftwork.encoding.identity import TaskIdentity
    from graftwork.heads import Head
    from graftwork.kinds.prediction import Prediction, Span

OUTSIDE = "O"
"""The tag of a word that is in no span, and of one that the model is not given."""

SPAN_TAG = re.compile(r"O|[BIES]-.+", re.DOTALL)


class TokenClassification(Kind):
    """A tag for each word.

    Columns of its datasets: `words` (list of str), `tags` (list of int, as many, ids into the task's labels).
    """

    name = "token-classification"
    inputs: ClassVar[Mapping[str, Content]] = {"text": WORDS}
    label = TAGS
    options = ("labels", "label_ids", "header")
    metrics: ClassVar[Mapping[str, Metric]] = {
        "seqeval_f1": Metric(span_f1, spans=True),
        "seqeval_precision": Metric(span_precision, spans=True),
        "seqeval_recall": Metric(span_recall, spans=True),
        "token_accuracy": Metric(token_accuracy),
    }
    layouts = ("conll",)
    usual_metrics = 4
    named = True
    stratified = False
    by_token = True
    takes = "words"
    example = '["Some", "words"]'

    def label_names(self, values: Sequence[Any]) -> list[list[str]]:
        return [[label_text(tag) for tag in tags] for tags in values]

    def sorted_names(self, names: set[str]) -> tuple[str, ...]:
        # O, and then B-LOC, I-LOC, B-PER, I-PER, …
        if all(map(is_integer, names)):
            return sorted_names(names)
        return tuple(sorted(names, key=lambda tag: (tag != OUTSIDE, tag.partition("-")[2], tag)))

    def misfits(self, task: TaskLike, table: "Table") -> list[tuple[str, str, str]]:
        pairs = list(zip(table.columns[task.inputs["text"][0]], table.columns[task.label], strict=True))
        uneven = [row for row, (words, tags) in enumerate(pairs) if len(words) != len(tags)]
        if not uneven:
            return []
        words, tags = pairs[uneven[0]]
        problem = (
            f"{len(uneven)} rows with other numbers of words than of tags ({len(words)} and {len(tags)}): "
            + table.places(uneven)
        )
        return [(problem, "a tag for each word", "those rows, or --label")]

    def columns(self, task: TaskLike, table: "Table", *, grouped: bool) -> Columns:
        from datasets import List, Value

        names = self.label_names(table.columns[task.label])
        ids = label_ids(table, task.label, names, task.labels or (), as_ids=task.label_ids, layout=task.layout)
        words = table.columns[task.inputs["text"][0]]
        return {"words": (List(Value("string")), words), "tags": (List(Value("int64")), ids)}

    def inputs_of(self, rows: "datasets.Dataset") -> Sequence[Any]:
        return list(rows["words"])

    def labels_of(self, rows: "datasets.Dataset") -> list[Any]:
        return list(rows["tags"])

    def named_labels(self, label: Any, names: Sequence[str]) -> list[str]:
        return [names[i] for i in label]

    def head(self, backbone: "Backbone", *, num_labels: int, pooling: "Pooling", **fields: Any) -> "Head":
        from graftwork.heads import TokenHead

        return TokenHead(num_outputs=num_labels, **fields)

    def feature_head(self, *, num_labels: int, **fields: Any) -> "Head":
        from graftwork.heads import FeatureHead

        return FeatureHead(task="token-classification", num_outputs=num_labels, **fields)

    def encoder_class(self, head: "Head") -> "type[Encoder]":
        from graftwork.encoding import TagEncoder

        return TagEncoder

    def answers(self, request: Request) -> "list[Prediction]":
        from graftwork.encoding import words_of

        tags = request.predictor.tags(request.inputs, request.adapter, batch_size=request.batch_size)
        words = [words_of(given, i) for i, given in enumerate(request.inputs)]
        return [read_tags(request.task, *both) for both in zip(words, tags, strict=True)]

    def read(self, task: "TaskIdentity", head: "Head", logits: "Tensor", inputs: Sequence[Any]) -> "list[Prediction]":
        raise NotImplementedError(self.name)  # there is no one row of logits for an input

    def shown_answer(self, found: "Prediction", given: Any) -> str:
        # One a line after its word, and a blank line after each text.
        return "".join(f"{word}\t{tag}\n" for word, tag in zip(found.words or (), found.tags or (), strict=True))

    def outputs(
        self, predictor: Predictor, adapter: str, labels: Sequence[str], logits: "Tensor", rows: Sequence[Any]
    ) -> Sequence[Any]:
        if not logits.isfinite().all():
            raise DivergedError.of("the logits of tags are not finite")
        ids = predictor.decide(logits, first_pieces(rows, logits), adapter).tolist()
        return [tags_of(row, ids[i], labels) for i, row in enumerate(rows)]

    def outcome(
        self, task: TaskLike, head: "Head", outputs: Mapping[int, Any], rows: "datasets.Dataset"
    ) -> tuple[Any, Any]:
        names = task.labels or ()
        there = [[names[tag] for tag in tags] for tags in self.labels_of(rows)]
        return [outputs[i] for i in range(len(outputs))], there

    def check_metrics(self, names: Sequence[str], labels: Sequence[str] | None) -> None:
        no_spans = [tag for tag in labels or () if not SPAN_TAG.fullmatch(tag)]
        for name in names:
            if self.metrics[name].spans and no_spans:
                raise RecipeError(
                    f"metric {name!r} is for tags that mark spans (O, B-PER, I-PER), and the task has "
                    + ", ".join(map(repr, no_spans[:5])),
                    expected=nearest(name, [other for other, own in self.metrics.items() if not own.spans]),
                    change="metrics, or the tags",
                )

    def prepare(self, predictions: Any, labels: Any) -> tuple[Any, Any]:
        said, there = [list(row) for row in predictions], [list(row) for row in labels]
        lengths = [len(row) for row in said], [len(row) for row in there]
        if lengths[0] != lengths[1] or not sum(lengths[1]):
            raise ValueError(
                f"{len(said)} lists of {sum(lengths[0])} predicted tags and {len(there)} lists of {sum(lengths[1])} "
                f"tags do not fit {self.name}: one tag for each word is needed in both"
            )
        return said, there

    def labels_in(self, predictions: Any, labels: Any) -> tuple[str, ...] | None:
        return tuple(sorted({tag for row in (*predictions, *labels) for tag in row}))

    def chance_warning(self, task: TaskLike, predictions: Any, labels: Any) -> tuple[str, str]:
        pairs = [pair for both in zip(predictions, labels, strict=True) for pair in zip(*both, strict=True)]
        said, there = [one for one, _ in pairs], [other for _, other in pairs]
        return of_names(task, said, there, "word", blind="token_accuracy", other="seqeval_f1")


def first_pieces(rows: "Sequence[Row]", like: "Tensor") -> "Tensor":
    """Which tokens are judged, (B, T): the first piece of each word that the model was given.

    Args:
        like: (B, T, C), what is said of them.

    Raises:
        AdapterError: what is said of them is not finite.
    """
    import torch

    from graftwork.encoding import ABSENT
    from graftwork.kinds.prediction import check_finite

    mask = torch.zeros(like.shape[:2], dtype=torch.bool)
    for i, row in enumerate(rows):
        mask[i, [place for place in row["places"] if place != ABSENT]] = True
    mask = mask.to(like.device)
    check_finite(like[mask])
    return mask


def tags_of(row: "Row", ids: Sequence[int], labels: Sequence[str]) -> list[str]:
    """The tag of each word: of its first piece, or `OUTSIDE` where the model was not given it."""
    from graftwork.encoding import ABSENT

    return [OUTSIDE if place == ABSENT else labels[ids[place]] for place in row["places"]]


def read_tags(task: "TaskIdentity", words: Sequence[str], tags: Sequence[str]) -> "Prediction":
    """What the tags of a sentence mean."""
    from graftwork.kinds.prediction import Prediction

    marks = all(SPAN_TAG.fullmatch(label) for label in task.labels or ("",))
    return Prediction(words=tuple(words), tags=tuple(tags), spans=spans_of(words, tags) if marks else None)


def spans_of(words: Sequence[str], tags: Sequence[str]) -> "tuple[Span, ...]":
    """The spans that tags mark, as the CoNLL-2003 shared task counts them: an I-X that follows no X begins one."""
    from graftwork.kinds.prediction import Span

    spans: list[Span] = []
    start, kind = 0, ""
    for place, tag in enumerate([*tags, OUTSIDE]):
        prefix, _, now = tag.partition("-")
        before = tags[place - 1].partition("-")[0] if place else OUTSIDE
        if kind and (now != kind or prefix in "BS" or before in ("E", "S")):
            spans.append(Span(type=kind, start=start, end=place, text=" ".join(words[start:place])))
            kind = ""
        if now and not kind:
            start, kind = place, now
    return tuple(spans)
