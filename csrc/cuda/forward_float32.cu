// The forward kernels of float32 students: a file for each type, so that the compilers share the
// work.
#include "forward.cuh"

namespace akd::cuda {
template ForwardKernel choose_forward<float>(Type teacher, bool vector, Path path);
}  // namespace akd::cuda
