// The largest of many products, found through approximate ones whose errors are bounded.
//
// A product x w of which x' w' is known is off by x (w - w') + (x - x') w', at most |x| |w - w'| + |x - x'| |w'| by
// Cauchy and Schwarz. Only weights that may have the largest product by these bounds are multiplied exactly.

#include "elementary.h"
#include "float_weights.h"
#include "search.h"

namespace {

// What rounding in sums of float32 may add, as a share of |x| |w|: far more than sums of 10,000 products do.
constexpr double kSumError = 1e-5;
// What rounding in the bounds themselves may take off.
constexpr double kMargin = 1.001;
// A group of smaller numbers is zero to the kernel that rounds.
constexpr float kNone = 0x1p-100f;

struct Bounds {
  Floats size, rounding;  // |x| and |x - x'|, in all lanes

  Floats of(const LargestProduct &p, long output, long count) const {
    return size * load_some(p.errors + output, count) + rounding * load_some(p.norms + output, count);
  }
};

// As activations.h rounds x: to 127 steps of each group's largest magnitude.
Bounds bounds_of(const LargestProduct &p, const float *x) {
  double square = 0, square_error = 0;
  for (long begin = 0; begin < p.num_inputs; begin += p.group_size) {
    const long end = smaller(begin + p.group_size, p.num_inputs);
    float largest = 0;
    for (long k = begin; k < end; k++) largest = __builtin_fabsf(x[k]) > largest ? __builtin_fabsf(x[k]) : largest;
    const float step = largest / 127;
    for (long k = begin; k < end; k++) {
      const double error = largest < kNone ? x[k] : x[k] - __builtin_rintf(x[k] / step) * step;
      square += (double)x[k] * x[k];
      square_error += error * error;
    }
  }
  const double size = kMargin * __builtin_sqrt(square);
  return {broadcast((float)size), broadcast((float)(kMargin * __builtin_sqrt(square_error) + kSumError * size))};
}

template <class Type> float product(const LargestProduct &p, const float *x, long output) {
  const auto *weight = (const typename Type::Element *)p.weight + output * p.num_inputs;
  Floats sums{};
  for (long k = 0; k < p.num_inputs; k += kLanes) {
    const long left = p.num_inputs - k;
    sums = multiply_add(load_some(x + k, left), widened<Type>(weight + k, left), sums);
  }
  return sum(sums);
}

// The first output whose product is the largest; 0 if there is none, of NaN.
template <class Type> long search(const LargestProduct &p, const float *x, const float *approximate) {
  const Bounds bounds = bounds_of(p, x);
  Floats certain = broadcast(-__builtin_inff());
  for (long o = 0; o + kLanes <= p.num_outputs; o += kLanes) {
    const Floats least = load<Floats>(approximate + o) - bounds.of(p, o, kLanes);
    certain = least > certain ? least : certain;
  }
  float surely = certain[0];
  for (int lane = 1; lane < kLanes; lane++) surely = certain[lane] > surely ? certain[lane] : surely;

  long found = 0;
  float largest = -__builtin_inff();
  for (long o = 0; o < p.num_outputs; o += kLanes) {
    const long count = smaller(kLanes, p.num_outputs - o);
    const Floats most = load_some(approximate + o, count) + bounds.of(p, o, count);
    const Ints may_be = ~(most < broadcast(surely));  // as what is not a number may be
    if (!sum(may_be)) continue;
    for (long i = 0; i < count; i++) {
      const float exact = may_be[i] ? product<Type>(p, x, o + i) : -__builtin_inff();
      if (exact > largest) largest = exact, found = o + i;
    }
  }
  return found;
}

}  // namespace

LLMPQ_EXPORT(find_largest)(const LargestProduct *product) {
  with_sixteen_bits(product->type, [&](auto type) {
    parallel_for(product->team, product->num_rows, [&](long row) {
      product->found[row] = search<decltype(type)>(*product, product->x + row * product->num_inputs,
                                                   product->approximate + row * product->num_outputs);
    });
  });
}
