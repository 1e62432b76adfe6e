"""The task models of feature extraction against loops over single tokens in float64."""

import pytest
import torch
from closeness import PASS, close
from torch import Tensor

from graftwork.errors import DataError
from graftwork.heads.features import mix
from graftwork.heads.sequences import bilstm, declare_bilstm
from graftwork.heads.taskmodels import BIATTENTION, ESIM, biattention, esim

WIDTH, HIDDEN = 6, 4
MASKS = {"all": [1, 1, 1, 1, 1], "padded": [1, 1, 1, 0, 0], "padded first": [0, 0, 1, 1, 1], "gaps": [1, 0, 1, 0, 1]}
SEGMENTS = torch.tensor([[0, 0, 1, 1, 1], [0, 1, 1, 0, 0], [0, 0, 0, 0, 1], [0, 0, 1, 1, 1]])


def random(shape, generator) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64) * 0.5


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@pytest.fixture
def x(generator):
    return random((len(MASKS), 5, WIDTH), generator)


@pytest.fixture
def mask():
    return torch.tensor(list(MASKS.values())).bool()


def draw(declared, generator) -> dict[str, Tensor]:
    return {name: random(parameter.shape, generator) for name, parameter in declared.items()}


def lstm_by_hand(rows, parameters, name) -> list[Tensor]:
    """Gates in the order input, forget, cell, output."""
    given, recurrent, bias = (parameters[f"{name}.{leaf}"] for leaf in ("input", "recurrent", "bias"))
    h = c = torch.zeros(recurrent.shape[1], dtype=torch.float64)
    found = []
    for row in rows:
        i, f, g, o = (given @ row + recurrent @ h + bias).chunk(4)
        c = 1 / (1 + (-f).exp()) * c + 1 / (1 + (-i).exp()) * torch.tanh(g)
        h = 1 / (1 + (-o).exp()) * torch.tanh(c)
        found.append(h)
    return found


def bilstm_by_hand(rows, parameters, name) -> list[Tensor]:
    onwards = lstm_by_hand(rows, parameters, f"{name}.forwards")
    back = lstm_by_hand(rows[::-1], parameters, f"{name}.backwards")[::-1]
    return [torch.cat(pair) for pair in zip(onwards, back, strict=True)]


def attend_by_hand(query, states) -> Tensor:
    scores = torch.stack([query @ state for state in states]).exp()
    return sum(p * state for p, state in zip(scores / scores.sum(), states, strict=True))


def linear_by_hand(row, parameters, name) -> Tensor:
    return parameters[f"{name}.weight"] @ row + parameters[f"{name}.bias"]


def mean_by_hand(rows):
    return sum(rows) / len(rows)


def maximum_by_hand(rows):
    return torch.stack(rows).max(dim=0).values


def test_mix():
    generator = torch.Generator().manual_seed(1)
    layers, weight = [random((2, 3, 4), generator) for _ in range(3)], random((3,), generator)
    shares = [w.exp() / sum(v.exp() for v in weight) for w in weight]
    expected = 1.7 * (shares[0] * layers[0] + shares[1] * layers[1] + shares[2] * layers[2])
    close(mix(layers, weight, torch.tensor([1.7], dtype=torch.float64)), expected, PASS)


def test_bilstm(x, mask, generator):
    parameters = draw(declare_bilstm("b", WIDTH, HIDDEN), generator)
    found = bilstm(x, mask, parameters, "b")
    assert found.shape == (len(MASKS), 5, 2 * HIDDEN)
    for row, real, states in zip(x, mask, found, strict=True):
        expected = torch.stack(bilstm_by_hand(list(row[real]), parameters, "b"))
        close(states[real], expected, PASS)
        assert (states[~real] == 0).all()


