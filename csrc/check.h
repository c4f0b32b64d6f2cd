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

// One of the two that have an entry for each row: mask, weight.
inline void check_per_row(const Tensor& tensor, const Tensor& student, const char* name) {
  const auto sizes = student.sizes();
  const auto own_sizes = tensor.sizes();
  STD_TORCH_CHECK(own_sizes.size() + 1 == sizes.size(), name,
                  " must have the shape student.shape[:-1]");
  for (size_t d = 0; d < own_sizes.size(); ++d) {
    STD_TORCH_CHECK(sizes[d] == own_sizes[d], name, " must have the shape student.shape[:-1]");
  }
  STD_TORCH_CHECK(tensor.device() == student.device(), name, " must be on the student's device");
}

inline void check_scalar(const Tensor& tensor, const char* name) {
  STD_TORCH_CHECK(tensor.dim() == 0, name, " must be a 0-d tensor");
  STD_TORCH_CHECK(is_supported(tensor.scalar_type()), name,
                  " must be float64, float32, bfloat16 or float16");
}

inline Shape check_logits(const Tensor& student, const Tensor& teacher) {
  const auto sizes = student.sizes();
  const auto teacher_sizes = teacher.sizes();
  const size_t dim = sizes.size();
  STD_TORCH_CHECK(dim >= 1, "student must have at least one dimension, (..., classes)");
  STD_TORCH_CHECK(dim == teacher_sizes.size(), "teacher must have the student's shape");
  for (size_t d = 0; d < dim; ++d) {
    STD_TORCH_CHECK(sizes[d] == teacher_sizes[d], "teacher must have the student's shape");
  }
  STD_TORCH_CHECK(student.device() == teacher.device(), "teacher must be on the student's device");
  int64_t rows = 1;
  for (size_t d = 0; d + 1 < dim; ++d) rows *= sizes[d];
  return {rows * sizes[dim - 1], sizes[dim - 1], rows};
}

// What may be missing, in the order of the schema.
struct Options {
  const std::optional<Tensor>& phi_tensor;
  const std::optional<Tensor>& mask;
  const std::optional<Tensor>& weight;
  const std::optional<Tensor>& divisor;
};

inline Shape check_inputs(const Tensor& student, const Tensor& teacher, const Options& options,
                          int64_t reduction) {
  const Shape shape = check_logits(student, teacher);
  STD_TORCH_CHECK(reduction >= 0 && reduction <= 2,
                  "reduction must be 0 (sum), 1 (mean) or 2 (batchmean), got ", reduction);
  if (options.phi_tensor.has_value()) check_scalar(*options.phi_tensor, "phi_tensor");
  if (options.divisor.has_value()) check_scalar(*options.divisor, "divisor");
  if (options.mask.has_value()) {
    STD_TORCH_CHECK(options.mask->scalar_type() == ScalarType::Bool, "mask must be a bool tensor");
    check_per_row(*options.mask, student, "mask");
  }
  if (options.weight.has_value()) {
    STD_TORCH_CHECK(is_supported(options.weight->scalar_type()),
                    "weight must be float64, float32, bfloat16 or float16");
    check_per_row(*options.weight, student, "weight");
  }
  return shape;
}

inline void check_factor(const Tensor& tensor, const Tensor& factor) {
  check_scalar(factor, "factor");
  STD_TORCH_CHECK(tensor.is_contiguous(), "tensor must be contiguous");
}

}  // namespace akd
