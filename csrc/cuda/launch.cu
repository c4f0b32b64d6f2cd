// The small kernels, and the host's side of all of them.
//
// A forward pass is one launch where one block is enough, else two: the blocks' sums go through
// memory, and a kernel of one block adds them up in order. No grid barrier: a cooperative grid
// waits until all of it fits on the device, so beside a collective of NCCL it would wait for the
// whole collective. No ticket of the last block either: its counter must be zero before, which
// costs a launch as well, unless it lives on between calls, and then two streams or two graphs may
// share it.
#include <algorithm>

#include "work.cuh"

namespace akd::cuda {
namespace {

// One block alone as long as a thread has at most this many trips to make.
constexpr int64_t kTilesOfOneBlock = 4;
// At least about a thousand blocks where there is work for them: four or more for each place on the
// largest GPUs, so that the last ones to end leave little of it idle.
constexpr int64_t kBlocks = 1024;
// A block adds up the weights of this many rows by itself, 8 a thread; of more, a kernel before
// does.
constexpr int64_t kRowsOfOneBlock = 8 * kThreads;
constexpr int64_t kScaleBlocks = 2048;

constexpr int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

__global__ void __launch_bounds__(kThreads) row_sums_kernel(const Forward problem, double* sums) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  double mine = 0;
  for (int64_t row = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; row < problem.rows;
       row += stride) {
    mine += row_weight(problem, row);
  }
  const double total = block_sum(mine);
  if (threadIdx.x == 0) sums[blockIdx.x] = total;
}

// The blocks' sums in order, divided.
__global__ void __launch_bounds__(kThreads)
    finish_kernel(const double* partial, int blocks, const double* divisor, void* loss,
                  bool is_double) {
  double mine = 0;
  for (int b = threadIdx.x; b < blocks; b += kThreads) mine += __ldg(partial + b);
  const double total = block_sum(mine);
  if (threadIdx.x != 0) return;
  const double value = total / *divisor;
  if (is_double) {
    *static_cast<double*>(loss) = value;
  } else {
    *static_cast<float*>(loss) = static_cast<float>(value);
  }
}

template <class X, int kCount>
__global__ void __launch_bounds__(kThreads)
    scale_kernel(X* x, int64_t numel, const Scalar factor_, double constant) {
  const double factor64 = read(factor_) * constant;
  if (factor64 == 1.0) return;
  using A = accumulate_t<X, X>;
  using P = Pack<X, kCount>;
  const A factor = static_cast<A>(factor64);
  const int64_t packs = numel / kCount;
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t p = thread; p < packs; p += stride) {
    P pack = *reinterpret_cast<const P*>(x + p * kCount);
#pragma unroll
    for (int i = 0; i < kCount; ++i) pack.v[i] = store_as<X>(load_as<A>(pack.v[i]) * factor);
    store_pack(x + p * kCount, pack);
  }
  if constexpr (kCount > 1) {
    const int64_t i = packs * kCount + thread;
    if (i < numel) x[i] = store_as<X>(load_as<A>(x[i]) * factor);
  }
}

constexpr int size_of(Type type) { return type == kDouble ? 8 : type == kFloat ? 4 : 2; }

int pack_count(Type a, Type b) { return 16 / std::max(size_of(a), size_of(b)); }

bool is_aligned(const void* p, size_t bytes) { return reinterpret_cast<uintptr_t>(p) % bytes == 0; }

// Whether packs of `count` elements are at multiples of their size in every row. Contiguous rows
// are one stretch: a pack may go on in the next one.
bool packs_fit(const void* p, Type type, const Layout& layout, int64_t classes, int count) {
  if (!is_aligned(p, count * size_of(type))) return false;
  if (layout.contiguous) return true;
  return classes % count == 0 && layout.inner_stride % count == 0 &&
         layout.outer_stride % count == 0;
}

bool needs_counting(const Forward& problem) {
  return (problem.mask != nullptr || problem.weight != nullptr) && !problem.has_divisor &&
         problem.reduction != Reduction::kSum;
}

Path path_of(const Forward& problem) {
  if (problem.weight != nullptr || !problem.student_layout.contiguous ||
      !problem.teacher_layout.contiguous) {
    return Path::kRows;
  }
  return problem.mask != nullptr ? Path::kMasked : Path::kFlat;
}

