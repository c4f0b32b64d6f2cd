// One binary, every instruction set: the kernel bodies are compiled once for each, and the best one
// the machine has is chosen at the first call. No -march flag is needed or wanted.
// Vectors wider than a target's registers are never passed between functions here (all is inlined),
// so the warning about how they would be passed says nothing.
#pragma GCC diagnostic ignored "-Wpsabi"

#include <torch/headeronly/util/Half.h>

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#define AKD_X86 1
#endif

#include "kernels.h"

#define AKD_ISA portable
#define AKD_ISA_NAME "portable"
#define AKD_ISA_LEVEL 0
#include "kernels.inc"
#undef AKD_ISA
#undef AKD_ISA_NAME
#undef AKD_ISA_LEVEL

#if AKD_X86
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,f16c")
#endif
#define AKD_ISA avx2
#define AKD_ISA_NAME "AVX2"
#define AKD_ISA_LEVEL 1
#include "kernels.inc"
#undef AKD_ISA
#undef AKD_ISA_NAME
#undef AKD_ISA_LEVEL
#if defined(__clang__)
#pragma clang attribute pop
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq"))), \
                             apply_to = function)
#else
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,prefer-vector-width=512")
#endif
#define AKD_ISA avx512
#define AKD_ISA_NAME "AVX-512"
#define AKD_ISA_LEVEL 2
#include "kernels.inc"
#undef AKD_ISA
#undef AKD_ISA_NAME
#undef AKD_ISA_LEVEL
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif  // AKD_X86

namespace akd::cpu {

static const Kernels& choose() {
#if AKD_X86
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")) {
    return avx512::kTable;
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c")) return avx2::kTable;
#endif
  return portable::kTable;
}

const Kernels& kernels() {
  static const Kernels& best = choose();
  return best;
}

}  // namespace akd::cpu
