"""Every way to merge, a line each: what merges, with which settings, what it needs, and on what it acts.

The command, its help and dry runs, recipes and the tables of the documents are read from here. A new method is a
function, its settings, and a line. Nothing is imported for it: functions and settings go by their places.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Over = Literal["models", "vectors", "adapters"]
"""What a function is given: models themselves; what each differs by from the base, of which the result is base + scale
times what it makes; or adapters, and fully fine-tuned models as such."""

Base = Literal["needed", "optional", "none"]
"""Whether a method needs the model that the others come from."""

Reads = Literal["weights", "scores", "texts", "labels"]
"""What a method reads: the weights alone, scores on a task, texts of the tasks, or texts with their labels."""

BOTH = ("models", "adapters")


@dataclass(frozen=True, kw_only=True)
class MergeMethod:
    """A way to merge.

    Attributes:
        name: its name.
        function: what merges, by its place below `graftwork.arithmetic`.
        settings: the class of its settings, likewise.
        over: what the function is given.
        takes: what it is given beside: `weights` (a number for each model), `score` and `tell`; and which flags of
            adapters a method over adapters has a use for.
        base: whether it needs the model that the others come from.
        reads: what it reads.
        buffers: whether what it makes has buffers too, those of its own choice of models or units.
        start: whether all operands have to come from one start, as units do otherwise not match.
        acts: on what it acts: models' folders, adapters' folders.
        by_singular_values: whether it goes by those of matrices, so that it can be done in any basis.
        by_angle: whether it goes by the angle between two operands, which nothing has with what changes nothing.
        least, most: how many models it takes.
        paper: where it comes from.
        when: when to use it.
    """

    name: str
    function: str
    settings: str = "merging.settings.NoSettings"
    over: Over = "models"
    takes: tuple[str, ...] = ()
    base: Base = "none"
    reads: Reads = "weights"
    buffers: bool = False
    start: bool = True
    acts: tuple[str, ...] = BOTH
    by_singular_values: bool = False
    by_angle: bool = False
    least: int = 1
    most: int | None = None
    paper: str
    when: str

    @property
    def weighs(self) -> bool:
        """Whether models may have weights."""
        return "weights" in self.takes

    @property
    def scored(self) -> bool:
        """Whether it chooses by scores on a task that is given."""
        return self.reads == "scores"


OPERATIONS = "operations.operations"

_METHODS = (
    MergeMethod(
        name="average",
        function=f"{OPERATIONS}.average",
        settings="merging.settings.Average",
        takes=("weights",),
        least=2,
        paper="Wortsman et al. 2022, arXiv:2203.05482",
        when="runs of one task from one start",
    ),
    MergeMethod(
        name="soup",
        function="merging.choosing.soup",
        takes=("score", "tell"),
        reads="scores",
        buffers=True,
        least=2,
        paper="Wortsman et al. 2022, arXiv:2203.05482",
        when="many runs of one task, some of them bad",
    ),
    MergeMethod(
        name="interpolate",
        function=f"{OPERATIONS}.interpolate",
        settings="merging.settings.Interpolate",
        base="optional",
        least=2,
        most=2,
        paper="Wortsman et al. 2022, arXiv:2109.01903",
        when="robust fine-tuning (WiSE-FT)",
    ),
    MergeMethod(
        name="slerp",
        function=f"{OPERATIONS}.slerp",
        settings="merging.settings.Slerp",
        base="optional",
        by_angle=True,
        least=2,
        most=2,
        paper="Shoemake 1985",
        when="two models; keeps the length of weights",
    ),
    MergeMethod(
        name="arithmetic",
        function=f"{OPERATIONS}.task_arithmetic",
        settings="merging.settings.Arithmetic",
        over="vectors",
        takes=("weights",),
        base="needed",
        paper="Ilharco et al. 2023, arXiv:2212.04089",
        when="add tasks, or forget one (--weights -1)",
    ),
    MergeMethod(
        name="analogy",
        function=f"{OPERATIONS}.analogy",
        settings="merging.settings.Analogy",
        least=3,
        most=3,
        paper="Ilharco et al. 2023, arXiv:2212.04089",
        when="a domain or task without data",
    ),
    MergeMethod(
        name="ties",
        function=f"{OPERATIONS}.ties",
        settings="merging.settings.Ties",
        over="vectors",
        takes=("weights",),
        base="needed",
        paper="Yadav et al. 2023, arXiv:2306.01708",
        when="several tasks whose changes conflict",
    ),
    MergeMethod(
        name="dare",
        function=f"{OPERATIONS}.dare_merge",
        settings="merging.settings.Dare",
        over="vectors",
        takes=("weights",),
        base="needed",
        paper="Yu et al. 2024, arXiv:2311.03099",
        when="language models with small changes",
    ),
    MergeMethod(
        name="breadcrumbs",
        function=f"{OPERATIONS}.breadcrumbs",
        settings="merging.settings.Breadcrumbs",
        over="vectors",
        takes=("weights",),
        base="needed",
        paper="Davari and Belilovsky 2024, arXiv:2312.06795",
        when="many tasks, one setting for all",
    ),
    MergeMethod(
        name="della",
        function=f"{OPERATIONS}.della",
        settings="merging.settings.Della",
        over="vectors",
        takes=("weights",),
        base="needed",
        paper="Deep et al. 2024, arXiv:2406.11617",
        when="as DARE, sparing what is large",
    ),
    MergeMethod(
        name="sce",
        function=f"{OPERATIONS}.sce",
        settings="merging.settings.Sce",
        over="vectors",
        takes=("weights",),
        base="needed",
        least=2,
        paper="Wan et al. 2024, arXiv:2408.07990",
        when="language models, no weights to choose",
    ),
    MergeMethod(
        name="model-stock",
        function=f"{OPERATIONS}.model_stock",
        settings="merging.settings.OfVectors",
        over="vectors",
        base="needed",
        least=2,
        paper="Jang et al. 2024, arXiv:2403.19522",
        when="two or three runs of one task",
    ),
    MergeMethod(
        name="iso-c",
        function=f"{OPERATIONS}.iso_c",
        settings="merging.settings.OfVectors",
        over="vectors",
        takes=("weights",),
        base="needed",
        by_singular_values=True,
        paper="Marczak et al. 2025, arXiv:2502.04959",
        when="many tasks, best without data",
    ),
    MergeMethod(
        name="tsv-m",
        function=f"{OPERATIONS}.tsv_m",
        settings="merging.settings.OfVectors",
        over="vectors",
        takes=("weights",),
        base="needed",
        by_singular_values=True,
        paper="Gargiulo et al. 2025, arXiv:2412.00081",
        when="many tasks, best without data",
    ),
    MergeMethod(
        name="emr",
        function="operations.unifying.vector_of_task",
        settings="merging.settings.Emr",
        over="vectors",
        base="needed",
        paper="Huang et al. 2024, arXiv:2405.17461",
        when="a model for each task, a bit a number each",
    ),
    MergeMethod(
        name="rebasin",
        function="merging.rebasin.rebasin",
        settings="alignment.settings.MatchingSettings",
        takes=("weights", "tell"),
        buffers=True,
        start=False,
        acts=("models",),
        least=2,
        paper="Ainsworth et al. 2023, arXiv:2209.04836",
        when="models trained from different seeds",
    ),
    MergeMethod(
        name="knots",
        function="merging.adaptermethods.knots",
        settings="merging.settings.Knots",
        over="adapters",
        takes=("weights", "align", "heads", "rank"),
        base="needed",
        paper="Stoica et al. 2024, arXiv:2410.19735",
        when="LoRA adapters of several tasks",
    ),
    MergeMethod(
        name="fisher",
        function="merging.adaptermethods.fisher",
        settings="data.settings.FisherMergeSettings",
        over="adapters",
        takes=("weights", "align", "heads", "rank"),
        base="needed",
        reads="labels",
        paper="Matena & Raffel 2022, arXiv:2111.09832",
        when="several tasks, with labelled rows",
    ),
    MergeMethod(
        name="donor",
        function="merging.adaptermethods.donor",
        settings="data.settings.DonorSettings",
        over="adapters",
        takes=("align", "rank"),
        base="needed",
        reads="labels",
        least=2,
        most=2,
        paper="Matena & Raffel 2022, arXiv:2111.09832",
        when="a small task that a larger one can help",
    ),
    MergeMethod(
        name="regmean",
        function="merging.adaptermethods.regmean",
        settings="data.settings.RegMeanSettings",
        over="adapters",
        takes=("heads", "rank"),
        base="needed",
        reads="texts",
        paper="Jin et al. 2023, arXiv:2212.09849",
        when="several tasks, with texts alone",
    ),
    MergeMethod(
        name="adamerging",
        function="merging.adaptermethods.adamerging",
        settings="data.settings.AdaMergingMergeSettings",
        over="adapters",
        base="needed",
        reads="texts",
        paper="Yang et al. 2024, arXiv:2310.02575",
        when="several tasks of classes, with texts alone",
    ),
)

MERGE_METHODS: Mapping[str, MergeMethod] = {method.name: method for method in _METHODS}
"""The methods of `graftwork merge`, by name."""
