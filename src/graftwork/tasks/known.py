"""What there is to say of a built-in task before its data are read, and how many rows its data are known to have.

Rows: of GLUE, as `nyu-mll/glue` on the hub has them with their labels; of the 17 further tasks, the sums of table 3 of
Houlsby et al. (2019), who split them at random; of the others, as published.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from graftwork.tasks.builtin import BUILTIN, find_task
from graftwork.tasks.task import HUB, Task

ALL = "all"
"""In the place of a split, where the data have none."""


def _splits(**rows: int) -> dict[str, int]:
    return rows


ROWS: Mapping[str, Mapping[str, int]] = {
    "movie-reviews": {ALL: 8530},
    "cola": _splits(train=8551, validation=1043),
    "sst2": _splits(train=67349, validation=872),
    "mrpc": _splits(train=3668, validation=408, test=1725),
    "stsb": _splits(train=5749, validation=1500),
    "qqp": _splits(train=363846, validation=40430),
    "mnli": _splits(train=392702, validation=9815),
    "qnli": _splits(train=104743, validation=5463),
    "rte": _splits(train=2490, validation=277),
    "wnli": _splits(train=635, validation=71),
    "conll2003": _splits(train=14041, validation=3250, test=3453),
    "e2e_nlg": _splits(train=42061, validation=4672, test=4693),
    "digits": {ALL: 1797},
    "airline_sentiment": {ALL: 14640},
    "corporate_messaging": {ALL: 3118},
    "disasters": {ALL: 10860},
    "economic_news_relevance": {ALL: 7991},
    "emotion": {ALL: 40000},
    "global_warming": {ALL: 4225},
    "political_audience": {ALL: 5000},
    "political_bias": {ALL: 5000},
    "political_message": {ALL: 5000},
    "primary_emotions": {ALL: 2524},
    "progressive_opinion": {ALL: 1159},
    "progressive_stance": {ALL: 1159},
    "us_economic_performance": {ALL: 4952},
    "news_aggregator": {ALL: 422937},
    "sms_spam": {ALL: 5574},
    "20_newsgroups": _splits(train=11314, test=7532),
    "customer_complaints": {ALL: 183334},
    **{
        f"fdu_mtl_{domain}": _splits(train=rows, test=400)
        for domain, rows in {
            **dict.fromkeys(("apparel", "books", "dvd", "health_personal_care", "imdb", "kitchen_housewares"), 1600),
            **dict.fromkeys(("mr", "music", "sports_outdoors", "toys_games", "video"), 1600),
            **{"baby": 1500, "camera_photo": 1597, "electronics": 1598, "magazines": 1570, "software": 1515},
        }.items()
    },
}
"""By built-in task, the rows with labels of each split of its data."""


@dataclass(frozen=True, kw_only=True)
class KnownTask:
    """A built-in task.

    Attributes:
        name: name of the task.
        kind: kind of task.
        metric: the metric that selects the checkpoint.
        labels: number of classes or tags; None where there are none, or the data decide.
        rows: split -> rows with labels in the data as published; `all` where they have no splits.
        data: what is read unless `data` says otherwise: a dataset on the hub or a package; None: `data` is needed.
        source: where the data can be had.
    """

    name: str
    kind: str
    metric: str
    labels: int | None
    rows: Mapping[str, int]
    data: str | None
    source: str

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def known_tasks() -> list[KnownTask]:
    """Every built-in task, in the order of `BUILTIN`."""
    return [known_task(name) for name in BUILTIN]


def known_task(name: str) -> KnownTask:
    """What is known of a built-in task.

    Raises:
        RecipeError: there is none of that name.
    """
    task = find_task(name)
    return KnownTask(
        name=name,
        kind=task.kind,
        metric=task.main_metric,
        labels=None if task.labels is None else len(task.labels),
        rows=ROWS.get(name, {}),
        data=_data(task),
        source=task.homepage or _data(task) or "",
    )


def _data(task: Task) -> str | None:
    """What is read without further words."""
    packages = {"movie-reviews": "the package movie-reviews", "digits": "the package scikit-learn"}
    if task.data is None:
        return packages.get(task.layout)
    return task.data if task.data.startswith(HUB) else HUB + task.data
