"""Merging: an adapter in the backbone's weights says what it says beside them, and leaves no trace."""

import pytest
import torch
from closeness import HALF, PASS, T5, close
from layouts import BASES, LAYOUTS, backbone_of, run, run_adapted, texts
from matrix import inputs_of
from tiny import CONFIGS, SAMPLES, bits, make_adapter, make_backbone
from transformers.pytorch_utils import Conv1D

from graftwork.adapters import Adapter, TaskIdentity
from graftwork.errors import AdapterError, BackboneError, SiteError
from graftwork.grafting.merging import put_into_weights
from graftwork.kinds.heads import head_for
from graftwork.methods import IA3, METHODS, BitFit, DoRA, FullFineTuning, Houlsby, LayerNormTuning, LoRA, ULMFiT, VeRA
from graftwork.model import AdaptedModel
from graftwork.ops import Bias, Bottleneck, Scale

MERGEABLE = [name for name, method in SAMPLES.items() if method.lowers_to and not method.unmergeable]
MERGED = 4 * T5
"""Each weight is rounded once more, and PiSSA's is W − B0 A0 + B A: 257 units were seen, of T5."""


def bounded(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        close(one, other, MERGED)


def fits(name, kind) -> bool:
    return not ("bitfit" in name and kind.startswith(("llama", "t5")))


@pytest.mark.parametrize(
    ("kind", "dtype"), [*((kind, torch.float64) for kind in BASES), (BASES[0], torch.float32)], ids=str
)
@pytest.mark.parametrize("name", MERGEABLE)
def test_merged_is_beside_and_unmerging_restores_the_bits(name, kind, dtype):
    if not fits(name, kind):
        return
    backbone, batch = backbone_of(kind, dtype), texts(kind)
    frozen, tensors = bits(backbone.model), {n: p.data_ptr() for n, p in backbone.model.named_parameters()}
    plain = run(backbone.model, batch)
    model = AdaptedModel(backbone, {"a": make_adapter(backbone, SAMPLES[name], trained=True)})
    expected = run_adapted(model, "a", batch)
    with torch.no_grad():
        logits = model(**batch).logits
    model.merge("a")
    assert model.merged == "a"
    bounded(run(backbone.model, batch), expected)
    with torch.no_grad():
        # The head computes in float32, and of one state what it says is as uncertain as the state.
        close(model(**batch).logits, logits, MERGED, scale=expected[-1].abs().max().item())
    merged = bits(backbone.model)
    assert merged.keys() == frozen.keys()
    assert merged != frozen
    assert (expected[-1] - plain[-1]).abs().max() > 1e-3
    model.unmerge()
    assert model.merged is None
    assert bits(backbone.model) == frozen
    assert all(torch.equal(one, other) for one, other in zip(run_adapted(model, "a", batch), expected, strict=True))
    model.detach()
    assert bits(backbone.model) == frozen
    assert {n: p.data_ptr() for n, p in backbone.model.named_parameters()} == tensors
    assert all(torch.equal(one, other) for one, other in zip(run(backbone.model, batch), plain, strict=True))


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize(
    "method",
    [FullFineTuning(), FullFineTuning(random_subset=0.2), ULMFiT(), LayerNormTuning()],
    ids=["full", "subset", "ulmfit", "norms"],
)
def test_weights_that_were_trained_merge_on_every_model_type(method, kind):
    """Also those that a module reads from one within it, as DeBERTa's encoder does with its relative positions."""
    backbone = make_backbone(kind, dtype=torch.float64)
    frozen = bits(backbone.model)
    model = AdaptedModel(backbone, {"a": make_adapter(backbone, method, trained=True)})
    batch = inputs_of(backbone, model.adapter("a").head, 5, 4)
    with torch.no_grad():
        expected = model(**batch).logits
        model.merge("a")
        close(model(**batch).logits, expected, MERGED)
    assert bits(backbone.model) != frozen
    model.unmerge()
    assert bits(backbone.model) == frozen


@pytest.mark.parametrize("name", METHODS)
def test_a_method_knows_which_ops_it_lowers_to_and_whether_they_merge(name):
    backbone = make_backbone("bert")
    model = AdaptedModel(backbone, {"a": make_adapter(backbone, SAMPLES[name])})
    found = {type(op) for acting in model.residents["a"].ops().values() for op in acting}
    assert found <= set(SAMPLES[name].lowers_to)
    if SAMPLES[name].unmergeable:
        with pytest.raises(AdapterError, match="cannot be merged"):
            model.merge("a")
    else:
        model.merge("a")


def test_what_cannot_be_merged_is_named_and_changes_nothing():
    backbone = backbone_of("bert")
    batch, frozen = texts("bert"), bits(backbone.model)
    model = AdaptedModel(backbone, {"a": make_adapter(backbone, Houlsby(bottleneck=4), trained=True)})
    expected = run_adapted(model, "a", batch)
    with pytest.raises(AdapterError) as caught:
        model.merge("a")
    assert caught.value.problem == (
        "adapter 'a' of method 'houlsby' cannot be merged: at site 'layers.0.attention.result' acts Bottleneck: "
        "its nonlinearity cannot be expressed as a weight"
    )
    assert Houlsby().unmergeable == Bottleneck.unmergeable
    assert model.merged is None
    assert all(torch.equal(one, other) for one, other in zip(run_adapted(model, "a", batch), expected, strict=True))
    model.detach()
    assert bits(backbone.model) == frozen


def test_a_bias_goes_only_into_a_module_that_has_one():
    backbone = backbone_of("llama")
    with pytest.raises(SiteError, match=r"at site 'layers.1.ffn.up': Bias cannot .* has no bias"):
        put_into_weights({"layers.1.ffn.up": [Bias(b=torch.ones(64))]}, backbone)


def test_several_ops_of_a_site_go_in_in_order():
    """v ⊙ (W x + b) + b1, then scaled at the input: the order matters, and is a forward pass's."""
    backbone, v, b, u = backbone_of("gpt2", torch.float64), torch.rand(32), torch.rand(32), torch.rand(32)
    ops = {"layers.0.attention.value": [Scale(v=v), Bias(b=b)], "layers.0.attention.output": [Scale(v=u, at="input")]}
    (fused, fused_new), (out, out_new) = put_into_weights(ops, backbone).items()
    fused, out = backbone.model.get_submodule(fused), backbone.model.get_submodule(out)
    assert isinstance(fused, Conv1D)
    expected = fused.weight.clone()
    expected[:, 64:] *= v
    close(fused_new["weight"], expected)
    expected = torch.cat([fused.bias[:64], fused.bias[64:] * v + b])
    close(fused_new["bias"], expected)
    close(out_new["weight"], out.weight * u[:, None])
    assert out_new.keys() == {"weight"}
    assert all(t.is_contiguous() for new in (fused_new, out_new) for t in new.values())


def test_weights_are_computed_in_float64_and_rounded_once():
    backbone = make_backbone("bert", dtype=torch.bfloat16)
    adapter = make_adapter(backbone, DoRA(rank=4, alpha=8), trained=True)
    model = AdaptedModel(backbone, {"a": adapter})
    model.merge("a")
    site = backbone.sites["layers.1.ffn.up"]
    W = backbone.frozen(site)["weight"].double()
    A, B, g = (adapter.tensors[f"{site.name}.{name}"].double() for name in ("A", "B", "magnitude"))
    changed = W + 2.0 * B @ A
    exact = changed * (g / changed.norm(dim=1))[:, None]
    found = dict(backbone.model.named_parameters())[f"{site.path}.weight"]
    assert found.dtype == torch.bfloat16
    # Correctly rounded but where float32's c, off by 2^-23, moves a value across a tie.
    assert (found == exact.to(torch.bfloat16)).float().mean() > 0.999


# -- tied parameters -----------------------------------------------------------------------------------------------


def language_adapter(backbone, method):
    head = head_for("generation", backbone, num_labels=0, pooling=backbone.pooling)
    adapter = Adapter.create(backbone, method, head, TaskIdentity(name="t"), seed=0)
    generator = torch.Generator().manual_seed(1)
    for tensor in adapter.tensors.values():
        tensor.add_(torch.randn(tensor.shape, generator=generator) * 0.1)
    return adapter


@pytest.mark.parametrize("kind", ["gpt2-lm", "t5-lm"])
def test_full_fine_tuning_changes_tied_embeddings_everywhere(kind):
    backbone, batch = backbone_of(kind, torch.float64), texts(kind)
    frozen = bits(backbone.model)
    tied = backbone.model.get_input_embeddings().weight is backbone.model.get_output_embeddings().weight
    assert tied == (kind == "gpt2-lm" or backbone.config.tie_word_embeddings)
    model = AdaptedModel(backbone, {"a": language_adapter(backbone, FullFineTuning())})
    expected = run_adapted(model, "a", batch)
    model.merge("a")
    bounded(run(backbone.model, batch), expected)
    words, scores = backbone.model.get_input_embeddings().weight, backbone.model.get_output_embeddings().weight
    assert (words is scores) == tied
    model.detach()
    assert bits(backbone.model) == frozen
    assert (backbone.model.get_input_embeddings().weight is backbone.model.get_output_embeddings().weight) == tied


def test_low_rank_at_a_tied_head_leaves_the_embeddings_alone():
    backbone, batch = backbone_of("gpt2-lm", torch.float64), texts("gpt2-lm")
    model = AdaptedModel(backbone, {"a": language_adapter(backbone, LoRA(rank=2, targets="lm_head,query"))})
    expected, words = run_adapted(model, "a", batch), backbone.model.transformer.wte.weight.clone()
    model.merge("a")
    bounded(run(backbone.model, batch), expected)
    assert torch.equal(backbone.model.transformer.wte.weight, words)
    assert not torch.equal(backbone.model.lm_head.weight, words)
    model.detach()
    assert backbone.model.lm_head.weight is backbone.model.transformer.wte.weight


@pytest.mark.parametrize("kind", ["gpt2-lm", "t5-lm"])
def test_a_merged_model_generates_what_it_generates_beside(kind):
    backbone = backbone_of(kind)
    model = AdaptedModel(backbone, {"a": language_adapter(backbone, LoRA(rank=2))})
    ids = texts(kind)["input_ids"]
    options = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 6, "do_sample": False}
    beside = model.generate(ids, **options)
    model.merge("a")
    assert torch.equal(model.generate(ids, **options), beside)


