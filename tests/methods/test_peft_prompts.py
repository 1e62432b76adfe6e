"""Prompts and prefixes against peft's, with its weights copied: the same numbers, and the same gradients.

peft puts a prefix into the model's cache, so that real tokens stand l positions later there; here they do not move. The
tests undo that in peft's copy of the model, in the way that each model has positions, and find the same numbers.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

import pytest
import torch
from closeness import PASS, close
from peft import PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig, get_peft_model
from tiny import LAYERS, make_batch, make_head, make_model
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from graftwork.adapters import Adapter, BackboneIdentity, TaskIdentity
from graftwork.backbones import Backbone, Site
from graftwork.heads import LanguageHead
from graftwork.methods import Method, PrefixTuning, PromptTuning, PTuning
from graftwork.model import AdaptedModel

L = 3
TASKS = {"bert": "FEATURE_EXTRACTION", "gpt2": "CAUSAL_LM", "llama": "CAUSAL_LM", "t5": "SEQ_2_SEQ_LM"}

Parts = Mapping[str, tuple[nn.Parameter, Callable[[Tensor], Tensor]]]
"""Where each of our tensors is in peft's: in which parameter, and how ours is made of it."""


def make_pair(kind: str, method: Method, config) -> tuple[Backbone, Adapter, nn.Module, dict[str, Tensor]]:
    """A backbone and a new adapter of it, peft's model, and a batch."""
    backbone = Backbone(make_model(kind, dtype=torch.float64, head=kind != "bert"), name="tiny")
    head = make_head() if kind == "bert" else LanguageHead(shifted=kind != "t5")
    labels = ("a", "b", "c") if kind == "bert" else None
    adapter = Adapter.create(backbone, method, head, TaskIdentity(name="t", labels=labels))
    theirs = get_peft_model(make_model(kind, dtype=torch.float64, head=kind != "bert"), config).eval()
    batch = make_batch(7, 7, seed=3) if kind == "gpt2" else make_batch(7, 4, seed=3)
    if kind == "t5":
        batch["decoder_input_ids"] = torch.tensor([[0, 7, 9], [0, 8, 5]])
    return backbone, adapter, theirs, batch


def check_same(kind, backbone, adapter, theirs, batch, parts: Parts, *, skipped: int = 0) -> None:
    """They say the same of all real tokens, theirs without the prompt's rows, and not what the backbone says alone."""
    assert adapter.tensors.keys() - parts.keys() == {name for name in adapter.tensors if name.startswith("head.")}
    for name, (parameter, made) in parts.items():
        adapter.tensors[name].copy_(made(parameter.detach()))
    with torch.no_grad():
        plain = said(kind, backbone.model, batch)
        model = AdaptedModel(backbone, {"a": adapter})
        found, expected = said(kind, model, batch), said(kind, theirs, batch, skipped)
    assert (plain - expected).abs().max() > 0.05
    # The backbone is in float64; what is trained, and our logits, are in float32.
    close(found, expected, PASS, precision=torch.float32)
    model.detach()


def check_gradients(kind, backbone, adapter, theirs, batch, parts: Parts, *, skipped: int = 0) -> None:
    """A weighted sum of what they say has the same gradients, once `check_same` has copied peft's weights."""
    model = AdaptedModel(backbone)
    model.add("a", adapter, trainable=True)
    found, expected = said(kind, model, batch), said(kind, theirs, batch, skipped)
    weights = torch.randn(found.shape, generator=torch.Generator().manual_seed(0), dtype=found.dtype)
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    own = model.residents["a"].tensors()
    for name, (parameter, made) in parts.items():
        wanted = made(parameter.grad)
        assert own[name].grad.abs().max() > 1e-6
        close(own[name].grad, wanted, 2 * PASS)


