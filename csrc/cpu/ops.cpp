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
#include <cstring>
#include <memory>
#include <numeric>
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

// Logits as the kernel wants them: one stretch, whatever lies between the rows.
struct Logits {
  const char* data;
  size_t size;  // of one element
  int64_t classes;
  Rows rows;

  // Elements begin to end - 1. Rows that do not follow one another are moved together in `room`
  // first, which has room for a block: it stays in the core's cache, so main memory sees one pass,
  // and the loss has the bits that it has for contiguous logits.
  const char* stretch(int64_t begin, int64_t end, char* room) const {
    if (rows.contiguous) return data + begin * size;
    int64_t row = begin / classes;
    int64_t column = begin - row * classes;
    const char* first = data + (rows.offset(row) + column) * size;
    if (end - begin <= classes - column) return first;
    for (int64_t done = begin; done < end; column = 0) {
      const int64_t count = std::min(classes - column, end - done);
      std::memcpy(room + (done - begin) * size, data + (rows.offset(row++) + column) * size,
                  count * size);
      done += count;
    }
    return room;
  }
};

// What a thread needs to move rows together, only where there is something to move.
struct Room {
  Room(const Logits& student, const Logits& teacher)
      : student(student.rows.contiguous ? nullptr : new char[kBlock * student.size]),
        teacher(teacher.rows.contiguous ? nullptr : new char[kBlock * teacher.size]) {}
  std::unique_ptr<char[]> student, teacher;
};

struct Problem {
  Logits student, teacher;
  char* gradient;                      // null when none is wanted
  const uint8_t* mask;                 // null: every row counts
  const std::vector<double>* weights;  // null: every row counts alike; holds the mask, too
  double phi, scale;
  RunFn run;

  double run_range(int64_t begin, int64_t end, const Room& room, double weight) const {
    return run(student.stretch(begin, end, room.student.get()),
               teacher.stretch(begin, end, room.teacher.get()),
               gradient == nullptr ? nullptr : gradient + begin * student.size, end - begin, phi,
               weight * scale);
  }

  // Neighbouring rows of the same weight are one stretch. Rows that weigh nothing are not read.
  template <class Weight>
  double weighted_range(int64_t begin, int64_t end, const Room& room, const Weight& weight) const {
    const int64_t classes = student.classes;
    double sum = 0;
    while (begin < end) {
      int64_t row = begin / classes;
      const auto own = weight(row);
      int64_t stop = (row + 1) * classes;
      while (stop < end && weight(++row) == own) stop += classes;
      stop = std::min(stop, end);
      if (own != 0) {
        sum += own * run_range(begin, stop, room, own);
      } else if (gradient != nullptr) {
        std::fill(gradient + begin * student.size, gradient + stop * student.size, 0);
      }
      begin = stop;
    }
    return sum;
  }

  double range(int64_t begin, int64_t end, const Room& room) const {
    if (weights != nullptr) {
      return weighted_range(begin, end, room, [&](int64_t row) { return (*weights)[row]; });
    }
    if (mask != nullptr) {
      return weighted_range(begin, end, room,
                            [&](int64_t row) { return mask[row] != 0 ? 1.0 : 0.0; });
    }
    return run_range(begin, end, room, 1.0);
  }
};

double sum_blocks(const Problem& problem, int64_t numel) {
  const int64_t blocks = (numel + kBlock - 1) / kBlock;
  if (blocks <= 1) return problem.range(0, numel, Room(problem.student, problem.teacher));
  std::vector<double> partial(blocks);
  torch::stable::parallel_for(0, blocks, kBlocksPerThread, [&](int64_t first, int64_t last) {
    const Room room(problem.student, problem.teacher);
    for (int64_t b = first; b < last; ++b) {
      partial[b] = problem.range(b * kBlock, std::min((b + 1) * kBlock, numel), room);
    }
  });
  // In pairs, so that the error grows with the logarithm of the number of blocks.
  for (int64_t step = 1; step < blocks; step *= 2) {
    for (int64_t b = 0; b + step < blocks; b += 2 * step) partial[b] += partial[b + step];
  }
  return partial[0];
}

// The weight of every row in float64, 0 where the mask drops it.
std::vector<double> row_weights(const Tensor& weight, const uint8_t* mask, int64_t rows) {
  const void* data = weight.const_data_ptr();
  const ScalarType type = weight.scalar_type();
  std::vector<double> result(rows);
  for (int64_t row = 0; row < rows; ++row) {
    if (mask == nullptr || mask[row] != 0) result[row] = read_element(data, type, row);
  }
  return result;
}

Logits logits(const Tensor& tensor, int64_t classes, const Rows& rows) {
  return {static_cast<const char*>(tensor.const_data_ptr()), tensor.element_size(), classes, rows};
}

std::tuple<Tensor, Tensor> annealed_mse(const Tensor& student_, const Tensor& teacher_,
                                        const std::optional<Tensor>& phi_tensor, double phi,
                                        const std::optional<Tensor>& mask_,
                                        const std::optional<Tensor>& weight,
                                        const std::optional<Tensor>& divisor_tensor,
                                        int64_t reduction, bool with_gradient) {
  const Shape shape =
      check_inputs(student_, teacher_, {phi_tensor, mask_, weight, divisor_tensor}, reduction);
  const Type s_type = type_of(student_, "student");
  const Type t_type = type_of(teacher_, "teacher");
  Rows student_rows, teacher_rows;
  const Tensor student = with_rows(student_, &student_rows);
  const Tensor teacher = with_rows(teacher_, &teacher_rows);
  // The student stands in where there is no mask; nobody reads it then.
  const Tensor mask = mask_.has_value() ? to_contiguous(*mask_) : student;
  // As bytes: torch lets a bool tensor hold others than 0 and 1.
  const uint8_t* kept =
      mask_.has_value() ? static_cast<const uint8_t*>(mask.const_data_ptr()) : nullptr;
  std::vector<double> weights;
  double rows = static_cast<double>(shape.rows);
  if (weight.has_value()) {
    weights = row_weights(to_contiguous(*weight), kept, shape.rows);
    rows = std::accumulate(weights.begin(), weights.end(), 0.0);
  } else if (kept != nullptr) {
    rows -= static_cast<double>(std::count(kept, kept + shape.rows, uint8_t{0}));
  }

  const bool is_double = s_type == kDouble || t_type == kDouble;
  const Tensor gradient = new_gradient(student, with_gradient);
  const Tensor loss = new_loss(student, is_double);

  const double divisor = divisor_tensor.has_value()
                             ? read_scalar(*divisor_tensor)
                             : count(static_cast<Reduction>(reduction), rows, shape.classes);
  Problem problem;
  problem.student = logits(student, shape.classes, student_rows);
  problem.teacher = logits(teacher, shape.classes, teacher_rows);
  problem.gradient = with_gradient ? static_cast<char*>(gradient.mutable_data_ptr()) : nullptr;
  problem.mask = kept;
  problem.weights = weight.has_value() ? &weights : nullptr;
  if (with_gradient) ask_for_huge_pages(problem.gradient, shape.numel * problem.student.size);
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
