"""Two trainings of one network on images of digits: the loss along the line between them, before and after alignment.

    python -m studies.basins [--networks mlp-256 cnn] [--pairs 0 1 2]

A pair of seeds makes two networks: other initial weights and another order of the data. Images are scikit-learn's
digits (8 x 8), a third of them for testing. A run takes up where an earlier one stopped.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from studies import figures
from studies.domains import half_width
from studies.grid import Grid, Record, markdown

HERE = Path(__file__).parent
POINTS = 25
EPOCHS, BATCH, RATE, MOMENTUM = 60, 64, 0.1, 0.9
STE_EPOCHS = 10
MATCHED_ON = 512
"""Training images by whose activations units are matched, and over which batch norms are computed anew."""

NETWORKS = ("mlp-64", "mlp-256", "mlp-512", "cnn")
SHOWN = ("mlp-256", 0)
WAYS = ("naive", "weights", "activations", "straight-through")


def measure(network: str, pair: int) -> Mapping[str, Any]:
    """Two networks, and what is between them.

    Returns:
        accuracy: of each, on the test images; barriers: by way, in test loss, and for the CNN with the statistics of
        its batch norms as they are (`… , not repaired`); curves: by way, the test loss at each point; seconds.
    """
    import time

    import torch
    import torch.nn.functional as F
    from torch.func import functional_call

    from graftwork.arithmetic import (
        StraightThroughSettings,
        activation_matching,
        line,
        recompute_batch_norm,
        sequential_specification,
        straight_through,
        weight_matching,
    )

    torch.set_num_threads(1)
    begun = time.process_time()
    (images, labels), (test_images, test_labels) = digits(flat=network != "cnn")
    a, b = (trained(network, 2 * pair + which, images, labels) for which in (0, 1))
    specification = sequential_specification(a)
    some = [images[start : start + BATCH] for start in range(0, MATCHED_ON, BATCH)]
    batches = [(images[start : start + BATCH], labels[start : start + BATCH]) for start in range(0, len(images), BATCH)]
    repaired = network == "cnn"

    def loss(weights: Mapping[str, Any], batch: Any) -> torch.Tensor:
        # Batch norms by the batch's own statistics: those of a mean of networks are not known.
        probe.train(repaired)
        return F.cross_entropy(functional_call(probe, dict(weights), (batch[0],)), batch[1])

    def tested(weights: Mapping[str, Any], *, repair: bool) -> dict[str, float]:
        probe.load_state_dict(weights)
        if repair:
            recompute_batch_norm(probe, some)
        probe.eval()
        with torch.no_grad():
            logits = probe(test_images)
        accuracy = float((logits.argmax(1) == test_labels).float().mean())
        return {"loss": float(F.cross_entropy(logits, test_labels)), "accuracy": accuracy}

    probe = make(network, 0)
    one, other = ({name: own.clone() for name, own in net.state_dict().items()} for net in (a, b))
    permutations = {
        "weights": weight_matching(specification, one, other),
        "activations": activation_matching(specification, a, b, some),
        "straight-through": straight_through(
            specification, one, other, loss, batches, settings=StraightThroughSettings(num_epochs=STE_EPOCHS)
        ),
    }
    ends = {way: found.apply(other) for way, found in permutations.items()}
    curves = {}
    for repair in (True, False) if repaired else (False,):
        made = line(one, other, lambda w, r=repair: tested(w, repair=r), others=ends, points=POINTS)  # type: ignore[misc]
        for way, values in zip(WAYS, made.curves.values(), strict=True):
            name = way if repair == repaired else f"{way}, not repaired"
            curves[name] = [round(own["loss"], 5) for own in values]
    return {
        "accuracy": [round(tested(own, repair=False)["accuracy"], 4) for own in (one, other)],
        "barriers": {name: round(max(own) - (own[0] + own[-1]) / 2, 5) for name, own in curves.items()},
        "curves": curves,
        "seconds": round(time.process_time() - begun),
    }


def digits(*, flat: bool) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
    """Images and labels for training, and for testing."""
    import torch
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)
    x = x if flat else x.reshape(-1, 1, 8, 8)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    train, test = order[len(x) // 3 :], order[: len(x) // 3]
    return (x[train], y[train]), (x[test], y[test])


def make(network: str, seed: int) -> Any:
    """An untrained network: three hidden layers, or two convolutions with batch norms and one hidden layer."""
    import torch
    from torch import nn

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if network == "cnn":
            return nn.Sequential(
                *(nn.Conv2d(1, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)),
                *(nn.Conv2d(32, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2)),
                *(nn.Flatten(), nn.Linear(64 * 4, 128), nn.ReLU(), nn.Linear(128, 10)),
            )
        width = int(network.removeprefix("mlp-"))
        hidden = [part for _ in range(2) for part in (nn.Linear(width, width), nn.ReLU())]
        return nn.Sequential(nn.Linear(64, width), nn.ReLU(), *hidden, nn.Linear(width, 10))


def trained(network: str, seed: int, images: Any, labels: Any) -> Any:
    """A network trained with SGD."""
    import torch
    import torch.nn.functional as F

    own = make(network, seed).train()
    optimizer = torch.optim.SGD(own.parameters(), lr=RATE, momentum=MOMENTUM)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(EPOCHS):
        for part in torch.randperm(len(images), generator=generator).split(BATCH):
            optimizer.zero_grad()
            F.cross_entropy(own(images[part]), labels[part]).backward()
            optimizer.step()
    return own.eval()


def report(records: list[Record]) -> str:
    """The page."""
    rows = []
    for network in NETWORKS:
        own = sorted((record for record in records if record["network"] == network), key=lambda record: record["pair"])
        if not own:
            continue
        accuracy = [value for record in own for value in record["accuracy"]]
        for suffix in ("", ", not repaired") if network == "cnn" else ("",):
            cells = [_cell([record["barriers"][f"{way}{suffix}"] for record in own]) for way in WAYS]
            rows.append([f"{network}{suffix}", f"{100 * sum(accuracy) / len(accuracy):.1f}", str(len(own)), *cells])
    table = markdown(["network", "accuracy, %", "pairs", *WAYS], rows)
    return PAGE.format(points=POINTS, epochs=EPOCHS, batch=BATCH, rate=RATE, momentum=MOMENTUM, table=table)


def draw(records: list[Record], file: Path) -> None:
    """The figure: the curves of one pair."""
    curves = next((own["curves"] for own in records if (own["network"], own["pair"]) == SHOWN), None)
    if curves is not None:
        across = [place / (POINTS - 1) for place in range(POINTS)]
        shown = {way: curves[way] for way in WAYS}
        figures.lines(file, across, shown, "α: 0 is one network, 1 the other", "test loss")


def _cell(values: list[float]) -> str:
    mean = sum(values) / len(values)
    return f"{mean:.3f}" if len(values) < 2 else f"{mean:.3f} ± {half_width(values):.3f}"


PAGE = """# Basins of digits

