"""The catalog: what comes with the planner, and what users add in files of the same form."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import yaml
from pydantic import ConfigDict

from llmpq.device import DeviceProfile
from llmpq.errors import InvalidInputError, NotFoundError
from llmpq.messages import from_fields
from llmpq.model import ModelShape
from llmpq.plan import LengthBucket
from planner_svc.catalog.clusters import ClusterSheet
from planner_svc.catalog.devices import DeviceSheet
from planner_svc.catalog.kernels import KernelSet
from planner_svc.catalog.lengths import LengthsSheet
from planner_svc.catalog.models import ModelSheet
from planner_svc.catalog.profiles import VirtualDevice, virtual_profiles

T = TypeVar("T")

_HERE = Path(__file__).parent
_BUILT_IN = tuple(_HERE / f"{name}.yaml" for name in ("models", "devices", "kernels", "clusters", "lengths"))

#: Kernels where none are named.
DEFAULT_KERNELS = "modern"


@dataclass(frozen=True)
class Catalog:
    """Models, devices, kernel sets, clusters and distributions of lengths by name."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    models: Mapping[str, ModelSheet] = field(default_factory=dict)
    devices: Mapping[str, DeviceSheet] = field(default_factory=dict)
    kernels: Mapping[str, KernelSet] = field(default_factory=dict)
    clusters: Mapping[str, ClusterSheet] = field(default_factory=dict)
    lengths: Mapping[str, LengthsSheet] = field(default_factory=dict)

    def shape(self, model: str) -> ModelShape:
        """The dimensions of a model.

        Raises:
            NotFoundError: There is none of that name.
        """
        return _find(self.models, model, "model").shape

    def cluster(self, name: str) -> ClusterSheet:
        """A cluster.

        Raises:
            NotFoundError: There is none of that name.
        """
        return _find(self.clusters, name, "cluster")

    def requests(self, name: str, num_requests: int, max_tokens: int) -> tuple[LengthBucket, ...]:
        """So many requests of a distribution of lengths, none longer than `max_tokens` with its answer.

        Raises:
            NotFoundError: There is none of that name.
            InvalidInputError: All its requests are longer.
        """
        return _find(self.lengths, name, "distribution of lengths").sample(num_requests, max_tokens)

    def device(self, name: str, kernels: str = DEFAULT_KERNELS) -> VirtualDevice:
        """A device with the rates of a kernel set.

        Raises:
            NotFoundError: There is no such device or kernel set, or the set has no figures for the device.
        """
        kernel_set = _find(self.kernels, kernels, "kernel set")
        sheet = _find(self.devices, name, "device")
        if name not in kernel_set.devices:
            known = ", ".join(kernel_set.devices)
            message = f"The kernel set '{kernels}' has no figures for device '{name}'; it has for: {known}."
            raise NotFoundError(message, reason="NO_KERNELS", subject=name)
        return VirtualDevice.of(name, sheet, kernel_set)

    def profiles(
        self, cluster: ClusterSheet, shape: ModelShape, group_size: int, kernels: str = DEFAULT_KERNELS
    ) -> tuple[DeviceProfile, ...]:
        """The profiles of a cluster's devices for a model: simulated, and named so.

        Raises:
            NotFoundError: As `device`.
        """
        names = dict.fromkeys(place.name for place in cluster.devices)
        return virtual_profiles(cluster, [self.device(name, kernels) for name in names], shape, group_size)


def read_catalog(documents: Iterable[str] = ()) -> Catalog:
    """What comes with the planner and, on top of it, what YAML documents have; they replace entries of the same name.

    Raises:
        InvalidInputError: Not YAML, or not of the form of the built-in files; names the field.
    """
    return _read((*(path.read_text(encoding="utf-8") for path in _BUILT_IN), *documents))


def read_cluster(document: str) -> ClusterSheet:
    """A cluster in a document of its own: what stands under a name in `clusters.yaml`; raises as `read_catalog`."""
    return _parsed(ClusterSheet, document, "cluster document")


@lru_cache(maxsize=4)
def _read(documents: tuple[str, ...]) -> Catalog:
    parts = [_parsed(Catalog, document, "catalog document") for document in documents]
    merged: dict[str, dict[str, Any]] = {part.name: {} for part in fields(Catalog)}
    for part in parts:
        for name, entries in merged.items():
            entries.update(getattr(part, name))
    return Catalog(**merged)


def _parsed(cls: type[T], document: str, what: str) -> T:
    try:
        found = yaml.safe_load(document)
    except yaml.YAMLError as error:
        why = " ".join(str(error).split())
        raise InvalidInputError(f"The {what} is not YAML: {why}.", subject=what) from error
    if not isinstance(found, dict):
        raise InvalidInputError(f"The {what} has no keys and values.", subject=what)
    try:
        return from_fields(cls, found)
    except InvalidInputError as error:
        raise InvalidInputError(f"The {what} is wrong: {error.message}.", subject=what) from error


def _find(entries: Mapping[str, T], name: str, what: str) -> T:
    if name in entries:
        return entries[name]
    close = get_close_matches(name, entries, n=3)
    hint = f"did you mean {' or '.join(close)}?" if close else f"there are: {', '.join(entries)}."
    raise NotFoundError(
        f"There is no {what} '{name}'; {hint}", reason=f"UNKNOWN_{what.upper().replace(' ', '_')}", subject=name
    )