# -- with other adapters -------------------------------------------------------------------------------------------


@pytest.fixture
def pair():
    backbone = make_backbone("bert", tokenizer=True)
    methods = {"a": LoRA(rank=2), "b": Houlsby(bottleneck=4)}
    adapters = {n: make_adapter(backbone, m, seed=i, trained=True) for i, (n, m) in enumerate(methods.items())}
    return AdaptedModel(backbone, adapters)


def test_other_adapters_and_the_backbone_alone_run_beside_its_own_weights_while_one_is_merged(pair):
    batch = texts("bert")
    with torch.no_grad():
        beside = pair(**batch, adapters="b").logits
        both = [pair(**batch, adapters=names) for names in (["a", "b"], [None, "b"])]
        plain = run(pair.backbone.model, batch)
        pair.merge("a")
        merged = run(pair.backbone.model, batch)
        assert torch.equal(pair(**batch, adapters="b").logits, beside)
        for names, expected in zip((["a", "b"], [None, "b"]), both, strict=True):
            found = pair(**batch, adapters=names)
            assert torch.equal(found.rows[1], expected.rows[1])
            assert torch.equal(found.last_hidden_state, expected.last_hidden_state)
        assert pair.predict(["a film", "dull"], ["a", "b"])[1].label == pair.predict(["dull"], "b")[0].label
        # Outside of passes, the model is the merged one.
        assert not torch.equal(merged[-1], plain[-1])
        assert torch.equal(run(pair.backbone.model, batch)[-1], merged[-1])


