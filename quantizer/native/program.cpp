// Kernels one after another, without a way through Python between them.

#include "product.h"

namespace {

struct Call {
  void (*kernel)(const void *work);
  const void *work;
};

struct Program {
  const Call *calls;
  int64_t num_calls;
};

}  // namespace

LLMPQ_EXPORT(run_program)(const Program *program) {
  for (int64_t i = 0; i < program->num_calls; i++) program->calls[i].kernel(program->calls[i].work);
}
