// The CPU kernel by itself, bound with pybind11: no torch, no dispatcher, no checks. For tests of
// the kernel alone and to measure what everything around it costs. Addresses come as integers; the
// caller keeps the memory alive.
#include <pybind11/pybind11.h>

#include "../../csrc/cpu/kernels.h"

namespace {

using akd::cpu::kernels;

void* pointer(uintptr_t address) { return reinterpret_cast<void*>(address); }

// The sum of squares; writes scale * (student - phi * teacher) unless `gradient` is 0.
double run(int student_type, int teacher_type, uintptr_t student, uintptr_t teacher,
           uintptr_t gradient, int64_t numel, double phi, double scale) {
  return kernels().run[student_type][teacher_type](pointer(student), pointer(teacher),
                                                   pointer(gradient), numel, phi, scale);
}

void scale(int type, uintptr_t x, int64_t numel, double factor) {
  kernels().scale[type](pointer(x), numel, factor);
}

}  // namespace

PYBIND11_MODULE(akd_bare_kernel, m) {
  m.def("run", &run);
  m.def("scale", &scale);
  m.def("instruction_set", [] { return kernels().name; });
}
