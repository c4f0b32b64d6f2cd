// The arithmetic of one element, shared by every kernel, host and device alike.
//
//   loss     = sum_i w_i (s_i - phi t_i)^2 / count
//   gradient = 2 w_i (s_i - phi t_i) / count
//
// w is the weight of the element's row: 1 unless weights are given, 0 where a mask drops the row.
//
// Annealing-KD, Jafari et al., EACL 2021, equation 3. Both compilers run with contraction off
// (-ffp-contract=off, --fmad=false), so a multiply and an add round twice here, exactly as in eager
// PyTorch: what the CPU tests prove about one element holds on CUDA.
#pragma once

#include <cstdint>
#include <type_traits>

#if defined(__CUDACC__)
#define AKD_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define AKD_HOST_DEVICE inline __attribute__((always_inline))
#endif

namespace akd {

// The types of logits. The numbers are indices into the CPU's tables.
enum Type : int { kFloat, kDouble, kBFloat16, kHalf, kNumTypes };

// The op's `reduction` argument; akd_ext/op/autograd.py holds the same numbers.
enum class Reduction : int64_t { kSum = 0, kMean = 1, kBatchMean = 2 };

// float64 as soon as one of the two is float64, else float32: the half types never accumulate.
template <class S, class T>
using accumulate_t =
    std::conditional_t<std::is_same_v<S, double> || std::is_same_v<T, double>, double, float>;

// student becomes student - phi * teacher. V is a scalar or a vector of scalars; a vector goes by
// reference, because clang refuses to return one that is wider than this file's instruction set.
template <class V, class A>
AKD_HOST_DEVICE void subtract(V& student, const V& teacher, A phi) {
  student = student - phi * teacher;
}

template <class A>
AKD_HOST_DEVICE A difference(A student, A teacher, A phi) {
  subtract(student, teacher, phi);
  return student;
}

// What the sum of squares is divided by when no divisor is given. `rows` is the sum of the rows'
// weights: how many rows the mask keeps where there are no weights.
AKD_HOST_DEVICE double count(Reduction reduction, double rows, int64_t classes) {
  switch (reduction) {
    case Reduction::kMean: return rows * static_cast<double>(classes);
    case Reduction::kBatchMean: return rows;
    default: return 1.0;
  }
}

// What the forward pass multiplies the difference by, beside the row's weight, before it stores the
// gradient. float16 has too few exponents for 2 / count at the size of token logits, so it stores
// the difference itself, and akd_ext/op/autograd.py multiplies by 2 / count on the way back,
// together with the upstream gradient. When nothing counts, every gradient is 0 and must stay so.
AKD_HOST_DEVICE double gradient_scale(bool student_is_half, double count) {
  if (student_is_half) return 1.0;
  return count != 0 ? 2.0 / count : 0.0;
}

// What float16 stores of a finite value that is too large for it: its largest number, not infinity.
// A teacher that marks unused classes by -1e9 gives such differences, whose gradient 2 d / count is
// finite. Infinity and NaN stay, so that a GradScaler finds them. V is a scalar or a vector.
template <class V>
AKD_HOST_DEVICE void saturate_half(V& x) {
  const V zero = x - x;  // NaN where x is not finite, and then no comparison is true
  const V top = zero + 65504.0f;
  const V limited = x > top ? top : x;
  x = limited < -top ? -top : limited;
}

}  // namespace akd
