// What the host hands to the forward kernels.
#pragma once

#include "device.cuh"

namespace akd::cuda {

// Packs of each tensor in flight in a thread.
__host__ __device__ constexpr int unroll(int count) { return count == 1 ? 4 : 2; }

// A block takes at most this many neighbouring tiles, 2^17 elements: 64,128 blocks' sums for 2^33
// elements, half a MiB.
constexpr int64_t kTilesPerBlock = 16;

// What a kernel knows of rows. kFlat: nothing. kMasked: a mask, over contiguous rows, as labels of
// -100 and padded batches give it. kRows: weights, strides, pointers at odd places, too.
enum class Path { kFlat, kMasked, kRows };

// Rows with more classes are counted as if they had so many: see BlockRows.
constexpr int64_t kMostClasses = int64_t{1} << 24;

// What the kernel gets: the problem, and what the host could work out for it.
struct Work {
  Forward problem;
  Divider by_classes, student_groups, teacher_groups;
  SmallDivider by_classes_in_block;  // at most kMostClasses
  int64_t tiles_per_block;
  bool is_known;            // divisor and scale are: no float64 arithmetic before the first load
  double divisor, scale;    // loss = sum / divisor, gradient = difference * scale
  bool counts;              // the divisor follows from the rows' weights
  const double* row_sums;   // sums of the weights of some rows each; null: add them up here
  int row_sums_count;       // at most kThreads
  double* partial;          // one sum a block; null: there is one block, which writes the loss
  double* divisor_for_sum;  // where the kernel that adds up the blocks finds it; may be null
};

using ForwardKernel = void (*)(Work);

// The kernel for a student's type.
template <class S>
ForwardKernel choose_forward(Type teacher, bool vector, Path path);

static __device__ __forceinline__ double row_weight(const Forward& problem, int64_t row) {
  if (problem.mask != nullptr && __ldg(problem.mask + row) == 0) return 0;
  return problem.weight == nullptr ? 1.0 : read(problem.weight, problem.weight_type, row);
}

}  // namespace akd::cuda
