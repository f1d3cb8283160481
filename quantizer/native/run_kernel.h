// The innermost product: some rows times some outputs over a part of the inputs.
#pragma once

#include "activations.h"
#include "exact_dot.h"
#include "packed.h"

constexpr int kVectors = 2;  // of outputs that are multiplied at a time
constexpr int kColumns = kVectors * kLanes;

// kColumns outputs over a part of the inputs.
struct Weights {
  const uint8_t *codes[kVectors];
  const void *scales[kVectors];
  const uint8_t *zeros[kVectors];
  long group_stride;  // from the scales and zero points of a group to those of the next
  const float *bias;
};

// A run of rows over the same part of the inputs.
struct Run {
  const int32_t *codes;
  const float *scales;
  const int32_t *negative_sums;
  long num_blocks, group_blocks;
  bool is_first, is_last;  // of the parts: totals begin there, and are y there
  // Codes so many bytes behind these are to come from memory while groups that begin from the first block on, and before
  // the last, are multiplied: each run of rows has a share of them.
  long ahead, first_ahead, last_ahead;
};

// Adds the products of kRows rows to totals (kRows, kColumns).
//
// Weights with zero points have codes below 16 and a scale per group; others are symmetric with a scale per output.
template <int kBits, bool kHasZeros, int kRows>
static __attribute__((noinline)) void multiply_run(const Weights &weights, const Run &run, float *totals, float *y,
                                                   long y_stride) {
  Floats sums_of_groups[kRows][kVectors];
  for (int row = 0; row < kRows; row++)
    for (int v = 0; v < kVectors; v++)
      sums_of_groups[row][v] = run.is_first ? Floats{} : load<Floats>(totals + row * kColumns + v * kLanes);

  long block = 0;
  for (long group = 0; block < run.num_blocks; group++) {
    // Each sum begins with what the zero points take off.
    Ints sums[kRows][kVectors];
    for (int v = 0; v < kVectors; v++) {
      const Ints zeros = kHasZeros ? widen(weights.zeros[v] + group * weights.group_stride) : Ints{};
      for (int row = 0; row < kRows; row++) {
        const Ints negative_sum = broadcast(run.negative_sums[group * kRows + row]);  // fits 16 bits
        sums[row][v] = kHasZeros ? multiply_pairs(zeros, negative_sum) : negative_sum * kWideZero;
      }
    }
    const long end_block = smaller(block + run.group_blocks, run.num_blocks);
    if (block >= run.first_ahead && block < run.last_ahead)
      for (int v = 0; v < kVectors; v += kTileOutputs / kLanes)
        for (long at = block * block_bytes(kBits); at < end_block * block_bytes(kBits); at += 64)
          __builtin_prefetch(weights.codes[v] + run.ahead + at);
    for (; block < end_block; block++) {
      const int32_t *activations = run.codes + block * kSteps * kRows;
      Ints partial_sums[kRows][kVectors];
      for (int row = 0; row < kRows; row++)
        for (int v = 0; v < kVectors; v++) partial_sums[row][v] = begin<kHasZeros>(sums[row][v]);
#pragma GCC unroll 8
      for (int step = 0; step < kSteps; step++) {
        Operand<kHasZeros> operands[kVectors];
        for (int v = 0; v < kVectors; v++)
          operands[v] = prepare<kHasZeros>(unpack<kBits>(weights.codes[v] + block * block_bytes(kBits), step));
#pragma GCC unroll 8
        for (int row = 0; row < kRows; row++) {
          const Ints activation = broadcast(activations[step * kRows + row]);
          for (int v = 0; v < kVectors; v++)
            partial_sums[row][v] = dot<kHasZeros>(partial_sums[row][v], operands[v], activation);
        }
      }
      for (int row = 0; row < kRows; row++)
        for (int v = 0; v < kVectors; v++) sums[row][v] = end<kHasZeros>(sums[row][v], partial_sums[row][v]);
    }
    for (int v = 0; v < kVectors; v++) {
      const Floats scales =
          kHasZeros ? from_halves((const uint16_t *)weights.scales[v] + group * weights.group_stride) : Floats{};
      for (int row = 0; row < kRows; row++) {
        const Floats products = __builtin_convertvector(sums[row][v], Floats);
        sums_of_groups[row][v] = multiply_add(kHasZeros ? products * scales : products,
                                              broadcast(run.scales[group * kRows + row]), sums_of_groups[row][v]);
      }
    }
  }

  for (int v = 0; v < kVectors; v++) {
    const Floats scales = kHasZeros ? Floats{} : load<Floats>(weights.scales[v]);
    const Floats bias = weights.bias ? load<Floats>(weights.bias + v * kLanes) : Floats{};
    for (int row = 0; row < kRows; row++) {
      const Floats total = sums_of_groups[row][v];
      if (run.is_last) store(y + row * y_stride + v * kLanes, (kHasZeros ? total : total * scales) + bias);
      else store(totals + row * kColumns + v * kLanes, total);
    }
  }
}

// The same for a number of rows that is known only now.
template <int kBits, bool kHasZeros, int kRows = kMaxRows>
static void multiply_run(int num_rows, const Weights &weights, const Run &run, float *totals, float *y, long y_stride) {
  if (num_rows == kRows) return multiply_run<kBits, kHasZeros, kRows>(weights, run, totals, y, y_stride);
  if constexpr (kRows > 1)
    multiply_run<kBits, kHasZeros, largest_power_below(kRows)>(num_rows, weights, run, totals, y, y_stride);
}
