// Small things that both devices do with tensors of the stable ABI.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <vector>

#include "check.h"

namespace akd {

using Sizes = torch::headeronly::IntHeaderOnlyArrayRef;

inline Type type_of(const Tensor& tensor, const char* name) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float: return kFloat;
    case ScalarType::Double: return kDouble;
    case ScalarType::BFloat16: return kBFloat16;
    case ScalarType::Half: return kHalf;
    default: break;
  }
  STD_TORCH_CHECK(false, name, " must be float64, float32, bfloat16 or float16");
  return kFloat;
}

inline Tensor to_contiguous(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

// Where the rows of logits lie in memory: `row` begins at element offset(row), its classes follow
// one another. Two strides are enough for a slice of a batch of sequences, logits[:, :-1] or
// logits[..., :classes]; `outer` is not needed for all else.
struct Rows {
  int64_t inner = 0;  // rows that have the inner stride between them
  int64_t inner_stride = 0;
  int64_t outer_stride = 0;
  bool contiguous = true;  // nothing between the rows: one stretch of rows * classes elements

  int64_t offset(int64_t row) const {
    // Nearly always the first: a division costs as much as a short row.
    return row < inner ? row * inner_stride
                       : row / inner * outer_stride + row % inner * inner_stride;
  }
};

// False: the tensor has more strides than Rows can hold, or its classes do not follow one another.
inline bool find_rows(const Tensor& tensor, Rows* rows) {
  const auto sizes = tensor.sizes();
  const auto strides = tensor.strides();
  const size_t last = sizes.size() - 1;
  *rows = {1, sizes[last], 0, true};
  if (tensor.is_contiguous()) return true;
  if (sizes[last] != 1 && strides[last] != 1) return false;
  int groups = 0;
  int64_t end = 0;  // where a row would go on at the distance of those found so far
  for (size_t d = last; d-- > 0;) {
    if (sizes[d] == 1) continue;
    if (groups == 0 || strides[d] != end) {
      if (++groups > 2) return false;
      (groups == 1 ? rows->inner_stride : rows->outer_stride) = strides[d];
    }
    if (groups == 1) rows->inner *= sizes[d];
    end = sizes[d] * strides[d];
  }
  rows->contiguous = false;
  return true;
}

// The tensor as it is where its rows can be read in place, else a contiguous copy.
inline Tensor with_rows(const Tensor& tensor, Rows* rows) {
  if (find_rows(tensor, rows)) return tensor;
  const Tensor copy = torch::stable::contiguous(tensor);
  find_rows(copy, rows);
  return copy;
}

// A new, uninitialised, contiguous tensor on the device of `like`: straight to the allocator, past
// the dispatcher, which costs a microsecond.
inline Tensor empty(Sizes sizes, int32_t dtype, const Tensor& like) {
  std::vector<int64_t> strides(sizes.size());
  int64_t stride = 1;
  for (size_t d = sizes.size(); d-- > 0;) {
    strides[d] = stride;
    stride *= std::max<int64_t>(sizes[d], 1);
  }
  int32_t device_type = 0, device_index = 0;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(like.get(), &device_index));
  AtenTensorHandle handle = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()),
                                                         sizes.data(), strides.data(), dtype,
                                                         device_type, device_index, &handle));
  return Tensor(handle);
}

// The op's two results: the gradient has the student's shape and dtype, or no elements at all.
inline Tensor new_gradient(const Tensor& student, bool wanted) {
  const int64_t none = 0;
  int32_t dtype = 0;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(student.get(), &dtype));
  return empty(wanted ? student.sizes() : Sizes(&none, size_t{1}), dtype, student);
}

inline Tensor new_loss(const Tensor& student, bool is_double) {
  return empty(Sizes(nullptr, size_t{0}),
               is_double ? aoti_torch_dtype_float64() : aoti_torch_dtype_float32(), student);
}

inline double read_element(const void* p, ScalarType type, int64_t i) {
  switch (type) {
    case ScalarType::Double: return static_cast<const double*>(p)[i];
    case ScalarType::Float: return static_cast<const float*>(p)[i];
    case ScalarType::BFloat16: return static_cast<const torch::headeronly::BFloat16*>(p)[i];
    default: return static_cast<const torch::headeronly::Half*>(p)[i];
  }
}

// The value of a 0-d CPU tensor.
inline double read_scalar(const Tensor& tensor) {
  STD_TORCH_CHECK(tensor.is_cpu(), "a 0-d tensor for a CPU op must be on the CPU");
  return read_element(tensor.const_data_ptr(), tensor.scalar_type(), 0);
}

}  // namespace akd
