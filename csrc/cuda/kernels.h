// What ops.cpp asks of the kernels: plain pointers, no torch.
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

// Where rows begin: see akd::Rows in tensors.h. All in elements.
struct Layout {
  int64_t inner, inner_stride, outer_stride;
  bool contiguous;
};

struct Forward {
  const void* student;
  const void* teacher;
  void* gradient;       // contiguous; null: none wanted
  const uint8_t* mask;  // one byte a row; null: every row counts
  const void* weight;   // one number a row; null: all 1
  void* loss;           // one double when student or teacher is, else one float
  Type student_type, teacher_type, weight_type;
  int64_t rows, classes;
  Layout student_layout, teacher_layout;
  Scalar phi;
  bool has_divisor;  // else the reduction says what the sum is divided by
  Scalar divisor;
  Reduction reduction;

  AKD_HOST_DEVICE int64_t numel() const { return rows * classes; }
  AKD_HOST_DEVICE bool loss_is_double() const {
    return student_type == kDouble || teacher_type == kDouble;
  }
};

// How the work is cut, decided on the host before the workspace is allocated. Nothing in it depends
// on the GPU, so neither does any bit of the results.
struct Plan {
  bool vector;  // 16 bytes of the wider type at a time, else one element
  int64_t tiles_per_block;
  int blocks;         // of the forward kernel
  int count_blocks;   // of the kernel that adds up the rows' weights before; 0: not needed
  int64_t workspace;  // doubles of device memory
};

Plan plan_forward(const Forward& problem);
// `workspace` may hold anything. No error is left behind for the next call of the runtime to find.
cudaError_t launch_forward(const Forward& problem, const Plan& plan, double* workspace,
                           cudaStream_t stream);
// x *= factor * constant; the kernel returns at once when that is 1.
cudaError_t launch_scale(void* x, Type type, int64_t numel, const Scalar& factor, double constant,
                         cudaStream_t stream);

}  // namespace akd::cuda