def said(kind: str, model, batch: dict[str, Tensor], skipped: int = 0) -> Tensor:
    """Of all real tokens, the scores; or of a model without them the last states."""
    output = model(**batch, output_hidden_states=True)
    states = output.hidden_states[-1] if kind == "bert" else output.logits
    # A prompt of T5's stands in its encoder.
    real = batch["decoder_input_ids"] >= 0 if kind == "t5" else batch["attention_mask"].bool()
    return states[:, 0 if kind == "t5" else skipped :][real].double()


def first_stack(kind: str) -> str:
    return "encoder.input" if kind == "t5" else "input"


@pytest.mark.parametrize("kind", TASKS)
def test_prompt_tuning_is_pefts(kind):
    config = PromptTuningConfig(task_type=TASKS[kind], num_virtual_tokens=L)
    backbone, adapter, theirs, batch = make_pair(kind, PromptTuning(num_virtual_tokens=L), config)
    # For T5 peft trains 2l vectors, and uses the first half.
    weight = theirs.prompt_encoder["default"].embedding.weight
    assert len(weight) == (2 * L if kind == "t5" else L)
    parts = {f"{first_stack(kind)}.prompt": (weight, lambda t: t[:L])}
    check_same(kind, backbone, adapter, theirs, batch, parts, skipped=L)
    check_gradients(kind, backbone, adapter, theirs, batch, parts, skipped=L)


@pytest.mark.parametrize("encoder", ["lstm", "mlp"])
@pytest.mark.parametrize("kind", TASKS)
def test_p_tuning_is_pefts(kind, encoder):
    h = 6
    config = PromptEncoderConfig(
        task_type=TASKS[kind],
        num_virtual_tokens=L,
        encoder_reparameterization_type=encoder.upper(),
        encoder_hidden_size=h,
        encoder_num_layers=2,
        encoder_dropout=0.0,
        num_transformer_submodules=1,
    )
    method = PTuning(num_virtual_tokens=L, encoder=encoder, encoder_hidden_size=h)
    backbone, adapter, theirs, batch = make_pair(kind, method, config)
    network = dict(theirs.prompt_encoder["default"].named_parameters())
    names = {"embedding": "embedding.weight"}
    linears = ("inner", "outer") if encoder == "lstm" else ("first", "inner", "outer")
    for i, name in enumerate(linears):
        names |= {name: f"mlp_head.{2 * i}.weight", f"{name}_bias": f"mlp_head.{2 * i}.bias"}
    for layer in range(2 if encoder == "lstm" else 0):
        for ending, way in (("", "forwards"), ("_reverse", "backwards")):
            for part, short in (("input", "ih"), ("hidden", "hh")):
                names[f"lstm.{layer}.{way}.{part}"] = f"lstm_head.weight_{short}_l{layer}{ending}"
                names[f"lstm.{layer}.{way}.{part}_bias"] = f"lstm_head.bias_{short}_l{layer}{ending}"
    assert set(names.values()) == set(network)
    parts = {f"{first_stack(kind)}.{ours}": (network[name], lambda t: t) for ours, name in names.items()}
    check_same(kind, backbone, adapter, theirs, batch, parts, skipped=L)
    check_gradients(kind, backbone, adapter, theirs, batch, parts, skipped=L)


def undo_positions(kind: str, base) -> None:
    """Make the positions of peft's real tokens, which begin at l, mean what they mean from 0."""
    with torch.no_grad():
        if kind == "gpt2":
            base.transformer.wpe.weight.copy_(base.transformer.wpe.weight.roll(L, dims=0))
        if kind == "bert":
            table = base.embeddings.position_embeddings.weight
            table.copy_(table.roll(L, dims=0))


def turn_keys(theirs) -> None:
    """Turn peft's keys by l positions: queries that are turned by l more then see them as they are."""
    base, own = theirs.get_base_model(), theirs.get_prompt

    def turned(batch_size: int, **options):
        cache = own(batch_size, **options)
        cos, sin = base.model.rotary_emb(cache.layers[0].keys, torch.full((1, L), L))
        for layer in cache.layers:
            layer.keys = apply_rotary_pos_emb(layer.keys, layer.keys, cos, sin)[1]
        return cache

    theirs.get_prompt = turned


