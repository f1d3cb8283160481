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

INLINE constexpr long smaller(long a, long b) { return a < b ? a : b; }

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

#if !defined(__AVX512VNNI__)
INLINE int32_t sum_of_four(__m128i v) {
  const __m128i pair = _mm_add_epi32(v, _mm_unpackhi_epi64(v, v));
  return _mm_cvtsi128_si32(_mm_add_epi32(pair, _mm_srli_epi64(pair, 32)));
}
INLINE int32_t largest_of_four(__m128i v) {
  const __m128i pair = _mm_max_epi32(v, _mm_unpackhi_epi64(v, v));
  return _mm_cvtsi128_si32(_mm_max_epi32(pair, _mm_srli_epi64(pair, 32)));
}
#endif

// widen: kLanes small integers as Ints. narrow: Ints that fit int8 as that. from_halves: kLanes float16 as Floats.
// rounded: to the nearest integers, halves to even ones. multiply_pairs: neighbouring pairs of int16, multiplied and
// added up. multiply_add: a * b + c.
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
INLINE int32_t sum(Ints v) { return _mm512_reduce_add_epi32((__m512i)v); }
INLINE int32_t largest(Ints v) { return _mm512_reduce_max_epi32((__m512i)v); }
INLINE Ints rounded(Floats v) { return (Ints)_mm512_cvtps_epi32((__m512)v); }
INLINE void narrow(Ints v, void *to) { store(to, _mm512_cvtepi32_epi8((__m512i)v)); }

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
INLINE __m128i low(Ints v) { return _mm256_castsi256_si128((__m256i)v); }
INLINE __m128i high(Ints v) { return _mm256_extracti128_si256((__m256i)v, 1); }
INLINE int32_t sum(Ints v) { return sum_of_four(_mm_add_epi32(low(v), high(v))); }
INLINE int32_t largest(Ints v) { return largest_of_four(_mm_max_epi32(low(v), high(v))); }
INLINE Ints rounded(Floats v) { return (Ints)_mm256_cvtps_epi32((__m256)v); }
INLINE void narrow(Ints v, void *to) {
  const __m128i shorts = _mm_packs_epi32(low(v), high(v));
  _mm_storel_epi64((__m128i *)to, _mm_packs_epi16(shorts, shorts));
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
INLINE int32_t sum(Ints v) { return sum_of_four((__m128i)v); }
INLINE int32_t largest(Ints v) { return largest_of_four((__m128i)v); }
INLINE Ints rounded(Floats v) { return (Ints)_mm_cvtps_epi32((__m128)v); }
INLINE void narrow(Ints v, void *to) {
  const __m128i shorts = _mm_packs_epi32((__m128i)v, (__m128i)v);
  store(to, _mm_cvtsi128_si32(_mm_packs_epi16(shorts, shorts)));
}

#endif
