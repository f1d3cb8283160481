// Norms of residual sums, and gates: what torch does in several passes over memory is done in one.

#include "glue.h"

#include "elementary.h"

namespace {

// Rows that a thread takes at a time.
constexpr long kRows = 8;

template <class Body> void for_rows(const Team &team, long num_rows, const Body &body) {
  parallel_for(team, (num_rows + kRows - 1) / kRows, [&](long chunk) {
    for (long row = chunk * kRows; row < num_rows && row < (chunk + 1) * kRows; row++) body(row);
  });
}

// x * sigmoid(t x) with t of the activation: GELU's tanh is a sigmoid of twice its argument.
INLINE Floats activated(Floats x, bool is_gelu) {
  const Floats argument = is_gelu ? 1.5957691216057308f * (x + 0.044715f * (x * x * x)) : x;
  return x / (1.0f + exponential(-argument));
}

}  // namespace

LLMPQ_EXPORT(norm_of_sum)(const NormOfSum *p) {
  const NormOfRow norm{p->weight, p->bias, (float)p->eps, p->is_layer_norm != 0};
  const long size = p->num_features;
  for_rows(p->team, p->num_rows, [&](long row) {
    const float *x = p->x + row * size;
    if (p->added) {
      const float *added = p->added + row * size;
      float *sum = p->sum + row * size;
      for (long i = 0; i < size; i += kLanes)
        store_some(sum + i, load_some(x + i, size - i) + load_some(added + i, size - i), size - i);
      x = sum;
    }
    norm_row(norm, x, p->y + row * size, size);
  });
}

LLMPQ_EXPORT(gated_product)(const GatedProduct *p) {
  const long size = p->num_features;
  for_rows(p->team, p->num_rows, [&](long row) {
    const float *gate = p->x + row * 2 * size, *up = gate + size;
    float *y = p->y + row * size;
    for (long i = 0; i < size; i += kLanes) {
      const long left = size - i;
      store_some(y + i, activated(load_some(gate + i, left), p->activation == 1) * load_some(up + i, left), left);
    }
  });
}
