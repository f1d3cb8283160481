"""The dimensions of a model, and where its files are."""

import hashlib
import json
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmpq.errors import InvalidInputError, NotFoundError
from llmpq.families import KNOWN_FAMILIES, linear_names, traits_of
from llmpq.hub import HubModel, fetch_small_files
from llmpq.made_once import made_once
from llmpq.model_config import ModelConfig, plain_config

if TYPE_CHECKING:
    from transformers import PretrainedConfig

#: Has the text model that is served inside it.
_WITH_VISION = "gemma3"
_AT_LEAST_ONE = (
    "num_layers",
    "hidden_size",
    "intermediate_size",
    "num_heads",
    "num_kv_heads",
    "head_dim",
    "vocab_size",
    "max_positions",
)


@dataclass(frozen=True)
class ModelShape:
    """Mirror of the message `ModelShape`; see there for each field."""

    family: str
    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_positions: int
    gated_ffn: bool
    tied_embeddings: bool
    learned_positions: int = 0
    num_norm_elements: int = 0
    num_bias_elements: int = 0
    num_embedding_norm_elements: int = 0
    num_head_norm_elements: int = 0
    projected_embedding_size: int = 0
    has_scattered_groups: bool = False

    @property
    def kv_size(self) -> int:
        """Elements of the keys of one token in one layer; the values have as many."""
        return self.num_kv_heads * self.head_dim

    @property
    def embedding_size(self) -> int:
        """Width of the embedding and of the head."""
        return self.projected_embedding_size or self.hidden_size

    @property
    def stacked_rows(self) -> dict[str, tuple[int, ...]]:
        """Rows of the weight matrices of a layer, by role: those that read the same input are stacked into one."""
        return {
            "qkv": (self.num_heads * self.head_dim, self.kv_size, self.kv_size),
            "attention_out": (self.hidden_size,),
            "ffn_in": (self.intermediate_size,) * (2 if self.gated_ffn else 1),
            "ffn_out": (self.hidden_size,),
        }

    @property
    def linear_shapes(self) -> dict[str, tuple[int, int]]:
        """(out, in) of each stacked weight matrix of a decoder layer, by role."""
        columns = {"attention_out": self.num_heads * self.head_dim, "ffn_out": self.intermediate_size}
        return {role: (sum(rows), columns.get(role, self.hidden_size)) for role, rows in self.stacked_rows.items()}


@dataclass(frozen=True)
class ModelFiles:
    """Where the files of a model are.

    Attributes:
        directory: With `config.json`, or with the GGUF file.
        gguf: Name of the GGUF file.
        hub: The model and its commit on the Hub, whose weights may not be in the directory yet.
    """

    directory: Path
    gguf: str | None = None
    hub: HubModel | None = None

    @classmethod
    def locate(cls, model: str) -> "ModelFiles":
        """Finds a model by the string that a user gave; may fetch the small files of one on the Hub, which takes time.

        Raises:
            NotFoundError: There is neither a directory with a `config.json`, nor a .gguf file, nor a model on the Hub.
            UnavailableError: It may be on the Hub, which cannot be reached.
        """
        path = Path(model)
        with suppress(OSError, ValueError):  # a name that no file can have
            if path.is_file() and path.suffix == ".gguf":
                return cls(path.parent, path.name)
            if (path / "config.json").is_file():
                return cls(path)
        hub = HubModel.parse(model)
        if hub is not None and not path.exists():
            directory = fetch_small_files(hub)
            if (directory / "config.json").is_file():
                return cls(directory, hub=HubModel(hub.repo, directory.name))
        raise NotFoundError(
            f"No model at '{model}': expected a directory with config.json and *.safetensors, a .gguf file, or "
            "org/name[@revision] of such a directory on the Hugging Face Hub.",
            reason="MODEL_NOT_FOUND",
            subject=model,
        )

    @property
    def fingerprint(self) -> str:
        """Changes when the files do: a digest of the commit, or of their names, sizes and modification times."""
        if self.hub:
            return hashlib.sha256(str(self.hub).encode()).hexdigest()
        if self.gguf:
            paths = [self.directory / self.gguf]
        else:
            patterns = ("*.json", "*.safetensors", "*.model", "*.jinja", "merges.txt")
            paths = sorted(path for pattern in patterns for path in self.directory.glob(pattern))
        stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
        return hashlib.sha256(repr(stats).encode()).hexdigest()

    @property
    def from_pretrained(self) -> dict[str, str]:
        """Keyword arguments that make any transformers `from_pretrained` read these files."""
        source = {"pretrained_model_name_or_path": str(self.directory)}
        return source | ({"gguf_file": self.gguf} if self.gguf else {})


def pinned(model: str) -> str:
    """The name of a model that means the same files for as long as they exist: on the Hub, with its commit.

    Raises:
        NotFoundError, UnavailableError: As ModelFiles.locate.
    """
    hub = ModelFiles.locate(model).hub
    return str(hub) if hub else model


def read_config(model: str) -> ModelConfig:
    """Reads a model's configuration, without transformers if this host has read it before.

    Raises:
        NotFoundError: No such model.
        InvalidInputError: Damaged files, a configuration that transformers refuses, or a family that no stage server
            can run; the message lists those that can be.
    """
    files = ModelFiles.locate(model)
    return _read_config(model, files, files.fingerprint)


