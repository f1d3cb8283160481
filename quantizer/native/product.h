// What the library is asked to do. quantizer/native/library.py mirrors these.
#pragma once

#include <stdint.h>

#include "parallel.h"

#define LLMPQ_JOIN(name, instruction_set) name##_##instruction_set
#define LLMPQ_EXPAND(name, instruction_set) LLMPQ_JOIN(name, instruction_set)
// Begins a function of the library, which has it under one name for each instruction set.
#define LLMPQ_EXPORT(name) \
  extern "C" __attribute__((visibility("default"))) void LLMPQ_EXPAND(name, LLMPQ_INSTRUCTION_SET)

// y = x @ weight.T + bias with activations rounded to int8 (activations.h) and weights as codes (packed.h).
struct CodeProduct {
  const float *x;        // (rows, inputs)
  float *y;              // (rows, outputs)
  uint8_t *work;         // for the rounded activations: a byte for each padded input and 8 for each group, of all rows
  const float *bias;     // (outputs), or null
  const uint8_t *codes;  // (tiles, blocks, block_bytes(bits))
  const void *scales;    // 8 bits: float32 (tiles, 16); else float16 (tiles, weight groups, 16)
  const uint8_t *zeros;  // 8 bits: null; else (tiles, weight groups, 16)
  int64_t num_rows, num_inputs, num_outputs, bits;
  int64_t group_size;         // of the activations, and of the weights unless these have one group: 32, 64 or 128
  int64_t num_weight_groups;  // 1, or as many as the activations have
  int64_t rotates;            // whether activations are rotated before they are rounded; groups are of 64 then
  int64_t unpacks_first;      // whether codes are unpacked to memory for all rows, or in registers for each few
  Team team;
};

// y = x @ weight.T * scales + bias in float32, with weights widened on the way.
struct FloatProduct {
  const float *x;       // (rows, inputs)
  float *y;             // (rows, outputs)
  const float *bias;    // (outputs), or null
  const void *weight;   // (outputs, inputs)
  const float *scales;  // (outputs), or null
  int64_t num_rows, num_inputs, num_outputs;
  int64_t type;  // of a weight: 0 float16, 1 bfloat16, 2 int8
  Team team;
};
