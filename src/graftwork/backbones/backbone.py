"""A backbone: a pretrained Hugging Face model, frozen, with its tokenizer, its sites and its fingerprint."""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from hashlib import blake2b
from pathlib import Path
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
    as_folder,
    auto_class,
    lacks_pooler,
    load_model,
    settled_name,
    source_of,
)
from graftwork.backbones.devices import DTYPES, best_dtype, device_of
from graftwork.backbones.families import Family, base_path, family_of, hidden_size
from graftwork.backbones.fingerprint import cached_fingerprint, fingerprint_of, remember_fingerprint
from graftwork.backbones.holding import hold, holder_of, is_held_by_another, let_go
from graftwork.backbones.offloading import Brought, offloaded
from graftwork.backbones.pooling import (
    Declared,
    Pooling,
    PoolingSource,
    declared_by_config,
    declared_pooling,
    warn_of_unknown,
)
from graftwork.backbones.quiet import quiet_transformers
from graftwork.backbones.sites import Site, Sites
from graftwork.backbones.tokenizers import beyond, with_tokens
from graftwork.errors import BackboneError, first_line
from graftwork.folders import settled

WORD = "embeddings.word"
"""What the names of the sites of embedding tables end in."""


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
            pads with the token that ends texts, else with the unknown one or another; padding is on the right.
        family, sites: its layout and the places where ops can act.
        modules: the very modules at the sites' paths, also while something else stands there.
        pooling: how an input becomes one vector unless a head says otherwise: as the checkpoint declares (see
            `graftwork.backbones.pooling`); else as was measured to be best, see docs/defaults.md.
        pooling_source: who chose that: `declared` by the checkpoint, `default`, or `given` to this constructor.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        image_processor: BaseImageProcessor | None = None,
        name: str = "",
        pooling: Pooling | None = None,
        declared: Declared | None = None,
        fingerprint: str | None = None,
    ) -> None:
        if model.base_model is not model and not generates(model):
            raise BackboneError(
                f"{type(model).__name__} has a task head, which a backbone has not", expected="its `base_model`"
            )
        if is_held_by_another(model):
            raise BackboneError(
                f"the {type(model).__name__} is in use by an AdaptedModel",
                expected="the Backbone that is around it, or another model",
                change="call detach() on the AdaptedModel, or load the model again",
            )
        # Refused before anything is changed: the model may be the caller's own.
        self.family: Family = family_of(model)
        self.sites: Sites = self.family.sites(model)
        origin = str(getattr(model.config, "_name_or_path", ""))
        # transformers takes it for a folder wherever there is one of that name.
        folder = settled(Path(origin)) if origin and Path(origin).is_dir() else ""
        self.name = (settled_name(name) if name else "") or folder or origin or type(model).__name__
        if declared is None and pooling is None:
            declared = (declared_pooling(folder, {}) if folder else None) or declared_by_config(model.config)
        if tokenizer is not None:
            self._refuse_tokens_without_rows(tokenizer)
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
                known = (getattr(tokenizer, f"{name}_token") for name in ("eos", "unk", "bos", "sep", "cls"))
                first = tokenizer.convert_ids_to_tokens(0)
                tokenizer.pad_token = next((token for token in known if token is not None), first)
        followed = None if declared is None else declared.pooling
        self.pooling: Pooling = pooling or followed or self._default_pooling()
        self.pooling_source: PoolingSource = "given" if pooling else "declared" if followed else "default"
        outlined = model.device.type == "meta"  # nothing is pooled
        if declared is not None and followed is None and pooling is None and not outlined:
            warn_of_unknown(declared, self.name, self.pooling)
        self.modules = {site.path: model.get_submodule(site.path) for site in self.sites.values()}
        self._fingerprint = fingerprint
        # Themselves, whatever stands in their places later.
        self._all_modules = list(model.modules())
        self._versions = self._versions_now()

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
                declared = declared_pooling(source, options)
            except UNREADABLE as error:
                raise BackboneError(
                    f"backbone {name!r} cannot be loaded: {first_line(error)}",
                    expected=f"{', '.join(EMBEDDED)}, a folder with config.json and weights, or a hub id",
                    change="--backbone",
                ) from error
        if tokenizer is not None and len(tokenizer) <= len(set(tokenizer.all_special_tokens)):
            tokenizer = None  # transformers makes one up, without words, where the files are missing
        model.to(device=place)  # type: ignore[call-arg]
        return cls(model, tokenizer, image_processor=processor, name=name, declared=declared, fingerprint=fingerprint)

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
                options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
                source = as_folder(source)
                config = AutoConfig.from_pretrained(source, **options)
                with torch.device("meta"):
                    model = auto_class(config).from_config(config, **options)
                declared = declared_pooling(source, options)
                without_pooler = lacks_pooler(source)
            except UNREADABLE as error:
                raise BackboneError(
                    f"backbone {name!r} cannot be read: {first_line(error)}",
                    expected=f"{', '.join(EMBEDDED)}, a folder with config.json, or a hub id",
                    change="--backbone",
                ) from error
        if without_pooler:
            model._modules["pooler"] = None
        return cls(model, name=name, declared=declared)

    def take(self, graft: object) -> None:
        """Reserve the backbone for who puts something on it, or runs it. Who has it already keeps it; who is held by
        nobody any more has let go of it.

        Raises:
            BackboneError: another one has it.
        """
        if not hold(self.model, graft):
            raise BackboneError(
                f"backbone {self.name!r} is in use by another AdaptedModel",
                expected="one AdaptedModel on a backbone at a time",
                change="call detach() on the other one, or load the backbone again",
            )

    def release(self, graft: object) -> None:
        """Let another one take the backbone. Does nothing when this one does not have it."""
        let_go(self.model, graft)

    def is_taken_by(self, graft: object) -> bool:
        """Whether this one has the backbone."""
        return holder_of(self.model) is graft

    def require_taken(self, graft: object) -> None:
        """Refuse who does not have the backbone any more.

        Raises:
            BackboneError: it does not.
        """
        if not self.is_taken_by(graft):
            raise BackboneError(
                f"the model has let go of backbone {self.name!r}",
                expected="a model before detach(), or one to which an adapter is added again",
            )

    def __getstate__(self) -> dict[str, Any]:
        """All of it but who has it.

        Raises:
            BackboneError: an adapter is merged into its weights, which are not the backbone's then.
        """
        held = {id(p) for p in self.model.parameters()}
        if any(id(p) not in held for module in self.modules.values() for p in module.parameters(recurse=False)):
            raise BackboneError(
                f"an adapter is merged into the weights of backbone {self.name!r}, which cannot be copied now",
                expected="unmerge() first, or a copy of the AdaptedModel",
            )
        if self._fingerprint is not None:
            self._fingerprint = self.fingerprint
        return {name: value for name, value in vars(self).items() if name != "family"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.family = family_of(self.model)
        self._versions = self._versions_now()

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
    def word_site(self) -> Site | None:
        """Where a text's tokens are embedded: of an encoder-decoder, in the encoder; None of a backbone of images."""
        return next((self.sites[name] for name in (f"encoder.{WORD}", WORD) if name in self.sites), None)

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
        """Hash over the configuration and the weights as stored; computed once, and again when they were written to.
        Adapters carry it and are checked by it.
        """
        if self.device.type == "meta":
            raise BackboneError(f"the outline of backbone {self.name!r} has no weights", expected="Backbone.load")
        versions = self._versions_now()
        if self._fingerprint is None or versions != self._versions:
            self._fingerprint, self._versions = fingerprint_of(self.model), versions
        return self._fingerprint

    def digest_of_weights(self) -> str:
        """Of the backbone's parameters and buffers as they are held at this moment, to the last bit; 32 hexadecimal
        digits. Those that are offloaded are not read.
        """
        digest = blake2b(digest_size=16)
        for tensor in self._own_tensors():
            digest.update(f"{tensor.dtype} {tuple(tensor.shape)} {tensor.is_meta}".encode())
            if not tensor.is_meta:
                numbers: Any = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
                digest.update(numbers)
        return digest.hexdigest()

    def _own_tensors(self) -> Iterator[Tensor]:
        """Its parameters and buffers, also while another module runs in the place of one."""
        for module in self._all_modules:
            yield from (t for t in (*module._parameters.values(), *module._buffers.values()) if t is not None)

    def _versions_now(self) -> tuple[int, ...]:
        """How often each tensor was written to."""
        return tuple(0 if t.is_inference() else t._version for t in self._own_tensors())

    def frozen(self, site: Site) -> Mapping[str, Tensor]:
        """The frozen parameters at a site, by their name in its module. Those of a linear map are its own rows, (out,
        in) and (out), however the module holds them. Of a module whose weights are offloaded they are copies, which are
        read when they are asked for.
        """
        module = self.modules[site.path]
        return Brought(module, partial(_own, module, site)) if offloaded(module) else _own(module, site)

    def require_here(self, site: Site) -> None:
        """Refuse a site whose weights are offloaded: others cannot stand in their place there.

        Raises:
            BackboneError: they are; names the module.
        """
        if offloaded(self.modules[site.path]):
            raise BackboneError(
                f"the weights of module {site.path!r} of backbone {self.name!r} are offloaded, and the method puts "
                "others in their place",
                expected="weights that stay on the device, or a method that replaces none (lora; houlsby, norms none)",
                change=f"accelerate's device_map, so that {site.path!r} is not offloaded; or the method",
            )

    def require_image_processor(self) -> BaseImageProcessor:
        """The image processor, or an error that says there is none."""
        if self.image_processor is None:
            raise BackboneError(
                f"backbone {self.name!r} has no image processor",
                expected="Backbone(model, image_processor=…), or a folder that holds both",
            )
        return self.image_processor

    def require_tokenizer(self, added: Sequence[str] = ()) -> PreTrainedTokenizerBase:
        """The tokenizer, or an error that says there is none.

        Args:
            added: tokens that it has in addition, with ids from the size of the embedding table on; the backbone's own
                tokenizer stays as it is.

        Raises:
            BackboneError: there is none.
            RecipeError: a token cannot be added.
        """
        if self.tokenizer is None:
            raise BackboneError(
                f"backbone {self.name!r} has no tokenizer",
                expected="Backbone(model, tokenizer), or a folder that holds both",
            )
        if not added or self.word_site is None:
            return self.tokenizer
        return with_tokens(self.tokenizer, tuple(added), self.word_site.in_features)

    def _refuse_tokens_without_rows(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Refuse a tokenizer that gives tokens for which the embedding table has no row: in a pass they are an index
        out of range. A table with more rows than there are tokens is padded, and fine.

        Raises:
            BackboneError: the two sizes, and the tokens.
        """
        tables = [site.in_features for site in self.sites.of_kind("embedding") if site.name.endswith(WORD)]
        if not tables:
            return
        rows = min(tables)
        outside = beyond(tokenizer, rows)
        if outside:
            named = ", ".join(f"{token!r} ({i})" for token, i in list(outside.items())[:3])
            raise BackboneError(
                f"the tokenizer of backbone {self.name!r} has {len(tokenizer)} tokens and its embedding table {rows} "
                f"rows: there is none for {named}{' and others' if len(outside) > 3 else ''}",
                expected="the tokenizer that the model was trained with, or a model whose table was made larger for it",
                change="the tokenizer; or model.resize_token_embeddings(len(tokenizer)); or --add-tokens, for tokens "
                "of an adapter's own",
            )

    def _default_pooling(self) -> Pooling:
        """Of texts, the mean, unless tokens see only what stands before them; of a decoder that is given one token,
        that. A layer that pools images is part of how they are classified."""
        if self.model.main_input_name == "pixel_values":
            return "pooler" if "pooler" in self.sites else "first"
        return "first" if self.is_encoder_decoder else "last" if self.family.causal else "mean"

    def __repr__(self) -> str:
        size = f"{self.sites.num_layers} layers x {self.hidden_size}, {self.num_parameters / 1e6:.1f}M parameters"
        return f"Backbone({self.name!r}, {self.family.name}, {size}, {str(self.dtype).removeprefix('torch.')})"


def generates(model: PreTrainedModel) -> bool:
    """Whether a model has a language-model head and generates text with it."""
    return model.can_generate() and model.get_output_embeddings() is not None  # type: ignore[no-untyped-call]


def _own(module: Any, site: Site) -> dict[str, Tensor]:
    """The parameters at a site, of a module that holds them."""
    if site.kind != "linear":
        return {name: module.get_parameter(name) for name in site.parameters}
    weight = module.weight.T if site.transposed else module.weight
    own = {"weight": weight, **({"bias": module.bias} if site.biased else {})}
    return own if site.columns is None else {name: tensor[slice(*site.columns)] for name, tensor in own.items()}
