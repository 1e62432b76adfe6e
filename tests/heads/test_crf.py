"""The conditional random field against every sequence of tags, one by one."""

from itertools import pairwise, product

import pytest
import torch
from closeness import close

from graftwork.heads.crf import declare_crf, log_likelihood, viterbi

MASKS = {
    "all": [True, True, True, True],
    "padded": [True, True, False, False],
    "between": [False, True, False, True],
    "one": [False, False, True, False],
}
"""Which of four tokens are words: a sequence may end early, begin late, and have gaps."""


@pytest.fixture
def field():
    generator = torch.Generator().manual_seed(0)
    parameters = {
        name: torch.randn(p.shape, generator=generator, dtype=torch.float64) for name, p in declare_crf(3).items()
    }
    emissions = torch.randn(len(MASKS), 4, 3, generator=generator, dtype=torch.float64)
    return emissions, torch.tensor(list(MASKS.values())), parameters


def score(row, tags, parameters) -> float:
    """start + emissions + transitions + end, of the tokens that are there."""
    transitions, start, end = (parameters[f"head.crf.{name}"].tolist() for name in ("transitions", "start", "end"))
    said = sum(row[t][tag] for t, tag in enumerate(tags))
    moved = sum(transitions[one][other] for one, other in pairwise(tags))
    return start[tags[0]] + said + moved + end[tags[-1]]


def every_path(emissions, mask, parameters):
    """Of each row, the score of every sequence of tags over its words."""
    for row, real in zip(emissions, mask, strict=True):
        words = row[real].tolist()
        yield {tags: score(words, tags, parameters) for tags in product(range(3), repeat=len(words))}


def test_log_likelihood_is_the_score_less_that_of_all_sequences(field):
    emissions, mask, parameters = field
    tags = torch.tensor([[0, 2, 1, 1], [2, 2, -100, -100], [-100, 1, -100, 0], [-100, -100, 2, -100]])
    expected = []
    for row, real, paths in zip(tags, mask, every_path(*field), strict=True):
        everything = torch.tensor(list(paths.values()), dtype=torch.float64).logsumexp(0)
        expected.append(paths[tuple(row[real].tolist())] - everything)
    found = log_likelihood(emissions, tags, mask, parameters)
    close(found, torch.stack(expected))


def test_probabilities_sum_to_one(field):
    emissions, mask, parameters = field
    for i, paths in enumerate(every_path(*field)):
        tags = torch.zeros(len(paths), 4, dtype=torch.long)
        tags[:, mask[i]] = torch.tensor(list(paths))
        rows = (x[i : i + 1].expand(len(paths), *x.shape[1:]) for x in (emissions, mask))
        found = log_likelihood(next(rows), tags, next(rows), parameters)
        assert found.exp().sum().item() == pytest.approx(1.0, abs=1e-12)


def test_viterbi_finds_the_best_sequence(field):
    emissions, mask, parameters = field
    found = viterbi(emissions, mask, parameters, elsewhere=-100)
    for row, real, paths in zip(found, mask, every_path(*field), strict=True):
        assert tuple(row[real].tolist()) == max(paths, key=paths.__getitem__)
        assert (row[~real] == -100).all()


def test_a_transition_can_decide_against_the_emissions():
    parameters = {name: torch.zeros(p.shape) for name, p in declare_crf(2).items()}
    emissions = torch.tensor([[[1.0, 0.0], [0.0, 0.5]]])
    mask = torch.ones(1, 2, dtype=torch.bool)
    assert viterbi(emissions, mask, parameters, elsewhere=-100).tolist() == [[0, 1]]
    parameters["head.crf.transitions"][0, 1] = -5.0
    assert viterbi(emissions, mask, parameters, elsewhere=-100).tolist() == [[0, 0]]


def test_a_row_without_words_says_nothing(field):
    emissions, _, parameters = field
    mask = torch.zeros(len(emissions), 4, dtype=torch.bool)
    tags = torch.full((len(emissions), 4), -100)
    assert torch.equal(log_likelihood(emissions, tags, mask, parameters), torch.zeros(len(emissions)).double())
    assert (viterbi(emissions, mask, parameters, elsewhere=-100) == -100).all()


def test_gradients(field):
    emissions, mask, parameters = field
    tags = torch.tensor([[0, 2, 1, 1], [2, 2, 0, 0], [0, 1, 0, 0], [0, 0, 2, 0]])
    names = list(parameters)

    def function(emissions, *tensors):
        return log_likelihood(emissions, tags, mask, dict(zip(names, tensors, strict=True)))

    inputs = [emissions, *parameters.values()]
    assert torch.autograd.gradcheck(function, [x.clone().requires_grad_() for x in inputs])
