// The CPU kernels behind the ops: one table of plain functions per instruction set.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../annealed_mse.h"

namespace akd::cpu {

// One contiguous stretch of kept elements: writes `scale * (s - phi t)` to `gradient` unless it is
// null, and returns the sum of squares.
using RunFn = double (*)(const void* student, const void* teacher, void* gradient, int64_t n,
                         double phi, double scale);
// x *= factor in place.
using ScaleFn = void (*)(void* x, int64_t n, double factor);

struct Kernels {
  const char* name;
  RunFn run[kNumTypes][kNumTypes];  // [student][teacher]
  ScaleFn scale[kNumTypes];
};

// The best table for the machine this runs on, chosen once.
const Kernels& kernels();

}  // namespace akd::cpu
