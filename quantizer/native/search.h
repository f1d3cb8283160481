// What the search for the largest product is asked. quantizer/native/search.py mirrors it.
#pragma once

#include "product.h"

struct LargestProduct {
  const float *x;            // (rows, inputs)
  const float *approximate;  // (rows, outputs): products with both sides rounded to 8 bits, as multiply_codes does
  const void *weight;        // (outputs, inputs)
  const float *errors;       // (outputs): |w - w'|
  const float *norms;        // (outputs): |w'|
  int64_t *found;            // (rows): the output whose product is the largest
  int64_t num_rows, num_inputs, num_outputs;
  int64_t group_size;  // of x, as it was rounded
  int64_t type;        // of a weight: 0 float16, 1 bfloat16
  Team team;
};