Work work_of(const Forward& problem, const Plan& plan, double* workspace) {
  Work work = {};
  work.problem = problem;
  for (Layout* layout : {&work.problem.student_layout, &work.problem.teacher_layout}) {
    if (layout->contiguous) *layout = {problem.rows, problem.classes, 0, true};
  }
  work.by_classes = divide_by(problem.classes);
  work.by_classes_in_block = divide_small_by(std::min(problem.classes, kMostClasses));
  work.student_groups = divide_by(work.problem.student_layout.inner);
  work.teacher_groups = divide_by(work.problem.teacher_layout.inner);
  work.tiles_per_block = plan.tiles_per_block;
  work.counts = needs_counting(problem);
  work.is_known = !work.counts && !(problem.has_divisor && problem.divisor.device != nullptr);
  if (work.is_known) {
    work.divisor = problem.has_divisor ? problem.divisor.value
                                       : count(problem.reduction, static_cast<double>(problem.rows),
                                               problem.classes);
    work.scale = gradient_scale(problem.student_type == kHalf, work.divisor);
  }
  if (plan.count_blocks > 0) {
    work.row_sums = workspace;
    work.row_sums_count = plan.count_blocks;
    workspace += plan.count_blocks;
  }
  if (plan.blocks > 1) {
    work.divisor_for_sum = workspace;
    work.partial = workspace + 1;
  }
  return work;
}

ForwardKernel choose(const Forward& problem, bool vector) {
  const Path path = path_of(problem);
  switch (problem.student_type) {
    case kFloat: return choose_forward<float>(problem.teacher_type, vector, path);
    case kDouble: return choose_forward<double>(problem.teacher_type, vector, path);
    case kBFloat16: return choose_forward<__nv_bfloat16>(problem.teacher_type, vector, path);
    default: return choose_forward<__half>(problem.teacher_type, vector, path);
  }
}

template <class X>
cudaError_t scale(void* x, int64_t numel, const Scalar& factor, double constant,
                  cudaStream_t stream) {
  constexpr int kCount = 16 / sizeof(X);
  const bool vector = is_aligned(x, 16);
  const auto kernel = vector ? scale_kernel<X, kCount> : scale_kernel<X, 1>;
  const int64_t trips = divide_up(numel, int64_t{kThreads} * (vector ? kCount : 1));
  return launch(kernel, std::min(trips, kScaleBlocks), stream, static_cast<X*>(x), numel, factor,
                constant);
}

}  // namespace

Plan plan_forward(const Forward& problem) {
  int count = pack_count(problem.student_type, problem.teacher_type);
  Plan plan = {};
  plan.vector = packs_fit(problem.student, problem.student_type, problem.student_layout,
                          problem.classes, count) &&
                packs_fit(problem.teacher, problem.teacher_type, problem.teacher_layout,
                          problem.classes, count) &&
                is_aligned(problem.gradient, count * size_of(problem.student_type));
  if (!plan.vector) count = 1;
  const int64_t tile = int64_t{kThreads} * unroll(count) * count;
  const int64_t tiles = std::max<int64_t>(divide_up(problem.numel(), tile), 1);
  plan.tiles_per_block = tiles <= kTilesOfOneBlock
                             ? kTilesOfOneBlock
                             : std::clamp<int64_t>(tiles / kBlocks, 1, kTilesPerBlock);
  plan.blocks = static_cast<int>(divide_up(tiles, plan.tiles_per_block));
  if (needs_counting(problem) && problem.rows > kRowsOfOneBlock) {
    plan.count_blocks =
        static_cast<int>(std::min<int64_t>(divide_up(problem.rows, kRowsOfOneBlock), kThreads));
  }
  plan.workspace = plan.count_blocks + (plan.blocks > 1 ? plan.blocks + 1 : 0);
  return plan;
}

cudaError_t launch_forward(const Forward& problem, const Plan& plan, double* workspace,
                           cudaStream_t stream) {
  if (plan.count_blocks > 0) {
    const cudaError_t error =
        launch(row_sums_kernel, plan.count_blocks, stream, problem, workspace);
    if (error != cudaSuccess) return error;
  }
  const Work work = work_of(problem, plan, workspace);
  const cudaError_t error = launch(choose(problem, plan.vector), plan.blocks, stream, work);
  if (error != cudaSuccess || plan.blocks == 1) return error;
  return launch(finish_kernel, 1, stream, work.partial, plan.blocks, work.divisor_for_sum,
                problem.loss, problem.loss_is_double());
}

cudaError_t launch_scale(void* x, Type type, int64_t numel, const Scalar& factor, double constant,
                         cudaStream_t stream) {
  if (numel == 0) return cudaSuccess;
  switch (type) {
    case kFloat: return scale<float>(x, numel, factor, constant, stream);
    case kDouble: return scale<double>(x, numel, factor, constant, stream);
    case kBFloat16: return scale<__nv_bfloat16>(x, numel, factor, constant, stream);
    default: return scale<__half>(x, numel, factor, constant, stream);
  }
}

}  // namespace akd::cuda
