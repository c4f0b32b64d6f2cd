// The two ops of akd_ext, declared once for every device. Autograd and the fake kernels live in
// akd_ext/op/autograd.py (the stable ABI has neither), and so does the fallback in plain PyTorch.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(akd_ext, m) {
  // (loss, gradient by the student). phi comes as a number or as a 0-d tensor, which wins when it
  // is there. mask and weight have one entry for each row; divisor, a 0-d tensor, takes the place
  // of the reduction's count. Without `with_gradient` the second result has no elements and nothing
  // is written for it.
  m.def(
      "annealed_mse(Tensor student, Tensor teacher, Tensor? phi_tensor, float phi, Tensor? mask, "
      "Tensor? weight, Tensor? divisor, int reduction, bool with_gradient) -> (Tensor, Tensor)");
  // tensor *= factor * constant, without touching memory when that is 1; factor is a 0-d tensor on
  // the same device and the host never waits for it.
  m.def("scale_(Tensor(a!) tensor, Tensor factor, float constant) -> ()");
}
