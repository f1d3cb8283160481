// Products of a few rows of float32 with weights of 16 or 8 bits, which are widened once for all rows and read along
// the inputs, as they are stored. Each sum is made in the same order whatever other rows there are.

#include "counts.h"
#include "elementary.h"
#include "float_weights.h"
#include "product.h"
#include "shuffles.h"

namespace {

// How much is multiplied at a time: as much as there are registers for.
constexpr int kRows = 6, kOutputs = kLanes == 16 ? 4 : 2;
// Inputs whose weights are widened at a time, and rows that they serve: as many as stay in the first-level cache.
constexpr long kPart = 1024, kPassRows = 8 * kRows;

// kOutputs outputs over a part of the inputs, and their sums with the rows at hand.
struct Part {
  alignas(64) float weights[kOutputs][kPart + kLanes];  // not a multiple of a page apart
  Floats sums[kPassRows][kOutputs];
};

// Adds the products of kCount rows of x with a part's weights to their sums.
template <int kCount> void add_products(const float *x, long num_inputs, long size, Part &part, long row) {
  Floats sums[kCount][kOutputs];
  for (int r = 0; r < kCount; r++)
    for (int o = 0; o < kOutputs; o++) sums[r][o] = part.sums[row + r][o];
  const auto add = [&](long k, auto load_inputs) {
    Floats weights[kOutputs];
    for (int o = 0; o < kOutputs; o++) weights[o] = load<Floats>(part.weights[o] + k);
#pragma GCC unroll 8
    for (int r = 0; r < kCount; r++) {
      const Floats inputs = load_inputs(x + r * num_inputs + k);
      for (int o = 0; o < kOutputs; o++) sums[r][o] = multiply_add(inputs, weights[o], sums[r][o]);
    }
  };
  long k = 0;
  for (; k + kLanes <= size; k += kLanes) add(k, [](const float *from) { return load<Floats>(from); });
  if (k < size) add(k, [&](const float *from) { return load_some(from, size - k); });
  for (int r = 0; r < kCount; r++)
    for (int o = 0; o < kOutputs; o++) part.sums[row + r][o] = sums[r][o];
}

// Up to kPassRows rows times up to kOutputs outputs.
template <class Type> void multiply(const FloatProduct &p, long row, long num_rows, long output, long num_outputs) {
  const long num_blocks = (num_rows + kRows - 1) / kRows;  // all about as large
  Part part;
  for (long r = 0; r < num_rows; r++)
    for (int o = 0; o < kOutputs; o++) part.sums[r][o] = Floats{};
  for (long begin = 0; begin < p.num_inputs; begin += kPart) {
    const long size = smaller(kPart, p.num_inputs - begin);
    for (long o = 0; o < kOutputs; o++) {
      const auto *from = (const typename Type::Element *)p.weight + (output + smaller(o, num_outputs - 1)) * p.num_inputs;
      for (long k = 0; k < size; k += kLanes) store(part.weights[o] + k, widened<Type>(from + begin + k, size - k));
    }
    for (long i = 0; i < num_blocks; i++) {
      const long first = num_rows * i / num_blocks, count = num_rows * (i + 1) / num_blocks - first;
      const float *x = p.x + (row + first) * p.num_inputs + begin;
      with_count<kRows>(count, [&](auto rows) { add_products<rows>(x, p.num_inputs, size, part, first); });
    }
  }
  for (long r = 0; r < num_rows; r++) {
    const Floats sums = sums_of<kOutputs>(part.sums[r]);
    for (long o = 0; o < num_outputs; o++) {
      float y = sums[o];
      if (p.scales) y *= p.scales[output + o];
      if (p.bias) y += p.bias[output + o];
      p.y[(row + r) * p.num_outputs + output + o] = y;
    }
  }
}

template <class Type> void multiply_all(const FloatProduct &p) {
  constexpr long kChunk = 32;  // outputs that a thread takes at a time
  parallel_for(p.team, (p.num_outputs + kChunk - 1) / kChunk, [&](long chunk) {
    const long end = smaller((chunk + 1) * kChunk, p.num_outputs);
    for (long row = 0; row < p.num_rows; row += kPassRows)
      for (long output = chunk * kChunk; output < end; output += kOutputs)
        multiply<Type>(p, row, smaller(kPassRows, p.num_rows - row), output, smaller(kOutputs, end - output));
  });
}

}  // namespace

LLMPQ_EXPORT(multiply_floats)(const FloatProduct *product) {
  with_type(product->type, [&](auto type) { multiply_all<decltype(type)>(*product); });
}
