// Numbers that are known only at run time, as constants that loops are unrolled by.
#pragma once

#include <utility>

#include "vectors.h"

// Calls body with a count from 1 to kMax, as a std::integral_constant.
template <int kMax, class Body> INLINE void with_count(long count, const Body &body) {
  if (count == kMax) return body(std::integral_constant<int, kMax>{});
  if constexpr (kMax > 1) with_count<kMax - 1>(count, body);
}
