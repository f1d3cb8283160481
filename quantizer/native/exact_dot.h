// Integer products of weight codes and activations, added up exactly on every CPU.
//
// A vector of codes holds four neighbouring inputs, a byte each, of every output. dot() multiplies them by four
// activations and adds the products to each output's sum. Where the CPU has no instruction for that (VNNI), it adds
// two products in 16 bits, and nothing may be lost there:
// - narrow codes (below 16) times activations (up to 127) leave room for the 8 steps of a block, which begin() and
//   end() enclose: 8 * 2 * 15 * 127 < 2^15;
// - wide codes (8 bits) are multiplied as magnitude times activation with the code's sign: 2 * 127 * 127 < 2^15.
#pragma once

#include "vectors.h"

#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)

// What a stored 8-bit code, which is code + 128, has too much as dot() sees it.
constexpr int kWideZero = 128;

template <bool kIsNarrow> struct Operand {
  Bytes codes;
};
template <bool kIsNarrow> INLINE Operand<kIsNarrow> prepare(Bytes codes) { return {codes}; }
template <bool kIsNarrow> INLINE Ints begin(Ints sums) { return sums; }
template <bool kIsNarrow> INLINE Ints dot(Ints sums, Operand<kIsNarrow> weights, Ints activations) {
#if defined(__AVX512VNNI__)
  return (Ints)_mm512_dpbusd_epi32((__m512i)sums, (__m512i)weights.codes, (__m512i)activations);
#else
  return (Ints)_mm256_dpbusd_avx_epi32((__m256i)sums, (__m256i)weights.codes, (__m256i)activations);
#endif
}
template <bool kIsNarrow> INLINE Ints end(Ints, Ints partial_sums) { return partial_sums; }

#else

#if defined(__AVX2__)
INLINE Ints multiply_bytes(Bytes a, Bytes b) { return (Ints)_mm256_maddubs_epi16((__m256i)a, (__m256i)b); }
INLINE Bytes magnitude_of(Bytes v) { return (Bytes)_mm256_abs_epi8((__m256i)v); }
INLINE Bytes with_sign_of(Bytes v, Bytes sign) { return (Bytes)_mm256_sign_epi8((__m256i)v, (__m256i)sign); }
#else
INLINE Ints multiply_bytes(Bytes a, Bytes b) { return (Ints)_mm_maddubs_epi16((__m128i)a, (__m128i)b); }
INLINE Bytes magnitude_of(Bytes v) { return (Bytes)_mm_abs_epi8((__m128i)v); }
INLINE Bytes with_sign_of(Bytes v, Bytes sign) { return (Bytes)_mm_sign_epi8((__m128i)v, (__m128i)sign); }
#endif

constexpr int kWideZero = 0;

template <bool kIsNarrow> struct Operand;
template <> struct Operand<true> {
  Bytes codes;
};
template <> struct Operand<false> {
  Bytes codes, magnitudes;
};

INLINE Ints add_pairs(Ints pairs) { return multiply_pairs(pairs, broadcast(0x00010001)); }

template <bool kIsNarrow> INLINE Operand<kIsNarrow> prepare(Bytes codes) {
  if constexpr (kIsNarrow) return {codes};
  else return {codes ^ broadcast(uint8_t{128}), magnitude_of(codes ^ broadcast(uint8_t{128}))};
}
template <bool kIsNarrow> INLINE Ints begin(Ints sums) { return kIsNarrow ? Ints{} : sums; }
template <bool kIsNarrow> INLINE Ints dot(Ints sums, Operand<kIsNarrow> weights, Ints activations) {
  if constexpr (kIsNarrow)
    sums = (Ints)((Shorts)sums + (Shorts)multiply_bytes(weights.codes, (Bytes)activations));
  else
    sums += add_pairs(multiply_bytes(weights.magnitudes, with_sign_of((Bytes)activations, weights.codes)));
  asm("" : "+x"(sums));  // else GCC makes all products of a block before it adds any, and runs out of registers
  return sums;
}
template <bool kIsNarrow> INLINE Ints end(Ints sums, Ints partial_sums) {
  return kIsNarrow ? sums + add_pairs(partial_sums) : partial_sums;
}

#endif
