"""The formulas of the papers in float64, over whole vectors in memory and without any of the package's code."""

import numpy as np
import torch
from torch import Tensor

Tensors = dict[str, Tensor]


def flat(tensors: Tensors) -> Tensor:
    return torch.cat([own.double().flatten() for own in tensors.values()])


def unflat(numbers: Tensor, like: Tensors) -> Tensors:
    parts = numbers.split([own.numel() for own in like.values()])
    return {name: part.view(own.shape) for (name, own), part in zip(like.items(), parts, strict=True)}


def each(function, vectors: list[Tensors]) -> Tensors:
    """A formula over flat vectors, at each tensor."""
    return {
        name: function([own[name].double().flatten() for own in vectors]).view(vectors[0][name].shape)
        for name in vectors[0]
    }


def top(numbers: Tensor, count: int) -> Tensor:
    """The so many largest magnitudes; of equal ones, the first."""
    order = np.lexsort((np.arange(len(numbers)), -numbers.abs().numpy()))
    mask = torch.zeros(len(numbers), dtype=torch.bool)
    mask[order[:count].copy()] = True
    return mask


def rounded(share: float, size: int) -> int:
    return int(np.floor(share * size + 0.5))


def keep_largest(numbers: Tensor, share: float) -> Tensor:
    return numbers * top(numbers, rounded(share, len(numbers)))


def elect(rows: list[Tensor], majority: float) -> Tensor:
    signs = torch.stack(rows).sum(0).sign()
    return torch.where(signs == 0, torch.full_like(signs, majority), signs)


def majority_of(rows: list[Tensor]) -> float:
    return float(torch.stack(rows).sum(0).sign().sum().sign())


def merge(rows: list[Tensor], signs: Tensor, how: str, shares: list[float]) -> Tensor:
    stack = torch.stack(rows)
    agree = (stack * signs) > 0
    chosen = torch.where(agree, stack, torch.zeros_like(stack))
    if how == "max":
        return signs * chosen.abs().amax(0)
    if how == "sum":
        return chosen.sum(0)
    divisor = (agree.double() * torch.tensor(shares, dtype=torch.float64)[:, None]).sum(0)
    return torch.where(divisor > 0, chosen.sum(0) / divisor.clamp_min(1e-300), torch.zeros_like(divisor))


def ties(vectors: list[Tensors], keep: float, scope: str, how: str, weights: list[float] | None = None) -> Tensors:
    shares = weights or [1.0] * len(vectors)
    if scope == "global":
        rows = [keep_largest(flat(own) * w, keep) for own, w in zip(vectors, shares, strict=True)]
    else:
        rows = [
            torch.cat([keep_largest(own[name].double().flatten() * w, keep) for name in own])
            for own, w in zip(vectors, shares, strict=True)
        ]
    return unflat(merge(rows, elect(rows, majority_of(rows)), how, [abs(w) for w in shares]), vectors[0])


def breadcrumbs(vectors: list[Tensors], keep: float, outliers: float) -> Tensors:
    def crumbs(numbers: Tensor) -> Tensor:
        large = rounded(outliers, len(numbers))
        both = top(numbers, large + rounded(keep, len(numbers))) & ~top(numbers, large)
        return numbers * both

    return each(lambda rows: torch.stack([crumbs(row) for row in rows]).sum(0), vectors)


def sce(vectors: list[Tensors], keep: float) -> Tensors:
    def one(rows: list[Tensor]) -> Tensor:
        stack = torch.stack(rows)
        stack = stack * top(stack.var(0, correction=0), rounded(keep, stack.shape[1]))
        squares = stack.square().sum(1)
        shares = squares / squares.sum() if squares.sum() > 0 else torch.full_like(squares, 1 / len(squares))
        signs = stack.sum(0).sign()
        agree = (stack * signs > 0) * shares[:, None]
        return (stack * agree).sum(0) / agree.sum(0).clamp_min(1e-300)

    return each(one, vectors)


def slerp(vectors: list[Tensors], t: float) -> Tensors:
    def one(rows: list[Tensor]) -> Tensor:
        a, b = rows
        cosine = float(a @ b / (a.norm() * b.norm())) if a.norm() * b.norm() > 0 else 0.0
        if abs(cosine) > 0.9995:
            return (1 - t) * a + t * b
        angle = np.arccos(cosine)
        return (np.sin((1 - t) * angle) * a + np.sin(t * angle) * b) / np.sin(angle)

    return each(one, vectors)


def model_stock(vectors: list[Tensors]) -> Tensors:
    def one(rows: list[Tensor]) -> Tensor:
        n = len(rows)
        pairs = [float(rows[i] @ rows[j] / (rows[i].norm() * rows[j].norm())) for i in range(n) for j in range(i)]
        cosine = float(np.mean(pairs))
        below = 1 + (n - 1) * cosine
        t = n * cosine / below if below > 0 else 0.0
        return max(t, 0.0) * torch.stack(rows).mean(0)

    return each(one, vectors)


def matrices(function, vectors: list[Tensors]) -> Tensors:
    return {
        name: function(stack) if stack.dim() == 3 else stack.mean(0)
        for name in vectors[0]
        for stack in [torch.stack([own[name].double() for own in vectors])]
    }


def iso_c(stack: Tensor) -> Tensor:
    left, values, right = np.linalg.svd(stack.sum(0).numpy(), full_matrices=False)
    return torch.from_numpy(left @ np.diag(np.full_like(values, values.mean())) @ right)


def tsv_m(stack: Tensor) -> Tensor:
    rank = max(1, min(stack.shape[1:]) // len(stack))
    parts = [np.linalg.svd(own.numpy(), full_matrices=False) for own in stack]
    U = np.concatenate([u[:, :rank] for u, _, _ in parts], axis=1)
    V = np.concatenate([v[:rank] for _, _, v in parts], axis=0)
    values = np.concatenate([s[:rank] for _, s, _ in parts])

    def polar(matrix):
        left, _, right = np.linalg.svd(matrix, full_matrices=False)
        return left @ right

    return torch.from_numpy(polar(U) @ np.diag(values) @ polar(V))
