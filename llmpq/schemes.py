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
        has_int8_activations: Whether activations are rounded to int8 for an integer product, on every device.
    """

    name: str
    weight_bits: int
    is_grouped: bool = False
    has_int8_activations: bool = False

    def weight_bytes(self, out_features: int, in_features: int, group_size: int) -> int:
        """Bytes of a stored (out_features, in_features) matrix with all its metadata.

        w16 has none; w8 and w8a8 a float32 scale per output channel; w4 and w3 a float16 scale and a one-byte zero
        point per group. Sides are counted as filled up to what kernels want at most: 16 outputs and 16 (w8) or 32 (w4,
        w3) inputs, and for w8a8, as oneDNN has it, 64 and 64 with an int32 sum per output channel.
        """
        if self.name == "w16":
            return out_features * in_features * 2
        if self.has_int8_activations:
            padded_out = _filled_up(out_features, 64)
            return padded_out * (_filled_up(in_features, 64) + 4 + 4)
        if not self.is_grouped:
            return _filled_up(out_features, 16) * _filled_up(in_features, 16) + out_features * 4
        padded_out, padded_in = _filled_up(out_features, 16), _filled_up(in_features, 32)
        num_groups = -(-padded_in // (group_size or padded_in))
        return padded_out * (padded_in * self.weight_bits // 8 + num_groups * 3)


def _filled_up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


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
