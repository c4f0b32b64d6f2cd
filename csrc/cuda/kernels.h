// What ops.cpp asks of kernels.cu: plain pointers, no torch.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "../annealed_mse.h"

namespace akd::cuda {

// A scalar that is either known now or read by the kernel when it runs, so that a captured graph
// sees the value of the replay, not of the capture.
struct Scalar {
  double value;
  const void* device;  // null: `value` counts
  Type type;
};

struct Forward {
  const void* student;
  const void* teacher;
  void* gradient;       // null: none wanted
  const uint8_t* mask;  // null: every row counts
  void* loss;           // one double when `loss_is_double`, else one float
  Type student_type, teacher_type;
  int64_t numel, classes, rows;
  Scalar phi;
  Reduction reduction;
};

// How the work is cut, decided on the host before the workspace is allocated.
struct Plan {
  int blocks;
  int vector;  // 1: vectors of 16 bytes, 0: one element at a time
  // Doubles of device memory: one per block, and one for the number of kept rows.
  int64_t workspace() const { return static_cast<int64_t>(blocks) + 1; }
};

cudaError_t plan_forward(const Forward& problem, int device, Plan* plan);
cudaError_t launch_forward(const Forward& problem, const Plan& plan, double* workspace,
                           cudaStream_t stream);
// x *= factor * constant; the kernel returns at once when that is 1.
cudaError_t launch_scale(void* x, Type type, int64_t numel, const Scalar& factor, double constant,
                         int device, cudaStream_t stream);

}  // namespace akd::cuda
