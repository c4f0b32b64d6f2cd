// What the ops check when somebody calls them past the Python function: enough never to crash.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <optional>

#include "annealed_mse.h"

namespace akd {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Sizes of one call, read once: each is a call through the C interface.
struct Shape {
  int64_t numel;
  int64_t classes;
  int64_t rows;
};

inline bool is_supported(ScalarType type) {
  return type == ScalarType::Float || type == ScalarType::Double || type == ScalarType::BFloat16 ||
         type == ScalarType::Half;
}

inline Shape check_inputs(const Tensor& student, const Tensor& teacher,
                          const std::optional<Tensor>& phi_tensor,
                          const std::optional<Tensor>& mask, int64_t reduction) {
  const auto sizes = student.sizes();
  const auto teacher_sizes = teacher.sizes();
  const size_t dim = sizes.size();
  STD_TORCH_CHECK(dim >= 1, "student must have at least one dimension, (..., classes)");
  STD_TORCH_CHECK(dim == teacher_sizes.size(), "teacher must have the student's shape");
  for (size_t d = 0; d < dim; ++d) {
    STD_TORCH_CHECK(sizes[d] == teacher_sizes[d], "teacher must have the student's shape");
  }
  STD_TORCH_CHECK(student.device() == teacher.device(), "teacher must be on the student's device");
  STD_TORCH_CHECK(reduction >= 0 && reduction <= 2,
                  "reduction must be 0 (sum), 1 (mean) or 2 (batchmean), got ", reduction);
  if (phi_tensor.has_value()) {
    STD_TORCH_CHECK(phi_tensor->dim() == 0, "phi_tensor must be a 0-d tensor");
    STD_TORCH_CHECK(is_supported(phi_tensor->scalar_type()),
                    "phi_tensor must be float64, float32, bfloat16 or float16");
  }
  if (mask.has_value()) {
    const auto mask_sizes = mask->sizes();
    STD_TORCH_CHECK(mask->scalar_type() == ScalarType::Bool, "mask must be a bool tensor");
    STD_TORCH_CHECK(mask_sizes.size() + 1 == dim, "mask must have the shape student.shape[:-1]");
    for (size_t d = 0; d + 1 < dim; ++d) {
      STD_TORCH_CHECK(sizes[d] == mask_sizes[d], "mask must have the shape student.shape[:-1]");
    }
    STD_TORCH_CHECK(mask->device() == student.device(), "mask must be on the student's device");
  }
  int64_t rows = 1;
  for (size_t d = 0; d + 1 < dim; ++d) rows *= sizes[d];
  return {rows * sizes[dim - 1], sizes[dim - 1], rows};
}

inline void check_factor(const Tensor& tensor, const Tensor& factor) {
  STD_TORCH_CHECK(factor.dim() == 0 && is_supported(factor.scalar_type()),
                  "factor must be a 0-d float64, float32, bfloat16 or float16 tensor");
  STD_TORCH_CHECK(tensor.is_contiguous(), "tensor must be contiguous");
}

}  // namespace akd