def test_only_one_adapter_is_merged_and_none_that_is_trained(pair):
    pair.unmerge()
    pair.merge("a")
    with pytest.raises(AdapterError, match=r"adapter 'a' is merged already\n  expected: unmerge\(\) first"):
        pair.merge("b")
    pair.unmerge()
    with pytest.raises(AdapterError, match="no adapter is named 'c'"):
        pair.merge("c")
    pair.add("c", make_adapter(pair.backbone, LoRA(rank=2)), trainable=True)
    with pytest.raises(AdapterError, match="'c' is being trained"):
        pair.merge("c")


def test_adapters_come_and_go_while_one_is_merged(pair):
    backbone, batch = pair.backbone, texts("bert")
    # These are lowered, and start, by the backbone's own weights.
    fresh = {"c": DoRA(rank=2, targets="pooler,query"), "d": LayerNormTuning(), "e": LoRA(init="pissa", rank=2)}
    outside = {n: make_adapter(backbone, m, trained=True, pooling="pooler") for n, m in fresh.items()}
    with torch.no_grad():
        pair.merge("a")
        for name, adapter in outside.items():
            inside = make_adapter(backbone, fresh[name], trained=True, pooling="pooler")
            assert all(torch.equal(tensor, adapter.tensors[key]) for key, tensor in inside.tensors.items())
            pair.add(name, adapter)
        pair.remove("b")
        merged = pair(**batch, adapters="a").logits
        pair.remove("a")
        assert pair.merged is None
        found = {name: pair(**batch, adapters=name).logits for name in fresh}
    backbone = pair.detach()
    alone = AdaptedModel(backbone, outside)
    with torch.no_grad():
        for name in fresh:
            assert torch.equal(alone(**batch, adapters=name).logits, found[name])
            assert not torch.equal(found[name], merged)


