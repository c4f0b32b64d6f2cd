// The ops on the CPU: cut the tensors into blocks of a fixed size, run the kernel on each, add up
// the blocks' sums in order. The cut does not depend on the number of threads, so neither does any
// bit.
#if defined(__linux__)
#include <sys/mman.h>
#endif
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "../annealed_mse.h"
#include "../check.h"
#include "../tensors.h"
#include "kernels.h"

namespace akd::cpu {
namespace {

// 64 KiB of float32: two blocks fit in a core's L1 and L2 with room for the third tensor.
constexpr int64_t kBlock = 16384;
// Below this many blocks a second thread costs more than it brings (the same bound as ATen's).
constexpr int64_t kBlocksPerThread = 2;

// From 32 MiB on glibc gives every block a mapping of its own, and takes it back when the block
// is freed: the gradient of each call is new pages, which the system hands out, zeroed, at the
// first touch. Huge pages make that 512 times fewer of them, and 3 to 5 times cheaper. Smaller
// blocks come back from the heap with their pages; there it made no difference. It is a hint: where
// the system does not allow it, nothing happens. csrc/README.md has the measurements, fragmented
// memory included.
void ask_for_huge_pages(void* data, size_t bytes) {
#if defined(MADV_HUGEPAGE)
  constexpr size_t kFreshPages = size_t{32} << 20;
  if (bytes < kFreshPages) return;
  constexpr uintptr_t kHugePage = uintptr_t{2} << 20;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + kHugePage - 1) & ~(kHugePage - 1);
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + bytes) & ~(kHugePage - 1);
  madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
  (void)data;
  (void)bytes;
#endif
}

struct Problem {
  const char* student;
  const char* teacher;
  char* gradient;       // null when none is wanted
  const uint8_t* mask;  // null: every row counts
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
      const bool kept = mask[row] != 0;
      int64_t stop = (row + 1) * classes;
      while (stop < end && (mask[++row] != 0) == kept) stop += classes;
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
  // In pairs, so that the error grows with the logarithm of the number of blocks.
  for (int64_t step = 1; step < blocks; step *= 2) {
    for (int64_t b = 0; b + step < blocks; b += 2 * step) partial[b] += partial[b + step];
  }
  return partial[0];
}

std::tuple<Tensor, Tensor> annealed_mse(const Tensor& student_, const Tensor& teacher_,
                                        const std::optional<Tensor>& phi_tensor, double phi,
                                        const std::optional<Tensor>& mask_, int64_t reduction,
                                        bool with_gradient) {
  const Shape shape = check_inputs(student_, teacher_, phi_tensor, mask_, reduction);
  const Type s_type = type_of(student_, "student");
  const Type t_type = type_of(teacher_, "teacher");
  const Tensor student = to_contiguous(student_);
  const Tensor teacher = to_contiguous(teacher_);
  // The student stands in where there is no mask; nobody reads it then.
  const Tensor mask = mask_.has_value() ? to_contiguous(*mask_) : student;
  // As bytes: torch lets a bool tensor hold others than 0 and 1.
  const uint8_t* kept =
      mask_.has_value() ? static_cast<const uint8_t*>(mask.const_data_ptr()) : nullptr;
  const int64_t rows =
      kept == nullptr ? shape.rows : shape.rows - std::count(kept, kept + shape.rows, uint8_t{0});

  const bool is_double = s_type == kDouble || t_type == kDouble;
  const Tensor gradient = new_gradient(student, with_gradient);
  const Tensor loss = new_loss(student, is_double);

  const double divisor = count(static_cast<Reduction>(reduction), rows, shape.classes);
  Problem problem;
  problem.student = static_cast<const char*>(student.const_data_ptr());
  problem.teacher = static_cast<const char*>(teacher.const_data_ptr());
  problem.gradient = with_gradient ? static_cast<char*>(gradient.mutable_data_ptr()) : nullptr;
  problem.mask = kept;
  problem.classes = shape.classes;
  problem.student_size = student.element_size();
  if (with_gradient) ask_for_huge_pages(problem.gradient, shape.numel * problem.student_size);
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

void scale_(const Tensor& tensor, const Tensor& factor, double constant) {
  const Type type = type_of(tensor, "tensor");
  check_factor(tensor, factor);
  const double value = read_scalar(factor) * constant;
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
