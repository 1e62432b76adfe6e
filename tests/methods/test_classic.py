"""Fine-tuning of parts of a backbone, at one rate or several, and feature extraction: counts, rates, and what acts."""

import pytest
import torch
from tiny import GENERATORS, MODELS, inputs_for, make_adapter, make_backbone
from transformers import BertConfig

from graftwork.adapters import Adapter, TaskIdentity
from graftwork.adapters.declared import declare
from graftwork.backbones import Backbone
from graftwork.errors import MethodError
from graftwork.heads import TokenHead
from graftwork.kinds.heads import head_for
from graftwork.methods import FeatureExtraction, FullFineTuning, ULMFiT, make_method
from graftwork.methods.full import drawn_entries
from graftwork.model import AdaptedModel
from graftwork.training.planning import count

LAYER = 4 * (768 * 768 + 768) + (768 * 3072 + 3072) + (3072 * 768 + 768) + 2 * 2 * 768
"""Parameters of a layer of BERT-base: 7,087,872."""

POOLER = 768 * 768 + 768


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert-base")
    BertConfig().save_pretrained(folder)
    return str(folder)


def head_of(backbone, kind="classification", method=None):
    fields = {} if method is None else method.head_fields
    pooling = backbone.pooling if getattr(backbone.base, "pooler", None) is None else "pooler"
    return head_for(kind, backbone, num_labels=3, pooling=pooling, **fields)


# Top layers


@pytest.mark.parametrize("layers", [1, 2, 3, 5, 7, 9, 11, 12])
def test_counts_of_variable_fine_tuning_on_bert_base(bert, layers):
    """Houlsby et al. 2019, section 3.3: the top n layers and what stands above them."""
    found = count(bert, "full-fine-tuning", {"top_layers": layers}, pooling="pooler")["trained"]
    assert found["adapter"] + found["norms"] == layers * LAYER + POOLER
    assert count(bert, "top-layers", {"top_layers": layers}, pooling="pooler")["trained"] == found


def test_all_layers_but_the_embeddings(bert):
    whole = count(bert, "full-fine-tuning")["trained"]
    less = count(bert, "full-fine-tuning", {"top_layers": 12})["trained"]
    assert whole["total"] - less["total"] == (30522 + 512 + 2 + 2) * 768


def test_more_layers_than_there_are():
    backbone = make_backbone()
    with pytest.raises(
        MethodError, match=r"top_layers is 3(.|\n)*has 2 layers(.|\n)*1 to 2(.|\n)*--method\.top_layers"
    ):
        make_adapter(backbone, FullFineTuning(top_layers=3))


def test_top_layers_of_an_encoder_alone_are_its_own():
    """A head over each token runs no decoder; of both, the decoder's layers stand above the encoder's."""
    backbone = make_backbone("t5")
    alone = declare(backbone, FullFineTuning(top_layers=1), TokenHead(num_outputs=3))
    assert {name.rpartition(".layers.1.")[0] for name in alone if not name.startswith("head.")} == {"encoder", ""}
    assert {name for name in alone if ".layers." not in name and not name.startswith("head.")} == {
        "encoder.norm.weight"
    }
    both = declare(backbone, FullFineTuning(top_layers=3), head_of(backbone))
    stacks = {name.partition(".layers.")[0] + name.partition(".layers.")[2][0] for name in both if ".layers." in name}
    assert stacks == {"decoder0", "decoder1", "encoder1"}


# A random subset


def test_counts_of_a_random_subset_are_exact(bert):
    for share in (0.001, 0.1, 0.5):
        whole = declare(make_backbone(), FullFineTuning(), head_of(make_backbone()))
        some = declare(make_backbone(), FullFineTuning(random_subset=share), head_of(make_backbone()))
        expected = {n: round(share * p.count) for n, p in whole.items() if not n.startswith("head.")}
        assert {n: p.count for n, p in some.items() if not n.startswith("head.")} == {
            n: k for n, k in expected.items() if k
        }
    found = count(bert, "random-subset", {"random_subset": 0.1}, pooling="pooler")["trained"]
    assert found["adapter"] == pytest.approx(0.1 * (109_482_240 - 38_400), rel=1e-6)


