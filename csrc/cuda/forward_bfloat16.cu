// The forward kernels of bfloat16 students: a file for each type, so that the compilers share the
// work.
#include "forward.cuh"

namespace akd::cuda {
template ForwardKernel choose_forward<__nv_bfloat16>(Type teacher, bool vector, Path path);
}  // namespace akd::cuda
