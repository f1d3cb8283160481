"""The dimensions of a model, and where its files are."""

import hashlib
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from llmpq.errors import InvalidInputError, NotFoundError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

#: Families that stage servers can run, by `model_type`.
KNOWN_FAMILIES = ("llama", "opt")


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

    @property
    def kv_size(self) -> int:
        """Elements of the keys of one token in one layer; the values have as many."""
        return self.num_kv_heads * self.head_dim

    @property
    def linear_shapes(self) -> tuple[tuple[int, int], ...]:
        """(out, in) of each weight matrix of a decoder layer: q, k, v, o and the feed-forward ones."""
        queries = self.num_heads * self.head_dim
        ffn_in = ((self.intermediate_size, self.hidden_size),) * (2 if self.gated_ffn else 1)
        return (
            (queries, self.hidden_size),
            (self.kv_size, self.hidden_size),
            (self.kv_size, self.hidden_size),
            (self.hidden_size, queries),
            *ffn_in,
            (self.hidden_size, self.intermediate_size),
        )


@dataclass(frozen=True)
class ModelFiles:
    """A model on disk: a directory with `config.json`, or a single GGUF file."""

    directory: Path
    gguf: str | None  # file name inside `directory`

    @classmethod
    def locate(cls, model: str) -> "ModelFiles":
        """Finds a model by the string that a user gave.

        Raises:
            NotFoundError: There is neither a directory with a `config.json` nor a .gguf file.
        """
        path = Path(model)
        with suppress(OSError, ValueError):  # a name that no file can have
            if path.is_file() and path.suffix == ".gguf":
                return cls(path.parent, path.name)
            if (path / "config.json").is_file():
                return cls(path, None)
        raise NotFoundError(
            f"No model at '{model}': expected a directory with config.json and *.safetensors, or a .gguf file.",
            reason="MODEL_NOT_FOUND",
            subject=model,
        )

    @property
    def fingerprint(self) -> str:
        """Changes when the files do: a digest of their names, sizes and modification times."""
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


def read_config(model: str) -> "PretrainedConfig":
    """Reads a model's configuration.

    Raises:
        NotFoundError: No such model.
        InvalidInputError: Damaged files, or a family that no stage server can run; the message lists those that can be.
    """
    files = ModelFiles.locate(model)
    return _read_config(model, files, files.fingerprint)


@lru_cache(maxsize=4)
def _read_config(model: str, files: ModelFiles, fingerprint: str) -> "PretrainedConfig":  # noqa: ARG001 keys the cache
    """Reading the configuration of a GGUF file parses its whole vocabulary, which takes seconds."""
    from transformers import AutoConfig  # noqa: PLC0415 takes a second, and most processes never need it

    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(**files.from_pretrained)
    except Exception as error:  # a damaged file makes the parsers below raise anything
        why = f"{type(error).__name__}: {error}".splitlines()[0]
        raise _unknown_family(model, f"its configuration cannot be read ({why})") from error
    if config.model_type not in KNOWN_FAMILIES:
        raise _unknown_family(model, f"its family is '{config.model_type}'")
    return config


def read_shape(model: str) -> ModelShape:
    """Reads a model's dimensions; raises as `read_config`, also for dimensions that no model can have."""
    shape = shape_of(read_config(model))
    counts = {
        field: value for field, value in asdict(shape).items() if type(value) is int and field != "learned_positions"
    }
    absurd = [field for field, value in counts.items() if value < 1]
    if absurd or shape.num_heads % shape.num_kv_heads or shape.hidden_size % shape.num_heads:
        wrong = f"{absurd[0]} is {counts[absurd[0]]}" if absurd else "hidden size and numbers of heads do not divide"
        raise InvalidInputError(f"The configuration of the model at '{model}' is wrong: {wrong}.", subject="model")
    return shape


def shape_of(config: "PretrainedConfig") -> ModelShape:
    """The dimensions that a configuration describes; optimum evens out the families' names for them."""
    from optimum.utils import NormalizedConfigManager  # noqa: PLC0415 see read_config

    normalized = NormalizedConfigManager.get_normalized_config_class(config.model_type)(config)
    num_heads = normalized.num_attention_heads
    hidden_size = normalized.hidden_size
    is_opt = config.model_type == "opt"
    return ModelShape(
        family=config.model_type,
        num_layers=normalized.num_layers,
        hidden_size=hidden_size,
        intermediate_size=config.ffn_dim if is_opt else config.intermediate_size,
        num_heads=num_heads,
        num_kv_heads=getattr(config, "num_key_value_heads", None) or num_heads,
        head_dim=getattr(config, "head_dim", None) or hidden_size // num_heads,
        vocab_size=normalized.vocab_size,
        max_positions=config.max_position_embeddings,
        gated_ffn=not is_opt,
        tied_embeddings=bool(config.tie_word_embeddings),
        learned_positions=config.max_position_embeddings + 2 if is_opt else 0,
    )


def _unknown_family(model: str, why: str) -> InvalidInputError:
    known = ", ".join(KNOWN_FAMILIES)
    return InvalidInputError(
        f"Cannot run the model at '{model}': {why}. Known families: {known}.",
        reason="UNKNOWN_FAMILY",
        subject="model",
    )
