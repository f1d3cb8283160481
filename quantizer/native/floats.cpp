// Products of few rows of float32 with weights of 16 or 8 bits, which are converted in registers: as fast as the
// weights can be read. Each sum is made in the same order whatever other rows there are.

#include "product.h"
#include "vectors.h"

namespace {

// How much is multiplied at a time: as much as there are registers for.
constexpr int kRows = 4, kOutputs = kLanes == 16 ? 4 : 2;

struct Float16 {
  typedef uint16_t Element;
  static Floats widened(const Element *from) { return from_halves(from); }
};
struct Bfloat16 {
  typedef uint16_t Element;
  static Floats widened(const Element *from) { return (Floats)(widen(from) << 16); }
};
struct Int8 {
  typedef int8_t Element;
  static Floats widened(const Element *from) { return __builtin_convertvector(widen(from), Floats); }
};

// Rows `row` and up times outputs `output` and up.
template <class Type, int kNumRows, int kNumOutputs> void multiply(const FloatProduct &p, long row, long output) {
  typedef typename Type::Element Element;
  const long num_inputs = p.num_inputs, num_whole = num_inputs / kLanes * kLanes;
  const float *x = p.x + row * num_inputs;
  const Element *weight = (const Element *)p.weight + output * num_inputs;
  Floats sums[kNumRows][kNumOutputs] = {};
  const auto add = [&](const float *x, const Element *weight, long x_stride, long weight_stride) {
    for (int o = 0; o < kNumOutputs; o++) {
      const Floats weights = Type::widened(weight + o * weight_stride);
      for (int r = 0; r < kNumRows; r++) sums[r][o] = multiply_add(load<Floats>(x + r * x_stride), weights, sums[r][o]);
    }
  };
  for (long k = 0; k < num_whole; k += kLanes) add(x + k, weight + k, num_inputs, num_inputs);
  if (num_whole < num_inputs) {
    float last_x[kNumRows][kLanes] = {};
    Element last_weight[kNumOutputs][kLanes] = {};
    for (int r = 0; r < kNumRows; r++)
      memcpy(last_x[r], x + r * num_inputs + num_whole, (num_inputs - num_whole) * sizeof(float));
    for (int o = 0; o < kNumOutputs; o++)
      memcpy(last_weight[o], weight + o * num_inputs + num_whole, (num_inputs - num_whole) * sizeof(Element));
    add(last_x[0], last_weight[0], kLanes, kLanes);
  }
  for (int r = 0; r < kNumRows; r++)
    for (int o = 0; o < kNumOutputs; o++) {
      float y = sum(sums[r][o]);
      if (p.scales) y *= p.scales[output + o];
      if (p.bias) y += p.bias[output + o];
      p.y[(row + r) * p.num_outputs + output + o] = y;
    }
}

template <class Type, int kNumOutputs> void multiply_rows(const FloatProduct &p, long output) {
  long row = 0;
  for (; row + kRows <= p.num_rows; row += kRows) multiply<Type, kRows, kNumOutputs>(p, row, output);
  for (; row + 2 <= p.num_rows; row += 2) multiply<Type, 2, kNumOutputs>(p, row, output);
  for (; row < p.num_rows; row++) multiply<Type, 1, kNumOutputs>(p, row, output);
}

template <class Type> void multiply_all(const FloatProduct &p) {
  constexpr long kChunk = 32;  // outputs that a thread takes at a time
  parallel_for(p.team, (p.num_outputs + kChunk - 1) / kChunk, [&](long chunk) {
    const long end = (chunk + 1) * kChunk < p.num_outputs ? (chunk + 1) * kChunk : p.num_outputs;
    long output = chunk * kChunk;
    for (; output + kOutputs <= end; output += kOutputs) multiply_rows<Type, kOutputs>(p, output);
    for (; output < end; output++) multiply_rows<Type, 1>(p, output);
  });
}

}  // namespace

LLMPQ_EXPORT(multiply_floats)(const FloatProduct *product) {
  switch (product->type) {
    case 0: return multiply_all<Float16>(*product);
    case 1: return multiply_all<Bfloat16>(*product);
    case 2: return multiply_all<Int8>(*product);
  }
}
