// Activations, rounded to int8 per row and group of neighbouring inputs, in the order in which the kernels read them.
#pragma once

#include "vectors.h"

constexpr long kMaxGroup = 128;

// Rows that a kernel multiplies at a time: as many as leave their sums in registers.
constexpr int kMaxRows = kLanes == 16 ? 6 : 4;

struct Activations {
  int8_t *codes;   // (rows, padded_inputs) in runs of rows; in a run of r rows, four inputs of each row alternate
  float *scales;   // (rows, num_groups), runs as (num_groups, r); an activation stands for code * scale
  int32_t *sums;   // likewise, of the codes
  long num_inputs, padded_inputs, group_size, num_groups;
};

constexpr int largest_power_below(int limit) {
  int power = 1;
  while (power * 2 < limit) power *= 2;
  return power;
}

// Rows of the run that begins at `row`: kMaxRows while there are so many, then powers of two.
INLINE int run_size(long row, long num_rows) {
  const long in_block = kMaxRows - row % kMaxRows, left = num_rows - row < in_block ? num_rows - row : in_block;
  return left == kMaxRows ? kMaxRows : largest_power_below((int)left + 1);
}

// Rounds one group. NaN and infinity make the scale NaN or infinite, so they are not lost.
static void round_group(const float *x, long size, int8_t *codes, float *scale, int32_t *sum) {
  int32_t largest_bits = 0;  // of a magnitude: bits are ordered as the floats are, with NaN above all
  for (long k = 0; k < size; k++) {
    const int32_t bits = load<int32_t>(x + k) & 0x7fffffff;
    largest_bits = bits > largest_bits ? bits : largest_bits;
  }
  const float largest = load<float>(&largest_bits);
  const bool is_zero = largest < 0x1p-100f;  // or so small that its inverse overflows
  const float inverse = is_zero ? 0 : 127 / largest;
  *scale = is_zero ? 0 : largest / 127;
  int32_t total = 0;
  for (long k = 0; k < size; k++) {
    const int32_t code = (int32_t)__builtin_rintf(x[k] * inverse);
    codes[k] = (int8_t)code;
    total += code;
  }
  *sum = total;
}

// Rounds the run of num_rows rows of x (rows, num_inputs) that begins at row `first`.
static void round_run(const Activations &activations, const float *x, long first, int num_rows) {
  const long group_size = activations.group_size, num_groups = activations.num_groups;
  int8_t *codes = activations.codes + first * activations.padded_inputs;
  for (int row = 0; row < num_rows; row++) {
    const float *from = x + (first + row) * activations.num_inputs;
    for (long group = 0; group < num_groups; group++) {
      const long begin = group * group_size, left = activations.num_inputs - begin;
      const long end = begin + group_size < activations.padded_inputs ? begin + group_size : activations.padded_inputs;
      const long entry = first * num_groups + group * num_rows + row;
      int8_t rounded[kMaxGroup] = {};  // zero beyond the last input
      round_group(from + begin, left < group_size ? left : group_size, rounded, activations.scales + entry,
                  activations.sums + entry);
      for (long k = begin; k < end; k += 4) memcpy(codes + k * num_rows + row * 4, rounded + k - begin, 4);
    }
  }
}
