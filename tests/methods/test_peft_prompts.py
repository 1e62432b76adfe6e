"""Prompts and prefixes against peft's, with its weights copied.

peft puts a prefix into the model's cache, so that real tokens stand l positions later there; here they do not move. The
tests undo that in peft's copy of the model, in the way that each model has positions, and find the same numbers.
"""

import pytest
import torch
from peft import PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig, get_peft_model
from tiny import LAYERS, make_batch, make_head, make_model
from torch import Tensor
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from graftwork.adapters import Adapter, TaskIdentity
from graftwork.backbones import Backbone
from graftwork.heads import LanguageHead
from graftwork.methods import Method, PrefixTuning, PromptTuning, PTuning
from graftwork.model import AdaptedModel

L = 3
SAME = {"rtol": 0, "atol": 2e-6}
"""The backbone is in float64; what is trained, and our logits, are in float32: values of order one, of up to ten."""
TASKS = {"bert": "FEATURE_EXTRACTION", "gpt2": "CAUSAL_LM", "llama": "CAUSAL_LM", "t5": "SEQ_2_SEQ_LM"}


def make_pair(kind: str, method: Method, config) -> tuple[AdaptedModel, torch.nn.Module, dict[str, Tensor]]:
    """Our model with a new adapter, peft's, and a batch."""
    backbone = Backbone(make_model(kind, dtype=torch.float64, head=kind != "bert"), name="tiny")
    head = make_head() if kind == "bert" else LanguageHead(shifted=kind != "t5")
    labels = ("a", "b", "c") if kind == "bert" else None
    adapter = Adapter.create(backbone, method, head, TaskIdentity(name="t", labels=labels))
    theirs = get_peft_model(make_model(kind, dtype=torch.float64, head=kind != "bert"), config).eval()
    batch = make_batch(7, 7, seed=3) if kind == "gpt2" else make_batch(7, 4, seed=3)
    if kind == "t5":
        batch["decoder_input_ids"] = torch.tensor([[0, 7, 9], [0, 8, 5]])
    return AdaptedModel(backbone, {"a": adapter}), theirs, batch


def put(model: AdaptedModel, tensors: dict[str, Tensor]) -> None:
    """Tensors in the place of the adapter's own, all of them but the head's."""
    own = model.adapter("a").tensors
    assert own.keys() - tensors.keys() == {name for name in own if name.startswith("head.")}
    assert all(own[name].shape == tensor.shape for name, tensor in tensors.items())
    model.residents["a"].assign({**own, **tensors})


def check_same(model: AdaptedModel, theirs, batch, skipped: int) -> None:
    """The same last hidden states or logits, theirs without the prompt's rows; and not those without an adapter."""
    real = batch["attention_mask"].bool()
    with torch.no_grad():
        if "decoder_input_ids" in batch:
            found, expected = model(**batch).logits, theirs(**batch).logits
            plain = theirs.get_base_model()(**batch).logits
        elif model.backbone.generates:
            found, expected = model(**batch).logits[real], theirs(**batch).logits[:, skipped:][real]
            plain = theirs.get_base_model()(**batch).logits[real]
        else:
            found = model(**batch, output_hidden_states=True).hidden_states[-1][real]
            expected = theirs(**batch).last_hidden_state[:, skipped:][real]
            plain = theirs.get_base_model()(**batch).last_hidden_state[real]
    assert (plain - expected).abs().max() > 0.05
    torch.testing.assert_close(found.double(), expected, **SAME)


def first_stack(kind: str) -> str:
    return "encoder.input" if kind == "t5" else "input"


@pytest.mark.parametrize("kind", TASKS)
def test_prompt_tuning_is_pefts(kind):
    config = PromptTuningConfig(task_type=TASKS[kind], num_virtual_tokens=L)
    model, theirs, batch = make_pair(kind, PromptTuning(num_virtual_tokens=L), config)
    # For T5 peft trains 2l vectors, and uses the first half.
    weight = theirs.prompt_encoder["default"].embedding.weight.detach()
    assert len(weight) == (2 * L if kind == "t5" else L)
    put(model, {f"{first_stack(kind)}.prompt": weight[:L]})
    check_same(model, theirs, batch, L)


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
    model, theirs, batch = make_pair(kind, method, config)
    network = theirs.prompt_encoder["default"].state_dict()
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
    put(model, {f"{first_stack(kind)}.{ours}": network[name] for ours, name in names.items()})
    check_same(model, theirs, batch, L)


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
    model, theirs, batch = make_pair(kind, method, config)
    sites = method.sites(model.backbone.sites)
    assert len(sites) == LAYERS
    flat = theirs.prompt_encoder["default"].embedding.weight.detach()
    rows = flat.view(L, 2 * LAYERS, sites[0].heads, sites[0].head_dim).permute(1, 2, 0, 3)
    tensors = {}
    for i, site in enumerate(sites):
        # There it also doubles the table and deals it out in fours, the last two for the attention to the encoder,
        # whose cache it then empties: layers share rows, and half of the rows do nothing.
        first = 4 * i % (2 * LAYERS) if kind == "t5" else 2 * i
        tensors |= {f"{site.name}.keys": rows[first], f"{site.name}.values": rows[first + 1]}
    put(model, tensors)
    if kind == "llama":
        turn_keys(theirs)
    if kind == "t5":
        drop_position_bias(model.backbone.model, theirs.get_base_model())
    with torch.no_grad():
        plain = theirs.get_base_model()(**batch)[0]
    undo_positions(kind, theirs.get_base_model())
    keep = torch.ones(2, 3, dtype=torch.bool) if kind == "t5" else batch["attention_mask"].bool()
    with torch.no_grad():
        expected = theirs(**batch)[0]
        output = model(**batch, output_hidden_states=True)
    found = output.hidden_states[-1] if kind == "bert" else output.logits.double()
    assert (plain - expected)[keep].abs().max() > 0.05
    torch.testing.assert_close(found[keep], expected[keep], **SAME)


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_the_network_of_a_prefix_is_pefts(kind):
    """Where the width of peft's, that of the key-value heads, is the attention's."""
    config = PrefixTuningConfig(
        task_type=TASKS[kind], num_virtual_tokens=L, prefix_projection=True, encoder_hidden_size=8
    )
    method = PrefixTuning(num_virtual_tokens=L, encoder_hidden_size=8)
    model, theirs, _ = make_pair(kind, method, config)
    encoder = theirs.prompt_encoder["default"]
    network = encoder.state_dict()
    tensors = {
        "attention.kv.embedding": network["embedding.weight"],
        "attention.kv.inner": network["transform.0.weight"],
        "attention.kv.inner_bias": network["transform.0.bias"],
    }
    sites = method.sites(model.backbone.sites)
    for i, site in enumerate(sites):
        tensors[f"{site.name}.outer"] = network["transform.2.weight"].chunk(LAYERS)[i]
        tensors[f"{site.name}.outer_bias"] = network["transform.2.bias"].chunk(LAYERS)[i]
    put(model, tensors)
    made = method.prepare(tensors, sites, training=False)
    with torch.no_grad():
        rows = encoder(torch.arange(L)).view(L, 2 * LAYERS, 4, 8).permute(1, 2, 0, 3)
    for i, site in enumerate(sites):
        torch.testing.assert_close(made[f"{site.name}.keys"], rows[2 * i], rtol=0, atol=1e-6)
        torch.testing.assert_close(made[f"{site.name}.values"], rows[2 * i + 1], rtol=0, atol=1e-6)
