"""Rotating the inputs of a linear, so that a few large ones cost the others less when they are rounded.

Each group of neighbouring inputs is multiplied by a Hadamard matrix, and so are the columns of the weight: the product
stays what it was, because the matrix is orthogonal. What a large activation has above its neighbours is then spread
over all of the group, whose common scale can be finer; likewise in a weight (QuIP#, arXiv 2402.04396; QuaRot, arXiv
2404.00456, which rotate whole rows). A matrix as small as a group costs an addition and a subtraction for each pair of
numbers, six times, and needs nothing of the model to be changed.
"""

import functools

import torch

#: Inputs that are rotated together, as many as share a scale; a power of two.
ROTATED_INPUTS = 64


def can_rotate(in_features: int) -> bool:
    """Whether the inputs are whole groups."""
    return in_features % ROTATED_INPUTS == 0


def rotate(matrix: torch.Tensor) -> torch.Tensor:
    """Multiplies each group of columns by the symmetric Hadamard matrix over 8; a second time undoes it.

    On CPUs numbers are added up in the order of the native kernels, so that the same bits come out on all of them.

    Args:
        matrix: (rows, columns) of any float type, whole groups, in any layout.

    Returns:
        A new contiguous matrix of that shape: on a CPU in float32, elsewhere in the type of the given one.
    """
    if matrix.device.type != "cpu":
        hadamard = _hadamard(matrix.dtype, matrix.device)
        return (matrix.reshape(-1, ROTATED_INPUTS) @ hadamard).view(matrix.shape)
    source = matrix.float().contiguous().view(-1, ROTATED_INPUTS)
    result, other = torch.empty_like(source), torch.empty_like(source)
    width = ROTATED_INPUTS // 2
    while width:
        pairs, rotated = (groups.view(-1, 2, width) for groups in (source, result))
        torch.add(pairs[:, 0], pairs[:, 1], out=rotated[:, 0])
        torch.sub(pairs[:, 0], pairs[:, 1], out=rotated[:, 1])
        source, result, other = result, other, result
        width //= 2
    return source.view(matrix.shape).mul_(ROTATED_INPUTS**-0.5)


@functools.cache
def _hadamard(dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    return rotate(torch.eye(ROTATED_INPUTS)).to(device, dtype)
