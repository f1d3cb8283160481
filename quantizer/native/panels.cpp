// Products of more rows of float32 than floats.cpp is made for with weights of 16 or 8 bits. These are widened and
// transposed, a panel of outputs at a time, so that every number of x meets whole vectors of outputs and no sum crosses
// lanes. Each sum is made in the order of the inputs, whatever other rows there are.

#include "counts.h"
#include "elementary.h"
#include "float_weights.h"
#include "shuffles.h"

namespace {

// How much is multiplied at a time: as much as there are registers for.
constexpr int kRows = kLanes == 16 ? 12 : 6, kVectors = 2;
constexpr long kOutputs = kVectors * kLanes;
// Inputs whose weights are transposed at a time, and rows that they serve: as many as stay in the first-level cache.
constexpr long kPart = 128, kPassRows = 8 * kRows;

// kOutputs outputs over a part of the inputs, and their sums with the rows at hand.
struct Panel {
  alignas(64) float weights[kPart][kOutputs];
  Floats sums[kPassRows][kVectors];
};

// Takes a part of the weights from (output, begin) on; what is beyond the last output is taken from that one again.
template <class Type> void read(const FloatProduct &p, long output, long begin, long size, Panel &panel) {
  const auto weight_at = [&](long o) {
    return (const typename Type::Element *)p.weight + smaller(o, p.num_outputs - 1) * p.num_inputs + begin;
  };
  for (int v = 0; v < kVectors; v++)
    for (long k = 0; k < size; k += kLanes) {
      Floats square[kLanes];
      for (int i = 0; i < kLanes; i++) square[i] = widened<Type>(weight_at(output + v * kLanes + i) + k, size - k);
      transpose(square);
      for (int i = 0; i < kLanes; i++) store(panel.weights[k + i] + v * kLanes, square[i]);
    }
  // What this thread is likely to multiply next is on its way meanwhile: rows are too short for the CPU to foresee them.
  const long next = output + p.team.num_threads * kOutputs;
  for (long o = next; o < smaller(next + kOutputs, p.num_outputs); o++)
    for (long k = 0; k < size; k += 64 / (long)sizeof(typename Type::Element)) __builtin_prefetch(weight_at(o) + k);
}

// Adds the products of kCount rows of x with a panel's weights to their sums.
template <int kCount> void add_products(const float *x, long num_inputs, long size, Panel &panel, long row) {
  Floats sums[kCount][kVectors];
  for (int r = 0; r < kCount; r++)
    for (int v = 0; v < kVectors; v++) sums[r][v] = panel.sums[row + r][v];
  for (long k = 0; k < size; k++) {
    Floats weights[kVectors];
    for (int v = 0; v < kVectors; v++) weights[v] = load<Floats>(panel.weights[k] + v * kLanes);
#pragma GCC unroll 12
    for (int r = 0; r < kCount; r++) {
      const Floats input = broadcast(x[r * num_inputs + k]);
      for (int v = 0; v < kVectors; v++) sums[r][v] = multiply_add(input, weights[v], sums[r][v]);
    }
  }
  for (int r = 0; r < kCount; r++)
    for (int v = 0; v < kVectors; v++) panel.sums[row + r][v] = sums[r][v];
}

// Up to kPassRows rows times the outputs of a panel.
template <class Type> void multiply(const FloatProduct &p, long row, long num_rows, long output) {
  const long num_blocks = (num_rows + kRows - 1) / kRows;  // all about as large
  Panel panel;
  for (long r = 0; r < num_rows; r++)
    for (int v = 0; v < kVectors; v++) panel.sums[r][v] = Floats{};
  for (long begin = 0; begin < p.num_inputs; begin += kPart) {
    const long size = smaller(kPart, p.num_inputs - begin);
    read<Type>(p, output, begin, size, panel);
    for (long i = 0; i < num_blocks; i++) {
      const long first = num_rows * i / num_blocks, count = num_rows * (i + 1) / num_blocks - first;
      const float *x = p.x + (row + first) * p.num_inputs + begin;
      with_count<kRows>(count, [&](auto rows) { add_products<rows>(x, p.num_inputs, size, panel, first); });
    }
  }
  for (int v = 0; v < kVectors; v++) {
    const long first = output + v * kLanes, left = p.num_outputs - first;
    if (left <= 0) break;
    const Floats scales = p.scales ? load_some(p.scales + first, left) : broadcast(1.0f);
    const Floats bias = p.bias ? load_some(p.bias + first, left) : Floats{};
    for (long r = 0; r < num_rows; r++)
      store_some(p.y + (row + r) * p.num_outputs + first, panel.sums[r][v] * scales + bias, left);
  }
}

template <class Type> void multiply_all(const FloatProduct &p) {
  parallel_for(p.team, (p.num_outputs + kOutputs - 1) / kOutputs, [&](long panel) {
    for (long row = 0; row < p.num_rows; row += kPassRows)
      multiply<Type>(p, row, smaller(kPassRows, p.num_rows - row), panel * kOutputs);
  });
}

}  // namespace

LLMPQ_EXPORT(multiply_panels)(const FloatProduct *product) {
  with_type(product->type, [&](auto type) { multiply_all<decltype(type)>(*product); });
}