def test_entries_are_drawn_once_for_ever():
    """An adapter on disk holds the seed and not the entries."""
    cpu = torch.device("cpu")
    assert drawn_entries(0, "layers.0.ffn.up.weight", 100, 8, cpu).tolist() == [12, 18, 60, 69, 70, 71, 81, 97]
    found = drawn_entries(0, "a", 1000, 400, cpu)
    assert len(found.unique()) == 400
    assert torch.equal(found, found.sort().values)
    assert not torch.equal(found, drawn_entries(1, "a", 1000, 400, cpu))
    assert not torch.equal(found, drawn_entries(0, "b", 1000, 400, cpu))


def test_entries_are_drawn_uniformly():
    hits = torch.zeros(50)
    for seed in range(400):
        hits[drawn_entries(seed, "a", 50, 10, torch.device("cpu"))] += 1
    # Binomial(400, 0.2): 80 with a standard deviation of 8; five of them either way, for 50 entries.
    assert hits.sum() == 4000
    assert (hits - 80).abs().max() < 40


def test_a_subset_of_nothing():
    with pytest.raises(MethodError, match=r"selects no entry(.|\n)*--method\.random_subset"):
        make_adapter(make_backbone(), FullFineTuning(random_subset=1e-9))


# What acts


def changed_weights(backbone, adapter) -> None:
    """Put an adapter's differences on the weights themselves, each tensor once."""
    method, done = adapter.method, set()
    for site in backbone.sites.values():
        for name in site.parameters:
            key = f"{site.owner}.{name}"
            if key not in adapter.tensors or key in done:
                continue
            done.add(key)
            difference = adapter.tensors[key]
            own = backbone.modules[site.path].get_parameter(name)
            if method.random_subset is not None:
                spread = torch.zeros(own.numel())
                spread[drawn_entries(method.subset_seed, key, own.numel(), len(difference), torch.device("cpu"))] = (
                    difference
                )
                difference = spread.view(own.shape)
            own.add_(difference)
    assert done == {name for name in adapter.tensors if not name.startswith("head.")}


@pytest.mark.parametrize("settings", [{}, {"top_layers": 1}, {"random_subset": 0.3}], ids=["all", "top", "subset"])
@pytest.mark.parametrize("kind", MODELS)
def test_it_is_other_weights(kind, settings):
    """Linear maps held either way, fused ones, norms, tables, convolutions and lone parameters."""
    backbone = make_backbone(kind)
    batch = inputs_for(backbone.model, 6, 6)
    adapter = make_adapter(backbone, FullFineTuning(**settings), trained=True)
    with torch.no_grad():
        model = AdaptedModel(backbone, {"a": adapter})
        found = model(**batch).logits
        model.detach()
        before = AdaptedModel(backbone, {"a": make_adapter(backbone, FullFineTuning(**settings))})
        plain = before(**batch).logits
        before.detach()
        changed_weights(backbone, adapter)
        head = {name: tensor for name, tensor in adapter.tensors.items() if name.startswith("head.")}
        other = Adapter.create(backbone, make_method("head-only"), adapter.head, adapter.task)
        expected = AdaptedModel(backbone, {"a": replaced(other, head)})(**batch).logits
    assert torch.equal(found, expected)
    assert not torch.equal(found, plain)


def replaced(adapter, tensors):
    for name, tensor in adapter.tensors.items():
        tensor.copy_(tensors[name])
    return adapter


