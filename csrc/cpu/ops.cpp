// The ops on the CPU: cut the tensors into blocks of a fixed size, run the kernel on each, add up the
// blocks' sums in order. The cut does not depend on the number of threads, so neither does any bit.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "../annealed_mse.h"
#include "../check.h"
#include "kernels.h"

namespace akd::cpu {
namespace {

using Sizes = torch::headeronly::IntHeaderOnlyArrayRef;

// 64 KiB of float32: two blocks fit in a core's L1 and L2 with room for the third tensor.
constexpr int64_t kBlock = 16384;
// Below this many blocks a second thread costs more than it brings (the same bound as ATen's).
constexpr int64_t kBlocksPerThread = 2;

int type_of(const Tensor& tensor, const char* name) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float: return kFloat;
    case ScalarType::Double: return kDouble;
    case ScalarType::BFloat16: return kBFloat16;
    case ScalarType::Half: return kHalf;
    default: break;
  }
  STD_TORCH_CHECK(false, name, " must be float64, float32, bfloat16 or float16");
  return -1;
}

double read_scalar(const Tensor& tensor) {
  STD_TORCH_CHECK(tensor.is_cpu(), "a 0-d tensor for a CPU op must be on the CPU");
  const void* p = tensor.const_data_ptr();
  switch (tensor.scalar_type()) {
    case ScalarType::Double: return *static_cast<const double*>(p);
    case ScalarType::Float: return *static_cast<const float*>(p);
    case ScalarType::BFloat16: return *static_cast<const torch::headeronly::BFloat16*>(p);
    default: return *static_cast<const torch::headeronly::Half*>(p);
  }
}

Tensor to_contiguous(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

// A new, uninitialised, contiguous CPU tensor: straight to the allocator, past the dispatcher.
Tensor empty(Sizes sizes, int32_t dtype) {
  std::vector<int64_t> strides(sizes.size());
  int64_t stride = 1;
  for (size_t d = sizes.size(); d-- > 0;) {
    strides[d] = stride;
    stride *= std::max<int64_t>(sizes[d], 1);
  }
  AtenTensorHandle handle = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(
      aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(),
                               dtype, aoti_torch_device_type_cpu(), 0, &handle));
  return Tensor(handle);
}

int32_t dtype_of(const Tensor& tensor) {
  int32_t dtype = 0;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(tensor.get(), &dtype));
  return dtype;
}

struct Problem {
  const char* student;
  const char* teacher;
  char* gradient;  // null when none is wanted
  const bool* mask;
  int64_t classes;
  size_t student_size, teacher_size;
  double phi, scale;
  RunFn run;

  double run_range(int64_t begin, int64_t end) const {
    return run(student + begin * student_size, teacher + begin * teacher_size,
               gradient == nullptr ? nullptr : gradient + begin * student_size, end - begin, phi,
               scale);
  }

  // With a mask, neighbouring rows that share its value are one stretch.
  double masked_range(int64_t begin, int64_t end) const {
    double sum = 0;
    while (begin < end) {
      int64_t row = begin / classes;
      const bool kept = mask[row];
      int64_t stop = (row + 1) * classes;
      while (stop < end && mask[++row] == kept) stop += classes;
      stop = std::min(stop, end);
      if (kept) {
        sum += run_range(begin, stop);
      } else if (gradient != nullptr) {
        std::fill(gradient + begin * student_size, gradient + stop * student_size, 0);
      }
      begin = stop;
    }
    return sum;
  }

  double range(int64_t begin, int64_t end) const {
    return mask == nullptr ? run_range(begin, end) : masked_range(begin, end);
  }
};

double sum_blocks(const Problem& problem, int64_t numel) {
  const int64_t blocks = (numel + kBlock - 1) / kBlock;
  if (blocks <= 1) return problem.range(0, numel);
  std::vector<double> partial(blocks);
  torch::stable::parallel_for(0, blocks, kBlocksPerThread, [&](int64_t first, int64_t last) {
    for (int64_t b = first; b < last; ++b) {
      partial[b] = problem.range(b * kBlock, std::min((b + 1) * kBlock, numel));
    }
  });
  double total = 0;
  for (double p : partial) total += p;
  return total;
}

