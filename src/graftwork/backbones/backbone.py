"""A backbone: a pretrained Hugging Face model, frozen, with its tokenizer, its sites and its fingerprint."""

from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    BaseImageProcessor,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from graftwork.backbones.attention import ATTENTION
from graftwork.backbones.checkpoints import (
    resolved_name,
)
from graftwork.backbones.families import Family, base_path, family_of, hidden_size
from graftwork.backbones.fingerprint import fingerprint_of
from graftwork.backbones.holding import hold, holder_of, is_held_by_another, let_go
from graftwork.backbones.loading import load_parts, outline_parts
from graftwork.backbones.offloading import offloaded
from graftwork.backbones.pooling import (
    DeclaredPooling,
    Pooling,
    PoolingSource,
    declared_by_config,
    declared_pooling,
    warn_of_unknown,
)
from graftwork.backbones.positions import longest_by
from graftwork.backbones.sites import WORD, Site, Sites
from graftwork.backbones.tokenizers import fit_tokenizer, refuse_tokens_without_rows, with_tokens
from graftwork.backbones.weights import Weights
from graftwork.errors import BackboneError
from graftwork.folders import resolved_path


class Backbone:
    """A frozen pretrained model with its tokenizer or image processor.

    Load one with `Backbone.load`, or wrap a Hugging Face model: its parameters are then frozen, and its attention
    implementation is set to graftwork's, which computes the same.

    Args:
        model: a Hugging Face model without a task head, or with a language-model head.
        tokenizer: its tokenizer.
        image_processor: its image processor.
        name: name for messages, stored in adapters. By default, where the model was loaded from.
        pooling: how a text becomes one vector. None: as the checkpoint declares, otherwise the default.
        declared: the pooling that the checkpoint declares, if it is known already.
        fingerprint: the fingerprint, if it is known already.

    Attributes:
        name: the name that it was loaded by; for a folder, its absolute path. Stored in adapters, which use it to find
            the backbone; the fingerprint is what is checked.
        model: the Hugging Face model, in evaluation mode, without a task head, but with the language-model head of a
            generative model.
        tokenizer: the tokenizer, or None. One without a padding token pads with its end-of-text token, otherwise with
            its unknown token or another. Padding is on the right.
        image_processor: the image processor, or None.
        family: the family, which describes the layout.
        sites: the named places where ops can act.
        modules: the original modules by path, even while others replace them.
        weights: the parameters by canonical name, and where they are in the model and in a checkpoint.
        pooling: how a text becomes one vector, unless a head overrides it.
        pooling_source: where that setting came from: `declared` by the checkpoint, `default`, or `given`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        image_processor: BaseImageProcessor | None = None,
        name: str = "",
        pooling: Pooling | None = None,
        declared: DeclaredPooling | None = None,
        fingerprint: str | None = None,
    ) -> None:
        if model.base_model is not model and not generates(model):
            raise BackboneError(
                f"{type(model).__name__} has a task head, which a backbone does not have", expected="its `base_model`"
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
        folder = resolved_path(Path(origin)) if origin and Path(origin).is_dir() else ""
        self.name = (resolved_name(name) if name else "") or folder or origin or type(model).__name__
        if declared is None and pooling is None:
            declared = (declared_pooling(folder, {}) if folder else None) or declared_by_config(model.config)
        if tokenizer is not None:
            refuse_tokens_without_rows(tokenizer, self.sites, self.name)
        self.model = model.requires_grad_(False)
        self.model.train(False)
        if self.sites.of_kind("attention") and model.config._attn_implementation != ATTENTION:
            model.set_attn_implementation(ATTENTION)
        self.tokenizer = tokenizer
        self.image_processor = image_processor
        if tokenizer is not None:
            fit_tokenizer(tokenizer, self.base)
        followed = None if declared is None else declared.pooling
        self.pooling: Pooling = pooling or followed or self._default_pooling()
        self.pooling_source: PoolingSource = "given" if pooling else "declared" if followed else "default"
        outlined = model.device.type == "meta"  # nothing is pooled
        if declared is not None and followed is None and pooling is None and not outlined:
            warn_of_unknown(declared, self.name, self.pooling)
        self.modules = {site.path: model.get_submodule(site.path) for site in self.sites.values()}
        self.weights = Weights(model, self.sites)
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
            dtype: precision of the weights: `auto` (bfloat16 on hardware that is fast at it, otherwise float32),
                float32, bfloat16, float16 or float64.
            device: `auto` (a GPU if there is one), or a torch device such as `cpu` or `cuda:1`.
            revision: for a hub id: branch, tag or commit.
            trust_remote_code: run Python code of the repository.

        Raises:
            BackboneError: the backbone cannot be found or read, lacks weights, or has an unknown layout.
        """
        given = load_parts(name, dtype=dtype, device=device, revision=revision, trust_remote_code=trust_remote_code)
        return cls(**given)

    @classmethod
    def outline(cls, name: str, *, trust_remote_code: bool = False) -> "Backbone":
        """Make a backbone with the shapes of its parameters but without weights, for counting parameters. A folder that
        has only config.json is sufficient.

        Whether a checkpoint has a pooling layer is known only if its files are on this machine. Otherwise it is assumed
        to have the one of its configuration.

        Args:
            name: as for `load`.
            trust_remote_code: run Python code of the repository.

        Raises:
            BackboneError: as `load`.
        """
        return cls(**outline_parts(name, trust_remote_code=trust_remote_code))

    def take(self, graft: object) -> None:
        """Reserve the backbone for who puts something on it, or runs it. Who has it already keeps it; who is held by
        nobody any more has let go of it.

        Raises:
            BackboneError: another one has it, or its weights are lost.
        """
        self.weights.require_whole(self.name)
        if not hold(self.model, graft):
            raise BackboneError(
                f"backbone {self.name!r} is in use by another AdaptedModel",
                expected="one AdaptedModel on a backbone at a time",
                change="call detach() on the other one, or load the backbone again",
            )

    def layer_paths(self) -> list[str]:
        """The paths of its layers, of all stacks."""
        start = base_path(self.model)
        return [path for stack in self.family.stacks for path in stack.layer_paths(self.model, start)]

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
                f"the model no longer uses backbone {self.name!r}",
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
        """The model without its language-model head; the same as `model` if it has none."""
        return self.model.base_model  # type: ignore[return-value]

    @property
    def base_path(self) -> str:
        """The path of `base` in `model`; empty if they are the same."""
        return base_path(self.model).rstrip(".")

    @property
    def generates(self) -> bool:
        """Whether it has a language-model head and can generate text."""
        return generates(self.model)

    @property
    def is_encoder_decoder(self) -> bool:
        """Whether it has an encoder and a decoder."""
        return bool(self.model.config.is_encoder_decoder)

    @property
    def hidden_size(self) -> int:
        """Width d of the residual stream; in a convolutional network, its last width."""
        return hidden_size(self.config)

    @property
    def max_length(self) -> int | None:
        """Maximum number of tokens, given by the position embeddings; None if there are none."""
        sites = [site for site in self.sites.values() if site.name.endswith("embeddings.position")]
        if not sites or sites[0].kind != "embedding":
            return None
        return longest_by(self.modules[sites[0].path])

    @property
    def word_site(self) -> Site | None:
        """Where a text's tokens are embedded: of an encoder-decoder, in the encoder; None of a backbone of images."""
        return next((self.sites[name] for name in (f"encoder.{WORD}", WORD) if name in self.sites), None)

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        return next(self._parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the model."""
        return next(tensor.dtype for tensor in self._parameters() if tensor.is_floating_point())

    @property
    def num_parameters(self) -> int:
        """Number of parameters."""
        return sum(p.numel() for p in self.model.parameters())

    @property
    def fingerprint(self) -> str:
        """Hash of the configuration and the stored weights. Adapters store it, and loading checks it. Computed once,
        and again if a weight was written to.
        """
        if self.device.type == "meta":
            raise BackboneError(f"the outline of backbone {self.name!r} has no weights", expected="Backbone.load")
        if self.weights.in_parts and self._fingerprint is not None:
            return self._fingerprint
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

    def _parameters(self) -> Iterator[Tensor]:
        """Its parameters in the model's order. The model finds its own ten times more slowly, and passes ask often."""
        return (t for module in self._all_modules for t in module._parameters.values() if t is not None)

    def _own_tensors(self) -> Iterator[Tensor]:
        """Its parameters and buffers, also while another module runs in the place of one."""
        for module in self._all_modules:
            yield from (t for t in (*module._parameters.values(), *module._buffers.values()) if t is not None)

    def _versions_now(self) -> tuple[int, ...]:
        """How often each tensor was written to."""
        return tuple(0 if t.is_inference() else t._version for t in self._own_tensors())

    def frozen(self, site: Site) -> Mapping[str, Tensor]:
        """The frozen parameters at a site, by name in its module. For a linear map, the weight is (out, in) and the
        bias (out), whatever the layout in the module. Offloaded weights are copied when they are accessed.
        """
        return self.weights.of_site(site)

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
