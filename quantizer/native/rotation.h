// Groups of inputs times the Hadamard matrix, as quantizer/rotation.py has it: the same numbers are added up, in the same
// order, so that the same bits come out for any width of vectors.
#pragma once

#include "shuffles.h"

constexpr int kRotatedInputs = 64, kRotatedVectors = kRotatedInputs / kLanes;

// 1 in the lanes that have the bit kWidth of their number clear, and -1 in the others.
template <int kWidth, int... kLane> INLINE Floats lane_signs(std::integer_sequence<int, kLane...>) {
  return Floats{(kLane & kWidth ? -1.0f : 1.0f)...};
}

// Sums and differences of numbers that are kWidth lanes apart, then of nearer ones.
template <int kWidth> INLINE void rotate_lanes(Floats (&vectors)[kRotatedVectors]) {
  const Floats signs = lane_signs<kWidth>(std::make_integer_sequence<int, kLanes>());
#pragma GCC unroll 16
  for (int i = 0; i < kRotatedVectors; i++)
    vectors[i] = multiply_add(vectors[i], signs, __builtin_shuffle(vectors[i], lane_numbers() ^ kWidth));
  if constexpr (kWidth > 1) rotate_lanes<kWidth / 2>(vectors);
}

// Likewise of whole vectors, kDistance apart.
template <int kDistance = kRotatedVectors / 2> INLINE void rotate_vectors(Floats (&vectors)[kRotatedVectors]) {
#pragma GCC unroll 16
  for (int i = 0; i < kRotatedVectors; i++)
    if (!(i & kDistance)) {
      const Floats first = vectors[i], second = vectors[i + kDistance];
      vectors[i] = first + second;
      vectors[i + kDistance] = first - second;
    }
  if constexpr (kDistance > 1) rotate_vectors<kDistance / 2>(vectors);
}

// Rotates kRotatedInputs numbers.
static void rotate(const float *x, float *rotated) {
  Floats vectors[kRotatedVectors];
#pragma GCC unroll 16
  for (int i = 0; i < kRotatedVectors; i++) vectors[i] = load<Floats>(x + i * kLanes);
  rotate_vectors(vectors);
  rotate_lanes<kLanes / 2>(vectors);
#pragma GCC unroll 16
  for (int i = 0; i < kRotatedVectors; i++) store(rotated + i * kLanes, vectors[i] * 0.125f);
}
