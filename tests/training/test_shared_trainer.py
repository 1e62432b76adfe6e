"""What several processes share out: rows, dropout, and what none of them can do together."""

import pytest
import torch
import torch.nn.functional as F
from tiny import make_adapter

from graftwork import PrefixTuning
from graftwork.errors import RecipeError
from graftwork.training import Recipe
from graftwork.training.processes import ALONE, Processes
from graftwork.training.shared_trainer import WholeDraws
from graftwork.training.tuning import refuse_sharing


@pytest.mark.parametrize(("rows", "count"), [(5, 2), (7, 3), (2, 3)])
def test_each_row_is_of_one_process(rows, count):
    shares = [Processes(count, index).share(list(range(rows))) for index in range(count)]
    assert sorted(row for own in shares for row in own) == list(range(rows))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("each", [1, 3])
def test_dropout_of_shares_is_that_of_the_whole(each):
    values = torch.rand(5 * each, 4) + 1
    torch.manual_seed(3)
    whole = F.dropout(values, 0.4).view(5, each, 4)
    after = torch.rand(1)
    assert (whole == 0).any()
    for index in range(2):
        processes = Processes(2, index)
        own = processes.share(values.view(5, each, 4)).reshape(-1, 4)
        torch.manual_seed(3)
        with WholeDraws(5, len(own) // each, processes):
            found = F.dropout(own, p=0.4, training=True)
            assert torch.equal(F.dropout(own, 0.4, training=False), own)
            assert torch.equal(torch.nn.Dropout(0.0)(own), own)
        assert torch.equal(found.view(-1, each, 4), processes.share(whole))
        assert torch.equal(torch.rand(1), after), "and the stream of random numbers goes on as after the whole"


def test_dropout_of_a_prefix_is_the_same_on_all_processes(backbone):
    """Also where the number of its heads can be divided by that of a process's rows."""
    adapter = make_adapter(backbone, PrefixTuning(num_virtual_tokens=6, dropout=0.4, reparametrise=False), trained=True)
    sites = [backbone.sites[name] for name in adapter.sites]
    torch.manual_seed(3)
    expected = adapter.method.prepare(adapter.tensors, sites, training=True)
    after = torch.rand(1)
    for index in range(2):
        torch.manual_seed(3)
        with WholeDraws(4, sites[0].heads // 2, Processes(2, index)):
            found = adapter.method.prepare(adapter.tensors, sites, training=True)
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
        assert torch.equal(torch.rand(1), after)


def test_one_process_is_alone(monkeypatch):
    assert Processes.here() == ALONE
    assert (ALONE.first, ALONE.several, ALONE.of_first("x"), ALONE.by_first(lambda: 3)) == (True, False, "x", 3)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(RecipeError, match="WORLD_SIZE is 2, and MASTER_ADDR, MASTER_PORT is not set"):
        Processes.here()


def test_what_several_cannot_do_is_refused(backbone_folder, data):
    def recipe(**sections):
        task = {"name": "classes", "text": "text", "data": str(data["classes"])}
        return Recipe.parse({"backbone": str(backbone_folder), "task": task, "method": "lora", **sections}, origin="it")

    refuse_sharing(recipe(train={"prefix_cache": "on"}), ALONE)
    with pytest.raises(RecipeError, match=r"3 processes, which keep no states.*\n.*\n.*--train.prefix_cache"):
        refuse_sharing(recipe(train={"prefix_cache": "on"}), Processes(3, 1))
    with pytest.raises(RecipeError, match="2 processes, which cannot ask teachers"):
        refuse_sharing(recipe(distill={"teachers": ["x"]}), Processes(2, 0))
