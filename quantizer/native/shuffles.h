// Numbers that change places between the lanes of vectors.
#pragma once

#include <utility>

#include "vectors.h"

template <int... kLane> INLINE Ints lane_numbers(std::integer_sequence<int, kLane...>) { return Ints{kLane...}; }
INLINE Ints lane_numbers() { return lane_numbers(std::make_integer_sequence<int, kLanes>()); }

// Of two vectors, in both orders: from each kWidth lanes of the one, then from as many of the other.
template <int kWidth, int... kLane>
INLINE void exchange(Floats &first, Floats &second, std::integer_sequence<int, kLane...>) {
  const Ints upper{(kLane & kWidth ? kLanes + kLane - kWidth : kLane)...};
  const Ints lower{(kLane & kWidth ? kLanes + kLane : kLane + kWidth)...};
  const Floats before = first;
  first = __builtin_shuffle(before, second, upper);
  second = __builtin_shuffle(before, second, lower);
}
template <int kWidth> INLINE void exchange(Floats &first, Floats &second) {
  exchange<kWidth>(first, second, std::make_integer_sequence<int, kLanes>());
}

// Swaps rows and columns of a square of vectors: the quarters off the diagonal change places, in squares of two, four
// and more rows.
template <int kWidth = 1> INLINE void transpose(Floats (&square)[kLanes]) {
#pragma GCC unroll 16
  for (int row = 0; row < kLanes; row++)
    if (!(row & kWidth)) exchange<kWidth>(square[row], square[row + kWidth]);
  if constexpr (2 * kWidth < kLanes) transpose<2 * kWidth>(square);
}

// The sum of each of kCount vectors, a power of two, in as many lanes; all are added up in the same order.
template <int kCount, int kWidth = 1> INLINE Floats sums_of(const Floats *vectors) {
  if constexpr (kWidth == kCount) {
    Floats sums = vectors[0];
    for (int width = kCount; width < kLanes; width *= 2) sums += __builtin_shuffle(sums, lane_numbers() ^ width);
    return sums;
  } else {
    Floats pairs[kCount / kWidth / 2];
    for (int i = 0; i < kCount / kWidth / 2; i++) {
      Floats first = vectors[2 * i], second = vectors[2 * i + 1];
      exchange<kWidth>(first, second);
      pairs[i] = first + second;
    }
    return sums_of<kCount, 2 * kWidth>(pairs);
  }
}
