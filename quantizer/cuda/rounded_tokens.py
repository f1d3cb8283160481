"""Activations rounded to int8."""

import torch
import triton

from quantizer.cuda.kernels.tokens import round_token_groups, round_tokens
from quantizer.cuda.launch_context import current_device, dense_rows

#: Elements that a program takes at a time.
_BLOCK = 1024


def rounded_tokens(
    x: torch.Tensor, code_stride: int, group_size: int, *, num_code_rows: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rounds each row of x (M, K) to int8, each group of columns by itself, as `quantizer.rounding.round_rows` does.

    Args:
        x: float16 or bfloat16.
        code_stride: Columns of the result, at least K.
        group_size: Neighbouring columns that share a scale, a power of two; 0 is all of them.
        num_code_rows: Rows of the result, M by default.

    Returns:
        int8 (num_code_rows, code_stride) codes with zeros at the end of each row and anything in rows after the first
        M, and float32 (groups, M) scales.
    """
    x = dense_rows(x)
    num_rows, num_columns = x.shape
    num_groups = triton.cdiv(num_columns, group_size or num_columns)
    codes = torch.empty(num_code_rows or num_rows, code_stride, dtype=torch.int8, device=x.device)
    scales = torch.empty(num_groups, num_rows, dtype=torch.float32, device=x.device)
    if not num_rows:
        return codes, scales
    with current_device(x.device):
        if not group_size:
            round_tokens[num_rows,](x, codes, scales, x.stride(0), num_columns, code_stride, block=_BLOCK)
        else:
            block_groups = _BLOCK // group_size
            round_token_groups[num_rows, triton.cdiv(num_groups, block_groups)](
                x,
                codes,
                scales,
                x.stride(0),
                num_columns,
                code_stride,
                num_groups,
                group_size=group_size,
                block_groups=block_groups,
            )
    return codes, scales
