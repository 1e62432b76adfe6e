"""A text in several turns, each going on with the cache of those before it: what comes is what the whole text gives."""

from dataclasses import replace

import pytest
import torch
from tiny import make_model
from torch import Tensor
from transformers import DynamicCache

from graftwork.adapters import Adapter, TaskIdentity
from graftwork.backbones import Backbone
from graftwork.heads import LanguageHead
from graftwork.methods import LoRA, PrefixTuning, PromptTuning, PTuning, Union
from graftwork.model import AdaptedModel

METHODS = {
    "short": PromptTuning(num_virtual_tokens=2, init="uniform"),
    "long": PromptTuning(num_virtual_tokens=5, init="uniform"),
    "network": PTuning(num_virtual_tokens=3),
    "prefix": PrefixTuning(num_virtual_tokens=3, reparametrise=False),
    "lora": LoRA(rank=2),
    "two prompts": Union(methods=[PromptTuning(num_virtual_tokens=2, init="uniform"), PTuning(num_virtual_tokens=3)]),
}
ROWS = {
    **{name: name for name in METHODS},
    "prompts": ["short", "long", "short"],
    "all": ["long", "lora", "prefix"],
}
"""One adapter for all three rows, or one a row."""

NEW = 3
OPTIONS = {"max_new_tokens": NEW, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
EXACT = {"rtol": 0, "atol": 1e-6}
"""Float64, but logits are kept in float32 and rotary angles computed in it; a wrong term is of order 0.1."""


def make_adapted(kind: str) -> AdaptedModel:
    backbone = Backbone(make_model(kind, dtype=torch.float64, head=True), name=f"tiny-{kind}")
    adapters = {}
    for i, (name, method) in enumerate(METHODS.items()):
        adapter = Adapter.create(backbone, method, LanguageHead(shifted=True), TaskIdentity(name="t"), seed=i)
        generator = torch.Generator().manual_seed(i)
        moved = {n: t + torch.randn(t.shape, generator=generator) * 0.3 for n, t in adapter.tensors.items()}
        adapters[name] = replace(adapter, tensors=moved)
    return AdaptedModel(backbone, adapters)


def make_texts(lengths: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Texts padded before them, and their mask."""
    longest, generator = max(lengths), torch.Generator().manual_seed(0)
    ids = torch.randint(5, 100, (len(lengths), longest), generator=generator)
    mask = (torch.arange(longest) >= longest - torch.tensor(lengths)[:, None]).long()
    return ids.masked_fill(mask == 0, 0), mask


@pytest.mark.parametrize("lengths", [(6, 6, 6), (4, 6, 5)], ids=["unpadded", "padded"])
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_second_turn_gives_what_the_whole_text_gives(kind, rows, lengths):
    """Of `generate`, with the cache that the first turn was given; its logits too."""
    model, adapters = make_adapted(kind), ROWS[rows]
    ids, mask = make_texts(lengths)
    cache = DynamicCache()
    asked = {**OPTIONS, "adapters": adapters, "output_logits": True, "return_dict_in_generate": True}
    said = model.generate(input_ids=ids, attention_mask=mask, past_key_values=cache, **asked).sequences
    more = torch.randint(5, 100, (3, 4), generator=torch.Generator().manual_seed(1))
    for _ in range(2):
        whole = torch.cat([said, more], dim=1)
        seen = torch.cat([mask, torch.ones(3, whole.shape[1] - mask.shape[1], dtype=torch.long)], dim=1)
        found = model.generate(input_ids=whole, attention_mask=seen, past_key_values=cache, **asked)
        expected = model.generate(input_ids=whole, attention_mask=seen, **asked)
        assert torch.equal(found.sequences, expected.sequences)
        for one, other in zip(found.logits, expected.logits, strict=True):
            torch.testing.assert_close(one, other, **EXACT)
        said = found.sequences


@pytest.mark.parametrize("lengths", [(6, 6, 6), (4, 6, 5)], ids=["unpadded", "padded"])
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_rows_generate_together_what_each_generates_alone(kind, rows, lengths):
    model, adapters = make_adapted(kind), ROWS[rows]
    ids, mask = make_texts(lengths)
    asked = {**OPTIONS, "output_logits": True, "return_dict_in_generate": True}
    together = model.generate(input_ids=ids, attention_mask=mask, adapters=adapters, **asked)
    for i, length in enumerate(lengths):
        name = adapters if isinstance(adapters, str) else adapters[i]
        alone = model.generate(input_ids=ids[i : i + 1, -length:], adapters=[name], **asked)
        for one, other in zip(together.logits, alone.logits, strict=True):
            torch.testing.assert_close(one[i : i + 1], other, **EXACT)
        assert torch.equal(together.sequences[i, -NEW:], alone.sequences[0, -NEW:])


@pytest.mark.parametrize("told", ["nothing", "mask", "positions"])
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_several_tokens_behind_a_cache_have_the_scores_of_the_whole_text(kind, rows, told):
    """Of passes of the model itself, whatever of mask and positions they are told."""
    model, adapters = make_adapted(kind), ROWS[rows]
    ids, mask = make_texts((9, 9, 9) if told == "nothing" else (7, 9, 8))
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    inputs = {"mask": {"attention_mask": mask}, "positions": {"attention_mask": mask, "position_ids": positions}}
    given = inputs.get(told, {})
    names = [adapters] * 3 if isinstance(adapters, str) else adapters
    lease = model.residents.lease(model.residents)
    [group] = model._runner.row_groups(lease, names, "root")
    with torch.no_grad(), model.graft.run(group.ops(model.backbone, model.residents, in_order=True)):
        expected = model.model(input_ids=ids, **given, use_cache=False).logits
        cache, parts = DynamicCache(), []
        for start, end in ((0, 4), (4, 7), (7, 9)):
            own = {"attention_mask": mask[:, :end], "position_ids": positions[:, start:end]}
            part = {name: own[name] for name in given}
            parts.append(model.model(input_ids=ids[:, start:end], **part, past_key_values=cache).logits)
    real = mask.bool()
    torch.testing.assert_close(torch.cat(parts, dim=1)[real], expected[real], **EXACT)


def test_a_turn_may_be_given_its_own_tokens_alone():
    """With a mask of all, as transformers takes it."""
    model = make_adapted("gpt2")
    ids, mask = make_texts((4, 6, 5))
    cache = DynamicCache()
    asked = {**OPTIONS, "adapters": "long"}
    said = model.generate(input_ids=ids, attention_mask=mask, past_key_values=cache, **asked)
    more = torch.randint(5, 100, (3, 4), generator=torch.Generator().manual_seed(1))
    whole = torch.cat([said, more], dim=1)
    seen = torch.cat([mask, torch.ones(3, whole.shape[1] - mask.shape[1], dtype=torch.long)], dim=1)
    # The token that was made last has not been read yet.
    new = whole[:, said.shape[1] - 1 :]
    found = model.generate(input_ids=new, attention_mask=seen, past_key_values=cache, **asked)
    expected = model.generate(input_ids=whole, attention_mask=seen, **asked)
    assert torch.equal(found[:, -NEW:], expected[:, -NEW:])
