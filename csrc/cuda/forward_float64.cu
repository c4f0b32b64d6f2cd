// The forward kernels of float64 students: a file for each type, so that the compilers share the
// work.
#include "forward.cuh"

namespace akd::cuda {
template ForwardKernel choose_forward<double>(Type teacher, bool vector, Path path);
}  // namespace akd::cuda
