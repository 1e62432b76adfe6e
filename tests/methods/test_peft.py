"""Low-rank methods and IA3 against peft, with its weights copied from ours: the same states, and the same gradients.

A product that computes queries, keys and values at once is one module to peft and three sites here: the three
low-rank differences are one of three times the rank, whose B is block-diagonal.
"""

import pytest
import torch
from closeness import PASS, T5, close
from layouts import BASES, backbone_of, make_layout, run, run_adapted, texts
from peft import IA3Config, LoraConfig, get_peft_model
from tiny import make_adapter

from graftwork.methods import IA3, DoRA, LoRA
from graftwork.model import AdaptedModel

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


class Part:
    """Where one of our tensors is in peft's."""

    def __init__(self, parameter, *index):
        self.parameter, self.index = parameter, index

    def put(self, tensor):
        with torch.no_grad():
            self.parameter[self.index] = tensor.to(self.parameter.dtype)

    @property
    def gradient(self):
        return self.parameter.grad[self.index]


def check_equal(kind, backbone, adapter, peft, parts):
    """The same states at each layer, and in float64 the same gradients.

    Args:
        parts: where our tensors are in peft's, by name.
    """
    for name, part in parts.items():
        part.put(adapter.tensors[name])
    batch = texts(kind)
    plain = run(backbone.model, batch)
    expected = run(peft.to(backbone.dtype).eval(), batch)
    # A magnitude's share of its row is computed in float32 here, whatever the backbone's precision.
    precision = torch.float32 if adapter.method.name == "dora" else backbone.dtype
    model = AdaptedModel(backbone, {"a": adapter})
    found = run_adapted(model, "a", batch)
    model.detach()
    assert len(found) == len(expected) == (6 if kind == "t5" else 3)
    assert (expected[-1] - plain[-1]).abs().max() > 0.1
    for one, other in zip(found, expected, strict=True):
        close(one, other, T5 if kind == "t5" else PASS, precision=precision)
    if backbone.dtype == torch.float64:
        check_gradients(backbone, adapter, peft, parts, batch)


def check_gradients(backbone, adapter, peft, parts, batch):
    """Of a weighted sum of the last states, for all that is trained."""
    model = AdaptedModel(backbone)
    model.add("a", adapter, trainable=True)
    with model.graft.run(model.residents["a"].ops()):
        found = backbone.model(**batch).last_hidden_state
    weights = torch.randn(found.shape, generator=torch.Generator().manual_seed(0), dtype=found.dtype)
    (found * weights).sum().backward()
    (peft(**batch).last_hidden_state * weights).sum().backward()
    own = {name: t.grad for name, t in model.residents["a"].tensors().items() if not name.startswith("head.")}
    assert own.keys() == parts.keys()
    for name, part in parts.items():
        largest = part.gradient.abs().max().item()
        assert largest > 1e-3
        # Our parameters are in float32, and so are their gradients; there and back it is twice as far.
        close(own[name].double(), part.gradient, 2 * PASS, precision=torch.float32)


def sites_by_module(backbone, method):
    modules = {}
    for site in method.sites(backbone.sites):
        modules.setdefault(site.path, []).append(site)
    return modules


def outputs_of(site):
    """Those of its module's outputs that are a site's."""
    return slice(*(site.columns or (0, site.out_features)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
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
    parts = {}
    for path, sites in modules.items():
        layer = peft.get_submodule(f"base_model.model.{path}")
        A, B = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        torch.nn.init.zeros_(B)
        for i, site in enumerate(sites):
            ranks, outputs = slice(i * RANK, (i + 1) * RANK), outputs_of(site)
            parts |= {f"{site.name}.A": Part(A, ranks), f"{site.name}.B": Part(B, outputs, ranks)}
            if name == "dora":
                magnitude = layer.lora_magnitude_vector["default"].weight
                parts[f"{site.name}.magnitude"] = Part(magnitude, outputs)
    check_equal(kind, backbone, adapter, peft, parts)


IA3_MODULES = {
    # peft's own default for BERT, `output.dense`, also scales what enters attention's output projection, and its own
    # for GPT-2 scales queries too: neither is in the paper.
    "bert": (["key", "value", r"\d+.output.dense"], [r"\d+.output.dense"]),
    "gpt2": (["attn.c_attn", "mlp.c_proj"], ["mlp.c_proj"]),
    "llama": (["k_proj", "v_proj", "down_proj"], ["down_proj"]),
    "t5": (["k", "v", "wo"], ["wo"]),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", BASES)
def test_ia3_is_pefts(kind, dtype):
    backbone = backbone_of(kind, dtype)
    adapter = make_adapter(backbone, IA3(), trained=True)
    targets, inner = (rf".*\.({'|'.join(patterns)})" for patterns in IA3_MODULES[kind])
    config = IA3Config(target_modules=targets, feedforward_modules=inner, fan_in_fan_out=kind == "gpt2")
    peft = get_peft_model(make_layout(kind, dtype), config)
    modules = sites_by_module(backbone, IA3())
    assert sum("ia3_l" in key for key in peft.state_dict()) == len(modules)
    parts = {}
    for path, sites in modules.items():
        vector = peft.get_submodule(f"base_model.model.{path}").ia3_l["default"]
        for site in sites:
            inner = site.name.endswith("ffn.down")
            name = f"{site.name}.{'input' if inner else 'output'}_scale"
            parts[name] = Part(vector, 0) if inner else Part(vector, outputs_of(site), 0)
    check_equal(kind, backbone, adapter, peft, parts)