@lru_cache(maxsize=4)
def _read_config(model: str, files: ModelFiles, fingerprint: str) -> ModelConfig:
    """Kept, because stages and coordinator ask several times for one load."""
    kept = made_once("configurations", fingerprint, lambda: _plain_config(model, files))
    return ModelConfig(kept["fields"], kept["aliases"], ModelShape(**kept["shape"]))


def _plain_config(model: str, files: ModelFiles) -> dict[str, Any]:
    from transformers import AutoConfig  # noqa: PLC0415 takes seconds, and most processes never need it

    try:
        if not files.gguf:
            _check_family(model, files.directory / "config.json")
        config: PretrainedConfig = (
            _gguf_config(files) if files.gguf else AutoConfig.from_pretrained(str(files.directory))
        )
        config = config.text_config if config.model_type == _WITH_VISION else config
        return plain_config(config, shape_of(config))
    except InvalidInputError:
        raise
    except Exception as error:  # a damaged file makes the parsers below raise anything
        raise _wrong_configuration(model, " ".join(f"{type(error).__name__}: {error}".split())) from error


def _check_family(model: str, path: Path) -> None:
    """Refuses a `config.json` that is none, or of another family than KNOWN_FAMILIES: transformers may not know it."""
    try:
        fields = json.loads(path.read_bytes())
    except ValueError as error:
        message = f"File '{path}' is damaged: {error}."
        raise InvalidInputError(message, reason="DAMAGED_FILE", subject=str(path)) from error
    if not isinstance(fields, dict):
        raise _wrong_configuration(model, "it is no JSON object")
    if fields.get("model_type") not in (*KNOWN_FAMILIES, _WITH_VISION):
        raise InvalidInputError(
            f"Cannot run the model at '{model}': its family is '{fields.get('model_type')}'. Known families: "
            f"{', '.join(KNOWN_FAMILIES)}.",
            reason="UNKNOWN_FAMILY",
            subject="model",
        )
    if not isinstance(fields.get("quantization_config") or {}, dict):
        raise _wrong_configuration(model, "its quantization_config is no JSON object")


def _gguf_config(files: ModelFiles) -> "PretrainedConfig":
    from llmpq.gguf_config import config_of  # noqa: PLC0415 as above
    from llmpq.gguf_file import GgufFile  # noqa: PLC0415 as above

    return config_of(GgufFile(files.directory / str(files.gguf)))


def read_shape(model: str) -> ModelShape:
    """Reads a model's dimensions; raises as `read_config`, also for dimensions that no model can have."""
    shape = read_config(model).shape
    absurd = [f"{field} is {getattr(shape, field)}" for field in _AT_LEAST_ONE if getattr(shape, field) < 1]
    if not absurd and shape.num_heads % shape.num_kv_heads:
        absurd = [f"{shape.num_kv_heads} key/value heads do not divide {shape.num_heads} heads"]
    if absurd:
        raise _wrong_configuration(model, absurd[0])
    return shape


def shape_of(config: "PretrainedConfig") -> ModelShape:
    """The dimensions that a configuration of one of KNOWN_FAMILIES describes."""
    traits = traits_of(config)
    normalized = _normalized(config)
    hidden_size, num_heads = normalized.hidden_size, normalized.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or hidden_size // num_heads
    norm = traits.vectors_per_norm * hidden_size
    shape = ModelShape(
        family=config.model_type,
        num_layers=normalized.num_layers,
        hidden_size=hidden_size,
        intermediate_size=traits.intermediate_size,
        num_heads=num_heads,
        num_kv_heads=getattr(config, "num_key_value_heads", None) or num_heads,
        head_dim=head_dim,
        vocab_size=normalized.vocab_size,
        max_positions=traits.max_positions,
        gated_ffn=traits.is_gated,
        tied_embeddings=bool(config.tie_word_embeddings),
        learned_positions=traits.learned_positions,
        num_norm_elements=traits.num_norms * norm + (2 * head_dim if traits.has_head_norms else 0),
        num_embedding_norm_elements=norm if traits.has_embedding_norm else 0,
        num_head_norm_elements=norm if traits.has_final_norm else 0,
        projected_embedding_size=traits.projected_embedding_size,
    )
    num_biases = sum(shape.linear_shapes[role][0] for role in traits.biased)
    return replace(
        shape, num_bias_elements=num_biases, has_scattered_groups=_has_scattered_groups(config, shape.num_layers)
    )


def _has_scattered_groups(config: "PretrainedConfig", num_layers: int) -> bool:
    from llmpq.formats import quantization_of  # noqa: PLC0415 formats know plans, and plans know shapes

    quantization = quantization_of(config)
    if quantization is None:
        return False
    names = linear_names(config.model_type)
    stored = (quantization.of(names.layer.format(index) + names.all[0]) for index in range(num_layers))
    return any(linear is not None and linear.is_scattered for linear in stored)


def _normalized(config: "PretrainedConfig") -> Any:
    """The configuration under one set of names; optimum evens them out for the families that it knows."""
    from optimum.utils import NormalizedConfigManager, NormalizedTextConfig  # noqa: PLC0415 see read_config

    try:
        return NormalizedConfigManager.get_normalized_config_class(config.model_type)(config)
    except KeyError:
        return NormalizedTextConfig(config)


def _wrong_configuration(model: str, why: str) -> InvalidInputError:
    message = f"The configuration of the model at '{model}' is wrong: {why.rstrip('.')}."
    return InvalidInputError(message, reason="BAD_CONFIGURATION", subject="model")
