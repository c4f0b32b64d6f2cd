// The forward kernel. One pass: read student and teacher, write the gradient, sum the squares.
//
// The tensor is cut into tiles of kThreads * unroll packs; a block takes tiles_per_block
// neighbouring ones. Tiles and blocks depend on the number of elements and on the types alone.
//
// The error of the sum: the squares of a trip's pack (at most 8) are added in float32 as a tree, 3
// roundings deep, packs of the trip one more; then everything is float64. So at most 4 roundings of
// 2^-24 lie on the way of any square, and the loss is within 4 * 2^-24 of the exact sum of the
// rounded squares, plus its own rounding, at any size: 2.5 ulp when all of them go the same way.
#pragma once

#include "work.cuh"

namespace akd::cuda {

static __device__ __forceinline__ int64_t offset(const Layout& layout, const Divider& groups,
                                                 int64_t row) {
  if (row < layout.inner) return row * layout.inner_stride;
  const int64_t group = groups.quotient(row);
  return group * layout.outer_stride + (row - group * layout.inner) * layout.inner_stride;
}

struct Norm {
  double divisor, scale;
};

// The same for every thread. What float64 divisions there are, thread 0 does for all of them: a
// consumer GPU has two float64 lanes a multiprocessor.
template <class S>
__device__ __forceinline__ Norm norm_of(const Work& work) {
  if (work.is_known) return {work.divisor, work.scale};
  const Forward& problem = work.problem;
  double rows = 0;
  if (work.counts) {
    if (work.row_sums != nullptr) {
      if (threadIdx.x < static_cast<unsigned>(work.row_sums_count)) {
        rows = __ldg(work.row_sums + threadIdx.x);
      }
    } else {
      for (int64_t r = threadIdx.x; r < problem.rows; r += kThreads) rows += row_weight(problem, r);
    }
    rows = block_sum(rows);
  }
  __shared__ double norm[2];
  if (threadIdx.x == 0) {
    const double divisor = problem.has_divisor ? read(problem.divisor)
                                               : count(problem.reduction, rows, problem.classes);
    norm[0] = divisor;
    norm[1] = gradient_scale(std::is_same_v<S, __half>, divisor);
  }
  __syncthreads();
  return {norm[0], norm[1]};
}

template <class S, class T, int kCount, bool kRows>
struct Worker {
  using A = accumulate_t<S, T>;
  using SPack = Pack<S, kCount>;
  using TPack = Pack<T, kCount>;

  const Work& work;
  A phi;
  double scale;

  // The sum of kPacks packs, kThreads apart: all the loads first, then the arithmetic.
  template <int kPacks>
  __device__ __forceinline__ double trip(int64_t first) const {
    const Forward& problem = work.problem;
    const S* student = static_cast<const S*>(problem.student);
    const T* teacher = static_cast<const T*>(problem.teacher);
    SPack s[kPacks];
    TPack t[kPacks];
    double weight[kPacks];
    bool whole[kPacks];
#pragma unroll
    for (int u = 0; u < kPacks; ++u) {
      const int64_t i = (first + u * kThreads) * kCount;
      int64_t at_student = i, at_teacher = i;
      whole[u] = true;
      if constexpr (kRows) {
        const int64_t row = work.by_classes.quotient(i);
        const int64_t column = i - row * problem.classes;
        whole[u] = column + kCount <= problem.classes;
        weight[u] = row_weight(problem, row);
        if (!whole[u] || weight[u] == 0) continue;  // rows that weigh nothing are not read
        at_student = offset(problem.student_layout, work.student_groups, row) + column;
        at_teacher = offset(problem.teacher_layout, work.teacher_groups, row) + column;
      }
      s[u] = load_pack<SPack>(student + at_student);
      t[u] = load_pack<TPack>(teacher + at_teacher);
    }
    A flat = 0;
    double sum = 0;
#pragma unroll
    for (int u = 0; u < kPacks; ++u) {
      const int64_t i = (first + u * kThreads) * kCount;
      if constexpr (!kRows) {
        flat += pack(s[u], t[u], i, static_cast<A>(scale));
      } else if (!whole[u]) {  // goes on in the next row
#pragma unroll 1
        for (int e = 0; e < kCount; ++e) sum += one(i + e);
      } else if (weight[u] == 0) {
        if (problem.gradient != nullptr) store_pack(static_cast<S*>(problem.gradient) + i, SPack{});
      } else {
        sum += weight[u] * pack(s[u], t[u], i, static_cast<A>(weight[u] * scale));
      }
    }
    return kRows ? sum : static_cast<double>(flat);
  }