def test_another_model_cannot_take_the_backbone_while_one_is_merged(pair):
    pair.merge("a")
    with pytest.raises(BackboneError, match="in use by another AdaptedModel"):
        AdaptedModel(pair.backbone, {"x": make_adapter(pair.backbone, LoRA(rank=2))})


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_merged_model_may_be_cast(pair, dtype):
    batch = texts("bert")
    with torch.no_grad():
        before = pair(**batch, adapters="a").logits
        pair.merge("a")
        merged = pair.to(dtype)(**batch, adapters="a").logits
        pair.unmerge()
        beside = pair(**batch, adapters="a").logits
    assert {p.dtype for p in pair.backbone.model.parameters()} == {dtype}
    units = HALF if dtype == torch.bfloat16 else PASS
    for logits in (merged, beside):
        # Logits are in float32, as all before the cast was.
        close(logits, before, units, precision=torch.bfloat16 if dtype == torch.bfloat16 else torch.float32)


def test_merging_works_in_inference_mode_and_keeps_gradients_possible_afterwards(pair):
    with torch.inference_mode():
        pair.merge("a")
        pair(**texts("bert"), adapters="a")
    embeddings = torch.randn(1, 4, 32, requires_grad=True)
    pair(inputs_embeds=embeddings, adapters="a").logits.sum().backward()
    assert embeddings.grad.abs().max() > 0
    assert not any(p.requires_grad for p in pair.backbone.model.parameters())


def test_a_module_that_another_library_took_over_is_refused(pair):
    module = pair.backbone.modules["encoder.layer.0.attention.self.query"]
    module.forward = module.forward
    with pytest.raises(AdapterError, match=r"'layers.0.attention.query' another library has replaced"):
        pair.merge("a")
    del module.forward


@pytest.mark.parametrize("method", [IA3(), BitFit(), VeRA(rank=4), FullFineTuning()])
def test_detaching_a_merged_model_frees_the_backbone(method):
    backbone = make_backbone("bert")
    frozen = bits(backbone.model)
    model = AdaptedModel(backbone, {"a": make_adapter(backbone, method, trained=True)})
    model.merge("a")
    model.detach()
    assert model.merged is None
    assert bits(backbone.model) == frozen


def test_every_layout_is_one_that_backbones_know():
    assert {backbone_of(kind).family.name for kind in LAYOUTS} == {"bert-like", "gpt2", "llama-like", "t5"}
