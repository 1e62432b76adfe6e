"""Generation with adapters that act before the text and at attentions, against references without any op."""

import pytest
import torch
from closeness import PASS, close
from tiny import make_model
from torch import Tensor
from transformers import DynamicCache

from graftwork.adapters import Adapter, TaskIdentity
from graftwork.backbones import Backbone
from graftwork.errors import SiteError
from graftwork.heads import LanguageHead
from graftwork.methods import LoRA, Method, PrefixTuning, PromptTuning, PTuning, Union
from graftwork.model import AdaptedModel

L, NEW = 3, 5

PROMPT = PromptTuning(num_virtual_tokens=L, init="uniform")
METHODS = {
    "prompt": PROMPT,
    "p-tuning": PTuning(num_virtual_tokens=L),
    "prefix": PrefixTuning(num_virtual_tokens=L, encoder_hidden_size=8),
    "union": Union(
        methods=[LoRA(rank=2), PROMPT, PrefixTuning(num_virtual_tokens=2, reparametrise=False), PTuning(encoder="mlp")]
    ),
}
CAUSAL = ("gpt2", "llama", "qwen3", "gemma2")
OPTIONS = {"max_new_tokens": NEW, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
"""No text ends early."""


def make_language_model(kind: str) -> Backbone:
    return Backbone(make_model(kind, dtype=torch.float64, head=True), name=f"tiny-{kind}")


def adapt(backbone: Backbone, method: Method) -> AdaptedModel:
    """A model with an adapter of which nothing is as initialised."""
    head = LanguageHead(shifted=not backbone.is_encoder_decoder)
    adapter = Adapter.create(backbone, method, head, TaskIdentity(name="t"))
    generator = torch.Generator().manual_seed(1)
    for tensor in adapter.tensors.values():
        tensor.add_(torch.randn(tensor.shape, generator=generator) * 0.3)
    return AdaptedModel(backbone, {"a": adapter})


def make_texts(backbone: Backbone) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Two texts, alone and together: padded before them for a decoder, behind them for an encoder."""
    generator = torch.Generator().manual_seed(0)
    texts = [torch.randint(5, 100, (1, length), generator=generator) for length in (6, 4)]
    pad = torch.full((1, 2), backbone.config.pad_token_id or 0)
    short = [texts[1], pad] if backbone.is_encoder_decoder else [pad, texts[1]]
    ids = torch.cat([texts[0], torch.cat(short, dim=1)])
    mask = torch.ones_like(ids)
    mask[1, slice(4, 6) if backbone.is_encoder_decoder else slice(0, 2)] = 0
    return texts, {"input_ids": ids, "attention_mask": mask}


def new_tokens(output: Tensor) -> Tensor:
    return output[:, -NEW:]


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("kind", [*CAUSAL, "t5", "bart"])
def test_caches_and_padding_change_no_token(kind, name):
    """Greedy and beam search, with and without a cache, together and alone."""
    backbone = make_language_model(kind)
    texts, batch = make_texts(backbone)
    model = adapt(backbone, METHODS[name])
    for options in (OPTIONS, {**OPTIONS, "num_beams": 3}):
        together = new_tokens(model.generate(**batch, **options))
        assert torch.equal(together, new_tokens(model.generate(**batch, **options, use_cache=False)))
        alone = torch.cat([new_tokens(model.generate(text, **options)) for text in texts])
        assert torch.equal(together, alone)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("kind", CAUSAL)
def test_greedy_tokens_are_those_of_whole_passes(kind, name):
    """Token by token, each time over the whole text."""
    backbone = make_language_model(kind)
    texts, _ = make_texts(backbone)
    model = adapt(backbone, METHODS[name])
    for text in texts:
        whole = text
        with torch.no_grad():
            for _ in range(NEW):
                whole = torch.cat([whole, model(whole).logits[:, -1:].argmax(-1)], dim=1)
        assert torch.equal(model.generate(text, **OPTIONS), whole)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_beams_have_the_scores_of_their_texts(kind, name):
    backbone = make_language_model(kind)
    texts, batch = make_texts(backbone)
    model = adapt(backbone, METHODS[name])
    found = model.generate(
        **batch, **OPTIONS, num_beams=3, length_penalty=0.0, output_scores=True, return_dict_in_generate=True
    )
    for text, sequence, score in zip(texts, found.sequences, found.sequences_scores, strict=True):
        whole = torch.cat([text, sequence[None, -NEW:]], dim=1)
        with torch.no_grad():
            likely = model(whole).logits[0, -NEW - 1 : -1].log_softmax(-1)
        expected = likely.gather(-1, whole[0, -NEW:, None]).sum()
        # Logits are kept in float32.
        close(score.float(), expected)


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("kind", CAUSAL)
def test_a_prompt_is_embeddings_before_the_texts(kind, beams):
    """The backbone alone, given [P; E(x)] with any padding before both."""
    backbone = make_language_model(kind)
    _, batch = make_texts(backbone)
    model = adapt(backbone, PROMPT)
    found = model.generate(**batch, **OPTIONS, num_beams=beams)
    prompt = model.adapter("a").tensors["input.prompt"].double()
    model.detach()
    first, second = backbone.model.get_input_embeddings()(batch["input_ids"])
    mask = torch.ones(2, L + 6, dtype=torch.long)
    mask[1, :2] = 0
    expected = backbone.model.generate(
        inputs_embeds=torch.stack([torch.cat([prompt, first]), torch.cat([second[:2], prompt, second[2:]])]),
        attention_mask=mask,
        **OPTIONS,
        num_beams=beams,
    )
    assert torch.equal(new_tokens(found), expected)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "qwen3"])
def test_a_prefix_is_a_cache_that_is_filled_already(kind):
    """The backbone alone with stock attention, P_K and P_V in its cache, and the positions of the real tokens. (Gemma's
    windows would pass over rows in a cache; ours are seen from everywhere.)
    """
    backbone = make_language_model(kind)
    _, batch = make_texts(backbone)
    model = adapt(backbone, PrefixTuning(num_virtual_tokens=L, reparametrise=False))
    found = new_tokens(model.generate(**batch, **OPTIONS))
    tensors = model.adapter("a").tensors
    model.detach()
    backbone.model.set_attn_implementation("eager")
    cache = DynamicCache()
    for i in range(2):
        rows = [
            tensors[f"layers.{i}.attention.kv.{part}"].double().expand(2, -1, -1, -1) for part in ("keys", "values")
        ]
        cache.update(*rows, i)
    ids, mask = batch["input_ids"], torch.cat([torch.ones(2, L, dtype=torch.long), batch["attention_mask"]], dim=1)
    positions = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
    tokens = []
    with torch.no_grad():
        for _ in range(NEW):
            logits = backbone.model(
                ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
            ).logits
            ids = logits[:, -1:].argmax(-1)
            tokens.append(ids)
            mask = torch.cat([mask, torch.ones(2, 1, dtype=torch.long)], dim=1)
            positions = positions[:, -1:] + 1
    assert torch.equal(found, torch.cat(tokens, dim=1))


def test_a_prompt_of_t5_stands_in_the_encoder_and_the_decoder_attends_to_it():
    backbone = make_language_model("t5")
    _, batch = make_texts(backbone)
    decoded = torch.tensor([[0, 7, 9], [0, 8, 5]])
    model = adapt(backbone, PROMPT)
    with torch.no_grad():
        found = model(**batch, decoder_input_ids=decoded).logits
    generated = model.generate(**batch, **OPTIONS)
    prompt = model.adapter("a").tensors["encoder.input.prompt"].double()
    model.detach()
    embedded = backbone.model.get_input_embeddings()(batch["input_ids"])
    inputs = {
        "inputs_embeds": torch.cat([prompt.expand(2, -1, -1), embedded], dim=1),
        "attention_mask": torch.cat([torch.ones(2, L, dtype=torch.long), batch["attention_mask"]], dim=1),
    }
    with torch.no_grad():
        expected = backbone.model(**inputs, decoder_input_ids=decoded).logits
    close(found, expected.float(), PASS)
    assert torch.equal(generated, backbone.model.generate(**inputs, **OPTIONS))


def test_a_prompt_refuses_a_static_cache():
    backbone = make_language_model("gpt2")
    _, batch = make_texts(backbone)
    with pytest.raises(SiteError, match="attention mask"):
        adapt(backbone, PROMPT).generate(**batch, **OPTIONS, cache_implementation="static")