  // The squares of a pack, added up as a tree; stores its gradient where one is wanted.
  __device__ __forceinline__ A pack(const SPack& s, const TPack& t, int64_t i, A factor) const {
    SPack g;
    A squares[kCount];
#pragma unroll
    for (int e = 0; e < kCount; ++e) {
      const A d = difference(load_as<A>(s.v[e]), load_as<A>(t.v[e]), phi);
      squares[e] = d * d;
      g.v[e] = store_gradient<S>(d * factor);
    }
#pragma unroll
    for (int half = kCount / 2; half > 0; half /= 2) {
#pragma unroll
      for (int e = 0; e < half; ++e) squares[e] += squares[e + half];
    }
    if (work.problem.gradient != nullptr) {
      store_pack(static_cast<S*>(work.problem.gradient) + i, g);
    }
    return squares[0];
  }

  // One element, wherever it lies.
  __device__ __forceinline__ double one(int64_t i) const {
    const Forward& problem = work.problem;
    const int64_t row = work.by_classes.quotient(i);
    const int64_t column = i - row * problem.classes;
    const double weight = kRows ? row_weight(problem, row) : 1.0;
    S* gradient = problem.gradient == nullptr ? nullptr : static_cast<S*>(problem.gradient) + i;
    if (weight == 0) {
      if (gradient != nullptr) *gradient = store_as<S>(0.0f);
      return 0;
    }
    const S* student = static_cast<const S*>(problem.student) +
                       offset(problem.student_layout, work.student_groups, row);
    const T* teacher = static_cast<const T*>(problem.teacher) +
                       offset(problem.teacher_layout, work.teacher_groups, row);
    const A d =
        difference(load_as<A>(load(student + column)), load_as<A>(load(teacher + column)), phi);
    if (gradient != nullptr) *gradient = store_gradient<S>(d * static_cast<A>(weight * scale));
    return weight * (d * d);
  }
};

template <class S, class T, int kCount, bool kRows>
__global__ void __launch_bounds__(kThreads, 2) forward_kernel(const Work work) {
  constexpr int kUnroll = unroll(kCount);
  const Forward& problem = work.problem;
  using A = accumulate_t<S, T>;
  const Norm norm = norm_of<S>(work);
  const Worker<S, T, kCount, kRows> worker = {work, static_cast<A>(read(problem.phi)), norm.scale};

  const int64_t numel = problem.numel(), packs = numel / kCount;
  const int64_t per_block = work.tiles_per_block * kUnroll * kThreads;  // packs
  const int64_t begin = blockIdx.x * per_block;
  const int64_t end = begin + per_block < packs ? begin + per_block : packs;
  double sum = 0;
  int64_t p = begin + threadIdx.x;
  for (; p + (kUnroll - 1) * kThreads < end; p += kUnroll * kThreads) {
    sum += worker.template trip<kUnroll>(p);
  }
  for (; p < end; p += kThreads) sum += worker.template trip<1>(p);

  if (kCount > 1 && blockIdx.x == gridDim.x - 1) {  // the elements after the last whole pack
    const int64_t i = packs * kCount + threadIdx.x;
    if (i < numel) sum += worker.one(i);
  }

  const double total = block_sum(sum);
  if (threadIdx.x != 0) return;
  if (work.partial == nullptr) {
    *static_cast<A*>(problem.loss) = static_cast<A>(total / norm.divisor);
  } else {
    work.partial[blockIdx.x] = total;
    if (blockIdx.x == 0) *work.divisor_for_sum = norm.divisor;
  }
}

template <class S, class T>
ForwardKernel choose_of_both(bool vector, bool rows) {
  constexpr int kCount = 16 / (sizeof(S) > sizeof(T) ? sizeof(S) : sizeof(T));
  if (!vector) return forward_kernel<S, T, 1, true>;
  return rows ? forward_kernel<S, T, kCount, true> : forward_kernel<S, T, kCount, false>;
}

template <class S>
ForwardKernel choose_forward(Type teacher, bool vector, bool rows) {
  switch (teacher) {
    case kFloat: return choose_of_both<S, float>(vector, rows);
    case kDouble: return choose_of_both<S, double>(vector, rows);
    case kBFloat16: return choose_of_both<S, __nv_bfloat16>(vector, rows);
    default: return choose_of_both<S, __half>(vector, rows);
  }
}

}  // namespace akd::cuda