@pytest.mark.parametrize("kind", GENERATORS)
def test_tied_embeddings_are_one_and_at_the_bottom(kind):
    backbone = make_backbone(kind, head=True)
    model, head = backbone.model, head_of(backbone, "generation")
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    top = declare(backbone, FullFineTuning(top_layers=1), head)
    assert ("lm_head.weight" in top) != tied
    assert not any("embeddings" in name for name in top)
    declared = declare(backbone, FullFineTuning(layer_decay=2.0, gradual_unfreezing=True), head)
    word = declared["embeddings.word.weight"]
    depth = backbone.sites.num_layers
    assert (word.rate, word.unfreezes) == (2.0**-depth, depth)
    assert ("lm_head.weight" in declared) != tied
    batch = inputs_for(model, 6, 6)
    adapter = Adapter.create(backbone, FullFineTuning(), head, TaskIdentity(name="t"))
    for tensor in adapter.tensors.values():
        tensor.add_(torch.randn(tensor.shape, generator=torch.Generator().manual_seed(1)) * 0.1)
    with torch.no_grad():
        adapted = AdaptedModel(backbone, {"a": adapter})
        found = adapted(**batch).logits
        adapted.detach()
        changed_weights(backbone, adapter)
        expected = backbone.model(**batch).logits
    assert torch.equal(found, expected)


# Rates and unfreezing


def test_discriminative_rates_and_gradual_unfreezing():
    """Howard & Ruder 2018: η_{l-1} = η_l / 2.6, and one layer more each epoch; by name, of three layers."""
    backbone = make_backbone(num_hidden_layers=3)
    declared = declare(backbone, ULMFiT(), head_of(backbone))
    for name, parameter in declared.items():
        if name.startswith(("head.", "pooler.", "layers.2.")):
            height = 0
        elif name.startswith("layers."):
            height = 2 - int(name.split(".")[1])
        else:
            assert name.startswith("embeddings.")
            height = 3
        assert parameter.rate == pytest.approx(2.6**-height, rel=1e-12), name
        assert parameter.unfreezes == height, name


def test_named_ones():
    assert make_method("discriminative") == FullFineTuning(layer_decay=2.6)
    assert make_method("gradual_unfreezing") == FullFineTuning(gradual_unfreezing=True)
    assert make_method("top-layers", {"top_layers": 3}) == FullFineTuning(top_layers=3)
    assert make_method("random-subset") == FullFineTuning(random_subset=0.01)
    assert make_method("ulmfit") == ULMFiT(layer_decay=2.6, gradual_unfreezing=True)
    assert ULMFiT().lr_scheduler_type == "slanted_triangular"


@pytest.mark.parametrize("name", ["gradual-unfreezing", "ulmfit"])
def test_a_run_of_gradual_unfreezing_comes_to_all_layers_of_bert_base(bert, name):
    method = make_method(name)
    last = max(1 + site.height for site in method.sites(Backbone.outline(bert).sites))
    assert last == 13
    assert method.num_train_epochs >= last
    assert FullFineTuning().num_train_epochs == 3


@pytest.mark.parametrize("settings", [{"top_layers": 0}, {"random_subset": 1.0}, {"layer_decay": 0.5}])
def test_settings_that_are_refused(settings):
    with pytest.raises(MethodError, match=f"method.{next(iter(settings))}"):
        FullFineTuning(**settings)


# Feature extraction


def test_counts_of_feature_extraction_on_bert_base(bert):
    """By hand: 13 weights of the mix and γ; LSTMs of 4h(i + h + 1) numbers a direction."""

    def lstm(inputs, hidden):
        return 2 * 4 * hidden * (inputs + hidden + 1)

    h, mix = 200, 13 + 1
    linear = count(bert, "feature-extraction")["trained"]
    assert linear == {
        "adapter": 0,
        "norms": 0,
        "head": mix + 2 * 769,
        "total": mix + 2 * 769,
        "without_classifier": mix,
    }
    sequence = count(bert, "feature-extraction", {"model": "bilstm"})["trained"]["without_classifier"]
    assert sequence == mix + 769 * h + lstm(h, h) + lstm(6 * h, h) + 2 * h + (8 * h + 1) * h
    pairs = count(bert, "feature-extraction", {"model": "esim"})["trained"]["without_classifier"]
    assert pairs == mix + lstm(768, h) + (8 * h + 1) * h + lstm(h, h) + (8 * h + 1) * h


def test_feature_extraction_leaves_the_backbone_alone():
    method = FeatureExtraction()
    backbone = make_backbone()
    assert method.frozen_backbone
    assert method.sites(backbone.sites) == []
    assert make_adapter(backbone, method).sites == ()