Two networks from different seeds, trained alike on scikit-learn's images of digits (8 x 8, a third for testing; SGD
with momentum {momentum}, rate {rate}, {epochs} epochs of batches of {batch}); the test loss at {points} points of the
line between them. Barriers: the largest loss minus the mean of the two ends', mean over pairs of seeds and half the
width of a 95 % interval (Student's t). `naive`: the networks as they are; `weights`, `activations` (correlation) and
`straight-through`: the units of the second permuted to match the first ([Alignment](../docs/rebasin.md)). The
multi-layer perceptrons have three hidden layers of that width; the CNN has two convolutions with batch norms, whose
statistics are computed anew at each point, or are the mean of both networks' (`not repaired`).
Made by `python -m studies.basins`.

{table}

![Test loss between two networks of width 256](basins.svg)
"""


GRID = Grid(HERE / "basins.jsonl", ("network", "pair"), HERE / "BASINS.md", report)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--networks", nargs="+", default=NETWORKS, choices=NETWORKS)
    parser.add_argument("--pairs", nargs="+", type=int, default=(0, 1, 2))
    parser.add_argument("--workers", type=int, default=1)
    given = parser.parse_args()
    GRID.fill([(network, pair) for network in given.networks for pair in given.pairs], measure, workers=given.workers)
    draw(GRID.recorded(), HERE / "basins.svg")


if __name__ == "__main__":
    main()