def test_bilstm_is_pytorchs(x, generator):
    module = torch.nn.LSTM(WIDTH, HIDDEN, bidirectional=True, batch_first=True).double()
    names = {"forwards": "", "backwards": "_reverse"}
    parameters = {}
    for direction, end in names.items():
        parameters[f"b.{direction}.input"] = getattr(module, f"weight_ih_l0{end}")
        parameters[f"b.{direction}.recurrent"] = getattr(module, f"weight_hh_l0{end}")
        parameters[f"b.{direction}.bias"] = getattr(module, f"bias_ih_l0{end}") + getattr(module, f"bias_hh_l0{end}")
    found = bilstm(x, torch.ones(x.shape[:2], dtype=torch.bool), parameters, "b")
    close(found, module(x)[0], PASS)


def test_biattention(x, mask, generator):
    parameters = draw(BIATTENTION.declare(WIDTH, HIDDEN), generator)
    found = biattention(x, mask, None, parameters)
    assert found.shape == (len(MASKS), BIATTENTION.width(WIDTH, HIDDEN))
    for row, real, vector in zip(x, mask, found, strict=True):
        projected = [linear_by_hand(token, parameters, "head.project").clamp(min=0) for token in row[real]]
        states = bilstm_by_hand(projected, parameters, "head.encoder")
        integrated = []
        for state in states:
            context = attend_by_hand(state, states)
            integrated.append(torch.cat([state, state - context, state * context]))
        z = bilstm_by_hand(integrated, parameters, "head.integrator")
        weights = torch.stack([parameters["head.attention"] @ token for token in z]).exp()
        own = sum(w * token for w, token in zip(weights / weights.sum(), z, strict=True))
        pooled = torch.cat([maximum_by_hand(z), mean_by_hand(z), torch.stack(z).min(dim=0).values, own])
        expected = torch.tanh(linear_by_hand(pooled, parameters, "head.dense"))
        close(vector, expected, PASS)


def test_esim(x, mask, generator):
    parameters = draw(ESIM.declare(WIDTH, HIDDEN), generator)
    found = esim(x, mask, SEGMENTS, parameters)
    assert found.shape == (len(MASKS), ESIM.width(WIDTH, HIDDEN))
    for row, real, segment, vector in zip(x, mask, SEGMENTS, found, strict=True):
        texts = [list(row[real & (segment == part)]) for part in (0, 1)]
        a, b = (bilstm_by_hand(text, parameters, "head.encoder") for text in texts)
        pooled = []
        for own, other in ((a, b), (b, a)):
            enhanced = []
            for state in own:
                aligned = attend_by_hand(state, other)
                enhanced.append(torch.cat([state, aligned, state - aligned, state * aligned]))
            projected = [linear_by_hand(token, parameters, "head.project").clamp(min=0) for token in enhanced]
            v = bilstm_by_hand(projected, parameters, "head.composer")
            pooled += [mean_by_hand(v), maximum_by_hand(v)]
        expected = torch.tanh(linear_by_hand(torch.cat(pooled), parameters, "head.dense"))
        close(vector, expected, PASS)


@pytest.mark.parametrize(
    ("segments", "message"),
    [
        (None, "does not tell which is which"),
        ([[0, 1, 1, 1, 1], [0, 1, 1, 1, 1], [0, 0, 0, 1, 1], [0, 0, 0, 0, 0]], "a row has only one"),
        ([[0, 0, 1, 1, 1]] * 4, "a row has only one"),
    ],
)
def test_esim_needs_two_texts(x, mask, generator, segments, message):
    given = None if segments is None else torch.tensor(segments)
    with pytest.raises(DataError, match=message):
        esim(x, mask, given, draw(ESIM.declare(WIDTH, HIDDEN), generator))


@pytest.mark.parametrize("model", [BIATTENTION, ESIM], ids=["biattention", "esim"])
def test_what_is_outside_the_mask_is_not_read(x, mask, generator, model):
    parameters = draw(model.declare(WIDTH, HIDDEN), generator)
    other = torch.where(mask.unsqueeze(-1), x, 1e3)
    assert torch.equal(model.run(x, mask, SEGMENTS, parameters), model.run(other, mask, SEGMENTS, parameters))
