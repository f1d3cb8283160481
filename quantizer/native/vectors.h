// Vectors of the instruction set that this file is compiled for, kLanes numbers wide. They are GCC's own, so that
// ordinary operators work on them; what is here is the rest.
#pragma once

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

#if defined(__AVX512VNNI__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef int32_t Ints __attribute__((vector_size(4 * kLanes)));
typedef float Floats __attribute__((vector_size(4 * kLanes)));
typedef uint16_t Shorts __attribute__((vector_size(4 * kLanes)));
typedef uint8_t Bytes __attribute__((vector_size(4 * kLanes)));

template <class Value> INLINE Value load(const void *from) {
  Value value;
  memcpy(&value, from, sizeof value);
  return value;
}
template <class Value> INLINE void store(void *to, Value value) { memcpy(to, &value, sizeof value); }

INLINE Ints broadcast(int32_t value) { return Ints{} + value; }
INLINE Floats broadcast(float value) { return value - Floats{}; }
INLINE Bytes broadcast(uint8_t value) { return Bytes{} + value; }

// widen: kLanes small integers as Ints. from_halves: kLanes float16 as Floats.
// multiply_pairs: neighbouring pairs of int16 multiplied and added up. multiply_add: a * b + c.
#if defined(__AVX512VNNI__)

INLINE Ints widen(const uint8_t *from) { return (Ints)_mm512_cvtepu8_epi32(load<__m128i>(from)); }
INLINE Ints widen(const int8_t *from) { return (Ints)_mm512_cvtepi8_epi32(load<__m128i>(from)); }
INLINE Ints widen(const uint16_t *from) { return (Ints)_mm512_cvtepu16_epi32(load<__m256i>(from)); }
INLINE Floats from_halves(const uint16_t *from) { return (Floats)_mm512_cvtph_ps(load<__m256i>(from)); }
INLINE Ints multiply_pairs(Ints a, Ints b) { return (Ints)_mm512_madd_epi16((__m512i)a, (__m512i)b); }
INLINE Floats multiply_add(Floats a, Floats b, Floats c) {
  return (Floats)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
}
INLINE float sum(Floats v) { return _mm512_reduce_add_ps((__m512)v); }

#elif defined(__AVX2__)

INLINE Ints widen(const uint8_t *from) { return (Ints)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)from)); }
INLINE Ints widen(const int8_t *from) { return (Ints)_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)from)); }
INLINE Ints widen(const uint16_t *from) { return (Ints)_mm256_cvtepu16_epi32(load<__m128i>(from)); }
INLINE Floats from_halves(const uint16_t *from) { return (Floats)_mm256_cvtph_ps(load<__m128i>(from)); }
INLINE Ints multiply_pairs(Ints a, Ints b) { return (Ints)_mm256_madd_epi16((__m256i)a, (__m256i)b); }
INLINE Floats multiply_add(Floats a, Floats b, Floats c) {
  return (Floats)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
}
INLINE float sum(Floats v) {
  const __m128 half = _mm256_castps256_ps128((__m256)v) + _mm256_extractf128_ps((__m256)v, 1);
  return (half[0] + half[2]) + (half[1] + half[3]);
}

#else  // SSE4.1

INLINE Ints widen(const uint8_t *from) { return (Ints)_mm_cvtepu8_epi32(_mm_cvtsi32_si128(load<int32_t>(from))); }
INLINE Ints widen(const int8_t *from) { return (Ints)_mm_cvtepi8_epi32(_mm_cvtsi32_si128(load<int32_t>(from))); }
INLINE Ints widen(const uint16_t *from) { return (Ints)_mm_cvtepu16_epi32(_mm_loadl_epi64((const __m128i *)from)); }
// Shifts exponent and mantissa to where float32 has them, then scales by the difference of the exponents' biases; this
// is right for denormal numbers too.
INLINE Floats from_halves(const uint16_t *from) {
  const Ints half = widen(from);
  const Floats magnitude = (Floats)((half & 0x7fff) << 13) * 0x1p112f;
  return (Floats)((Ints)magnitude | (half & 0x8000) << 16);
}
INLINE Ints multiply_pairs(Ints a, Ints b) { return (Ints)_mm_madd_epi16((__m128i)a, (__m128i)b); }
INLINE Floats multiply_add(Floats a, Floats b, Floats c) { return a * b + c; }
INLINE float sum(Floats v) { return (v[0] + v[2]) + (v[1] + v[3]); }

#endif
