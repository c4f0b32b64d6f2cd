// One binary, every instruction set: the kernel bodies are compiled once for each, and the best one
// the machine has is chosen at the first call. No -march flag is needed or wanted.
// Vectors wider than a target's registers are never passed between functions here (all is inlined),
// so the warning about how they would be passed says nothing.
#pragma GCC diagnostic ignored "-Wpsabi"

#include <torch/headeronly/util/Half.h>

#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

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
#define AKD_ISA_NAME "avx2"
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
#define AKD_ISA_NAME "avx512"
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

// Best first.
static const Kernels* const kTables[] = {
#if AKD_X86
    &avx512::kTable,
    &avx2::kTable,
#endif
    &portable::kTable,
};

static bool is_supported(const Kernels& table) {
#if AKD_X86
  if (&table == &avx512::kTable) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  }
  if (&table == &avx2::kTable) {
    return __builtin_cpu_supports(
        "avx2");  // and F16C, older in Intel's and AMD's CPUs; clang cannot ask for it
  }
#endif
  return &table == &portable::kTable;
}

// AKD_EXT_CPU names a table, so that every one can be tested and timed on one machine.
static const Kernels& choose() {
  const char* wanted = std::getenv("AKD_EXT_CPU");
  if (wanted != nullptr && *wanted == '\0') wanted = nullptr;
  for (const Kernels* table : kTables) {
    if (is_supported(*table) && (wanted == nullptr || std::strcmp(wanted, table->name) == 0)) {
      return *table;
    }
  }
  throw std::runtime_error(std::string("AKD_EXT_CPU is ") + wanted +
                           "; accepted: portable, avx2, avx512, as far as this machine has them");
}

const Kernels& kernels() {
  static const Kernels& best = choose();
  return best;
}

}  // namespace akd::cpu