def drop_position_bias(*models) -> None:
    """In T5's decoder: peft's rows have positions in it, ours have none."""
    with torch.no_grad():
        for model in models:
            model.decoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight.zero_()


@pytest.mark.parametrize("kind", TASKS)
def test_prefix_tuning_is_pefts(kind):
    config = PrefixTuningConfig(task_type=TASKS[kind], num_virtual_tokens=L)
    # In an encoder-decoder peft puts a prefix in the decoder only, and none in the attention to the encoder.
    targets = ("decoder.*.attention.kv",) if kind == "t5" else ("kv",)
    method = PrefixTuning(num_virtual_tokens=L, reparametrise=False, targets=targets)
    backbone, adapter, theirs, batch = make_pair(kind, method, config)
    sites = method.sites(backbone.sites)
    assert len(sites) == LAYERS
    weight = theirs.prompt_encoder["default"].embedding.weight
    parts = {}
    for i, site in enumerate(sites):
        # There it also doubles the table and deals it out in fours, the last two for the attention to the encoder,
        # whose cache it then empties: layers share rows, and half of the rows do nothing.
        first = 4 * i % (2 * LAYERS) if kind == "t5" else 2 * i
        for j, name in enumerate(("keys", "values")):
            parts[f"{site.name}.{name}"] = weight, partial(rows_of, site, first + j)
    if kind == "llama":
        turn_keys(theirs)
    if kind == "t5":
        drop_position_bias(backbone.model, theirs.get_base_model())
        adapter = replace(adapter, backbone=BackboneIdentity.of(backbone))
    undo_positions(kind, theirs.get_base_model())
    check_same(kind, backbone, adapter, theirs, batch, parts)
    if kind != "t5":
        check_gradients(kind, backbone, adapter, theirs, batch, parts)


def rows_of(site: Site, place: int, table: Tensor) -> Tensor:
    """One of the keys and values of all layers that lie beside each other in peft's table."""
    return table.view(L, 2 * LAYERS, site.heads, site.head_dim)[:, place].transpose(0, 1)


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_the_network_of_a_prefix_is_pefts(kind):
    """Where the width of peft's, that of the key-value heads, is the attention's."""
    config = PrefixTuningConfig(
        task_type=TASKS[kind], num_virtual_tokens=L, prefix_projection=True, encoder_hidden_size=8
    )
    method = PrefixTuning(num_virtual_tokens=L, encoder_hidden_size=8)
    backbone, adapter, theirs, batch = make_pair(kind, method, config)
    encoder = theirs.prompt_encoder["default"]
    network = dict(encoder.named_parameters())
    parts = {
        "attention.kv.embedding": (network["embedding.weight"], lambda t: t),
        "attention.kv.inner": (network["transform.0.weight"], lambda t: t),
        "attention.kv.inner_bias": (network["transform.0.bias"], lambda t: t),
    }
    sites = method.sites(backbone.sites)
    for i, site in enumerate(sites):
        for ours, name in (("outer", "weight"), ("outer_bias", "bias")):
            parts[f"{site.name}.{ours}"] = network[f"transform.2.{name}"], lambda t, i=i: t.chunk(LAYERS)[i]
    tensors = {name: part(parameter.detach()) for name, (parameter, part) in parts.items()}
    made = method.prepare(tensors, sites, training=False)
    with torch.no_grad():
        rows = encoder(torch.arange(L)).view(L, 2 * LAYERS, 4, 8).permute(1, 2, 0, 3)
    for i, site in enumerate(sites):
        close(made[f"{site.name}.keys"], rows[2 * i])
        close(made[f"{site.name}.values"], rows[2 * i + 1])
    undo_positions(kind, theirs.get_base_model())
    check_same(kind, backbone, adapter, theirs, batch, parts)
    check_gradients(kind, backbone, adapter, theirs, batch, parts)
