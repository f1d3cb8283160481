// Activations, rounded to int8 per row and group of neighbouring inputs, in the order in which the kernels read them.
#pragma once

#include "rotation.h"

constexpr long kMaxGroup = 128;

// Rows that a kernel multiplies at a time: as many as leave their sums in registers.
constexpr int kMaxRows = kLanes == 16 ? 6 : 4;

struct Activations {
  int8_t *codes;           // (rows, padded_inputs), by runs of rows; in a run, four inputs of each row alternate
  float *scales;           // (rows, num_groups), a run of r rows as (num_groups, r); code * scale is an activation
  int32_t *negative_sums;  // likewise; minus the sum of a group's codes
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

// Rounds a group of whole blocks. Each four codes are followed by the same four of other rows: `stride` ints apart. NaN
// and infinity make the scale NaN or infinite, so they are not lost.
static void round_group(const float *x, long size, int32_t *codes, long stride, float *scale, int32_t *negative_sum) {
  Ints largest_bits{};  // of magnitudes, whose bits are ordered as they are, with NaN above all
  for (long k = 0; k < size; k += kLanes) {
    const Ints bits = load<Ints>(x + k) & 0x7fffffff;
    largest_bits = bits > largest_bits ? bits : largest_bits;
  }
  const int32_t bits = largest(largest_bits);
  const float magnitude = load<float>(&bits);
  const bool is_zero = magnitude < 0x1p-100f;  // or so small that the inverse overflows
  const Floats inverse = broadcast(is_zero ? 0 : 127 / magnitude);
  *scale = is_zero ? 0 : magnitude / 127;
  Ints sums{};
  for (long k = 0; k < size; k += kLanes) {
    const Ints rounded_values = rounded(load<Floats>(x + k) * inverse);
    sums += rounded_values;
    int32_t fours[kLanes / 4];
    narrow(rounded_values, fours);
    for (int i = 0; i < kLanes / 4; i++) codes[(k / 4 + i) * stride] = fours[i];
  }
  *negative_sum = -sum(sums);
}

// Rounds the run of num_rows rows of x (rows, num_inputs) that begins at row `first`; rotated groups are whole.
static void round_run(const Activations &activations, const float *x, long first, int num_rows, bool rotates) {
  const long group_size = activations.group_size, num_groups = activations.num_groups;
  int32_t *codes = (int32_t *)(activations.codes + first * activations.padded_inputs);
  for (int row = 0; row < num_rows; row++) {
    const float *inputs = x + (first + row) * activations.num_inputs;
    for (long group = 0; group < num_groups; group++) {
      const long begin = group * group_size, left = activations.padded_inputs - begin;
      const long size = group_size < left ? group_size : left, present = activations.num_inputs - begin;
      float filled_up[kMaxGroup], rotated_inputs[kRotatedInputs];
      const float *from = inputs + begin;
      if (rotates) {
        rotate(from, rotated_inputs);
        from = rotated_inputs;
      } else if (present < size) {
        memset(filled_up, 0, sizeof filled_up);
        from = (float *)memcpy(filled_up, from, present * sizeof(float));
      }
      const long entry = first * num_groups + group * num_rows + row;
      round_group(from, size, codes + begin / 4 * num_rows + row, num_rows, activations.scales + entry,
                  activations.negative_sums + entry);
    }
  }
}
