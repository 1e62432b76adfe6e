"""A backbone: a pretrained Hugging Face model, frozen, with its tokenizer, its sites and its fingerprint."""

import inspect
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoTokenizer,
    BaseImageProcessor,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from graftwork.backbones.attention import ATTENTION
from graftwork.backbones.checkpoints import (
    EMBEDDED,
    UNREADABLE,
    Pooling,
    as_folder,
    auto_class,
    declared_pooling,
    lacks_pooler,
    load_model,
    settled_name,
    source_of,
)
from graftwork.backbones.devices import DTYPES, best_dtype, device_of
from graftwork.backbones.families import Family, base_path, family_of, hidden_size
from graftwork.backbones.fingerprint import cached_fingerprint, fingerprint_of, remember_fingerprint
from graftwork.backbones.quiet import quiet_transformers
from graftwork.backbones.sites import Site, Sites
from graftwork.errors import BackboneError, first_line


class Backbone:
    """A frozen pretrained model.

    Make one with `Backbone.load`, or around a Hugging Face model that you already hold: its parameters are frozen and
    its attention implementation is set to graftwork's, which computes the same.

    Attributes:
        name: what it was loaded as, a folder by its whole path; written into adapters, which find it by that. The
            fingerprint is what is checked.
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
        source = source_of(name)
        place = device_of(device)
        target = best_dtype(place) if dtype == "auto" else DTYPES[dtype]
        options: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
        with quiet_transformers():
            try:
                source = as_folder(source)
                config = AutoConfig.from_pretrained(source, **options)
                commit = getattr(config, "_commit_hash", None)
                fingerprint = cached_fingerprint(source, commit)
                if fingerprint is None:
                    # It is over the weights as stored.
                    fingerprint = fingerprint_of(load_model(name, source, config, "auto", options))
                    remember_fingerprint(source, fingerprint, commit)
                model = load_model(name, source, config, target, options)
                images = model.main_input_name == "pixel_values"
                tokenizer: Any = None if images else AutoTokenizer.from_pretrained(source, **options)
                processor: Any = AutoImageProcessor.from_pretrained(source, **options) if images else None  # type: ignore[no-untyped-call]
                pooling = declared_pooling(source, options)
            except UNREADABLE as error:
                raise BackboneError(
                    f"backbone {name!r} cannot be loaded: {first_line(error)}",
                    expected=f"{', '.join(EMBEDDED)}, a folder with config.json and weights, or a hub id",
                    change="--backbone",
                ) from error
        if tokenizer is not None and len(tokenizer) <= len(set(tokenizer.all_special_tokens)):
            tokenizer = None  # transformers makes one up, without words, where the files are missing
        if getattr(model, "pooler", None) is not None:
            pooling = None
        model.to(device=place)  # type: ignore[call-arg]
        name = settled_name(name)
        return cls(model, tokenizer, image_processor=processor, name=name, pooling=pooling, fingerprint=fingerprint)

    @classmethod
    def outline(cls, name: str, *, trust_remote_code: bool = False) -> "Backbone":
        """The backbone's shape without its weights: what `plan` needs. A folder with only config.json is enough.

        Whether a checkpoint has a pooling layer is seen only where its files are on this machine; else it is taken to
        have the one of its configuration.

        Raises:
            BackboneError: as `load`.
        """
        source = source_of(name)
        with quiet_transformers():
            try:
                options = {"trust_remote_code": trust_remote_code}
                source = as_folder(source)
                config = AutoConfig.from_pretrained(source, **options)
                with torch.device("meta"):
                    model = auto_class(config).from_config(config, **options)
                pooling = declared_pooling(source, {})
                without_pooler = lacks_pooler(source)
            except UNREADABLE as error:
                raise BackboneError(
                    f"backbone {name!r} cannot be read: {first_line(error)}",
                    expected=f"{', '.join(EMBEDDED)}, a folder with config.json, or a hub id",
                    change="--backbone",
                ) from error
        if without_pooler:
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


def generates(model: PreTrainedModel) -> bool:
    """Whether a model has a language-model head and generates text with it."""
    return model.can_generate() and model.get_output_embeddings() is not None  # type: ignore[no-untyped-call]
