// The ops on CUDA: allocate, choose the stream, launch. Nothing here waits for the device.
#include <cuda_runtime_api.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <tuple>

#include "../annealed_mse.h"
#include "../check.h"
#include "../tensors.h"
#include "kernels.h"

namespace akd::cuda {
namespace {

Scalar scalar_of(const Tensor& tensor, const Tensor& on, const char* name) {
  if (tensor.is_cpu()) return {read_scalar(tensor), nullptr, kDouble};
  STD_TORCH_CHECK(tensor.device() == on.device(), name,
                  " must be on the CPU or on the logits' device");
  return {0, tensor.const_data_ptr(), type_of(tensor, name)};
}

Layout layout_of(const Rows& rows) {
  return {rows.inner, rows.inner_stride, rows.outer_stride, rows.contiguous};
}

cudaStream_t current_stream(int32_t device) {
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  return static_cast<cudaStream_t>(stream);
}

std::tuple<Tensor, Tensor> annealed_mse(const Tensor& student_, const Tensor& teacher_,
                                        const std::optional<Tensor>& phi_tensor, double phi,
                                        const std::optional<Tensor>& mask_,
                                        const std::optional<Tensor>& weight_,
                                        const std::optional<Tensor>& divisor, int64_t reduction,
                                        bool with_gradient) {
  const Shape shape =
      check_inputs(student_, teacher_, {phi_tensor, mask_, weight_, divisor}, reduction);
  const int32_t device = student_.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  Rows student_rows, teacher_rows;
  const Tensor student = with_rows(student_, &student_rows);
  const Tensor teacher = with_rows(teacher_, &teacher_rows);
  // The student stands in where there is none; nobody reads it then.
  const Tensor mask = mask_.has_value() ? to_contiguous(*mask_) : student;
  const Tensor weight = weight_.has_value() ? to_contiguous(*weight_) : student;

  Forward problem = {};
  problem.student_type = type_of(student, "student");
  problem.teacher_type = type_of(teacher, "teacher");
  const Tensor gradient = new_gradient(student, with_gradient);
  const Tensor loss = new_loss(student, problem.loss_is_double());
  problem.student = student.const_data_ptr();
  problem.teacher = teacher.const_data_ptr();
  problem.gradient = with_gradient ? gradient.mutable_data_ptr() : nullptr;
  problem.mask = mask_.has_value() ? static_cast<const uint8_t*>(mask.const_data_ptr()) : nullptr;
  problem.weight = weight_.has_value() ? weight.const_data_ptr() : nullptr;
  problem.weight_type = type_of(weight, "weight");
  problem.loss = loss.mutable_data_ptr();
  problem.student_layout = layout_of(student_rows);
  problem.teacher_layout = layout_of(teacher_rows);
  problem.classes = shape.classes;
  problem.rows = shape.rows;
  problem.phi = phi_tensor.has_value() ? scalar_of(*phi_tensor, student, "phi_tensor")
                                       : Scalar{phi, nullptr, kDouble};
  problem.has_divisor = divisor.has_value();
  if (problem.has_divisor) problem.divisor = scalar_of(*divisor, student, "divisor");
  problem.reduction = static_cast<Reduction>(reduction);

  const Plan plan = plan_forward(problem);
  const cudaStream_t stream = current_stream(device);
  if (plan.workspace == 0) {
    STD_CUDA_CHECK(launch_forward(problem, plan, nullptr, stream));
  } else {
    // Freed on return, while the kernel runs: the allocator hands it on to this stream only.
    const int64_t doubles = plan.workspace;
    const Tensor workspace = empty({&doubles, size_t{1}}, aoti_torch_dtype_float64(), student);
    STD_CUDA_CHECK(
        launch_forward(problem, plan, static_cast<double*>(workspace.mutable_data_ptr()), stream));
  }
  return {loss, gradient};
}

void scale_(const Tensor& tensor, const Tensor& factor, double constant) {
  const Type type = type_of(tensor, "tensor");
  check_factor(tensor, factor);
  const int32_t device = tensor.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  const Scalar value = scalar_of(factor, tensor, "factor");
  if (value.device == nullptr && value.value * constant == 1.0) return;
  STD_CUDA_CHECK(launch_scale(tensor.mutable_data_ptr(), type, tensor.numel(), value, constant,
                              current_stream(device)));
}

}  // namespace
}  // namespace akd::cuda

STABLE_TORCH_LIBRARY_IMPL(akd_ext, CUDA, m) {
  m.impl("annealed_mse", TORCH_BOX(&akd::cuda::annealed_mse));
  m.impl("scale_", TORCH_BOX(&akd::cuda::scale_));
}
