// What a decoder layer does between its matrix products. quantizer/native/decoder.py mirrors these.
#pragma once

#include <stdint.h>

#include "parallel.h"
#include "product.h"

// sum = x + added; y = the norm of sum (of x, where nothing is added).
struct NormOfSum {
  const float *x;       // (rows, features)
  const float *added;   // (rows, features), or null
  float *sum;           // (rows, features), or null where `added` is
  float *y;             // (rows, features)
  const float *weight;  // (features), or null: ones
  const float *bias;    // (features), or null: zeros
  int64_t num_rows, num_features, is_layer_norm;
  double eps;
  Team team;
};

// y = activation(gate) * up.
struct GatedProduct {
  const float *x;  // (rows, 2 * features): gate, then up
  float *y;        // (rows, features)
  int64_t num_rows, num_features;
  int64_t activation;  // 0 SiLU, 1 GELU approximated by tanh
  Team team;
};

// Attention of new tokens over the cache of one layer, to which their keys and values are added first.
struct AttentionOfRows {
  float *projected;           // (rows, (heads + 2 * kv heads) * head_dim): queries, keys, values; worked on in place
  float *y;                   // (rows, heads * head_dim)
  void *keys, *values;        // (slots, kv heads, max_tokens, head_dim), keys of 16 tokens at a time by channel
  float *key_scales;          // (slots, kv heads, max_tokens) if keys and values are int8; null if they are float
  float *value_scales;        // likewise
  const int64_t *layout;      // (3, sequences): slots, starts, counts
  const float *cosines;       // (rows, num_rotated), or null
  const float *sines;         // likewise
  const float *query_norm;    // (head_dim) weight of an RMS norm, or null: ones
  const float *key_norm;      // likewise
  const float *slopes;        // (heads) that are added to scores per position of distance, or null
  int64_t num_sequences, num_heads, num_kv_heads, head_dim;
  int64_t num_rotated;        // channels, the first of each head
  int64_t max_tokens;         // of a slot
  int64_t window;             // how many tokens a query sees; 0 is all
  int64_t has_head_norms;
  double scale, soft_cap, eps;  // soft_cap 0 is none
  Team team;
};
