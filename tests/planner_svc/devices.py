"""Devices with known latency laws, and two models."""

from collections.abc import Callable

from llmpq.device import DeviceDescription, DeviceProfile, LatencyPoint, ModelPart, Phase
from llmpq.model import ModelShape

#: Seconds of one layer: (scheme, phase, sequences, new tokens, past tokens).
LayerLaw = Callable[[str, Phase, int, int, int], float]

#: Relative speed of the schemes of `affine_law`.
SCHEME_FACTORS = {"w16": 1.0, "w8": 1.1, "w8a8": 0.5, "w4": 1.3, "w3": 1.5}

SMOLLM2 = ModelShape(
    family="llama",
    num_layers=30,
    hidden_size=576,
    intermediate_size=1536,
    num_heads=9,
    num_kv_heads=3,
    head_dim=64,
    vocab_size=49152,
    max_positions=8192,
    gated_ffn=True,
    tied_embeddings=True,
    num_norm_elements=2 * 576,
    num_head_norm_elements=576,
)

TINY = ModelShape(
    family="llama",
    num_layers=6,
    hidden_size=64,
    intermediate_size=128,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    vocab_size=256,
    max_positions=512,
    gated_ffn=True,
    tied_embeddings=True,
    num_norm_elements=2 * 64,
    num_head_norm_elements=64,
)


def affine_law(slowdown: float = 1.0) -> LayerLaw:
    """A law that the latency models can represent exactly."""

    def seconds(scheme: str, phase: Phase, sequences: int, tokens: int, past: int) -> float:
        rows = sequences * tokens
        fixed, per_row = (1e-3, 2e-5) if phase is Phase.PREFILL else (5e-4, 5e-5)
        return slowdown * SCHEME_FACTORS[scheme] * (fixed + per_row * rows + 1e-9 * rows * (past + tokens))

    return seconds


def device(
    device_id: str,
    law: LayerLaw,
    *,
    memory_bytes: int = 10**9,
    schemes: tuple[str, ...] = ("w16", "w8", "w8a8", "w4", "w3"),
    outside_slowdown: float = 1.0,
    link_latency_ns: int = 100_000,
) -> DeviceProfile:
    """A device that measured `law` on a small grid."""
    points = [
        LatencyPoint(ModelPart.LAYER, scheme, phase, b, n, past, round(law(scheme, phase, b, n, past) * 1e9))
        for scheme in schemes
        for phase, grid in _GRIDS.items()
        for b, n, past in grid
    ]
    points += [
        LatencyPoint(ModelPart.EMBEDDING, "", Phase.PREFILL, 1, n, 0, round((10_000 + 100 * n) * outside_slowdown))
        for n in (32, 256)
    ]
    points += [
        LatencyPoint(ModelPart.HEAD, "", Phase.DECODE, b, 1, 0, round((300_000 + 40_000 * b) * outside_slowdown))
        for b in (1, 4, 16)
    ]
    description = DeviceDescription("cpu", "test", "avx512", 1, 2 * memory_bytes, memory_bytes, schemes, 4)
    return DeviceProfile(device_id, description, tuple(points), link_latency_ns, 10**9)


_GRIDS = {
    Phase.PREFILL: ((1, 32, 0), (1, 64, 0), (4, 16, 0), (1, 128, 0), (1, 256, 0), (4, 64, 0)),
    Phase.DECODE: ((1, 1, 64), (1, 1, 256), (4, 1, 64), (16, 1, 64), (16, 1, 256)),
}
