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

// The rows of a block, counted from the one that holds its first element, number 0. A block has
// fewer than 2^18 elements, so 32 bits are enough, and a row's number costs one multiplication.
struct BlockRows {
  int64_t first;    // row 0 is this one of the problem
  unsigned before;  // elements of row 0 before the block's first
  unsigned classes;
  SmallDivider by_classes;

  // Of more than kMostClasses classes only the last so many are counted: a block that begins
  // earlier in a row does not reach its end.
  __device__ __forceinline__ BlockRows(const Work& work, int64_t begin)
      : first(work.by_classes.quotient(begin)), by_classes(work.by_classes_in_block) {
    const int64_t all = work.problem.classes, skipped = all > kMostClasses ? all - kMostClasses : 0;
    const int64_t counted = begin - first * all - skipped;
    before = settled(counted > 0 ? static_cast<unsigned>(counted) : 0);
    classes = settled(static_cast<unsigned>(all - skipped));
  }

  __device__ __forceinline__ unsigned row(unsigned i) const {
    return by_classes.quotient(before + i);
  }
  // Whether `count` elements from i on lie in this row.
  __device__ __forceinline__ bool holds(unsigned row, unsigned i, unsigned count) const {
    return before + i + count - row * classes <= classes;
  }
};

static __device__ __forceinline__ int64_t offset(const Layout& layout, const Divider& groups,
                                                 int64_t row) {
  if (row < layout.inner) return row * layout.inner_stride;
  const int64_t group = groups.quotient(row);
  return group * layout.outer_stride + (row - group * layout.inner) * layout.inner_stride;
}

template <class S, class T, int kCount, Path kPath>
struct Worker {
  using A = accumulate_t<S, T>;
  using SPack = Pack<S, kCount>;
  using TPack = Pack<T, kCount>;

  const Work& work;
  A phi;
  double scale;
  int64_t begin;  // the block's first element; packs and elements are counted from it
  BlockRows rows;

  // Adds the squares of kPacks packs, kThreads apart, to the sum: all the loads first, then the
  // arithmetic. False, and nothing is done: one of them goes on in the next row.
  template <int kPacks>
  __device__ __forceinline__ bool trip(int first, double* sum) const {
    constexpr int kStep = kThreads * kCount;
    const Forward& problem = work.problem;
    const int from = first * kCount;  // of the block
    const int64_t i = begin + from;   // of the problem; the packs lie at i + u * kStep
    unsigned row[kPacks];
    double weight[kPacks];
    if constexpr (kPath != Path::kFlat) {
      bool whole = true;
#pragma unroll
      for (int u = 0; u < kPacks; ++u) {
        row[u] = rows.row(from + u * kStep);
        whole = whole && rows.holds(row[u], from + u * kStep, kCount);
      }
      if (kCount > 1 && !whole) return false;
#pragma unroll
      for (int u = 0; u < kPacks; ++u) weight[u] = weight_of(row[u]);
    }
    Word<SPack> s[kPacks];
    Word<TPack> t[kPacks];
#pragma unroll
    for (int u = 0; u < kPacks; ++u) {
      int64_t at_student = i + u * kStep, at_teacher = at_student;
      if constexpr (kPath != Path::kFlat) {
        if (weight[u] == 0) continue;  // rows that weigh nothing are not read
      }
      if constexpr (kPath == Path::kRows) {
        const int64_t of_problem = rows.first + row[u];
        const int64_t column = at_student - of_problem * problem.classes;
        at_student = offset(problem.student_layout, work.student_groups, of_problem) + column;
        at_teacher = offset(problem.teacher_layout, work.teacher_groups, of_problem) + column;
      }
      s[u] = load_word<SPack>(static_cast<const S*>(problem.student) + at_student);
      t[u] = load_word<TPack>(static_cast<const T*>(problem.teacher) + at_teacher);
    }
    A flat = 0;
#pragma unroll
    for (int u = 0; u < kPacks; ++u) {
      const int64_t at = i + u * kStep;
      if constexpr (kPath == Path::kFlat) {
        flat += pack(s[u], t[u], at, static_cast<A>(scale));
      } else if (weight[u] == 0) {
        if (problem.gradient != nullptr) {
          store_pack(static_cast<S*>(problem.gradient) + at, SPack{});
        }
      } else if constexpr (kPath == Path::kMasked) {
        *sum += pack(s[u], t[u], at, static_cast<A>(scale));
      } else {
        *sum += weight[u] * pack(s[u], t[u], at, static_cast<A>(weight[u] * scale));
      }
    }
    if constexpr (kPath == Path::kFlat) *sum += flat;
    return true;
  }

  // A pack that may go on in the next row.
  __device__ __forceinline__ void any_pack(int p, double* sum) const {
    if (trip<1>(p, sum)) return;
#pragma unroll 1
    for (int i = p * kCount; i < (p + 1) * kCount; ++i) *sum += one(i);
  }

