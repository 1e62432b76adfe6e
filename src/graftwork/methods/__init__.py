"""Methods: one file each. `METHODS` is the table by name; a new method is one file and one line here."""

from graftwork.methods.adamix import AdaMix
from graftwork.methods.average import Average
from graftwork.methods.bihnet import BiHNet
from graftwork.methods.bitfit import BitFit
from graftwork.methods.compacter import Compacter
from graftwork.methods.dora import DoRA
from graftwork.methods.features import FeatureExtraction
from graftwork.methods.full import FullFineTuning
from graftwork.methods.fuse import Fuse
from graftwork.methods.gate import Gate
from graftwork.methods.headonly import HeadOnly
from graftwork.methods.houlsby import Houlsby
from graftwork.methods.hyperformer import HyperFormer
from graftwork.methods.hypergrid import HyperGrid
from graftwork.methods.ia3 import IA3
from graftwork.methods.layernorm import LayerNormTuning
from graftwork.methods.lookup import METHODS, as_method, find_method, known_methods, make_method
from graftwork.methods.lora import LoRA
from graftwork.methods.method import Method
from graftwork.methods.named import NAMED
from graftwork.methods.parallel import Parallel
from graftwork.methods.parts import Part
from graftwork.methods.pfeiffer import Pfeiffer
from graftwork.methods.prefix import PrefixTuning
from graftwork.methods.prompts import PromptTuning
from graftwork.methods.ptuning import PTuning
from graftwork.methods.stack import Stack
from graftwork.methods.ulmfit import ULMFiT
from graftwork.methods.union import Union
from graftwork.methods.vera import VeRA

METHODS.update(
    (method.name, method)
    for method in (
        *(Houlsby, Pfeiffer, Parallel),
        *(Compacter, AdaMix),
        *(HyperFormer, BiHNet, HyperGrid),
        *(LoRA, DoRA, VeRA),
        *(IA3, BitFit, LayerNormTuning),
        *(PromptTuning, PTuning, PrefixTuning),
        *(FullFineTuning, ULMFiT, HeadOnly, FeatureExtraction),
        Union,
        *(Fuse, Gate, Average, Stack),
    )
)

__all__ = [
    "IA3",
    "METHODS",
    "NAMED",
    "AdaMix",
    "Average",
    "BiHNet",
    "BitFit",
    "Compacter",
    "DoRA",
    "FeatureExtraction",
    "FullFineTuning",
    "Fuse",
    "Gate",
    "HeadOnly",
    "Houlsby",
    "HyperFormer",
    "HyperGrid",
    "LayerNormTuning",
    "LoRA",
    "Method",
    "PTuning",
    "Parallel",
    "Part",
    "Pfeiffer",
    "PrefixTuning",
    "PromptTuning",
    "Stack",
    "ULMFiT",
    "Union",
    "VeRA",
    "as_method",
    "find_method",
    "known_methods",
    "make_method",
]
