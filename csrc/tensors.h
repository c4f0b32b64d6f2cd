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

// The value of a 0-d CPU tensor.
inline double read_scalar(const Tensor& tensor) {
  STD_TORCH_CHECK(tensor.is_cpu(), "a 0-d tensor for a CPU op must be on the CPU");
  const void* p = tensor.const_data_ptr();
  switch (tensor.scalar_type()) {
    case ScalarType::Double: return *static_cast<const double*>(p);
    case ScalarType::Float: return *static_cast<const float*>(p);
    case ScalarType::BFloat16: return *static_cast<const torch::headeronly::BFloat16*>(p);
    default: return *static_cast<const torch::headeronly::Half*>(p);
  }
}

}  // namespace akd