  // One element. Only contiguous rows come here: those of other layouts are whole packs.
  __device__ __forceinline__ double one(int i) const {
    const Forward& problem = work.problem;
    const double weight = kPath == Path::kFlat ? 1.0 : weight_of(rows.row(i));
    S* gradient = problem.gradient == nullptr ? nullptr : static_cast<S*>(problem.gradient) + begin;
    if (weight == 0) {
      if (gradient != nullptr) gradient[i] = store_as<S>(0.0f);
      return 0;
    }
    const S s = load(static_cast<const S*>(problem.student) + begin + i);
    const T t = load(static_cast<const T*>(problem.teacher) + begin + i);
    const A d = difference(load_as<A>(s), load_as<A>(t), phi);
    if (gradient != nullptr) gradient[i] = store_gradient<S>(d * static_cast<A>(weight * scale));
    return weight * (d * d);
  }

  __device__ __forceinline__ double weight_of(unsigned row) const {
    const Forward& problem = work.problem;
    if constexpr (kPath == Path::kMasked) {
      return __ldg(problem.mask + rows.first + row) == 0 ? 0.0 : 1.0;
    } else {
      return row_weight(problem, rows.first + row);
    }
  }

  // The squares of a pack, added up as a tree; stores its gradient where one is wanted.
  __device__ __forceinline__ A pack(const Word<SPack>& s_word, const Word<TPack>& t_word, int64_t i,
                                    A factor) const {
    A s[kCount], t[kCount], squares[kCount], gradient[kCount];
    widen<S, kCount>(s_word, s);
    widen<T, kCount>(t_word, t);
#pragma unroll
    for (int e = 0; e < kCount; ++e) {
      const A d = difference(s[e], t[e], phi);
      squares[e] = d * d;
      gradient[e] = d * factor;
    }
#pragma unroll
    for (int half = kCount / 2; half > 0; half /= 2) {
#pragma unroll
      for (int e = 0; e < half; ++e) squares[e] += squares[e + half];
    }
    S* const stored = static_cast<S*>(work.problem.gradient);
    if (stored != nullptr) store_pack(stored + i, gradient_pack<S>(gradient));
    return squares[0];
  }
};

template <class S, class T, int kCount, Path kPath>
__global__ void __launch_bounds__(kThreads, 2) forward_kernel(const Work work) {
  constexpr int kUnroll = unroll(kCount);
  const Forward& problem = work.problem;
  using A = accumulate_t<S, T>;
  const Norm norm = norm_of<S>(work);

  const int64_t numel = problem.numel();
  const int64_t per_block = work.tiles_per_block * kUnroll * kThreads * kCount;
  const int64_t begin = blockIdx.x * per_block;
  const int elements = static_cast<int>(begin + per_block < numel ? per_block : numel - begin);
  const int packs = elements / kCount;
  const Worker<S, T, kCount, kPath> worker = {work, static_cast<A>(read(problem.phi)), norm.scale,
                                              begin, BlockRows(work, begin)};
  double sum = 0;
  for (int p = threadIdx.x; p < packs; p += kUnroll * kThreads) {
    double of_trip = 0;
    if (p + (kUnroll - 1) * kThreads >= packs || !worker.template trip<kUnroll>(p, &of_trip)) {
#pragma unroll 1
      for (int q = p; q < p + kUnroll * kThreads && q < packs; q += kThreads) {
        worker.any_pack(q, kCount == 1 ? &sum : &of_trip);
      }
    }
    sum += of_trip;
  }
  const int last = packs * kCount + static_cast<int>(threadIdx.x);
  if (kCount > 1 && last < elements) sum += worker.one(last);  // after the last whole pack

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
ForwardKernel choose_of_both(bool vector, Path path) {
  constexpr int kCount = 16 / (sizeof(S) > sizeof(T) ? sizeof(S) : sizeof(T));
  if (!vector) return forward_kernel<S, T, 1, Path::kRows>;
  if (path == Path::kFlat) return forward_kernel<S, T, kCount, Path::kFlat>;
  if constexpr (!std::is_same_v<accumulate_t<S, T>, double>) {
    if (path == Path::kMasked) return forward_kernel<S, T, kCount, Path::kMasked>;
  }
  return forward_kernel<S, T, kCount, Path::kRows>;
}

template <class S>
ForwardKernel choose_forward(Type teacher, bool vector, Path path) {
  switch (teacher) {
    case kFloat: return choose_of_both<S, float>(vector, path);
    case kDouble: return choose_of_both<S, double>(vector, path);
    case kBFloat16: return choose_of_both<S, __nv_bfloat16>(vector, path);
    default: return choose_of_both<S, __half>(vector, path);
  }
}

}  // namespace akd::cuda
