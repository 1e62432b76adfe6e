"""Low-rank methods and IA3 against peft, with its weights copied from ours.

A product that computes queries, keys and values at once is one module to peft and three sites here: the three
low-rank differences are one of three times the rank, whose B is block-diagonal.
"""

import pytest
import torch
from layouts import BASES, backbone_of, make_layout, run, run_adapted, texts
from peft import IA3Config, LoraConfig, get_peft_model
from tiny import make_adapter

from graftwork.methods import IA3, DoRA, LoRA
from graftwork.model import AdaptedModel

CLOSE = {torch.float32: 1e-6, torch.float64: 1e-12}
"""Of a state's largest number: only the order of sums differs. T5 does not divide its attention
scores by √d, and rounding grows with them: four times as much in float32.
"""

MODULES = {
    "bert": ["query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense"],
    "gpt2": ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"],
    "llama": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "t5": ["q", "k", "v", "o", "wi_0", "wi_1", "wo"],
}
RANK, ALPHA = 4, 8  # α / r and α / √r are powers of two: scaling B by them is exact
METHODS = {
    "lora": (LoRA(rank=RANK, alpha=ALPHA), {}),
    "rslora": (LoRA(rank=RANK, alpha=ALPHA, rank_stabilised=True), {"use_rslora": True}),
    "dora": (DoRA(rank=RANK, alpha=ALPHA), {"use_dora": True}),
}


def check_equal(kind, backbone, adapter, peft):
    batch = texts(kind)
    plain = run(backbone.model, batch)
    expected = run(peft.to(backbone.dtype).eval(), batch)
    # A magnitude's share of its row is computed in float32 here, whatever the backbone's precision.
    close = CLOSE[torch.float32 if adapter.method.name == "dora" else backbone.dtype]
    close *= 4 if kind == "t5" else 1
    found = run_adapted(AdaptedModel(backbone, {"a": adapter}), "a", batch)
    assert len(found) == len(expected) == (6 if kind == "t5" else 3)
    assert (expected[-1] - plain[-1]).abs().max() > 0.1
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=close * other.abs().max().item())


def sites_by_module(backbone, method):
    modules = {}
    for site in method.sites(backbone.sites):
        modules.setdefault(site.path, []).append(site)
    return modules


@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize("kind", BASES)
@pytest.mark.parametrize("name", METHODS)
def test_low_rank_methods_are_pefts(name, kind, dtype):
    method, options = METHODS[name]
    backbone = backbone_of(kind, dtype)
    adapter = make_adapter(backbone, method, trained=True)
    modules = sites_by_module(backbone, method)
    fused = {path: len(sites) for path, sites in modules.items() if len(sites) > 1}
    alpha = ALPHA * (3**0.5 if name == "rslora" else 3)
    config = LoraConfig(
        r=RANK,
        lora_alpha=ALPHA,
        target_modules=MODULES[kind],
        fan_in_fan_out=kind == "gpt2",
        rank_pattern=dict.fromkeys(fused, 3 * RANK),
        alpha_pattern=dict.fromkeys(fused, alpha),
        **options,
    )
    peft = get_peft_model(make_layout(kind, dtype), config)
    assert sum("lora_A" in key for key in peft.state_dict()) == len(modules)
    with torch.no_grad():
        for path, sites in modules.items():
            layer = peft.get_submodule(f"base_model.model.{path}")
            tensors = [[adapter.tensors[f"{site.name}.{key}"] for site in sites] for key in "AB"]
            layer.lora_A["default"].weight.copy_(torch.cat(tensors[0]))
            layer.lora_B["default"].weight.copy_(torch.block_diag(*tensors[1]))
            if name == "dora":
                magnitudes = [adapter.tensors[f"{site.name}.magnitude"] for site in sites]
                layer.lora_magnitude_vector["default"].weight.copy_(torch.cat(magnitudes))
    check_equal(kind, backbone, adapter, peft)


IA3_MODULES = {
    # peft's own default for BERT, `output.dense`, also scales what enters attention's output projection, and its own
    # for GPT-2 scales queries too: neither is in the paper.
    "bert": (["key", "value", r"\d+.output.dense"], [r"\d+.output.dense"]),
    "gpt2": (["attn.c_attn", "mlp.c_proj"], ["mlp.c_proj"]),
    "llama": (["k_proj", "v_proj", "down_proj"], ["down_proj"]),
    "t5": (["k", "v", "wo"], ["wo"]),
}


@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize("kind", BASES)
def test_ia3_is_pefts(kind, dtype):
    backbone = backbone_of(kind, dtype)
    adapter = make_adapter(backbone, IA3(), trained=True)
    targets, inner = (rf".*\.({'|'.join(patterns)})" for patterns in IA3_MODULES[kind])
    config = IA3Config(target_modules=targets, feedforward_modules=inner, fan_in_fan_out=kind == "gpt2")
    peft = get_peft_model(make_layout(kind, dtype), config)
    modules = sites_by_module(backbone, IA3())
    assert sum("ia3_l" in key for key in peft.state_dict()) == len(modules)
    with torch.no_grad():
        for path, sites in modules.items():
            vector = peft.get_submodule(f"base_model.model.{path}").ia3_l["default"]
            if sites[0].name.endswith("ffn.down"):
                own = adapter.tensors[f"{sites[0].name}.input_scale"]
            else:
                own = torch.cat([adapter.tensors[f"{site.name}.output_scale"] for site in sites])
                own = torch.cat([torch.ones(vector.numel() - own.numel()), own])
            vector.copy_(own.view_as(vector))
    check_equal(kind, backbone, adapter, peft)
