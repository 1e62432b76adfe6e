"""Chains of layers that tests permute."""

import torch
from tiny import randomised
from torch import nn


def chain(*layers, seed=0):
    """Layers with random parameters, biases and norms included."""
    return randomised(nn.Sequential(*layers), seed=seed).eval()


def mlp(seed=0, width=12, layers=2):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        hidden = [part for _ in range(layers - 1) for part in (nn.Linear(width, width), nn.ReLU())]
        return chain(nn.Linear(6, width), nn.ReLU(), *hidden, nn.Linear(width, 3), seed=seed)


def cnn(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return chain(
            *(nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(6, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
            *(nn.Flatten(), nn.Linear(8 * 16, 10), nn.GELU(), nn.Linear(10, 3)),
            seed=seed,
        )
