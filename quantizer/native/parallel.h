// Work shared among threads of the OpenMP runtime that torch has loaded, so that there is one pool of them.
#pragma once

#include <stdint.h>

struct Team {
  // GOMP_parallel of that runtime (GNU's; those of LLVM and Intel have it too), or null: then there is one thread.
  void (*run_parallel)(void (*body)(void *), void *context, unsigned num_threads, unsigned flags);
  int64_t num_threads;
};

// Calls body(i) once for each i below count; whichever thread is free takes the next one.
template <class Body> static void parallel_for(const Team &team, long count, const Body &body) {
  struct Shared {
    const Body &body;
    const long count;
    long next;
  } shared{body, count, 0};
  const auto work = [](void *pointer) {
    Shared &shared = *static_cast<Shared *>(pointer);
    for (long i; (i = __atomic_fetch_add(&shared.next, 1, __ATOMIC_RELAXED)) < shared.count;) shared.body(i);
  };
  if (team.run_parallel && team.num_threads > 1 && count > 1)
    team.run_parallel(work, &shared, (unsigned)team.num_threads, 0);
  else
    work(&shared);
}