std::tuple<Tensor, Tensor> annealed_mse(const Tensor& student_, const Tensor& teacher_,
                                        const std::optional<Tensor>& phi_tensor, double phi,
                                        const std::optional<Tensor>& mask_, int64_t reduction,
                                        bool with_gradient) {
  const Shape shape = check_inputs(student_, teacher_, phi_tensor, mask_, reduction);
  const int s_type = type_of(student_, "student");
  const int t_type = type_of(teacher_, "teacher");
  const Tensor student = to_contiguous(student_);
  const Tensor teacher = to_contiguous(teacher_);
  // The student stands in where there is no mask; nobody reads it then.
  const Tensor mask = mask_.has_value() ? to_contiguous(*mask_) : student;
  const bool* kept =
      mask_.has_value() ? static_cast<const bool*>(mask.const_data_ptr()) : nullptr;
  const int64_t rows =
      kept == nullptr ? shape.rows : std::count(kept, kept + shape.rows, true);

  const Sizes zero_d(nullptr, size_t{0});
  const int64_t no_elements = 0;
  const Tensor gradient =
      empty(with_gradient ? student.sizes() : Sizes(&no_elements, size_t{1}), dtype_of(student));
  const bool is_double = s_type == kDouble || t_type == kDouble;
  const Tensor loss =
      empty(zero_d, is_double ? aoti_torch_dtype_float64() : aoti_torch_dtype_float32());

  const double divisor = count(static_cast<Reduction>(reduction), rows, shape.classes);
  Problem problem;
  problem.student = static_cast<const char*>(student.const_data_ptr());
  problem.teacher = static_cast<const char*>(teacher.const_data_ptr());
  problem.gradient = with_gradient ? static_cast<char*>(gradient.mutable_data_ptr()) : nullptr;
  problem.mask = kept;
  problem.classes = shape.classes;
  problem.student_size = student.element_size();
  problem.teacher_size = teacher.element_size();
  problem.phi = phi_tensor.has_value() ? read_scalar(*phi_tensor) : phi;
  problem.scale = gradient_scale(s_type == kHalf, divisor);
  problem.run = kernels().run[s_type][t_type];

  const double value = sum_blocks(problem, shape.numel) / divisor;
  if (is_double) {
    *static_cast<double*>(loss.mutable_data_ptr()) = value;
  } else {
    *static_cast<float*>(loss.mutable_data_ptr()) = static_cast<float>(value);
  }
  return {loss, gradient};
}

void scale_(const Tensor& tensor, const Tensor& factor) {
  const int type = type_of(tensor, "tensor");
  STD_TORCH_CHECK(factor.dim() == 0 && is_supported(factor.scalar_type()),
                  "factor must be a 0-d float64, float32, bfloat16 or float16 tensor");
  STD_TORCH_CHECK(tensor.is_contiguous(), "tensor must be contiguous");
  const double value = read_scalar(factor);
  if (value == 1.0) return;
  const int64_t numel = tensor.numel();
  const size_t size = tensor.element_size();
  char* data = static_cast<char*>(tensor.mutable_data_ptr());
  const ScaleFn scale = kernels().scale[type];
  const int64_t blocks = (numel + kBlock - 1) / kBlock;
  if (blocks <= 1) return scale(data, numel, value);
  torch::stable::parallel_for(0, blocks, kBlocksPerThread, [&](int64_t first, int64_t last) {
    const int64_t end = std::min(last * kBlock, numel);
    scale(data + first * kBlock * size, end - first * kBlock, value);
  });
}

}  // namespace
}  // namespace akd::cpu

STABLE_TORCH_LIBRARY_IMPL(akd_ext, CPU, m) {
  m.impl("annealed_mse", TORCH_BOX(&akd::cpu::annealed_mse));
  m.impl("scale_", TORCH_BOX(&akd::cpu::scale_));
}
