"""The precisions: their names, and how many bytes a weight matrix takes in each."""

from dataclasses import dataclass

#: Group size where none is given.
DEFAULT_GROUP_SIZE = 64
#: Group sizes that can be asked for; 0 is one group per output channel.
GROUP_SIZES = (0, 32, 64, 128)


@dataclass(frozen=True)
class Scheme:
    """How weights are stored and what activations are rounded to.

    Attributes:
        name: As users write it.
        weight_bits: Bits of a stored weight.
        is_grouped: Whether scales belong to groups of input channels rather than to whole output channels.
        has_int8_activations: Whether activations are rounded to int8, per token, for an integer GEMM.
    """

    name: str
    weight_bits: int
    is_grouped: bool = False
    has_int8_activations: bool = False

    def weight_bytes(self, out_features: int, in_features: int, group_size: int) -> int:
        """Bytes of a stored (out_features, in_features) matrix with all its metadata.

        w16 has none; w8 and w8a8 a float32 scale per output channel; w4 and w3 a float16 scale and a one-byte
        zero point per group, and rows padded to whole bytes (w4: 2 weights in 1, w3: 8 weights in 3). w8a8 is what
        integer GEMMs want at most: both sides filled up to multiples of 64, and an int32 sum per output channel.
        """
        if self.name == "w16":
            return out_features * in_features * 2
        if self.has_int8_activations:
            padded_out, padded_in = (-(-size // 64) * 64 for size in (out_features, in_features))
            return padded_out * (padded_in + 4) + out_features * 4
        if not self.is_grouped:
            return out_features * (in_features + 4)
        num_groups = -(-in_features // (group_size or in_features))
        weights_per_unit, unit_bytes = (2, 1) if self.name == "w4" else (8, 3)
        row_bytes = -(-in_features // weights_per_unit) * unit_bytes
        return out_features * (row_bytes + num_groups * 3)


#: All precisions by name, from the most to the least exact.
SCHEMES = {
    scheme.name: scheme
    for scheme in (
        Scheme("w16", 16),
        Scheme("w8", 8),
        Scheme("w8a8", 8, has_int8_activations=True),
        Scheme("w4", 4, is_grouped=True),
        Scheme("w3", 3, is_grouped=True),
    )
}
