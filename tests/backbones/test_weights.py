"""The view of a backbone's parameters: it covers each tensor once, and goes from names to checkpoints and back."""

import pickle
from copy import deepcopy

import pytest
import torch
from safetensors import safe_open
from tiny import CONFIGS, GENERATORS, make_adapter, make_backbone, make_model
from transformers import BertForMaskedLM
from transformers.core_model_loading import Transpose, WeightConverter

from graftwork.backbones import Backbone
from graftwork.errors import BackboneError, SiteError
from graftwork.methods import FullFineTuning, LoRA
from graftwork.model import AdaptedModel

VARIANTS = {
    **{kind: (kind, {}) for kind in CONFIGS},
    **{f"{kind}-lm": (kind, {"head": True}) for kind in GENERATORS},
    # Its checkpoints have the gate and the up map in one tensor.
    "dinov2-gated": ("dinov2", {"use_swiglu_ffn": True}),
    "distilbert-sinusoidal": ("distilbert", {"sinusoidal_pos_embds": True}),
    "bert-without-pooler": ("bert", {}),
    "llama-tied": ("llama", {"head": True, "tie_word_embeddings": True}),
}


def made(variant: str) -> Backbone:
    kind, options = VARIANTS[variant]
    if variant != "bert-without-pooler":
        return make_backbone(kind, **options)
    model = make_model(kind)
    model.pooler = None
    return Backbone(model)


