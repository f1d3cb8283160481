// Weights of 16 or 8 bits, widened to float32 as they are read.
#pragma once

#include "product.h"
#include "vectors.h"

struct Float16 {
  typedef uint16_t Element;
  INLINE Floats widened(const Element *from) { return from_halves(from); }
};
struct Bfloat16 {
  typedef uint16_t Element;
  INLINE Floats widened(const Element *from) { return (Floats)(widen(from) << 16); }
};
struct Int8 {
  typedef int8_t Element;
  INLINE Floats widened(const Element *from) { return __builtin_convertvector(widen(from), Floats); }
};

// Up to kLanes weights, widened; those missing are zero.
template <class Type> INLINE Floats widened(const typename Type::Element *from, long count) {
  if (count >= kLanes) return Type::widened(from);
  typename Type::Element filled_up[kLanes] = {};
  memcpy(filled_up, from, count * sizeof *from);
  return Type::widened(filled_up);
}

// Calls body with the type of weights that product.h numbers so.
template <class Body> static void with_sixteen_bits(int64_t type, const Body &body) {
  if (type == 0) return body(Float16{});
  if (type == 1) return body(Bfloat16{});
}
template <class Body> static void with_type(int64_t type, const Body &body) {
  if (type == 2) return body(Int8{});
  with_sixteen_bits(type, body);
}
