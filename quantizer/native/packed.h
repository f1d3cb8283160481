// Weight codes as they are stored. quantizer/tiles.py packs them.
//
// A tile is 16 outputs over all inputs, in blocks of 32 inputs. Unpacked, a block is 8 steps of 64 bytes, each with
// four neighbouring inputs of every output: [step][output][input]. It is packed along the steps, so that any aligned
// part of the 64 bytes unpacks by itself:
// - 8 bits: as it is, code + 128;
// - 4 bits: 4 * 64 bytes, of which j has step 2 j in the lower and step 2 j + 1 in the upper four bits;
// - 3 bits: 3 * 64 bytes, of which the first two, j, have the lower bits of step 4 j + i in bits 2 i and 2 i + 1, and
//   the last one has the upper bit of step i in bit i.
#pragma once

#include "vectors.h"

constexpr int kTileOutputs = 16, kBlockInputs = 32, kSteps = 8, kStepBytes = 64;
constexpr int block_bytes(int bits) { return bits * kStepBytes; }

// The codes of a step, of those outputs that `block` points to.
template <int kBits> INLINE Bytes unpack(const uint8_t *block, int step) {
  if constexpr (kBits == 8) return load<Bytes>(block + step * kStepBytes);
  if constexpr (kBits == 4) {
    const Shorts two = load<Shorts>(block + step / 2 * kStepBytes);
    return (Bytes)(step % 2 ? two >> 4 : two) & broadcast(uint8_t{15});
  }
  if constexpr (kBits == 3) {
    const Shorts lower = load<Shorts>(block + step / 4 * kStepBytes), upper = load<Shorts>(block + 2 * kStepBytes);
    return ((Bytes)(lower >> step % 4 * 2) & broadcast(uint8_t{3})) |
           ((Bytes)(step < 2 ? upper << (2 - step) : upper >> (step - 2)) & broadcast(uint8_t{4}));
  }
}

template <int kBits> static void unpack_blocks(const uint8_t *packed, uint8_t *codes, long num_blocks) {
  for (long block = 0; block < num_blocks; block++)
    for (int part = 0; part < kStepBytes; part += (int)sizeof(Bytes))
#pragma GCC unroll 8
      for (int step = 0; step < kSteps; step++)
        store(codes + block * block_bytes(8) + step * kStepBytes + part,
              unpack<kBits>(packed + block * block_bytes(kBits) + part, step));
}