def saved(model, folder) -> dict[str, torch.Tensor]:
    model.save_pretrained(folder)
    with safe_open(folder / "model.safetensors", "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 # no mapping


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_names_cover_each_tensor_of_the_state_dict_once(variant):
    backbone = made(variant)
    weights, state = backbone.weights, backbone.model.state_dict()
    covered = {key: torch.zeros(tensor.shape, dtype=torch.int) for key, tensor in state.items()}
    assert len(set(weights)) == len(weights)
    for name in weights:
        location = weights.where(name)
        own = location.of(covered[location.key])
        own += 1
        assert own.shape == location.shape
        assert name == (f"{location.site}.{location.parameter}" if location.site else location.key)
    for key, count in covered.items():
        assert (count == 1).all(), key


@pytest.mark.parametrize("variant", VARIANTS)
def test_tied_names_are_those_of_one_tensor(variant):
    backbone = made(variant)
    weights = backbone.weights
    state = backbone.model.state_dict(keep_vars=True)
    for name in weights:
        place = weights.where(name)
        others = [o for o in weights if o != name and state[weights.where(o).key] is state[place.key]]
        assert place.tied == tuple(other for other in others if weights.where(other).columns == place.columns)
        assert all(torch.equal(weights[other], weights[name]) for other in place.tied)


def test_which_names_are_tied_where():
    places = made("t5-lm").weights
    tied = ("encoder.embeddings.word.weight", "decoder.embeddings.word.weight", "lm_head.weight")
    assert set(places.where(tied[0]).tied) >= set(tied[1:])
    assert made("llama-tied").weights.where("lm_head.weight").tied == ("embeddings.word.weight",)
    assert made("llama-lm").weights.where("lm_head.weight").tied == ()


def test_names_are_read_in_one_orientation():
    backbone = made("gpt2-lm")
    weights, model = backbone.weights, backbone.model
    fused, second = model.transformer.h[1].attn.c_attn, "layers.1.attention"
    assert torch.equal(weights[f"{second}.key.weight"], fused.weight[:, 32:64].T)
    assert torch.equal(weights[f"{second}.key.bias"], fused.bias[32:64])
    assert torch.equal(weights[f"{second}.output.weight"], model.transformer.h[1].attn.c_proj.weight.T)
    assert torch.equal(weights[f"{second}.fused.weight"], fused.weight.T)
    whole = weights.where(f"{second}.fused.weight")
    assert whole.parts == tuple(f"{second}.{part}.weight" for part in ("query", "key", "value"))
    assert (whole.path, whole.parameter, whole.transposed) == ("transformer.h.1.attn.c_attn", "weight", True)
    assert f"{second}.fused.weight" not in list(weights)
    # A view: what is written there is written in the model.
    with torch.no_grad():
        weights[f"{second}.key.bias"].zero_()
    assert (fused.bias[32:64] == 0).all()


def test_what_stands_at_no_site_goes_by_its_path():
    place = made("bart-lm").weights.where("final_logits_bias")
    assert (place.site, place.path, place.parameter, place.buffer) == (None, "", "final_logits_bias", True)
    running = made("resnet").weights.where("embeddings.norm.running_mean")
    assert (running.site, running.buffer) == ("embeddings.norm", True)


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_is_read_and_put_is_the_same_bit_for_bit(variant):
    backbone = made(variant)
    state = backbone.model.state_dict()
    found = {}
    for path, own in backbone.weights.put(backbone.weights).items():
        for name, tensor in own.items():
            found[f"{path}.{name}".lstrip(".")] = tensor
    assert found.keys() == state.keys()
    for key, tensor in found.items():
        assert tensor.dtype == state[key].dtype
        assert torch.equal(tensor, state[key])
        assert tensor.is_contiguous()
        assert tensor.data_ptr() != state[key].data_ptr()
    same = {key: [k for k in state if state[k].data_ptr() == state[key].data_ptr()] for key in state}
    for key, keys in same.items():
        assert all((found[key] is found[other]) == (other in keys) for other in found)


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_is_put_is_read_by_the_same_names(variant):
    """Other values than the model's, in float64, each rounded once."""
    backbone = made(variant)
    generator, values = torch.Generator().manual_seed(1), {}
    for name in backbone.weights:
        tied = next((values[other] for other in backbone.weights.where(name).tied if other in values), None)
        shape = backbone.weights.where(name).shape
        values[name] = torch.rand(shape, generator=generator, dtype=torch.float64) if tied is None else tied
    other = deepcopy(backbone)
    modules = dict(other.model.named_modules(remove_duplicate=False))
    with torch.no_grad():
        for path, own in backbone.weights.put(values).items():
            for name, tensor in own.items():
                at, _, leaf = name.rpartition(".")
                getattr(modules[path].get_submodule(at), leaf).copy_(tensor)
    for name, value in values.items():
        assert torch.equal(other.weights[name], value.to(other.weights[name].dtype)), name


def test_parts_that_are_not_put_are_copied():
    backbone = made("gpt2")
    weights = backbone.weights
    value = torch.ones(32, 32)
    ((path, own),) = weights.put({"layers.0.attention.key.weight": value}).items()
    (found,) = own.values()
    held = backbone.model.get_submodule(path).weight
    assert torch.equal(found[:, 32:64], value)
    assert torch.equal(found[:, :32], held[:, :32])
    assert torch.equal(found[:, 64:], held[:, 64:])
    assert not (held[:, 32:64] == 1).any()


def test_of_tied_tensors_one_may_be_put_alone():
    weights = made("llama-tied").weights
    word = torch.zeros(100, 32)
    assert weights.put({"embeddings.word.weight": word}).keys() == {"model.embed_tokens"}
    both = weights.put({"embeddings.word.weight": word, "lm_head.weight": word})
    assert both["lm_head"]["weight"] is both["model.embed_tokens"]["weight"]
    apart = weights.put({"embeddings.word.weight": word, "lm_head.weight": word + 1})
    assert torch.equal(apart["lm_head"]["weight"], word + 1)
    assert torch.equal(apart["model.embed_tokens"]["weight"], word)


def test_what_cannot_be_put_is_named():
    weights = made("gpt2").weights
    query, fused = "layers.0.attention.query.bias", "layers.0.attention.fused.bias"
    with pytest.raises(SiteError, match=r"no parameter of the backbone is named 'layers.0.attention.quary.bias'"):
        weights.put({"layers.0.attention.quary.bias": torch.zeros(32)})
    with pytest.raises(SiteError, match=r"shape \(96,\) is given for 'layers.0.attention.query.bias'\n.*\(32,\)"):
        weights.put({query: torch.zeros(96)})
    with pytest.raises(SiteError, match=r"'layers.0.attention.query.bias' and 'layers.0.attention.fused.bias' are"):
        weights.put({fused: torch.zeros(96), query: torch.zeros(32)})
    with pytest.raises(SiteError, match=r"no parameter .* 'nothing'\n  expected: for example"):
        weights["nothing"]
    assert "nothing" not in weights


@pytest.mark.parametrize("variant", VARIANTS)
def test_names_and_checkpoint_keys_are_those_that_transformers_writes(variant, tmp_path):
    backbone = made(variant)
    weights, file = backbone.weights, saved(backbone.model, tmp_path)
    assert sorted(weights.checkpoint_keys) == sorted(file)
    for name in weights:
        stored = weights.stored(name)
        assert torch.equal(stored.of(file[stored.key]), weights[name]), name
        assert name in weights.names_of(stored.key)
    names = [name for key in file for name in weights.names_of(key)]
    assert sorted(names) == sorted(weights)


def test_a_backbone_is_pickled_with_what_its_weights_know():
    backbone = make_backbone("gpt2")
    key = backbone.weights.stored("layers.0.ffn.up.weight").key
    twin = pickle.loads(pickle.dumps(backbone))
    assert twin.weights.stored("layers.0.ffn.up.weight").key == key
    assert twin.weights["norm.weight"].data_ptr() == twin.model.ln_f.weight.data_ptr()


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_outline_has_the_names_and_places_of_the_whole(variant, tmp_path):
    whole = made(variant)
    whole.model.save_pretrained(tmp_path)
    outline = Backbone.outline(str(tmp_path))
    assert outline.device.type == "meta"
    assert outline.generates == whole.generates
    assert [outline.weights.where(n) for n in outline.weights] == [whole.weights.where(n) for n in whole.weights]
    for name in whole.weights:
        one, other = whole.weights.stored(name), outline.weights.stored(name)
        assert (one.key, one.dim, one.start, one.size) == (other.key, other.dim, other.start, other.size)
        assert outline.weights[name].shape == whole.weights[name].shape
    put = outline.weights.put(outline.weights)
    assert all(tensor.is_meta for own in put.values() for tensor in own.values())


def test_names_of_a_joined_tensor_stand_in_their_order():
    weights = made("dinov2-gated").weights
    key = "encoder.layer.1.mlp.weights_in.weight"
    assert weights.names_of(key) == ("layers.1.ffn.gate.weight", "layers.1.ffn.up.weight")
    assert weights.stored("layers.1.ffn.up.weight").start == weights.where("layers.1.ffn.gate.weight").shape[0]
    assert made("gpt2-lm").weights.names_of("transformer.h.0.attn.c_attn.bias") == tuple(
        f"layers.0.attention.{part}.bias" for part in ("query", "key", "value")
    )
    tied = made("llama-tied").weights
    assert tied.names_of("model.embed_tokens.weight") == ("embeddings.word.weight", "lm_head.weight")
    with pytest.raises(BackboneError, match=r"nothing of the backbone is stored under the key 'lm_head.weight'"):
        tied.names_of("lm_head.weight")


def test_a_model_that_was_loaded_is_written_as_transformers_would(tmp_path):
    """A base model out of a checkpoint with a head, whose keys have a prefix."""
    head = BertForMaskedLM(make_model("bert").config)
    head.save_pretrained(tmp_path / "head")
    backbone = Backbone(type(make_model("bert")).from_pretrained(tmp_path / "head"))
    file = saved(backbone.model, tmp_path / "base")
    assert sorted(backbone.weights.checkpoint_keys) == sorted(file)
    for name in backbone.weights:
        stored = backbone.weights.stored(name)
        assert torch.equal(stored.of(file[stored.key]), backbone.weights[name])


def test_another_form_in_checkpoints_is_refused():
    model = make_model("bert")
    model._weight_conversions = [WeightConverter("ffn.kernel", "output.dense.weight", operations=[Transpose(0, 1)])]
    weights = Backbone(model).weights
    with pytest.raises(BackboneError, match=r"of BertModel is stored in another form, under .*ffn.kernel"):
        weights.stored("layers.0.ffn.down.weight")


@pytest.mark.parametrize("kind", CONFIGS)
def test_the_names_that_full_fine_tuning_trains_are_names_of_the_view(kind):
    backbone, method = make_backbone(kind, head=kind in GENERATORS), FullFineTuning()
    for site in method.sites(backbone.sites):
        for name in method.declare(site):
            place = backbone.weights.where(name)
            assert not place.buffer
            assert site.name == place.site or f"{site.name}.{place.parameter}" in place.tied


def test_the_view_is_of_the_backbones_own_whatever_acts_on_it():
    backbone = make_backbone("gpt2")
    before = {name: tensor.clone() for name, tensor in backbone.weights.items()}
    model = AdaptedModel(backbone, {"a": make_adapter(backbone, LoRA(rank=2), trained=True)})
    model.merge("a")
    assert all(torch.equal(backbone.weights[name], tensor) for name, tensor in before.items())
    keys = dict.fromkeys(backbone.weights.where(name).key for name in backbone.weights)
    assert list(backbone.model.state_dict()) == list(keys)
    model.unmerge()
    twin = deepcopy(backbone)
    with torch.no_grad():
        twin.weights["norm.weight"].zero_()
    assert torch.equal(backbone.weights["norm.weight"], before["norm.weight"])
    assert (twin.model.ln_f.weight == 0).all()


def test_two_tensors_of_one_name_are_refused():
    """A buffer of the caller's own may have the path that is a site's name."""
    model = make_model("bert")
    stray = torch.nn.Module()
    stray.add_module("word", torch.nn.Module())
    stray.word.register_buffer("weight", torch.zeros(1))
    model.embeddings.add_module("stray", stray)
    names = list(Backbone(model).weights)
    assert "embeddings.stray.word.weight" in names
    model.embeddings.add_module("word", stray.word)
    with pytest.raises(BackboneError, match=r"two tensors of the canonical name 'embeddings.word.weight'"):
        Backbone(model)
