// Elementary functions of vectors, and the norms of rows.
#pragma once

#include "vectors.h"

// e^x, right to two units in the last place (the polynomial of Cephes' expf). What would overflow or be denormal is
// the largest or smallest number instead; NaN stays NaN.
INLINE Floats exponential(Floats x) {
  const Floats lowest = broadcast(-87.33f), highest = broadcast(88.37f);
  x = x < lowest ? lowest : x;
  x = x > highest ? highest : x;
  const Ints exponent = rounded(x * 1.44269504088896341f);
  const Floats whole = __builtin_convertvector(exponent, Floats);
  // ln 2 in two parts, so that the remainder is exact.
  const Floats r = multiply_add(whole, broadcast(2.12194440e-4f), multiply_add(whole, broadcast(-0.693359375f), x));
  const float coefficients[] = {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f};
  Floats sum = broadcast(1.9875691500e-4f);
  for (float coefficient : coefficients) sum = multiply_add(sum, r, broadcast(coefficient));
  const Floats fraction = multiply_add(sum, r * r, r) + 1.0f;
  return fraction * (Floats)((exponent + 127) << 23);
}

INLINE Floats hyperbolic_tangent(Floats x) { return 1.0f - 2.0f / (exponential(2.0f * x) + 1.0f); }

// Up to kLanes numbers; those missing are zero.
INLINE Floats load_some(const float *from, long count) {
  if (count >= kLanes) return load<Floats>(from);
  float filled_up[kLanes] = {};
  memcpy(filled_up, from, count * sizeof(float));
  return load<Floats>(filled_up);
}
INLINE void store_some(float *to, Floats value, long count) {
  if (count >= kLanes) return store(to, value);
  memcpy(to, &value, count * sizeof(float));
}

struct NormOfRow {
  const float *weight, *bias;  // null: ones, zeros
  float eps;
  bool is_layer_norm;  // else RMS norm (arXiv 1910.07467)
};

// y = the norm of x, both `size` long; they may be the same.
static void norm_row(const NormOfRow &norm, const float *x, float *y, long size) {
  float mean = 0;
  if (norm.is_layer_norm) {
    Floats sums{};
    for (long i = 0; i < size; i += kLanes) sums += load_some(x + i, size - i);
    mean = sum(sums) / size;
  }
  Floats squares{};
  for (long i = 0; i < size; i += kLanes) {
    float centred[kLanes] = {};
    store_some(centred, load_some(x + i, size - i) - mean, size - i);
    const Floats value = load<Floats>(centred);
    squares = multiply_add(value, value, squares);
  }
  const float inverse = 1 / __builtin_sqrtf(sum(squares) / size + norm.eps);
  for (long i = 0; i < size; i += kLanes) {
    const long left = size - i;
    Floats value = (load_some(x + i, left) - mean) * inverse;
    if (norm.weight) value *= load_some(norm.weight + i, left);
    if (norm.bias) value += load_some(norm.bias + i, left);
    store_some(y + i, value, left);
  }
}
